//! Convolutions.

use super::bridge::ffi::{Affine, Bounds, ConvolutionSizes, Requantization};
use super::channels::{Channels, scale, zero_point};
use super::threads::{HostThreads, with_scratch};
use crate::error::{Error, Result, no_panic};
use crate::kernel::{ConvShape, Isa, Output, PackedConv, dynamic_qparams, quantize};
use jitquant_runtime::Weight;

/// A convolution's i8 weight, packed for this machine, with its scales.
pub(super) struct ConvolutionWeight {
    conv: PackedConv,
    channels: Channels,
    /// Spatial dimensions: 1 to 3.
    dimensions: usize,
}

pub(super) fn convolution_weight(
    weight: &[i8],
    sizes: &ConvolutionSizes,
    scales: &[f32],
    zero_points: &[i32],
) -> Result<Box<ConvolutionWeight>> {
    no_panic(|| {
        let shape = shape(sizes)?;
        let conv = PackedConv::new(Isa::current(), weight, shape, zero_points)?;
        let channels = Channels::new(scales, shape.output_channels)?;
        Ok(Box::new(ConvolutionWeight { conv, channels, dimensions: sizes.weight.len() - 2 }))
    })
}

/// The sizes of a convolution whose weight has `weight` sizes, with its strides, paddings, dilations and output paddings.
pub(crate) fn conv_shape(weight: &[i64], windows: [Vec<i64>; 4], groups: i64, transposed: bool) -> Result<ConvShape> {
    let [stride, padding, dilation, output_padding] = windows;
    shape(&ConvolutionSizes { weight: weight.to_vec(), stride, padding, dilation, output_padding, groups, transposed })
}

fn shape(sizes: &ConvolutionSizes) -> Result<ConvShape> {
    let [first, second, kernel @ ..] = sizes.weight.as_slice() else {
        return Err(Error::invalid(format!("a weight of sizes {:?} is no convolution's", sizes.weight)));
    };
    let size = |value: i64| {
        usize::try_from(value).map_err(|_| Error::invalid(format!("a convolution's size is {value}, below zero")))
    };
    let spatial = |name: &str, values: &[i64], absent: usize| {
        if values.len() != kernel.len() || values.len() > 3 {
            let (found, dimensions) = (values.len(), kernel.len());
            return Err(Error::invalid(format!("{name}: {found} numbers for {dimensions} spatial dimensions")));
        }
        let mut all = [absent; 3];
        for (to, value) in all[3 - values.len()..].iter_mut().zip(values) {
            *to = size(*value)?;
        }
        Ok(all)
    };
    let groups = size(sizes.groups)?;
    let (first, second) = (size(*first)?, size(*second)?);
    let grouped = second.checked_mul(groups).ok_or_else(|| {
        Error::invalid(format!("a weight of sizes {:?} in {groups} groups has more channels than memory", sizes.weight))
    })?;
    let (outputs, inputs) = if sizes.transposed { (grouped, first) } else { (first, grouped) };
    Ok(ConvShape {
        groups,
        kernel: spatial("kernel", kernel, 1)?,
        stride: spatial("stride", &sizes.stride, 1)?,
        padding: spatial("padding", &sizes.padding, 0)?,
        dilation: spatial("dilation", &sizes.dilation, 1)?,
        output_padding: spatial("output_padding", &sizes.output_padding, 0)?,
        transposed: sizes.transposed,
        ..ConvShape::new(inputs, outputs)
    })
}

impl ConvolutionWeight {
    /// The weight of a step.
    pub fn weight<'a>(&'a self, bias: &'a [f32]) -> Weight<'a> {
        let (packed, dimensions, scales) = (&self.conv, self.dimensions, self.channels.scales());
        Weight::Conv { packed, dimensions, scales, bias }
    }

    /// Channels of the output.
    pub fn outputs(&self) -> usize {
        self.conv.shape().output_channels
    }

