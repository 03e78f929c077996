//! Weights so small that their layer's bias would not fit 32 bits.
//!
//! An INT8 layer counts its bias in steps of its sums, which are a step of the input times a step of the weight; libtorch's
//! engine `qnnpack` in an `int32`. Where a channel is dead (its weights are 1e-20 and its bias is not), such a step is so small that
//! the bias saturates.

use super::clamps::observer_called_by;
use super::round_weights::observed_weight;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};
use crate::pass::insert_observers::facts::passes_from;
use crate::pass::op_table::{Conditions, Operator};

/// The most steps of a bias; ranges that are chosen narrower leave room to `i32::MAX`.
const MOST_STEPS: f32 = (1 << 28) as f32;

/// Widens the range of such a channel's weights, as their observer has it, until the bias fits. What the weights lose by it is
/// less than the bias's rounding.
///
/// # Errors
/// Where an observer gives no scale.
pub(crate) fn keep_biases_in_range(module: &Module, method: &str) -> Result<()> {
    let graph = module.graph(method)?;
    for layer in graph.all_nodes() {
        let Some((observer, _)) = observed_weight(module, layer) else { continue };
        let Some(bias) = Operator::of(layer).and_then(|row| layer.input(row.bias?)) else { continue };
        let Some(IValue::Tensor(bias)) = bias.constant() else { continue };
        let Some(input) = layer.input(0).and_then(|input| observer_of(module, input)) else { continue };
        let (Some(step), Some(steps)) = (scales(&input)?, scales(&observer)?) else { continue };
        let [step] = step[..] else { continue };
        let bias = bias.to_f32_vec()?;
        let channels = bias.iter().enumerate().filter(|_| steps.len() == 1 || steps.len() == bias.len());
        let needed = channels.fold(vec![0.0f32; steps.len()], |mut needed, (channel, bias)| {
            let place = &mut needed[channel % steps.len()];
            *place = place.max(bias.abs() / MOST_STEPS / step);
            needed
        });
        if std::iter::zip(&needed, &steps).all(|(needed, step)| needed <= step) {
            continue;
        }
        let IValue::Tensor(largest) = observer.attribute("max_val")? else { continue };
        let (mut values, shape) = (largest.to_f32_vec()?, largest.shape());
        if values.len() != needed.len() {
            continue;
        }
        // 127 steps or more, whatever the bounds are.
        let wide =
            std::iter::zip(&needed, &steps).map(|(needed, step)| if needed > step { needed * 128.0 } else { 0.0 });
        std::iter::zip(&mut values, wide).for_each(|(value, wide)| *value = value.max(wide));
        observer.set_attribute("max_val", &Tensor::from_slice(&values, &shape)?.into())?;
    }
    Ok(())
}

/// The observer that gives the scale of `value`: its own, or that of what it was moved from.
fn observer_of(module: &Module, value: Value<'_>) -> Option<Module> {
    let node: Node<'_> = value.node();
    match observer_called_by(module, node) {
        Some(observer) => Some(observer),
        None => match passes_from(value, Conditions::Asked)[..] {
            [source] if Operator::of(node)?.fixed_qparams.is_none() => observer_of(module, source),
            _ => None,
        },
    }
}

/// The scales that an observer gives; `None` where it has seen nothing finite.
fn scales(observer: &Module) -> Result<Option<Vec<f32>>> {
    let Ok(IValue::Tensor(min)) = observer.attribute("min_val") else { return Ok(None) };
    let min = min.to_f32_vec()?;
    if min.is_empty() || !min.iter().all(|min| min.is_finite()) {
        return Ok(None);
    }
    let qparams = observer.call::<IValue>("calculate_qparams", &[])?;
    let [scale, _] = qparams.tensors()[..] else { return Ok(None) };
    scale.to_f32_vec().map(Some)
}
