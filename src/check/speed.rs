//! How much faster an INT8 model is than the float one, and which layers make it slower where it is.

use std::time::Duration;

use super::copies;
use crate::analysis::LayerComparison;
use crate::error::Result;
use crate::ir::{FORWARD, IValue, Module};
use crate::measure::{in_turns, quantile};
use crate::replay::first_samples;

/// How long both models are measured, all together, where that is three runs or more.
const BUDGET: Duration = Duration::from_millis(300);
/// Layers that are named.
const NAMED: usize = 5;

/// A layer that INT8 makes slower on this machine.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct SlowLayer {
    /// The path of its module.
    pub path: String,
    /// What it does, e.g. `conv2d`.
    pub operator: String,
    /// Its time in float, in seconds.
    pub float_seconds: f64,
    /// Its time in INT8, in seconds.
    pub int8_seconds: f64,
}

/// The float model's median time over the INT8 model's for one sample, and the slower layers where it is below 1; `None`
/// where one of them does not take a single sample.
pub(super) fn measure(float: &Module, int8: &Module, batch: &[IValue]) -> Result<Option<(f64, Vec<SlowLayer>)>> {
    let single = first_samples(batch, 1)?;
    let models = [float, int8];
    let run = |index: usize| -> Result<()> { models[index].call::<IValue>(FORWARD, &copies(&single)?).map(drop) };
    let Ok(times) = in_turns(models.len(), 2, 3, BUDGET, run) else { return Ok(None) };
    let speed_up = quantile(&times[0], 0.5) / quantile(&times[1], 0.5);
    let slower = if speed_up < 1.0 { slow_layers(float, int8, &single).unwrap_or_default() } else { Vec::new() };
    Ok(Some((speed_up, slower)))
}

fn slow_layers(float: &Module, int8: &Module, inputs: &[IValue]) -> Result<Vec<SlowLayer>> {
    let comparison = LayerComparison::new(float, int8)?;
    let times = comparison.times(&copies(inputs)?)?;
    let mut slower: Vec<SlowLayer> = std::iter::zip(comparison.layers(), times)
        .filter_map(|(layer, time)| Some((layer, time?)))
        .filter(|(_, time)| time.int8 > time.float)
        .map(|(layer, time)| SlowLayer {
            path: layer.path.clone(),
            operator: layer.operator.clone(),
            float_seconds: time.float,
            int8_seconds: time.int8,
        })
        .collect();
    let lost = |layer: &SlowLayer| layer.int8_seconds - layer.float_seconds;
    slower.sort_by(|one, other| lost(other).total_cmp(&lost(one)));
    slower.truncate(NAMED);
    Ok(slower)
}
