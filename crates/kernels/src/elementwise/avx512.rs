//! AVX-512 F, BW, DQ, VL and VNNI: 16 lanes, blocks of 64 bytes; with VBMI where it is there.

use std::arch::x86_64::*;

use super::avx2::{fold_128, xor_parts};
use super::scalar::ROUND_CEILING;
use super::simd::{Kernel, Simd};
use crate::Isa;

/// Proof that the machine has what [`Isa::Avx512Vnni`] asks for and, if `VBMI`, AVX-512 VBMI as well.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VBMI: bool>(());

impl<const VBMI: bool> Avx512<VBMI> {
    /// A value, where the machine has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let available = Isa::Avx512Vnni.is_available() && (!VBMI || is_x86_feature_detected!("avx512vbmi"));
        available.then_some(Self(()))
    }

    /// Runs `kernel`, compiled for AVX-512.
    #[inline]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn compiled<K: Kernel, S: Simd>(simd: S, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
        fn compiled_vbmi<K: Kernel, S: Simd>(simd: S, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where the instructions do, VBMI among them if `VBMI`.
        unsafe { if VBMI { compiled_vbmi(self, kernel) } else { compiled(self, kernel) } }
    }
}

/// Intrinsics on values: they touch no memory, and a value of [`Avx512`] is at hand wherever this is used.
macro_rules! avx512 {
    ($e:expr) => {
        // SAFETY: `self` exists only where the instructions do, and the intrinsics touch no memory of ours.
        unsafe { $e }
    };
}

/// The mask of the first `len` of 64 lanes.
#[inline(always)]
fn first_64(len: usize) -> __mmask64 {
    if len >= 64 { !0 } else { (1 << len) - 1 }
}

/// The mask of the first `len` of 16 lanes.
#[inline(always)]
fn first_16(len: usize) -> __mmask16 {
    if len >= 16 { !0 } else { (1 << len) - 1 }
}

/// The two halves of a table in registers, for VBMI; the parts for shuffles without it.
#[derive(Clone, Copy)]
pub(crate) enum Table512 {
    Registers([__m512i; 4]),
    Parts([[u8; 16]; 16]),
}

impl<const VBMI: bool> Simd for Avx512<VBMI> {
    const LANES: usize = 16;
    const QUICK_LOOKUP: bool = VBMI;
    type U8 = __m512i;
    type I16 = __m512i;
    type I32 = __m512i;
    type F32 = __m512;
    type Table = Table512;

    #[inline(always)]
    fn splat_u8(self, x: u8) -> __m512i {
        avx512!(_mm512_set1_epi8(x as i8))
    }

    #[inline(always)]
    fn load_u8(self, src: &[u8]) -> __m512i {
        if src.len() >= Self::BYTES {
            // SAFETY: 64 bytes can be read; the load needs no alignment.
            unsafe { _mm512_loadu_si512(src.as_ptr().cast()) }
        } else {
            // SAFETY: masked-out bytes are not accessed, and the others are within `src`.
            unsafe { _mm512_maskz_loadu_epi8(first_64(src.len()), src.as_ptr().cast()) }
        }
    }

    #[inline(always)]
    fn store_u8(self, x: __m512i, dst: &mut [u8]) {
        if dst.len() >= Self::BYTES {
            // SAFETY: 64 bytes can be written; the store needs no alignment.
            unsafe { _mm512_storeu_si512(dst.as_mut_ptr().cast(), x) }
        } else {
            // SAFETY: masked-out bytes are not accessed, and the others are within `dst`.
            unsafe { _mm512_mask_storeu_epi8(dst.as_mut_ptr().cast(), first_64(dst.len()), x) }
        }
    }

