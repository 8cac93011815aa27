//! Times on the command line.

use std::str::FromStr;

use holm_model::price::HOUR_MS;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _, Zoned};

/// A moment: a time or day by UTC, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct When(Timestamp);

impl When {
    /// Milliseconds since 1970 UTC.
    pub(crate) fn ms(self) -> u64 {
        u64::try_from(self.0.as_millisecond()).unwrap_or(0)
    }

    /// The beginning of its hour.
    pub(crate) fn hour_ms(self) -> u64 {
        self.ms() - self.ms() % HOUR_MS
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(date) = text.parse::<Date>()
            && text.len() == "2026-11-30".len()
        {
            return start_of(date).map(When);
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(When(time));
        }
        let wrong = || {
            format!(
                "`{text}` is no time: take a day (2026-11-30), a time with its zone (2026-11-30T12:00:00Z), or how \
                 long ago (90m, 7d)"
            )
        };
        let ago: Span = text.parse().map_err(|_| wrong())?;
        if ago.is_negative() {
            return Err(wrong());
        }
        // Days and weeks are as long as they are by UTC.
        let now = Timestamp::now().to_zoned(TimeZone::UTC);
        let then = now.checked_sub(ago).map_err(|_| wrong())?;
        Ok(When(then.timestamp()))
    }
}

/// Milliseconds since 1970 UTC, now.
pub(crate) fn now_ms() -> u64 {
    When(Timestamp::now()).ms()
}

/// A month, by UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Month(Date);

impl Default for Month {
    /// This one.
    fn default() -> Self {
        let now: Zoned = Timestamp::now().to_zoned(TimeZone::UTC);
        Month(now.date().first_of_month())
    }
}

impl Month {
    /// From, inclusive, and to, exclusive, in milliseconds since 1970 UTC.
    pub(crate) fn bounds_ms(self) -> (u64, u64) {
        let next = self.0.saturating_add(1.month());
        let ms = |date| start_of(date).map_or(0, |time| When(time).ms());
        (ms(self.0), ms(next))
    }
}

impl FromStr for Month {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no month: take one such as 2026-11");
        match text.len() == "2026-11".len() {
            true => format!("{text}-01").parse().map(Month).map_err(|_| wrong()),
            false => Err(wrong()),
        }
    }
}

fn start_of(date: Date) -> Result<Timestamp, String> {
    let start = date.to_zoned(TimeZone::UTC);
    start
        .map(|start| start.timestamp())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_day_a_moment_or_how_long_ago() {
        let ms = |text: &str| text.parse::<When>().unwrap().ms();
        assert_eq!(ms("1970-01-02"), 86_400_000);
        assert_eq!(ms("1970-01-01T01:00:00Z"), 3_600_000);
        assert_eq!(ms("1970-01-01T01:00:00+01:00"), 0);
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap();
        for (text, ago) in [
            ("90m", 90 * 60_000),
            ("7d", 7 * 86_400_000),
            ("2h", 7_200_000),
        ] {
            assert!(now.abs_diff(ms(text) + ago) < 60_000, "{text}");
        }
        for bad in [
            "",
            "yesterday",
            "-2h",
            "2026-13-01",
            "2026-11-30T12:00:00",
            "12",
        ] {
            assert!(bad.parse::<When>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_month_goes_to_the_beginning_of_the_next() {
        let bounds = "1970-01".parse::<Month>().unwrap().bounds_ms();
        assert_eq!(bounds, (0, 31 * 86_400_000));
        let december = "1970-12".parse::<Month>().unwrap().bounds_ms();
        assert_eq!(december.1, 365 * 86_400_000);
        for bad in ["", "1970", "1970-13", "70-01", "1970-1", "1970-01-01"] {
            assert!(bad.parse::<Month>().is_err(), "{bad}");
        }
    }
}
