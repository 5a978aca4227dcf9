//! Parses durations (`90s`) and sizes (`64MiB`): a whole number with a unit.

use std::time::Duration;

/// Parses `250ms`, `30s`, `5m`, `12h` or `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return Err("expected a number with one of the units ms, s, m, h, d, as in 30s".to_owned()),
    };
    match number.checked_mul(milliseconds) {
        Some(0) => Err("must be more than 0".to_owned()),
        Some(milliseconds) if milliseconds <= 366 * 24 * 60 * 60 * 1000 => Ok(Duration::from_millis(milliseconds)),
        _ => Err("must be at most 366d".to_owned()),
    }
}

/// Parses `4096`, `64KiB`, `10MB` or `2GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => {
            return Err(
                "expected a number of bytes, or one of the units kB, MB, GB, KiB, MiB, GiB, as in 64MiB".to_owned()
            );
        }
    };
    number.checked_mul(bytes).ok_or_else(|| "must be less than 2^64 bytes".to_owned())
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number = number.parse().map_err(|_| "must begin with a whole number".to_owned())?;
    Ok((number, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_parsed_and_invalid_values_are_rejected() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration(" 12 h "), Ok(Duration::from_secs(12 * 60 * 60)));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        for bad in ["", "s", "30", "-1s", "0s", "1.5h", "99999999999999999999s", "1000d", "5 parsecs"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "MiB", "1 furlong", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }
}
