//! Numbers of the command line that have sensible bounds: beyond them is a slip of the finger, and what would be tried takes
//! the machine down (ten thousand threads) or never ends.

use std::num::NonZeroUsize;
use std::str::FromStr;

/// More samples at once than any memory holds.
const SAMPLES: usize = 1 << 20;

/// Threads, several times as many as there are processors at most.
pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    within(text, jitquant::most_threads()).map_err(|why| format!("{why}; this machine runs {processors} at once"))
}

/// Samples that are run at once, or used in all.
pub fn batch(text: &str) -> Result<NonZeroUsize, String> {
    within(text, SAMPLES)
}

/// A number of samples or of steps.
pub fn many(text: &str) -> Result<NonZeroUsize, String> {
    within(text, 1 << 40)
}

fn within(text: &str, most: usize) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(number) if number.get() <= most => Ok(number),
        _ => Err(format!("a number from 1 to {most} is expected")),
    }
}

/// A length of time, in seconds or minutes: up to a week of minutes.
pub fn time(text: &str) -> Result<f64, String> {
    finite(text, 0.0, 10_080.0)
}

/// Decibels.
pub fn decibels(text: &str) -> Result<f64, String> {
    finite(text, -200.0, 1000.0)
}

/// A part of one.
pub fn part(text: &str) -> Result<f32, String> {
    finite(text, 0.0, 1.0)
}

fn finite<T: FromStr + PartialOrd + std::fmt::Display>(text: &str, least: T, most: T) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(number) if least <= number && number <= most => Ok(number),
        _ => Err(format!("a number from {least} to {most} is expected")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_can_do_is_refused() {
        for text in ["0", "10000000", "-1", "x", "18446744073709551615", "99999999999999999999"] {
            assert!(threads(text).unwrap_err().contains("this machine runs"), "{text}");
            assert!(batch(text).is_err());
        }
        assert_eq!(threads("2").unwrap().get(), 2);
        assert_eq!(batch("32").unwrap().get(), 32);
        for text in ["inf", "NaN", "-1", "1e300"] {
            assert!(time(text).unwrap_err().contains("from 0 to 10080"));
            assert!(part(text).is_err());
        }
        assert_eq!(time("0.5"), Ok(0.5));
        assert!(decibels("inf").is_err() && decibels("nan").is_err());
    }
}
