//! Layers take in what follows them.

use super::call::{Bytes, LAYERS, LayerCall, constant, constant_table, int, operator, replace, table};
use super::tables::dequantized;
use crate::error::Result;
use crate::ir::{Graph, IValue, Node};
use crate::kernel::QParams;

/// Fuses what a graph allows; how many operators are gone.
pub(super) fn fuse(graph: &Graph) -> Result<usize> {
    let mut fused = 0;
    for node in graph.all_nodes() {
        if node.is_destroyed() {
            continue;
        }
        fused += usize::from(match node.kind() {
            "jitquant::requantize" => requantize(node)?,
            "jitquant::clamp" => clamp(node)?,
            "jitquant::lookup" => lookup(node)?,
            "jitquant::add" => add(node)?,
            "jitquant::dequantize" => dequantize(node)?,
            _ => false,
        });
    }
    Ok(fused)
}

/// A layer's result in the scale that the next one wants: it is rounded once instead of twice.
fn requantize(node: Node<'_>) -> Result<bool> {
    let [x, .., scale, zero_point] = node.inputs()[..] else { return Ok(false) };
    let Some(layer) = LayerCall::alone(x).filter(|layer| layer.table.is_none()) else { return Ok(false) };
    let (Some(from), Some(to)) = (layer.qparams(), super::call::qparams(scale, zero_point)) else { return Ok(false) };
    let Some(bounds) = layer.bounds() else { return Ok(false) };
    let [min, max] = bounds_in(bounds, from, to);
    let (min, max) = (constant(node, i64::from(min))?, constant(node, i64::from(max))?);
    replace(node, LayerCall { scale, zero_point, min, max, ..layer }.insert(node)?)?;
    Ok(true)
}

/// The bounds of a clamp in other parameters; a bound that is none stays none. Where byte 0 stands for 0 it is a bound: a
/// relu is nothing else there than saturation.
fn bounds_in((min, max): (u8, u8), from: QParams, to: QParams) -> [u8; 2] {
    [
        if min == 0 && from.zero_point != 0 { 0 } else { to.quantize(from.dequantize(min)) },
        if max == 255 { 255 } else { to.quantize(from.dequantize(max)) },
    ]
}

/// A layer that clamps its result.
fn clamp(node: Node<'_>) -> Result<bool> {
    let [x, low, high] = node.inputs()[..] else { return Ok(false) };
    let Some(layer) = LayerCall::alone(x).filter(|layer| layer.table.is_none()) else { return Ok(false) };
    let (Some((min, max)), Some(low), Some(high)) = (layer.bounds(), int(low), int(high)) else { return Ok(false) };
    // clamp(clamp(x, min, max), low, high), whatever the order of the bounds.
    let within = |bound: u8| i64::from(bound).max(low).min(high);
    let (min, max) = (constant(node, within(min))?, constant(node, within(max))?);
    replace(node, LayerCall { min, max, ..layer }.insert(node)?)?;
    Ok(true)
}

/// A layer that looks its result up in a table; tables one after the other are one.
fn lookup(node: Node<'_>) -> Result<bool> {
    let [x, second] = node.inputs()[..] else { return Ok(false) };
    let Some(next) = table(second) else { return Ok(false) };
    let then = |first: [u8; 256]| first.map(|byte| next[usize::from(byte)]);
    if let Some(layer) = LayerCall::alone(x) {
        let combined = match layer.table.map(table) {
            None => next,
            Some(Some(first)) => then(first),
            Some(None) => return Ok(false),
        };
        let combined = Some(constant_table(node, &combined)?);
        replace(node, LayerCall { table: combined, ..layer }.insert(node)?)?;
        return Ok(true);
    }
    let before = x.node();
    if before.kind() == "jitquant::lookup"
        && x.uses().len() == 1
        && let Some(first) = before.input(1).and_then(table)
    {
        let combined = constant_table(node, &then(first))?;
        replace(node, operator(node, "jitquant::lookup", &[before.inputs()[0], combined])?)?;
        return Ok(true);
    }
    Ok(false)
}

/// `layer(x) + y`: the layer adds before it rounds. Of two layers, the one that runs later.
fn add(node: Node<'_>) -> Result<bool> {
    let [a, a_scale, a_zero_point, b, b_scale, b_zero_point, scale, zero_point, min, max] = node.inputs()[..] else {
        return Ok(false);
    };
    let a = Bytes { bytes: a, scale: a_scale, zero_point: a_zero_point };
    let b = Bytes { bytes: b, scale: b_scale, zero_point: b_zero_point };
    let (layer, other) = match (plain_layer(a, node), plain_layer(b, node)) {
        (Some(first), Some(second)) if first.node.is_before(second.node)? => (second, a),
        (Some(first), _) => (first, b),
        (None, Some(second)) => (second, a),
        (None, None) => return Ok(false),
    };
    if a.bytes == b.bytes {
        return Ok(false);
    }
    let fused = LayerCall { scale, zero_point, min, max, residual: Some(other), ..layer };
    replace(node, fused.insert(node)?)?;
    Ok(true)
}

/// The layer that computes `x` for `consumer` alone and in the same block, and stores its sums as they are.
fn plain_layer<'g>(x: Bytes<'g>, consumer: Node<'g>) -> Option<LayerCall<'g>> {
    let layer = LayerCall::alone(x.bytes)?;
    (layer.is_plain() && layer.node.owning_block() == consumer.owning_block()).then_some(layer)
}

/// A layer whose result is wanted in f32 gives it, without a step in between.
fn dequantize(node: Node<'_>) -> Result<bool> {
    let Some(layer) = dequantized(node).and_then(|x| LayerCall::alone(x.bytes)) else { return Ok(false) };
    let Some((_, float)) = LAYERS.iter().find(|(bytes, _)| *bytes == layer.node.kind()) else { return Ok(false) };
    let (Some(qparams), Some((min, max))) = (layer.qparams(), layer.bounds()) else { return Ok(false) };
    if layer.residual.is_some() || layer.table.is_some() {
        return Ok(false);
    }
    let bound = |byte: u8, is_none: bool| match is_none {
        true => IValue::None,
        false => IValue::Double(qparams.dequantize(byte).into()),
    };
    // Where byte 0 stands for 0, saturation may be a relu.
    let is_unbounded = min == 0 && qparams.zero_point != 0;
    let (min, max) = (constant(node, bound(min, is_unbounded))?, constant(node, bound(max, max == 255))?);
    let inputs = [layer.x.bytes, layer.weight, layer.x.scale, layer.x.zero_point, min, max];
    replace(node, operator(node, float, &inputs)?)?;
    Ok(true)
}
