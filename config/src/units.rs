//! Durations and sizes with their unit inside the value: `"250ms"`, `"64MiB"`.

use std::time::Duration;

const MILLIS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const BYTES: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// How a duration is written, for messages.
pub(crate) const DURATION: &str = "a whole number with a unit (ms, s, m, h), as in \"10s\"";
/// How a size is written, for messages.
pub(crate) const SIZE: &str = "a whole number with a unit (KiB, MiB, GiB), as in \"64MiB\"";

/// Reads `"250ms"`, `"5s"`, `"10m"` or `"1h"`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    scaled(text, &MILLIS).map(Duration::from_millis)
}

/// Reads `"64KiB"`, `"64MiB"` or `"1GiB"` as bytes.
pub(crate) fn size(text: &str) -> Option<u64> {
    scaled(text, &BYTES)
}

/// The shortest way to write `duration`, in the largest unit that leaves no remainder.
pub(crate) fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &MILLIS)
}

/// As [`show_duration`], for bytes.
pub(crate) fn show_size(bytes: u64) -> String {
    show(bytes, &BYTES)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start_matches(' '))?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

fn show(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, scale): &&(&str, u64)| value != 0 && value.is_multiple_of(*scale);
    let (unit, scale) = units.iter().rev().find(fits).unwrap_or(&units[0]);
    format!("{}{unit}", value / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("0ms", 0), ("250ms", 250), ("5s", 5_000), ("10m", 600_000), ("1h", 3_600_000), ("5 s", 5_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "5d",
            "5S",
            "-5s",
            "+5s",
            "1.5s",
            "1h30m",
            " 5s",
            "5s ",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64KiB", 65_536), ("64MiB", 67_108_864), ("2GiB", 2_147_483_648)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["64", "64MB", "64mib", "64B", "17179869184GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0..u64::MAX / 2) {
            let value = Duration::from_millis(millis);
            prop_assert_eq!(duration(&show_duration(value)), Some(value));
        }

        #[test]
        fn any_text_is_read_without_panic(text in any::<String>()) {
            let _ = (duration(&text), size(&text));
        }
    }
}
