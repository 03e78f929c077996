//! 512-bit registers with `vpdpbusd`, and the 256-bit ones of the same machine for what is left of the channels.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::avx2::Dot;
use super::vector::Vector;

/// The EVEX-coded `vpdpbusd` on 256 bits, with byte masks.
#[derive(Clone, Copy)]
pub(crate) struct VnniMasked;

impl Dot for VnniMasked {
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
        // SAFETY: the caller has AVX-512 VL and VNNI.
        unsafe { _mm256_dpbusd_epi32(sum, taps, weights) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u8, count: usize) -> __m256i {
        // SAFETY: the caller has AVX-512 BW and VL; masked-out bytes are not read.
        unsafe { _mm256_maskz_loadu_epi8((1 << count) - 1, from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut u8, bytes: __m256i, count: usize) {
        // SAFETY: the caller has AVX-512 BW and VL; masked-out bytes are not written.
        unsafe { _mm256_mask_storeu_epi8(to.cast(), (1 << count) - 1, bytes) }
    }
}

/// A 512-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Zmm;

// SAFETY of every block below: the trait's contract gives AVX-512 F, BW, DQ, VL and VNNI, and pointers good for the
// access.
impl Vector for Zmm {
    const BYTES: usize = 64;
    const WIDENED: bool = false;
    type Reg = __m512i;
    type Float = __m512;
    type Taps = __m512i;
    type Weights = __m512i;

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m512i {
        // SAFETY: AVX-512, see above.
        unsafe { _mm512_set1_epi8(byte as i8) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: 64 readable bytes, see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u8, count: usize) -> __m512i {
        // SAFETY: masked-out bytes are not read, see above.
        unsafe { _mm512_maskz_loadu_epi8((1 << count) - 1, from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, bytes: __m512i) {
        // SAFETY: 64 writable bytes, see above.
        unsafe { _mm512_storeu_si512(to.cast(), bytes) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut u8, bytes: __m512i, count: usize) {
        // SAFETY: masked-out bytes are not written, see above.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), (1 << count) - 1, bytes) }
    }

    #[inline(always)]
    unsafe fn interleave(rows: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: AVX-512 BW, see above.
        unsafe {
            let low = [_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpacklo_epi8(rows[2], rows[3])];
            let high = [_mm512_unpackhi_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[2], rows[3])];
            [
                _mm512_unpacklo_epi16(low[0], low[1]),
                _mm512_unpackhi_epi16(low[0], low[1]),
                _mm512_unpacklo_epi16(high[0], high[1]),
                _mm512_unpackhi_epi16(high[0], high[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn spread(bytes: __m512i) -> [__m512i; 4] {
        // SAFETY: AVX-512, see above.
        unsafe {
            [
                _mm512_shuffle_epi32::<0x00>(bytes),
                _mm512_shuffle_epi32::<0x55>(bytes),
                _mm512_shuffle_epi32::<0xaa>(bytes),
                _mm512_shuffle_epi32::<0xff>(bytes),
            ]
        }
    }

    #[inline(always)]
    unsafe fn swap_lanes(bytes: __m512i) -> __m512i {
        // SAFETY: AVX-512, see above.
        unsafe { _mm512_shuffle_i32x4::<0b10_11_00_01>(bytes, bytes) }
    }

    #[inline(always)]
    unsafe fn taps(from: *const u8) -> __m512i {
        // SAFETY: 64 readable bytes, see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m512i {
        // SAFETY: 64 readable bytes, see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, taps: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: AVX-512 VNNI, see above.
        unsafe { _mm512_dpbusd_epi32(sum, taps, weights) }
    }

    #[inline(always)]
    unsafe fn affine(sum: __m512i, scale: *const f32, bias: *const f32) -> __m512 {
        // SAFETY: 16 readable elements each, see above.
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(scale), _mm512_loadu_ps(bias)) }
    }

    #[inline(always)]
    unsafe fn widen(bytes: __m512i, half: usize) -> [__m512i; 2] {
        // SAFETY: AVX-512 BW, see above.
        unsafe {
            let zero = _mm512_setzero_si512();
            let words = match half {
                0 => _mm512_unpacklo_epi8(bytes, zero),
                _ => _mm512_unpackhi_epi8(bytes, zero),
            };
            [_mm512_unpacklo_epi16(words, zero), _mm512_unpackhi_epi16(words, zero)]
        }
    }

    #[inline(always)]
    unsafe fn add_residual(sum: __m512, value: __m512i, zero: i32, scale: f32) -> __m512 {
        // SAFETY: AVX-512, see above.
        unsafe {
            let difference = _mm512_sub_epi32(value, _mm512_set1_epi32(zero));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(difference), _mm512_set1_ps(scale), sum)
        }
    }

    #[inline(always)]
    unsafe fn clamp(value: __m512, low: f32, high: f32) -> __m512 {
        // A NaN in the first operand gives the second one, which is what f32::max does.
        // SAFETY: AVX-512, see above.
        unsafe { _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(low)), _mm512_set1_ps(high)) }
    }

    #[inline(always)]
    unsafe fn words(values: [__m512; 2], high: f32, zero: i16) -> __m512i {
        // See the 256-bit form for why one bound is enough, and for NaN.
        // SAFETY: AVX-512 BW, see above.
        unsafe {
            let high = _mm512_set1_ps(high);
            let a = _mm512_cvtps_epi32(_mm512_min_ps(high, values[0]));
            let b = _mm512_cvtps_epi32(_mm512_min_ps(high, values[1]));
            _mm512_adds_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(zero))
        }
    }

    #[inline(always)]
    unsafe fn bytes(words: [__m512i; 2], low: u8, high: u8) -> __m512i {
        // SAFETY: AVX-512 BW, see above.
        unsafe {
            let bytes = _mm512_packus_epi16(words[0], words[1]);
            let bytes = _mm512_max_epu8(bytes, _mm512_set1_epi8(low as i8));
            _mm512_min_epu8(bytes, _mm512_set1_epi8(high as i8))
        }
    }

    #[inline(always)]
    unsafe fn bits(value: __m512) -> __m512i {
        // SAFETY: AVX-512, see above.
        unsafe { _mm512_castps_si512(value) }
    }

    #[inline(always)]
    unsafe fn store_lanes(to: *mut u32, value: __m512i) {
        // SAFETY: four writable elements at each of `to`, `to + 16`, `to + 32` and `to + 48`, see above.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(value));
            _mm_storeu_si128(to.add(16).cast(), _mm512_extracti32x4_epi32::<1>(value));
            _mm_storeu_si128(to.add(32).cast(), _mm512_extracti32x4_epi32::<2>(value));
            _mm_storeu_si128(to.add(48).cast(), _mm512_extracti32x4_epi32::<3>(value));
        }
    }
}
