//! Weights of depthwise layers so small that sums of 16 bits hold them.
//!
//! FBGEMM adds the products of two neighbouring taps in 16 bits there (engines `fbgemm` and, with many channels, `x86`). With
//! inputs up to 255 the two weights must not add up to more than 128 steps; a coarser step for the channels where they do costs
//! these at most a bit, and no time.

use super::round_weights::observed_weight;
use super::weight_grid::WeightGrid;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor};
use crate::pass::exact::{EngineForm, prefers_blocks, takes_depthwise_kernel};
use crate::pass::op_table::{Geometry, MOST_OF_A_PAIR, StockEngine};

/// Widens the range of such channels' weights, as their observers have it, in an observed flat module for `engine`; the layers
/// where that was needed.
///
/// # Errors
/// Where an observer does not take its weight.
pub(crate) fn keep_pairs_in_16_bits(module: &Module, method: &str, engine: StockEngine) -> Result<Vec<EngineForm>> {
    let graph = module.graph(method)?;
    let mut changed = Vec::new();
    for layer in graph.all_nodes() {
        let Some((observer, name)) = observed_weight(module, layer) else { continue };
        let IValue::Tensor(weight) = module.attribute(&name)? else { continue };
        let Some(geometry) = geometry(layer, &weight.shape()) else { continue };
        if !takes_depthwise_kernel(&geometry, engine) || prefers_blocks(&geometry) {
            continue;
        }
        let channels = widen(&observer, &weight, geometry.kernel.iter().product::<i64>() as usize)?;
        if channels > 0 {
            let form = format!("coarser weights in {channels} of {} channels", geometry.outputs);
            let why = "FBGEMM's depthwise kernels add two products in 16 bits (libtorch 2.13)".to_owned();
            changed.push(EngineForm::of(layer, form, why));
        }
    }
    Ok(changed)
}

/// Of an `aten` convolution, where it is known.
fn geometry(layer: Node<'_>, sizes: &[i64]) -> Option<Geometry> {
    if !matches!(layer.kind(), "aten::conv2d" | "aten::conv3d") {
        return None;
    }
    let [outputs, inputs, kernel @ ..] = sizes else { return None };
    let list = |index: usize| match layer.input(index)?.constant()? {
        IValue::List { items, .. } => {
            let mut numbers = items.iter().map(IValue::as_int).collect::<Option<Vec<_>>>()?;
            let last = *numbers.last()?;
            numbers.resize(kernel.len(), last);
            Some(numbers)
        }
        _ => None,
    };
    let groups = layer.input(6)?.constant()?.as_int()?;
    Some(Geometry {
        inputs: inputs * groups,
        outputs: *outputs,
        groups,
        kernel: kernel.to_vec(),
        stride: list(3)?,
        padding: list(4)?,
        dilation: list(5)?,
        transposed: false,
    })
}

/// How many channels got a wider range.
fn widen(observer: &Module, weight: &Tensor, taps: usize) -> Result<usize> {
    let grid = WeightGrid::of(weight, observer)?;
    if !grid.is_symmetric {
        return Ok(0);
    }
    let mut steps = grid.scales.clone();
    for (channel, weights) in weight.to_f32_vec()?.chunks(taps).enumerate() {
        let place = channel % steps.len();
        steps[place] = enough(weights, steps[place]);
    }
    let changed = std::iter::zip(&steps, &grid.scales).filter(|(new, old)| new > old).count();
    if changed == 0 {
        return Ok(0);
    }
    // The observer may not have seen the weight yet.
    observer.forward(std::slice::from_ref(weight))?;
    let IValue::Tensor(largest) = observer.attribute("max_val")? else { return Ok(0) };
    let mut values = largest.to_f32_vec()?;
    if values.len() != steps.len() {
        return Ok(0);
    }
    let half = (grid.bounds.1 - grid.bounds.0) / 2.0;
    for (value, (new, old)) in std::iter::zip(&mut values, std::iter::zip(steps, grid.scales)) {
        if new > old {
            *value = value.max(new * half * (1.0 + f32::EPSILON));
        }
    }
    observer.set_attribute("max_val", &Tensor::from_slice(&values, &largest.shape())?.into())?;
    Ok(changed)
}

/// The smallest step, from `step` on, with which no pair of a channel's weights is too large, whichever way they are rounded.
fn enough(weights: &[f32], step: f32) -> f32 {
    let of_sign = |pair: &[f32], step: f32, sign: f32| -> f32 {
        pair.iter().map(|weight| (sign * weight / step).ceil().max(0.0)).sum()
    };
    let fits = |step: f32| {
        let most = MOST_OF_A_PAIR as f32;
        weights.chunks(2).all(|pair| of_sign(pair, step, 1.0) <= most && of_sign(pair, step, -1.0) <= most)
    };
    let mut found = step;
    while !fits(found) && found.is_finite() {
        found *= 1.0 + 1.0 / 512.0;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_as_coarse_as_it_must_be() {
        assert_eq!(enough(&[1.0, 0.0, 1.0, -1.0], 1.0 / 127.0), 1.0 / 127.0, "no pair is too large");
        let step = enough(&[1.0, 1.0, 0.5], 1.0 / 127.0);
        assert!((1.0 / 64.0..1.01 / 64.0).contains(&step), "{step}");
    }
}
