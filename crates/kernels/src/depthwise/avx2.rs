//! 256-bit registers: the AVX2 path, with the dot product as a parameter so that VNNI only replaces that.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::vector::Vector;

/// A 256-bit register with the dot product of `D`.
#[derive(Clone, Copy)]
pub(crate) struct Ymm<D>(PhantomData<D>);

/// A dot product of four u8 with four i8 in each 32-bit lane, exact.
///
/// # Safety
/// Every method needs AVX2 and the instructions of the implementing type.
pub(crate) trait Dot: Copy {
    const WIDENED: bool;
    type Taps: Copy;
    type Weights: Copy;
    unsafe fn taps(bytes: __m256i) -> Self::Taps;
    unsafe fn weights(from: *const u8) -> Self::Weights;
    unsafe fn dot(sum: __m256i, taps: Self::Taps, weights: Self::Weights) -> __m256i;
    unsafe fn load_first(from: *const u8, count: usize) -> __m256i;
    unsafe fn store_first(to: *mut u8, bytes: __m256i, count: usize);
}

/// Bytes 0 and 2, and bytes 1 and 3, widened to i16 for `vpmaddwd`, whose sums of two products are exact in i32;
/// `vpmaddubsw` would saturate at 32767.
#[derive(Clone, Copy)]
pub(crate) struct Widening;

impl Dot for Widening {
    const WIDENED: bool = true;
    type Taps = [__m256i; 2];
    type Weights = [__m256i; 2];

    #[inline(always)]
    unsafe fn taps(bytes: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller has AVX2.
        unsafe { [_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(bytes)] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller has AVX2 and 64 readable bytes, two registers of i16 (`WIDENED`).
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, taps: [__m256i; 2], weights: [__m256i; 2]) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            let even = _mm256_madd_epi16(taps[0], weights[0]);
            let odd = _mm256_madd_epi16(taps[1], weights[1]);
            _mm256_add_epi32(_mm256_add_epi32(sum, even), odd)
        }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u8, count: usize) -> __m256i {
        // SAFETY: the caller has AVX2 and `count` readable bytes.
        unsafe { load_through_stack(from, count) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut u8, bytes: __m256i, count: usize) {
        // SAFETY: the caller has AVX2 and `count` writable bytes.
        unsafe { store_through_stack(to, bytes, count) }
    }
}

/// The VEX-coded `vpdpbusd`.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Dot for Vnni {
    const WIDENED: bool = false;
    type Taps = __m256i;
    type Weights = __m256i;

    #[inline(always)]
    unsafe fn taps(bytes: __m256i) -> __m256i {
        bytes
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m256i {
        // SAFETY: the caller has AVX2 and 32 readable bytes.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, taps: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the caller has AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sum, taps, weights) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u8, count: usize) -> __m256i {
        // SAFETY: the caller has AVX2 and `count` readable bytes.
        unsafe { load_through_stack(from, count) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut u8, bytes: __m256i, count: usize) {
        // SAFETY: the caller has AVX2 and `count` writable bytes.
        unsafe { store_through_stack(to, bytes, count) }
    }
}

/// AVX2 has no byte masks: fewer bytes than a register go over the stack.
#[inline(always)]
unsafe fn load_through_stack(from: *const u8, count: usize) -> __m256i {
    let mut bytes = [0u8; 32];
    // SAFETY: `count < 32` bytes are readable, and fit the array, which is then read whole.
    unsafe {
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), count);
        _mm256_loadu_si256(bytes.as_ptr().cast())
    }
}

#[inline(always)]
unsafe fn store_through_stack(to: *mut u8, value: __m256i, count: usize) {
    let mut bytes = [0u8; 32];
    // SAFETY: the array holds a register; `count < 32` bytes of it go where the caller can write as many.
    unsafe {
        _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count);
    }
}

