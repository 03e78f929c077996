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
        Ok(Self { scales, qparams: [scale.clone(), zero_point.clone()], axis, is_symmetric })
    }

    /// One step of output channel `channel`.
    pub fn scale(&self, channel: usize) -> f32 {
        self.scales[channel % self.scales.len()]
    }
}
