//! Scales of a weight's channels, and the epilogues that come of them.

use std::cell::Cell;

use super::bridge::ffi::{Affine, Bounds, Requantization};
use crate::error::{Error, Result};
use crate::kernel::{Dequantize, Requantize, Residual};

/// A weight's scales: one, or one for each output channel.
pub(super) struct Channels {
    scales: Vec<f32>,
    channels: usize,
}

impl Channels {
    pub fn new(scales: &[f32], channels: usize) -> Result<Self> {
        if scales.len() != 1 && scales.len() != channels {
            return Err(Error::invalid(format!("{} scales for {channels} output channels", scales.len())));
        }
        if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(Error::invalid(format!("a weight's scale is {scale}")));
        }
        Ok(Self { scales: scales.to_vec(), channels })
    }

    /// The scales.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    fn check_bias(&self, bias: &[f32]) -> Result<()> {
        match bias.len() {
            0 => Ok(()),
            found if found == self.channels => Ok(()),
            found => Err(Error::invalid(format!("a bias of {found} for {} output channels", self.channels))),
        }
    }

    /// Calls `work` with the epilogue of a u8 output.
    pub fn requantize<R>(
        &self,
        input: &Affine,
        bias: &[f32],
        form: &Requantization<'_>,
        work: impl FnOnce(Requantize<'_>) -> Result<R>,
    ) -> Result<R> {
        self.check_bias(bias)?;
        let (input_scale, output_scale) = (scale(input, "input")?, scale(&form.output, "output")?);
        let byte = |value: i64, what: &str| {
            u8::try_from(value).map_err(|_| Error::invalid(format!("{what} is {value}; 0 to 255 is accepted")))
        };
        let residual = match form.residual {
            [] => None,
            data => Some(Residual {
                data,
                scale: scale(&form.residual_affine, "residual")? / output_scale,
                zero_point: zero_point(&form.residual_affine, "residual")?,
            }),
        };
        let table = match form.table {
            [] => None,
            table => Some(
                <&[u8; 256]>::try_from(table)
                    .map_err(|_| Error::invalid(format!("a table of {} bytes; one of 256 is accepted", table.len())))?,
            ),
        };
        let (zero_point, min, max) = (
            zero_point(&form.output, "output")?,
            byte(form.min, "the clamp's minimum")?,
            byte(form.max, "its maximum")?,
        );
        with_floats(self.scales.len() + bias.len(), |floats| {
            let (scales, biases) = floats.split_at_mut(self.scales.len());
            // In the order in which fbgemm multiplies and divides, for the same roundings.
            for (to, weight) in scales.iter_mut().zip(&self.scales) {
                *to = input_scale * weight / output_scale;
            }
            for (to, bias) in biases.iter_mut().zip(bias) {
                *to = bias / output_scale;
            }
            work(Requantize { scale: scales, bias: biases, zero_point, min, max, residual, table })
        })
    }

    /// Calls `work` with the epilogue of an f32 output. `input_scale` is 1 where the kernel multiplies the input's scale
    /// itself.
    pub fn dequantize<R>(
        &self,
        input_scale: f32,
        bias: &[f32],
        bounds: Bounds,
        work: impl FnOnce(Dequantize<'_>) -> Result<R>,
    ) -> Result<R> {
        self.check_bias(bias)?;
        if bounds.min.is_nan() || bounds.max.is_nan() {
            let (min, max) = (bounds.min, bounds.max);
            return Err(Error::invalid(format!("a clamp from {min} to {max}; numbers are accepted, NaN is none")));
        }
        if input_scale == 1.0 {
            return work(Dequantize { scale: &self.scales, bias, min: bounds.min, max: bounds.max });
        }
        with_floats(self.scales.len(), |scales| {
            for (to, weight) in scales.iter_mut().zip(&self.scales) {
                *to = input_scale * weight;
            }
            work(Dequantize { scale: scales, bias, min: bounds.min, max: bounds.max })
        })
    }
}

/// The scale of a tensor, checked.
pub(super) fn scale(affine: &Affine, of: &str) -> Result<f32> {
    let scale = affine.scale as f32;
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Error::invalid(format!("the {of}'s scale is {}; a positive number is accepted", affine.scale)));
    }
    Ok(scale)
}

/// The zero point of a u8 tensor, checked.
pub(super) fn zero_point(affine: &Affine, of: &str) -> Result<u8> {
    let found = affine.zero_point;
    u8::try_from(found).map_err(|_| Error::invalid(format!("the {of}'s zero point is {found}; 0 to 255 is accepted")))
}

thread_local! {
    static FLOATS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Lends `len` floats of any value that the thread keeps.
fn with_floats<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut floats = FLOATS.take();
    if floats.len() < len {
        floats.resize(len, 0.0);
    }
    let result = work(&mut floats[..len]);
    FLOATS.set(floats);
    result
}
