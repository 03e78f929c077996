//! Observers as TorchScript modules: state in buffers, arithmetic in the operators `jitquant::observe_*`.
//!
//! Such a module has what libtorch's passes ask of an observer: `forward(x)` that takes `x` in and returns it,
//! `calculate_qparams()` that gives scale and zero point, and the attributes `dtype`, `qscheme`, `ch_axis`. It is
//! saved and loaded with the model, so a half calibrated model can be calibrated further.

use super::{Dtype, Histogram, QRange, Scheme, UNSET};
use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Tensor, Type};

/// What an observer keeps of the tensors that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ObserverKind {
    /// Smallest and largest value.
    MinMax,
    /// Moving averages of each batch's smallest and largest value.
    MovingAverageMinMax,
    /// Smallest and largest value of each channel.
    PerChannelMinMax,
    /// Moving averages of each channel's smallest and largest value.
    MovingAveragePerChannelMinMax,
    /// A histogram, of which the range with the least quantization error is taken.
    Histogram,
    /// A histogram, of which the range with `percentile` percent of the values is taken.
    Percentile,
    /// A histogram, of which the range with the least mean squared error of all is taken, by a full search.
    SquaredError,
    /// A histogram, of which the range is taken whose quantized distribution is most like that of the values.
    Entropy,
    /// A histogram, of which the range is taken that loses least at the model's outputs: all of it, as `Histogram` or as
    /// `SquaredError`. One choice for the whole model ([`Prepared::convert`](crate::Prepared::convert)); without data to
    /// make it on, all of it.
    Auto,
    /// Nothing: the tensor is quantized with the range it has when the model runs (dynamic quantization).
    Placeholder,
}

impl ObserverKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::MinMax,
        Self::MovingAverageMinMax,
        Self::PerChannelMinMax,
        Self::MovingAveragePerChannelMinMax,
        Self::Histogram,
        Self::Percentile,
        Self::SquaredError,
        Self::Entropy,
        Self::Auto,
        Self::Placeholder,
    ];

    /// The name in configuration files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MinMax => "min-max",
            Self::MovingAverageMinMax => "moving-average-min-max",
            Self::PerChannelMinMax => "per-channel-min-max",
            Self::MovingAveragePerChannelMinMax => "moving-average-per-channel-min-max",
            Self::Histogram => "histogram",
            Self::Percentile => "percentile",
            Self::SquaredError => "squared-error",
            Self::Entropy => "entropy",
            Self::Auto => "auto",
            Self::Placeholder => "placeholder",
        }
    }

    fn class_name(self) -> &'static str {
        match self {
            Self::MinMax => "MinMaxObserver",
            Self::MovingAverageMinMax => "MovingAverageMinMaxObserver",
            Self::PerChannelMinMax => "PerChannelMinMaxObserver",
            Self::MovingAveragePerChannelMinMax => "MovingAveragePerChannelMinMaxObserver",
            Self::Histogram => "HistogramObserver",
            Self::Percentile => "PercentileObserver",
            Self::SquaredError => "SquaredErrorObserver",
            Self::Entropy => "EntropyObserver",
            Self::Auto => "AutoObserver",
            Self::Placeholder => "PlaceholderObserver",
        }
    }

    /// Whether its state is a histogram.
    fn counts(self) -> bool {
        matches!(self, Self::Histogram | Self::Percentile | Self::SquaredError | Self::Entropy | Self::Auto)
    }

    fn is_per_channel(self) -> bool {
        matches!(self, Self::PerChannelMinMax | Self::MovingAveragePerChannelMinMax)
    }

    /// The call in `forward` that takes `x` in.
    pub(crate) fn observation(self) -> &'static str {
        match self {
            Self::MinMax => "ops.jitquant.observe_min_max(x, self.min_val, self.max_val, self.observed)",
            Self::MovingAverageMinMax => {
                "ops.jitquant.observe_moving_average(x, self.min_val, self.max_val, self.averaging_constant, self.observed)"
            }
            Self::PerChannelMinMax => {
                "ops.jitquant.observe_min_max_per_channel(x, self.min_val, self.max_val, self.ch_axis, self.observed)"
            }
            Self::MovingAveragePerChannelMinMax => {
                "ops.jitquant.observe_moving_average_per_channel(x, self.min_val, self.max_val, self.ch_axis, self.averaging_constant, self.observed)"
            }
            kind if kind.counts() => {
                "ops.jitquant.observe_histogram(x, self.histogram, self.min_val, self.max_val, self.observed)"
            }
            _ => "pass",
        }
    }

    /// The range, from the buffers.
    pub(crate) fn range_expression(self) -> &'static str {
        match self {
            kind if kind.counts() => {
                "ops.jitquant.histogram_range(self.histogram, self.min_val, self.max_val, self.search, self.percentile)"
            }
            _ => "(self.min_val, self.max_val)",
        }
    }
}

