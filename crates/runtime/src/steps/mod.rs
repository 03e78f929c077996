//! Steps: how each is planned, and the kernels that run it.

mod binary;
mod cat;
pub(crate) mod copy;
mod elements;
mod float;
mod layers;
mod pool;
mod products;
mod rows;
mod stretched;

use jitquant_kernels::{Activation, Isa, Parallel, QParams, Table};

use crate::plan::{OPERANDS, Placed, Planner};
use crate::program::{Op, ValueId, Weight};
use crate::{Error, Result};

/// What computes a task, for known sizes.
pub(crate) enum Kernel {
    Quantize(QParams),
    Dequantize(QParams),
    Lookup(Table),
    Clamp(u8, u8),
    Copy(copy::Copy),
    Rows(copy::Rows),
    Binary(binary::Call),
    Layer(layers::Call),
    Dynamic(layers::Dynamic),
    Pool(pool::Call),
    Function(Activation),
    Arithmetic(float::Call),
    FloatRows(rows::Call),
    Product(products::Call),
    Mask,
    Stretched(stretched::Call),
}

impl Kernel {
    /// A name for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Quantize(_) => "quantize",
            Self::Dequantize(_) => "dequantize",
            Self::Lookup(_) => "lookup",
            Self::Clamp(..) => "clamp",
            Self::Copy(_) => "copy",
            Self::Rows(_) => "cat",
            Self::Binary(call) => call.name(),
            Self::Layer(call) => call.name(),
            Self::Dynamic(_) => "linear_dynamic",
            Self::Pool(call) => call.name(),
            Self::Function(_) => "function",
            Self::Arithmetic(call) => call.name(),
            Self::FloatRows(call) => call.name(),
            Self::Product(call) => call.name(),
            Self::Mask => "mask",
            Self::Stretched(_) => "linear_stretched",
        }
    }

    /// Multiplications.
    pub fn products(&self) -> u64 {
        match self {
            Self::Layer(call) => call.products,
            Self::Dynamic(call) => call.products,
            Self::Product(call) => call.products(),
            Self::Stretched(call) => call.products,
            _ => 0,
        }
    }
}

/// Plans a step; where its result lies.
pub(crate) fn plan(planner: &mut Planner<'_>, op: &Op, inputs: &[ValueId]) -> Result<Placed> {
    let first = *inputs.first().ok_or_else(|| Error("a step without operands".to_owned()))?;
    let x = planner.value(first)?.clone();
    match op {
        Op::Quantize(to) => elements::map(planner, &x, elements::QUANTIZE, Kernel::Quantize(*to)),
        Op::Dequantize(from) => elements::map(planner, &x, elements::DEQUANTIZE, Kernel::Dequantize(*from)),
        Op::Lookup(table) => elements::map(planner, &x, elements::BYTES, Kernel::Lookup(**table)),
        Op::Clamp(min, max) => elements::map(planner, &x, elements::BYTES, Kernel::Clamp(*min, *max)),
        Op::Add(form) | Op::Mul(form) => {
            let y = planner.value(inputs[1])?.clone();
            binary::plan(planner, matches!(op, Op::Mul(_)), form, [&x, &y])
        }
        Op::Conv(product) => layers::conv(planner, product, inputs),
        Op::Linear(product) => layers::linear(planner, product, inputs),
        Op::LinearDynamic { weight, scheme, min, max } => layers::dynamic(planner, *weight, *scheme, [*min, *max], &x),
        Op::Cat { axis, tables } => cat::plan(planner, *axis, tables, inputs),
        Op::MaxPool { window, dimensions } => pool::plan(planner, pool::Form::Max(*window), *dimensions, &x),
        Op::AvgPool { pool, dimensions, zero_point } => {
            pool::plan(planner, pool::Form::Average(*pool, *zero_point), *dimensions, &x)
        }
        Op::AdaptiveAvgPool { sizes, zero_point } => pool::adaptive(planner, sizes, *zero_point, &x),
        Op::Mean { axes, keep, zero_point } => pool::mean(planner, axes, *keep, *zero_point, &x),
        Op::Float(form) => float::plan(planner, form, inputs),
        Op::View(view) => {
            let seen = view.of(&x.layout, &|size| planner.number(size))?;
            planner.view(x, seen)
        }
    }
}

/// Runs a task.
pub(crate) fn run(
    kernel: &Kernel,
    inputs: [Option<&[u8]>; OPERANDS],
    out: &mut [u8],
    scratch: &mut [u8],
    weights: &[Weight<'_>],
    threads: &dyn Parallel,
) -> Result<()> {
    let [x, y, ..] = inputs;
    let x = x.ok_or_else(|| Error("a task without an input".to_owned()))?;
    let isa = Isa::current();
    match kernel {
        Kernel::Quantize(to) => elements::quantize(isa, x, *to, out, threads),
        Kernel::Dequantize(from) => elements::dequantize(isa, x, *from, out, threads),
        Kernel::Lookup(table) => {
            elements::bytes(x, out, threads, &|x, out| table.apply(isa, x, out));
            Ok(())
        }
        Kernel::Clamp(min, max) => {
            elements::bytes(x, out, threads, &|x, out| jitquant_kernels::clamp(isa, x, *min, *max, out));
            Ok(())
        }
        Kernel::Copy(copy) => {
            copy.run(x, out);
            Ok(())
        }
        Kernel::Rows(rows) => {
            rows.run(isa, x, out);
            Ok(())
        }
        Kernel::Binary(call) => {
            let y = y.ok_or_else(|| Error("a task without a second input".to_owned()))?;
            call.run(isa, x, y, out, threads);
            Ok(())
        }
        Kernel::Layer(call) => call.run(x, y, out, scratch, weights, threads),
        Kernel::Dynamic(call) => call.run(x, out, scratch, weights, threads),
        Kernel::Pool(call) => {
            call.run(isa, x, out, threads);
            Ok(())
        }
        Kernel::Function(function) => float::function(isa, x, *function, out, threads),
        Kernel::Arithmetic(call) => call.run(isa, x, y, out, threads),
        Kernel::FloatRows(call) => call.run(isa, inputs, out, threads),
        Kernel::Product(call) => call.run(isa, inputs, out, scratch, threads),
        Kernel::Mask => products::mask(x, out),
        Kernel::Stretched(call) => call.run(isa, inputs, out, scratch, weights, threads),
    }
}
