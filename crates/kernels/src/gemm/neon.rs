//! NEON with the dot products of bytes: a strip is four registers of 4 lanes.
//!
//! The dot product instructions are written in assembly, since their intrinsics are not stable yet.

use std::arch::aarch64::*;
use std::arch::asm;

use super::vector::{Task, Vector};
use crate::Isa;

/// Proof that the machine has `sdot`.
#[derive(Clone, Copy)]
pub(crate) struct NeonDotprod(());

/// Proof that the machine has `usdot`, which comes with `i8mm`.
#[derive(Clone, Copy)]
pub(crate) struct NeonI8mm(());

impl NeonDotprod {
    pub fn new() -> Option<Self> {
        Isa::NeonDotprod.is_available().then_some(Self(()))
    }
}

impl NeonI8mm {
    pub fn new() -> Option<Self> {
        Isa::NeonI8mm.is_available().then_some(Self(()))
    }
}

#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
fn with_dotprod(vector: NeonDotprod, work: impl Task) {
    work.run(vector);
}

#[inline(never)]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn with_i8mm(vector: NeonI8mm, work: impl Task) {
    work.run(vector);
}

/// The four registers of a strip, register `$q` by `$call`. No closure: it would be compiled without the instruction set.
macro_rules! quarters {
    ($q:ident => $call:expr) => {
        [quarters!(@ $q 0 $call), quarters!(@ $q 1 $call), quarters!(@ $q 2 $call), quarters!(@ $q 3 $call)]
    };
    (@ $q:ident $index:literal $call:expr) => {{
        let $q: usize = $index;
        // SAFETY: NEON belongs to every AArch64 machine; addresses are the caller's.
        #[allow(unused_unsafe)]
        unsafe { $call }
    }};
}

/// The first `valid` of 16 elements in memory, zero after them.
///
/// # Safety
/// `valid` elements are readable.
#[inline(always)]
unsafe fn some<T: Copy + Default>(from: *const T, valid: usize) -> [T; 16] {
    let mut elements = [T::default(); 16];
    // SAFETY: by the contract.
    unsafe { std::ptr::copy_nonoverlapping(from, elements.as_mut_ptr(), valid.min(16)) };
    elements
}

