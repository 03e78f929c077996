//! Qparams chosen from the data: dynamic quantization.

use super::{QParams, quantize};
use crate::Isa;
use crate::elementwise::Quantized;
use crate::elementwise::simd::{Kernel, Simd, dispatch};

/// The smallest and the largest of `x`, NaN left out; (0, 0) if there is none.
///
/// ```
/// use jitquant_kernels::{Isa, min_max};
/// assert_eq!(min_max(Isa::current(), &[1.0, f32::NAN, -2.5]), (-2.5, 1.0));
/// ```
pub fn min_max(isa: Isa, x: &[f32]) -> (f32, f32) {
    let (min, max) = dispatch(isa, MinMax(x));
    // Which zero comes out depends on the order; a sum with +0.0 makes it positive.
    if min > max { (0.0, 0.0) } else { (min + 0.0, max + 0.0) }
}

/// The kernel of [`min_max`]: infinities in reverse where there is no number.
pub(crate) struct MinMax<'a>(pub &'a [f32]);

impl Kernel for MinMax<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let mut mins = [s.splat(f32::INFINITY); 4];
        let mut maxs = [s.splat(f32::NEG_INFINITY); 4];
        let mut blocks = self.0.chunks_exact(S::BYTES);
        for block in blocks.by_ref() {
            let x = s.load_f32x4(block);
            for k in 0..4 {
                mins[k] = s.min(x[k], mins[k]);
                maxs[k] = s.max(x[k], maxs[k]);
            }
        }
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for &x in blocks.remainder() {
            min = if x < min { x } else { min };
            max = if x > max { x } else { max };
        }
        let least = s.min(s.min(mins[0], mins[1]), s.min(mins[2], mins[3]));
        let most = s.max(s.max(maxs[0], maxs[1]), s.max(maxs[2], maxs[3]));
        (min, max) = (min.min(s.min_lanes(least)), max.max(s.max_lanes(most)));
        (min, max)
    }
}

/// The scale and zero point that map `min..=max`, stretched to hold 0, to `bounds`.
///
/// What libtorch's `quant_utils::ChooseQuantizationParams` gives (ATen/native/quantized/cpu/QuantUtils.h), without
/// its options for sparsity and power-of-two scales: scales below 6.1e-5, the smallest normal f16, are raised to it,
/// and an empty range gets 0.1. `reduce_range` halves the bounds.
///
/// ```
/// use jitquant_kernels::{QParams, choose_qparams};
/// assert_eq!(choose_qparams(-1.0, 1.55, (0, 255), false), QParams::new(0.01, 100));
/// ```
///
/// # Panics
/// If `min > max`, one of them is NaN, or the bounds are not in order.
pub fn choose_qparams(min: f32, max: f32, bounds: (i32, i32), reduce_range: bool) -> QParams {
    assert!(min <= max, "min {min} should be less than or equal to max {max}");
    let (qmin, qmax) = if reduce_range { (bounds.0 / 2, bounds.1 / 2) } else { bounds };
    assert!(qmin < qmax, "quantized values from {qmin} to {qmax}");
    const SMALLEST: f32 = 6.1e-5;
    let steps = qmax - qmin;
    let (mut min, mut max) = (min.min(0.0), max.max(0.0));
    let mut scale = (f64::from(max) - f64::from(min)) / f64::from(steps);
    if scale as f32 == 0.0 || (1.0 / scale as f32).is_infinite() {
        scale = 0.1;
    }
    if scale < f64::from(SMALLEST) {
        let found = scale as f32;
        scale = f64::from(SMALLEST);
        if min == 0.0 {
            max = SMALLEST * steps as f32;
        } else if max == 0.0 {
            min = -SMALLEST * steps as f32;
        } else {
            let stretch = SMALLEST / found;
            min *= stretch;
            max *= stretch;
        }
    }
    // Either end gives a zero point; the one that adds the smaller terms has the smaller error.
    let (steps_min, steps_max) = (f64::from(min) / scale, f64::from(max) / scale);
    let (qmin_f, qmax_f) = (f64::from(qmin), f64::from(qmax));
    let from_min = qmin_f.abs() - steps_min.abs() < qmax_f.abs() - steps_max.abs();
    let zero_point = if from_min { qmin_f - steps_min } else { qmax_f - steps_max };
    QParams { scale: scale as f32, zero_point: (zero_point.round_ties_even() as i32).clamp(qmin, qmax) }
}

/// The qparams that dynamic quantization gives `x`: [`min_max`], then [`choose_qparams`].
///
/// `reduce_range` leaves out the upper bit, as libtorch's dynamic operators do for kernels that saturate; ours do
/// not need it.
pub fn dynamic_qparams<T: Quantized>(isa: Isa, x: &[f32], reduce_range: bool) -> QParams {
    let (min, max) = min_max(isa, x);
    choose_qparams(min, max, (T::MIN, T::MAX), reduce_range)
}

/// Quantizes each row of `x` with qparams of its own, which `qparams` receives.
///
/// # Panics
/// If `x` and `out` are not `qparams.len()` rows of equal length.
pub fn quantize_dynamic_rows<T: Quantized>(isa: Isa, x: &[f32], qparams: &mut [QParams], out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    if x.is_empty() {
        qparams.fill(QParams::new(0.1, 0));
        return;
    }
    assert!(!qparams.is_empty() && x.len().is_multiple_of(qparams.len()), "{} rows in {}", qparams.len(), x.len());
    let columns = x.len() / qparams.len();
    for ((x, out), qparams) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)).zip(qparams) {
        *qparams = dynamic_qparams::<T>(isa, x, false);
        quantize(isa, x, *qparams, out);
    }
}
