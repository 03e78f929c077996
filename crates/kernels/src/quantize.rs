//! Quantize and dequantize, per tensor and per channel, and the qparams of dynamic quantization.
//!
//! `x = (q - zero_point) * scale`. Per tensor `q = clamp(round_half_even(x * (1 / scale) + zero_point))` with one
//! rounding for the product and the sum; per channel the product is rounded to f32 first. The zero point is thus
//! added before the rounding to an integer, which decides ties: 0.5 steps with zero point 11 are 12, not 11. These are
//! the bits of libtorch 2.13's `at::quantize_per_tensor` and `at::quantize_per_channel` (which differ in just that:
//! seen on 20 million values). NaN and infinity give the largest value, negative infinity the smallest.

mod dynamic;

pub(crate) use dynamic::MinMax;
pub use dynamic::{choose_qparams, dynamic_qparams, min_max, quantize_dynamic_rows};

use super::Isa;
use super::elementwise::Quantized;
use super::elementwise::simd::{Kernel, Simd, dispatch};

/// How a float is quantized: `q = clamp(round_half_even(x / scale + zero_point))`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "crate::written::WrittenQParams")
)]
pub struct QParams {
    /// The distance between the floats of two neighbouring quantized values; more than zero.
    pub scale: f32,
    /// The quantized value of 0.0.
    pub zero_point: i32,
}

impl QParams {
    /// The qparams of `scale` and `zero_point`.
    pub const fn new(scale: f32, zero_point: i32) -> Self {
        Self { scale, zero_point }
    }

    /// `1 / scale`, which quantization multiplies by.
    pub fn inv_scale(self) -> f32 {
        1.0 / self.scale
    }

    /// The quantized value of one float, as [`quantize`](fn@quantize) gives it.
    pub fn quantize<T: Quantized>(self, x: f32) -> T {
        let steps = x.mul_add(self.inv_scale(), self.zero_point as f32);
        T::saturate(steps.min(T::MAX as f32).round_ties_even() as i32)
    }

    /// The float of one quantized value.
    pub fn dequantize<T: Quantized>(self, q: T) -> f32 {
        (q.to_i32() - self.zero_point) as f32 * self.scale
    }

    pub(crate) fn check<T: Quantized>(self) -> Self {
        assert!(
            (T::MIN..=T::MAX).contains(&self.zero_point),
            "zero point {} is outside {}..={}",
            self.zero_point,
            T::MIN,
            T::MAX
        );
        self
    }
}

/// A contiguous tensor seen as `outer` x `channels` x `inner`, the channels being the axis that qparams belong to.
///
/// For axis `a` of a shape, `outer` is the product of the dimensions before `a` and `inner` of those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// The product of the dimensions before the axis.
    pub outer: usize,
    /// The length of the axis.
    pub channels: usize,
    /// The product of the dimensions after the axis.
    pub inner: usize,
}

impl Channels {
    /// The layout of a contiguous tensor of `shape` with its channels at `axis`.
    ///
    /// ```
    /// use jitquant_kernels::Channels;
    /// assert_eq!(Channels::of(&[8, 64, 7, 7], 1), Channels { outer: 8, channels: 64, inner: 49 });
    /// ```
    ///
    /// # Panics
    /// If the shape has no such axis.
    pub fn of(shape: &[usize], axis: usize) -> Self {
        Self { outer: shape[..axis].iter().product(), channels: shape[axis], inner: shape[axis + 1..].iter().product() }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Quantizes `x` with one scale and zero point.
///
/// ```
/// use jitquant_kernels::{Isa, QParams, quantize};
/// let mut q = [0u8; 3];
/// quantize(Isa::current(), &[-1.0, 0.2, 9.0], QParams::new(0.5, 3), &mut q);
/// assert_eq!(q, [1, 3, 21]);
/// ```
///
/// # Panics
/// If the lengths differ or the zero point is outside `T`.
pub fn quantize<T: Quantized>(isa: Isa, x: &[f32], qparams: QParams, out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    dispatch(isa, Quantize { x, qparams: qparams.check::<T>(), out });
}

struct Quantize<'a, T> {
    x: &'a [f32],
    qparams: QParams,
    out: &'a mut [T],
}

impl<T: Quantized> Kernel for Quantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inv_scale = [s.splat(self.qparams.inv_scale()); 4];
        let zero_point = [s.splat(self.qparams.zero_point as f32); 4];
        quantize_run::<S, T, true>(s, self.x, inv_scale, zero_point, self.out);
    }
}

