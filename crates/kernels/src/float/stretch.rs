//! Rows of f32 stretched to 0..=255 each by its own range, for products with INT8 weights.
//!
//! A row is `low + span * t` with `t = (x - low) / span` from 0 to 1, so that a product with a weight `w` is
//! `span * (t * w) + low * sum(w)`: [`stretch_rows`] gives `t` as bytes, `PackedGemm::run_rows` multiplies them, and
//! [`add_lows`] adds what the row's lowest value and the bias contribute.

use super::activate::InPlace;
use super::{Rows, Shared, split};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::geometry::elements;
use crate::quantize::{MinMax, quantize_run};
use crate::{Activation, Isa, Parallel, QParams};

/// A row of equal values has no span; it gets this one.
pub const LEAST_SPAN: f32 = 1e-12;

/// What 1.0 as 255 is, with the scale that `choose_qparams` finds for 0 to 1.
const UNIT: QParams = QParams::new((1.0f64 / 255.0) as f32, 0);

/// Where [`stretch_rows`] puts its results.
#[derive(Debug)]
pub struct Stretched<'a> {
    /// The rows, `columns` bytes each, one behind the other.
    pub bytes: &'a mut [u8],
    /// Each row's lowest value; NaN where the row has a value that is not finite.
    pub lows: &'a mut [f32],
    /// What a step of each row's bytes is.
    pub scales: &'a mut [f32],
}

/// Stretches `rows` rows of `columns` values, of each of which `function` is taken first.
///
/// `scratch`: [`scratch_len`](super::scratch_len) values. A row with a value that is not finite, or whose span is not, gives NaN as
/// its lowest value and scale.
///
/// # Panics
/// If a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn stretch_rows(
    isa: Isa,
    x: Rows<'_>,
    rows: usize,
    columns: usize,
    function: Option<Activation>,
    to: Stretched<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    x.check("input", rows, columns);
    let len = elements([rows, columns]).expect("a number of values");
    let fits = to.bytes.len() >= len && to.lows.len() >= rows && to.scales.len() >= rows;
    assert!(fits, "output: no room for {rows} rows of {columns}");
    let most = threads.threads().max(1);
    let needed = super::scratch_len(columns, most);
    assert!(scratch.len() >= needed, "{} values of scratch, {needed} are needed", scratch.len());
    if len == 0 {
        return;
    }
    let (bytes, lows) = (Shared(to.bytes.as_mut_ptr()), Shared(to.lows.as_mut_ptr()));
    let (scales, scratch) = (Shared(to.scales.as_mut_ptr()), Shared(scratch.as_mut_ptr()));
    split(threads, most, rows, 4 * columns, &|task, from, to| {
        // SAFETY: there are `columns` values of scratch for each of as many tasks as there are threads, and each number is in
        // use once; rows `from..to` are this task's alone, and all rows fit.
        let (scratch, bytes, lows, scales) = unsafe {
            (
                scratch.slice(task * columns, columns),
                bytes.slice(from * columns, (to - from) * columns),
                lows.slice(from, to - from),
                scales.slice(from, to - from),
            )
        };
        dispatch_f32(isa, StretchRows { x, first: from, columns, function, bytes, lows, scales, scratch });
    });
}

struct StretchRows<'a> {
    x: Rows<'a>,
    first: usize,
    columns: usize,
    function: Option<Activation>,
    bytes: &'a mut [u8],
    lows: &'a mut [f32],
    scales: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for StretchRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, first, columns, function, bytes, lows, scales, scratch } = self;
        let (inv_scale, zero) = ([s.splat(UNIT.inv_scale()); 4], [s.splat(0.0); 4]);
        for (row, bytes) in bytes.chunks_exact_mut(columns).enumerate() {
            let from = x.row(first + row, columns);
            let (low, span) = match function {
                Some(function) => {
                    scratch.copy_from_slice(from);
                    InPlace { function, values: &mut *scratch }.run(s);
                    let (low, span) = range(s, scratch);
                    stretch(s, None, low, span, scratch);
                    (low, span)
                }
                None => {
                    let (low, span) = range(s, from);
                    stretch(s, Some(from), low, span, scratch);
                    (low, span)
                }
            };
            (lows[row], scales[row]) = (low, span * UNIT.scale);
            quantize_run::<S, u8, true>(s, scratch, inv_scale, zero, bytes);
        }
    }
}

