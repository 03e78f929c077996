//! AVX2 and FMA: 8 lanes, blocks of 32 bytes.

use std::arch::x86_64::*;

use super::scalar::{ROUND_CEILING, padded, store_prefix};
use super::simd::{Kernel, Simd};
use crate::Isa;

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// A value, where the machine has AVX2 and FMA.
    pub(crate) fn new() -> Option<Self> {
        Isa::Avx2.is_available().then_some(Self(()))
    }

    /// Runs `kernel`, compiled for AVX2.
    #[inline]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only where AVX2 and FMA do.
        unsafe { compiled(self, kernel) }
    }
}

/// Intrinsics on values: they touch no memory, and a value of [`Avx2`] is at hand wherever this is used.
macro_rules! avx2 {
    ($e:expr) => {
        // SAFETY: `self` exists only where AVX2 and FMA do, and the intrinsics touch no memory of ours.
        unsafe { $e }
    };
}

/// Folds the upper half of four lanes into the lower one until one is left.
macro_rules! fold_128 {
    ($x:expr, $op:ident) => {{
        let x = $x;
        let x = $op(_mm_movehl_ps(x, x), x);
        _mm_cvtss_f32($op(_mm_movehdup_ps(x), x))
    }};
}
pub(super) use fold_128;

/// `src`, or where it is shorter than `$len` a copy in `$block` with zeros behind it. Not a call of the load itself for the
/// copy: LLVM inlines no function that calls itself, `#[inline(always)]` or not.
macro_rules! whole {
    ($src:ident, $block:ident, $ty:ty, $len:expr) => {
        if $src.len() >= $len {
            $src
        } else {
            $block = padded::<$ty, $len>($src);
            &$block[..]
        }
    };
}

