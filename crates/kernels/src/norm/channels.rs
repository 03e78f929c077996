//! Norms with a factor and an offset for each channel: group, instance and batch norm.

use super::{BLOCKS_A_SUM, Moments, lowest, moments};
use crate::elementwise::simd::{Kernel, Simd, dispatch};
use crate::{Channels, Isa, QParams};

/// The parameters of a batch norm in inference: one of each for a channel.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// The running mean.
    pub mean: &'a [f32],
    /// The running variance.
    pub var: &'a [f32],
    /// The factor, 1 if absent.
    pub weight: Option<&'a [f32]>,
    /// What is added, 0 if absent.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f64,
}

/// The parameters of a group norm; an instance norm has as many groups as channels.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// Groups that the channels are divided into.
    pub groups: usize,
    /// The factor of each channel, 1 if absent.
    pub weight: Option<&'a [f32]>,
    /// What is added to each channel, 0 if absent.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f64,
}

/// Memory that [`group_norm`] and [`batch_norm`] compute in.
#[derive(Debug)]
pub struct NormScratch<'a> {
    /// 2 for each channel.
    pub affine: &'a mut [f32],
    /// 2 for each group; a batch norm needs none.
    pub sums: &'a mut [u64],
}

fn parameter(values: Option<&[f32]>, channel: usize, absent: f64) -> f64 {
    values.map_or(absent, |values| f64::from(values[channel]))
}

