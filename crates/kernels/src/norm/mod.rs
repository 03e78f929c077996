//! Normalizations of u8 tensors: layer, group, instance and batch norm.
//!
//! Sums and sums of squares are those of the quantized integers, hence exact; mean and variance follow in f64. A value
//! is then one or two multiply-adds in f32, and the zero point is added before the rounding, as in
//! [`quantize`](fn@super::quantize).

mod channels;
mod layer;

pub use channels::{BatchNorm, GroupNorm, NormScratch, batch_norm, group_norm};
pub use layer::{LayerNorm, layer_norm};

use super::QParams;
use super::elementwise::simd::Simd;

/// The number of values, their sum and the sum of their squares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moments {
    count: u64,
    sum: u64,
    squares: u64,
}

impl Moments {
    /// `(factor, offset)` of `(x - mean) / sqrt(var + eps)` as `q * factor + offset`, for values quantized with `scale`.
    ///
    /// The zero point cancels: mean and value have the same.
    fn standardize(self, scale: f32, eps: f64) -> (f64, f64) {
        let count = self.count as f64;
        let mean = self.sum as f64 / count;
        // count * squares - sum² is exact, so that equal values have no variance at all.
        let spread = u128::from(self.count) * u128::from(self.squares) - u128::from(self.sum).pow(2);
        let variance = spread as f64 / (count * count);
        let scale = f64::from(scale);
        let factor = scale / (variance * scale * scale + eps).sqrt();
        (factor, -mean * factor)
    }
}

/// Blocks whose products the lanes of a sum of 32 bits hold: 4 * 255 * 127 each.
const BLOCKS_A_SUM: usize = 8192;

/// The moments of `x`.
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[u8]) -> Moments {
    let mut total = Moments { count: x.len() as u64, ..Moments::default() };
    let (one, middle) = (s.splat_u8(1), s.splat_u8(128));
    for x in x.chunks(BLOCKS_A_SUM * S::BYTES) {
        let mut sum = s.splat_i32(0);
        // The second factor of a dot product is signed: q * (q - 128) stands for q².
        let mut shifted = s.splat_i32(0);
        let mut blocks = x.chunks_exact(S::BYTES);
        for block in blocks.by_ref() {
            let q = s.load_u8(block);
            sum = s.dot(sum, q, one);
            shifted = s.dot(shifted, q, s.sub_u8(q, middle));
        }
        // The zeros after the end add nothing.
        let q = s.load_u8(blocks.remainder());
        sum = s.dot(sum, q, one);
        shifted = s.dot(shifted, q, s.sub_u8(q, middle));
        let sum = horizontal_sum(s, sum);
        total.sum += sum as u64;
        total.squares += (horizontal_sum(s, shifted) + 128 * sum) as u64;
    }
    total
}

#[inline(always)]
fn horizontal_sum<S: Simd>(s: S, x: S::I32) -> i64 {
    let mut lanes = [0; 16];
    s.store_i32(x, &mut lanes[..S::LANES]);
    lanes[..S::LANES].iter().map(|x| i64::from(*x)).sum()
}

/// The smallest value of an output that is clamped at 0.0 if `relu`.
fn lowest(qparams: QParams, relu: bool) -> u8 {
    if relu { qparams.zero_point as u8 } else { 0 }
}
