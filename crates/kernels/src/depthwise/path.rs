//! The instruction sets that the direct convolutions are compiled for.

#![allow(unsafe_code)]

use super::schedule::{RowKernel, rows};
use crate::Isa;

/// One instruction set's registers and kernels.
pub(crate) struct Path {
    /// Bytes of its registers, and the kernels for each.
    pub widths: &'static [Width],
    /// Weights are i16 rather than i8.
    pub widened: bool,
}

/// The width of a register in bytes, and what chooses its kernel for a number of kernel columns and of quads.
type Width = (usize, fn(usize, usize) -> RowKernel);

impl Path {
    /// The path of `isa`, or none for the scalar one and for instruction sets without vector kernels.
    pub fn of(isa: Isa) -> Option<&'static Path> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&x86::AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(&x86::AVX_VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Amx => Some(&x86::AVX512_VNNI),
            _ => None,
        }
    }
}

/// Declares a function that chooses a kernel of one register width: 3x3 and 5x5 windows are unrolled.
#[cfg(target_arch = "x86_64")]
macro_rules! row_kernels {
    ($name:ident, $vector:ty, $features:literal) => {
        fn $name(taps: usize, quads: usize) -> RowKernel {
            #[target_feature(enable = $features)]
            unsafe fn kernel<const TAPS: usize, const QUADS: usize>(
                job: &Job<'_>,
                args: &BlockArgs<'_>,
                at: [usize; 2],
                range: Range<usize>,
            ) {
                // SAFETY: by the contract of the kernel; its features are the vector's.
                unsafe { rows::<$vector, TAPS, QUADS>(job, args, at, range) }
            }
            match (taps, quads) {
                (3, 1) => kernel::<3, 1>,
                (5, 2) => kernel::<5, 2>,
                _ => kernel::<0, 0>,
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::ops::Range;

    use super::super::avx2::{Vnni, Widening, Ymm};
    use super::super::avx512::{VnniMasked, Zmm};
    use super::super::schedule::{BlockArgs, Job};
    use super::*;

    row_kernels!(avx2, Ymm<Widening>, "avx2,fma");
    row_kernels!(avx_vnni, Ymm<Vnni>, "avx2,fma,avxvnni");
    row_kernels!(avx512_half, Ymm<VnniMasked>, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
    row_kernels!(avx512, Zmm, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

    pub(super) static AVX2: Path = Path { widths: &[(32, avx2)], widened: true };
    pub(super) static AVX_VNNI: Path = Path { widths: &[(32, avx_vnni)], widened: false };
    pub(super) static AVX512_VNNI: Path = Path { widths: &[(64, avx512), (32, avx512_half)], widened: false };
}
