//! Addition and multiplication of two u8 tensors.

use super::simd::{Kernel, Simd, dispatch};
use crate::{Isa, QParams};

/// A u8 tensor and its qparams: one side of [`add`] or [`mul`].
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The quantized values.
    pub data: &'a [u8],
    /// What they stand for.
    pub qparams: QParams,
}

/// `x + y`, or `max(x + y, 0)` with `relu`, quantized with `qparams`.
///
/// In f32, with `*` and `+` in one rounding where they stand in one bracket:
/// `sum = (x.scale * qx - x.scale * zx) + (y.scale * qy - y.scale * zy)`, then
/// `clamp(round_half_even(sum * (1 / scale)) + zero_point)`. These are the bits of the vectorized body of libtorch's
/// `quantized::add`; its last `len % 64` elements are computed as `(qx - zx) * x.scale` and have the zero point added
/// before the rounding, which can differ by one step.
///
/// ```
/// use jitquant_kernels::{Isa, Operand, QParams, add};
/// let qparams = QParams::new(0.5, 10);
/// let (x, y) = (Operand { data: &[12, 0], qparams }, Operand { data: &[13, 9], qparams });
/// let mut out = [0; 2];
/// add(Isa::current(), x, y, qparams, true, &mut out);
/// assert_eq!(out, [15, 10]);
/// ```
///
/// # Panics
/// If the lengths differ or a zero point is outside 0..=255.
pub fn add(isa: Isa, x: Operand<'_>, y: Operand<'_>, qparams: QParams, relu: bool, out: &mut [u8]) {
    check(x, y, qparams, out);
    dispatch(isa, Binary { op: Add::new(x, y, qparams), x: x.data, y: y.data, qparams, relu, out });
}

/// `x * y`, or `max(x * y, 0)` with `relu`, quantized with `qparams`.
///
/// `clamp(round_half_even(((qx - zx) * (qy - zy)) * m) + zero_point)` with `m = x.scale * y.scale * (1 / scale)`, all
/// in f32; the product of the integers is exact. The bits of libtorch's `quantized::mul`.
///
/// # Panics
/// If the lengths differ or a zero point is outside 0..=255.
pub fn mul(isa: Isa, x: Operand<'_>, y: Operand<'_>, qparams: QParams, relu: bool, out: &mut [u8]) {
    check(x, y, qparams, out);
    dispatch(isa, Binary { op: Mul::new(x, y, qparams), x: x.data, y: y.data, qparams, relu, out });
}

fn check(x: Operand<'_>, y: Operand<'_>, qparams: QParams, out: &[u8]) {
    assert_eq!(x.data.len(), out.len(), "lengths of the first operand and the output");
    assert_eq!(y.data.len(), out.len(), "lengths of the second operand and the output");
    x.qparams.check::<u8>();
    y.qparams.check::<u8>();
    qparams.check::<u8>();
}

/// What [`add`] and [`mul`] differ in: the result in steps of the output's scale.
trait Op: Copy {
    /// The constants, spread over vectors.
    type Vectors<S: Simd>: Copy;
    fn spread<S: Simd>(self, s: S) -> Self::Vectors<S>;
    fn steps<S: Simd>(s: S, constants: &Self::Vectors<S>, x: S::F32, y: S::F32) -> S::F32;
}

/// The constants of [`add`]: scales, `-scale * zero_point` of both operands, and the output's `1 / scale`.
#[derive(Clone, Copy)]
struct Add {
    x_scale: f32,
    x_offset: f32,
    y_scale: f32,
    y_offset: f32,
    inv_scale: f32,
}

impl Add {
    fn new(x: Operand<'_>, y: Operand<'_>, qparams: QParams) -> Self {
        let offset = |q: QParams| q.scale * -(q.zero_point as f32);
        Self {
            x_scale: x.qparams.scale,
            x_offset: offset(x.qparams),
            y_scale: y.qparams.scale,
            y_offset: offset(y.qparams),
            inv_scale: qparams.inv_scale(),
        }
    }
}

impl Op for Add {
    type Vectors<S: Simd> = [S::F32; 5];

    #[inline(always)]
    fn spread<S: Simd>(self, s: S) -> [S::F32; 5] {
        [
            s.splat(self.x_scale),
            s.splat(self.x_offset),
            s.splat(self.y_scale),
            s.splat(self.y_offset),
            s.splat(self.inv_scale),
        ]
    }

    #[inline(always)]
    fn steps<S: Simd>(s: S, c: &[S::F32; 5], x: S::F32, y: S::F32) -> S::F32 {
        s.mul(s.add(s.mul_add(c[0], x, c[1]), s.mul_add(c[2], y, c[3])), c[4])
    }
}

/// The constants of [`mul`]: the zero points and the multiplier.
#[derive(Clone, Copy)]
struct Mul {
    x_zero: f32,
    y_zero: f32,
    multiplier: f32,
}

impl Mul {
    fn new(x: Operand<'_>, y: Operand<'_>, qparams: QParams) -> Self {
        Self {
            x_zero: x.qparams.zero_point as f32,
            y_zero: y.qparams.zero_point as f32,
            multiplier: x.qparams.scale * y.qparams.scale * qparams.inv_scale(),
        }
    }
}

impl Op for Mul {
    type Vectors<S: Simd> = [S::F32; 3];

    #[inline(always)]
    fn spread<S: Simd>(self, s: S) -> [S::F32; 3] {
        [s.splat(self.x_zero), s.splat(self.y_zero), s.splat(self.multiplier)]
    }

    #[inline(always)]
    fn steps<S: Simd>(s: S, c: &[S::F32; 3], x: S::F32, y: S::F32) -> S::F32 {
        s.mul(s.mul(s.sub(x, c[0]), s.sub(y, c[1])), c[2])
    }
}

struct Binary<'a, O> {
    op: O,
    x: &'a [u8],
    y: &'a [u8],
    qparams: QParams,
    relu: bool,
    out: &'a mut [u8],
}

impl<O: Op> Kernel for Binary<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let constants = self.op.spread(s);
        let zero_point = s.splat_i16(self.qparams.zero_point as i16);
        let lowest = s.splat_u8(if self.relu { self.qparams.zero_point as u8 } else { 0 });
        let mut xs = self.x.chunks_exact(S::BYTES);
        let mut ys = self.y.chunks_exact(S::BYTES);
        let mut outs = self.out.chunks_exact_mut(S::BYTES);
        for ((x, y), out) in xs.by_ref().zip(ys.by_ref()).zip(outs.by_ref()) {
            binary_block::<S, O>(s, &constants, x, y, zero_point, lowest, out);
        }
        if !xs.remainder().is_empty() {
            let (x, y) = (xs.remainder(), ys.remainder());
            binary_block::<S, O>(s, &constants, x, y, zero_point, lowest, outs.into_remainder());
        }
    }
}

#[inline(always)]
fn binary_block<S: Simd, O: Op>(
    s: S,
    constants: &O::Vectors<S>,
    x: &[u8],
    y: &[u8],
    zero_point: S::I16,
    lowest: S::U8,
    out: &mut [u8],
) {
    let x = s.to_f32x4(s.widen_u8(x));
    let y = s.to_f32x4(s.widen_u8(y));
    let mut t = x;
    for k in 0..4 {
        t[k] = O::steps(s, constants, x[k], y[k]);
    }
    s.store_u8(s.max_u8(s.narrow_u8(s.round_x4(t), zero_point), lowest), out);
}
