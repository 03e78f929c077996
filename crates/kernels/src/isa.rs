//! Which instruction set the kernels use: detected once at run time, `JITQUANT_ISA` overrides it.

use std::sync::OnceLock;

/// An instruction-set path of the kernels. Every path gives the bits of [`Isa::Scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: the specification, and the fallback on any machine.
    Scalar,
    /// x86-64 with AVX2 and FMA, no 8-bit dot product.
    Avx2,
    /// x86-64 with AVX2 and the VEX-coded `vpdpbusd` (256 bits).
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI (512 bits).
    Avx512Vnni,
    /// The same, and x86-64's tile registers with 8-bit products (Intel Xeon since Sapphire Rapids), on Linux.
    Amx,
    /// AArch64 with the `sdot` instruction.
    NeonDotprod,
    /// AArch64 with `usdot` as well, which comes with the matrix instructions.
    NeonI8mm,
}

impl Isa {
    /// Every path, slowest first.
    pub const ALL: [Isa; 7] =
        [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni, Isa::Amx, Isa::NeonDotprod, Isa::NeonI8mm];

    /// The name that `JITQUANT_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Amx => "amx",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// Whether this machine can run the path. Miri interprets plain Rust: there it is only the scalar one.
    pub fn is_available(self) -> bool {
        if cfg!(miri) {
            return self == Isa::Scalar;
        }
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => Isa::Avx512Vnni.is_available() && amx_is_permitted(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Isa::NeonDotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The paths that this machine has, slowest first; never empty.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The path in use: the fastest available one, or the one that `JITQUANT_ISA` names.
    ///
    /// The choice is made on the first call and kept. A name that is unknown, or not available on this machine,
    /// is reported through `tracing` and ignored.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let best = Self::available().last().unwrap_or(Isa::Scalar);
            let Ok(wanted) = std::env::var("JITQUANT_ISA") else { return best };
            match Self::available().find(|isa| isa.name() == wanted) {
                Some(isa) => isa,
                None => {
                    let names: Vec<_> = Self::available().map(Isa::name).collect();
                    tracing::warn!("JITQUANT_ISA={wanted} ignored: this machine has {}", names.join(", "));
                    best
                }
            }
        })
    }
}

/// Whether the machine has AMX with 8-bit products and Linux lets this process use it, which has to be asked for once: the
/// registers' 8 KB are a part of every thread's context from then on.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code)]
fn amx_is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        use std::arch::x86_64::{__cpuid, __cpuid_count};

        // CPUID leaf 7: AMX-TILE and AMX-INT8 are bits 24 and 25 of EDX.
        let has_amx = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 24 & 3 == 3;
        // SAFETY: the call has no memory operands; a kernel that does not know it refuses.
        has_amx && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_everywhere_and_the_current_path_can_run() {
        assert_eq!(Isa::available().next(), Some(Isa::Scalar));
        assert!(Isa::current().is_available());
    }
}