    #[inline(always)]
    fn min_u8(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_min_epu8(a, b))
    }

    #[inline(always)]
    fn max_u8(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_max_epu8(a, b))
    }

    #[inline(always)]
    fn sub_u8(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_sub_epi8(a, b))
    }

    #[inline(always)]
    fn load_u4(self, src: &[u8]) -> __m512i {
        // SAFETY: masked-out bytes are not accessed, and the others are within `src`.
        unsafe {
            let pairs = _mm256_maskz_loadu_epi8(first_64(src.len()) as u32, src.as_ptr().cast());
            let x = _mm512_cvtepu8_epi16(pairs);
            _mm512_and_si512(_mm512_or_si512(x, _mm512_slli_epi16::<4>(x)), _mm512_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 256]) -> Table512 {
        if VBMI {
            Table512::Registers([
                self.load_u8(&table[..64]),
                self.load_u8(&table[64..128]),
                self.load_u8(&table[128..192]),
                self.load_u8(&table[192..]),
            ])
        } else {
            Table512::Parts(xor_parts(table))
        }
    }

    #[inline(always)]
    fn lookup(self, table: &Table512, index: __m512i) -> __m512i {
        match table {
            // SAFETY: only a machine with VBMI makes this form of the table.
            Table512::Registers(t) => unsafe {
                let low = _mm512_permutex2var_epi8(t[0], index, t[1]);
                let high = _mm512_permutex2var_epi8(t[2], index, t[3]);
                _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high)
            },
            // As in avx2.rs.
            // SAFETY: `self` stands for AVX-512 BW, and each part has the 16 bytes that are loaded.
            Table512::Parts(parts) => unsafe {
                let step = _mm512_set1_epi8(16);
                let mut low = index;
                let mut high = _mm512_xor_si512(index, _mm512_set1_epi8(-128));
                let mut result = _mm512_setzero_si512();
                for k in 0..8 {
                    let low_part = _mm512_broadcast_i32x4(_mm_loadu_si128(parts[k].as_ptr().cast()));
                    let high_part = _mm512_broadcast_i32x4(_mm_loadu_si128(parts[k + 8].as_ptr().cast()));
                    let (low_bytes, high_bytes) =
                        (_mm512_shuffle_epi8(low_part, low), _mm512_shuffle_epi8(high_part, high));
                    result = _mm512_ternarylogic_epi32::<0x96>(result, low_bytes, high_bytes);
                    low = _mm512_subs_epi8(low, step);
                    high = _mm512_subs_epi8(high, step);
                }
                result
            },
        }
    }

    #[inline(always)]
    fn dot(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_dpbusd_epi32(sum, a, b))
    }

    #[inline(always)]
    fn widen(self, x: __m512i) -> [__m512i; 4] {
        avx512!([
            _mm512_cvtepu8_epi32(_mm512_castsi512_si128(x)),
            _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<1>(x)),
            _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<2>(x)),
            _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<3>(x)),
        ])
    }

    #[inline(always)]
    fn widen_u8(self, src: &[u8]) -> [__m512i; 4] {
        if src.len() >= Self::BYTES {
            let src = src.as_ptr();
            // SAFETY: 64 bytes can be read, in four loads of 16 that need no alignment.
            unsafe {
                [
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(src.cast())),
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(src.add(16).cast())),
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(src.add(32).cast())),
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(src.add(48).cast())),
                ]
            }
        } else {
            self.widen(self.load_u8(src))
        }
    }

    #[inline(always)]
    fn widen_i8(self, src: &[u8]) -> [__m512i; 4] {
        let x = self.load_u8(src);
        avx512!([
            _mm512_cvtepi8_epi32(_mm512_castsi512_si128(x)),
            _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<1>(x)),
            _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<2>(x)),
            _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<3>(x)),
        ])
    }

    #[inline(always)]
    fn splat_i16(self, x: i16) -> __m512i {
        avx512!(_mm512_set1_epi16(x))
    }

    #[inline(always)]
    fn narrow_u8(self, x: [__m512i; 4], zero_point: __m512i) -> __m512i {
        // Packing works within 128-bit lanes; the permutation of dwords at the end restores the order of memory.
        avx512!({
            let a = _mm512_adds_epi16(_mm512_packs_epi32(x[0], x[1]), zero_point);
            let b = _mm512_adds_epi16(_mm512_packs_epi32(x[2], x[3]), zero_point);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b))
        })
    }

    #[inline(always)]
    fn narrow_i8(self, x: [__m512i; 4], zero_point: __m512i) -> __m512i {
        avx512!({
            let a = _mm512_adds_epi16(_mm512_packs_epi32(x[0], x[1]), zero_point);
            let b = _mm512_adds_epi16(_mm512_packs_epi32(x[2], x[3]), zero_point);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b))
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        avx512!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn load_i32(self, src: &[i32]) -> __m512i {
        // SAFETY: masked-out lanes are not accessed, and the others are within `src`.
        unsafe { _mm512_maskz_loadu_epi32(first_16(src.len()), src.as_ptr()) }
    }

    #[inline(always)]
    fn store_i32(self, x: __m512i, dst: &mut [i32]) {
        // SAFETY: masked-out lanes are not accessed, and the others are within `dst`.
        unsafe { _mm512_mask_storeu_epi32(dst.as_mut_ptr(), first_16(dst.len()), x) }
    }

    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub_i32(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul_small(self, a: __m512i, b: __m512i) -> __m512i {
        // The upper halves of the lanes are zero.
        avx512!(_mm512_madd_epi16(a, b))
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        // The conversion gives i32::MIN whatever is out of range, which is right only below.
        avx512!(_mm512_cvtps_epi32(_mm512_min_ps(x, _mm512_set1_ps(ROUND_CEILING))))
    }

    #[inline(always)]
    fn exp2(self, x: __m512i) -> __m512 {
        avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(x, _mm512_set1_epi32(127)))))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load_f32(self, src: &[f32]) -> __m512 {
        if src.len() >= Self::LANES {
            // SAFETY: 16 values can be read; the load needs no alignment.
            unsafe { _mm512_loadu_ps(src.as_ptr()) }
        } else {
            // SAFETY: masked-out lanes are not accessed, and the others are within `src`.
            unsafe { _mm512_maskz_loadu_ps(first_16(src.len()), src.as_ptr()) }
        }
    }

    #[inline(always)]
    fn store_f32(self, x: __m512, dst: &mut [f32]) {
        if dst.len() >= Self::LANES {
            // SAFETY: 16 values can be written; the store needs no alignment.
            unsafe { _mm512_storeu_ps(dst.as_mut_ptr(), x) }
        } else {
            // SAFETY: masked-out lanes are not accessed, and the others are within `dst`.
            unsafe { _mm512_mask_storeu_ps(dst.as_mut_ptr(), first_16(dst.len()), x) }
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn if_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes))
    }

    #[inline(always)]
    fn times_exp2(self, x: __m512, n: __m512) -> __m512 {
        avx512!(_mm512_scalef_ps(x, n))
    }

    #[inline(always)]
    fn times_wide_exp2(self, x: __m512, n: __m512) -> __m512 {
        avx512!(_mm512_scalef_ps(x, n))
    }

    #[inline(always)]
    fn sum_lanes(self, x: __m512) -> f32 {
        avx512!({
            let x = _mm256_add_ps(_mm512_extractf32x8_ps::<1>(x), _mm512_castps512_ps256(x));
            fold_128!(_mm_add_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x)), _mm_add_ps)
        })
    }

    #[inline(always)]
    fn max_lanes(self, x: __m512) -> f32 {
        avx512!({
            let x = _mm256_max_ps(_mm512_extractf32x8_ps::<1>(x), _mm512_castps512_ps256(x));
            fold_128!(_mm_max_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x)), _mm_max_ps)
        })
    }

    #[inline(always)]
    fn min_lanes(self, x: __m512) -> f32 {
        avx512!({
            let x = _mm256_min_ps(_mm512_extractf32x8_ps::<1>(x), _mm512_castps512_ps256(x));
            fold_128!(_mm_min_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x)), _mm_min_ps)
        })
    }

    #[inline(always)]
    unsafe fn transpose_4(self, src: *const f32, stride: usize, dst: *mut f32, step: usize) {
        // SAFETY: the caller's four values a row and sixteen a vector; AVX-512 is there.
        unsafe {
            // Rows i, i + 4, i + 8 and i + 12: a transposition within the quarters puts sixteen rows in order.
            macro_rules! rows {
                ($i:literal) => {{
                    let at = |row: usize| _mm_loadu_ps(src.wrapping_add(stride.wrapping_mul(row)));
                    let x = _mm512_castps128_ps512(at($i));
                    let x = _mm512_insertf32x4::<1>(x, at($i + 4));
                    let x = _mm512_insertf32x4::<2>(x, at($i + 8));
                    _mm512_insertf32x4::<3>(x, at($i + 12))
                }};
            }
            let (a, b, c, d) = (rows!(0), rows!(1), rows!(2), rows!(3));
            let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            _mm512_storeu_ps(dst, _mm512_shuffle_ps::<0x44>(ab_low, cd_low));
            _mm512_storeu_ps(dst.wrapping_add(step), _mm512_shuffle_ps::<0xEE>(ab_low, cd_low));
            _mm512_storeu_ps(dst.wrapping_add(2 * step), _mm512_shuffle_ps::<0x44>(ab_high, cd_high));
            _mm512_storeu_ps(dst.wrapping_add(3 * step), _mm512_shuffle_ps::<0xEE>(ab_high, cd_high));
        }
    }
}
