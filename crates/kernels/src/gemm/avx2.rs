//! AVX2 with and without the VEX-coded `vpdpbusd`: a strip is two registers of 8 lanes.

use std::arch::x86_64::*;

use super::vector::{Limits, STRIP, Task, Vector};
use crate::Isa;

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// The same, for panels that are [sorted](super::panels::Panels::sort): on small groups `vpmaddubsw` does not saturate, and takes
/// fewer instructions.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Sorted(());

/// Proof that the machine has AVX2, FMA and AVX-VNNI.
#[derive(Clone, Copy)]
pub(crate) struct AvxVnni(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        Isa::Avx2.is_available().then_some(Self(()))
    }

    /// The instructions for sorted panels.
    pub fn sorted(self) -> Avx2Sorted {
        Avx2Sorted(())
    }
}

impl AvxVnni {
    pub fn new() -> Option<Self> {
        Isa::AvxVnni.is_available().then_some(Self(()))
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(vector: Avx2, work: impl Task) {
    work.run(vector);
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn with_avx2_sorted(vector: Avx2Sorted, work: impl Task) {
    work.run(vector);
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn with_avx_vnni(vector: AvxVnni, work: impl Task) {
    work.run(vector);
}

/// All ones in the lanes `8 * half ..` that are below `valid`.
#[inline(always)]
fn mask(valid: usize, half: usize) -> __m256i {
    // SAFETY: only called by methods of a proof of AVX2.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(valid as i32 - 8 * half as i32), lanes)
    }
}

/// The requantized bytes of two vectors of 16, one after the other.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn bytes_of(a: [__m256; 2], b: [__m256; 2], limits: &Limits) -> __m256i {
    // SAFETY: by the contract. Conversion turns what is below an i32 into its least value, and packing saturates: only the
    // upper bound has to be enforced before. `min_ps` returns its second operand where one is NaN, which becomes the least
    // value too.
    unsafe {
        let high = _mm256_set1_ps(limits.high());
        let zero = _mm256_set1_epi16(i16::from(limits.zero_point));
        macro_rules! words {
            ($x:ident) => {{
                let low_half = _mm256_cvtps_epi32(_mm256_min_ps(high, $x[0]));
                let high_half = _mm256_cvtps_epi32(_mm256_min_ps(high, $x[1]));
                _mm256_adds_epi16(_mm256_packs_epi32(low_half, high_half), zero)
            }};
        }
        // Packing interleaves the 128-bit halves.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words!(a), words!(b)), order);
        let bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8(limits.min as i8));
        _mm256_min_epu8(bytes, _mm256_set1_epi8(limits.max as i8))
    }
}

// SAFETY, throughout: a value of each type exists only where the machine has the instructions; masked loads and stores
// touch only the lanes of the mask.
macro_rules! both_halves {
    ($x:ident => $call:expr) => {{
        // No closure: it would be compiled without the instruction set.
        let first = {
            let $x: usize = 0;
            unsafe { $call }
        };
        let second = {
            let $x: usize = 1;
            unsafe { $call }
        };
        [first, second]
    }};
}

macro_rules! vector {
    ($type:ty, $wide:ident, $with_features:ident, $($dot:tt)*) => {
        impl Vector for $type {
            // Of 16 registers, 12 accumulate; the others hold weights and activations.
            const ACCUMULATORS: usize = 6;
            const ROWS: usize = 6;
            const STRIPS: usize = 6;
            type I32 = [__m256i; 2];
            type F32 = [__m256; 2];

            type Wide = $wide;

            #[inline(always)]
            fn wide(self) -> $wide {
                $wide(())
            }

            fn run(self, work: impl Task) {
                // SAFETY: the machine has the instructions.
                unsafe { $with_features(self, work) }
            }

            $($dot)*

            #[inline(always)]
            fn splat(self, x: i32) -> [__m256i; 2] {
                both_halves!(_half => _mm256_set1_epi32(x))
            }

            #[inline(always)]
            unsafe fn load(self, from: *const i32, valid: usize) -> [__m256i; 2] {
                both_halves!(half => _mm256_maskload_epi32(from.wrapping_add(8 * half), mask(valid, half)))
            }

            #[inline(always)]
            unsafe fn store(self, x: [__m256i; 2], to: *mut i32, valid: usize) {
                both_halves!(half => _mm256_maskstore_epi32(to.wrapping_add(8 * half), mask(valid, half), x[half]));
            }

            #[inline(always)]
            unsafe fn load_bytes(self, from: *const u8, valid: usize) -> [__m256i; 2] {
                let mut bytes = [0u8; 16];
                // SAFETY: only `valid` bytes are read.
                unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), valid.min(16)) };
                both_halves!(half => _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().add(8 * half).cast())))
            }

            #[inline(always)]
            unsafe fn store_bytes(self, x: [__m256i; 2], to: *mut u8, valid: usize) {
                // SAFETY: only `valid` bytes are written.
                unsafe {
                    // The lanes are 0 to 255, so packing does not saturate; it interleaves the 128-bit halves.
                    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(x[0], x[1]));
                    let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    let packed = _mm_packus_epi16(low, high);
                    if valid >= 16 {
                        _mm_storeu_si128(to.cast(), packed);
                    } else {
                        let mut bytes = [0u8; 16];
                        _mm_storeu_si128(bytes.as_mut_ptr().cast(), packed);
                        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, valid);
                    }
                }
            }

            #[inline(always)]
            fn add(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                both_halves!(half => _mm256_add_epi32(a[half], b[half]))
            }

            #[inline(always)]
            fn mul(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
                both_halves!(half => _mm256_mullo_epi32(a[half], b[half]))
            }

            #[inline(always)]
            fn splat_f32(self, x: f32) -> [__m256; 2] {
                both_halves!(_half => _mm256_set1_ps(x))
            }

            #[inline(always)]
            unsafe fn load_f32(self, from: *const f32, valid: usize) -> [__m256; 2] {
                both_halves!(half => _mm256_maskload_ps(from.wrapping_add(8 * half), mask(valid, half)))
            }

            #[inline(always)]
            unsafe fn store_f32(self, x: [__m256; 2], to: *mut f32, valid: usize) {
                both_halves!(half => _mm256_maskstore_ps(to.wrapping_add(8 * half), mask(valid, half), x[half]));
            }

            #[inline(always)]
            fn to_f32(self, x: [__m256i; 2]) -> [__m256; 2] {
                both_halves!(half => _mm256_cvtepi32_ps(x[half]))
            }

            #[inline(always)]
            unsafe fn load_i8(self, from: *const i8) -> [__m256; 2] {
                // Eight bytes a half.
                both_halves!(half => {
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8 * half).cast())))
                })
            }

            #[inline(always)]
            unsafe fn load_nibbles(self, from: *const u8) -> [[__m256; 2]; 2] {
                // SAFETY: the caller's 16 bytes.
                let [low, high] = unsafe {
                    let (bytes, mask) = (_mm_loadu_si128(from.cast()), _mm_set1_epi8(15));
                    [_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask)]
                };
                // SAFETY: the machine has the instructions.
                unsafe {
                    let low_end = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(low)));
                    let high_end = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(high)));
                    [
                        [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)), low_end],
                        [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high)), high_end],
                    ]
                }
            }

            #[inline(always)]
            unsafe fn load_bf16(self, from: *const u16) -> [__m256; 2] {
                // Eight numbers a half.
                both_halves!(half => {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8 * half).cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                })
            }

            #[inline(always)]
            fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
                both_halves!(half => _mm256_fmadd_ps(a[half], b[half], c[half]))
            }

            #[inline(always)]
            fn max_f32(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                both_halves!(half => _mm256_max_ps(a[half], b[half]))
            }

            #[inline(always)]
            fn min_f32(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                both_halves!(half => _mm256_min_ps(a[half], b[half]))
            }

            #[inline(always)]
            fn round(self, x: [__m256; 2]) -> [__m256i; 2] {
                both_halves!(half => _mm256_cvtps_epi32(x[half]))
            }

            #[inline(always)]
            unsafe fn store_requantized<const RUN: usize>(
                self,
                x: [[__m256; 2]; 4],
                limits: &Limits,
                to: [*mut u8; 4],
                runs: usize,
            ) {
                // SAFETY: the machine has the instructions; the caller's runs.
                unsafe {
                    let stored = |i: usize| i / RUN < runs;
                    let place = |i: usize| to[i / RUN].add(STRIP * (i % RUN)).cast();
                    let first = bytes_of(x[0], x[1], limits);
                    _mm_storeu_si128(place(0), _mm256_castsi256_si128(first));
                    if stored(1) {
                        _mm_storeu_si128(place(1), _mm256_extracti128_si256::<1>(first));
                    }
                    if stored(2) {
                        let second = bytes_of(x[2], x[3], limits);
                        _mm_storeu_si128(place(2), _mm256_castsi256_si128(second));
                        if stored(3) {
                            _mm_storeu_si128(place(3), _mm256_extracti128_si256::<1>(second));
                        }
                    }
                }
            }
        }
    };
}

