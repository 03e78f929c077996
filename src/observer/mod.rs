//! What watches tensors while a model is calibrated.
//!
//! This module is the arithmetic: pure Rust over `&[f32]`, without libtorch. An observer has no object of its own
//! here. Its state is plain numbers in memory that the caller owns (the buffers of a TorchScript module), so that an
//! observed model can be saved half way, loaded, and calibrated further:
//!
//! | observer | state | update | result |
//! | --- | --- | --- | --- |
//! | min-max | `min`, `max` | [`observe_min_max`] | [`qparams`] |
//! | moving-average min-max | `min`, `max` | [`observe_moving_average`] | [`qparams`] |
//! | per-channel min-max | `min[c]`, `max[c]` | [`observe_min_max_per_channel`] | [`qparams_per_channel`] |
//! | moving-average per-channel | `min[c]`, `max[c]` | [`observe_moving_average_per_channel`] | [`qparams_per_channel`] |
//! | histogram | `counts[bins]`, `min`, `max` | [`Histogram::observe`] | [`Histogram::best_range`], then [`qparams`] |
//! | percentile, squared error, entropy | the same | the same | [`Histogram::percentile_range`], … |
//!
//! A state that has seen nothing has `min = +inf`, `max = -inf` ([`UNSET`]) and zero counts. An empty tensor changes
//! nothing. A tensor with NaN or infinity is refused with [`NotFinite`], and the state stays as it was.
//!
//! All of this runs on the calling thread. [`min_max_in_parts`] and [`Histogram::observe_in_parts`] take a parallel loop
//! of the host and give the same bits.
//!
//! The qparams are those of torch.ao's observers of the same names (`torch/ao/quantization/observer.py`, PyTorch
//! 2.13). Every function gives the same bits on every instruction set.
//!
//! ```
//! use jitquant::observer::{Histogram, QRange, UNSET, qparams};
//!
//! let (mut min, mut max) = UNSET;
//! let mut counts = vec![0.0; Histogram::BINS];
//! let mut histogram = Histogram::new(&mut counts, &mut min, &mut max);
//! for batch in [[0.0, 0.5, 1.0], [0.25, 0.75, 2.0]] {
//!     histogram.observe(&batch)?;
//! }
//! let (low, high) = histogram.best_range().expect("something was observed");
//! let q = qparams(low, high, &QRange::U8_AFFINE)?;
//! assert_eq!(q.zero_point, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod binning;
mod channel_layout;
mod error_search;
mod extremes;
mod histogram;
#[cfg(feature = "torch")]
mod module;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
mod operators;
mod parts;
mod qparams;
mod range;
mod range_search;

pub use channel_layout::ChannelLayout;
pub use histogram::Histogram;
#[cfg(feature = "torch")]
pub use module::{ObserverConfig, ObserverKind};
#[cfg(feature = "torch")]
pub(crate) use operators::{Refusal, collect_refusals, keep_observer_operators, observe_leniently};
pub use parts::ParallelFor;
pub use qparams::{Dtype, QParams, QParamsError, QRange, Scheme, qparams, qparams_per_channel};
pub use range::{
    NotFinite, UNSET, average_range, merge_min_max, min_max, min_max_in_parts, min_max_per_channel, observe_min_max,
    observe_min_max_per_channel, observe_moving_average, observe_moving_average_per_channel,
};

/// The inner loops with the instruction set as an argument, for tests and benchmarks that compare the paths.
#[doc(hidden)]
pub mod paths {
    pub use super::binning::{BinCounts, Bins};
    pub use super::error_search::least_error_bins;
    pub use super::extremes::{Extremes, extremes, extremes_per_channel};
}
