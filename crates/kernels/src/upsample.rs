//! Upsampling of u8 images in NDHWC order: nearest and bilinear. The output keeps the qparams of the input.

use std::ops::Range;

use super::Isa;
use super::elementwise::simd::{Kernel, Simd, dispatch};
use super::pool::Pixels;

/// How the pixels of an output are found in the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Upsampling {
    /// The pixel at `floor(o * step)`.
    Nearest,
    /// The pixel at `floor((o + 0.5) * step)`, PyTorch's `nearest-exact`.
    NearestExact,
    /// Interpolation between the four pixels around `(o + 0.5) * step - 0.5`.
    Bilinear,
    /// Interpolation that maps the corner pixels' centres onto each other.
    BilinearAlignCorners,
}

impl Upsampling {
    /// Input pixels for each output pixel along one dimension, from the sizes or from the `scale_factor` that the
    /// caller of `interpolate` gave; in f32, as libtorch.
    pub fn step(self, input: usize, output: usize, scale_factor: Option<f64>) -> f32 {
        match (self, scale_factor) {
            (Upsampling::BilinearAlignCorners, _) if output > 1 => (input - 1) as f32 / (output - 1) as f32,
            (Upsampling::BilinearAlignCorners, _) => 0.0,
            (_, Some(factor)) if factor > 0.0 => (1.0 / factor) as f32,
            _ => input as f32 / output as f32,
        }
    }

    fn is_nearest(self) -> bool {
        matches!(self, Upsampling::Nearest | Upsampling::NearestExact)
    }

    /// The first pixel of output `o` of `output`, and the weight of the one after it.
    ///
    /// As in libtorch, a dimension that keeps its size is copied, and one that doubles repeats each pixel, whatever the factor.
    fn source(self, o: usize, step: f32, input: usize, output: usize) -> (usize, f32) {
        if output == input && self != Upsampling::NearestExact {
            return (o, 0.0);
        }
        if self == Upsampling::Nearest && output == 2 * input {
            return (o / 2, 0.0);
        }
        let position = match self {
            Upsampling::Nearest => o as f32 * step,
            Upsampling::NearestExact => (o as f32 + 0.5) * step,
            Upsampling::Bilinear => ((o as f32 + 0.5) * step - 0.5).max(0.0),
            Upsampling::BilinearAlignCorners => o as f32 * step,
        };
        let first = (position as usize).min(input - 1);
        (first, if self.is_nearest() { 0.0 } else { (position - first as f32).min(1.0) })
    }
}

/// Resizes images: `rows` of the output, of which `out` begins with the first.
///
/// `step` is [`Upsampling::step`] for depth, height and width; bilinear modes leave the depth as it is. A dimension that keeps its size
/// is copied, whatever its step ([`Upsampling::NearestExact`] aside), and in mode [`Upsampling::Nearest`] one that doubles repeats pixels. Bilinear: with the
/// fractions `v` of height and `w` of width,
/// `round_half_even((1 - v) * ((1 - w) * a + w * b) + v * ((1 - w) * c + w * d))` in f32, each `+` rounded together
/// with the product before it. The weights add up to 1, so that zero points need no care.
///
/// # Panics
/// If batch or channels differ, or the depth where that stays; if an image is empty, or a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn upsample(
    isa: Isa,
    x: &[u8],
    x_shape: Pixels,
    mode: Upsampling,
    step: [f32; 3],
    out_shape: Pixels,
    rows: Range<usize>,
    out: &mut [u8],
) {
    x_shape.check(&(0..x_shape.rows()), x.len(), "input");
    out_shape.check(&rows, out.len(), "output");
    assert_eq!((x_shape.batch, x_shape.channels), (out_shape.batch, out_shape.channels), "batch and channels");
    assert!(mode.is_nearest() || x_shape.size[0] == out_shape.size[0], "depth of input and output");
    assert!(rows.is_empty() || x_shape.size.iter().all(|n| *n > 0), "the input is empty");
    dispatch(isa, Upsample { x, x_shape, mode, step, out_shape, rows, out });
}

