//! Products with f32 activations that are quantized on the fly.

use super::PackedGemm;
use super::finish::ActivationScale;
use crate::kernel::{Dequantize, Output, Parallel};
use crate::{Error, Result};

/// How f32 activations become u8 on the fly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicScheme {
    /// One scale for the whole tensor, as libtorch's `quantized::linear_dynamic`.
    PerTensor {
        /// 0 to 127 instead of 0 to 255.
        reduce_range: bool,
    },
    /// A scale a row.
    PerRow,
}

/// Scale and zero point of values in `min..=max`: torch's `choose_qparams` for `quint8`, with `quant_max` as the largest
/// integer. The zero point is the one with the smaller error at the range's two ends.
///
/// Source: `ATen/native/quantized/cpu/QuantUtils.h`, `ChooseQuantizationParams`.
fn choose_qparams(min: f32, max: f32, quant_max: i32) -> (f32, u8) {
    let (min, max) = (min.min(0.0), max.max(0.0));
    let mut scale = ((f64::from(max) - f64::from(min)) / f64::from(quant_max)) as f32;
    if scale == 0.0 || (1.0 / scale).is_infinite() {
        scale = 0.1;
    }
    const SMALLEST: f32 = 6.1e-5;
    let (mut min, mut max) = (min, max);
    if scale < SMALLEST {
        let original = scale;
        scale = SMALLEST;
        if min == 0.0 {
            max = SMALLEST * quant_max as f32;
        } else if max == 0.0 {
            min = -SMALLEST * quant_max as f32;
        } else {
            let amplifier = SMALLEST / original;
            min *= amplifier;
            max *= amplifier;
        }
    }
    let (scale_, min, max) = (f64::from(scale), f64::from(min), f64::from(max));
    let from_min = -min / scale_;
    let from_max = f64::from(quant_max) - max / scale_;
    let error_from_min = (min / scale_).abs();
    let error_from_max = f64::from(quant_max).abs() + (max / scale_).abs();
    let initial = if error_from_min < error_from_max { from_min } else { from_max };
    let zero_point = initial.clamp(0.0, f64::from(quant_max)).round_ties_even();
    (scale, zero_point as u8)
}
