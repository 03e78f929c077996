//! Which part of a histogram's range to quantize: the search for the least L2 error.

use crate::kernel::Isa;
use crate::kernel::multiversion;

/// How many values a quantized number has: torch.ao takes the 256 of 8 bits here, whatever `quant_min` and
/// `quant_max` are.
const LEVELS: f64 = 256.0;

/// The share of all values by which a step of the search moves one of the two quantiles.
const QUANTILE_STEP: f64 = 1e-5;

/// The range that [`least_error_bins`] spans in a histogram of `counts` from `min` to `max`.
pub fn least_error_range(counts: &[f32], min: f32, max: f32) -> (f32, f32) {
    if min == max {
        return (min, max);
    }
    let (start, end) = least_error_bins(Isa::current(), counts, f64::from(max) - f64::from(min));
    let bins = counts.len() as f32;
    let bin_width = if (max - min).is_finite() { (max - min) / bins } else { max / bins - min / bins };
    let low = min + bin_width * start as f32;
    let high = min + bin_width * (end + 1) as f32;
    (low, high.min(f32::MAX))
}

multiversion! {
    /// The first and last bin of the part of a histogram that is best quantized to 256 values. `range` is the
    /// width of all bins together, more than zero.
    pub fn least_error_bins(counts: &[f32], range: f64) -> (usize, usize) = search;
}

#[inline(always)]
fn search(counts: &[f32], range: f64) -> (usize, usize) {
    let last = counts.len() - 1;
    let total = f64::from(counts.iter().map(|&count| f64::from(count)).sum::<f64>() as f32);
    let mut sum = 0.0f64;
    let cumulative: Vec<f32> = counts
        .iter()
        .map(|&count| {
            sum += f64::from(count);
            sum as f32
        })
        .collect();
    let bin_width = power_of_two_scaled(range / counts.len() as f64);
    let density: Vec<f32> = counts.iter().map(|&count| count / bin_width as f32).collect();

    let (mut low_quantile, mut high_quantile) = (0.0f64, 1.0f64);
    let (mut start, mut end) = (0, last);
    // The bins of the two quantiles. As the quantiles only move inwards, so do these, from where they were.
    let (mut left, mut right) = (0, last);
    let mut least_error = f32::INFINITY;
    while low_quantile < high_quantile {
        let next_low = low_quantile + QUANTILE_STEP;
        let next_high = high_quantile - QUANTILE_STEP;
        left = left.clamp(start, end);
        while left < end && cumulative[left] < (next_low * total) as f32 {
            left += 1;
        }
        right = right.clamp(start, end);
        while right > start && cumulative[right] > (next_high * total) as f32 {
            right -= 1;
        }

        let (next_start, next_end) = if left - start > end - right {
            low_quantile = next_low;
            (left, end)
        } else {
            high_quantile = next_high;
            (start, right)
        };
        if (next_start, next_end) == (start, end) {
            continue;
        }
        let error = quantization_error(&density, bin_width, next_start, next_end);
        if error > least_error {
            break;
        }
        least_error = error;
        (start, end) = (next_start, next_end);
    }
    (start, end)
}

/// `width` times the power of two that brings it to `1..2`. The errors for different ranges then compare as before,
/// bit for bit, and are far from the ends of f32's range.
fn power_of_two_scaled(width: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    // Bin widths are at least 2^-149 / MAX_BINS, a normal number in f64.
    f64::from_bits((width.to_bits() & !EXPONENT) | (1023 << 52))
}

