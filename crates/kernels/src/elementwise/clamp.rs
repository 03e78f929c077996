//! Clamps that keep the qparams: no arithmetic, only the smaller or larger byte.

use super::simd::{Kernel, Simd, dispatch};
use crate::Isa;

/// `max(x, 0)` with the qparams of `x`: the larger of each byte and the zero point.
///
/// # Panics
/// If the lengths differ.
pub fn relu(isa: Isa, x: &[u8], zero_point: u8, out: &mut [u8]) {
    clamp(isa, x, zero_point, 255, out);
}

/// `clamp(x, low, high)` with the qparams of `x`, the bounds quantized (relu6, hardtanh).
///
/// ```
/// use jitquant_kernels::{Isa, QParams, clamp};
/// let qparams = QParams::new(0.1, 5);
/// let mut relu6 = [0; 3];
/// clamp(Isa::current(), &[0, 30, 200], qparams.quantize(0.0), qparams.quantize(6.0), &mut relu6);
/// assert_eq!(relu6, [5, 30, 65]);
/// ```
///
/// # Panics
/// If the lengths differ.
pub fn clamp(isa: Isa, x: &[u8], low: u8, high: u8, out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    dispatch(isa, Clamp { x, low, high, out });
}

struct Clamp<'a> {
    x: &'a [u8],
    low: u8,
    high: u8,
    out: &'a mut [u8],
}

impl Kernel for Clamp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (low, high) = (s.splat_u8(self.low), s.splat_u8(self.high));
        let mut xs = self.x.chunks_exact(S::BYTES);
        let mut outs = self.out.chunks_exact_mut(S::BYTES);
        for (x, out) in xs.by_ref().zip(outs.by_ref()) {
            s.store_u8(s.min_u8(s.max_u8(s.load_u8(x), low), high), out);
        }
        if !xs.remainder().is_empty() {
            s.store_u8(s.min_u8(s.max_u8(s.load_u8(xs.remainder()), low), high), outs.into_remainder());
        }
    }
}
