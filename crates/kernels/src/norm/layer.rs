//! Layer norm: each row by its own mean and variance.

use super::moments;
use crate::elementwise::simd::{Kernel, Simd, dispatch};
use crate::{Isa, QParams};

/// The parameters of a layer norm over rows of `weight.len()` values.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// The length of a row.
    pub columns: usize,
    /// The factor of each column, 1 if absent.
    pub weight: Option<&'a [f32]>,
    /// What is added to each column, 0 if absent.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f64,
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` for each row of `x`.
///
/// In f32, each line rounded as often as it has `*`:
/// `n = q * factor + offset` (mean and variance folded in), `y = n * weight + bias`,
/// `clamp(round_half_even(y * (1 / scale) + zero_point))`.
///
/// # Panics
/// If the lengths do not fit `norm.columns`, or a zero point is outside 0..=255.
pub fn layer_norm(isa: Isa, x: &[u8], x_qparams: QParams, norm: LayerNorm<'_>, qparams: QParams, out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    assert!(norm.weight.is_none_or(|w| w.len() == norm.columns), "length of the weight");
    assert!(norm.bias.is_none_or(|b| b.len() == norm.columns), "length of the bias");
    x_qparams.check::<u8>();
    qparams.check::<u8>();
    if x.is_empty() {
        return;
    }
    assert!(norm.columns > 0 && x.len().is_multiple_of(norm.columns), "{} values in rows of {}", x.len(), norm.columns);
    dispatch(isa, LayerNormKernel { x, scale: x_qparams.scale, norm, qparams, out });
}

struct LayerNormKernel<'a> {
    x: &'a [u8],
    scale: f32,
    norm: LayerNorm<'a>,
    qparams: QParams,
    out: &'a mut [u8],
}

impl Kernel for LayerNormKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LayerNorm { columns, weight, bias, eps } = self.norm;
        let inv_scale = s.splat(self.qparams.inv_scale());
        let zero_point = s.splat(self.qparams.zero_point as f32);
        let full = columns - columns % S::BYTES;
        for (x, out) in self.x.chunks_exact(columns).zip(self.out.chunks_exact_mut(columns)) {
            let (factor, offset) = moments(s, x).standardize(self.scale, eps);
            let affine = [s.splat(factor as f32), s.splat(offset as f32), inv_scale, zero_point];
            for first in (0..full).step_by(S::BYTES) {
                let end = first + S::BYTES;
                let weight = column_block(s, weight, first, end, 1.0);
                let bias = column_block(s, bias, first, end, 0.0);
                layer_block(s, &x[first..end], affine, weight, bias, &mut out[first..end]);
            }
            if full < columns {
                let weight = column_block(s, weight, full, columns, 1.0);
                let bias = column_block(s, bias, full, columns, 0.0);
                layer_block(s, &x[full..], affine, weight, bias, &mut out[full..]);
            }
        }
    }
}

#[inline(always)]
fn column_block<S: Simd>(s: S, values: Option<&[f32]>, first: usize, end: usize, absent: f32) -> [S::F32; 4] {
    match values {
        Some(values) => s.load_f32x4(&values[first..end]),
        None => [s.splat(absent); 4],
    }
}

#[inline(always)]
fn layer_block<S: Simd>(
    s: S,
    x: &[u8],
    [factor, offset, inv_scale, zero_point]: [S::F32; 4],
    weight: [S::F32; 4],
    bias: [S::F32; 4],
    out: &mut [u8],
) {
    let mut t = s.to_f32x4(s.widen_u8(x));
    for k in 0..4 {
        let normal = s.mul_add(t[k], factor, offset);
        t[k] = s.mul_add(s.mul_add(normal, weight[k], bias[k]), inv_scale, zero_point);
    }
    s.store_u8(s.narrow_u8(s.round_x4(t), s.splat_i16(0)), out);
}
