//! AVX-512 with VNNI: 16 lanes, `vpdpbusd` on 512 bits.

use std::arch::x86_64::*;

use super::vector::{Limits, Task, Vector};
use crate::Isa;

/// Proof that the machine has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(());

impl Avx512Vnni {
    pub fn new() -> Option<Self> {
        Isa::Avx512Vnni.is_available().then_some(Self(()))
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn with_features(vector: Avx512Vnni, work: impl Task) {
    work.run(vector);
}

/// The mask of the first `valid` lanes.
#[inline(always)]
fn first(valid: usize) -> __mmask16 {
    if valid >= 16 { !0 } else { (1 << valid) - 1 }
}

// SAFETY, throughout: a value of the type exists only where the machine has the instructions; masked loads and stores
// touch only the lanes of the mask.
impl Vector for Avx512Vnni {
    // 24 accumulators leave room for 4 weights, the activations and the epilogue's constants in 32 registers.
    const ACCUMULATORS: usize = 24;
    const ROWS: usize = 12;
    const STRIPS: usize = 4;
    type I32 = __m512i;
    type F32 = __m512;
    type Activations = __m512i;
    type Weights = __m512i;

    type Wide = Self;

    #[inline(always)]
    fn wide(self) -> Self {
        self
    }

    fn run(self, work: impl Task) {
        // SAFETY: as above.
        unsafe { with_features(self, work) }
    }

    #[inline(always)]
    unsafe fn activations(self, from: *const u8) -> __m512i {
        // SAFETY: as above; the caller's four bytes.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> __m512i {
        // SAFETY: as above; the caller's 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, a: __m512i, w: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(sum, a, w) }
    }

    #[inline(always)]
    fn splat(self, x: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const i32, valid: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_epi32(first(valid), from) }
    }

    #[inline(always)]
    unsafe fn store(self, x: __m512i, to: *mut i32, valid: usize) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_epi32(to, first(valid), x) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8, valid: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(valid), from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, x: __m512i, to: *mut u8, valid: usize) {
        // SAFETY: as above.
        unsafe { _mm_mask_storeu_epi8(to.cast(), first(valid), _mm512_cvtepi32_epi8(x)) }
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32, valid: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_ps(first(valid), from) }
    }

    #[inline(always)]
    unsafe fn store_f32(self, x: __m512, to: *mut f32, valid: usize) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, first(valid), x) }
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        // SAFETY: as above; the caller's 16 bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8) -> [__m512; 2] {
        // SAFETY: as above; the caller's 16 bytes.
        unsafe {
            let (bytes, mask) = (_mm_loadu_si128(from.cast()), _mm_set1_epi8(15));
            let [low, high] = [_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask)];
            [_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(low)), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(high))]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        // SAFETY: as above; the caller's 16 numbers.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max_f32(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min_f32(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_cvtps_epi32(x) }
    }

    #[inline(always)]
    unsafe fn store_requantized<const RUN: usize>(
        self,
        x: [__m512; 4],
        limits: &Limits,
        to: [*mut u8; 4],
        runs: usize,
    ) {
        // SAFETY: as above; the caller's runs.
        unsafe {
            // Conversion turns what is below an i32 into its least value, and packing saturates: only the upper bound has to
            // be enforced before. `min_ps` returns its second operand where one is NaN, which becomes the least value too.
            let high = _mm512_set1_ps(limits.high());
            macro_rules! round {
                ($i:literal) => {
                    _mm512_cvtps_epi32(_mm512_min_ps(high, x[$i]))
                };
            }
            let zero = _mm512_set1_epi16(i16::from(limits.zero_point));
            let first = _mm512_adds_epi16(_mm512_packs_epi32(round!(0), round!(1)), zero);
            let second = _mm512_adds_epi16(_mm512_packs_epi32(round!(2), round!(3)), zero);
            // Of each vector's four 128-bit parts, the bytes of one lie in each part of the packed ones.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
            let bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(limits.min as i8));
            let bytes = _mm512_min_epu8(bytes, _mm512_set1_epi8(limits.max as i8));
            match RUN {
                4 => _mm512_storeu_si512(to[0].cast(), bytes),
                2 => {
                    _mm256_storeu_si256(to[0].cast(), _mm512_castsi512_si256(bytes));
                    if runs > 1 {
                        _mm256_storeu_si256(to[1].cast(), _mm512_extracti64x4_epi64::<1>(bytes));
                    }
                }
                _ => {
                    _mm_storeu_si128(to[0].cast(), _mm512_castsi512_si128(bytes));
                    if runs > 1 {
                        _mm_storeu_si128(to[1].cast(), _mm512_extracti32x4_epi32::<1>(bytes));
                    }
                    if runs > 2 {
                        _mm_storeu_si128(to[2].cast(), _mm512_extracti32x4_epi32::<2>(bytes));
                    }
                    if runs > 3 {
                        _mm_storeu_si128(to[3].cast(), _mm512_extracti32x4_epi32::<3>(bytes));
                    }
                }
            }
        }
    }
}
