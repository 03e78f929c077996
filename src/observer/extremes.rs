//! The smallest and largest float of a slice in one pass over its bits, which finds NaN and infinity as well.
//!
//! Floats of one sign are ordered as their bits are. Three integer reductions over the bits therefore say everything:
//!
//! - the largest as `i32` is the largest float, if any is positive;
//! - the largest as `u32` is the smallest float, if any is negative, for the sign is then the top bit and a larger
//!   magnitude has larger bits;
//! - the smallest as `u32` is the float nearest to zero, which is the other end where all signs are alike.
//!
//! NaN and infinity have the largest magnitudes, so they show up in the first two. Integer minima and maxima may be
//! taken in any order, which the compiler uses, and so may callers who split a tensor over threads.

use super::channel_layout::ChannelLayout;
use crate::kernel::multiversion;

const INFINITY_BITS: i32 = f32::INFINITY.to_bits() as i32;
const NEG_INFINITY_BITS: u32 = f32::NEG_INFINITY.to_bits();

/// Reductions over the bits of some floats; see the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extremes {
    largest_signed: i32,
    largest_unsigned: u32,
    smallest_unsigned: u32,
}

impl Extremes {
    /// Of no floats at all: what [`Extremes::merge`] leaves the other side unchanged with.
    pub const NONE: Self = Self { largest_signed: i32::MIN, largest_unsigned: u32::MIN, smallest_unsigned: u32::MAX };

    /// Whether none of the floats is NaN or infinite.
    pub fn is_finite(self) -> bool {
        self.largest_signed < INFINITY_BITS && self.largest_unsigned < NEG_INFINITY_BITS
    }

    /// Smallest and largest float, `-0.0` before `0.0`. Meaningful if there was at least one and all are finite.
    pub fn min_max(self) -> (f32, f32) {
        let nearest_zero = f32::from_bits(self.smallest_unsigned);
        let all_negative = self.largest_signed < 0;
        let any_negative = (self.largest_unsigned as i32) < 0;
        let min = if any_negative { f32::from_bits(self.largest_unsigned) } else { nearest_zero };
        let max = if all_negative { nearest_zero } else { f32::from_bits(self.largest_signed as u32) };
        (min, max)
    }

    /// Of the floats of both.
    #[inline(always)]
    pub fn merge(self, other: Self) -> Self {
        Self {
            largest_signed: self.largest_signed.max(other.largest_signed),
            largest_unsigned: self.largest_unsigned.max(other.largest_unsigned),
            smallest_unsigned: self.smallest_unsigned.min(other.smallest_unsigned),
        }
    }

    #[inline(always)]
    fn with(self, value: f32) -> Self {
        let bits = value.to_bits();
        self.merge(Self { largest_signed: bits as i32, largest_unsigned: bits, smallest_unsigned: bits })
    }
}

multiversion! {
    /// The extremes of `x`.
    pub fn extremes(x: &[f32]) -> Extremes = extremes_of;
}

multiversion! {
    /// The extremes of each channel of `x`, written to `channels`, which has one element a channel.
    ///
    /// `x` has [`ChannelLayout::len`] elements, at least one.
    pub fn extremes_per_channel(x: &[f32], layout: ChannelLayout, channels: &mut [Extremes]) = extremes_of_channels;
}

/// Elements that a step takes: two to eight registers' worth.
const STEP: usize = 32;
/// The step of rows too short for [`STEP`] to pay: they spend more time on bringing the lanes together.
const SHORT_STEP: usize = 8;

#[inline(always)]
fn extremes_of(x: &[f32]) -> Extremes {
    if x.len() >= 8 * STEP {
        extremes_in_steps::<STEP>(x)
    } else if x.len() >= SHORT_STEP {
        extremes_in_steps::<SHORT_STEP>(x)
    } else {
        x.iter().fold(Extremes::NONE, |all, &value| all.with(value))
    }
}

/// Of at least `N` floats. The last step takes the last `N`, some of which were seen before: that changes no extreme.
#[inline(always)]
fn extremes_in_steps<const N: usize>(x: &[f32]) -> Extremes {
    let mut largest_signed = [Extremes::NONE.largest_signed; N];
    let mut largest_unsigned = [Extremes::NONE.largest_unsigned; N];
    let mut smallest_unsigned = [Extremes::NONE.smallest_unsigned; N];
    let mut take = |step: &[f32; N]| {
        for lane in 0..N {
            let bits = step[lane].to_bits();
            largest_signed[lane] = largest_signed[lane].max(bits as i32);
            largest_unsigned[lane] = largest_unsigned[lane].max(bits);
            smallest_unsigned[lane] = smallest_unsigned[lane].min(bits);
        }
    };
    x.as_chunks::<N>().0.iter().for_each(&mut take);
    x.last_chunk::<N>().into_iter().for_each(&mut take);
    Extremes {
        largest_signed: reduce(largest_signed, i32::max),
        largest_unsigned: reduce(largest_unsigned, u32::max),
        smallest_unsigned: reduce(smallest_unsigned, u32::min),
    }
}

/// All of a power of two of lanes, by halves: short rows spend much of their time here.
#[inline(always)]
fn reduce<T: Copy, const N: usize>(mut lanes: [T; N], pick: impl Fn(T, T) -> T) -> T {
    let mut half = N / 2;
    while half > 0 {
        let (left, right) = lanes.split_at_mut(half);
        left.iter_mut().zip(right).for_each(|(left, right)| *left = pick(*left, *right));
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn extremes_of_channels(x: &[f32], layout: ChannelLayout, channels: &mut [Extremes]) {
    let ChannelLayout { outer, inner, .. } = layout;
    channels.fill(Extremes::NONE);
    if outer > 1 && inner < SHORT_STEP {
        return extremes_of_columns(x, layout, channels);
    }
    for image in x.chunks_exact(layout.channels * inner) {
        for (row, channel) in image.chunks_exact(inner).zip(channels.iter_mut()) {
            *channel = channel.merge(extremes_of(row));
        }
    }
}

/// Where the floats of a channel lie too few together: every column of the `outer x (channels * inner)` matrix first.
#[inline(always)]
fn extremes_of_columns(x: &[f32], layout: ChannelLayout, channels: &mut [Extremes]) {
    let width = layout.channels * layout.inner;
    let mut largest_signed = vec![Extremes::NONE.largest_signed; width];
    let mut largest_unsigned = vec![Extremes::NONE.largest_unsigned; width];
    let mut smallest_unsigned = vec![Extremes::NONE.smallest_unsigned; width];
    for row in x.chunks_exact(width) {
        for (largest, value) in largest_signed.iter_mut().zip(row) {
            *largest = (*largest).max(value.to_bits() as i32);
        }
        for (largest, value) in largest_unsigned.iter_mut().zip(row) {
            *largest = (*largest).max(value.to_bits());
        }
        for (smallest, value) in smallest_unsigned.iter_mut().zip(row) {
            *smallest = (*smallest).min(value.to_bits());
        }
    }
    for column in 0..width {
        let channel = &mut channels[column / layout.inner];
        *channel = channel.merge(Extremes {
            largest_signed: largest_signed[column],
            largest_unsigned: largest_unsigned[column],
            smallest_unsigned: smallest_unsigned[column],
        });
    }
}
