//! Scale and zero point from an observed range.

use thiserror::Error;

use super::range::UNSET;

/// The type of quantized values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "torch", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Dtype {
    /// `torch.quint8`: 0 to 255.
    U8,
    /// `torch.qint8`: -128 to 127.
    I8,
}

impl Dtype {
    /// Smallest and largest value.
    pub fn bounds(self) -> (i32, i32) {
        match self {
            Dtype::U8 => (0, 255),
            Dtype::I8 => (-128, 127),
        }
    }
}

/// How a range maps to quantized values, and whether a tensor has one range or one a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "torch", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Scheme {
    /// One range; its ends map to the smallest and the largest quantized value.
    PerTensorAffine,
    /// One range, as wide on both sides of zero.
    PerTensorSymmetric,
    /// A range a channel; its ends map to the smallest and the largest quantized value.
    PerChannelAffine,
    /// A range a channel, as wide on both sides of zero.
    PerChannelSymmetric,
}

impl Scheme {
    /// Whether ranges are as wide on both sides of zero.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Scheme::PerTensorSymmetric | Scheme::PerChannelSymmetric)
    }

    /// Whether each channel has its own range.
    pub fn is_per_channel(self) -> bool {
        matches!(self, Scheme::PerChannelAffine | Scheme::PerChannelSymmetric)
    }
}

/// The quantized values that a range is mapped to: an observer's options `dtype`, `qscheme`, `quant_min`,
/// `quant_max`, `reduce_range` and `eps`.
///
/// ```
/// use jitquant::observer::QRange;
/// assert_eq!(QRange::I8_PER_CHANNEL.bounds(), Ok((-128, 127)));
/// let narrow = QRange { quant_min: Some(-127), quant_max: Some(127), ..QRange::I8_PER_CHANNEL };
/// assert_eq!(narrow.bounds(), Ok((-127, 127)));
/// assert!(QRange { quant_max: Some(300), ..narrow }.bounds().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "torch", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct QRange {
    /// The type of quantized values.
    pub dtype: Dtype,
    /// How a range maps to them.
    pub scheme: Scheme,
    /// The smallest value to use, if not the type's; only together with `quant_max`.
    #[cfg_attr(feature = "torch", serde(default))]
    pub quant_min: Option<i32>,
    /// The largest value to use, if not the type's; only together with `quant_min`.
    #[cfg_attr(feature = "torch", serde(default))]
    pub quant_max: Option<i32>,
    /// Use one bit less: half the bounds, rounded down.
    #[cfg_attr(feature = "torch", serde(default))]
    pub reduce_range: bool,
    /// The smallest scale.
    #[cfg_attr(feature = "torch", serde(default = "default_eps"))]
    pub eps: f32,
}

#[cfg(feature = "torch")]
fn default_eps() -> f32 {
    QRange::EPS
}

impl QRange {
    /// torch.ao's default for `eps`: the distance from 1 to the next f32.
    pub const EPS: f32 = f32::EPSILON;
    /// What activations usually take: u8, affine, one range a tensor.
    pub const U8_AFFINE: Self = Self::new(Dtype::U8, Scheme::PerTensorAffine);
    /// What weights take at least: i8, symmetric, one range a tensor.
    pub const I8_SYMMETRIC: Self = Self::new(Dtype::I8, Scheme::PerTensorSymmetric);
    /// What weights usually take: i8, symmetric, one range a channel.
    pub const I8_PER_CHANNEL: Self = Self::new(Dtype::I8, Scheme::PerChannelSymmetric);

    /// All values of `dtype`, and torch.ao's default for the rest.
    pub const fn new(dtype: Dtype, scheme: Scheme) -> Self {
        Self { dtype, scheme, quant_min: None, quant_max: None, reduce_range: false, eps: Self::EPS }
    }

    /// The smallest and the largest quantized value in use.
    ///
    /// # Errors
    /// Where the options contradict each other: only one bound given, bounds without 0 between them or equal or
    /// outside the type, a symmetric u8 range reduced, `eps` not positive. torch.ao takes some of these and gives
    /// qparams that its own kernels refuse.
    pub fn bounds(&self) -> Result<(i32, i32), QParamsError> {
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return Err(QParamsError::Eps(self.eps));
        }
        if self.reduce_range && self.scheme.is_symmetric() && self.dtype == Dtype::U8 {
            return Err(QParamsError::ReducedSymmetricU8);
        }
        let (min, max) = match (self.quant_min, self.quant_max) {
            (None, None) => self.dtype.bounds(),
            (Some(min), Some(max)) => self.checked(min, max)?,
            _ => return Err(QParamsError::OneBound),
        };
        Ok(if self.reduce_range { (min.div_euclid(2), max.div_euclid(2)) } else { (min, max) })
    }

    fn checked(&self, quant_min: i32, quant_max: i32) -> Result<(i32, i32), QParamsError> {
        let (lowest, highest) = self.dtype.bounds();
        if !(quant_min <= 0 && 0 <= quant_max && quant_min < quant_max) {
            return Err(QParamsError::WithoutZero { quant_min, quant_max });
        }
        if quant_min < lowest || quant_max > highest {
            return Err(QParamsError::OutsideDtype { quant_min, quant_max, dtype: self.dtype, lowest, highest });
        }
        Ok((quant_min, quant_max))
    }
}

