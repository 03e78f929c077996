//! The functions that quantized operators apply element by element.

/// A function of one float, with PyTorch's name and definition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, min), max)`: hardtanh, clamp, and relu6 as 0 to 6.
    Clamp {
        /// The lower bound.
        min: f32,
        /// The upper bound.
        max: f32,
    },
    /// `x` above 0, `negative_slope * x` below.
    LeakyRelu {
        /// The slope below 0.
        negative_slope: f32,
    },
    /// `x * relu6(x + 3) / 6`.
    HardSwish,
    /// `relu6(x + 3) / 6`.
    HardSigmoid,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x * sigmoid(x)`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
    /// `scale * x` above 0, `scale * alpha * (exp(input_scale * x) - 1)` below; `celu` and `selu` are of this form.
    Elu {
        /// What the function tends to, negated, before `scale`.
        alpha: f32,
        /// The factor of both branches.
        scale: f32,
        /// The factor in the exponent.
        input_scale: f32,
    },
    /// `x * Φ(x)`, with the normal distribution's Φ.
    Gelu,
    /// Gelu with Φ approximated: `x / 2 * (1 + tanh(sqrt(2 / π) * (x + 0.044715 x³)))`.
    GeluTanh,
    /// `exp(x)`.
    Exp,
    /// `x + value`.
    AddScalar(f32),
    /// `x * value`.
    MulScalar(f32),
}

impl Activation {
    /// `relu6`.
    pub const RELU6: Self = Activation::Clamp { min: 0.0, max: 6.0 };

    /// The function at `x`: computed in f64 where it is transcendental, so that the result is the nearest f32 or one
    /// of its neighbours.
    pub fn eval(self, x: f32) -> f32 {
        let wide = f64::from(x);
        match self {
            Activation::Relu => x.max(0.0),
            Activation::Clamp { min, max } => x.max(min).min(max),
            Activation::LeakyRelu { negative_slope } => {
                if x > 0.0 {
                    x
                } else {
                    x * negative_slope
                }
            }
            Activation::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Activation::HardSigmoid => (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Activation::Sigmoid => sigmoid(wide) as f32,
            Activation::Silu => (wide * sigmoid(wide)) as f32,
            Activation::Tanh => wide.tanh() as f32,
            Activation::Elu { alpha, scale, input_scale } => {
                if x > 0.0 {
                    x * scale
                } else {
                    let exponent = wide * f64::from(input_scale);
                    (exponent.exp_m1() * f64::from(alpha) * f64::from(scale)) as f32
                }
            }
            Activation::Gelu => (0.5 * wide * erfc(-wide * std::f64::consts::FRAC_1_SQRT_2)) as f32,
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
                (0.5 * wide * (1.0 + inner.tanh())) as f32
            }
            Activation::Exp => wide.exp() as f32,
            Activation::AddScalar(value) => x + value,
            Activation::MulScalar(value) => x * value,
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The complementary error function, `2 / sqrt(π)` times the integral of `exp(-t²)` from `x` to infinity, with a
/// relative error below 1e-12.
///
/// Near 0 the Maclaurin series of erf, DLMF 7.6.2; further out the continued fraction DLMF 7.9.1. std has neither.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        // erf(x) = 2 / sqrt(π) * exp(-x²) * sum of 2^n x^(2n+1) / (1 * 3 * .. * (2n+1)): all terms are positive.
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
    }
    let mut tail = x;
    for n in (1..=60).rev() {
        tail = x + f64::from(n) / 2.0 / tail;
    }
    0.5 * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() / tail
}

#[cfg(test)]
mod tests {
    use super::erfc;

    #[test]
    fn erfc_has_the_values_of_the_tables() {
        // Abramowitz and Stegun, table 7.1, and DLMF 7.
        let table = [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (2.4, 0.000_688_513_896_645_078_9),
            (3.0, 2.209_049_699_858_543_8e-5),
            (5.0, 1.537_459_794_428_035_1e-12),
        ];
        for (x, expected) in table {
            assert!((erfc(x) / expected - 1.0).abs() < 1e-10, "erfc({x}) = {}", erfc(x));
            assert!((erfc(-x) - (2.0 - expected)).abs() < 1e-15);
        }
    }
}
