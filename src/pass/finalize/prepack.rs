//! Quantized weights are packed, and unpacked again for the float operators: `InsertPrepackUnpack`.

use crate::error::Result;
use crate::ir::{Graph, Node, Type, Value};
use crate::pass::op_table::{Conditions, Operator, Packing};
use crate::pass::source_of;

/// Packs the quantized weight of each convolution and linear layer, with its bias and geometry, and has the operator take
/// what unpacking gives: `linear(x, dequantize(w), b)` becomes
/// `w, b = linear_unpack(linear_prepack(w, b)); linear(x, dequantize(w), b)`. Weights rounded to float16 likewise.
/// Fusion looks for that form.
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn insert_prepack_unpack(graph: &Graph) -> Result<()> {
    insert_prepack_unpack_by(graph, Conditions::Ignored)
}

/// As [`insert_prepack_unpack`]; where conditions are asked, of weights alone that are part of the module: what is computed
/// when the model runs has the parameters of an activation.
pub(super) fn insert_prepack_unpack_by(graph: &Graph, conditions: Conditions) -> Result<()> {
    for node in graph.all_nodes() {
        let Some(row) = Operator::of(node) else { continue };
        let (Some(packing), Some(weight)) = (row.packing, row.weight) else { continue };
        if conditions == Conditions::Asked && !node.input(weight).is_some_and(is_of_module) {
            continue;
        }
        match single_input(node, weight).map(|prepared| (prepared, prepared.kind())) {
            Some((dequantize, "aten::dequantize")) => {
                if !packing.per_channel && is_per_channel(dequantize) {
                    let place = source_of(node);
                    tracing::warn!("{} ({place}) stays in float: its weight has a scale for each channel", node.kind());
                    continue;
                }
                if let Some([unpacked, bias]) = pack(node, dequantize, packing.prepack, packing.unpack, &packing)? {
                    let at = graph.create("aten::dequantize", &[unpacked], 1)?.insert_before(node)?;
                    take(node, row, dequantize, at.outputs()[0], bias)?;
                }
            }
            Some((saturate, "aten::_saturate_weight_to_fp16")) => {
                let Some((prepack, unpack)) = packing.half else { continue };
                if let Some([unpacked, bias]) = pack(node, saturate, prepack, unpack, &packing)? {
                    take(node, row, saturate, unpacked, bias)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The node that computes input `index` for this node alone, in the same block.
fn single_input(node: Node<'_>, index: usize) -> Option<Node<'_>> {
    let value = node.input(index)?;
    let alone = value.uses().len() == 1 && value.node().owning_block() == node.owning_block();
    alone.then_some(value.node())
}

/// Takes packing and unpacking away again where no fusion wanted them: a layer that stays in float takes its weight as it
/// is, instead of one that is unpacked at each run.
pub(super) fn restore_weights(graph: &Graph) -> Result<()> {
    for unpack in graph.all_nodes() {
        let is_unpack = unpack.kind().starts_with("quantized::") && unpack.kind().ends_with("_unpack");
        let ([weight, bias], Some(packed)) = (&unpack.outputs()[..], unpack.input(0).filter(|_| is_unpack)) else {
            continue;
        };
        let prepack = packed.node();
        let (Some(quantized), Some(float_bias)) = (prepack.input(0), prepack.input(1)) else { continue };
        let quantize = quantized.node();
        let [place] = weight.uses()[..] else { continue };
        let fits = quantize.kind().starts_with("aten::quantize_per_") && place.user.kind() == "aten::dequantize";
        let Some(float) = quantize.input(0).filter(|_| fits && prepack.kind().ends_with("_prepack")) else { continue };
        place.user.outputs()[0].replace_all_uses_with(float)?;
        bias.replace_all_uses_with(float_bias)?;
        place.user.destroy()?;
        for unused in [unpack, prepack, quantize] {
            if !unused.is_destroyed() && unused.outputs().into_iter().all(|output| !output.is_used()) {
                unused.destroy()?;
            }
        }
    }
    Ok(())
}

/// Whether a weight, quantized or not, is a constant or an attribute.
fn is_of_module(weight: Value<'_>) -> bool {
    match weight.node().kind() {
        "prim::GetAttr" | "prim::Constant" => true,
        "aten::dequantize"
        | "aten::quantize_per_tensor"
        | "aten::quantize_per_channel"
        | "aten::_saturate_weight_to_fp16" => weight.node().input(0).is_some_and(is_of_module),
        _ => false,
    }
}

fn is_per_channel(dequantize: Node<'_>) -> bool {
    dequantize.input(0).is_some_and(|weight| weight.node().kind() == "aten::quantize_per_channel")
}

/// Inserts packing and unpacking of what `prepared` takes; the unpacked weight and bias. `None` where the kernels have
/// no such geometry.
fn pack<'g>(
    node: Node<'g>,
    prepared: Node<'g>,
    prepack: &str,
    unpack: &str,
    packing: &Packing,
) -> Result<Option<[Value<'g>; 2]>> {
    let mut inputs = prepared.inputs();
    inputs.extend(packing.arguments.iter().filter_map(|index| node.input(*index)));
    let packed = match node.insert_operator(prepack, &inputs) {
        Ok(packed) => packed,
        Err(refusal) => {
            tracing::warn!("{} ({}) stays in float: {refusal}", node.kind(), source_of(node));
            return Ok(None);
        }
    };
    let unpacking = node.graph().create(unpack, &[packed], 2)?.insert_before(node)?;
    let [weight, bias] = [unpacking.outputs()[0], unpacking.outputs()[1]];
    bias.set_type(&Type::parse("Optional[Tensor]")?)?;
    Ok(Some([weight, bias]))
}

/// Has the operator take the unpacked weight and bias.
fn take<'g>(node: Node<'g>, row: &Operator, prepared: Node<'g>, weight: Value<'g>, bias: Value<'g>) -> Result<()> {
    for (index, value) in [(row.weight, weight), (row.bias, bias)] {
        if let Some(index) = index {
            node.replace_input(index, value)?;
        }
    }
    prepared.destroy()
}
