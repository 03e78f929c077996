//! Softmax of rows of f32, with a scale and a mask before it.

use super::math::exp_negative;
use super::output::{Sink, check_scratch, task_scratch};
use super::{LANES, Rows, Shared, Target, end, split, sum_lanes, with_vectors};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::{Isa, Parallel};

/// Values to add to rows that are numbered by three dimensions, `[batch, heads, rows]`; a stride of 0 repeats.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The values; a row's follow each other.
    pub data: &'a [f32],
    /// Values from one batch, head, row to the next.
    pub strides: [usize; 3],
}

impl<'a> Mask<'a> {
    /// One row of values for all rows.
    pub fn row(data: &'a [f32]) -> Self {
        Self { data, strides: [0; 3] }
    }

    /// The values for row `[batch, head, row]`, and all behind them.
    #[inline(always)]
    pub(super) fn at(&self, [batch, head, row]: [usize; 3]) -> &'a [f32] {
        let [a, b, c] = self.strides;
        &self.data[batch * a + head * b + row * c..]
    }

    pub(super) fn check(&self, sizes: [usize; 3], columns: usize) {
        let fits = end(sizes, self.strides, columns).is_some_and(|end| end <= self.data.len());
        assert!(fits, "mask: {sizes:?} rows of {columns} do not fit {} values", self.data.len());
    }
}

/// `softmax(x * scale + mask)` of each row of `columns` values; there are `sizes[0] * sizes[1] * sizes[2]` rows, which
/// follow each other `x.stride` apart and take their masks by their three numbers.
///
/// `e = exp(t - max t)` with `t` rounded once, divided by the sum of all `e` (times its reciprocal). Within
/// `(4 + columns / 32) * 2^-24` of the value and 1.2e-38: an `e` below it is 0. As in libtorch a row that is -inf throughout, or has
/// a NaN or +inf, gives NaN.
///
/// `scratch`: [`scratch_len`](super::scratch_len) values where `target` is not f32.
///
/// # Panics
/// If a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn softmax(
    isa: Isa,
    x: Rows<'_>,
    sizes: [usize; 3],
    columns: usize,
    scale: f32,
    mask: Option<Mask<'_>>,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    run::<false>(isa, x, sizes, columns, scale, mask, target, scratch, threads);
}

/// `log_softmax(x * scale + mask)`: `t - max t - ln(sum of e)`, as [`softmax`]; the logarithm in f64.
///
/// Within `(2 + columns / 32) * 2^-24` and as much of the value.
///
/// # Panics
/// If a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn log_softmax(
    isa: Isa,
    x: Rows<'_>,
    sizes: [usize; 3],
    columns: usize,
    scale: f32,
    mask: Option<Mask<'_>>,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    run::<true>(isa, x, sizes, columns, scale, mask, target, scratch, threads);
}

#[allow(clippy::too_many_arguments)]
fn run<const LOG: bool>(
    isa: Isa,
    x: Rows<'_>,
    sizes: [usize; 3],
    columns: usize,
    scale: f32,
    mask: Option<Mask<'_>>,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    let rows = crate::geometry::elements(sizes).expect("a number of rows");
    x.check("input", rows, columns);
    if let Some(mask) = mask {
        mask.check(sizes, columns);
    }
    if rows == 0 || columns == 0 {
        return;
    }
    let sink = Sink::new(target, rows, columns);
    let most = threads.threads().max(1);
    check_scratch(&sink, columns, scratch, most);
    let scratch = Shared(scratch.as_mut_ptr());
    split(threads, most, rows, 4 * columns, &|task, from, to| {
        // SAFETY: `check_scratch` has seen it, and `split` gives each task number once.
        let scratch = unsafe { task_scratch(&sink, columns, scratch, task) };
        dispatch_f32(isa, SoftmaxRows::<LOG> { x, sizes, rows: [from, to], columns, scale, mask, sink, scratch });
    });
}

struct SoftmaxRows<'a, const LOG: bool> {
    x: Rows<'a>,
    sizes: [usize; 3],
    rows: [usize; 2],
    columns: usize,
    scale: f32,
    mask: Option<Mask<'a>>,
    sink: Sink,
    scratch: &'a mut [f32],
}

