//! Softmax of u8 rows.
//!
//! `exp(x - max)` depends only on `d = max - q`, which has 256 values: they are tabulated once, as integers of 24 bits.
//! The sum of a row is then exact whatever the order, and, given the sum, the output too depends only on `d`, so that
//! each row has a table of its own, of bytes.

use super::elementwise::simd::{Kernel, Simd, dispatch};
use super::{Isa, QParams};

/// Softmax over each row of `columns` values; only the scale of `x` matters, its zero point cancels.
///
/// With `e[d] = round(exp(-d * scale) * (2^24 - 1))` and `d = max - q`, a value is
/// `clamp(round_half_even(e[d] * (1 / (sum * out.scale)) + out.zero_point))`: the product and the sum in one f32
/// rounding, the reciprocal in f64. libtorch's output has scale 1/256 and zero point 0.
///
/// ```
/// use jitquant_kernels::{Isa, QParams, softmax};
/// let mut out = [0; 4];
/// softmax(Isa::current(), &[7, 7, 7, 7], 0.1, 4, QParams::new(1.0 / 256.0, 0), &mut out);
/// assert_eq!(out, [64; 4]);
/// ```
///
/// # Panics
/// If the lengths differ or are not rows of `columns`, or the zero point is outside 0..=255.
pub fn softmax(isa: Isa, x: &[u8], scale: f32, columns: usize, qparams: QParams, out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    qparams.check::<u8>();
    if x.is_empty() {
        return;
    }
    assert!(columns > 0 && x.len().is_multiple_of(columns), "{} values in rows of {columns}", x.len());
    dispatch(isa, Softmax { x, exponentials: Exponentials::new(scale), columns, qparams, out });
}

/// `e[d]` for `d` in 0..256: as integers, as f32, and as three tables of bytes, lowest first.
struct Exponentials {
    integers: [u32; 256],
    floats: [f32; 256],
    planes: [[u8; 256]; 3],
}

impl Exponentials {
    fn new(scale: f32) -> Self {
        let integers: [u32; 256] = std::array::from_fn(|d| {
            let x = (-(d as f64) * f64::from(scale)).exp();
            (x * f64::from((1 << 24) - 1)).round_ties_even() as u32
        });
        let planes = std::array::from_fn(|plane| integers.map(|e| e.to_le_bytes()[plane]));
        Self { integers, floats: integers.map(|e| e as f32), planes }
    }

    /// The sum of `e[max - q]` over a row.
    #[inline(always)]
    fn sum<S: Simd>(&self, s: S, planes: &[S::Table; 3], x: &[u8], max: u8) -> u64 {
        if !S::QUICK_LOOKUP {
            return x.iter().map(|q| u64::from(self.integers[usize::from(max - q)])).sum();
        }
        let (ones, maxima) = (s.splat_u8(1), s.splat_u8(max));
        let mut total = 0;
        // A lane adds four bytes at a time: 2^20 blocks would still fit.
        for x in x.chunks(65536 * S::BYTES) {
            let mut sums = [s.splat_i32(0); 3];
            let mut blocks = x.chunks_exact(S::BYTES);
            for block in blocks.by_ref() {
                let d = s.sub_u8(maxima, s.load_u8(block));
                for k in 0..3 {
                    sums[k] = s.dot(sums[k], s.lookup(&planes[k], d), ones);
                }
            }
            for (k, sum) in sums.into_iter().enumerate() {
                let mut lanes = [0; 16];
                s.store_i32(sum, &mut lanes[..S::LANES]);
                total += lanes[..S::LANES].iter().map(|x| *x as u64).sum::<u64>() << (8 * k);
            }
            total += blocks.remainder().iter().map(|q| u64::from(self.integers[usize::from(max - q)])).sum::<u64>();
        }
        total
    }

    /// The output for each `d`, in a row of this sum.
    #[inline(always)]
    fn outputs<S: Simd>(&self, s: S, sum: u64, qparams: QParams) -> [u8; 256] {
        let factor = s.splat((1.0 / (sum as f64 * f64::from(qparams.scale))) as f32);
        let zero_point = s.splat(qparams.zero_point as f32);
        let mut table = [0; 256];
        for (e, out) in self.floats.chunks_exact(S::BYTES).zip(table.chunks_exact_mut(S::BYTES)) {
            let mut t = s.load_f32x4(e);
            for t in &mut t {
                *t = s.mul_add(*t, factor, zero_point);
            }
            s.store_u8(s.narrow_u8(s.round_x4(t), s.splat_i16(0)), out);
        }
        table
    }
}

struct Softmax<'a> {
    x: &'a [u8],
    exponentials: Exponentials,
    columns: usize,
    qparams: QParams,
    out: &'a mut [u8],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let e = &self.exponentials;
        let planes = [s.table(&e.planes[0]), s.table(&e.planes[1]), s.table(&e.planes[2])];
        for (x, out) in self.x.chunks_exact(self.columns).zip(self.out.chunks_exact_mut(self.columns)) {
            let max = row_max(s, x);
            let sum = e.sum(s, &planes, x, max);
            let table = e.outputs(s, sum, self.qparams);
            if !S::QUICK_LOOKUP {
                for (x, out) in x.iter().zip(out) {
                    *out = table[usize::from(max - x)];
                }
                continue;
            }
            let (table, maxima) = (s.table(&table), s.splat_u8(max));
            let mut blocks = x.chunks_exact(S::BYTES);
            let mut outs = out.chunks_exact_mut(S::BYTES);
            for (x, out) in blocks.by_ref().zip(outs.by_ref()) {
                s.store_u8(s.lookup(&table, s.sub_u8(maxima, s.load_u8(x))), out);
            }
            let rest = s.sub_u8(maxima, s.load_u8(blocks.remainder()));
            s.store_u8(s.lookup(&table, rest), outs.into_remainder());
        }
    }
}

#[inline(always)]
fn row_max<S: Simd>(s: S, x: &[u8]) -> u8 {
    let mut max = s.splat_u8(0);
    let mut blocks = x.chunks_exact(S::BYTES);
    for block in blocks.by_ref() {
        max = s.max_u8(max, s.load_u8(block));
    }
    // The zeros after the end are never above the maximum.
    max = s.max_u8(max, s.load_u8(blocks.remainder()));
    let mut lanes = [0; 64];
    s.store_u8(max, &mut lanes[..S::BYTES]);
    lanes.into_iter().fold(0, u8::max)
}
