//! Min-max observers: the range of a tensor, or of each of its channels, over all batches or as a moving average.

use thiserror::Error;

use super::channel_layout::ChannelLayout;
use super::extremes::{Extremes, extremes, extremes_per_channel};
use super::parts::{ParallelFor, map_parts, serially};
use crate::kernel::Isa;

/// `(min, max)` of a state that has observed nothing: `(+inf, -inf)`, as torch.ao's buffers are initialized.
pub const UNSET: (f32, f32) = (f32::INFINITY, f32::NEG_INFINITY);

/// A tensor that cannot be observed because it holds NaN or infinity.
///
/// torch.ao's observers take such values in: their range, and with it the model's scale, becomes NaN or infinite.
/// (Its histogram observer ignores infinities.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{nan} NaN and {infinite} infinite of {len} values, the first at flat index {first}")]
pub struct NotFinite {
    /// How many values are NaN.
    pub nan: usize,
    /// How many values are `+inf` or `-inf`.
    pub infinite: usize,
    /// Flat index of the first of them in the contiguous tensor.
    pub first: usize,
    /// How many values the tensor has.
    pub len: usize,
}

impl NotFinite {
    /// What is wrong with `x`, which is known to hold NaN or infinity.
    #[cold]
    fn in_tensor(x: &[f32]) -> Self {
        let nan = x.iter().filter(|value| value.is_nan()).count();
        let infinite = x.iter().filter(|value| value.is_infinite()).count();
        let first = x.iter().position(|value| !value.is_finite()).unwrap_or(x.len());
        Self { nan, infinite, first, len: x.len() }
    }
}

/// Smallest and largest value of `x`; `None` if it is empty.
///
/// ```
/// use jitquant::observer::min_max;
/// assert_eq!(min_max(&[0.5, -2.0, 1.5]), Ok(Some((-2.0, 1.5))));
/// assert_eq!(min_max(&[]), Ok(None));
/// assert_eq!(min_max(&[0.0, f32::NAN]).unwrap_err().first, 1);
/// ```
pub fn min_max(x: &[f32]) -> Result<Option<(f32, f32)>, NotFinite> {
    min_max_in_parts(x, 1, &serially)
}

/// [`min_max`] on up to `threads` threads of the host.
///
/// ```
/// use jitquant::observer::{min_max, min_max_in_parts};
/// use rayon::prelude::*;
/// let x: Vec<f32> = (0..100_000).map(|value| value as f32).collect();
/// let rayon = |parts: usize, task: &(dyn Fn(usize) + Sync)| (0..parts).into_par_iter().for_each(task);
/// assert_eq!(min_max_in_parts(&x, 4, &rayon), min_max(&x));
/// ```
pub fn min_max_in_parts(x: &[f32], threads: usize, run: ParallelFor<'_>) -> Result<Option<(f32, f32)>, NotFinite> {
    let isa = Isa::current();
    let parts = map_parts(x, threads, run, |part| extremes(isa, part));
    let found = parts.into_iter().fold(Extremes::NONE, Extremes::merge);
    if !found.is_finite() {
        return Err(NotFinite::in_tensor(x));
    }
    Ok((!x.is_empty()).then(|| found.min_max()))
}

/// Smallest and largest value of each channel of `x`, written to `min` and `max`. Both are [`UNSET`] where a tensor
/// is empty.
///
/// # Panics
/// If `x` does not have `layout.len()` elements, or `min` or `max` not one a channel.
pub fn min_max_per_channel(
    x: &[f32],
    layout: ChannelLayout,
    min: &mut [f32],
    max: &mut [f32],
) -> Result<(), NotFinite> {
    assert_channels(layout, min, max);
    for ((min, max), channel) in min.iter_mut().zip(max).zip(channel_extremes(x, layout)?) {
        (*min, *max) = if x.is_empty() { UNSET } else { channel.min_max() };
    }
    Ok(())
}

/// Takes `x` into the running range of torch.ao's `MinMaxObserver`: `min = min(min, x)`, `max = max(max, x)`.
pub fn observe_min_max(x: &[f32], min: &mut f32, max: &mut f32) -> Result<(), NotFinite> {
    if let Some((batch_min, batch_max)) = min_max(x)? {
        (*min, *max) = (min.min(batch_min), max.max(batch_max));
    }
    Ok(())
}