impl<const LOG: bool> Kernel for SoftmaxRows<'_, LOG> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, sizes, rows, columns, scale, mask, sink, scratch } = self;
        for row in rows[0]..rows[1] {
            // SAFETY: the row is one of this task's, and the sink was made for all rows.
            let out = unsafe { sink.row(row, columns, scratch) };
            out.copy_from_slice(x.row(row, columns));
            let place = [row / sizes[2] / sizes[1], row / sizes[2] % sizes[1], row % sizes[2]];
            let mask = mask.map(|mask| mask.at(place));
            if LOG {
                with_vectors!(S, log_row::<S; N>(s, out, scale, mask));
            } else {
                let sum = exponentials(s, out, columns, scale, mask, false);
                scale_row(s, out, 1.0 / sum);
            }
            // SAFETY: as above.
            unsafe { sink.finish(s, row, out) };
        }
    }
}

/// Multiplies a row.
#[inline(always)]
pub(super) fn scale_row<S: Simd>(s: S, row: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for block in row.chunks_mut(S::BYTES) {
        let mut x = s.load_f32x4(block);
        for x in &mut x {
            *x = s.mul(*x, factor);
        }
        s.store_f32x4(x, block);
    }
}

/// Turns the first `len` values of `row` into `exp(t - max t)` with `t = row * scale + mask`, and returns their sum. Where `len`
/// is no whole number of [`LANES`] and the row goes on for so many, zeros or NaN come behind it. A row that is -inf throughout
/// becomes NaN, or zeros if `blind_is_zero`. The mask may be longer than the row.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(
    s: S,
    row: &mut [f32],
    len: usize,
    scale: f32,
    mask: Option<&[f32]>,
    blind_is_zero: bool,
) -> f32 {
    with_vectors!(S, exponential_row::<S; N>(s, row, len, scale, mask, blind_is_zero))
}

/// The numbers of the lanes.
const NUMBERS: [f32; LANES] = {
    let mut numbers = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        numbers[i] = i as f32;
        i += 1;
    }
    numbers
};

/// Calls `$body` with the last lanes of a row, `$rest` of which are its own: where they are if so many follow, else in a copy.
macro_rules! with_tail {
    ($row:ident, $len:ident, |$tail:ident, $rest:ident| $body:expr) => {
        let whole = $len / LANES * LANES;
        let $rest = $len - whole;
        if $rest > 0 {
            if let Some($tail) = $row.get_mut(whole..whole + LANES) {
                $body
            } else {
                let mut copy = [0.0f32; LANES];
                copy[..$rest].copy_from_slice(&$row[whole..$len]);
                let $tail = &mut copy;
                $body
                $row[whole..$len].copy_from_slice(&copy[..$rest]);
            }
        }
    };
}

/// `t = row * scale + mask` in place, and its maximum. Behind the row comes -inf, if there are lanes.
#[inline(always)]
fn prepare<S: Simd, const N: usize>(s: S, row: &mut [f32], len: usize, scale: f32, mask: Option<&[f32]>) -> f32 {
    let factor = s.splat(scale);
    let mut maxima = [s.splat(f32::NEG_INFINITY); N];
    let blocks = row[..len].chunks_exact_mut(LANES);
    match mask {
        Some(mask) => {
            for (x, mask) in blocks.zip(mask[..len].chunks_exact(LANES)) {
                for k in 0..N {
                    let at = k * S::LANES..(k + 1) * S::LANES;
                    let t = s.mul_add(s.load_f32(&x[at.clone()]), factor, s.load_f32(&mask[at.clone()]));
                    maxima[k] = s.max(t, maxima[k]);
                    s.store_f32(t, &mut x[at]);
                }
            }
        }
        None => {
            for x in blocks {
                for k in 0..N {
                    let at = k * S::LANES..(k + 1) * S::LANES;
                    let t = s.mul(s.load_f32(&x[at.clone()]), factor);
                    maxima[k] = s.max(t, maxima[k]);
                    s.store_f32(t, &mut x[at]);
                }
            }
        }
    }
    with_tail!(row, len, |tail, rest| {
        let mut copy = [0.0; LANES];
        let mask = mask.map(|mask| {
            let mask = &mask[len - rest..];
            if mask.len() >= LANES {
                return &mask[..LANES];
            }
            copy[..rest].copy_from_slice(&mask[..rest]);
            &copy[..]
        });
        let end = s.splat(rest as f32);
        for k in 0..N {
            let at = k * S::LANES..(k + 1) * S::LANES;
            let x = s.load_f32(&tail[at.clone()]);
            let t = match mask {
                Some(mask) => s.mul_add(x, factor, s.load_f32(&mask[at.clone()])),
                None => s.mul(x, factor),
            };
            let t = s.if_less(s.load_f32(&NUMBERS[at.clone()]), end, t, s.splat(f32::NEG_INFINITY));
            maxima[k] = s.max(t, maxima[k]);
            s.store_f32(t, &mut tail[at]);
        }
    });
    let mut half = N / 2;
    while half > 0 {
        for k in 0..half {
            maxima[k] = s.max(maxima[k], maxima[k + half]);
        }
        half /= 2;
    }
    s.max_lanes(maxima[0])
}