fn check(
    x: &[u8],
    layout: Channels,
    x_qparams: QParams,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    qparams: QParams,
    out: &[u8],
) {
    assert_eq!(x.len(), layout.len(), "length of the input");
    assert_eq!(out.len(), layout.len(), "length of the output");
    assert!(weight.is_none_or(|w| w.len() == layout.channels), "length of the weight");
    assert!(bias.is_none_or(|b| b.len() == layout.channels), "length of the bias");
    x_qparams.check::<u8>();
    qparams.check::<u8>();
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` for each channel, then `max(.., 0)` with `relu`.
///
/// All parameters fold into one factor and one offset for each channel, in f64; a value is
/// `clamp(round_half_even(q * factor + offset))` with one rounding for product and sum. In NHWC order `layout.inner` is
/// 1, in NCHW order it is H * W.
///
/// # Panics
/// If lengths do not fit `layout`, `scratch.affine` is too short, or a zero point is outside 0..=255.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm(
    isa: Isa,
    x: &[u8],
    layout: Channels,
    x_qparams: QParams,
    norm: BatchNorm<'_>,
    relu: bool,
    qparams: QParams,
    scratch: NormScratch<'_>,
    out: &mut [u8],
) {
    check(x, layout, x_qparams, norm.weight, norm.bias, qparams, out);
    assert_eq!((norm.mean.len(), norm.var.len()), (layout.channels, layout.channels), "length of mean and variance");
    let (factors, offsets) = scratch.affine[..2 * layout.channels].split_at_mut(layout.channels);
    for (c, (factor, offset)) in factors.iter_mut().zip(offsets.iter_mut()).enumerate() {
        let gain = parameter(norm.weight, c, 1.0) / (f64::from(norm.var[c]) + norm.eps).sqrt();
        let step = f64::from(qparams.scale);
        let slope = gain * f64::from(x_qparams.scale) / step;
        let shift = (parameter(norm.bias, c, 0.0) - f64::from(norm.mean[c]) * gain) / step;
        *factor = slope as f32;
        *offset = (shift - f64::from(x_qparams.zero_point) * slope + f64::from(qparams.zero_point)) as f32;
    }
    let lowest = lowest(qparams, relu);
    dispatch(isa, Affine { x, layout, factors, offsets, lowest, out });
}

/// `(x - mean) / sqrt(var + eps) * weight + bias`, mean and variance being those of a group of channels in one image.
///
/// `layout` is N x C x (H * W) for NCHW order. For NHWC order it is (N * H * W) x C x 1 and `images` is N; for NCHW
/// `images` is `layout.outer`. The arithmetic is that of [`batch_norm`], from exact sums.
///
/// # Panics
/// If lengths do not fit `layout`, the groups do not divide the channels, the scratch is too short, or a zero point
/// is outside 0..=255.
#[allow(clippy::too_many_arguments)]
pub fn group_norm(
    isa: Isa,
    x: &[u8],
    layout: Channels,
    images: usize,
    x_qparams: QParams,
    norm: GroupNorm<'_>,
    qparams: QParams,
    scratch: NormScratch<'_>,
    out: &mut [u8],
) {
    check(x, layout, x_qparams, norm.weight, norm.bias, qparams, out);
    if layout.is_empty() {
        return;
    }
    assert!(norm.groups > 0 && layout.channels.is_multiple_of(norm.groups), "{} groups", norm.groups);
    assert!(images > 0 && layout.outer.is_multiple_of(images), "{images} images");
    assert!(layout.inner == 1 || images == layout.outer, "an image of NCHW order is one outer row");
    let image = Channels { outer: layout.outer / images, ..layout };
    let channels = layout.channels / norm.groups;
    for (x, out) in x.chunks_exact(image.len()).zip(out.chunks_exact_mut(image.len())) {
        let sums = &mut scratch.sums[..2 * norm.groups];
        let (factors, offsets) = scratch.affine[..2 * layout.channels].split_at_mut(layout.channels);
        dispatch(isa, GroupSums { x, layout: image, channels, sums });
        let count = (image.len() / norm.groups) as u64;
        for (c, (factor, offset)) in factors.iter_mut().zip(offsets.iter_mut()).enumerate() {
            let group = c / channels;
            let moments = Moments { count, sum: sums[2 * group], squares: sums[2 * group + 1] };
            let (slope, shift) = moments.standardize(x_qparams.scale, norm.eps);
            let (weight, step) = (parameter(norm.weight, c, 1.0), f64::from(qparams.scale));
            *factor = (slope * weight / step) as f32;
            let bias = parameter(norm.bias, c, 0.0);
            *offset = ((shift * weight + bias) / step + f64::from(qparams.zero_point)) as f32;
        }
        dispatch(isa, Affine { x, layout: image, factors, offsets, lowest: 0, out });
    }
}

/// The sum and the sum of squares of each group of one image, side by side in `sums`.
struct GroupSums<'a> {
    x: &'a [u8],
    layout: Channels,
    /// Channels in a group.
    channels: usize,
    sums: &'a mut [u64],
}

impl Kernel for GroupSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, layout, channels, sums } = self;
        if layout.outer == 1 {
            for (x, sums) in x.chunks_exact(channels * layout.inner).zip(sums.chunks_exact_mut(2)) {
                let Moments { sum, squares, .. } = moments(s, x);
                sums.copy_from_slice(&[sum, squares]);
            }
            return;
        }
        sums.fill(0);
        // A lane adds one pixel's square at a time, at most 255 * 255 of the 2^31.
        for x in x.chunks(BLOCKS_A_SUM * layout.channels) {
            for first in (0..layout.channels).step_by(S::BYTES) {
                let len = S::BYTES.min(layout.channels - first);
                let (mut sum, mut squares) = ([s.splat_i32(0); 4], [s.splat_i32(0); 4]);
                if len == S::BYTES {
                    for pixel in x.chunks_exact(layout.channels) {
                        add_moments(s, &pixel[first..first + S::BYTES], &mut sum, &mut squares);
                    }
                } else {
                    for pixel in x.chunks_exact(layout.channels) {
                        add_moments(s, &pixel[first..], &mut sum, &mut squares);
                    }
                }
                let (mut sum_lanes, mut square_lanes) = ([0; 64], [0; 64]);
                for k in 0..4 {
                    s.store_i32(sum[k], &mut sum_lanes[k * S::LANES..][..S::LANES]);
                    s.store_i32(squares[k], &mut square_lanes[k * S::LANES..][..S::LANES]);
                }
                for (c, (sum, squares)) in sum_lanes.iter().zip(&square_lanes).take(len).enumerate() {
                    let group = (first + c) / channels;
                    sums[2 * group] += *sum as u64;
                    sums[2 * group + 1] += *squares as u64;
                }
            }
        }
    }
}

#[inline(always)]
fn add_moments<S: Simd>(s: S, x: &[u8], sum: &mut [S::I32; 4], squares: &mut [S::I32; 4]) {
    let q = s.widen_u8(x);
    for k in 0..4 {
        sum[k] = s.add_i32(sum[k], q[k]);
        squares[k] = s.add_i32(squares[k], s.mul_small(q[k], q[k]));
    }
}

/// `clamp(round(q * factor + offset))` with a factor and an offset for each channel.
struct Affine<'a> {
    x: &'a [u8],
    layout: Channels,
    factors: &'a [f32],
    offsets: &'a [f32],
    lowest: u8,
    out: &'a mut [u8],
}

impl Kernel for Affine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Channels { channels, inner, .. } = self.layout;
        if self.layout.is_empty() {
            return;
        }
        let lowest = s.splat_u8(self.lowest);
        if inner > 1 {
            let runs = self.x.chunks_exact(inner).zip(self.out.chunks_exact_mut(inner));
            let affine = self.factors.iter().zip(self.offsets).cycle();
            for ((x, out), (&factor, &offset)) in runs.zip(affine) {
                let (factor, offset) = ([s.splat(factor); 4], [s.splat(offset); 4]);
                let mut blocks = x.chunks_exact(S::BYTES);
                let mut outs = out.chunks_exact_mut(S::BYTES);
                for (x, out) in blocks.by_ref().zip(outs.by_ref()) {
                    affine_block(s, x, factor, offset, lowest, out);
                }
                if !blocks.remainder().is_empty() {
                    affine_block(s, blocks.remainder(), factor, offset, lowest, outs.into_remainder());
                }
            }
            return;
        }
        let full = channels - channels % S::BYTES;
        for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
            for first in (0..full).step_by(S::BYTES) {
                let end = first + S::BYTES;
                let factor = s.load_f32x4(&self.factors[first..end]);
                let offset = s.load_f32x4(&self.offsets[first..end]);
                affine_block(s, &x[first..end], factor, offset, lowest, &mut out[first..end]);
            }
            if full < channels {
                let factor = s.load_f32x4(&self.factors[full..]);
                let offset = s.load_f32x4(&self.offsets[full..]);
                affine_block(s, &x[full..], factor, offset, lowest, &mut out[full..]);
            }
        }
    }
}

#[inline(always)]
fn affine_block<S: Simd>(s: S, x: &[u8], factor: [S::F32; 4], offset: [S::F32; 4], lowest: S::U8, out: &mut [u8]) {
    let mut t = s.to_f32x4(s.widen_u8(x));
    for k in 0..4 {
        t[k] = s.mul_add(t[k], factor[k], offset[k]);
    }
    s.store_u8(s.max_u8(s.narrow_u8(s.round_x4(t), s.splat_i16(0)), lowest), out);
}
