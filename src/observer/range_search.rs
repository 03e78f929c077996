//! Ranges chosen from a histogram by other measures than torch.ao's: a percentile, the squared error, the entropy.
//!
//! All of them work on the state of [`Histogram`](super::Histogram), so two observers' states merge before the search.

/// How many values a quantized number has.
const LEVELS: usize = 256;

/// A histogram: bins of equal width from `min` to `max`.
#[derive(Clone, Copy)]
struct Bins<'a> {
    counts: &'a [f32],
    min: f64,
    width: f64,
}

impl<'a> Bins<'a> {
    fn new(counts: &'a [f32], min: f32, max: f32) -> Self {
        let (min, max) = (f64::from(min), f64::from(max));
        Self { counts, min, width: (max - min) / counts.len() as f64 }
    }

    fn edge(self, bin: usize) -> f64 {
        self.min + self.width * bin as f64
    }

    fn total(self) -> f64 {
        self.counts.iter().map(|count| f64::from(*count)).sum()
    }
}

/// The range that holds `percentile` percent of the values, as many left out at each end: what lies outside is rare
/// enough not to count.
pub fn percentile_range(counts: &[f32], min: f32, max: f32, percentile: f64) -> (f32, f32) {
    let bins = Bins::new(counts, min, max);
    let outside = bins.total() * (1.0 - percentile / 100.0) / 2.0;
    let mut left = 0;
    let mut sum = 0.0;
    while left + 1 < counts.len() && sum + f64::from(counts[left]) <= outside {
        sum += f64::from(counts[left]);
        left += 1;
    }
    let mut right = counts.len();
    sum = 0.0;
    while right > left + 1 && sum + f64::from(counts[right - 1]) <= outside {
        sum += f64::from(counts[right - 1]);
        right -= 1;
    }
    ends(bins, min, max, left, right)
}

/// The bins from `left` to before `right` as a range; the ends of all are exact.
fn ends(bins: Bins<'_>, min: f32, max: f32, left: usize, right: usize) -> (f32, f32) {
    let low = if left == 0 { min } else { bins.edge(left) as f32 };
    let high = if right == bins.counts.len() { max } else { bins.edge(right) as f32 };
    (low, high)
}

/// The range with the least mean squared error of clipping and rounding, of all pairs of ends on a grid of
/// [`CANDIDATES`] bins: rounding costs `step^2 / 12` a value inside, clipping the square of the distance to the range.
///
/// The range that is quantized always holds 0, which counts here too.
pub fn squared_error_range(counts: &[f32], min: f32, max: f32) -> (f32, f32) {
    let bins = Bins::new(counts, min, max);
    let moments = Moments::of(bins);
    let stride = counts.len().div_ceil(CANDIDATES);
    let mut best = (f64::INFINITY, 0, counts.len());
    for left in (0..counts.len()).step_by(stride) {
        for right in (left + 1..=counts.len()).rev().step_by(stride) {
            let (low, high) = (bins.edge(left), bins.edge(right));
            let step = (high.max(0.0) - low.min(0.0)) / (LEVELS - 1) as f64;
            let error = moments.clipped(0, left, low)
                + moments.clipped(right, counts.len(), high)
                + moments.count(left, right) * step * step / 12.0;
            if error < best.0 {
                best = (error, left, right);
            }
        }
    }
    ends(bins, min, max, best.1, best.2)
}

/// How many places each end of the range is tried at.
pub const CANDIDATES: usize = 128;

/// Sums of counts, counts times value and counts times value squared, of all bins before each; values are bins' middles.
struct Moments {
    sums: Vec<[f64; 3]>,
}

impl Moments {
    fn of(bins: Bins<'_>) -> Self {
        let mut sums = vec![[0.0; 3]];
        let mut sum = [0.0; 3];
        for (bin, count) in bins.counts.iter().enumerate() {
            let (count, value) = (f64::from(*count), bins.edge(bin) + bins.width / 2.0);
            sum = [sum[0] + count, sum[1] + count * value, sum[2] + count * value * value];
            sums.push(sum);
        }
        Self { sums }
    }

    fn count(&self, from: usize, to: usize) -> f64 {
        self.sums[to][0] - self.sums[from][0]
    }

    /// The sum of squared distances to `end` of the values in bins `from` to before `to`.
    fn clipped(&self, from: usize, to: usize, end: f64) -> f64 {
        let moment = |power: usize| self.sums[to][power] - self.sums[from][power];
        (moment(2) - 2.0 * end * moment(1) + end * end * moment(0)).max(0.0)
    }
}

/// The range whose quantized distribution tells least apart from the distribution of the values: the least
/// Kullback-Leibler divergence `sum p log(p / q)`, `p` being the values clipped to the range and `q` the same with each of
/// 256 levels spread evenly over the bins that it stands for (S. Migacz, 8-bit Inference with TensorRT, 2017; here with
/// both ends of a range, which move to 0 together).
pub fn entropy_range(counts: &[f32], min: f32, max: f32) -> (f32, f32) {
    let bins = Bins::new(counts, min, max);
    let total = bins.total();
    let mut best = (f64::INFINITY, 0, counts.len());
    for part in (PARTS / 8..=PARTS).rev() {
        let share = part as f64 / PARTS as f64;
        let bin_of = |value: f64| ((value - bins.min) / bins.width).round().clamp(0.0, counts.len() as f64) as usize;
        let shrink = |end: f64| if (end < 0.0) == (end == f64::from(min)) { end * share } else { end };
        let (left, right) = (bin_of(shrink(f64::from(min))), bin_of(shrink(f64::from(max))));
        if right < left + LEVELS.min(counts.len() / 8).max(1) {
            break;
        }
        let divergence = divergence(counts, left, right, total);
        if divergence < best.0 {
            best = (divergence, left, right);
        }
    }
    ends(bins, min, max, best.1, best.2)
}

