//! Quantize and dequantize nodes are copied to where they are used, so that each use can be fused by itself.

use super::replace::{dequantize, dynamic_quantization, insert};
use crate::error::Result;
use crate::ir::{Block, Graph, Node, Value};
use crate::pass::QuantType;
use crate::pass::op_table::{Kernel, Operator};

fn nodes_of<'g>(graph: &'g Graph, kinds: &'static [&'static str]) -> impl Iterator<Item = Node<'g>> {
    graph.all_nodes().into_iter().filter(move |node| kinds.contains(&node.kind()))
}

/// What dynamic quantization consists of, found from its end: the value, and the element type.
fn dynamically_quantized(dequantize: Node<'_>) -> Option<(Value<'_>, Value<'_>)> {
    let quantize = dequantize.input(0)?.node();
    let choose = quantize.input(1)?.node();
    let block = dequantize.owning_block();
    let fits = dequantize.kind() == "aten::dequantize"
        && quantize.kind() == "aten::quantize_per_tensor"
        && choose.kind() == "aten::_choose_qparams_per_tensor"
        && quantize.owning_block() == block
        && choose.owning_block() == block
        && quantize.input(2)?.node() == choose
        && quantize.input(0) == choose.input(0)
        && quantize.output(0)?.uses().len() == 1;
    fits.then(|| Some((quantize.input(0)?, quantize.input(3)?))).flatten()
}

/// Takes away a dequantize that nobody uses, and what only it used.
fn drop_unused(dequantize: Node<'_>) -> Result<()> {
    let mut unused = vec![dequantize];
    while let Some(node) = unused.pop() {
        let is_part = matches!(
            node.kind(),
            "aten::dequantize"
                | "aten::quantize_per_tensor"
                | "aten::quantize_per_channel"
                | "aten::_choose_qparams_per_tensor"
                | "prim::Constant"
        );
        if is_part && !node.is_destroyed() && node.outputs().into_iter().all(|output| !output.is_used()) {
            unused.extend(node.inputs().into_iter().map(Value::node));
            node.destroy()?;
        }
    }
    Ok(())
}

/// A value that is quantized dynamically for several uses is so for each of them.
pub(super) fn dynamic_quantization_per_use(graph: &Graph) -> Result<()> {
    for node in nodes_of(graph, &["aten::dequantize"]) {
        let dequantized = node.outputs()[0];
        let uses = dequantized.uses();
        let Some((value, dtype)) = dynamically_quantized(node).filter(|_| uses.len() > 1) else { continue };
        for place in uses {
            let own = dynamic_quantization(place.user, value, dtype)?;
            place.user.replace_input(place.offset, own)?;
        }
        drop_unused(node)?;
    }
    Ok(())
}

/// Dynamic quantization for an operator that has no such form is taken away.
pub(super) fn drop_idle_dynamic_quantization(graph: &Graph) -> Result<()> {
    for node in nodes_of(graph, &["aten::dequantize"]) {
        let dequantized = node.outputs()[0];
        let Some((value, _)) = dynamically_quantized(node) else { continue };
        let [place] = dequantized.uses()[..] else { continue };
        if !Operator::of(place.user).is_some_and(|row| row.is_quantized(QuantType::Dynamic)) {
            dequantized.replace_all_uses_with(value)?;
            drop_unused(node)?;
        }
    }
    Ok(())
}

/// What joins branches and is quantized then is quantized at the end of each branch, where it meets what it is fused with:
/// libtorch's `ReplicateQuant`.
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn replicate_quant(graph: &Graph) -> Result<()> {
    for node in nodes_of(graph, &["aten::quantize_per_tensor", "aten::quantize_per_channel"]) {
        let inputs = node.inputs();
        let (joined, branches) = (inputs[0], inputs[0].node());
        // Other results, or other uses of this one, would have to be quantized as well.
        let fits = branches.kind() == "prim::If" && branches.outputs().len() == 1 && joined.uses().len() == 1;
        if !fits {
            continue;
        }
        for qparam in &inputs[1..] {
            hoist(*qparam, branches)?;
        }
        node.outputs()[0].replace_all_uses_with(joined)?;
        for branch in branches.blocks() {
            let result = branch.outputs()[0];
            let mut quantized_inputs = inputs.clone();
            quantized_inputs[0] = result;
            let quantized = insert(branch.return_node(), node.kind(), &quantized_inputs)?;
            quantized.set_type(&result.type_of())?;
            branch.return_node().replace_input(0, quantized)?;
        }
        node.destroy()?;
    }
    Ok(())
}

/// Moves what computes `value` before `place`, where it comes after it.
fn hoist<'g>(value: Value<'g>, place: Node<'g>) -> Result<()> {
    let node = value.node();
    if value.is_block_input() || node.is_before(place)? {
        return Ok(());
    }
    for input in node.inputs() {
        hoist(input, place)?;
    }
    node.move_before(place)
}

/// Each use of a dequantized value gets a dequantize of its own, in the block of the use: libtorch's `ReplicateDeQuant`.
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn replicate_dequant(graph: &Graph) -> Result<()> {
    for node in nodes_of(graph, &["aten::dequantize"]) {
        let dequantized = node.outputs()[0];
        if dequantized.uses().len() > 1 {
            dequantize_uses(dequantized, node.inputs()[0])?;
            node.destroy()?;
        }
    }
    Ok(())
}

/// What is quantized and dequantized for an operator that packs its own weight is left in float: it takes nothing else.
pub(super) fn drop_idle_quantization(graph: &Graph) -> Result<()> {
    for node in nodes_of(graph, &["aten::dequantize"]) {
        let (dequantized, quantize) = (node.outputs()[0], node.inputs()[0].node());
        let [place] = dequantized.uses()[..] else { continue };
        let takes_float = Operator::of(place.user).is_some_and(|row| row.kernel == Kernel::WeightOnly);
        if takes_float && quantize.kind().starts_with("aten::quantize_per_") {
            dequantized.replace_all_uses_with(quantize.inputs()[0])?;
            drop_unused(node)?;
        }
    }
    Ok(())
}

/// Puts `quantized`, dequantized for each of them, in the place of `value`'s uses.
pub(super) fn dequantize_uses<'g>(value: Value<'g>, quantized: Value<'g>) -> Result<Vec<Value<'g>>> {
    let mut dequantized = Vec::new();
    for (number, place) in value.uses().into_iter().enumerate() {
        let own = dequantize(place.user, quantized, value, number)?;
        place.user.replace_input(place.offset, own)?;
        dequantized.push(own);
    }
    Ok(dequantized)
}

/// Bounds of clamps are copied for each of their uses.
pub(super) fn clamp_bounds_per_use(graph: &Graph) -> Result<()> {
    for node in graph.all_nodes() {
        let [bound] = node.outputs()[..] else { continue };
        let uses = bound.uses();
        let is_bound = uses.iter().any(|place| {
            Operator::of_use(*place).is_some_and(|(row, argument)| row.is_clamp && (1..=2).contains(&argument))
        });
        if !is_bound || uses.len() < 2 || !node.blocks().into_iter().all(is_empty) {
            continue;
        }
        for place in uses {
            let copy = node.copy()?.insert_before(place.user)?;
            place.user.replace_input(place.offset, copy.outputs()[0])?;
        }
        node.destroy()?;
    }
    Ok(())
}

fn is_empty(block: Block<'_>) -> bool {
    block.nodes().next().is_none()
}