/// An observer and its options.
///
/// ```
/// use jitquant::observer::{ObserverConfig, ObserverKind};
/// let observer = ObserverConfig { averaging_constant: 0.1, ..ObserverConfig::new(ObserverKind::MovingAverageMinMax) };
/// assert!(observer.module()?.has_method("calculate_qparams"));
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ObserverConfig {
    /// What it keeps.
    #[serde(rename = "observer")]
    pub kind: ObserverKind,
    /// The integers that the tensor is quantized to: `u8` or `i8`.
    #[serde(default = "u8_dtype")]
    pub dtype: Dtype,
    /// How the range maps to them: `per_tensor_affine`, `per_tensor_symmetric`, `per_channel_affine`,
    /// `per_channel_symmetric`. If not given, affine for u8, symmetric for i8, per channel for per-channel observers.
    #[serde(default)]
    pub scheme: Option<Scheme>,
    /// The smallest integer to use, if not the type's; together with `quant_max`.
    #[serde(default)]
    pub quant_min: Option<i32>,
    /// The largest integer to use, if not the type's; together with `quant_min`.
    #[serde(default)]
    pub quant_max: Option<i32>,
    /// Use one bit less, for engines whose 16-bit sums saturate (stock FBGEMM on CPUs without VNNI).
    #[serde(default)]
    pub reduce_range: bool,
    /// The smallest scale.
    #[serde(default = "default_eps")]
    pub eps: f32,
    /// The channel axis of per-channel observers.
    #[serde(default)]
    pub axis: i64,
    /// How much of each batch a moving average takes in.
    #[serde(default = "default_averaging_constant")]
    pub averaging_constant: f64,
    /// How many percent of the values the range of a percentile observer holds.
    #[serde(default = "default_percentile")]
    pub percentile: f64,
    /// The bins of a histogram.
    #[serde(default = "default_bins")]
    pub bins: usize,
}

fn u8_dtype() -> Dtype {
    Dtype::U8
}

fn default_eps() -> f32 {
    QRange::EPS
}

fn default_averaging_constant() -> f64 {
    0.01
}

fn default_percentile() -> f64 {
    99.99
}

fn default_bins() -> usize {
    Histogram::BINS
}

impl ObserverConfig {
    /// An observer for activations with torch.ao's defaults: u8, affine.
    pub fn new(kind: ObserverKind) -> Self {
        Self {
            kind,
            dtype: Dtype::U8,
            scheme: None,
            quant_min: None,
            quant_max: None,
            reduce_range: false,
            eps: default_eps(),
            axis: 0,
            averaging_constant: default_averaging_constant(),
            percentile: default_percentile(),
            bins: default_bins(),
        }
    }

    /// An observer for weights: i8, symmetric.
    pub fn weight(kind: ObserverKind) -> Self {
        Self { dtype: Dtype::I8, ..Self::new(kind) }
    }

    /// The scheme in force.
    pub fn effective_scheme(&self) -> Scheme {
        self.scheme.unwrap_or(match (self.kind.is_per_channel(), self.dtype) {
            (false, Dtype::U8) => Scheme::PerTensorAffine,
            (false, Dtype::I8) => Scheme::PerTensorSymmetric,
            (true, Dtype::U8) => Scheme::PerChannelAffine,
            (true, Dtype::I8) => Scheme::PerChannelSymmetric,
        })
    }

    /// The arithmetic's options.
    ///
    /// # Errors
    /// Where the options contradict each other; the message says which.
    pub fn range(&self) -> Result<QRange> {
        let scheme = self.effective_scheme();
        if scheme.is_per_channel() != self.kind.is_per_channel() {
            let kind = self.kind.name();
            let fitting = if self.kind.is_per_channel() { "per_channel" } else { "per_tensor" };
            return Err(Error::invalid(format!("observer {kind} goes with a {fitting} scheme, not {scheme:?}")));
        }
        let range = QRange {
            quant_min: self.quant_min,
            quant_max: self.quant_max,
            reduce_range: self.reduce_range,
            eps: self.eps,
            ..QRange::new(self.dtype, scheme)
        };
        let name = self.kind.name();
        range.bounds().map_err(|e| Error::invalid(format!("observer {name}: {e}")))?;
        if !(self.averaging_constant > 0.0 && self.averaging_constant <= 1.0) {
            let given = self.averaging_constant;
            return Err(Error::invalid(format!("averaging-constant {given}: must be more than 0 and at most 1")));
        }
        if !(self.percentile > 50.0 && self.percentile <= 100.0) {
            let given = self.percentile;
            return Err(Error::invalid(format!("percentile {given}: must be more than 50 and at most 100")));
        }
        if !(2..=Histogram::MAX_BINS).contains(&self.bins) {
            return Err(Error::invalid(format!("bins {}: must be 2 to {}", self.bins, Histogram::MAX_BINS)));
        }
        Ok(range)
    }