    /// Batch and spatial sizes of an input of sizes `[batch, channels, ...]`.
    fn input(&self, sizes: &[i64]) -> Result<(usize, [usize; 3])> {
        let channels = self.conv.shape().input_channels;
        let accepted = |sizes: &[i64]| {
            Error::invalid(format!(
                "an input of sizes {sizes:?}; [batch, {channels}{}] is accepted",
                ", size".repeat(self.dimensions)
            ))
        };
        if sizes.len() != self.dimensions + 2 || usize::try_from(sizes[1]) != Ok(channels) {
            return Err(accepted(sizes));
        }
        let size = |value: i64| usize::try_from(value).map_err(|_| accepted(sizes));
        let mut spatial = [1; 3];
        for (to, value) in spatial[3 - self.dimensions..].iter_mut().zip(&sizes[2..]) {
            *to = size(*value)?;
        }
        Ok((size(sizes[0])?, spatial))
    }

    /// The output's sizes for an input's, `[batch, channels, ...]`.
    pub fn output_sizes(&self, input: &[i64]) -> Result<Vec<i64>> {
        no_panic(|| {
            let (_, spatial) = self.input(input)?;
            let output = self.conv.shape().output_spatial(spatial)?;
            let mut sizes = vec![input[0], self.conv.shape().output_channels as i64];
            sizes.extend(output[3 - self.dimensions..].iter().map(|size| *size as i64));
            Ok(sizes)
        })
    }

    /// Writes the weight in the order in which it was given.
    pub fn unpack(&self, weight: &mut [i8]) -> Result<()> {
        no_panic(|| {
            self.conv.unpack_into(weight);
            Ok(())
        })
    }

    fn run(&self, input: &[u8], sizes: &[i64], zero_point: u8, output: Output<'_>) -> Result<()> {
        let (batch, spatial) = self.input(sizes)?;
        let threads = HostThreads::new();
        with_scratch(self.conv.scratch_len(batch, spatial, &threads)?, |scratch| {
            Ok(self.conv.run(input, batch, spatial, zero_point, output, scratch, &threads)?)
        })?
    }

    /// A u8 output from a u8 input, both channels last.
    pub fn run_u8(
        &self,
        input: &[u8],
        sizes: &[i64],
        affine: Affine,
        bias: &[f32],
        output: &mut [u8],
        form: Requantization<'_>,
    ) -> Result<()> {
        no_panic(|| {
            let zero = zero_point(&affine, "input")?;
            self.channels
                .requantize(&affine, bias, &form, |epilogue| self.run(input, sizes, zero, Output::U8(output, epilogue)))
        })
    }

    /// An f32 output from a u8 input, both channels last.
    pub fn run_f32(
        &self,
        input: &[u8],
        sizes: &[i64],
        affine: Affine,
        bias: &[f32],
        output: &mut [f32],
        bounds: Bounds,
    ) -> Result<()> {
        no_panic(|| {
            let zero = zero_point(&affine, "input")?;
            self.channels.dequantize(scale(&affine, "input")?, bias, bounds, |epilogue| {
                self.run(input, sizes, zero, Output::F32(output, epilogue))
            })
        })
    }

    /// An f32 output from an f32 input that is quantized with its own range, both channels last.
    pub fn run_dynamic(
        &self,
        input: &[f32],
        sizes: &[i64],
        reduce_range: bool,
        bias: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        no_panic(|| {
            let (batch, spatial) = self.input(sizes)?;
            let isa = Isa::current();
            let qparams = dynamic_qparams::<u8>(isa, input, reduce_range);
            let unbounded = Bounds { min: f32::NEG_INFINITY, max: f32::INFINITY };
            let threads = HostThreads::new();
            let scratch_len = self.conv.scratch_len(batch, spatial, &threads)?;
            with_scratch(input.len().saturating_add(scratch_len), |memory| {
                let (bytes, scratch) = memory.split_at_mut(input.len());
                quantize(isa, input, qparams, bytes);
                self.channels.dequantize(qparams.scale, bias, unbounded, |epilogue| {
                    let output = Output::F32(output, epilogue);
                    Ok(self.conv.run(bytes, batch, spatial, qparams.zero_point as u8, output, scratch, &threads)?)
                })
            })?
        })
    }
}
