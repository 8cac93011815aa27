//! Plain tables and the few formats that several verbs print.

use std::time::Duration;

/// A table with a head; columns as wide as their widest cell, the last one as it is.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded =
            cells
                .iter()
                .zip(widths)
                .enumerate()
                .map(|(column, (cell, width))| match column + 1 == N {
                    true => (*cell).to_owned(),
                    false => format!("{cell:width$}  "),
                });
        padded.collect::<String>().trim_end().to_owned()
    };
    let mut lines = vec![line(head)];
    lines.extend(
        rows.iter()
            .map(|row| line(row.each_ref().map(String::as_str))),
    );
    lines.join("\n")
}

/// A moment, as RFC 3339 to the second.
pub(crate) fn moment(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"))
}

/// A time in the unit that suits it.
pub(crate) fn time(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..10_000 => format!("{us} µs"),
        10_000..10_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// A number of bytes in the unit that suits it.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        10_485_760..10_737_418_240 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let rows = [["a".into(), "1".into()], ["länger".into(), String::new()]];
        assert_eq!(table(["N", "V"], &rows), "N       V\na       1\nlänger");
    }

    #[test]
    fn numbers_get_the_unit_that_suits_them() {
        assert_eq!(time(Duration::from_micros(95)), "95 µs");
        assert_eq!(time(Duration::from_millis(95)), "95.0 ms");
        assert_eq!(bytes(1 << 20), "1024.0 KiB");
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
    }
}