macro_rules! vector {
    ($type:ty, $with_features:ident, $($dot:tt)*) => {
        impl Vector for $type {
            // Of 32 registers, 24 accumulate; the others hold weights and activations.
            const ACCUMULATORS: usize = 6;
            const ROWS: usize = 6;
            const STRIPS: usize = 2;
            type I32 = [int32x4_t; 4];
            type F32 = [float32x4_t; 4];
            type Weights = [int8x16_t; 4];

            type Wide = Self;

            #[inline(always)]
            fn wide(self) -> Self {
                self
            }

            fn run(self, work: impl Task) {
                // SAFETY: the machine has the instructions.
                unsafe { $with_features(self, work) }
            }

            $($dot)*

            #[inline(always)]
            unsafe fn weights(self, from: *const i8) -> [int8x16_t; 4] {
                quarters!(q => vld1q_s8(from.add(16 * q)))
            }

            #[inline(always)]
            fn splat(self, x: i32) -> [int32x4_t; 4] {
                quarters!(_q => vdupq_n_s32(x))
            }

            #[inline(always)]
            unsafe fn load(self, from: *const i32, valid: usize) -> [int32x4_t; 4] {
                if valid >= 16 {
                    return quarters!(q => vld1q_s32(from.add(4 * q)));
                }
                // SAFETY: the caller's `valid` elements.
                let elements = unsafe { some(from, valid) };
                quarters!(q => vld1q_s32(elements.as_ptr().add(4 * q)))
            }

            #[inline(always)]
            unsafe fn store(self, x: [int32x4_t; 4], to: *mut i32, valid: usize) {
                if valid >= 16 {
                    quarters!(q => vst1q_s32(to.add(4 * q), x[q]));
                    return;
                }
                let mut elements = [0i32; 16];
                quarters!(q => vst1q_s32(elements.as_mut_ptr().add(4 * q), x[q]));
                // SAFETY: the caller's `valid` elements.
                unsafe { std::ptr::copy_nonoverlapping(elements.as_ptr(), to, valid) };
            }

            #[inline(always)]
            unsafe fn load_bytes(self, from: *const u8, valid: usize) -> [int32x4_t; 4] {
                // SAFETY: the caller's `valid` elements.
                let elements = unsafe { some(from, valid) }.map(i32::from);
                quarters!(q => vld1q_s32(elements.as_ptr().add(4 * q)))
            }

            #[inline(always)]
            unsafe fn store_bytes(self, x: [int32x4_t; 4], to: *mut u8, valid: usize) {
                // SAFETY: NEON; the caller's `valid` elements.
                unsafe {
                    // The even half-words of two registers are the low halves of their words; the same for bytes.
                    let low = vuzp1q_u16(vreinterpretq_u16_s32(x[0]), vreinterpretq_u16_s32(x[1]));
                    let high = vuzp1q_u16(vreinterpretq_u16_s32(x[2]), vreinterpretq_u16_s32(x[3]));
                    let bytes = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
                    if valid >= 16 {
                        vst1q_u8(to, bytes);
                    } else {
                        let mut elements = [0u8; 16];
                        vst1q_u8(elements.as_mut_ptr(), bytes);
                        std::ptr::copy_nonoverlapping(elements.as_ptr(), to, valid);
                    }
                }
            }

            #[inline(always)]
            fn add(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
                quarters!(q => vaddq_s32(a[q], b[q]))
            }

            #[inline(always)]
            fn mul(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
                quarters!(q => vmulq_s32(a[q], b[q]))
            }

            #[inline(always)]
            fn splat_f32(self, x: f32) -> [float32x4_t; 4] {
                quarters!(_q => vdupq_n_f32(x))
            }

            #[inline(always)]
            unsafe fn load_f32(self, from: *const f32, valid: usize) -> [float32x4_t; 4] {
                if valid >= 16 {
                    return quarters!(q => vld1q_f32(from.add(4 * q)));
                }
                // SAFETY: the caller's `valid` elements.
                let elements = unsafe { some(from, valid) };
                quarters!(q => vld1q_f32(elements.as_ptr().add(4 * q)))
            }

            #[inline(always)]
            unsafe fn store_f32(self, x: [float32x4_t; 4], to: *mut f32, valid: usize) {
                // SAFETY: a float and an integer are both four bytes.
                unsafe { self.store(quarters!(q => vreinterpretq_s32_f32(x[q])), to.cast(), valid) };
            }

            #[inline(always)]
            fn to_f32(self, x: [int32x4_t; 4]) -> [float32x4_t; 4] {
                quarters!(q => vcvtq_f32_s32(x[q]))
            }

            #[inline(always)]
            fn mul_add(self, a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
                quarters!(q => vfmaq_f32(c[q], a[q], b[q]))
            }

            // The `nm` forms return the number where one operand is NaN, as `f32::max` does.
            #[inline(always)]
            fn max_f32(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
                quarters!(q => vmaxnmq_f32(a[q], b[q]))
            }

            #[inline(always)]
            fn min_f32(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
                quarters!(q => vminnmq_f32(a[q], b[q]))
            }

            #[inline(always)]
            fn round(self, x: [float32x4_t; 4]) -> [int32x4_t; 4] {
                quarters!(q => vcvtnq_s32_f32(x[q]))
            }
        }
    };
}

/// A dot product instruction on one register of a strip.
macro_rules! dot {
    ($name:literal, $extension:literal, $sum:expr, $a:expr, $w:expr) => {{
        let mut sum: int32x4_t = $sum;
        asm!(
            concat!(".arch_extension ", $extension),
            concat!($name, " {sum:v}.4s, {a:v}.16b, {w:v}.16b"),
            sum = inout(vreg) sum,
            a = in(vreg) $a,
            w = in(vreg) $w,
            options(pure, nomem, nostack, preserves_flags),
        );
        sum
    }};
}

vector! {
    NeonDotprod, with_dotprod,
    // `sdot` takes two signed operands: 128 is subtracted from the activations, and `accumulate` makes up for it.
    const OFFSET: i32 = 128;
    type Activations = int8x16_t;

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> int8x16_t {
        // SAFETY: NEON; the caller's four bytes.
        unsafe {
            let word = vdupq_n_u32(from.cast::<u32>().read_unaligned());
            vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(word), vdupq_n_u8(0x80)))
        }
    }

    #[inline(always)]
    fn dot(self, sum: [int32x4_t; 4], a: int8x16_t, w: [int8x16_t; 4]) -> [int32x4_t; 4] {
        // The value proves that the machine has the instruction.
        quarters!(q => dot!("sdot", "dotprod", sum[q], a, w[q]))
    }
}

vector! {
    NeonI8mm, with_i8mm,
    type Activations = uint8x16_t;

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> uint8x16_t {
        // SAFETY: NEON; the caller's four bytes.
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(from.cast::<u32>().read_unaligned())) }
    }

    #[inline(always)]
    fn dot(self, sum: [int32x4_t; 4], a: uint8x16_t, w: [int8x16_t; 4]) -> [int32x4_t; 4] {
        // The value proves that the machine has the instruction.
        quarters!(q => dot!("usdot", "i8mm", sum[q], a, w[q]))
    }
}