struct Upsample<'a> {
    x: &'a [u8],
    x_shape: Pixels,
    mode: Upsampling,
    step: [f32; 3],
    out_shape: Pixels,
    rows: Range<usize>,
    out: &'a mut [u8],
}

impl Kernel for Upsample<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, x_shape, mode, step, out_shape, .. } = self;
        let ([depth, height, width], channels, stride) = (x_shape.size, x_shape.channels, x_shape.stride);
        let mut out_start = 0;
        for row in self.rows {
            let (image, oz, oy) = out_shape.place(row);
            let z = if mode.is_nearest() { mode.source(oz, step[0], depth, out_shape.size[0]).0 } else { oz };
            let (y, v) = mode.source(oy, step[1], height, out_shape.size[1]);
            let line = |y: usize| &x[x_shape.line(image, z, y)..];
            let (upper, lower) = (line(y), line((y + 1).min(height - 1)));
            for ox in 0..out_shape.size[2] {
                let (column, w) = mode.source(ox, step[2], width, out_shape.size[2]);
                let out = &mut self.out[out_start..out_start + channels];
                out_start += out_shape.stride;
                let (left, right) = (column * stride, (column + 1).min(width - 1) * stride);
                let a = &upper[left..left + channels];
                if v == 0.0 && w == 0.0 {
                    copy(s, a, out);
                    continue;
                }
                let (b, c) = (&upper[right..right + channels], &lower[left..left + channels]);
                bilinear(s, [a, b, c, &lower[right..right + channels]], v, w, out);
            }
        }
    }
}

/// Copies a pixel; `copy_from_slice` would call memcpy for a few bytes.
#[inline(always)]
fn copy<S: Simd>(s: S, x: &[u8], out: &mut [u8]) {
    let mut blocks = x.chunks_exact(S::BYTES);
    let mut outs = out.chunks_exact_mut(S::BYTES);
    for (x, out) in blocks.by_ref().zip(outs.by_ref()) {
        s.store_u8(s.load_u8(x), out);
    }
    if !blocks.remainder().is_empty() {
        s.store_u8(s.load_u8(blocks.remainder()), outs.into_remainder());
    }
}

#[inline(always)]
fn bilinear<S: Simd>(s: S, corners: [&[u8]; 4], v: f32, w: f32, out: &mut [u8]) {
    let weights = [s.splat(1.0 - v), s.splat(v), s.splat(1.0 - w), s.splat(w)];
    let channels = out.len();
    let full = channels - channels % S::BYTES;
    for first in (0..full).step_by(S::BYTES) {
        let end = first + S::BYTES;
        let [a, b, c, d] = corners;
        let block = [&a[first..end], &b[first..end], &c[first..end], &d[first..end]];
        bilinear_block(s, block, weights, &mut out[first..end]);
    }
    if full < channels {
        let [a, b, c, d] = corners;
        bilinear_block(s, [&a[full..], &b[full..], &c[full..], &d[full..]], weights, &mut out[full..]);
    }
}

#[inline(always)]
fn bilinear_block<S: Simd>(s: S, corners: [&[u8]; 4], [up, down, left, right]: [S::F32; 4], out: &mut [u8]) {
    let a = s.to_f32x4(s.widen_u8(corners[0]));
    let b = s.to_f32x4(s.widen_u8(corners[1]));
    let c = s.to_f32x4(s.widen_u8(corners[2]));
    let d = s.to_f32x4(s.widen_u8(corners[3]));
    let mut t = a;
    for k in 0..4 {
        let above = s.mul_add(right, b[k], s.mul(left, a[k]));
        let below = s.mul_add(right, d[k], s.mul(left, c[k]));
        t[k] = s.mul_add(down, below, s.mul(up, above));
    }
    s.store_u8(s.narrow_u8(s.round_x4(t), s.splat_i16(0)), out);
}
