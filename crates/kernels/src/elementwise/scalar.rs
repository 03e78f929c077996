//! The specification: vectors of one lane, blocks of four bytes, in plain Rust.

use super::simd::Simd;

/// The largest f32 below 2^31, the ceiling of [`Simd::round`].
pub(super) const ROUND_CEILING: f32 = 2_147_483_520.0;

/// Plain Rust, on any machine.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// The first `N` elements of `src`, zeros where it is shorter.
#[inline(always)]
pub(super) fn padded<T: Copy + Default, const N: usize>(src: &[T]) -> [T; N] {
    let mut block = [T::default(); N];
    let len = src.len().min(N);
    block[..len].copy_from_slice(&src[..len]);
    block
}

/// As much of `block` as fits into `dst`.
#[inline(always)]
pub(super) fn store_prefix<T: Copy>(block: &[T], dst: &mut [T]) {
    let len = dst.len().min(block.len());
    dst[..len].copy_from_slice(&block[..len]);
}

impl Simd for Scalar {
    const LANES: usize = 1;
    const QUICK_LOOKUP: bool = false;
    type U8 = [u8; 4];
    type I16 = i16;
    type I32 = i32;
    type F32 = f32;
    type Table = [u8; 256];

    #[inline(always)]
    fn splat_u8(self, x: u8) -> [u8; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn load_u8(self, src: &[u8]) -> [u8; 4] {
        padded(src)
    }

    #[inline(always)]
    fn store_u8(self, x: [u8; 4], dst: &mut [u8]) {
        store_prefix(&x, dst);
    }

    #[inline(always)]
    fn min_u8(self, a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
        [a[0].min(b[0]), a[1].min(b[1]), a[2].min(b[2]), a[3].min(b[3])]
    }

    #[inline(always)]
    fn max_u8(self, a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
        [a[0].max(b[0]), a[1].max(b[1]), a[2].max(b[2]), a[3].max(b[3])]
    }

    #[inline(always)]
    fn sub_u8(self, a: [u8; 4], b: [u8; 4]) -> [u8; 4] {
        [a[0].wrapping_sub(b[0]), a[1].wrapping_sub(b[1]), a[2].wrapping_sub(b[2]), a[3].wrapping_sub(b[3])]
    }

    #[inline(always)]
    fn load_u4(self, src: &[u8]) -> [u8; 4] {
        let [a, b] = padded(src);
        [a & 15, a >> 4, b & 15, b >> 4]
    }

    #[inline(always)]
    fn table(self, table: &[u8; 256]) -> [u8; 256] {
        *table
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 256], index: [u8; 4]) -> [u8; 4] {
        index.map(|i| table[usize::from(i)])
    }

    #[inline(always)]
    fn dot(self, sum: i32, a: [u8; 4], b: [u8; 4]) -> i32 {
        a.iter().zip(b).fold(sum, |sum, (&a, b)| sum.wrapping_add(i32::from(a) * i32::from(b as i8)))
    }

    #[inline(always)]
    fn widen(self, x: [u8; 4]) -> [i32; 4] {
        x.map(i32::from)
    }

    #[inline(always)]
    fn widen_u8(self, src: &[u8]) -> [i32; 4] {
        padded::<u8, 4>(src).map(i32::from)
    }

    #[inline(always)]
    fn widen_i8(self, src: &[u8]) -> [i32; 4] {
        padded::<u8, 4>(src).map(|x| i32::from(x as i8))
    }

    #[inline(always)]
    fn splat_i16(self, x: i16) -> i16 {
        x
    }

    #[inline(always)]
    fn narrow_u8(self, x: [i32; 4], zero_point: i16) -> [u8; 4] {
        x.map(|x| x.saturating_add(i32::from(zero_point)).clamp(0, 255) as u8)
    }

    #[inline(always)]
    fn narrow_i8(self, x: [i32; 4], zero_point: i16) -> [u8; 4] {
        x.map(|x| x.saturating_add(i32::from(zero_point)).clamp(-128, 127) as i8 as u8)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> i32 {
        x
    }

    #[inline(always)]
    fn load_i32(self, src: &[i32]) -> i32 {
        src.first().copied().unwrap_or(0)
    }

    #[inline(always)]
    fn store_i32(self, x: i32, dst: &mut [i32]) {
        store_prefix(&[x], dst);
    }

    #[inline(always)]
    fn add_i32(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }

    #[inline(always)]
    fn sub_i32(self, a: i32, b: i32) -> i32 {
        a.wrapping_sub(b)
    }

    #[inline(always)]
    fn mul_small(self, a: i32, b: i32) -> i32 {
        a * b
    }

    #[inline(always)]
    fn to_f32(self, x: i32) -> f32 {
        x as f32
    }

    #[inline(always)]
    fn round(self, x: f32) -> i32 {
        self.min(x, ROUND_CEILING).round_ties_even() as i32
    }

    #[inline(always)]
    fn exp2(self, x: i32) -> f32 {
        f32::from_bits(((x + 127) as u32) << 23)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn load_f32(self, src: &[f32]) -> f32 {
        src.first().copied().unwrap_or(0.0)
    }

    #[inline(always)]
    fn store_f32(self, x: f32, dst: &mut [f32]) {
        store_prefix(&[x], dst);
    }

    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }

    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }

    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }

    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }

    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }

    #[inline(always)]
    fn if_less(self, a: f32, b: f32, yes: f32, no: f32) -> f32 {
        if a < b { yes } else { no }
    }
}
