//! f16 to and from f32: std's `f16` is not stable.

/// The value of IEEE 754 binary16 bits.
pub(super) fn to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 31);
    let fraction = u32::from(bits & 0x3FF);
    let magnitude = match exponent {
        // Subnormal: a multiple of 2^-24, exact in f32.
        0 => (fraction as f32 * 2.0f32.powi(-24)).to_bits(),
        31 => 0x7F80_0000 | fraction << 13,
        _ => (exponent + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest binary16, half to even; too large becomes infinite.
pub(super) fn from_f32(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let bits = x.abs().to_bits();
    sign | match bits {
        0x7F80_0001.. => 0x7E00,
        // 65520, half a step above the largest: rounds to infinity.
        0x477F_F000.. => 0x7C00,
        // Normal: the exponent's offset changes, and a carry out of the fraction goes where it should.
        0x3880_0000.. => ((bits - ((127 - 15) << 23) + 0xFFF + (bits >> 13 & 1)) >> 13) as u16,
        _ => (x.abs() * 2.0f32.powi(24)).round_ties_even() as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_there_and_back() {
        for bits in 0..=u16::MAX {
            let x = to_f32(bits);
            if x.is_nan() {
                assert!(to_f32(from_f32(x)).is_nan());
            } else {
                assert_eq!(from_f32(x), bits, "{x}");
            }
        }
    }

    #[test]
    fn halfway_goes_to_the_even_half() {
        for bits in 0..0x7BFFu16 {
            let middle = (to_f32(bits) + to_f32(bits + 1)) / 2.0;
            assert_eq!(from_f32(middle), bits + (bits & 1), "between {bits:#x} and the next");
            assert_eq!(from_f32(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(from_f32(f32::from_bits(middle.to_bits() - 1)), bits);
        }
        assert_eq!((from_f32(65519.0), from_f32(65520.0), from_f32(1e30)), (0x7BFF, 0x7C00, 0x7C00));
    }
}
