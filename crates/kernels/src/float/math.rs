//! Functions of one vector: exponential, logistic function, hyperbolic tangent, gelu.
//!
//! The exponential is reduced by multiples of ln 2 as in Cody and Waite, Software Manual for the Elementary Functions
//! (1980), chapter 6; the polynomials are least-maximum fits by Lawson's iteration (weighted least squares at Chebyshev
//! points). The errors that are stated are measured against f64: `tests/kernels/float.rs` measures them.

use crate::elementwise::simd::Simd;

/// Adding and taking away this rounds a number below 2^22 to an integer, half to even.
const ROUNDER: f32 = 12_582_912.0;

/// Below it [`exp_negative`] is 0: just above the logarithm of the smallest normal number, -126 ln 2.
const EXP_FLOOR: f32 = -87.33;

/// `(exp(r) - 1 - r) / r²` for `|r| <= ln 2 / 2`, constant term first; error 3e-9 of `exp(r)`.
const EXP: [f32; 5] = [4.999_999_4e-1, 1.666_652e-1, 4.166_839e-2, 8.368_717e-3, 1.381_459_6e-3];

/// `n` and `exp(r) - 1` with `x = n ln 2 + r`.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let rounder = s.splat(ROUNDER);
    let n = s.sub(s.mul_add(x, s.splat(std::f32::consts::LOG2_E), rounder), rounder);
    // ln 2 as the nearest f32 and what that lacks.
    let r = s.mul_add(n, s.splat(-std::f32::consts::LN_2), x);
    let r = s.mul_add(n, s.splat(1.904_654_2e-9), r);
    let mut q = s.splat(EXP[4]);
    for k in (0..4).rev() {
        q = s.mul_add(q, r, s.splat(EXP[k]));
    }
    (n, s.mul_add(s.mul(r, r), q, r))
}

/// `exp(x)`, within 1 ulp; subnormal results and overflow as they should be.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // NaN goes through, the second operand of both.
    let x = s.max(s.splat(-110.0), s.min(s.splat(90.0), x));
    let (n, e) = reduce(s, x);
    s.times_wide_exp2(s.add(e, s.splat(1.0)), n)
}

/// `exp(x)` for `x` up to 0, or NaN, within 1 ulp; 0 where it would be below 1.2e-38.
#[inline(always)]
pub(super) fn exp_negative<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (n, e) = reduce(s, x);
    let y = s.times_exp2(s.add(e, s.splat(1.0)), n);
    // Whatever that was below the floor.
    s.if_less(x, s.splat(EXP_FLOOR), s.splat(0.0), y)
}

/// `-|x|`.
#[inline(always)]
fn negative<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.min(x, s.sub(s.splat(0.0), x))
}

/// `1 / (1 + exp(-x))`, within 2.5 ulp; 0 below -87.33.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let e = exp_negative(s, negative(s, x));
    let one = s.splat(1.0);
    s.div(s.if_less(x, s.splat(0.0), e, one), s.add(one, e))
}

/// `x * sigmoid(x)`, within 2.7 ulp; 0 below -87.33.
#[inline(always)]
pub(super) fn silu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let e = exp_negative(s, negative(s, x));
    let one = s.splat(1.0);
    s.div(s.if_less(x, s.splat(0.0), s.mul(x, e), x), s.add(one, e))
}

/// `exp(x) - 1` for `x` up to 0, or NaN; below -20 it is -1.
#[inline(always)]
pub(super) fn exp_m1_negative<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (n, e) = reduce(s, s.max(s.splat(-20.0), x));
    let (one, power) = (s.splat(1.0), s.times_exp2(s.splat(1.0), n));
    s.mul_add(e, power, s.sub(power, one))
}

/// The hyperbolic tangent, within 2.5 ulp.
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let e = exp_m1_negative(s, negative(s, s.add(x, x)));
    let y = s.div(e, s.add(e, s.splat(2.0)));
    s.if_less(x, s.splat(0.0), y, s.sub(s.splat(0.0), y))
}

/// Half of `erf(x / √2) / x` for `|x|` up to [`PHI_END`], a polynomial in `v = 2 x² / PHI_END² - 1`, constant term first.
/// Error of the normal distribution 2e-8.
const PHI: [f32; 15] = [
    1.333_925_6e-1,
    -6.651_851e-2,
    4.926_416_7e-2,
    -3.958_89e-2,
    3.207_945_5e-2,
    -2.529_860_3e-2,
    1.892_635_4e-2,
    -1.318_425_3e-2,
    8.826_322e-3,
    -5.851_919e-3,
    3.138_232_3e-3,
    -1.093_769e-3,
    7.292_118_4e-4,
    -7.653_284e-4,
    2.845_919_8e-4,
];

/// From here on the normal distribution differs from 1 by less than 6e-8.
const PHI_END: f32 = 5.3;

/// `x * Φ(x)`, within `1.5e-7 |x|`; `-0.0` below -5.3.
#[inline(always)]
pub(super) fn gelu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (end, low) = (s.splat(PHI_END), s.splat(-PHI_END));
    let inner = s.max(low, s.min(end, x));
    let v = s.mul_add(s.mul(inner, inner), s.splat(2.0 / (PHI_END * PHI_END)), s.splat(-1.0));
    let mut p = s.splat(PHI[14]);
    for k in (0..14).rev() {
        p = s.mul_add(p, v, s.splat(PHI[k]));
    }
    let phi = s.mul_add(inner, p, s.splat(0.5));
    s.mul(x, s.if_less(x, low, s.splat(0.0), phi))
}

/// `x / 2 * (1 + tanh(√(2/π) (x + 0.044715 x³)))`, which is `x * sigmoid(2 √(2/π) (x + 0.044715 x³))`,
/// within `1.2e-7 |x|`.
#[inline(always)]
pub(super) fn gelu_tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = 7.135_481_4e-2;
    let u = s.mul(x, s.mul_add(s.mul(x, x), s.splat(CUBIC), s.splat(LINEAR)));
    let e = exp_negative(s, negative(s, u));
    let one = s.splat(1.0);
    s.div(s.if_less(u, s.splat(0.0), s.mul(x, e), x), s.add(one, e))
}
