//! Rounds the weights of layers whose activations stay in float.

use crate::Channels;

/// Rounds each channel of `weight` to i8 in steps of its own: `w = scale * q`, q from -127 to 127,
/// `scale = max |w| / 127`. One scale for each channel; that of a channel of zeros is 1.
///
/// ```
/// use jitquant_kernels::{Channels, round_channels};
/// let (q, scales) = round_channels(&[50.2, -254.0, 0.0, 0.0], Channels::of(&[2, 2], 0));
/// assert_eq!((q, scales), (vec![25, -127, 0, 0], vec![2.0, 1.0]));
/// ```
///
/// # Panics
/// If `weight` does not have the number of elements that `channels` says.
pub fn round_channels(weight: &[f32], channels: Channels) -> (Vec<i8>, Vec<f32>) {
    let Channels { outer, channels: count, inner } = channels;
    assert_eq!(weight.len(), outer * count * inner, "elements of the weight");
    let runs = || weight.chunks_exact(inner.max(1)).zip((0..count).cycle());
    let mut scales = vec![0.0f32; count];
    for (run, channel) in runs() {
        scales[channel] = run.iter().fold(scales[channel], |largest, w| largest.max(w.abs()));
    }
    for scale in &mut scales {
        // The least normal number keeps the division exact enough.
        *scale = if *scale < 127.0 * f32::MIN_POSITIVE { 1.0 } else { *scale / 127.0 };
    }
    let rounded = runs().flat_map(|(run, channel)| {
        let scale = scales[channel];
        run.iter().map(move |w| (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8)
    });
    (rounded.collect(), scales)
}

/// A matrix of four bits an element: `w[n][k] = scale[n][k / group] * q[n][k] + offset[n][k / group]`, q from 0 to 15.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupWeight {
    /// Rows of `k / 2` bytes: byte `i` has element `i` in its low half and element `i + k / 2` in its high half.
    pub nibbles: Vec<u8>,
    /// Bits of bfloat16, `[n, k / group]`.
    pub scales: Vec<u16>,
    /// Bits of bfloat16, `[n, k / group]`.
    pub offsets: Vec<u16>,
}

/// Rounds each row of `weight`, `[n, k]`, in groups of `group` elements, to what is nearest by squared error among some
/// ranges: the group's, narrower ones that cut off outliers, and for each of them the line through its values that
/// fits best (least squares), all with scale and offset as bfloat16 keeps them.
///
/// # Panics
/// If `k` is not a number of whole groups, or odd, or `weight` not a number of whole rows.
pub fn round_groups(weight: &[f32], k: usize, group: usize) -> GroupWeight {
    assert!(group > 0 && k > 0 && k.is_multiple_of(group) && k.is_multiple_of(2), "rows of {k} in groups of {group}");
    assert!(weight.len().is_multiple_of(k), "{} elements are not rows of {k}", weight.len());
    let groups = weight.len() / group;
    let mut rounded = GroupWeight {
        nibbles: vec![0; weight.len() / 2],
        scales: Vec::with_capacity(groups),
        offsets: Vec::with_capacity(groups),
    };
    let mut row = vec![0; k];
    for (values, nibbles) in weight.chunks_exact(k).zip(rounded.nibbles.chunks_exact_mut(k / 2)) {
        for (values, q) in values.chunks_exact(group).zip(row.chunks_exact_mut(group)) {
            let line = best_line(values);
            line.round(values, q);
            rounded.scales.push(line.scale);
            rounded.offsets.push(line.offset);
        }
        let (low, high) = row.split_at(k / 2);
        nibbles.iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = low | high << 4);
    }
    rounded
}

/// Parts of a group's range that are tried.
const SHARES: [f32; 5] = [1.0, 0.92, 0.84, 0.76, 0.68];

/// `scale * q + offset`, both bits of bfloat16.
#[derive(Clone, Copy)]
struct Line {
    scale: u16,
    offset: u16,
}

impl Line {
    fn new(scale: f32, offset: f32) -> Self {
        Self { scale: to_bf16(scale), offset: to_bf16(offset) }
    }

