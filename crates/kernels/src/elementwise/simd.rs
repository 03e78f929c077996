//! The vector operations that the element-wise kernels are written in, and the one place that picks an ISA.
//!
//! A kernel is a struct that holds its arguments and implements [`Kernel`]; [`dispatch`] compiles it once for each
//! implementation of [`Simd`]. Every operation is defined lane by lane, so a path gives the bits of the scalar one as
//! long as the kernel adds floats in an order that does not depend on [`Simd::LANES`]; sums of integers are exact in
//! any order.

use crate::Isa;

/// One instruction set's vectors. A value of an implementing type is proof that the machine has the instructions,
/// so the operations are safe.
///
/// Bytes are handled in blocks of [`BYTES`](Self::BYTES) = 4 * [`LANES`](Self::LANES): one `U8`, which widens to
/// four `I32` in the order of memory. Loads take a slice; one that is shorter than the vector leaves zeros in the
/// remaining lanes, and a store to a shorter slice drops lanes. Nothing outside the slice is touched.
pub trait Simd: Copy {
    /// f32 or i32 lanes in a vector.
    const LANES: usize;
    /// Bytes in a `U8`, elements in a block.
    const BYTES: usize = 4 * Self::LANES;
    /// Whether [`lookup`](Self::lookup) takes fewer instructions than a load for each byte.
    const QUICK_LOOKUP: bool;

    /// `BYTES` bytes.
    type U8: Copy;
    /// One i16 in every lane.
    type I16: Copy;
    /// `LANES` i32.
    type I32: Copy;
    /// `LANES` f32.
    type F32: Copy;
    /// A table of 256 bytes in the form that [`lookup`](Self::lookup) wants.
    type Table: Copy;

    fn splat_u8(self, x: u8) -> Self::U8;
    fn load_u8(self, src: &[u8]) -> Self::U8;
    fn store_u8(self, x: Self::U8, dst: &mut [u8]);
    fn min_u8(self, a: Self::U8, b: Self::U8) -> Self::U8;
    fn max_u8(self, a: Self::U8, b: Self::U8) -> Self::U8;
    /// `a - b`, wrapping.
    fn sub_u8(self, a: Self::U8, b: Self::U8) -> Self::U8;
    /// `BYTES` elements of four bits from `BYTES / 2` bytes, the low half of a byte first.
    fn load_u4(self, src: &[u8]) -> Self::U8;

    /// Prepares `table` for [`lookup`](Self::lookup).
    fn table(self, table: &[u8; 256]) -> Self::Table;
    /// `table[index]` for every byte.
    fn lookup(self, table: &Self::Table, index: Self::U8) -> Self::U8;

    /// Adds to each lane of `sum` the products of four bytes of `a`, unsigned, with four of `b`, signed. Exact; which
    /// lane gets which bytes is not defined.
    fn dot(self, sum: Self::I32, a: Self::U8, b: Self::U8) -> Self::I32;

    /// The bytes as i32.
    fn widen(self, x: Self::U8) -> [Self::I32; 4];
    /// `widen(load_u8(src))`, in fewer instructions.
    fn widen_u8(self, src: &[u8]) -> [Self::I32; 4];
    /// As [`widen_u8`](Self::widen_u8) for signed bytes.
    fn widen_i8(self, src: &[u8]) -> [Self::I32; 4];

    fn splat_i16(self, x: i16) -> Self::I16;
    /// `clamp(x + zero_point, 0, 255)`, with no overflow for any `x` as long as `-255 <= zero_point <= 255`.
    fn narrow_u8(self, x: [Self::I32; 4], zero_point: Self::I16) -> Self::U8;
    /// `clamp(x + zero_point, -128, 127)`, as [`narrow_u8`](Self::narrow_u8).
    fn narrow_i8(self, x: [Self::I32; 4], zero_point: Self::I16) -> Self::U8;

