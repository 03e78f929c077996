//! What the operators `jitquant::observe_*` (cpp/observers.cpp) call: the arithmetic of this folder over the memory of
//! a TorchScript observer's buffers.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    ChannelLayout, Dtype, Histogram, NotFinite, QParams, QParamsError, QRange, Scheme, observe_min_max,
    observe_min_max_per_channel, observe_moving_average, observe_moving_average_per_channel, qparams,
};

use crate::error::{Error, no_panic};

#[cxx::bridge(namespace = "jitquant")]
mod bridge {
    /// How a range maps to integers, as a TorchScript observer's attributes say it.
    struct QuantRange {
        /// libtorch's `ScalarType`: 13 is quint8, 12 qint8.
        dtype: i64,
        /// libtorch's `QScheme`.
        qscheme: i64,
        /// Smallest integer; with `quant_max`, both 0: all of the type's.
        quant_min: i64,
        quant_max: i64,
        reduce_range: bool,
        eps: f64,
    }

    extern "Rust" {
        fn observe_range(x: &[f32], min: &mut f32, max: &mut f32, name: &str) -> Result<()>;
        fn observe_average(x: &[f32], min: &mut f32, max: &mut f32, constant: f64, name: &str) -> Result<()>;
        fn observe_range_per_channel(
            x: &[f32],
            sizes: &[i64],
            axis: i64,
            min: &mut [f32],
            max: &mut [f32],
            name: &str,
        ) -> Result<()>;
        fn observe_average_per_channel(
            x: &[f32],
            sizes: &[i64],
            axis: i64,
            constant: f64,
            min: &mut [f32],
            max: &mut [f32],
            name: &str,
        ) -> Result<()>;
        fn observe_counts(x: &[f32], counts: &mut [f32], min: &mut f32, max: &mut f32, name: &str) -> Result<()>;
        fn best_range(counts: &mut [f32], min: &mut f32, max: &mut f32, search: &str, percentile: f64) -> Result<()>;
        fn range_to_qparams(
            min: &[f32],
            max: &[f32],
            range: QuantRange,
            scale: &mut [f32],
            zero_point: &mut [i32],
            name: &str,
        ) -> Result<()>;
    }

    unsafe extern "C++" {
        include!("observers.h");
        fn keep_observer_operators();
    }
}

pub(crate) use bridge::keep_observer_operators;

/// Whether a tensor that cannot be observed (it has NaN) is passed over instead of ending the model's run.
static LENIENT: AtomicBool = AtomicBool::new(false);

/// From now on observers pass over what they cannot observe: for applications that do not know of them.
pub(crate) fn observe_leniently() {
    LENIENT.store(true, Ordering::Relaxed);
}

/// A tensor that an observer refused.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// What was observed.
    pub tensor: String,
    /// What is wrong with it.
    pub why: NotFinite,
}

thread_local! {
    /// What observers refuse on this thread, where that does not end the model's run.
    static REFUSED: RefCell<Option<Vec<Refusal>>> = const { RefCell::new(None) };
}

/// Runs a model whose observers go on where they refuse a tensor, and leave it out; and what they refused.
pub(crate) fn collect_refusals<T>(run: impl FnOnce() -> T) -> (T, Vec<Refusal>) {
    /// Refusals end the run again, even if it panics.
    struct End(Option<Vec<Refusal>>);
    impl Drop for End {
        fn drop(&mut self) {
            REFUSED.try_with(|refused| refused.replace(self.0.take())).ok();
        }
    }
    // A thread that is ending keeps no list: there a refusal ends the run.
    let _end = End(REFUSED.try_with(|refused| refused.replace(Some(Vec::new()))).unwrap_or_default());
    let result = run();
    (result, REFUSED.try_with(|refused| refused.borrow_mut().take()).ok().flatten().unwrap_or_default())
}

/// Takes a tensor in; one with NaN or infinity is refused.
fn observation(name: &str, call: impl FnOnce() -> Result<(), NotFinite>) -> Result<(), String> {
    guarded(name, || match call() {
        Err(why) => {
            let kept = REFUSED.try_with(|refused| {
                let mut refused = refused.borrow_mut();
                refused.as_mut().map(|all| all.push(Refusal { tensor: name.to_owned(), why }))
            });
            kept.ok().flatten().ok_or(why)
        }
        observed => observed,
    })
}

/// Whether an observer has refused a tensor for good ([`crate::Prepared::calibrate`]): its range is NaN, and stays so.
fn has_refused(min: &[f32]) -> bool {
    min.iter().any(|min| min.is_nan())
}

/// An error names the tensor; a panic is one too.
fn guarded<E: std::fmt::Display>(name: &str, call: impl FnOnce() -> Result<(), E>) -> Result<(), String> {
    let name = if name.is_empty() { "an observed tensor" } else { name };
    no_panic(|| crate::watch::step("observing", 0, 0)).map_err(|e| format!("{name}: {e}"))?;
    match no_panic(|| call().map_err(|e| Error::invalid(e.to_string()))) {
        Err(e) if LENIENT.load(Ordering::Relaxed) => {
            tracing::warn!("{name}: {e}; these values do not count");
            Ok(())
        }
        result => result.map_err(|e| format!("{name}: {e}")),
    }
}

fn layout(sizes: &[i64], axis: i64) -> Result<ChannelLayout, String> {
    ChannelLayout::of(sizes, axis).ok_or_else(|| format!("a tensor of sizes {sizes:?} has no channel axis {axis}"))
}

