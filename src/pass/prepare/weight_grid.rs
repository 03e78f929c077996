//! The integers that a weight's observer gives a weight, as round_weights and learned rounding need them.

use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Tensor};

/// libtorch's number of `qint8`.
const QINT8: i64 = 12;

/// The grid of int8 values that a weight is rounded to.
pub(crate) struct WeightGrid {
    /// One step, for the whole weight or for each output channel.
    pub scales: Vec<f32>,
    /// The observer's scale and zero point.
    pub qparams: [Tensor; 2],
    /// The channel axis.
    pub axis: i64,
    /// The smallest and the largest integer.
    pub bounds: (f32, f32),
    /// Whether weights are int8 with zero points 0, per tensor or with the output channels first.
    pub is_symmetric: bool,
}

impl WeightGrid {
    /// What a copy of `observer` finds for `weight`, whose output channels come first.
    ///
    /// # Errors
    /// Where the observer does not take the weight or gives no scale and zero point.
    pub fn of(weight: &Tensor, observer: &Module) -> Result<Self> {
        let observer = observer.copy_instance()?;
        observer.forward(std::slice::from_ref(weight))?;
        let qparams = observer.call::<IValue>("calculate_qparams", &[])?;
        let [scale, zero_point] = qparams.tensors()[..] else {
            return Err(Error::invalid("a weight observer's calculate_qparams should give scale and zero point"));
        };
        let scales = scale.to_f32_vec()?;
        let axis = observer.attribute("ch_axis").ok().and_then(|axis| axis.as_int()).unwrap_or(0);
        let channels = weight.shape().first().map_or(0, |count| *count as usize);
        let is_symmetric = observer.attribute("dtype").ok().and_then(|dtype| dtype.as_int()) == Some(QINT8)
            && axis == 0
            && (scales.len() == 1 || scales.len() == channels)
            && zero_point.to_f32_vec()?.iter().all(|zero_point| *zero_point == 0.0);
        let int = |name: &str| observer.attribute(name).ok().and_then(|value| value.as_int()).unwrap_or(0);
        let bounds = match (int("quant_min"), int("quant_max")) {
            (0, 0) if matches!(observer.attribute("reduce_range"), Ok(IValue::Bool(true))) => (-64.0, 63.0),
            (0, 0) => (-128.0, 127.0),
            (low, high) => (low as f32, high as f32),
        };
        Ok(Self { scales, qparams: [scale.clone(), zero_point.clone()], axis, bounds, is_symmetric })
    }

    pub fn channel(&self, number: usize) -> Channel {
        Channel { step: self.scales[number % self.scales.len()], bounds: self.bounds }
    }
}

/// What the weights of an output channel are rounded to: multiples of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    /// The step.
    pub step: f32,
    /// How many steps at least and at most.
    pub bounds: (f32, f32),
}

impl Channel {
    /// The multiple that `w` is quantized to.
    pub fn nearest(self, w: f32) -> f32 {
        (w / self.step).round_ties_even().clamp(self.bounds.0, self.bounds.1) * self.step
    }

    /// The largest multiple.
    pub fn largest(self) -> f32 {
        self.bounds.1 * self.step
    }

    /// Whether `w` lies at an end of the range, where it may be that the range was taken from it.
    pub fn is_end(self, w: f32) -> bool {
        w.abs() > self.largest() - 0.5 * self.step
    }
}