#[inline(always)]
fn exponential_row<S: Simd, const N: usize>(
    s: S,
    row: &mut [f32],
    len: usize,
    scale: f32,
    mask: Option<&[f32]>,
    blind_is_zero: bool,
) -> f32 {
    let mut max = prepare::<S, N>(s, row, len, scale, mask);
    if max == f32::NEG_INFINITY && blind_is_zero {
        // A NaN among them stays one.
        max = 0.0;
    }
    let max = s.splat(max);
    let mut sums = [s.splat(0.0); N];
    for x in row[..len].chunks_exact_mut(LANES) {
        for k in 0..N {
            let at = k * S::LANES..(k + 1) * S::LANES;
            let e = exp_negative(s, s.sub(s.load_f32(&x[at.clone()]), max));
            sums[k] = s.add(sums[k], e);
            s.store_f32(e, &mut x[at]);
        }
    }
    with_tail!(row, len, |tail, rest| {
        let end = s.splat(rest as f32);
        for k in 0..N {
            let at = k * S::LANES..(k + 1) * S::LANES;
            let e = exp_negative(s, s.sub(s.load_f32(&tail[at.clone()]), max));
            // What the copy has behind the row is no -inf.
            let e = s.if_less(s.load_f32(&NUMBERS[at.clone()]), end, e, s.splat(0.0));
            sums[k] = s.add(sums[k], e);
            s.store_f32(e, &mut tail[at]);
        }
    });
    sum_lanes(s, sums)
}

/// `t - max t - ln(sum of exponentials)` in place.
#[inline(always)]
fn log_row<S: Simd, const N: usize>(s: S, row: &mut [f32], scale: f32, mask: Option<&[f32]>) {
    let len = row.len();
    let max = s.splat(prepare::<S, N>(s, row, len, scale, mask));
    let mut sums = [s.splat(0.0); N];
    for x in row.chunks_exact(LANES) {
        for k in 0..N {
            let x = s.load_f32(&x[k * S::LANES..(k + 1) * S::LANES]);
            sums[k] = s.add(sums[k], exp_negative(s, s.sub(x, max)));
        }
    }
    with_tail!(row, len, |tail, rest| {
        let end = s.splat(rest as f32);
        for k in 0..N {
            let at = k * S::LANES..(k + 1) * S::LANES;
            let e = exp_negative(s, s.sub(s.load_f32(&tail[at.clone()]), max));
            sums[k] = s.add(sums[k], s.if_less(s.load_f32(&NUMBERS[at]), end, e, s.splat(0.0)));
        }
    });
    let log = s.splat(f64::from(sum_lanes(s, sums)).ln() as f32);
    for block in row.chunks_mut(S::BYTES) {
        let mut x = s.load_f32x4(block);
        for x in &mut x {
            *x = s.sub(s.sub(*x, max), log);
        }
        s.store_f32x4(x, block);
    }
}
