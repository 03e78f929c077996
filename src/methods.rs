//! What is done for the accuracy of a quantized model beyond choosing ranges.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The methods that keep a model accurate, each on or off; the defaults are what is best for most models.
/// `docs/accuracy.md` says when to change which.
///
/// ```
/// use jitquant::{Methods, Quantizer, Rounding};
/// let methods = Methods { rounding: Rounding::Learned, ..Methods::default() };
/// let quantizer = Quantizer::static_ptq().methods(methods);
/// let in_toml: jitquant::qconfig::QConfigSpec = "[methods]\nrounding = \"learned\"\nequalize = true".parse()?;
/// assert!(in_toml.methods.equalize);
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Methods {
    /// Evens out the ranges of the channels between two layers, in their weights (cross-layer equalization): for
    /// depthwise networks whose channels differ much. Needs no data.
    pub equalize: bool,
    /// Takes the mean error that quantization adds to each channel off the biases, layer by layer on the calibration
    /// data (static quantization).
    pub bias_correction: bool,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// Linear layers behind a layer norm: how much of the outliers goes from the activations into the weights, 0
    /// (nothing, off) to 1 (all). Needs calibration data, also in dynamic quantization.
    pub smooth: f32,
    /// Linear layers between float operators take a range for each row (token) when the model runs.
    pub per_row: bool,
    /// Quantizes attention: the products of two activations (`matmul`, `bmm`, and those in `scaled_dot_product_attention`),
    /// which stay in float otherwise (static quantization). For speed in the native form; libtorch's `quantized::matmul`
    /// computes in float and only rounds its operands and result.
    pub attention: bool,
    /// Quantized linear layers whose result is wanted in float do not round it to 8 bits first (static quantization): a
    /// classifier's scores above all. libtorch has the operator where it runs INT8 by FBGEMM, its default on x86; turn this off
    /// for stock libtorch on its engines `qnnpack` (ARM) and `onednn`; no layer is smoothed in static quantization then.
    pub float_results: bool,
}

/// How weights are rounded to INT8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rounding {
    /// [`Learned`](Self::Learned) in static quantization with data, on up to 128 samples of them, where the model has no
    /// branches; else, and while a goal is searched for ([`crate::control`]), [`Sums`](Self::Sums).
    #[default]
    Auto,
    /// Each to the nearest.
    Nearest,
    /// So that the errors of a channel add up to nothing; needs no data.
    Sums,
    /// So that each layer's results on the calibration data change least; takes some seconds to minutes.
    Learned,
}

impl Default for Methods {
    fn default() -> Self {
        Self {
            equalize: false,
            bias_correction: false,
            rounding: Rounding::Auto,
            smooth: 0.9,
            per_row: true,
            attention: false,
            float_results: true,
        }
    }
}

impl Methods {
    /// Nothing beyond choosing ranges: what libtorch does.
    pub fn none() -> Self {
        Self {
            equalize: false,
            bias_correction: false,
            rounding: Rounding::Nearest,
            smooth: 0.0,
            per_row: false,
            attention: false,
            float_results: false,
        }
    }

    /// # Errors
    /// Where a value is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.smooth) {
            true => Ok(()),
            false => Err(Error::invalid(format!("smooth {}: must be 0 (off) to 1", self.smooth))),
        }
    }
}
