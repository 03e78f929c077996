//! What is left of float between bytes goes.

use super::call::{LayerCall, constant, int, ints, operator, output, qparams, replace};
use super::operators::{again, clamp_of, moves};
use super::tables::{dequantized, looked_up, requantized};
use super::weights::{Weights, run};
use crate::error::Result;
use crate::ir::{Graph, IValue, Node, Value};

/// Changes a native graph where it computes more than it has to; how many changes.
pub(super) fn simplify(graph: &Graph, weights: &mut Weights<'_>) -> Result<usize> {
    let mut changes = 0;
    for node in graph.all_nodes() {
        if node.is_destroyed() {
            continue;
        }
        changes += usize::from(match node.kind() {
            "jitquant::quantize" => quantize(node)?,
            "jitquant::conv" => padded(node, weights)?,
            kind if moves(kind) || kind == PAD => moved(node)?,
            _ => false,
        });
    }
    Ok(changes)
}

const PAD: &str = "aten::constant_pad_nd";

/// `move(dequantize(x))` is `dequantize(move(x))`: bytes are moved, four times as fast, and dequantize comes nearer to the
/// quantize that it meets.
fn moved(node: Node<'_>) -> Result<bool> {
    let (Some(input), [result]) = (node.input(0), &node.outputs()[..]) else { return Ok(false) };
    let Some(x) = dequantized(input.node()).filter(|_| result.type_of().is_tensor()) else { return Ok(false) };
    let goes_on = |user: Node<'_>| matches!(user.kind(), "jitquant::quantize" | PAD) || moves(user.kind());
    if input.uses().len() > 1 && !result.uses().into_iter().all(|place| goes_on(place.user)) {
        return Ok(false);
    }
    // Zero is a byte; other numbers may lie between two.
    if node.kind() == PAD && node.input(2).and_then(|value| value.constant()?.as_number()) != Some(0.0) {
        return Ok(false);
    }
    let bytes = again(node, x.bytes)?;
    if node.kind() == PAD {
        bytes.replace_input(2, x.zero_point)?;
    }
    let dequantized = operator(node, "jitquant::dequantize", &[output(bytes)?, x.scale, x.zero_point])?;
    replace(node, dequantized)?;
    Ok(true)
}

/// A quantize that meets what it would undo.
fn quantize(node: Node<'_>) -> Result<bool> {
    let [x, scale, zero_point] = node.inputs()[..] else { return Ok(false) };
    let Some(to) = qparams(scale, zero_point) else { return Ok(false) };
    if let Some(from) = dequantized(x.node()) {
        let Some(known) = from.qparams() else { return Ok(false) };
        let bytes = if known == to { from.bytes } else { requantized(node, from, to)? };
        replace(node, bytes)?;
        return Ok(true);
    }
    // quantize(clamp(x)) = clamp(quantize(x)): rounding and saturation keep the order of values.
    if let Some((low, high)) = clamp_of(x.node()).filter(|_| x.uses().len() == 1) {
        let bytes = operator(node, "jitquant::quantize", &[x.node().inputs()[0], scale, zero_point])?;
        let bounds = [low, high].map(|bound| constant(node, i64::from(to.quantize::<u8>(bound as f32))));
        let [low, high] = bounds;
        replace(node, operator(node, "jitquant::clamp", &[bytes, low?, high?])?)?;
        return Ok(true);
    }
    match looked_up(node)? {
        Some(bytes) => replace(node, bytes).map(|()| true),
        None => Ok(false),
    }
}

/// A convolution of an image with as many zeros on both sides pads itself.
fn padded(node: Node<'_>, weights: &mut Weights<'_>) -> Result<bool> {
    let Some(layer) = LayerCall::of(node) else { return Ok(false) };
    let pad = layer.x.bytes.node();
    let [image, sizes, value] = pad.inputs()[..] else { return Ok(false) };
    if pad.kind() != PAD || int(value).is_none() || int(value) != int(layer.x.zero_point) {
        return Ok(false);
    }
    let Some(both) = ints(sizes).as_deref().and_then(on_both_sides) else { return Ok(false) };
    let Some(weight) = with_padding(node, layer.weight, &both, weights)? else { return Ok(false) };
    let x = layer.x.with(image);
    let value = LayerCall { x, weight, ..layer }.insert(node)?;
    replace(node, value)?;
    Ok(true)
}

/// The padding of each dimension, first dimension first, of `[before, after]` of the last one, of the one before it, ….
fn on_both_sides(sizes: &[i64]) -> Option<Vec<i64>> {
    let pairs = sizes.chunks(2).rev();
    pairs.map(|pair| (pair.len() == 2 && pair[0] == pair[1] && pair[0] >= 0).then_some(pair[0])).collect()
}

/// The weight of a convolution that pads by `more` besides; `None` where it is not known yet, or is one that padding would
/// crop.
fn with_padding<'g>(
    at: Node<'g>,
    weight: Value<'g>,
    more: &[i64],
    weights: &mut Weights<'_>,
) -> Result<Option<Value<'g>>> {
    let Some(content) = weights.content(weight) else { return Ok(None) };
    let graph = at.graph();
    let unpack = graph.create("jitquant::conv_unpack", &[weight], 10)?.insert_before(at)?;
    let parts = unpack.run(&[content]);
    unpack.destroy()?;
    let mut parts = parts?;
    let is_transposed = matches!(parts.last(), Some(IValue::Bool(true)));
    let Some(IValue::List { items, .. }) = parts.get_mut(PADDING).filter(|_| !is_transposed) else { return Ok(None) };
    if items.len() < more.len() {
        return Ok(None);
    }
    let first = items.len() - more.len();
    for (padding, more) in items[first..].iter_mut().zip(more) {
        let Some(known) = padding.as_int() else { return Ok(None) };
        *padding = IValue::Int(known + more);
    }
    let inputs = parts.iter().map(|part| constant(at, part.clone())).collect::<Result<Vec<_>>>()?;
    let prepack = at.insert_operator("jitquant::conv_prepack", &inputs)?.node();
    let packed = run(prepack, &parts);
    prepack.destroy()?;
    weights.keep(at, &weight.type_of(), packed?).map(Some)
}

/// Where `conv_unpack` gives the padding: after weight, scales, zero points, bias and stride.
const PADDING: usize = 5;
