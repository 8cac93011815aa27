//! Quantities as people write them: `64MiB`, `10s`, `1%`. Whole numbers inside, never floats.
//!
//! A number without a unit is refused: it would be read as something else by somebody else.

/// A text is not the quantity it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct UnitError {
    /// What was given, cut to a sane length.
    pub text: String,
    /// What it should have been.
    pub expected: &'static str,
}

/// What [`parse_bytes`] reads.
pub const BYTES_EXPECTED: &str =
    "a size: a whole number and one of the units B, KiB, MiB, GiB, kB, MB, GB, for example 64MiB";
/// What [`parse_millis`] reads.
pub const DURATION_EXPECTED: &str =
    "a duration: a whole number and one of the units ms, s, m, h, for example 10s";
/// What [`parse_ppm`] reads.
pub const RATE_EXPECTED: &str = "a rate: a number and % with at most four decimals, or a whole number and ppm, for example 1% \
     or 500ppm, at most 100%";

/// What [`parse_percent`] reads.
pub const PERCENT_EXPECTED: &str = "a whole number and %, for example 50%";

/// Reads a whole number of percent, which may be more than a hundred.
pub fn parse_percent(text: &str) -> Result<u32, UnitError> {
    let percent = || {
        let digits = text.strip_suffix('%')?.trim_end();
        u32::try_from(number(digits)?).ok()
    };
    percent().ok_or_else(|| wrong(text, PERCENT_EXPECTED))
}

/// Reads a size in bytes.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let factor = |unit: &str| match unit {
        "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "kB" | "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    scaled(text, factor).ok_or_else(|| wrong(text, BYTES_EXPECTED))
}

/// Reads a duration in milliseconds.
pub fn parse_millis(text: &str) -> Result<u64, UnitError> {
    let factor = |unit: &str| match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    scaled(text, factor).ok_or_else(|| wrong(text, DURATION_EXPECTED))
}

/// Reads a rate in parts per million, at most 1,000,000.
pub fn parse_ppm(text: &str) -> Result<u32, UnitError> {
    let parse = || {
        let ppm = match text.strip_suffix('%') {
            Some(number) => percent(number.trim_end())?,
            None => number(text.strip_suffix("ppm")?.trim_end())?,
        };
        u32::try_from(ppm).ok().filter(|ppm| *ppm <= 1_000_000)
    };
    parse().ok_or_else(|| wrong(text, RATE_EXPECTED))
}

/// A size for people, in the largest unit that it is a whole number of.
pub fn format_bytes(bytes: u64) -> String {
    match bytes {
        0 => "0B".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

/// A duration for people, in the largest unit that it is a whole number of.
pub fn format_millis(millis: u64) -> String {
    match millis {
        0 => "0ms".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

fn wrong(text: &str, expected: &'static str) -> UnitError {
    UnitError {
        text: text.chars().take(80).collect(),
        expected,
    }
}

fn scaled(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits);
    number(digits)?.checked_mul(factor(unit.trim_start())?)
}

/// Digits alone: no sign, no point, no exponent.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

fn percent(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.len() > 4 {
        return None;
    }
    let scale = 10u64.pow(4 - u32::try_from(fraction.len()).ok()?);
    number(whole)?
        .checked_mul(10_000)?
        .checked_add(number(fraction)?.checked_mul(scale)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in [
            ("0B", 0),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("3KiB", 3072),
            ("2MB", 2_000_000),
            ("2kB", 2_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in [
            "", "64", "64Mb", "-1MiB", "1.5MiB", "MiB", "64MiBs", "1e3B", "٣B",
        ] {
            assert!(
                parse_bytes(bad).unwrap_err().to_string().contains("KiB"),
                "{bad}"
            );
        }
        assert!(
            parse_bytes("99999999999GiB").is_err(),
            "an overflow is refused"
        );
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, millis) in [
            ("10s", 10_000),
            ("250ms", 250),
            ("15m", 900_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse_millis(text), Ok(millis), "{text}");
        }
        for bad in ["", "10", "10 seconds", "-1s", "0.5s", "s"] {
            assert!(parse_millis(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_exact_without_floats() {
        for (text, ppm) in [
            ("1%", 10_000),
            ("0.5%", 5_000),
            ("0.0001%", 1),
            ("100%", 1_000_000),
            ("7ppm", 7),
        ] {
            assert_eq!(parse_ppm(text), Ok(ppm), "{text}");
        }
        for bad in [
            "",
            "1",
            "101%",
            "-1%",
            "0.00001%",
            "1.%",
            ".5%",
            "ppm",
            "1000001ppm",
        ] {
            assert!(parse_ppm(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        for bytes in [0, 1, 1023, 1024, 64 << 20, 1 << 30, (1 << 30) + 1] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
        for millis in [0, 1, 999, 1000, 60_000, 90_000, 3_600_000] {
            assert_eq!(parse_millis(&format_millis(millis)), Ok(millis));
        }
    }
}
