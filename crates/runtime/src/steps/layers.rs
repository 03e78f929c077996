//! Convolutions and linear layers.

use jitquant_kernels::{
    Dequantize, DynamicScheme, Output, PackedConv, PackedGemm, Parallel, QParams, Requantize, Residual, Table,
};

use super::Kernel;
use super::elements::{expect, floats, floats_mut};
use crate::arena::ALIGNMENT;
use crate::layout::{Element, Format, Layout};
use crate::plan::{Placed, Planner};
use crate::program::{Product, Store, ValueId, Weight, WeightId};
use crate::view::expanded;
use crate::{Error, Result, refuse};

/// A layer for known sizes.
pub(crate) struct Call {
    weight: usize,
    x: QParams,
    store: Store,
    shape: Shape,
    /// Output channels.
    channels: usize,
    /// Bytes at the start of the scratch for scales and biases.
    floats: usize,
    pub products: u64,
}

enum Shape {
    Conv { batch: usize, spatial: [usize; 3] },
    Linear { rows: usize },
}

/// Scales and biases of a layer, in bytes of scratch.
fn floats_of(channels: usize) -> usize {
    (2 * channels * size_of::<f32>()).next_multiple_of(ALIGNMENT)
}

fn conv_weight<'a>(weights: &[Weight<'a>], id: usize) -> Result<(&'a PackedConv, usize, &'a [f32], &'a [f32])> {
    match weights.get(id) {
        Some(Weight::Conv { packed, dimensions, scales, bias }) => Ok((packed, *dimensions, scales, bias)),
        _ => refuse("a convolution without the weight of one"),
    }
}

pub(super) fn linear_weight<'a>(weights: &[Weight<'a>], id: usize) -> Result<(&'a PackedGemm, &'a [f32], &'a [f32])> {
    match weights.get(id) {
        Some(Weight::Linear { packed, scales, bias }) => Ok((packed, scales, bias)),
        _ => refuse("a linear layer without the weight of one"),
    }
}

/// Plans a convolution.
pub(super) fn conv(planner: &mut Planner<'_>, product: &Product, inputs: &[ValueId]) -> Result<Placed> {
    let (packed, dimensions, ..) = conv_weight(planner.call.weights, product.weight.0)?;
    let x = planner.value(inputs[0])?.clone();
    expect(&x, Element::U8)?;
    let shape = *packed.shape();
    let sizes = &x.layout.sizes;
    if sizes.len() != dimensions + 2 || sizes[1] as usize != shape.input_channels {
        return refuse(format!("a convolution of {} channels of a tensor of sizes {sizes:?}", shape.input_channels));
    }
    let batch = sizes[0] as usize;
    let mut spatial = [1; 3];
    for (to, size) in spatial[3 - dimensions..].iter_mut().zip(&sizes[2..]) {
        *to = *size as usize;
    }
    let output = shape.output_spatial(spatial)?;
    let mut out_sizes = vec![sizes[0], shape.output_channels as i64];
    out_sizes.extend(output[3 - dimensions..].iter().map(|size| *size as i64));
    let x = planner.dense(&x, Format::ChannelsLast)?;
    let layout = Layout::new(element_of(&product.store), &out_sizes, Format::ChannelsLast);
    layout.check()?;
    let taps = if shape.transposed { spatial } else { output }.iter().product::<usize>() * batch;
    let call = Call {
        weight: product.weight.0,
        x: product.x,
        store: product.store.clone(),
        shape: Shape::Conv { batch, spatial },
        channels: shape.output_channels,
        floats: floats_of(shape.output_channels),
        products: (taps as u64).saturating_mul(shape.weight_len() as u64),
    };
    let scratch = packed.scratch_len(batch, spatial, planner.threads)?;
    finish(planner, call, &x, layout, Format::ChannelsLast, scratch, inputs)
}

/// Plans a linear layer on bytes.
pub(super) fn linear(planner: &mut Planner<'_>, product: &Product, inputs: &[ValueId]) -> Result<Placed> {
    let (packed, ..) = linear_weight(planner.call.weights, product.weight.0)?;
    let x = planner.value(inputs[0])?.clone();
    expect(&x, Element::U8)?;
    let sizes = rows_of(&x.layout, packed)?;
    let x = planner.dense(&x, Format::Contiguous)?;
    let rows = x.layout.len() / packed.k().max(1);
    let call = Call {
        weight: product.weight.0,
        x: product.x,
        store: product.store.clone(),
        shape: Shape::Linear { rows },
        channels: packed.n(),
        floats: floats_of(packed.n()),
        products: (rows * packed.k()) as u64 * packed.n() as u64,
    };
    let layout = Layout::new(element_of(&product.store), &sizes, Format::Contiguous);
    finish(planner, call, &x, layout, Format::Contiguous, 0, inputs)
}

/// The sizes that a linear layer makes of an input.
pub(super) fn rows_of(x: &Layout, packed: &PackedGemm) -> Result<Vec<i64>> {
    let mut sizes = x.sizes.clone();
    match sizes.last_mut() {
        Some(last) if *last as usize == packed.k() => *last = packed.n() as i64,
        _ => return refuse(format!("a linear layer of {} inputs of a tensor of sizes {:?}", packed.k(), x.sizes)),
    }
    Ok(sizes)
}

fn element_of(store: &Store) -> Element {
    match store {
        Store::Bytes { .. } => Element::U8,
        Store::Floats { .. } => Element::F32,
    }
}