/// Quantizes `x`, with one rounding for the product and the sum if `FUSED`, else two.
#[inline(always)]
pub(crate) fn quantize_run<S: Simd, T: Quantized, const FUSED: bool>(
    s: S,
    x: &[f32],
    inv_scale: [S::F32; 4],
    zero_point: [S::F32; 4],
    out: &mut [T],
) {
    let mut blocks = x.chunks_exact(S::BYTES);
    let mut out_blocks = out.chunks_exact_mut(S::BYTES);
    for (x, out) in blocks.by_ref().zip(out_blocks.by_ref()) {
        quantize_block::<S, T, FUSED>(s, x, inv_scale, zero_point, out);
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        quantize_block::<S, T, FUSED>(s, rest, inv_scale, zero_point, out_blocks.into_remainder());
    }
}

#[inline(always)]
fn quantize_block<S: Simd, T: Quantized, const FUSED: bool>(
    s: S,
    x: &[f32],
    inv_scale: [S::F32; 4],
    zero_point: [S::F32; 4],
    out: &mut [T],
) {
    let mut x = s.load_f32x4(x);
    for k in 0..4 {
        x[k] = if FUSED {
            s.mul_add(x[k], inv_scale[k], zero_point[k])
        } else {
            s.add(s.mul(x[k], inv_scale[k]), zero_point[k])
        };
    }
    T::narrow(s, s.round_x4(x), s.splat_i16(0), out);
}

/// Dequantizes `x`, which has one scale and zero point.
///
/// # Panics
/// If the lengths differ or the zero point is outside `T`.
pub fn dequantize<T: Quantized>(isa: Isa, x: &[T], qparams: QParams, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    dispatch(isa, Dequantize { x, qparams: qparams.check::<T>(), out });
}

struct Dequantize<'a, T> {
    x: &'a [T],
    qparams: QParams,
    out: &'a mut [f32],
}

impl<T: Quantized> Kernel for Dequantize<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        dequantize_run(s, self.x, self.qparams, self.out);
    }
}

#[inline(always)]
fn dequantize_run<S: Simd, T: Quantized>(s: S, x: &[T], qparams: QParams, out: &mut [f32]) {
    let (zero_point, scale) = ([s.splat_i32(qparams.zero_point); 4], [s.splat(qparams.scale); 4]);
    let mut blocks = x.chunks_exact(S::BYTES);
    let mut out_blocks = out.chunks_exact_mut(S::BYTES);
    for (x, out) in blocks.by_ref().zip(out_blocks.by_ref()) {
        dequantize_block(s, x, zero_point, scale, out);
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        dequantize_block(s, rest, zero_point, scale, out_blocks.into_remainder());
    }
}

#[inline(always)]
fn dequantize_block<S: Simd, T: Quantized>(
    s: S,
    x: &[T],
    zero_point: [S::I32; 4],
    scale: [S::F32; 4],
    out: &mut [f32],
) {
    let x = T::widen(s, x);
    let mut y = scale;
    for k in 0..4 {
        y[k] = s.mul(s.to_f32(s.sub_i32(x[k], zero_point[k])), scale[k]);
    }
    s.store_f32x4(y, out);
}

/// Quantizes `x` with a scale and a zero point for each channel.
///
/// To share the work between threads, split `outer`, or split the channels of each outer row.
///
/// # Panics
/// If the lengths of the slices do not fit `layout`, or a zero point is outside `T`.
pub fn quantize_per_channel<T: Quantized>(
    isa: Isa,
    x: &[f32],
    layout: Channels,
    scales: &[f32],
    zero_points: &[i32],
    out: &mut [T],
) {
    check_channels::<T>(layout, x.len(), out.len(), scales, zero_points);
    dispatch(isa, QuantizePerChannel { x, layout, scales, zero_points, out });
}

