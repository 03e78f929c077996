//! Convolutions of u8 tensors, channels last.
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments)]

mod phase;
mod products;
mod shape;

pub use shape::ConvShape;

use products::Products;

use super::{ConvWindow, DepthwiseShape, GroupedShape, Isa, Output, PackedDepthwise, PackedGrouped, Parallel};
use crate::{Error, Result};

/// A convolution's i8 weight, packed for one instruction set, and the kernel that suits its shape: products of segments
/// of the input, or a kernel of their own for depthwise ones and small groups.
///
/// Activations are u8 in the order samples, depth, height, width, channels. Padding has the value of the zero point. Sums
/// are exact, and go through an epilogue: see [`Output`].
pub struct PackedConv {
    shape: ConvShape,
    form: Form,
}

enum Form {
    Products(Products),
    Depthwise(PackedDepthwise),
    Grouped(PackedGrouped),
}

/// Channels of a group up to which the kernel for small groups is faster than a product for each group.
const SMALL_GROUP: usize = 32;

impl PackedConv {
    /// Packs `weight`, in libtorch's order: `[output_channels, input_channels / groups, depth, height, width]`, of a
    /// transposed convolution `[input_channels, output_channels / groups, depth, height, width]`. `zero_points` has one
    /// entry, one for each output channel, or none (all 0).
    ///
    /// # Errors
    /// Where the shape is inconsistent, lengths do not fit, a zero point is not an i8, or a sum is so long that it could
    /// overflow.
    pub fn new(isa: Isa, weight: &[i8], shape: ConvShape, zero_points: &[i32]) -> Result<Self> {
        shape.check()?;
        if weight.len() != shape.weight_len() {
            let needed = shape.weight_len();
            return Err(Error(format!("the weight has {} elements, {needed} are needed", weight.len())));
        }
        if zero_points.len() > 1 && zero_points.len() != shape.output_channels {
            let (found, channels) = (zero_points.len(), shape.output_channels);
            return Err(Error(format!("{found} zero points for {channels} channels")));
        }
        let ConvShape { groups, kernel, stride, padding, dilation, .. } = shape;
        let (inputs, outputs) = (shape.group_inputs(), shape.group_outputs());
        let window = ConvWindow { kernel, stride, padding, dilation };
        let zeros = if zero_points.is_empty() { &[0] } else { zero_points };
        let form = if shape.transposed || groups == 1 || inputs.max(outputs) > SMALL_GROUP {
            Form::Products(Products::new(isa, weight, shape, zero_points)?)
        } else if inputs == 1 {
            let shape = DepthwiseShape { channels: groups, multiplier: outputs, window };
            Form::Depthwise(PackedDepthwise::new(isa, weight, shape, zeros)?)
        } else {
            Form::Grouped(PackedGrouped::new(isa, weight, GroupedShape { groups, inputs, outputs, window }, zeros)?)
        };
        Ok(Self { shape, form })
    }

    /// What it computes.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Writes the weight in the order in which it was given.
    ///
    /// # Panics
    /// Where `weight` is too short.
    pub fn unpack_into(&self, weight: &mut [i8]) {
        match &self.form {
            Form::Products(products) => products.unpack_into(weight),
            Form::Depthwise(packed) => weight.copy_from_slice(&packed.unpack()),
            Form::Grouped(packed) => weight.copy_from_slice(&packed.unpack()),
        }
    }

    /// Bytes of scratch that [`run`](Self::run) needs.
    ///
    /// # Errors
    /// As [`ConvShape::output_spatial`].
    pub fn scratch_len(&self, batch: usize, spatial: [usize; 3], threads: &dyn Parallel) -> Result<usize> {
        match &self.form {
            Form::Products(products) => products.scratch_len(batch, spatial, threads),
            Form::Depthwise(packed) => packed.scratch_len(spatial, threads.threads()),
            Form::Grouped(packed) => packed.scratch_len(spatial, threads.threads()),
        }
    }

    /// Convolves `batch` samples of `spatial` pixels. The output has `batch` samples of
    /// [`output_spatial`](ConvShape::output_spatial) pixels, densely.
    ///
    /// # Errors
    /// Where a slice does not fit or the sample is too small; nothing is written then.
    pub fn run(
        &self,
        input: &[u8],
        batch: usize,
        spatial: [usize; 3],
        zero_point: u8,
        output: Output<'_>,
        scratch: &mut [u8],
        threads: &dyn Parallel,
    ) -> Result<()> {
        match &self.form {
            Form::Products(products) => products.run(input, batch, spatial, zero_point, output, scratch, threads),
            Form::Depthwise(packed) => packed.run(input, batch, spatial, zero_point, output, scratch, threads),
            Form::Grouped(packed) => packed.run(input, batch, spatial, zero_point, output, scratch, threads),
        }
    }
}