// SAFETY of every block below: the trait's contract gives AVX2 and FMA, and pointers good for the access.
impl<D: Dot> Vector for Ymm<D> {
    const BYTES: usize = 32;
    const WIDENED: bool = D::WIDENED;
    type Reg = __m256i;
    type Float = __m256;
    type Taps = D::Taps;
    type Weights = D::Weights;

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m256i {
        // SAFETY: AVX2, see above.
        unsafe { _mm256_set1_epi8(byte as i8) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: 32 readable bytes, see above.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u8, count: usize) -> __m256i {
        // SAFETY: `count` readable bytes, see above.
        unsafe { D::load_first(from, count) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, bytes: __m256i) {
        // SAFETY: 32 writable bytes, see above.
        unsafe { _mm256_storeu_si256(to.cast(), bytes) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut u8, bytes: __m256i, count: usize) {
        // SAFETY: `count` writable bytes, see above.
        unsafe { D::store_first(to, bytes, count) }
    }

    #[inline(always)]
    unsafe fn interleave(rows: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: AVX2, see above.
        unsafe {
            let low = [_mm256_unpacklo_epi8(rows[0], rows[1]), _mm256_unpacklo_epi8(rows[2], rows[3])];
            let high = [_mm256_unpackhi_epi8(rows[0], rows[1]), _mm256_unpackhi_epi8(rows[2], rows[3])];
            [
                _mm256_unpacklo_epi16(low[0], low[1]),
                _mm256_unpackhi_epi16(low[0], low[1]),
                _mm256_unpacklo_epi16(high[0], high[1]),
                _mm256_unpackhi_epi16(high[0], high[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn spread(bytes: __m256i) -> [__m256i; 4] {
        // SAFETY: AVX2, see above.
        unsafe {
            [
                _mm256_shuffle_epi32::<0x00>(bytes),
                _mm256_shuffle_epi32::<0x55>(bytes),
                _mm256_shuffle_epi32::<0xaa>(bytes),
                _mm256_shuffle_epi32::<0xff>(bytes),
            ]
        }
    }

    #[inline(always)]
    unsafe fn swap_lanes(bytes: __m256i) -> __m256i {
        // SAFETY: AVX2, see above.
        unsafe { _mm256_permute4x64_epi64::<0b01_00_11_10>(bytes) }
    }

    #[inline(always)]
    unsafe fn taps(from: *const u8) -> D::Taps {
        // SAFETY: 32 readable bytes, see above.
        unsafe { D::taps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> D::Weights {
        // SAFETY: as many readable bytes as `WIDENED` says, see above.
        unsafe { D::weights(from) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, taps: D::Taps, weights: D::Weights) -> __m256i {
        // SAFETY: the instructions of `D`, see above.
        unsafe { D::dot(sum, taps, weights) }
    }

    #[inline(always)]
    unsafe fn affine(sum: __m256i, scale: *const f32, bias: *const f32) -> __m256 {
        // SAFETY: FMA, and 8 readable elements each, see above.
        unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(scale), _mm256_loadu_ps(bias)) }
    }

    #[inline(always)]
    unsafe fn widen(bytes: __m256i, half: usize) -> [__m256i; 2] {
        // SAFETY: AVX2, see above.
        unsafe {
            let zero = _mm256_setzero_si256();
            let words = match half {
                0 => _mm256_unpacklo_epi8(bytes, zero),
                _ => _mm256_unpackhi_epi8(bytes, zero),
            };
            [_mm256_unpacklo_epi16(words, zero), _mm256_unpackhi_epi16(words, zero)]
        }
    }

    #[inline(always)]
    unsafe fn add_residual(sum: __m256, value: __m256i, zero: i32, scale: f32) -> __m256 {
        // SAFETY: AVX2 and FMA, see above.
        unsafe {
            let difference = _mm256_sub_epi32(value, _mm256_set1_epi32(zero));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(difference), _mm256_set1_ps(scale), sum)
        }
    }

    #[inline(always)]
    unsafe fn clamp(value: __m256, low: f32, high: f32) -> __m256 {
        // A NaN in the first operand gives the second one, which is what f32::max does.
        // SAFETY: AVX, see above.
        unsafe { _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(low)), _mm256_set1_ps(high)) }
    }

    #[inline(always)]
    unsafe fn words(values: [__m256; 2], high: f32, zero: i16) -> __m256i {
        // What is too small for an i32 converts to i32::MIN, which saturates to the right side; what is too large would
        // as well, hence the minimum. It is the value's own NaN that `min_ps(high, value)` returns, which also
        // converts to i32::MIN: the smallest result, as in the specification.
        // SAFETY: AVX2, see above.
        unsafe {
            let high = _mm256_set1_ps(high);
            let a = _mm256_cvtps_epi32(_mm256_min_ps(high, values[0]));
            let b = _mm256_cvtps_epi32(_mm256_min_ps(high, values[1]));
            _mm256_adds_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(zero))
        }
    }

    #[inline(always)]
    unsafe fn bytes(words: [__m256i; 2], low: u8, high: u8) -> __m256i {
        // SAFETY: AVX2, see above.
        unsafe {
            let bytes = _mm256_packus_epi16(words[0], words[1]);
            let bytes = _mm256_max_epu8(bytes, _mm256_set1_epi8(low as i8));
            _mm256_min_epu8(bytes, _mm256_set1_epi8(high as i8))
        }
    }

    #[inline(always)]
    unsafe fn bits(value: __m256) -> __m256i {
        // SAFETY: AVX, see above.
        unsafe { _mm256_castps_si256(value) }
    }

    #[inline(always)]
    unsafe fn store_lanes(to: *mut u32, value: __m256i) {
        // SAFETY: four writable elements at `to` and at `to + 16`, see above.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(value));
            _mm_storeu_si128(to.add(16).cast(), _mm256_extracti128_si256::<1>(value));
        }
    }
}
