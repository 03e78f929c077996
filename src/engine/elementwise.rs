//! Operators that take each element by itself.

use super::bridge::ffi::Affine;
use super::channels::{scale, zero_point};
use super::threads::in_parts;
use crate::error::{Error, Result, no_panic};
use crate::kernel::geometry::count;
use crate::kernel::{self, Activation, Channels, Isa, Operand, QParams, Table};

/// Scale and zero point of a u8 tensor, checked.
pub(super) fn qparams(affine: &Affine, of: &str) -> Result<QParams> {
    Ok(QParams::new(scale(affine, of)?, zero_point(affine, of)?.into()))
}

/// What a step's bytes stand for, as its operator takes it.
pub(crate) fn step_qparams(scale: f64, zero_point: i64) -> Result<QParams> {
    qparams(&Affine { scale, zero_point }, "tensor")
}

/// A bound of a clamp of bytes, checked.
pub(super) fn bound(value: i64, what: &str) -> Result<u8> {
    u8::try_from(value).map_err(|_| Error::invalid(format!("the {what} is {value}; 0 to 255 is accepted")))
}

/// Applies `work` to equally long parts of `x` and `out`.
fn map<T: Sync, U: Send>(x: &[T], out: &mut [U], work: impl Fn(&[T], &mut [U]) + Sync) {
    in_parts(out, 1, 1, &|first, part| work(&x[first..][..part.len()], part));
}

pub(super) fn quantize_u8(x: &[f32], to: Affine, out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let to = qparams(&to, "output")?;
        map(x, out, |x, out| kernel::quantize(Isa::current(), x, to, out));
        Ok(())
    })
}

pub(super) fn dequantize_u8(x: &[u8], from: Affine, out: &mut [f32]) -> Result<()> {
    no_panic(|| {
        let from = qparams(&from, "input")?;
        map(x, out, |x, out| kernel::dequantize(Isa::current(), x, from, out));
        Ok(())
    })
}

pub(super) fn requantize_u8(x: &[u8], from: Affine, to: Affine, out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let table = Table::requantize(qparams(&from, "input")?, qparams(&to, "output")?);
        map(x, out, |x, out| table.apply(Isa::current(), x, out));
        Ok(())
    })
}

pub(super) fn clamp_u8(x: &[u8], min: i64, max: i64, out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let (min, max) = (bound(min, "minimum")?, bound(max, "maximum")?);
        map(x, out, |x, out| kernel::clamp(Isa::current(), x, min, max, out));
        Ok(())
    })
}

pub(super) fn lookup_u8(x: &[u8], table: &[u8], out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let values = <[u8; 256]>::try_from(table)
            .map_err(|_| Error::invalid(format!("a table of {} bytes; one of 256 is accepted", table.len())))?;
        let table = Table::from_bytes(values);
        map(x, out, |x, out| table.apply(Isa::current(), x, out));
        Ok(())
    })
}

/// The layout of a tensor of `sizes` with its channels along `axis`, and a check that there are as many parameters.
fn layout(sizes: &[i64], axis: i64, scales: &[f32], zero_points: &[i32]) -> Result<Channels> {
    let sizes: Vec<usize> = sizes.iter().map(|size| *size as usize).collect();
    let axis = axis as usize;
    let channels = *sizes.get(axis).ok_or_else(|| Error::invalid(format!("sizes {sizes:?} have no axis {axis}")))?;
    if scales.len() != channels || zero_points.len() != channels {
        return Err(Error::invalid(format!(
            "{} scales and {} zero points for {channels} channels along axis {axis}",
            scales.len(),
            zero_points.len()
        )));
    }
    if let Some(bad) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
        return Err(Error::invalid(format!("a scale is {bad}; positive numbers are accepted")));
    }
    if let Some(bad) = zero_points.iter().find(|zero| i8::try_from(**zero).is_err()) {
        return Err(Error::invalid(format!("a zero point is {bad}; -128 to 127 is accepted")));
    }
    count("a tensor", &sizes)?;
    Ok(Channels::of(&sizes, axis))
}

/// Has the host's threads apply `kernel`, which quantizes or dequantizes by channel, to parts of `x` and `out`.
fn by_channel<T: Sync, U: Send>(
    x: &[T],
    layout: Channels,
    out: &mut [U],
    kernel: impl Fn(Isa, &[T], Channels, &mut [U]) + Sync,
) {
    let row = layout.channels * layout.inner;
    in_parts(out, row.max(1), row, &|first, part| {
        let layout = Channels { outer: part.len() / row.max(1), ..layout };
        kernel(Isa::current(), &x[first * row..][..part.len()], layout, part);
    });
}

pub(super) fn quantize_channels(
    x: &[f32],
    sizes: &[i64],
    axis: i64,
    scales: &[f32],
    zero_points: &[i32],
    out: &mut [i8],
) -> Result<()> {
    no_panic(|| {
        by_channel(x, layout(sizes, axis, scales, zero_points)?, out, |isa, x, layout, out| {
            kernel::quantize_per_channel(isa, x, layout, scales, zero_points, out);
        });
        Ok(())
    })
}