    /// The observer as a TorchScript module, with nothing observed yet.
    ///
    /// # Errors
    /// Where the options contradict each other.
    pub fn module(&self) -> Result<Module> {
        let module = self.module_of_class(&format!("jitquant.{}", self.kind.class_name()))?;
        if self.kind == ObserverKind::Placeholder {
            module.define("def forward(self, x: Tensor) -> Tensor:\n    return x\n")?;
            module.define(
                "def calculate_qparams(self) -> Tuple[Tensor, Tensor]:\n    \
                 return torch.ones([1]), torch.zeros([1], dtype=3)\n",
            )?;
            return Ok(module);
        }
        let (observation, range_of) = (self.kind.observation(), self.kind.range_expression());
        module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    {observation}\n    return x\n"))?;
        module.define(&format!(
            "def calculate_qparams(self) -> Tuple[Tensor, Tensor]:\n    \
             low, high = {range_of}\n    \
             return ops.jitquant.qparams(low, high, self.dtype, self.qscheme, self.quant_min, self.quant_max, \
             self.reduce_range, self.eps, self.observed)\n"
        ))?;
        Ok(module)
    }

    /// A module of class `class` with the observer's options and state, and no methods.
    pub(crate) fn module_of_class(&self, class: &str) -> Result<Module> {
        crate::init()?;
        let range = self.range()?;
        let module = Module::new(class)?;
        let (int, float, boolean) = (Type::parse("int")?, Type::parse("float")?, Type::parse("bool")?);
        let attribute = |name: &str, ty: &Type, value: IValue| module.register_attribute(name, ty, &value);
        attribute("training", &boolean, false.into())?;
        attribute("dtype", &int, IValue::Int(torch_dtype(self.dtype)))?;
        attribute("qscheme", &int, IValue::Int(torch_qscheme(range.scheme)))?;
        if self.kind == ObserverKind::Placeholder {
            attribute("is_dynamic", &boolean, true.into())?;
            attribute("compute_dtype", &int, IValue::Int(torch_dtype(self.dtype)))?;
            return Ok(module);
        }
        attribute("observed", &Type::parse("str")?, "".into())?;
        attribute("quant_min", &int, IValue::Int(self.quant_min.unwrap_or(0).into()))?;
        attribute("quant_max", &int, IValue::Int(self.quant_max.unwrap_or(0).into()))?;
        attribute("reduce_range", &boolean, self.reduce_range.into())?;
        attribute("eps", &float, f64::from(self.eps).into())?;
        attribute("ch_axis", &int, IValue::Int(self.axis))?;
        attribute("averaging_constant", &float, self.averaging_constant.into())?;
        let (min, max) = match self.kind.is_per_channel() {
            true => (Tensor::from_slice::<f32>(&[], &[0])?, Tensor::from_slice::<f32>(&[], &[0])?),
            false => (Tensor::from_slice(&[UNSET.0], &[])?, Tensor::from_slice(&[UNSET.1], &[])?),
        };
        module.register_buffer("min_val", min)?;
        module.register_buffer("max_val", max)?;
        if self.kind.counts() {
            attribute("search", &Type::parse("str")?, self.kind.name().into())?;
            attribute("percentile", &float, self.percentile.into())?;
            let counts = vec![0.0f32; self.bins];
            module.register_buffer("histogram", Tensor::from_slice(&counts, &[self.bins as i64])?)?;
        }
        Ok(module)
    }
}

/// libtorch's number for the quantized type.
fn torch_dtype(dtype: Dtype) -> i64 {
    match dtype {
        Dtype::U8 => 13,
        Dtype::I8 => 12,
    }
}

/// libtorch's number for the scheme (`c10/core/QScheme.h`).
fn torch_qscheme(scheme: Scheme) -> i64 {
    match scheme {
        Scheme::PerTensorAffine => 0,
        Scheme::PerChannelAffine => 1,
        Scheme::PerTensorSymmetric => 2,
        Scheme::PerChannelSymmetric => 3,
    }
}