/// For instructions that take bytes.
macro_rules! vector_of_bytes {
    ($type:ty, $wide:ident, $with_features:ident, $($dot:tt)*) => {
        vector! {
            $type, $wide, $with_features,
            type Activations = __m256i;
            type Weights = [__m256i; 2];

            #[inline(always)]
            unsafe fn activations(self, from: *const u8) -> __m256i {
                // SAFETY: the caller's four bytes.
                unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
            }

            #[inline(always)]
            unsafe fn weights(self, from: *const i8) -> [__m256i; 2] {
                both_halves!(half => _mm256_loadu_si256(from.add(32 * half).cast()))
            }

            $($dot)*
        }
    };
}

vector_of_bytes! {
    AvxVnni, AvxVnni, with_avx_vnni,
    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], a: __m256i, w: [__m256i; 2]) -> [__m256i; 2] {
        both_halves!(half => _mm256_dpbusd_avx_epi32(sum[half], a, w[half]))
    }
}

vector! {
    Avx2, Avx2, with_avx2,
    // Products of bytes do not fit `vpmaddubsw`'s saturating sums, so even and odd bytes are widened to i16 apart:
    // `vpmaddwd` is exact on them.
    type Activations = [__m256i; 2];
    type Weights = [[__m256i; 2]; 2];

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's four bytes.
        unsafe {
            let bytes = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            [_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(bytes)]
        }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> [[__m256i; 2]; 2] {
        both_halves!(half => {
            let bytes = _mm256_loadu_si256(from.add(32 * half).cast());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)]
        })
    }

    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], a: [__m256i; 2], w: [[__m256i; 2]; 2]) -> [__m256i; 2] {
        both_halves!(half => {
            let even = _mm256_add_epi32(sum[half], _mm256_madd_epi16(a[0], w[half][0]));
            _mm256_add_epi32(even, _mm256_madd_epi16(a[1], w[half][1]))
        })
    }
}

vector_of_bytes! {
    Avx2Sorted, Avx2, with_avx2_sorted,
    const SORTED: bool = true;
    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], a: __m256i, w: [__m256i; 2]) -> [__m256i; 2] {
        both_halves!(half => {
            let pairs = _mm256_maddubs_epi16(a, w[half]);
            _mm256_add_epi32(sum[half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
}