fn observe_range(x: &[f32], min: &mut f32, max: &mut f32, name: &str) -> Result<(), String> {
    match has_refused(&[*min]) {
        true => Ok(()),
        false => observation(name, || observe_min_max(x, min, max)),
    }
}

fn observe_average(x: &[f32], min: &mut f32, max: &mut f32, constant: f64, name: &str) -> Result<(), String> {
    match has_refused(&[*min]) {
        true => Ok(()),
        false => observation(name, || observe_moving_average(x, constant as f32, min, max)),
    }
}

fn observe_range_per_channel(
    x: &[f32],
    sizes: &[i64],
    axis: i64,
    min: &mut [f32],
    max: &mut [f32],
    name: &str,
) -> Result<(), String> {
    let layout = layout(sizes, axis).map_err(|e| format!("{name}: {e}"))?;
    match has_refused(min) {
        true => Ok(()),
        false => observation(name, || observe_min_max_per_channel(x, layout, min, max)),
    }
}

fn observe_average_per_channel(
    x: &[f32],
    sizes: &[i64],
    axis: i64,
    constant: f64,
    min: &mut [f32],
    max: &mut [f32],
    name: &str,
) -> Result<(), String> {
    let layout = layout(sizes, axis).map_err(|e| format!("{name}: {e}"))?;
    match has_refused(min) {
        true => Ok(()),
        false => observation(name, || observe_moving_average_per_channel(x, layout, constant as f32, min, max)),
    }
}

/// A histogram over an observer's buffers, where these can be one.
fn histogram<'a>(counts: &'a mut [f32], min: &'a mut f32, max: &'a mut f32) -> Result<Histogram<'a>, String> {
    match counts.len() {
        1..=Histogram::MAX_BINS => Ok(Histogram::new(counts, min, max)),
        bins => Err(format!("a histogram of {bins} bins; 1 to {} are accepted", Histogram::MAX_BINS)),
    }
}

fn observe_counts(x: &[f32], counts: &mut [f32], min: &mut f32, max: &mut f32, name: &str) -> Result<(), String> {
    match has_refused(&[*min]) {
        true => Ok(()),
        false => {
            let mut histogram = histogram(counts, min, max).map_err(|e| format!("{name}: {e}"))?;
            observation(name, || histogram.observe(x))
        }
    }
}

fn best_range(counts: &mut [f32], min: &mut f32, max: &mut f32, search: &str, percentile: f64) -> Result<(), String> {
    guarded("a histogram", || {
        if let Some(count) = counts.iter().find(|count| !(**count >= 0.0 && count.is_finite())) {
            return Err(format!("a bin's count is {count}; numbers from 0 on are accepted"));
        }
        if !(0.0..=100.0).contains(&percentile) {
            return Err(format!("percentile {percentile}; 0 to 100 is accepted"));
        }
        let histogram = histogram(counts, min, max)?;
        let range = match search {
            "histogram" => histogram.best_range(),
            // All of it.
            "min-max" | "auto" => None,
            Histogram::WITH_ROOM => histogram.range_with_room(),
            "percentile" => histogram.percentile_range(percentile),
            "squared-error" => histogram.squared_error_range(),
            "entropy" => histogram.entropy_range(),
            other => return Err(format!("there is no search '{other}'")),
        };
        if let Some((low, high)) = range {
            (*min, *max) = (low, high);
        }
        Ok::<(), String>(())
    })
}

fn range_to_qparams(
    min: &[f32],
    max: &[f32],
    range: bridge::QuantRange,
    scale: &mut [f32],
    zero_point: &mut [i32],
    name: &str,
) -> Result<(), String> {
    guarded(name, || {
        let range = read_range(&range)?;
        if min.len() != max.len() {
            return Err(format!("{} minima and {} maxima; as many are accepted", min.len(), max.len()));
        }
        for channel in 0..min.len() {
            // Of zeros alone any step will do. A tiny one would not: biases are counted in steps of input times weight.
            let is_zero = min[channel] == 0.0 && max[channel] == 0.0;
            let range = QRange { eps: if is_zero { range.eps.max(QRange::EPS) } else { range.eps }, ..range };
            let q = match qparams(min[channel], max[channel], &range) {
                Err(QParamsError::Unobserved) => QParams::UNOBSERVED,
                other => other.map_err(|e| e.to_string())?,
            };
            (scale[channel], zero_point[channel]) = (q.scale, q.zero_point);
        }
        Ok::<(), String>(())
    })
}

fn read_range(range: &bridge::QuantRange) -> Result<QRange, String> {
    let dtype = match range.dtype {
        13 => Dtype::U8,
        12 => Dtype::I8,
        other => return Err(format!("dtype {other}: quint8 (13) and qint8 (12) are supported")),
    };
    let scheme = match range.qscheme {
        0 => Scheme::PerTensorAffine,
        1 => Scheme::PerChannelAffine,
        2 => Scheme::PerTensorSymmetric,
        3 => Scheme::PerChannelSymmetric,
        other => return Err(format!("qscheme {other}: 0 to 3 are supported")),
    };
    let bound = |value: i64| i32::try_from(value).map_err(|_| format!("{value} is no 8-bit value"));
    let bounds = match (range.quant_min, range.quant_max) {
        (0, 0) => None,
        (min, max) => Some((bound(min)?, bound(max)?)),
    };
    Ok(QRange {
        quant_min: bounds.map(|(min, _)| min),
        quant_max: bounds.map(|(_, max)| max),
        reduce_range: range.reduce_range,
        eps: range.eps as f32,
        ..QRange::new(dtype, scheme)
    })
}