/// Plans a layer whose input is in order.
fn finish(
    planner: &mut Planner<'_>,
    call: Call,
    x: &Placed,
    layout: Layout,
    format: Format,
    scratch: usize,
    inputs: &[ValueId],
) -> Result<Placed> {
    let residual = match &call.store {
        Store::Bytes { residual: Some(_), .. } => {
            let other = planner.value(inputs[1])?.clone();
            expect(&other, Element::U8)?;
            let expanded = expanded(&other.layout, &layout.sizes)?;
            Some(planner.dense(&other.seen(expanded, 0), format)?)
        }
        _ => None,
    };
    let out = planner.result(layout)?;
    let scratch = call.floats + scratch;
    match &residual {
        Some(residual) => planner.push(Kernel::Layer(call), &[x, residual], &out, scratch),
        None => planner.push(Kernel::Layer(call), &[x], &out, scratch),
    }
    Ok(out)
}

impl Call {
    pub fn name(&self) -> &'static str {
        match self.shape {
            Shape::Conv { .. } => "conv",
            Shape::Linear { .. } => "linear",
        }
    }

    pub fn run(
        &self,
        x: &[u8],
        residual: Option<&[u8]>,
        out: &mut [u8],
        scratch: &mut [u8],
        weights: &[Weight<'_>],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let (own, scratch) = scratch.split_at_mut(self.floats);
        let (scales, biases) = floats_mut(own)?.split_at_mut(self.channels);
        let (given_scales, given_bias) = match self.shape {
            Shape::Conv { .. } => conv_weight(weights, self.weight).map(|(_, _, scales, bias)| (scales, bias))?,
            Shape::Linear { .. } => linear_weight(weights, self.weight).map(|(_, scales, bias)| (scales, bias))?,
        };
        let (Some(scales), Some(biases)) = (scales.get_mut(..given_scales.len()), biases.get_mut(..given_bias.len()))
        else {
            return refuse("more scales or biases than channels");
        };
        let output = match &self.store {
            Store::Bytes { to, min, max, residual: other, table } => {
                requantize_scales(self.x.scale, given_scales, to.scale, scales);
                biases.iter_mut().zip(given_bias).for_each(|(to_bias, bias)| *to_bias = bias / to.scale);
                let residual = match (other, residual) {
                    (Some(other), Some(data)) => {
                        Some(Residual { data, scale: other.scale / to.scale, zero_point: byte(other.zero_point)? })
                    }
                    _ => None,
                };
                let (min, max, zero_point) = (*min, *max, byte(to.zero_point)?);
                let table = table.as_deref().map(Table::bytes);
                Output::U8(out, Requantize { scale: scales, bias: biases, zero_point, min, max, residual, table })
            }
            Store::Floats { min, max } => {
                scales.iter_mut().zip(given_scales).for_each(|(to, weight)| *to = self.x.scale * weight);
                let form = Dequantize { scale: scales, bias: given_bias, min: *min, max: *max };
                Output::F32(floats_mut(out)?, form)
            }
        };
        let zero_point = byte(self.x.zero_point)?;
        match self.shape {
            Shape::Conv { batch, spatial } => {
                let (packed, ..) = conv_weight(weights, self.weight)?;
                packed.run(x, batch, spatial, zero_point, output, scratch, threads)?;
            }
            Shape::Linear { rows } => {
                let (packed, ..) = linear_weight(weights, self.weight)?;
                packed.run(x, packed.k(), rows, zero_point, output, packed.n(), threads)?;
            }
        }
        Ok(())
    }
}

/// The scales with which sums become bytes, multiplied and divided in the order in which FBGEMM does, for the same roundings.
fn requantize_scales(input: f32, weights: &[f32], output: f32, scales: &mut [f32]) {
    for (to, weight) in scales.iter_mut().zip(weights) {
        *to = input * weight / output;
    }
}

fn byte(zero_point: i32) -> Result<u8> {
    u8::try_from(zero_point).map_err(|_| Error(format!("zero point {zero_point}")))
}

/// A linear layer that quantizes its input, for known sizes.
pub(crate) struct Dynamic {
    weight: usize,
    scheme: DynamicScheme,
    bounds: [f32; 2],
    rows: usize,
    pub products: u64,
}

/// Plans it.
pub(super) fn dynamic(
    planner: &mut Planner<'_>,
    weight: WeightId,
    scheme: DynamicScheme,
    bounds: [f32; 2],
    x: &Placed,
) -> Result<Placed> {
    let (packed, ..) = linear_weight(planner.call.weights, weight.0)?;
    expect(x, Element::F32)?;
    let sizes = rows_of(&x.layout, packed)?;
    let x = planner.dense(x, Format::Contiguous)?;
    let rows = x.layout.len() / packed.k().max(1);
    let products = (rows * packed.k()) as u64 * packed.n() as u64;
    let out = planner.result(Layout::new(Element::F32, &sizes, Format::Contiguous))?;
    let scratch = packed.dynamic_scratch_len(rows);
    let call = Dynamic { weight: weight.0, scheme, bounds, rows, products };
    planner.push(Kernel::Dynamic(call), &[&x], &out, scratch);
    Ok(out)
}

impl Dynamic {
    pub fn run(
        &self,
        x: &[u8],
        out: &mut [u8],
        scratch: &mut [u8],
        weights: &[Weight<'_>],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let (packed, scale, bias) = linear_weight(weights, self.weight)?;
        let [min, max] = self.bounds;
        let form = Dequantize { scale, bias, min, max };
        packed.run_dynamic(floats(x)?, self.rows, self.scheme, floats_mut(out)?, form, scratch, threads)?;
        Ok(())
    }
}