/// The steps from the whole range to nothing.
const PARTS: usize = 128;

fn divergence(counts: &[f32], left: usize, right: usize, total: f64) -> f64 {
    let inside = &counts[left..right];
    let sum = |counts: &[f32]| counts.iter().map(|count| f64::from(*count)).sum::<f64>();
    let (below, above) = (sum(&counts[..left]), sum(&counts[right..]));
    let of_inside = sum(inside);
    if of_inside == 0.0 {
        return f64::INFINITY;
    }
    let mut divergence = 0.0;
    for level in 0..LEVELS {
        let edge = |level: usize| level * inside.len() / LEVELS;
        let bins = edge(level)..edge(level + 1);
        let held: Vec<f64> = inside[bins.clone()].iter().map(|count| f64::from(*count)).collect();
        let used = held.iter().filter(|count| **count > 0.0).count();
        let spread = held.iter().sum::<f64>() / used.max(1) as f64;
        for (bin, count) in bins.zip(held) {
            let mut p = count;
            if bin == 0 {
                p += below;
            }
            if bin + 1 == inside.len() {
                p += above;
            }
            if p > 0.0 {
                // Where only what was clipped lies, the quantized distribution has next to nothing.
                let q = if count > 0.0 { spread } else { 1e-6 * of_inside };
                divergence += p / total * ((p / total) / (q / of_inside)).ln();
            }
        }
    }
    divergence
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of a bell curve of width `sigma` around 0 over -8 to 8, with `outliers` at the right end.
    fn bell(sigma: f64, outliers: f32) -> Vec<f32> {
        let mut counts: Vec<f32> = (0..2048)
            .map(|bin| {
                let x = (f64::from(bin) + 0.5) / 128.0 - 8.0;
                (1e6 * (-x * x / (2.0 * sigma * sigma)).exp()).round() as f32
            })
            .collect();
        *counts.last_mut().unwrap() += outliers;
        counts
    }

    #[test]
    fn a_percentile_leaves_the_same_share_out_at_both_ends() {
        let counts = vec![1.0; 1000];
        assert_eq!(percentile_range(&counts, 0.0, 1000.0, 100.0), (0.0, 1000.0));
        assert_eq!(percentile_range(&counts, 0.0, 1000.0, 98.0), (10.0, 990.0));
        let counts = bell(0.5, 10.0);
        let (low, high) = percentile_range(&counts, -8.0, 8.0, 99.99);
        assert!(low > -3.0 && high < 3.0 && low < -1.5 && high > 1.5, "{low} {high}");
    }

    /// The error of quantizing each bin's middle, rounding taken as spread evenly over a step.
    fn plain_error(counts: &[f32], (min, max): (f64, f64), (low, high): (f64, f64)) -> f64 {
        let width = (max - min) / counts.len() as f64;
        let step = (high.max(0.0) - low.min(0.0)) / 255.0;
        let middle = |bin: usize| min + width * (bin as f64 + 0.5);
        let error = |x: f64| match () {
            _ if x < low => (low - x).powi(2),
            _ if x > high => (x - high).powi(2),
            _ => step * step / 12.0,
        };
        counts.iter().enumerate().map(|(bin, count)| f64::from(*count) * error(middle(bin))).sum()
    }

    #[test]
    fn the_squared_error_is_the_least_of_all_ranges_tried_plainly() {
        for counts in [bell(0.5, 0.0), bell(0.3, 50.0), bell(2.0, 1e5)] {
            let (low, high) = squared_error_range(&counts, -8.0, 8.0);
            let found = plain_error(&counts, (-8.0, 8.0), (low.into(), high.into()));
            for left in (0..2048).step_by(64) {
                for right in (left + 64..=2048).step_by(64) {
                    let at = |bin: usize| bin as f64 / 128.0 - 8.0;
                    let other = plain_error(&counts, (-8.0, 8.0), (at(left), at(right)));
                    assert!(found <= other * (1.0 + 1e-9), "{low} to {high}: {found}; {left} to {right}: {other}");
                }
            }
        }
    }

    #[test]
    fn entropy_leaves_out_a_few_outliers_and_keeps_an_even_distribution() {
        let (low, high) = entropy_range(&bell(0.5, 3.0), -8.0, 8.0);
        assert!((1.0..4.0).contains(&high) && low < -1.0, "{low} {high}");
        assert_eq!(entropy_range(&vec![5.0; 2048], 0.0, 1.0), (0.0, 1.0));
        // Of one side only the far end moves.
        let counts: Vec<f32> = (0..2048).map(|bin| (1e6 * (-f64::from(bin) / 60.0).exp()) as f32).collect();
        let (low, high) = entropy_range(&counts, 0.0, 10.0);
        assert!(low == 0.0 && high < 10.0, "{low} {high}");
    }
}
