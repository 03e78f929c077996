//! The peak of a core: how fast it issues the dot product instruction of the path in use, with no memory access.
#![allow(unsafe_code)]

use std::time::Instant;

use jitquant::kernel::Isa;

/// Giga-operations a second of one core: the best of several tries.
pub fn gops() -> f64 {
    #[cfg(target_arch = "x86_64")]
    let (round, operations): (fn(u32), f64) = match Isa::current() {
        // 4 tiles of sums; 16 rows by 16 channels by 64 columns of products and as many additions an instruction.
        Isa::Amx => (|n| unsafe { tiles(n) }, 4.0 * 32768.0),
        // 10 accumulators; 64 or 32 products and as many additions an instruction.
        Isa::Avx512Vnni => (|n| unsafe { zmm(n) }, 10.0 * 128.0),
        Isa::AvxVnni => (|n| unsafe { ymm(n) }, 10.0 * 64.0),
        // Without VNNI the exact way is vpmaddwd, 16 products, and an addition.
        Isa::Avx2 => (|n| unsafe { madd(n) }, 6.0 * 32.0),
        _ => return f64::NAN,
    };
    #[cfg(not(target_arch = "x86_64"))]
    return f64::NAN;
    #[cfg(target_arch = "x86_64")]
    {
        const ROUNDS: u32 = 400_000;
        let try_once = |_| {
            let begin = Instant::now();
            round(ROUNDS);
            begin.elapsed().as_secs_f64()
        };
        let best = (0..20).map(try_once).fold(f64::INFINITY, f64::min);
        operations * f64::from(ROUNDS) / best / 1e9
    }
}

/// Ten independent instructions a round, in assembly: nothing for the compiler to move or leave out.
macro_rules! ten {
    ($name:ident, $feature:literal, $instruction:literal, $register:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $feature)]
        unsafe fn $name(rounds: u32) {
            // SAFETY: the instructions work on registers alone, all of which are declared.
            unsafe {
                std::arch::asm!(
                    "2:",
                    concat!($instruction, " {a0}, {x}, {y}"), concat!($instruction, " {a1}, {x}, {y}"),
                    concat!($instruction, " {a2}, {x}, {y}"), concat!($instruction, " {a3}, {x}, {y}"),
                    concat!($instruction, " {a4}, {x}, {y}"), concat!($instruction, " {a5}, {x}, {y}"),
                    concat!($instruction, " {a6}, {x}, {y}"), concat!($instruction, " {a7}, {x}, {y}"),
                    concat!($instruction, " {a8}, {x}, {y}"), concat!($instruction, " {a9}, {x}, {y}"),
                    "dec {n:e}",
                    "jnz 2b",
                    n = inout(reg) rounds => _,
                    a0 = out($register) _, a1 = out($register) _, a2 = out($register) _, a3 = out($register) _,
                    a4 = out($register) _, a5 = out($register) _, a6 = out($register) _, a7 = out($register) _,
                    a8 = out($register) _, a9 = out($register) _, x = out($register) _, y = out($register) _,
                    options(nomem, nostack),
                );
            }
        }
    };
}

ten!(zmm, "avx512f,avx512vnni", "vpdpbusd", zmm_reg);
ten!(ymm, "avx2,avxvnni", "{{vex}} vpdpbusd", ymm_reg);

/// Four products of full tiles a round.
#[cfg(target_arch = "x86_64")]
unsafe fn tiles(rounds: u32) {
    #[repr(C, align(64))]
    struct Config {
        palette: [u8; 16],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    let mut config = Config { palette: [0; 16], row_bytes: [0; 16], rows: [0; 16] };
    config.palette[0] = 1;
    config.row_bytes[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: as above; `Isa::current` says that the machine has AMX.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            "2:",
            "tdpbusd tmm0, tmm4, tmm6", "tdpbusd tmm2, tmm4, tmm7", "tdpbusd tmm1, tmm5, tmm6", "tdpbusd tmm3, tmm5, tmm7",
            "dec {n:e}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const config, n = inout(reg) rounds => _, options(readonly, nostack),
        );
    }
}

/// Six products and additions a round.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn madd(rounds: u32) {
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpmaddwd {t0}, {x}, {y}", "vpaddd {a0}, {a0}, {t0}", "vpmaddwd {t1}, {x}, {y}", "vpaddd {a1}, {a1}, {t1}",
            "vpmaddwd {t2}, {x}, {y}", "vpaddd {a2}, {a2}, {t2}", "vpmaddwd {t3}, {x}, {y}", "vpaddd {a3}, {a3}, {t3}",
            "vpmaddwd {t4}, {x}, {y}", "vpaddd {a4}, {a4}, {t4}", "vpmaddwd {t5}, {x}, {y}", "vpaddd {a5}, {a5}, {t5}",
            "dec {n:e}",
            "jnz 2b",
            n = inout(reg) rounds => _,
            a0 = out(ymm_reg) _, a1 = out(ymm_reg) _, a2 = out(ymm_reg) _, a3 = out(ymm_reg) _, a4 = out(ymm_reg) _,
            a5 = out(ymm_reg) _, t0 = out(ymm_reg) _, t1 = out(ymm_reg) _, t2 = out(ymm_reg) _, t3 = out(ymm_reg) _,
            t4 = out(ymm_reg) _, t5 = out(ymm_reg) _, x = out(ymm_reg) _, y = out(ymm_reg) _,
            options(nomem, nostack),
        );
    }
}
