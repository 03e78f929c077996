//! One text of a loop, compiled once for each instruction set, chosen at run time.
//!
//! Loops such as the observers' are plain Rust over slices that LLVM vectorizes: integer reductions, element-wise arithmetic,
//! sums in a fixed number of lanes. None of it may be reordered by the compiler, so every instance gives the same
//! bits; the instances only differ in the width of their registers. On AArch64, NEON is part of the base line and
//! needs no instance of its own.
/// Declares `fn name(isa, args…)`, which runs the `#[inline(always)]` function `body` compiled for `isa`.
///
/// An `isa` that this machine lacks runs the base-line instance.
#[macro_export]
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::Isa;

                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }

                match isa {
                    // SAFETY: `is_available` has just found AVX2 and FMA on this machine.
                    Isa::Avx2 | Isa::AvxVnni if isa.is_available() => return unsafe { avx2($($arg),*) },
                    // SAFETY: `is_available` has just found AVX-512 F, BW, DQ and VL on this machine.
                    Isa::Avx512Vnni | Isa::Amx if isa.is_available() => return unsafe { avx512($($arg),*) },
                    _ => {}
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}
