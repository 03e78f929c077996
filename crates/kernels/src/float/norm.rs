//! Layer norm and root-mean-square norm of rows of f32, with a sum before them.

use super::output::{Sink, check_scratch, task_scratch};
use super::{LANES, Rows, Shared, Target, span, split, sum_lanes, with_vectors};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::{Isa, Parallel};

/// The parameters of a norm over rows of `columns` values.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// The length of a row.
    pub columns: usize,
    /// The factor of each column, or empty.
    pub weight: &'a [f32],
    /// What is added to each column, or empty.
    pub bias: &'a [f32],
    /// Added to the variance, or to the mean of the squares.
    pub eps: f64,
}

/// Layer norm of `z = x + residual`: `(z - mean) / sqrt(var + eps) * weight + bias` for each of `rows` rows.
///
/// `residual` is added if it is there, and its sum with `x` stored in `sum`, rows of `columns` that follow each other, if
/// that is wanted. The mean is a sum of f32 in 32 lanes, the variance one of the squares of `z - mean`, and
/// `1 / sqrt` is in f64. With `m = max |z|` of a row, `g = weight / sqrt(var + eps)`, the result is within
/// `(4 + columns / 32) * 2^-24 * (m |g| + |bias|)`, plus as much of the value, where no sum overflows. A row with a value that is not finite is NaN.
///
/// `scratch`: [`scratch_len`](super::scratch_len) values where `target` is not f32.
///
/// The mean and the deviations from it as in Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983),
/// the "two-pass" one.
///
/// # Panics
/// If a slice is too short, or `sum` is there without `residual`.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm(
    isa: Isa,
    x: Rows<'_>,
    residual: Option<Rows<'_>>,
    sum: Option<&mut [f32]>,
    rows: usize,
    norm: Norm<'_>,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    run::<true>(isa, x, residual, sum, rows, norm, target, scratch, threads);
}

/// Root-mean-square norm of `z = x + residual`: `z / sqrt(mean(z²) + eps) * weight + bias`; all else as [`layer_norm`]
/// (Zhang and Sennrich, Root mean square layer normalization, 2019).
///
/// # Panics
/// As [`layer_norm`].
#[allow(clippy::too_many_arguments)]
pub fn rms_norm(
    isa: Isa,
    x: Rows<'_>,
    residual: Option<Rows<'_>>,
    sum: Option<&mut [f32]>,
    rows: usize,
    norm: Norm<'_>,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    run::<false>(isa, x, residual, sum, rows, norm, target, scratch, threads);
}

#[allow(clippy::too_many_arguments)]
fn run<const CENTRED: bool>(
    isa: Isa,
    x: Rows<'_>,
    residual: Option<Rows<'_>>,
    sum: Option<&mut [f32]>,
    rows: usize,
    norm: Norm<'_>,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    let columns = norm.columns;
    x.check("input", rows, columns);
    if let Some(residual) = residual {
        residual.check("residual", rows, columns);
    }
    for (what, values) in [("weight", norm.weight), ("bias", norm.bias)] {
        assert!(values.is_empty() || values.len() == columns, "{what}: {} values for {columns} columns", values.len());
    }
    if rows == 0 || columns == 0 {
        return;
    }
    let sum = sum.map(|sum| {
        assert!(residual.is_some(), "a sum is asked for, of what?");
        let fits = span(rows, columns, columns).is_some_and(|needed| needed <= sum.len());
        assert!(fits, "sum: {rows} rows of {columns} do not fit {} values", sum.len());
        Shared(sum.as_mut_ptr())
    });
    let sink = Sink::new(target, rows, columns);
    let most = threads.threads().max(1);
    check_scratch(&sink, columns, scratch, most);
    let scratch = Shared(scratch.as_mut_ptr());
    split(threads, most, rows, 2 * columns, &|task, from, to| {
        // SAFETY: `check_scratch` has seen it, and `split` gives each task number once.
        let scratch = unsafe { task_scratch(&sink, columns, scratch, task) };
        dispatch_f32(isa, NormRows::<CENTRED> { x, residual, sum, rows: [from, to], norm, sink, scratch });
    });
}

struct NormRows<'a, const CENTRED: bool> {
    x: Rows<'a>,
    residual: Option<Rows<'a>>,
    sum: Option<Shared<f32>>,
    rows: [usize; 2],
    norm: Norm<'a>,
    sink: Sink,
    scratch: &'a mut [f32],
}