/// The lowest value of a row and its span; NaN where a value, or the span, is not finite.
#[inline(always)]
fn range<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let (low, high) = MinMax(x).run(s);
    let span = (high - low).max(LEAST_SPAN);
    match span < f32::INFINITY && all_finite(s, x) {
        true => (low + 0.0, span),
        false => (f32::NAN, f32::NAN),
    }
}

/// Whether no value is an infinity or NaN: of these alone the product with 0 is not 0.
#[inline(always)]
fn all_finite<S: Simd>(s: S, x: &[f32]) -> bool {
    let (zero, mut sums) = (s.splat(0.0), [s.splat(0.0); 4]);
    for x in x.chunks(S::BYTES) {
        let x = s.load_f32x4(x);
        for k in 0..4 {
            sums[k] = s.mul_add(x[k], zero, sums[k]);
        }
    }
    s.sum_lanes(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))) == 0.0
}

/// `(x - low) / span` into `out`, which has the row itself if there is no `x`.
#[inline(always)]
fn stretch<S: Simd>(s: S, x: Option<&[f32]>, low: f32, span: f32, out: &mut [f32]) {
    let (low, span) = (s.splat(low), s.splat(span));
    let mut first = 0;
    while first < out.len() {
        let end = out.len().min(first + S::BYTES);
        let mut t = match x {
            Some(x) => s.load_f32x4(&x[first..end]),
            None => s.load_f32x4(&out[first..end]),
        };
        for t in &mut t {
            *t = s.div(s.sub(*t, low), span);
        }
        s.store_f32x4(t, &mut out[first..end]);
        first = end;
    }
}

/// `values + lows[row] * factors[column] + bias[column] + residual` in place, for rows of `factors.len()` values.
///
/// `bias` is one a column or empty. Each term is added with one rounding, in this order.
///
/// # Panics
/// If a slice is too short.
pub fn add_lows(
    isa: Isa,
    values: &mut [f32],
    lows: &[f32],
    factors: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    threads: &dyn Parallel,
) {
    let (rows, columns) = (lows.len(), factors.len());
    let len = elements([rows, columns]).expect("a number of values");
    let fits = values.len() >= len && residual.is_none_or(|residual| residual.len() >= len);
    assert!(fits && (bias.is_empty() || bias.len() == columns), "{rows} rows of {columns} do not fit");
    let values = Shared(values.as_mut_ptr());
    split(threads, threads.threads().max(1), rows, columns, &|_, from, to| {
        // SAFETY: the rows are this task's alone, and all rows fit.
        let values = unsafe { values.slice(from * columns, (to - from) * columns) };
        let residual = residual.map(|residual| &residual[from * columns..to * columns]);
        dispatch_f32(isa, AddLows { values, lows: &lows[from..to], factors, bias, residual });
    });
}

struct AddLows<'a> {
    values: &'a mut [f32],
    lows: &'a [f32],
    factors: &'a [f32],
    bias: &'a [f32],
    residual: Option<&'a [f32]>,
}

impl Kernel for AddLows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { values, lows, factors, bias, residual } = self;
        let columns = factors.len();
        for (row, low) in lows.iter().enumerate() {
            let out = &mut values[row * columns..][..columns];
            let low = s.splat(*low);
            let mut first = 0;
            while first < columns {
                let end = columns.min(first + S::BYTES);
                let (mut y, factors) = (s.load_f32x4(&out[first..end]), s.load_f32x4(&factors[first..end]));
                for k in 0..4 {
                    y[k] = s.mul_add(low, factors[k], y[k]);
                }
                if !bias.is_empty() {
                    let bias = s.load_f32x4(&bias[first..end]);
                    for k in 0..4 {
                        y[k] = s.add(y[k], bias[k]);
                    }
                }
                if let Some(residual) = residual {
                    let residual = s.load_f32x4(&residual[row * columns + first..row * columns + end]);
                    for k in 0..4 {
                        y[k] = s.add(y[k], residual[k]);
                    }
                }
                s.store_f32x4(y, &mut out[first..end]);
                first = end;
            }
        }
    }
}