/// The table of [`Simd::lookup`] in 16 parts of 16 bytes; each part but the first and the ninth is xor-ed with the
/// one before it, so that the xor of the first n parts of a half is the n-th.
#[inline(always)]
pub(super) fn xor_parts(table: &[u8; 256]) -> [[u8; 16]; 16] {
    let mut parts = [[0; 16]; 16];
    for (k, part) in parts.iter_mut().enumerate() {
        part.copy_from_slice(&table[16 * k..16 * (k + 1)]);
        if k % 8 != 0 {
            for (x, &before) in part.iter_mut().zip(&table[16 * (k - 1)..16 * k]) {
                *x ^= before;
            }
        }
    }
    parts
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const QUICK_LOOKUP: bool = false;
    type U8 = __m256i;
    type I16 = __m256i;
    type I32 = __m256i;
    type F32 = __m256;
    type Table = [[u8; 16]; 16];

    #[inline(always)]
    fn splat_u8(self, x: u8) -> __m256i {
        avx2!(_mm256_set1_epi8(x as i8))
    }

    #[inline(always)]
    fn load_u8(self, src: &[u8]) -> __m256i {
        let block;
        let src = whole!(src, block, u8, 32);
        // SAFETY: 32 bytes can be read; the load needs no alignment.
        unsafe { _mm256_loadu_si256(src.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_u8(self, x: __m256i, dst: &mut [u8]) {
        if dst.len() >= Self::BYTES {
            // SAFETY: 32 bytes can be written; the store needs no alignment.
            unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), x) }
        } else {
            let mut block = [0u8; 32];
            // SAFETY: `block` has the 32 bytes.
            unsafe { _mm256_storeu_si256(block.as_mut_ptr().cast(), x) };
            store_prefix(&block, dst);
        }
    }

    #[inline(always)]
    fn min_u8(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_min_epu8(a, b))
    }

    #[inline(always)]
    fn max_u8(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_max_epu8(a, b))
    }

    #[inline(always)]
    fn sub_u8(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_sub_epi8(a, b))
    }

    #[inline(always)]
    fn load_u4(self, src: &[u8]) -> __m256i {
        let pairs = padded::<u8, 16>(src);
        // SAFETY: `pairs` has 16 bytes, the load needs no alignment, and AVX2 is there.
        unsafe {
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(pairs.as_ptr().cast()));
            _mm256_and_si256(_mm256_or_si256(x, _mm256_slli_epi16::<4>(x)), _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 256]) -> [[u8; 16]; 16] {
        xor_parts(table)
    }

    #[inline(always)]
    fn lookup(self, table: &[[u8; 16]; 16], index: __m256i) -> __m256i {
        // A shuffle gives zero where the index is negative. Going down by 16 with saturation, an index is
        // non-negative for the parts up to its own.
        // SAFETY: AVX2 is there, and each part has the 16 bytes that are loaded.
        unsafe {
            let step = _mm256_set1_epi8(16);
            let mut low = index;
            let mut high = _mm256_xor_si256(index, _mm256_set1_epi8(-128));
            let mut result = _mm256_setzero_si256();
            for k in 0..8 {
                let low_part = _mm256_broadcastsi128_si256(_mm_loadu_si128(table[k].as_ptr().cast()));
                let high_part = _mm256_broadcastsi128_si256(_mm_loadu_si128(table[k + 8].as_ptr().cast()));
                result = _mm256_xor_si256(result, _mm256_shuffle_epi8(low_part, low));
                result = _mm256_xor_si256(result, _mm256_shuffle_epi8(high_part, high));
                low = _mm256_subs_epi8(low, step);
                high = _mm256_subs_epi8(high, step);
            }
            result
        }
    }

    #[inline(always)]
    fn dot(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // Not vpmaddubsw, whose sums of two products saturate.
        avx2!({
            let a_low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(a));
            let b_low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(b));
            let a_high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(a));
            let b_high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(b));
            let low = _mm256_madd_epi16(a_low, b_low);
            let high = _mm256_madd_epi16(a_high, b_high);
            _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
        })
    }

    #[inline(always)]
    fn widen(self, x: __m256i) -> [__m256i; 4] {
        avx2!({
            let low = _mm256_castsi256_si128(x);
            let high = _mm256_extracti128_si256::<1>(x);
            [
                _mm256_cvtepu8_epi32(low),
                _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(low)),
                _mm256_cvtepu8_epi32(high),
                _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(high)),
            ]
        })
    }

    #[inline(always)]
    fn widen_u8(self, src: &[u8]) -> [__m256i; 4] {
        let block;
        let src = whole!(src, block, u8, 32).as_ptr();
        // SAFETY: 32 bytes can be read, in four loads of 8 that need no alignment.
        unsafe {
            [
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.add(8).cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.add(16).cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.add(24).cast())),
            ]
        }
    }

    #[inline(always)]
    fn widen_i8(self, src: &[u8]) -> [__m256i; 4] {
        let block;
        let src = whole!(src, block, u8, 32).as_ptr();
        // SAFETY: 32 bytes can be read, in four loads of 8 that need no alignment.
        unsafe {
            [
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(src.cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(src.add(8).cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(src.add(16).cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(src.add(24).cast())),
            ]
        }
    }

    #[inline(always)]
    fn splat_i16(self, x: i16) -> __m256i {
        avx2!(_mm256_set1_epi16(x))
    }

    #[inline(always)]
    fn narrow_u8(self, x: [__m256i; 4], zero_point: __m256i) -> __m256i {
        // Packing works within 128-bit lanes; the permutation of dwords at the end restores the order of memory.
        avx2!({
            let a = _mm256_adds_epi16(_mm256_packs_epi32(x[0], x[1]), zero_point);
            let b = _mm256_adds_epi16(_mm256_packs_epi32(x[2], x[3]), zero_point);
            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        })
    }

    #[inline(always)]
    fn narrow_i8(self, x: [__m256i; 4], zero_point: __m256i) -> __m256i {
        avx2!({
            let a = _mm256_adds_epi16(_mm256_packs_epi32(x[0], x[1]), zero_point);
            let b = _mm256_adds_epi16(_mm256_packs_epi32(x[2], x[3]), zero_point);
            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        })
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m256i {
        avx2!(_mm256_set1_epi32(x))
    }

    #[inline(always)]
    fn load_i32(self, src: &[i32]) -> __m256i {
        let block;
        let src = whole!(src, block, i32, 8);
        // SAFETY: 8 values can be read; the load needs no alignment.
        unsafe { _mm256_loadu_si256(src.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_i32(self, x: __m256i, dst: &mut [i32]) {
        if dst.len() >= Self::LANES {
            // SAFETY: 8 values can be written; the store needs no alignment.
            unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), x) }
        } else {
            let mut block = [0i32; 8];
            // SAFETY: `block` has the 32 bytes.
            unsafe { _mm256_storeu_si256(block.as_mut_ptr().cast(), x) };
            store_prefix(&block, dst);
        }
    }

    #[inline(always)]
    fn add_i32(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub_i32(self, a: __m256i, b: __m256i) -> __m256i {
        avx2!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul_small(self, a: __m256i, b: __m256i) -> __m256i {
        // The upper halves of the lanes are zero.
        avx2!(_mm256_madd_epi16(a, b))
    }

    #[inline(always)]
    fn to_f32(self, x: __m256i) -> __m256 {
        avx2!(_mm256_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn round(self, x: __m256) -> __m256i {
        // The conversion gives i32::MIN whatever is out of range, which is right only below.
        avx2!(_mm256_cvtps_epi32(_mm256_min_ps(x, _mm256_set1_ps(ROUND_CEILING))))
    }

    #[inline(always)]
    fn exp2(self, x: __m256i) -> __m256 {
        avx2!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(x, _mm256_set1_epi32(127)))))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        avx2!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn load_f32(self, src: &[f32]) -> __m256 {
        let block;
        let src = whole!(src, block, f32, 8);
        // SAFETY: 8 values can be read; the load needs no alignment.
        unsafe { _mm256_loadu_ps(src.as_ptr()) }
    }

    #[inline(always)]
    fn store_f32(self, x: __m256, dst: &mut [f32]) {
        if dst.len() >= Self::LANES {
            // SAFETY: 8 values can be written; the store needs no alignment.
            unsafe { _mm256_storeu_ps(dst.as_mut_ptr(), x) }
        } else {
            let mut block = [0f32; 8];
            // SAFETY: `block` has the 32 bytes.
            unsafe { _mm256_storeu_ps(block.as_mut_ptr(), x) };
            store_prefix(&block, dst);
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        avx2!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        avx2!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn if_less(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        avx2!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }

    #[inline(always)]
    fn sum_lanes(self, x: __m256) -> f32 {
        avx2!(fold_128!(_mm_add_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x)), _mm_add_ps))
    }

    #[inline(always)]
    fn max_lanes(self, x: __m256) -> f32 {
        avx2!(fold_128!(_mm_max_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x)), _mm_max_ps))
    }

    #[inline(always)]
    fn min_lanes(self, x: __m256) -> f32 {
        avx2!(fold_128!(_mm_min_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x)), _mm_min_ps))
    }

    #[inline(always)]
    unsafe fn transpose_4(self, src: *const f32, stride: usize, dst: *mut f32, step: usize) {
        // SAFETY: the caller's four values a row and eight a vector; AVX2 is there.
        unsafe {
            // Rows i and i + 4: a transposition within the halves puts eight rows in order.
            macro_rules! rows {
                ($i:literal) => {{
                    let low = _mm_loadu_ps(src.wrapping_add(stride.wrapping_mul($i)));
                    let high = _mm_loadu_ps(src.wrapping_add(stride.wrapping_mul($i + 4)));
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
                }};
            }
            let (a, b, c, d) = (rows!(0), rows!(1), rows!(2), rows!(3));
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            _mm256_storeu_ps(dst, _mm256_shuffle_ps::<0x44>(ab_low, cd_low));
            _mm256_storeu_ps(dst.wrapping_add(step), _mm256_shuffle_ps::<0xEE>(ab_low, cd_low));
            _mm256_storeu_ps(dst.wrapping_add(2 * step), _mm256_shuffle_ps::<0x44>(ab_high, cd_high));
            _mm256_storeu_ps(dst.wrapping_add(3 * step), _mm256_shuffle_ps::<0xEE>(ab_high, cd_high));
        }
    }
}