impl<const CENTRED: bool> Kernel for NormRows<'_, CENTRED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, residual, sum, rows, norm, sink, scratch } = self;
        let columns = norm.columns;
        for row in rows[0]..rows[1] {
            // SAFETY: the row is one of this task's, and the sink was made for all rows.
            let out = unsafe { sink.row(row, columns, scratch) };
            let x = x.row(row, columns);
            let from = match residual {
                Some(residual) => {
                    add_rows(s, x, residual.row(row, columns), out);
                    if let Some(sum) = sum {
                        // SAFETY: `run` has checked that all rows fit, and this one is the task's.
                        unsafe { sum.slice(row * columns, columns) }.copy_from_slice(out);
                    }
                    let (mean, factor) = with_vectors!(S, moments::<S; N>(s, out, norm.eps, CENTRED));
                    Normalize { mean, factor, from: None }
                }
                None => {
                    let (mean, factor) = with_vectors!(S, moments::<S; N>(s, x, norm.eps, CENTRED));
                    Normalize { mean, factor, from: Some(x) }
                }
            };
            from.run(s, &norm, out);
            // SAFETY: as above.
            unsafe { sink.finish(s, row, out) };
        }
    }
}

/// `out = x + y`.
#[inline(always)]
fn add_rows<S: Simd>(s: S, x: &[f32], y: &[f32], out: &mut [f32]) {
    let mut first = 0;
    while first < out.len() {
        let end = out.len().min(first + S::BYTES);
        let (mut x, y) = (s.load_f32x4(&x[first..end]), s.load_f32x4(&y[first..end]));
        for k in 0..4 {
            x[k] = s.add(x[k], y[k]);
        }
        s.store_f32x4(x, &mut out[first..end]);
        first = end;
    }
}

/// The end of a row that is no whole number of [`LANES`], zeros behind it.
#[inline(always)]
fn tail_of(row: &[f32]) -> [f32; LANES] {
    let mut tail = [0.0; LANES];
    let rest = &row[row.len() / LANES * LANES..];
    tail[..rest.len()].copy_from_slice(rest);
    tail
}

/// A row's mean (0 if not `centred`) and `1 / sqrt(mean of the squared deviations from it + eps)`.
#[inline(always)]
fn moments<S: Simd, const N: usize>(s: S, row: &[f32], eps: f64, centred: bool) -> (f32, f32) {
    let (whole, tail, len) = (row.len() / LANES * LANES, tail_of(row), row.len() as f64);
    let mut mean = 0.0;
    if centred {
        let mut sums = [s.splat(0.0); N];
        for x in row.chunks_exact(LANES) {
            for k in 0..N {
                sums[k] = s.add(sums[k], s.load_f32(&x[k * S::LANES..(k + 1) * S::LANES]));
            }
        }
        for k in 0..N {
            sums[k] = s.add(sums[k], s.load_f32(&tail[k * S::LANES..(k + 1) * S::LANES]));
        }
        mean = (f64::from(sum_lanes(s, sums)) / len) as f32;
    }
    let m = s.splat(mean);
    let mut squares = [s.splat(0.0); N];
    for x in row.chunks_exact(LANES) {
        for k in 0..N {
            let d = s.sub(s.load_f32(&x[k * S::LANES..(k + 1) * S::LANES]), m);
            squares[k] = s.mul_add(d, d, squares[k]);
        }
    }
    // Behind the row's end the deviation is 0, not that of a 0.
    let mut deviations = [0.0; LANES];
    for i in 0..row.len() - whole {
        deviations[i] = tail[i] - mean;
    }
    for k in 0..N {
        let d = s.load_f32(&deviations[k * S::LANES..(k + 1) * S::LANES]);
        squares[k] = s.mul_add(d, d, squares[k]);
    }
    let variance = f64::from(sum_lanes(s, squares)) / len;
    (mean, (1.0 / (variance + eps).sqrt()) as f32)
}

/// `(x - mean) * factor * weight + bias`.
struct Normalize<'a> {
    mean: f32,
    factor: f32,
    /// None where the row is in the output already.
    from: Option<&'a [f32]>,
}

impl Normalize<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, norm: &Norm<'_>, out: &mut [f32]) {
        let (mean, factor) = (s.splat(self.mean), s.splat(self.factor));
        let mut first = 0;
        while first < out.len() {
            let end = out.len().min(first + S::BYTES);
            let mut x = match self.from {
                Some(from) => s.load_f32x4(&from[first..end]),
                None => s.load_f32x4(&out[first..end]),
            };
            for x in &mut x {
                *x = s.mul(s.sub(*x, mean), factor);
            }
            let weight = match norm.weight {
                [] => None,
                weight => Some(s.load_f32x4(&weight[first..end])),
            };
            let bias = match norm.bias {
                [] => None,
                bias => Some(s.load_f32x4(&bias[first..end])),
            };
            for k in 0..4 {
                x[k] = match (weight, bias) {
                    (Some(weight), Some(bias)) => s.mul_add(x[k], weight[k], bias[k]),
                    (Some(weight), None) => s.mul(x[k], weight[k]),
                    (None, Some(bias)) => s.add(x[k], bias[k]),
                    (None, None) => x[k],
                };
            }
            s.store_f32x4(x, &mut out[first..end]);
            first = end;
        }
    }
}