/// How a float is quantized: `q = clamp(round_half_even(x / scale) + zero_point, quant_min, quant_max)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    /// The distance between the floats of two neighbouring quantized values; more than zero.
    pub scale: f32,
    /// The quantized value of 0.0.
    pub zero_point: i32,
}

impl QParams {
    /// What torch.ao's observers return, with a warning, where nothing was observed.
    pub const UNOBSERVED: Self = Self { scale: 1.0, zero_point: 0 };
}

/// Why there are no qparams.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum QParamsError {
    /// The range is [`UNSET`]. torch.ao gives [`QParams::UNOBSERVED`] and a warning here.
    #[error("nothing was observed")]
    Unobserved,
    /// The range ends before it begins, or an end is NaN.
    #[error("min {min} should be less than max {max}")]
    Inverted {
        /// Where it begins.
        min: f32,
        /// Where it ends.
        max: f32,
    },
    /// The range is wider than f32 can tell.
    #[error("the range from {min} to {max} is too wide to be quantized")]
    TooWide {
        /// Where it begins.
        min: f32,
        /// Where it ends.
        max: f32,
    },
    /// Only one of `quant_min` and `quant_max` is given.
    #[error("quant_min and quant_max go together")]
    OneBound,
    /// The quantized values lack 0, or there is only one.
    #[error("quant_min {quant_min} and quant_max {quant_max}: must differ and have 0 between them")]
    WithoutZero {
        /// The smallest value asked for.
        quant_min: i32,
        /// The largest value asked for.
        quant_max: i32,
    },
    /// The type cannot hold the quantized values.
    #[error("quant_min {quant_min} and quant_max {quant_max}: {dtype:?} has {lowest} to {highest}")]
    OutsideDtype {
        /// The smallest value asked for.
        quant_min: i32,
        /// The largest value asked for.
        quant_max: i32,
        /// The type.
        dtype: Dtype,
        /// Its smallest value.
        lowest: i32,
        /// Its largest value.
        highest: i32,
    },
    /// `reduce_range` would leave the zero point 128 of symmetric u8 outside 0 to 127.
    #[error("reduce_range does not go with a symmetric scheme of U8")]
    ReducedSymmetricU8,
    /// `eps` is not a positive number.
    #[error("eps {0}: must be positive and finite")]
    Eps(f32),
    /// The slices for a tensor's channels differ in length.
    #[error("{ranges} ranges but room for {room} channels")]
    Channels {
        /// How many ranges there are.
        ranges: usize,
        /// How many qparams were asked for.
        room: usize,
    },
}

/// The qparams for the observed range `(min, max)`, by the rules of torch.ao's
/// `UniformQuantizationObserverBase._calculate_qparams`, in f32 and in the same order:
///
/// - the range is extended to hold 0;
/// - affine: `scale = max(eps, (max - min) / (quant_max - quant_min))` and
///   `zero_point = clamp(quant_min - round_half_even(min / scale), quant_min, quant_max)`;
/// - symmetric: `scale = max(eps, max(-min, max) / ((quant_max - quant_min) / 2))`; the zero point is 0 for i8, 128 for
///   u8, and the middle of `quant_min` and `quant_max`, rounded down, for u8 where these are given.
///
/// ```
/// use jitquant::observer::{QParams, QRange, qparams};
/// assert_eq!(qparams(-0.5, 127.0, &QRange::U8_AFFINE), Ok(QParams { scale: 0.5, zero_point: 1 }));
/// assert_eq!(qparams(-0.5, 127.5, &QRange::I8_SYMMETRIC), Ok(QParams { scale: 1.0, zero_point: 0 }));
/// ```
pub fn qparams(min: f32, max: f32, range: &QRange) -> Result<QParams, QParamsError> {
    let (quant_min, quant_max) = range.bounds()?;
    if (min, max) == UNSET {
        return Err(QParamsError::Unobserved);
    }
    if min > max || min.is_nan() || max.is_nan() {
        return Err(QParamsError::Inverted { min, max });
    }
    let (low, high) = (min.min(0.0), max.max(0.0));
    let steps = (quant_max - quant_min) as f32;
    let scale = if range.scheme.is_symmetric() { high.max(-low) / (steps / 2.0) } else { (high - low) / steps };
    let scale = scale.max(range.eps);
    if !scale.is_finite() {
        return Err(QParamsError::TooWide { min, max });
    }
    let zero_point = match (range.scheme.is_symmetric(), range.dtype) {
        (false, _) => (quant_min - (low / scale).round_ties_even() as i32).clamp(quant_min, quant_max),
        (true, Dtype::I8) => 0,
        (true, Dtype::U8) if range.quant_min.is_some() => (quant_min + quant_max).div_euclid(2),
        (true, Dtype::U8) => 128,
    };
    Ok(QParams { scale, zero_point })
}

/// [`qparams`] of each channel, written to `scale` and `zero_point`.
pub fn qparams_per_channel(
    min: &[f32],
    max: &[f32],
    range: &QRange,
    scale: &mut [f32],
    zero_point: &mut [i32],
) -> Result<(), QParamsError> {
    for len in [max.len(), scale.len(), zero_point.len()] {
        if len != min.len() {
            return Err(QParamsError::Channels { ranges: min.len(), room: len });
        }
    }
    for channel in 0..min.len() {
        let q = qparams(min[channel], max[channel], range)?;
        (scale[channel], zero_point[channel]) = (q.scale, q.zero_point);
    }
    Ok(())
}