    fn splat_i32(self, x: i32) -> Self::I32;
    fn load_i32(self, src: &[i32]) -> Self::I32;
    fn store_i32(self, x: Self::I32, dst: &mut [i32]);
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The product of lanes that are both in 0..=32767.
    fn mul_small(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// Rounds half to even. Saturates; NaN gives the largest value.
    fn round(self, x: Self::F32) -> Self::I32;
    /// 2 to the power of `x`, for `x` in -126..=127.
    fn exp2(self, x: Self::I32) -> Self::F32;

    fn splat(self, x: f32) -> Self::F32;
    fn load_f32(self, src: &[f32]) -> Self::F32;
    fn store_f32(self, x: Self::F32, dst: &mut [f32]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { yes } else { no }`.
    fn if_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;

    /// `x` times 2 to the power of `n`, an integer in -126..=127, rounded once.
    #[inline(always)]
    fn times_exp2(self, x: Self::F32, n: Self::F32) -> Self::F32 {
        self.mul(x, self.exp2(self.round(n)))
    }

    /// As [`times_exp2`](Self::times_exp2) for `n` in -200..=200 and `x` in 0.5..2.
    #[inline(always)]
    fn times_wide_exp2(self, x: Self::F32, n: Self::F32) -> Self::F32 {
        // The first product is exact: only the second one rounds.
        let first = self.max(self.splat(-100.0), self.min(self.splat(100.0), n));
        self.times_exp2(self.times_exp2(x, first), self.sub(n, first))
    }

    /// The sum of the lanes: the upper half is added to the lower one until one is left.
    #[inline(always)]
    fn sum_lanes(self, x: Self::F32) -> f32 {
        fold_lanes(self, x, |a, b| a + b)
    }

    /// The largest lane, none being NaN.
    #[inline(always)]
    fn max_lanes(self, x: Self::F32) -> f32 {
        fold_lanes(self, x, |a, b| if a > b { a } else { b })
    }

    /// The smallest lane, none being NaN.
    #[inline(always)]
    fn min_lanes(self, x: Self::F32) -> f32 {
        fold_lanes(self, x, |a, b| if a < b { a } else { b })
    }

    /// Four values from each of `LANES` rows, `stride` apart, as four vectors at `dst`, `step` apart.
    ///
    /// # Safety
    /// They can be read and written, and nobody else reads or writes the latter meanwhile.
    #[inline(always)]
    unsafe fn transpose_4(self, src: *const f32, stride: usize, dst: *mut f32, step: usize) {
        for row in 0..Self::LANES {
            for k in 0..4 {
                // SAFETY: by the contract.
                unsafe { *dst.wrapping_add(k * step + row) = *src.wrapping_add(row.wrapping_mul(stride) + k) };
            }
        }
    }

    /// The vector of `LANES` f32 at `src`.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    unsafe fn load_at(self, src: *const f32) -> Self::F32 {
        // SAFETY: by the contract.
        self.load_f32(unsafe { std::slice::from_raw_parts(src, Self::LANES) })
    }

    /// Stores `LANES` f32 at `dst`.
    ///
    /// # Safety
    /// They can be written, and nobody else reads or writes them meanwhile.
    #[inline(always)]
    unsafe fn store_at(self, x: Self::F32, dst: *mut f32) {
        // SAFETY: by the contract.
        self.store_f32(x, unsafe { std::slice::from_raw_parts_mut(dst, Self::LANES) });
    }

    /// Four vectors of f32: a block.
    #[inline(always)]
    fn load_f32x4(self, src: &[f32]) -> [Self::F32; 4] {
        let mut block = [self.splat(0.0); 4];
        if src.len() >= Self::BYTES {
            for (v, src) in block.iter_mut().zip(src.chunks_exact(Self::LANES)) {
                *v = self.load_f32(src);
            }
        } else {
            for (v, src) in block.iter_mut().zip(src.chunks(Self::LANES)) {
                *v = self.load_f32(src);
            }
        }
        block
    }

    /// Stores a block, or as much of it as `dst` holds.
    #[inline(always)]
    fn store_f32x4(self, block: [Self::F32; 4], dst: &mut [f32]) {
        if dst.len() >= Self::BYTES {
            for (v, dst) in block.into_iter().zip(dst.chunks_exact_mut(Self::LANES)) {
                self.store_f32(v, dst);
            }
        } else {
            for (v, dst) in block.into_iter().zip(dst.chunks_mut(Self::LANES)) {
                self.store_f32(v, dst);
            }
        }
    }

    #[inline(always)]
    fn to_f32x4(self, x: [Self::I32; 4]) -> [Self::F32; 4] {
        [self.to_f32(x[0]), self.to_f32(x[1]), self.to_f32(x[2]), self.to_f32(x[3])]
    }

    #[inline(always)]
    fn round_x4(self, x: [Self::F32; 4]) -> [Self::I32; 4] {
        [self.round(x[0]), self.round(x[1]), self.round(x[2]), self.round(x[3])]
    }
}

/// Folds the upper half of the lanes into the lower one until one is left.
#[inline(always)]
fn fold_lanes<S: Simd>(s: S, x: S::F32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    s.store_f32(x, &mut lanes[..S::LANES]);
    let mut half = S::LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// A computation that [`dispatch`] can compile for any ISA.
///
/// `run`, and what it calls with vectors, must be `#[inline(always)]` and free of closures that hold vectors: only
/// code that is inlined into [`dispatch`]'s functions is compiled with the ISA's instructions.
pub trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` on `isa`, or on the best slower path where this machine lacks it.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512Vnni | Isa::Amx => {
            if let Some(simd) = super::avx512::Avx512::<true>::new() {
                return simd.vectorize(kernel);
            }
            if let Some(simd) = super::avx512::Avx512::<false>::new() {
                return simd.vectorize(kernel);
            }
            return dispatch(Isa::Avx2, kernel);
        }
        Isa::Avx2 | Isa::AvxVnni => {
            if let Some(simd) = super::avx2::Avx2::new() {
                return simd.vectorize(kernel);
            }
        }
        _ => {}
    }
    let _ = isa;
    kernel.run(super::scalar::Scalar)
}

/// [`dispatch`] for kernels of f32 alone, which do not look up bytes: AVX-512 is one instance, with or without VBMI.
pub(crate) fn dispatch_f32<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512Vnni | Isa::Amx => {
            if let Some(simd) = super::avx512::Avx512::<false>::new() {
                return simd.vectorize(kernel);
            }
            return dispatch_f32(Isa::Avx2, kernel);
        }
        Isa::Avx2 | Isa::AvxVnni => {
            if let Some(simd) = super::avx2::Avx2::new() {
                return simd.vectorize(kernel);
            }
        }
        _ => {}
    }
    let _ = isa;
    kernel.run(super::scalar::Scalar)
}

/// An 8-bit integer type that tensors are quantized to: `u8` or `i8`.
pub trait Quantized: Copy + sealed::Sealed + 'static {
    /// The smallest value.
    const MIN: i32;
    /// The largest value.
    const MAX: i32;
    /// The value as i32.
    fn to_i32(self) -> i32;
    /// The nearest value.
    fn saturate(x: i32) -> Self;
}

pub(crate) mod sealed {
    use super::Simd;

    pub trait Sealed: Sized {
        fn widen<S: Simd>(simd: S, src: &[Self]) -> [S::I32; 4];
        fn narrow<S: Simd>(simd: S, x: [S::I32; 4], zero_point: S::I16, dst: &mut [Self]);
    }
}

impl Quantized for u8 {
    const MIN: i32 = 0;
    const MAX: i32 = 255;

    fn to_i32(self) -> i32 {
        i32::from(self)
    }

    fn saturate(x: i32) -> Self {
        x.clamp(0, 255) as u8
    }
}

impl sealed::Sealed for u8 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, src: &[Self]) -> [S::I32; 4] {
        simd.widen_u8(src)
    }

    #[inline(always)]
    fn narrow<S: Simd>(simd: S, x: [S::I32; 4], zero_point: S::I16, dst: &mut [Self]) {
        simd.store_u8(simd.narrow_u8(x, zero_point), dst);
    }
}

impl Quantized for i8 {
    const MIN: i32 = -128;
    const MAX: i32 = 127;

    fn to_i32(self) -> i32 {
        i32::from(self)
    }

    fn saturate(x: i32) -> Self {
        x.clamp(-128, 127) as i8
    }
}

impl sealed::Sealed for i8 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, src: &[Self]) -> [S::I32; 4] {
        // SAFETY: i8 and u8 have the same size and alignment, and every bit pattern is valid for both.
        let src = unsafe { std::slice::from_raw_parts(src.as_ptr().cast::<u8>(), src.len()) };
        simd.widen_i8(src)
    }

    #[inline(always)]
    fn narrow<S: Simd>(simd: S, x: [S::I32; 4], zero_point: S::I16, dst: &mut [Self]) {
        // SAFETY: as in `widen`; `dst` is borrowed mutably for as long as the new slice lives.
        let dst = unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast::<u8>(), dst.len()) };
        simd.store_u8(simd.narrow_i8(x, zero_point), dst);
    }
}