    fn round_one(self, w: f32) -> u8 {
        // A scale of 0 gives NaN or infinity: casts make 0 of the one, and the clamp holds the other.
        ((w - from_bf16(self.offset)) / from_bf16(self.scale)).round_ties_even().clamp(0.0, 15.0) as u8
    }

    fn value(self, q: u8) -> f32 {
        from_bf16(self.scale) * f32::from(q) + from_bf16(self.offset)
    }

    fn round(self, values: &[f32], q: &mut [u8]) {
        values.iter().zip(q).for_each(|(w, q)| *q = self.round_one(*w));
    }

    fn squared_error(self, values: &[f32]) -> f64 {
        values.iter().map(|w| f64::from(w - self.value(self.round_one(*w))).powi(2)).sum()
    }

    /// The line that fits the values best where they are rounded as they are on this one.
    fn refit(self, values: &[f32]) -> Option<Self> {
        let count = values.len() as f64;
        let (mut q1, mut q2, mut w1, mut qw) = (0.0, 0.0, 0.0, 0.0);
        for w in values {
            let (q, w) = (f64::from(self.round_one(*w)), f64::from(*w));
            (q1, q2, w1, qw) = (q1 + q, q2 + q * q, w1 + w, qw + q * w);
        }
        let spread = q2 - q1 * q1 / count;
        let scale = (qw - q1 * w1 / count) / spread;
        (spread > 0.0).then(|| Self::new(scale as f32, ((w1 - scale * q1) / count) as f32))
    }
}

fn best_line(values: &[f32]) -> Line {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (middle, half) = (low / 2.0 + high / 2.0, high / 2.0 - low / 2.0);
    let over = |share: f32| {
        let offset = from_bf16(to_bf16(middle - share * half));
        // From the offset as it is kept; for a group of equal values this is what makes up for its rounding.
        Line::new((middle + share * half - offset) / 15.0, offset)
    };
    let mut best = over(1.0);
    let mut least = best.squared_error(values);
    for share in SHARES {
        let line = over(share);
        for line in [Some(line), line.refit(values)].into_iter().flatten() {
            let error = line.squared_error(values);
            if error < least {
                (best, least) = (line, error);
            }
        }
    }
    best
}

/// The nearest bfloat16 (half to even) of a finite number; what would become infinite stays the largest.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = ((u64::from(bits) + 0x7FFF + u64::from(bits >> 16 & 1)) >> 16) as u16;
    if rounded & 0x7FFF >= 0x7F80 { rounded & 0x8000 | 0x7F7F } else { rounded }
}

pub(super) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_rounds_to_the_nearest_and_stays_finite() {
        assert_eq!((to_bf16(1.0), to_bf16(-2.0), to_bf16(0.0)), (0x3F80, 0xC000, 0));
        // Half a step above 1 goes to the even number, a little more goes up.
        assert_eq!(to_bf16(f32::from_bits(0x3F80_8000)), 0x3F80);
        assert_eq!(to_bf16(f32::from_bits(0x3F80_8001)), 0x3F81);
        assert_eq!((to_bf16(f32::MAX), to_bf16(f32::MIN)), (0x7F7F, 0xFF7F));
    }

    #[test]
    fn a_group_on_a_grid_is_kept_and_equal_values_nearly() {
        let grid: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.25 - 2.0).collect();
        assert_eq!(best_line(&grid).squared_error(&grid), 0.0);
        for value in [0.0, 0.3, -1e-20, 12345.678] {
            let line = best_line(&[value; 32]);
            assert!((line.value(line.round_one(value)) - value).abs() <= value.abs() * 2e-5, "{value}");
        }
    }

    #[test]
    fn an_outlier_costs_less_than_by_its_range() {
        let mut values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        values[5] = 1.6;
        let whole = Line::new(2.6 / 15.0, -1.0).squared_error(&values);
        assert!(best_line(&values).squared_error(&values) < 0.95 * whole);
    }
}
