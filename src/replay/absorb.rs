//! Absorption of high biases: what a channel always has more than zero before a relu goes into the layers after it, so that
//! the tensor between them takes a smaller range.
//!
//! Where the layer before a relu gives `x[c] >= m[c] > 0` on all the calibration data, `relu(x) = relu(x - m) + m`: `m` is
//! taken off that layer's bias, and `W m` is added to the biases of those after it. (Nagel et al., Data-Free Quantization,
//! 2019, section 4.1.3, where `m` comes from the statistics of batch norm.) A later value below `m` becomes `m`, as one
//! beyond the range of a quantized tensor becomes its end. Not before a padding, whose zeros would become `-m`.

use std::collections::{HashMap, HashSet};

use super::equalize::channel_ranges;
use super::layer::Layer;
use super::solver::Solver;
use crate::error::{Context, Result};
use crate::ir::{Graph, IValue, Module, Node, Value};

/// By how much the range has to shrink at least for it to be worth it.
const WORTH_IT: f32 = 0.95;

/// Absorbs high biases in an observed flat module; whether anything changed. What observers saw before is wrong then.
///
/// # Errors
/// Where the model fails on the data, or a weight cannot be read.
pub(super) fn absorb(
    module: &Module,
    (method, graph): (&str, &Graph),
    solver: &Solver,
    batches: &[Vec<IValue>],
) -> Result<bool> {
    let mut uses = HashMap::<String, usize>::new();
    for layer in graph.nodes().filter_map(|node| Layer::of(module, node)) {
        *uses.entry(layer.weight_name).or_default() += 1;
    }
    let places: Vec<Place<'_>> = graph
        .nodes()
        .filter_map(|node| Place::at(module, node))
        .filter(|place| place.layers().all(|layer| uses[&layer.weight_name] == 1))
        .collect();
    if places.is_empty() {
        return Ok(false);
    }
    let watched: HashSet<Value<'_>> = places.iter().map(|place| place.value).collect();
    let ranges = channel_ranges(module, (method, graph), solver, batches, &watched)?;
    let mut changed = false;
    for place in places {
        let Some(shift) = ranges.get(&place.value).and_then(|ranges| shift(ranges)) else { continue };
        let context = || format!("absorbing the bias of '{}'", place.before.weight_name);
        place.before.add_to_bias(module, |channel| -shift[channel]).context(context)?;
        for layer in &place.after {
            let moved = layer.response(module, &shift)?;
            layer.add_to_bias(module, |channel| moved[channel]).context(context)?;
        }
        changed = true;
    }
    Ok(changed)
}

/// What to take off each channel, `None` where the range of the whole would not become much smaller.
fn shift(ranges: &[(f32, f32)]) -> Option<Vec<f32>> {
    let shift: Vec<f32> = ranges.iter().map(|(least, _)| least.max(0.0)).collect();
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let before = largest(&mut ranges.iter().map(|(_, most)| *most));
    let after = largest(&mut std::iter::zip(ranges, &shift).map(|((_, most), shift)| most - shift));
    (after < WORTH_IT * before).then_some(shift)
}

/// A layer, a relu, and the layers that take its result.
struct Place<'g> {
    before: Layer<'g>,
    /// What the relu takes.
    value: Value<'g>,
    after: Vec<Layer<'g>>,
}

impl<'g> Place<'g> {
    fn at(module: &Module, relu: Node<'g>) -> Option<Self> {
        let value = relu.input(0).filter(|value| relu.kind() == "aten::relu" && value.uses().len() == 1)?;
        let before = Layer::of(module, value.node())?;
        let mut after = Vec::new();
        let mut results = vec![relu.outputs()[0]];
        while let Some(result) = results.pop() {
            for place in result.uses() {
                match place.user.kind() {
                    "prim::CallMethod" => results.push(place.user.outputs()[0]),
                    _ => after.push(Layer::of(module, place.user).filter(|_| place.offset == 0)?),
                }
            }
        }
        let is_plain = |layer: &Layer<'_>| layer.has_no_padding();
        (!after.is_empty() && after.iter().all(is_plain)).then_some(Self { before, value, after })
    }

    fn layers(&self) -> impl Iterator<Item = &Layer<'g>> {
        std::iter::once(&self.before).chain(&self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_off_makes_the_range_smaller() {
        assert_eq!(shift(&[(50.0, 52.0), (-3.0, 4.0)]), Some(vec![50.0, 0.0]));
        assert_eq!(shift(&[(50.0, 52.0), (-3.0, 60.0)]), None);
        assert_eq!(shift(&[(-1.0, 52.0)]), None);
    }
}
