//! Depthwise convolutions whose result is wanted in float stay in float, in portable form.

use crate::error::Result;
use crate::ir::{Module, Node, Value};

use super::layers::{Layer, layer_of};
use super::native::ELEMENTWISE;
use super::op_table::{Condition, Operator, PassThrough};
use super::unfit_weight::tensor_of;

/// Why such a layer stays in float.
pub(crate) const FLOAT_RESULT: &str =
    "its result is wanted in float, which libtorch's INT8 convolutions do not give (--form native does)";

/// Takes quantization away from each depthwise convolution whose result is dequantized for operators that compute in float
/// (the sum of a residual, a norm), in a flat graph after [`super::insert_quant_dequant`]; these layers.
///
/// libtorch's INT8 convolutions round their result to 8 bits, its linear layers need not ([`super::float_results`]). A depthwise
/// convolution is no faster in INT8 than in float, and FBGEMM adds up in 16 bits there, so that nothing is lost. Where the result
/// only goes through functions of one value to the next quantization, that rounds as well, and the layer stays in INT8.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn float_depthwise(module: &Module, method: &str) -> Result<Vec<Layer>> {
    let graph = module.graph(method)?;
    let mut left = Vec::new();
    let nodes = graph.all_nodes();
    // The last one first: what it takes is then wanted in float as well.
    for node in nodes.into_iter().rev().filter(|node| !node.is_destroyed()) {
        if !is_depthwise(module, node) {
            continue;
        }
        let Some(quantize) = quantize_behind(node) else { continue };
        let takers: Vec<_> = quantize.outputs()[0].uses().into_iter().map(|place| place.user).collect();
        let is_wanted = !takers.is_empty()
            && takers.iter().all(|taker| taker.kind() == "aten::dequantize")
            && !takers.iter().all(|taker| only_quantized(taker.outputs()[0]));
        let Some(layer) = layer_of(node, "").filter(|_| is_wanted) else { continue };
        for taker in takers {
            taker.outputs()[0].replace_all_uses_with(quantize.inputs()[0])?;
            taker.destroy()?;
        }
        quantize.destroy()?;
        take_float(node)?;
        left.push(layer);
    }
    Ok(left)
}

/// Has a layer take its input as it was before it was quantized for this layer alone.
fn take_float(layer: Node<'_>) -> Result<()> {
    let dequantize = layer.inputs()[0].node();
    let Some(quantize) = dequantize.input(0).map(Value::node) else { return Ok(()) };
    let alone = |node: Node<'_>| node.outputs()[0].uses().len() == 1;
    let fits = dequantize.kind() == "aten::dequantize"
        && quantize.kind() == "aten::quantize_per_tensor"
        && alone(dequantize)
        && alone(quantize);
    if fits {
        layer.replace_input(0, quantize.inputs()[0])?;
        dequantize.destroy()?;
        quantize.destroy()?;
    }
    Ok(())
}

/// A convolution of quantized operands with one input channel a group, and several groups.
fn is_depthwise(module: &Module, node: Node<'_>) -> bool {
    let is_convolution = matches!(node.kind(), "aten::conv1d" | "aten::conv2d" | "aten::conv3d");
    let groups = || node.named_input("groups").and_then(Value::constant).and_then(|groups| groups.as_int());
    let weight = || node.input(1).is_some_and(|weight| weight.node().kind() == "aten::dequantize");
    is_convolution && groups().is_some_and(|groups| groups > 1) && weight() && one_channel_a_group(module, node)
}

/// Whether the quantized weight is of one channel a group.
fn one_channel_a_group(module: &Module, node: Node<'_>) -> bool {
    let read = || node.input(1)?.node().input(0)?.node().input(0);
    let Some(weight) = read() else { return false };
    tensor_of(module, weight).is_some_and(|weight| weight.shape().get(1) == Some(&1))
}

/// The quantize of a layer's result, behind a relu or not.
fn quantize_behind(layer: Node<'_>) -> Option<Node<'_>> {
    let mut value = layer.output(0)?;
    loop {
        let [place] = value.uses()[..] else { return None };
        match place.user.kind() {
            "aten::quantize_per_tensor" if place.offset == 0 => return Some(place.user),
            "aten::relu" => value = place.user.output(0)?,
            _ => return None,
        }
    }
}

/// Whether a value goes nowhere but through functions of one value to a quantize.
fn only_quantized(value: Value<'_>) -> bool {
    let uses = value.uses();
    !uses.is_empty()
        && uses.into_iter().all(|place| {
            let user = place.user;
            let kind = user.kind();
            if kind == "aten::quantize_per_tensor" {
                return true;
            }
            let others_are_constant = || user.inputs().into_iter().all(|input| input == value || input.is_constant());
            let moves = || Operator::of(user).is_some_and(|row| row.pass_through == PassThrough::Shape);
            let is_function = (ELEMENTWISE.contains(&kind) && others_are_constant())
                || (kind == "aten::batch_norm" && Condition::False(5).holds(user))
                || (moves() && place.offset == 0);
            is_function && user.outputs().into_iter().all(only_quantized)
        })
}
