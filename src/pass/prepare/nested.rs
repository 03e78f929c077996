//! Encoders that pack away what a mask leaves out: `torch.nn.TransformerEncoder` makes a nested tensor of the padded one, runs its
//! layers on that, and pads the result with zeros. INT8 layers take no nested tensors: they run on the padded one with the mask,
//! and the zeros are put in at the end.

use crate::error::Result;
use crate::ir::{Graph, IValue, Node, Value};

const PACK: &str = "aten::_nested_tensor_from_mask";
const UNPACK: &str = "aten::to_padded_tensor";
/// Where the mask and its kind are among the inputs of the layers' fast paths.
const LAYERS: [(&str, usize, usize); 2] =
    [("aten::_transformer_encoder_layer_fwd", 18, 19), ("aten::_native_multi_head_attention", 9, 12)];

/// Whether an operator makes a nested tensor. (One asks whether a mask could be packed away.)
pub(super) fn makes_nested(node: Node<'_>) -> bool {
    node.kind().contains("nested_tensor") && !node.kind().ends_with("left_aligned")
}

/// Has the layers between packing and unpacking run on the padded tensor; how many nested tensors are gone.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn stay_padded(graph: &Graph) -> Result<usize> {
    let nodes = graph.all_nodes();
    let of_kind = |kind: &str| nodes.iter().copied().filter(|node| node.kind() == kind).collect::<Vec<_>>();
    let (packs, unpacks) = (of_kind(PACK), of_kind(UNPACK));
    // One after the other: whose result an unpacking pads is told by their order.
    if packs.len() != unpacks.len() {
        return Ok(0);
    }
    for (pack, unpack) in std::iter::zip(&packs, &unpacks) {
        let Some(dropped) = dropped(*pack).filter(|dropped| is_seen(*dropped, *unpack)) else { return Ok(0) };
        keep_mask(*pack, dropped)?;
        pack.outputs()[0].replace_all_uses_with(pack.inputs()[0])?;
        fill(*unpack, dropped)?;
        pack.destroy()?;
        for layer in nodes.iter().filter(|node| !node.is_destroyed()) {
            let after = layer.is_before(*unpack).unwrap_or(false);
            if let Some((_, mask, kind)) = LAYERS.iter().find(|(kind, ..)| *kind == layer.kind()).filter(|_| after) {
                mask_layer(*layer, *mask, *kind, dropped)?;
            }
        }
        unpack.destroy()?;
    }
    Ok(packs.len())
}

/// The mask of what is left out, of which packing takes the opposite.
fn dropped(pack: Node<'_>) -> Option<Value<'_>> {
    let kept = pack.input(1)?.node();
    (kept.kind() == "aten::logical_not").then(|| kept.input(0)).flatten()
}

fn is_seen(value: Value<'_>, from: Node<'_>) -> bool {
    value.is_block_input() || from.is_dominated_by(value.node()).unwrap_or(false)
}

/// Where packing stands in a branch that gives no mask on, it gives on the mask that the other one does.
fn keep_mask(pack: Node<'_>, dropped: Value<'_>) -> Result<()> {
    let Some(block) = pack.owning_block() else { return Ok(()) };
    let Some(condition) = block.owner().filter(|owner| owner.kind() == "prim::If") else { return Ok(()) };
    let end = block.return_node();
    for (index, result) in block.outputs().into_iter().enumerate() {
        let is_none = matches!(result.constant(), Some(IValue::None));
        let others = condition.blocks().into_iter().filter(|other| *other != block);
        if is_none && others.into_iter().all(|other| other.outputs().get(index) == Some(&dropped)) {
            end.replace_input(index, dropped)?;
        }
    }
    Ok(())
}

/// `masked_fill(y, mask, padding)` in the place of unpacking.
fn fill(unpack: Node<'_>, dropped: Value<'_>) -> Result<()> {
    let [y, padding, ..] = unpack.inputs()[..] else { return Ok(()) };
    let mask = as_booleans(unpack, dropped)?;
    let rows = unpack.insert_operator("aten::unsqueeze", &[mask, unpack.insert_constant(IValue::Int(-1))?])?;
    let filled = unpack.insert_operator("aten::masked_fill", &[y, rows, padding])?;
    filled.node().copy_metadata(unpack)?;
    unpack.outputs()[0].replace_all_uses_with(filled)
}

/// A mask of numbers leaves out what is not 0.
fn as_booleans<'g>(before: Node<'g>, mask: Value<'g>) -> Result<Value<'g>> {
    before.insert_operator("aten::ne", &[mask, before.insert_constant(IValue::Int(0))?])
}

/// Gives a layer on the padded tensor the mask; 1 is the kind of masks of `B x T`.
fn mask_layer(layer: Node<'_>, mask: usize, kind: usize, dropped: Value<'_>) -> Result<()> {
    let has_none = matches!(layer.input(mask).and_then(Value::constant), Some(IValue::None));
    if has_none && is_seen(dropped, layer) {
        layer.replace_input(mask, as_booleans(layer, dropped)?)?;
        layer.replace_input(kind, layer.insert_constant(IValue::Int(1))?)?;
    }
    Ok(())
}
