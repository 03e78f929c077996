//! Linear layers.

use super::bridge::ffi::{Affine, Bounds, DynamicForm, Requantization};
use super::channels::{Channels, scale, zero_point};
use super::threads::{HostThreads, with_scratch};
use crate::error::{Error, Result, no_panic};
use crate::kernel::{DynamicScheme, Isa, Output, PackedGemm, QParams, quantize};
use jitquant_runtime::Weight;

/// A linear layer's i8 weight, packed for this machine, with its scales.
pub(super) struct LinearWeight {
    gemm: PackedGemm,
    channels: Channels,
}

pub(super) fn linear_weight(
    weight: &[i8],
    n: usize,
    k: usize,
    scales: &[f32],
    zero_points: &[i32],
) -> Result<Box<LinearWeight>> {
    no_panic(|| {
        let gemm = PackedGemm::new(Isa::current(), weight, n, k, zero_points)?;
        Ok(Box::new(LinearWeight { gemm, channels: Channels::new(scales, n)? }))
    })
}

impl LinearWeight {
    /// The weight of a step.
    pub fn weight<'a>(&'a self, bias: &'a [f32]) -> Weight<'a> {
        Weight::Linear { packed: &self.gemm, scales: self.channels.scales(), bias }
    }

    /// Values in a row of the input.
    pub fn inputs(&self) -> usize {
        self.gemm.k()
    }

    /// Values in a row of the output.
    pub fn outputs(&self) -> usize {
        self.gemm.n()
    }

    /// Writes the weight, `[outputs, inputs]`.
    pub fn unpack(&self, weight: &mut [i8]) -> Result<()> {
        no_panic(|| {
            self.gemm.unpack_into(weight);
            Ok(())
        })
    }

    /// The rows of an input and an output of these lengths.
    fn rows(&self, input: usize, output: usize) -> Result<usize> {
        let (k, n) = (self.inputs(), self.outputs());
        let rows = input.checked_div(k).unwrap_or(output / n.max(1));
        if rows.checked_mul(k) != Some(input) || rows.checked_mul(n) != Some(output) {
            return Err(Error::invalid(format!("{input} inputs and {output} outputs are not rows of {k} and {n}")));
        }
        Ok(rows)
    }

    /// A u8 output from a u8 input.
    pub fn run_u8(
        &self,
        input: &[u8],
        affine: Affine,
        bias: &[f32],
        output: &mut [u8],
        form: Requantization<'_>,
    ) -> Result<()> {
        no_panic(|| {
            let rows = self.rows(input.len(), output.len())?;
            let zero = zero_point(&affine, "input")?;
            self.channels.requantize(&affine, bias, &form, |epilogue| {
                let output = Output::U8(output, epilogue);
                Ok(self.gemm.run(input, self.inputs(), rows, zero, output, self.outputs(), &HostThreads::new())?)
            })
        })
    }

    /// An f32 output from a u8 input.
    pub fn run_f32(
        &self,
        input: &[u8],
        affine: Affine,
        bias: &[f32],
        output: &mut [f32],
        bounds: Bounds,
    ) -> Result<()> {
        no_panic(|| {
            let rows = self.rows(input.len(), output.len())?;
            let zero = zero_point(&affine, "input")?;
            self.channels.dequantize(scale(&affine, "input")?, bias, bounds, |epilogue| {
                let output = Output::F32(output, epilogue);
                Ok(self.gemm.run(input, self.inputs(), rows, zero, output, self.outputs(), &HostThreads::new())?)
            })
        })
    }

    /// An f32 output from an f32 input that is quantized with its own range.
    pub fn run_dynamic(
        &self,
        input: &[f32],
        form: DynamicForm,
        bias: &[f32],
        output: &mut [f32],
        bounds: Bounds,
    ) -> Result<()> {
        no_panic(|| {
            let rows = self.rows(input.len(), output.len())?;
            let scheme = match form.per_row {
                true => DynamicScheme::PerRow,
                false => DynamicScheme::PerTensor { reduce_range: form.reduce_range },
            };
            self.channels.dequantize(1.0, bias, bounds, |epilogue| {
                with_scratch(self.gemm.dynamic_scratch_len(rows), |scratch| {
                    Ok(self.gemm.run_dynamic(input, rows, scheme, output, epilogue, scratch, &HostThreads::new())?)
                })?
            })
        })
    }

    /// An f32 output from an f32 input that is quantized with the range given.
    pub fn run_quantizing(
        &self,
        input: &[f32],
        affine: Affine,
        bias: &[f32],
        output: &mut [f32],
        bounds: Bounds,
    ) -> Result<()> {
        no_panic(|| {
            let qparams = QParams::new(scale(&affine, "input")?, i32::from(zero_point(&affine, "input")?));
            with_scratch(input.len(), |bytes| {
                quantize(Isa::current(), input, qparams, bytes);
                let rows = self.rows(input.len(), output.len())?;
                self.channels.dequantize(qparams.scale, bias, bounds, |epilogue| {
                    let zero = qparams.zero_point as u8;
                    let output = Output::F32(output, epilogue);
                    Ok(self.gemm.run(bytes, self.inputs(), rows, zero, output, self.outputs(), &HostThreads::new())?)
                })
            })?
        })
    }
}
