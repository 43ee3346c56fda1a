//! The HdrHistogram interval log, version 1.3: one interval for each path and stage, its tag `path-vectors:stage`.
//!
//! What HdrHistogram's log processors read is written here and not by its crate, whose writer leaves out the version and
//! the legend; the histograms are in the results already in the encoding that an interval has.

use super::{float, keys, machine};
use crate::model::Results;
use pollvisor::error::{Error, Result};

/// The unit of the "maximum" column: milliseconds of our nanoseconds, as in HdrHistogram's own writer.
const MAX_DIVISOR: f64 = 1_000_000.0;

/// The log's text.
///
/// # Errors
/// When the run's beginning is not a time, or a histogram cannot be decoded.
pub fn hlog(results: &Results) -> Result<String> {
    let began = seconds_since_epoch(&results.began)
        .ok_or_else(|| Error::new(format!("`{}` is not a time in UTC by RFC 3339", results.began)))?;
    let mut text = format!(
        "#[pollvisor-bench; latencies in nanoseconds, tagged path-vectors:stage; the maximum in milliseconds]\n\
         #[Histogram log format version 1.3]\n\
         #[{1}]\n\
         #[StartTime: {began:.3} (seconds since epoch), {0}]\n\
         #[BaseTime: {began:.3} (seconds since epoch)]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        results.began,
        machine::headline(&results.machine),
    );
    for (path, key) in results.paths.iter().zip(keys(results)) {
        for (stage, figures) in path.distributions() {
            let histogram = figures.decode().map_err(|e| e.context(format!("{key}, {stage}")))?;
            text.push_str(&format!(
                "Tag={key}:{stage},0.000,{:.3},{:.3},{}\n",
                results.seconds,
                float(histogram.max()) / MAX_DIVISOR,
                figures.histogram,
            ));
        }
    }
    Ok(text)
}

/// `2026-11-21T16:02:07.5Z` as seconds.
fn seconds_since_epoch(text: &str) -> Option<f64> {
    let text = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00"))?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u32>().ok());
    let mut time = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let sane = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0.0..24.0).contains(&hour)
        && (0.0..60.0).contains(&minute)
        && (0.0..61.0).contains(&second);
    if !sane {
        return None;
    }
    // Days from the civil date, years beginning in March so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = f64::from(days) - 719_468.0;
    Some(days * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sample;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn times() {
        // `date -ud 2026-11-21T16:02:07Z +%s` and so on.
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29T12:00:00.5Z", 951_825_600.5),
            ("2026-11-21T16:02:07+00:00", 1_795_276_927.0),
        ] {
            assert_eq!(seconds_since_epoch(text), Some(seconds), "{text}");
        }
        for wrong in [
            "",
            "Z",
            "2026-11-21",
            "2026-11-21T16:02:07",
            "2026-13-01T00:00:00Z",
            "2026-1-1T0:0Z",
            "0-0-0T0:0:0Z",
        ] {
            assert_eq!(seconds_since_epoch(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_crates_reader_finds_every_distribution() {
        let results = sample::results();
        let text = hlog(&results).unwrap();
        assert!(text.lines().nth(1).unwrap().starts_with("#[Histogram log format version 1.3]"));
        // The crate's reader does not know the legend.
        let legend = |line: &&str| !line.starts_with('"');
        let lines: String = text.lines().filter(legend).flat_map(|line| [line, "\n"]).collect();
        let mut tags = Vec::new();
        for entry in IntervalLogIterator::new(lines.as_bytes()) {
            match entry.unwrap() {
                LogEntry::Interval(interval) => tags.push(interval.tag().unwrap().as_str().to_string()),
                LogEntry::StartTime(at) => assert_eq!(at.as_secs(), 1_795_276_927),
                LogEntry::BaseTime(_) => {}
            }
        }
        let expected: usize = results.paths.iter().map(|path| path.distributions().len()).sum();
        assert_eq!(tags.len(), expected);
        assert!(tags.contains(&"polled_eventfd-8:signal_to_seen".to_string()), "{tags:?}");
    }

    #[test]
    fn a_broken_histogram_or_time_is_an_error() {
        let mut results = sample::results();
        results.began = "today".into();
        assert!(hlog(&results).unwrap_err().to_string().contains("today"));
        let mut results = sample::results();
        results.paths[0].stages.get_mut("signal_to_accepted").unwrap().histogram.truncate(8);
        assert!(hlog(&results).unwrap_err().to_string().contains("irqfd-8, signal_to_accepted"));
    }
}
