//! The element-wise kernels: every ISA gives the bits of the scalar path, the scalar path follows its formula, and
//! libtorch's results are met (elementwise/golden.json, written by golden.py).

mod golden;
mod ops;
mod quantize;

use std::fmt::Debug;

use jitquant::kernel::Isa;

/// Runs `f` on every ISA of this machine and returns the result, which must not depend on it.
fn on_all_isas<R: PartialEq + Debug>(f: impl Fn(Isa) -> R) -> R {
    let expected = f(Isa::Scalar);
    for isa in Isa::available() {
        let result = f(isa);
        assert!(result == expected, "{} differs from scalar\n{result:?}\n{expected:?}", isa.name());
    }
    expected
}

/// The largest distance between two u8 tensors.
fn steps_apart(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}
