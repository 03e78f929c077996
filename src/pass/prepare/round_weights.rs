//! Rounding of weights that keeps each output channel's sum.
//!
//! An output channel is `sum_i w[i] x[i]`; rounding `w` changes it by `sum_i e[i] x[i]`, on average by
//! `mean(x) * sum_i e[i]` where the `x[i]` have a mean in common, as what comes out of a relu has. Rounding to the
//! nearest leaves `sum_i e[i]` to chance; here it is at most half a step. It costs nothing when the model runs.

use super::clamps::observer_called_by;
use super::weight_grid::{Channel, WeightGrid};
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor};
use crate::pass::op_table::Operator;

/// Moves the observed weights of convolutions and linear layers in an observed flat module onto the int8 grid that
/// their observers give, the errors of each output channel adding up to less than a step. Only where the grid is
/// symmetric; other weights stay as they are.
///
/// # Errors
/// Where an observer does not take its weight.
pub fn round_weights(module: &Module, method: &str) -> Result<()> {
    let graph = module.graph(method)?;
    for layer in graph.all_nodes() {
        if let Some((observer, name)) = observed_weight(module, layer)
            && let IValue::Tensor(weight) = module.attribute(&name)?
            && let Some(rounded) = rounded(&weight, &observer)?
        {
            module.set_attribute(&name, &rounded.into())?;
        }
    }
    Ok(())
}

/// The observer of a layer's weight and the attribute that the weight is, for layers whose weight has the output
/// channels first.
pub(crate) fn observed_weight(module: &Module, layer: Node<'_>) -> Option<(Module, String)> {
    if !matches!(layer.kind(), "aten::conv1d" | "aten::conv2d" | "aten::conv3d" | "aten::linear") {
        return None;
    }
    let call = Operator::argument(layer, Operator::of(layer)?.weight?)?.node();
    let observer = observer_called_by(module, call)?;
    let read = call.input(1)?.node();
    let is_attribute = read.kind() == "prim::GetAttr" && read.input(0) == layer.graph().inputs().first().copied();
    Some((observer, read.name_attribute().filter(|_| is_attribute)?))
}

/// The weight on the grid that its observer gives, so that errors cancel; `None` where the grid is not symmetric.
pub(crate) fn rounded(weight: &Tensor, observer: &Module) -> Result<Option<Tensor>> {
    let grid = WeightGrid::of(weight, observer)?;
    let Ok(mut values) = weight.to_vec::<f32>() else { return Ok(None) };
    if !grid.is_symmetric || values.is_empty() {
        return Ok(None);
    }
    let size = values.len() / weight.shape()[0] as usize;
    for (channel, row) in values.chunks_mut(size).enumerate() {
        round_row(row, grid.channel(channel));
    }
    Ok(Some(Tensor::from_slice(&values, &weight.shape())?))
}

/// Rounds to multiples of a step: to the nearest, and then as many of those that were nearest to
/// the middle the other way as bring the sum of errors below half a step. The largest value stays as it is: an observer
/// that sees the weight again finds the same range.
fn round_row(row: &mut [f32], Channel { step: scale, bounds: (low, high) }: Channel) {
    let largest = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
    let mut steps: Vec<f32> = row.iter().map(|w| (w / scale).round_ties_even().clamp(low, high)).collect();
    let errors: Vec<f32> = std::iter::zip(row.iter(), &steps).map(|(w, step)| w / scale - step).collect();
    let missing = errors.iter().map(|error| f64::from(*error)).sum::<f64>().round();
    let direction = missing.signum() as f32;
    let towards = |i: usize| errors[i] * direction;
    // Only those that lie towards the other step: it is then less than one step away.
    let mut turned: Vec<usize> =
        (0..row.len()).filter(|&i| towards(i) > 0.0 && steps[i].abs() < high && row[i].abs() < largest).collect();
    turned.sort_by(|&a, &b| towards(b).total_cmp(&towards(a)));
    for i in turned.into_iter().take(missing.abs() as usize) {
        steps[i] += direction;
    }
    for (w, step) in std::iter::zip(row, steps) {
        if w.abs() < largest {
            *w = step * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_row_stays_and_no_weight_moves_by_a_step() {
        let scale = 0.01;
        // 0.4 steps too much each, which rounding to the nearest would all lose.
        let row: Vec<f32> = (0..20).map(|i| scale * (i as f32 - 10.0 + 0.4)).chain([127.0 * scale]).collect();
        let mut rounded = row.clone();
        round_row(&mut rounded, Channel { step: scale, bounds: (-128.0, 127.0) });
        let sum = |row: &[f32]| row.iter().sum::<f32>() / scale;
        assert!((sum(&row) - sum(&rounded)).abs() <= 0.501, "{} and {}", sum(&row), sum(&rounded));
        for (w, r) in std::iter::zip(&row, &rounded) {
            assert!((w - r).abs() < scale && (r / scale - (r / scale).round()).abs() < 1e-3);
        }
        assert_eq!(rounded[20], 127.0 * scale, "the largest one, which the scale comes from, stays");
    }
    #[test]
    fn few_bits_stay_in_their_range() {
        let channel = Channel { step: 0.1, bounds: (-8.0, 7.0) };
        // The largest lies at 7.5 steps. What the others lose together would take some of them beyond it.
        let row: Vec<f32> = (0..20).map(|i| if i == 3 { 0.75 } else { 0.745 }).collect();
        let mut rounded = row.clone();
        round_row(&mut rounded, channel);
        assert!(rounded.iter().all(|w| w.abs() <= 0.75), "{rounded:?}");
    }
}
