//! Linear layers with small weights ([`crate::pass::weight_only`]) become `jitquant::linear_weight_only`.

use super::call::{constant, operator};
use super::weights::{Weights, run};
use crate::error::Result;
use crate::ir::{Graph, IValue, Node, Value};
use crate::pass::weight_only::Stored;

/// Rewrites the linear layers of a graph whose weights are known; how many.
pub(super) fn to_native(graph: &Graph, weights: &mut Weights<'_>) -> Result<usize> {
    let mut count = 0;
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::linear") {
        let Some(layer) = Stored::of(node) else { continue };
        let Some(weight) = native_weight(&layer, weights)? else { continue };
        let at = layer.result.node();
        let result = operator(at, "jitquant::linear_weight_only", &[node.inputs()[0], weight])?;
        layer.result.replace_all_uses_with(result)?;
        count += 1;
    }
    Ok(count)
}

/// The packed weight before the node that gives the layer's result.
fn native_weight<'g>(layer: &Stored<'g>, weights: &mut Weights<'_>) -> Result<Option<Value<'g>>> {
    let at: Node<'g> = layer.result.node();
    let content = |value: Option<Value<'g>>| match value {
        Some(value) => weights.content(value),
        None => Some(IValue::None),
    };
    let parts = [Some(layer.weight), Some(layer.scales), layer.offsets, layer.bias].map(content);
    let [Some(weight), Some(scales), Some(offsets), Some(bias)] = parts else { return Ok(None) };
    let parts = [weight, scales, offsets, bias];
    let inputs = parts.iter().map(|part| constant(at, part.clone())).collect::<Result<Vec<_>>>()?;
    let prepack = at.insert_operator("jitquant::linear_weight_only_prepack", &inputs)?;
    let packed = run(prepack.node(), &parts);
    prepack.node().destroy()?;
    weights.keep(at, &prepack.type_of(), packed?).map(Some)
}
