//! The point-wise part of LSTM and GRU cells, on the f32 sums that the (dynamic INT8) GEMMs of their gates give.
//!
//! sigmoid and tanh are polynomials that every ISA evaluates in the same order, within 3 units in the last place.

use super::Isa;
use super::elementwise::simd::{Kernel, Simd, dispatch};

/// The new state of an LSTM cell: `c = σ(f) * c + σ(i) * tanh(g)`, `h = σ(o) * tanh(c)`.
///
/// `gates` holds `i`, `f`, `g` and `o` of `hidden` values each for every row: input and hidden part added, biases
/// included, PyTorch's order. `c` is the cell state, replaced by the new one; `h` receives the new hidden state.
///
/// # Panics
/// If the lengths do not fit.
pub fn lstm_cell(isa: Isa, gates: &[f32], hidden: usize, c: &mut [f32], h: &mut [f32]) {
    assert_eq!(c.len(), h.len(), "lengths of cell and hidden state");
    assert_eq!(gates.len(), 4 * c.len(), "length of the gates");
    if c.is_empty() {
        return;
    }
    assert!(hidden > 0 && c.len().is_multiple_of(hidden), "{} values in rows of {hidden}", c.len());
    dispatch(isa, Lstm { gates, hidden, c, h });
}

struct Lstm<'a> {
    gates: &'a [f32],
    hidden: usize,
    c: &'a mut [f32],
    h: &'a mut [f32],
}

impl Kernel for Lstm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.hidden;
        let states = self.c.chunks_exact_mut(n).zip(self.h.chunks_exact_mut(n));
        for (gates, (c, h)) in self.gates.chunks_exact(4 * n).zip(states) {
            for first in (0..n).step_by(S::LANES) {
                let end = n.min(first + S::LANES);
                let i = sigmoid(s, s.load_f32(&gates[first..end]));
                let f = sigmoid(s, s.load_f32(&gates[n + first..n + end]));
                let g = tanh(s, s.load_f32(&gates[2 * n + first..2 * n + end]));
                let o = sigmoid(s, s.load_f32(&gates[3 * n + first..3 * n + end]));
                let new = s.add(s.mul(f, s.load_f32(&c[first..end])), s.mul(i, g));
                s.store_f32(new, &mut c[first..end]);
                s.store_f32(s.mul(o, tanh(s, new)), &mut h[first..end]);
            }
        }
    }
}

/// The new state of a GRU cell: `r = σ(xr + hr)`, `z = σ(xz + hz)`, `n = tanh(xn + r * hn)`, `h = (h - n) * z + n`.
///
/// `x_gates` holds `r`, `z` and `n` of `hidden` values each for every row, computed from the input with its bias;
/// `h_gates` the same from the hidden state. `h` is replaced by the new state.
///
/// # Panics
/// If the lengths do not fit.
pub fn gru_cell(isa: Isa, x_gates: &[f32], h_gates: &[f32], hidden: usize, h: &mut [f32]) {
    assert_eq!(x_gates.len(), 3 * h.len(), "length of the gates of the input");
    assert_eq!(h_gates.len(), 3 * h.len(), "length of the gates of the hidden state");
    if h.is_empty() {
        return;
    }
    assert!(hidden > 0 && h.len().is_multiple_of(hidden), "{} values in rows of {hidden}", h.len());
    dispatch(isa, Gru { x_gates, h_gates, hidden, h });
}

struct Gru<'a> {
    x_gates: &'a [f32],
    h_gates: &'a [f32],
    hidden: usize,
    h: &'a mut [f32],
}

