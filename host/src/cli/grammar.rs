//! The grammar that the flags share: `key=value,…` with brackets, switches, times.

use std::time::Duration;

/// Splits `key=value,key=value`, minding brackets.
pub(super) fn options(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut parts = Vec::new();
    for part in split(text)? {
        let pair = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
        if parts.iter().any(|(key, _)| *key == pair.0) {
            return Err(format!("`{}` is given twice", pair.0));
        }
        parts.push(pair);
    }
    Ok(parts)
}

/// Splits at the commas that are not within brackets.
pub(super) fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0u32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(|| format!("`{text}`: a ] too many"))?,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(format!("`{text}`: a ] is missing"));
    }
    parts.push(&text[from..]);
    Ok(parts)
}

/// The inside of `[…]`.
pub(super) fn bracketed(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

pub(super) fn number<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{key}=`{text}` is not a number"))
}

pub(super) fn switch(key: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key}=`{text}`: on or off")),
    }
}

/// A short time, such as `200us`; a bare number is in microseconds.
///
/// # Errors
/// What is wrong with it.
pub fn interval(text: &str) -> Result<Duration, String> {
    time(text, "us")
}

/// A long time, such as `10s` or `5m`; a bare number is in seconds.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    time(text, "s")
}

/// `10s`, `5m`, `1h`, `200us`, `1.5ms`; a bare number is in `unit`.
fn time(text: &str, unit: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (value, given) = text.split_at(at);
    let seconds = match if given.is_empty() { unit } else { given } {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("`{other}` is not a unit of time; ns us ms s m h are")),
    };
    let value: f64 = value.parse().map_err(|_| format!("`{text}` is not a time"))?;
    Duration::try_from_secs_f64(value * seconds).map_err(|_| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(interval("200"), Ok(Duration::from_micros(200)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(interval("1.5ms"), Ok(Duration::from_micros(1500)));
        for wrong in ["", "s", "1x", "1..2s", "-1s", "9999999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
