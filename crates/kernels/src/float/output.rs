//! Where the rows of a kernel go: f32, or bytes with one range for all or one a row.

use super::{Shared, span};
use crate::elementwise::simd::{Kernel, Simd};
use crate::quantize::{MinMax, quantize_run};
use crate::{QParams, choose_qparams};

/// Where the results of a kernel go, row by row, and in which form.
///
/// For a dynamic range of the whole tensor, store f32 and let `PackedGemm::run_dynamic` or
/// [`dynamic_qparams`](crate::dynamic_qparams) find it.
#[derive(Debug)]
pub enum Target<'a> {
    /// As they are.
    F32 {
        /// The values.
        values: &'a mut [f32],
        /// Values from one row to the next.
        stride: usize,
    },
    /// Rounded as [`quantize`](fn@crate::quantize) does.
    U8 {
        /// The bytes.
        bytes: &'a mut [u8],
        /// Bytes from one row to the next.
        stride: usize,
        /// One scale and zero point.
        qparams: QParams,
    },
    /// Rounded by each row's own range, as [`quantize_dynamic_rows`](crate::quantize_dynamic_rows) does: the
    /// [`DynamicRows`](crate::DynamicRows) that `PackedGemm::run_rows` multiplies.
    Dynamic {
        /// The bytes.
        bytes: &'a mut [u8],
        /// Bytes from one row to the next.
        stride: usize,
        /// Each row's scale.
        scales: &'a mut [f32],
        /// Each row's zero point.
        zero_points: &'a mut [u8],
    },
}

/// Values of scratch that a kernel needs for rows of `columns` values on `threads` threads, where it does not store f32.
pub fn scratch_len(columns: usize, threads: usize) -> usize {
    columns.saturating_mul(threads)
}

/// A [`Target`] whose sizes have been checked, shared by tasks that write rows of their own.
#[derive(Clone, Copy)]
pub(super) enum Sink {
    F32(Shared<f32>, usize),
    U8(Shared<u8>, usize, QParams),
    Dynamic(Shared<u8>, usize, Shared<f32>, Shared<u8>),
}

impl Sink {
    /// # Panics
    /// If the target has no room for the rows, or they overlap.
    pub fn new(target: Target<'_>, rows: usize, columns: usize) -> Self {
        let check = |len: usize, stride: usize| {
            let fits = span(rows, columns, stride).is_some_and(|needed| needed <= len);
            assert!(fits, "output: {rows} rows of {columns}, {stride} apart, do not fit {len} elements");
            assert!(rows <= 1 || stride >= columns, "output: rows of {columns} that are {stride} apart overlap");
        };
        match target {
            Target::F32 { values, stride } => {
                check(values.len(), stride);
                Sink::F32(Shared(values.as_mut_ptr()), stride)
            }
            Target::U8 { bytes, stride, qparams } => {
                check(bytes.len(), stride);
                Sink::U8(Shared(bytes.as_mut_ptr()), stride, qparams.check::<u8>())
            }
            Target::Dynamic { bytes, stride, scales, zero_points } => {
                check(bytes.len(), stride);
                let (scale, zero) = (scales.len(), zero_points.len());
                assert!(scale >= rows && zero >= rows, "output: {scale} scales and {zero} zero points, {rows} rows");
                let (scales, zero_points) = (scales.as_mut_ptr(), zero_points.as_mut_ptr());
                Sink::Dynamic(Shared(bytes.as_mut_ptr()), stride, Shared(scales), Shared(zero_points))
            }
        }
    }

    /// Whether rows are computed in scratch.
    pub fn takes_scratch(&self) -> bool {
        !matches!(self, Sink::F32(..))
    }

    /// Where row `row` is to be computed: in the output itself if it is f32, else in `scratch`.
    ///
    /// # Safety
    /// The row is inside the output, and this task's alone.
    #[inline(always)]
    pub unsafe fn row<'a>(&self, row: usize, columns: usize, scratch: &'a mut [f32]) -> &'a mut [f32] {
        match *self {
            // SAFETY: `new` has checked the span of all rows, which do not overlap; the row is the task's own.
            Sink::F32(values, stride) => unsafe { values.slice(row * stride, columns) },
            _ => &mut scratch[..columns],
        }
    }

    /// Rounds row `row` if it was computed in scratch.
    ///
    /// # Safety
    /// As of [`row`](Self::row).
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(&self, s: S, row: usize, values: &[f32]) {
        let (bytes, stride, qparams) = match *self {
            Sink::F32(..) => return,
            Sink::U8(bytes, stride, qparams) => (bytes, stride, qparams),
            Sink::Dynamic(bytes, stride, scales, zero_points) => {
                let (min, max) = MinMax(values).run(s);
                let (min, max) = if min > max { (0.0, 0.0) } else { (min + 0.0, max + 0.0) };
                let qparams = choose_qparams(min, max, (0, 255), false);
                // SAFETY: `new` has checked that there is one a row, and the row is the task's own.
                unsafe {
                    scales.slice(row, 1)[0] = qparams.scale;
                    zero_points.slice(row, 1)[0] = qparams.zero_point as u8;
                }
                (bytes, stride, qparams)
            }
        };
        // SAFETY: as in `row`.
        let bytes = unsafe { bytes.slice(row * stride, values.len()) };
        round(s, values, qparams, bytes);
    }
}

/// [`quantize`](fn@crate::quantize) on the vectors at hand.
#[inline(always)]
pub(super) fn round<S: Simd>(s: S, values: &[f32], qparams: QParams, bytes: &mut [u8]) {
    let inv_scale = [s.splat(qparams.inv_scale()); 4];
    let zero_point = [s.splat(qparams.zero_point as f32); 4];
    quantize_run::<S, u8, true>(s, values, inv_scale, zero_point, bytes);
}

/// Scratch for each of `tasks` tasks, one row each.
///
/// # Panics
/// If there is too little.
pub(super) fn check_scratch(sink: &Sink, columns: usize, scratch: &[f32], threads: usize) {
    let needed = if sink.takes_scratch() { scratch_len(columns, threads) } else { 0 };
    assert!(scratch.len() >= needed, "{} values of scratch, {needed} are needed", scratch.len());
}

/// The scratch of task `task`: a row, or nothing where the target is f32.
///
/// # Safety
/// `scratch` is what [`check_scratch`] has seen, and each task number is in use once at a time.
#[inline(always)]
pub(super) unsafe fn task_scratch<'a>(sink: &Sink, columns: usize, scratch: Shared<f32>, task: usize) -> &'a mut [f32] {
    match sink.takes_scratch() {
        // SAFETY: `check_scratch` has found a row for each of as many tasks as there are threads.
        true => unsafe { scratch.slice(task * columns, columns) },
        false => &mut [],
    }
}