impl Kernel for Gru<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.hidden;
        let gates = self.x_gates.chunks_exact(3 * n).zip(self.h_gates.chunks_exact(3 * n));
        for ((x, from_h), h) in gates.zip(self.h.chunks_exact_mut(n)) {
            for first in (0..n).step_by(S::LANES) {
                let end = n.min(first + S::LANES);
                let (reset, update, new) = (first..end, n + first..n + end, 2 * n + first..2 * n + end);
                let r = sigmoid(s, s.add(s.load_f32(&x[reset.clone()]), s.load_f32(&from_h[reset])));
                let z = sigmoid(s, s.add(s.load_f32(&x[update.clone()]), s.load_f32(&from_h[update])));
                let hidden_part = s.mul(r, s.load_f32(&from_h[new.clone()]));
                let candidate = tanh(s, s.add(s.load_f32(&x[new]), hidden_part));
                let old = s.load_f32(&h[first..end]);
                s.store_f32(s.add(s.mul(s.sub(old, candidate), z), candidate), &mut h[first..end]);
            }
        }
    }
}

/// e to the power of `x`, for results in f32's normal range; beyond, the result at its ends. NaN stays NaN.
///
/// `x = n * ln 2 + r`; `exp(r)` by the polynomial of Cephes' `expf`, Horner's scheme in fused steps.
#[inline(always)]
fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // The argument order lets NaN through.
    let x = s.max(s.splat(-87.3), s.min(s.splat(88.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let n_float = s.to_f32(n);
    // ln 2 in two parts; the first has few enough bits for an exact product.
    let r = s.mul_add(n_float, s.splat(-0.693_359_4), x);
    let r = s.mul_add(n_float, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.mul_add(p, r, s.splat(coefficient));
    }
    let p = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    s.mul(p, s.exp2(n))
}

#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// The hyperbolic tangent: below 0.625 the polynomial of Cephes' `tanhf`, above `1 - 2 / (exp(2 |x|) + 1)`.
#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let negated = s.sub(zero, x);
    let magnitude = s.max(negated, x);
    let e = exp(s, s.add(magnitude, magnitude));
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let far = s.if_less(x, zero, s.sub(zero, far), far);
    let square = s.mul(x, x);
    let mut p = s.splat(-5.704_988_7e-3);
    for coefficient in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = s.mul_add(p, square, s.splat(coefficient));
    }
    let near = s.mul_add(s.mul(p, square), x, x);
    s.if_less(magnitude, s.splat(0.625), near, far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementwise::scalar::Scalar;

    /// The largest error over `range`, in units of the last place of the exact result.
    fn worst(range: std::ops::Range<f32>, f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let steps = if cfg!(miri) { 100 } else { 100_000 };
        let mut worst = 0.0f64;
        for i in 0..steps {
            let x = range.start + (range.end - range.start) * i as f32 / steps as f32;
            let y = exact(f64::from(x));
            let ulp = f64::from((y as f32).abs().next_up() - (y as f32).abs());
            worst = worst.max((f64::from(f(x)) - y).abs() / ulp);
        }
        worst
    }

    #[test]
    fn functions_are_within_three_units_in_the_last_place() {
        assert!(worst(-87.0..88.0, |x| exp(Scalar, x), f64::exp) < 2.0);
        assert!(worst(-20.0..20.0, |x| sigmoid(Scalar, x), |x| 1.0 / (1.0 + (-x).exp())) < 3.0);
        assert!(worst(-10.0..10.0, |x| tanh(Scalar, x), f64::tanh) < 3.0);
        assert!(worst(-1e-3..1e-3, |x| tanh(Scalar, x), f64::tanh) < 3.0);
    }

    #[test]
    fn ends_and_nan() {
        assert_eq!((sigmoid(Scalar, f32::INFINITY), tanh(Scalar, f32::INFINITY)), (1.0, 1.0));
        assert!(sigmoid(Scalar, f32::NEG_INFINITY) < 1e-37);
        assert_eq!(tanh(Scalar, f32::NEG_INFINITY), -1.0);
        assert!(
            exp(Scalar, f32::NAN).is_nan() && sigmoid(Scalar, f32::NAN).is_nan() && tanh(Scalar, f32::NAN).is_nan()
        );
    }
}
