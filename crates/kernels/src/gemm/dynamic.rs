//! Products with f32 activations that are quantized on the fly.

use super::PackedGemm;
use super::finish::ActivationScale;
use crate::geometry::elements;
use crate::{Dequantize, Isa, Output, Parallel, QParams, dynamic_qparams, quantize};
use crate::{Error, Result};

/// How f32 activations become u8 on the fly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum DynamicScheme {
    /// One range for the whole tensor, as libtorch's `quantized::linear_dynamic`.
    PerTensor {
        /// 0 to 127 instead of 0 to 255.
        reduce_range: bool,
    },
    /// A range a row: more accurate where rows differ in size.
    PerRow,
}

/// Bytes of scratch for a row that has a range of its own: scale and zero point.
const ROW: usize = size_of::<f32>() + 1;

/// Values that are worth a thread of their own when they are quantized.
const VALUES_A_TASK: usize = 1 << 15;

impl PackedGemm {
    /// Bytes of scratch that [`run_dynamic`](Self::run_dynamic) needs for `m` rows.
    pub fn dynamic_scratch_len(&self, m: usize) -> usize {
        m.saturating_mul(self.k() + ROW).saturating_add(size_of::<f32>())
    }

    /// Multiplies f32 activations `a`, row-major `[m, k]`, after quantizing them to u8 in `scratch`. `dequantize.scale` are
    /// the weight's scales: the activations' are multiplied to them. The output is `[m, n]`.
    ///
    /// # Errors
    /// Where a slice is too short.
    pub fn run_dynamic(
        &self,
        a: &[f32],
        m: usize,
        scheme: DynamicScheme,
        output: &mut [f32],
        dequantize: Dequantize<'_>,
        scratch: &mut [u8],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let k = self.k();
        if elements([m, k]).is_none_or(|len| a.len() < len) || scratch.len() < self.dynamic_scratch_len(m) {
            return Err(Error(format!(
                "{m} rows of {k} values and {} bytes of scratch are needed, there are {} values and {} bytes",
                self.dynamic_scratch_len(m),
                a.len(),
                scratch.len()
            )));
        }
        let a = &a[..m * k];
        let (bytes, rest) = scratch.split_at_mut(m * k);
        let isa = self.path.isa();
        match scheme {
            DynamicScheme::PerTensor { reduce_range } => {
                let qparams = dynamic_qparams::<u8>(isa, a, reduce_range);
                quantize_on(threads, isa, a, qparams, bytes);
                let scale = ActivationScale::Tensor(qparams.scale);
                let zero_point = qparams.zero_point as u8;
                self.multiply(bytes, k, m, zero_point, Some(scale), Output::F32(output, dequantize), self.n(), threads)
            }
            DynamicScheme::PerRow => {
                let (zero_points, rest) = rest.split_at_mut(m);
                // SAFETY: any bytes are a f32; the middle is aligned and inside `rest`.
                let (_, scales, _) = unsafe { rest.align_to_mut::<f32>() };
                let scales = &mut scales[..m];
                for row in 0..m {
                    let values = &a[row * k..][..k];
                    let qparams = dynamic_qparams::<u8>(isa, values, false);
                    quantize(isa, values, qparams, &mut bytes[row * k..][..k]);
                    (scales[row], zero_points[row]) = (qparams.scale, qparams.zero_point as u8);
                }
                let rows = DynamicRows { bytes, stride: k, scales, zero_points };
                self.run_rows(rows, m, output, dequantize, threads)
            }
        }
    }

    /// As [`run_dynamic`](Self::run_dynamic) with [`DynamicScheme::PerRow`], of `m` rows that are quantized already.
    ///
    /// # Errors
    /// Where a slice is too short.
    pub fn run_rows(
        &self,
        rows: DynamicRows<'_>,
        m: usize,
        output: &mut [f32],
        dequantize: Dequantize<'_>,
        threads: &dyn Parallel,
    ) -> Result<()> {
        let (scales, zero_points) = (rows.scales.len(), rows.zero_points.len());
        if scales < m || zero_points < m {
            return Err(Error(format!("{m} rows have {scales} scales and {zero_points} zero points")));
        }
        let scale = ActivationScale::Rows { scale: &rows.scales[..m], zero_point: &rows.zero_points[..m] };
        let output = Output::F32(output, dequantize);
        self.multiply(rows.bytes, rows.stride, m, 0, Some(scale), output, self.n(), threads)
    }
}

/// u8 rows, each with a range of its own.
#[derive(Clone, Copy, Debug)]
pub struct DynamicRows<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Each row's scale.
    pub scales: &'a [f32],
    /// Each row's zero point.
    pub zero_points: &'a [u8],
}

/// Quantizes on the caller's threads.
fn quantize_on(threads: &dyn Parallel, isa: Isa, values: &[f32], qparams: QParams, bytes: &mut [u8]) {
    let tasks = threads.threads().min(values.len() / VALUES_A_TASK);
    if tasks < 2 {
        return quantize(isa, values, qparams, bytes);
    }
    let to = Shared(bytes.as_mut_ptr());
    threads.run(tasks, &|task| {
        let (from, end) = (values.len() * task / tasks, values.len() * (task + 1) / tasks);
        // SAFETY: tasks have ranges of their own within `bytes`, which is as long as `values`.
        let part = unsafe { std::slice::from_raw_parts_mut(to.at(from), end - from) };
        quantize(isa, &values[from..end], qparams, part);
    });
}

/// A pointer that tasks share, each writing a range of its own.
struct Shared(*mut u8);

// SAFETY: see the type.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(&self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}