pub(super) fn dequantize_channels(
    x: &[i8],
    sizes: &[i64],
    axis: i64,
    scales: &[f32],
    zero_points: &[i32],
    out: &mut [f32],
) -> Result<()> {
    no_panic(|| {
        by_channel(x, layout(sizes, axis, scales, zero_points)?, out, |isa, x, layout, out| {
            kernel::dequantize_per_channel(isa, x, layout, scales, zero_points, out);
        });
        Ok(())
    })
}

/// The functions that [`tabulate`] knows, with how many parameters each takes.
const FUNCTIONS: [(&str, usize); 13] = [
    ("relu", 0),
    ("clamp", 2),
    ("leaky_relu", 1),
    ("hardswish", 0),
    ("hardsigmoid", 0),
    ("sigmoid", 0),
    ("silu", 0),
    ("tanh", 0),
    ("elu", 3),
    ("gelu", 0),
    ("gelu_tanh", 0),
    ("add", 1),
    ("mul", 1),
];

fn activation(name: &str, parameters: &[f64]) -> Result<Activation> {
    let Some((_, wanted)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
        let known = FUNCTIONS.map(|(name, _)| name).join(", ");
        return Err(Error::invalid(format!("no function is called '{name}'; there are {known}")));
    };
    if parameters.len() != *wanted {
        return Err(Error::invalid(format!("{name} takes {wanted} parameters, not {}", parameters.len())));
    }
    if parameters.iter().any(|parameter| parameter.is_nan()) {
        return Err(Error::invalid(format!("{name} of parameters {parameters:?}; numbers are accepted, NaN is none")));
    }
    let p = |index: usize| parameters[index] as f32;
    Ok(match name {
        "relu" => Activation::Relu,
        "clamp" => Activation::Clamp { min: p(0), max: p(1) },
        "leaky_relu" => Activation::LeakyRelu { negative_slope: p(0) },
        "hardswish" => Activation::HardSwish,
        "hardsigmoid" => Activation::HardSigmoid,
        "sigmoid" => Activation::Sigmoid,
        "silu" => Activation::Silu,
        "tanh" => Activation::Tanh,
        "elu" => Activation::Elu { alpha: p(0), scale: p(1), input_scale: p(2) },
        "gelu" => Activation::Gelu,
        "gelu_tanh" => Activation::GeluTanh,
        "add" => Activation::AddScalar(p(0)),
        _ => Activation::MulScalar(p(0)),
    })
}

pub(super) fn tabulate(name: &str, parameters: &[f64], from: Affine, to: Affine, table: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let (from, to) = (qparams(&from, "input")?, qparams(&to, "output")?);
        table.copy_from_slice(Table::of(activation(name, parameters)?, from, to).bytes());
        Ok(())
    })
}

/// An element-wise operator of two tensors: its kernel, the operands' parameters, and the bounds of a clamp behind it.
type Kernel = fn(Isa, Operand<'_>, Operand<'_>, QParams, bool, &mut [u8]);

fn binary(
    kernel: Kernel,
    (a, a_affine): (&[u8], Affine),
    (b, b_affine): (&[u8], Affine),
    to: Affine,
    (min, max): (i64, i64),
    out: &mut [u8],
) -> Result<()> {
    no_panic(|| {
        let (from, other, to) = (qparams(&a_affine, "input")?, qparams(&b_affine, "input")?, qparams(&to, "output")?);
        let (min, max) = (bound(min, "minimum")?, bound(max, "maximum")?);
        let relu = i32::from(min) == to.zero_point && max == 255;
        let clamp = (!relu && (min, max) != (0, 255))
            .then(|| Table::from_bytes(std::array::from_fn(|byte| (byte as u8).max(min).min(max))));
        in_parts(out, 1, 1, &|first, part| {
            let x = Operand { data: &a[first..][..part.len()], qparams: from };
            let y = Operand { data: &b[first..][..part.len()], qparams: other };
            kernel(Isa::current(), x, y, to, relu, part);
            if let Some(clamp) = &clamp {
                clamp.apply_in_place(Isa::current(), part);
            }
        });
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
pub(super) fn add_u8(
    a: &[u8],
    a_affine: Affine,
    b: &[u8],
    b_affine: Affine,
    to: Affine,
    min: i64,
    max: i64,
    out: &mut [u8],
) -> Result<()> {
    binary(kernel::add, (a, a_affine), (b, b_affine), to, (min, max), out)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn mul_u8(
    a: &[u8],
    a_affine: Affine,
    b: &[u8],
    b_affine: Affine,
    to: Affine,
    min: i64,
    max: i64,
    out: &mut [u8],
) -> Result<()> {
    binary(kernel::mul, (a, a_affine), (b, b_affine), to, (min, max), out)
}