/// The L2 error, where values are uniformly distributed within a bin, of quantizing with [`LEVELS`] intervals of equal
/// width from the left edge of bin `start` to the right edge of bin `end`: for each bin, the integral over
/// `density * distance^2` to the middle of the nearest interval.
///
/// A bin that begins in the interval `first` and ends in the interval `last` counts as torch.ao's
/// `_compute_quantization_error` counts it: from its beginning to the end of `first`, the whole intervals between,
/// and from the beginning of `last` to its end.
#[inline(always)]
fn quantization_error(density: &[f32], bin_width: f64, start: usize, end: usize) -> f32 {
    const LANES: usize = 16;
    let interval = bin_width * (end - start + 1) as f64 / LEVELS;
    let error = IntervalError {
        start: start as i32,
        bin_width: bin_width as f32,
        interval: interval as f32,
        per_interval: intervals_per(interval as f32),
        half: (interval / 2.0) as f32,
        minus_half: (-interval / 2.0) as f32,
    };
    let mut sums = [0.0f64; LANES];
    let (steps, rest) = density.as_chunks::<LANES>();
    for (step, densities) in steps.iter().enumerate() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f64::from(error.of_bin((step * LANES + lane) as i32, densities[lane]));
        }
    }
    for (lane, &density) in rest.iter().enumerate() {
        sums[lane] += f64::from(error.of_bin((steps.len() * LANES + lane) as i32, density));
    }
    sums.iter().sum::<f64>() as f32
}

/// `1 / interval`, so much too large that the product with an f32 is never below a whole quotient, and not so much that
/// it reaches one from below: quotients up to 256 of two f32 that are not whole differ from the next whole number by
/// at least 2^-32 of it.
fn intervals_per(interval: f32) -> f64 {
    const EXCESS: f64 = 1.0 + 1.0 / (1u64 << 40) as f64;
    EXCESS / f64::from(interval)
}

struct IntervalError {
    start: i32,
    bin_width: f32,
    interval: f32,
    per_interval: f64,
    half: f32,
    minus_half: f32,
}

impl IntervalError {
    #[inline(always)]
    fn of_bin(&self, bin: i32, density: f32) -> f32 {
        let bin_begin = (bin - self.start) as f32 * self.bin_width;
        let bin_end = bin_begin + self.bin_width;
        let first = self.interval_of(bin_begin);
        let last = self.interval_of(bin_end);
        let from_begin = bin_begin - (first + 0.5) * self.interval;
        let to_end = bin_end - (last * self.interval + self.half);
        density * integral_of_squares(from_begin, self.half)
            + (last - first - 1.0) * (density * integral_of_squares(self.minus_half, self.half))
            + density * integral_of_squares(self.minus_half, to_end)
    }

    /// `floor(position / interval)`, within the intervals that there are. (The cast to u8 saturates.)
    #[inline(always)]
    fn interval_of(&self, position: f32) -> f32 {
        f32::from((f64::from(position) * self.per_interval) as u8)
    }
}

/// The integral of `x^2` from `from` to `to`.
#[inline(always)]
fn integral_of_squares(from: f32, to: f32) -> f32 {
    (to * to * to - from * from * from) / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_interval_is_the_exact_floor(interval in 1e-3f32..4.0, whole in 0u32..300, aside in -2i32..=2) {
            let error = IntervalError {
                start: 0,
                bin_width: 1.0,
                interval,
                per_interval: intervals_per(interval),
                half: 0.0,
                minus_half: 0.0,
            };
            // A few floats to each side of a whole number of intervals.
            let position = f32::from_bits((whole as f32 * interval).to_bits().saturating_add_signed(aside));
            // f64 holds these products exactly.
            let reached = |intervals: u32| f64::from(position) >= f64::from(intervals) * f64::from(interval);
            let floor = (1..256).take_while(|&intervals| reached(intervals)).count();
            prop_assert_eq!(error.interval_of(position), floor as f32);
        }
    }

    #[test]
    fn positions_outside_get_the_first_or_last_interval() {
        let error = IntervalError {
            start: 0,
            bin_width: 1.0,
            interval: 0.5,
            per_interval: intervals_per(0.5),
            half: 0.25,
            minus_half: -0.25,
        };
        assert_eq!([-3.0, -0.0, 127.5, 1e9].map(|position| error.interval_of(position)), [0.0, 0.0, 255.0, 255.0]);
    }
}