/// Takes `x` into the range of torch.ao's `MovingAverageMinMaxObserver`; see [`average_range`].
pub fn observe_moving_average(
    x: &[f32],
    averaging_constant: f32,
    min: &mut f32,
    max: &mut f32,
) -> Result<(), NotFinite> {
    if let Some(batch) = min_max(x)? {
        average_range(batch, averaging_constant, min, max);
    }
    Ok(())
}

/// Takes `x` into the running range of each channel, as torch.ao's `PerChannelMinMaxObserver` does.
///
/// # Panics
/// If `x` does not have `layout.len()` elements, or `min` or `max` not one a channel.
pub fn observe_min_max_per_channel(
    x: &[f32],
    layout: ChannelLayout,
    min: &mut [f32],
    max: &mut [f32],
) -> Result<(), NotFinite> {
    assert_channels(layout, min, max);
    if x.is_empty() {
        return Ok(());
    }
    for ((min, max), channel) in min.iter_mut().zip(max).zip(channel_extremes(x, layout)?) {
        let (batch_min, batch_max) = channel.min_max();
        (*min, *max) = (min.min(batch_min), max.max(batch_max));
    }
    Ok(())
}

/// Takes `x` into the range of each channel of torch.ao's `MovingAveragePerChannelMinMaxObserver`; see
/// [`average_range`].
///
/// # Panics
/// If `x` does not have `layout.len()` elements, or `min` or `max` not one a channel.
pub fn observe_moving_average_per_channel(
    x: &[f32],
    layout: ChannelLayout,
    averaging_constant: f32,
    min: &mut [f32],
    max: &mut [f32],
) -> Result<(), NotFinite> {
    assert_channels(layout, min, max);
    if x.is_empty() {
        return Ok(());
    }
    for ((min, max), channel) in min.iter_mut().zip(max).zip(channel_extremes(x, layout)?) {
        average_range(channel.min_max(), averaging_constant, min, max);
    }
    Ok(())
}

/// Moves the range `(min, max)` towards that of a batch: `min += c * (batch_min - min)`, `max` likewise, rounded to
/// f32 after each operation. An [`UNSET`] range becomes the batch's.
///
/// For callers that find a batch's range in parts (with [`min_max`] on each thread's part and [`merge_min_max`]).
pub fn average_range(batch: (f32, f32), averaging_constant: f32, min: &mut f32, max: &mut f32) {
    if (*min, *max) == UNSET {
        (*min, *max) = batch;
    } else {
        *min += averaging_constant * (batch.0 - *min);
        *max += averaging_constant * (batch.1 - *max);
    }
}

/// Widens each range `(min[i], max[i])` to hold `(other_min[i], other_max[i])` as well: the state that one observer
/// would have if it had seen what both saw. Ranges may be [`UNSET`].
///
/// Not for moving averages, whose state does not tell how many batches went into it.
///
/// # Panics
/// If the slices differ in length.
pub fn merge_min_max(min: &mut [f32], max: &mut [f32], other_min: &[f32], other_max: &[f32]) {
    assert!(
        min.len() == max.len() && min.len() == other_min.len() && min.len() == other_max.len(),
        "ranges to merge: {}, {}, {} and {} channels",
        min.len(),
        max.len(),
        other_min.len(),
        other_max.len()
    );
    min.iter_mut().zip(other_min).for_each(|(min, other)| *min = min.min(*other));
    max.iter_mut().zip(other_max).for_each(|(max, other)| *max = max.max(*other));
}

fn assert_channels(layout: ChannelLayout, min: &[f32], max: &[f32]) {
    assert_eq!(min.len(), layout.channels, "one minimum a channel");
    assert_eq!(max.len(), layout.channels, "one maximum a channel");
}

fn channel_extremes(x: &[f32], layout: ChannelLayout) -> Result<Vec<Extremes>, NotFinite> {
    assert_eq!(x.len(), layout.len(), "elements of a tensor seen as {layout:?}");
    let mut channels = vec![Extremes::NONE; layout.channels];
    if !x.is_empty() {
        extremes_per_channel(Isa::current(), x, layout, &mut channels);
    }
    if channels.iter().any(|channel| !channel.is_finite()) {
        return Err(NotFinite::in_tensor(x));
    }
    Ok(channels)
}
