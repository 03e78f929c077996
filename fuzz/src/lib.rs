//! What the fuzz targets share: memory that AddressSanitizer watches to the byte, and floats that kernels accept.
#![forbid(unsafe_code)]

use jitquant_kernels::Isa;

/// `len` elements that repeat `pattern`, in an allocation of exactly that size: a read beyond it is caught.
pub fn exactly<T: Copy + Default>(len: usize, pattern: &[T]) -> Box<[T]> {
    let mut pattern = pattern.iter().copied().cycle();
    (0..len).map(|_| pattern.next().unwrap_or_default()).collect()
}

/// A finite float of the bits, as the contract of the kernels asks for.
pub fn finite(bits: u32) -> f32 {
    let x = f32::from_bits(bits);
    if x.is_finite() { x } else { 1.0 }
}

/// A scale: positive and finite, between 2^-30 and 2^30.
pub fn scale(bits: u32) -> f32 {
    let x = f32::from_bits(bits & 0x7fff_ffff);
    if x.is_finite() { x.clamp(2f32.powi(-30), 2f32.powi(30)) } else { 1.0 }
}

/// Runs `work` on every instruction set of the machine: all must give what the scalar one gives.
pub fn on_all<R: PartialEq + std::fmt::Debug>(work: impl Fn(Isa) -> R) {
    let expected = work(Isa::Scalar);
    for isa in Isa::available().skip(1) {
        let found = work(isa);
        assert!(found == expected, "{} differs from scalar:\n{found:?}\n{expected:?}", isa.name());
    }
}