fn check_channels<T: Quantized>(layout: Channels, x: usize, out: usize, scales: &[f32], zero_points: &[i32]) {
    assert_eq!(x, layout.len(), "length of the input");
    assert_eq!(out, layout.len(), "length of the output");
    assert_eq!(scales.len(), layout.channels, "number of scales");
    assert_eq!(zero_points.len(), layout.channels, "number of zero points");
    for &zero_point in zero_points {
        QParams::new(1.0, zero_point).check::<T>();
    }
}

struct QuantizePerChannel<'a, T> {
    x: &'a [f32],
    layout: Channels,
    scales: &'a [f32],
    zero_points: &'a [i32],
    out: &'a mut [T],
}

impl<T: Quantized> Kernel for QuantizePerChannel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Channels { channels, inner, .. } = self.layout;
        if self.layout.is_empty() {
            return;
        }
        if inner > 1 {
            let runs = self.x.chunks_exact(inner).zip(self.out.chunks_exact_mut(inner));
            let qparams = self.scales.iter().zip(self.zero_points).cycle();
            for ((x, out), (&scale, &zero_point)) in runs.zip(qparams) {
                let (inv_scale, zero_point) = ([s.splat(1.0 / scale); 4], [s.splat(zero_point as f32); 4]);
                quantize_run::<S, T, false>(s, x, inv_scale, zero_point, out);
            }
            return;
        }
        // A block of channels at a time, all rows: its reciprocals are divided once and stay in registers.
        for first in (0..channels).step_by(S::BYTES) {
            let end = channels.min(first + S::BYTES);
            let mut inv_scale = s.load_f32x4(&self.scales[first..end]);
            for v in &mut inv_scale {
                *v = s.div(s.splat(1.0), *v);
            }
            let zero_point = s.to_f32x4(load_i32x4(s, &self.zero_points[first..end]));
            for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
                quantize_block::<S, T, false>(s, &x[first..end], inv_scale, zero_point, &mut out[first..end]);
            }
        }
    }
}

#[inline(always)]
fn load_i32x4<S: Simd>(s: S, src: &[i32]) -> [S::I32; 4] {
    let mut block = [s.splat_i32(0); 4];
    for (v, src) in block.iter_mut().zip(src.chunks(S::LANES)) {
        *v = s.load_i32(src);
    }
    block
}

/// Dequantizes `x`, which has a scale and a zero point for each channel.
///
/// # Panics
/// If the lengths of the slices do not fit `layout`, or a zero point is outside `T`.
pub fn dequantize_per_channel<T: Quantized>(
    isa: Isa,
    x: &[T],
    layout: Channels,
    scales: &[f32],
    zero_points: &[i32],
    out: &mut [f32],
) {
    check_channels::<T>(layout, x.len(), out.len(), scales, zero_points);
    dispatch(isa, DequantizePerChannel { x, layout, scales, zero_points, out });
}

struct DequantizePerChannel<'a, T> {
    x: &'a [T],
    layout: Channels,
    scales: &'a [f32],
    zero_points: &'a [i32],
    out: &'a mut [f32],
}

impl<T: Quantized> Kernel for DequantizePerChannel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Channels { channels, inner, .. } = self.layout;
        if self.layout.is_empty() {
            return;
        }
        if inner > 1 {
            let runs = self.x.chunks_exact(inner).zip(self.out.chunks_exact_mut(inner));
            let qparams = self.scales.iter().zip(self.zero_points).cycle();
            for ((x, out), (&scale, &zero_point)) in runs.zip(qparams) {
                dequantize_run(s, x, QParams { scale, zero_point }, out);
            }
            return;
        }
        for first in (0..channels).step_by(S::BYTES) {
            let end = channels.min(first + S::BYTES);
            let scale = s.load_f32x4(&self.scales[first..end]);
            let zero_point = load_i32x4(s, &self.zero_points[first..end]);
            for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
                dequantize_block(s, &x[first..end], zero_point, scale, &mut out[first..end]);
            }
        }
    }
}
