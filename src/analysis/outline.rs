//! The shape of a model: its layers, and how they hang together.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use crate::ir::{Graph, Node, Value};
use crate::pass::layer_of;

/// A layer, or an operator that joins several ways (a residual sum, say); what else stands between is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutlineNode {
    /// The layer's path, or the operator's name.
    pub label: String,
    /// Which of [`LayerComparison::layers`](super::LayerComparison::layers) it is; `None` where it was not compared.
    pub layer: Option<usize>,
    /// The nodes whose results lead to it, all before it in the list.
    pub after: Vec<usize>,
}

/// The outline of a flat graph, from the model's inputs to its result. `positions` has the layers that were compared.
pub(super) fn outline(graph: &Graph, positions: &HashMap<Node<'_>, usize>) -> Vec<OutlineNode> {
    let mut nodes = vec![OutlineNode { label: "input".to_owned(), layer: None, after: Vec::new() }];
    // Which nodes a value comes from.
    let mut sources: HashMap<Value<'_>, BTreeSet<usize>> = HashMap::new();
    for input in graph.inputs().into_iter().skip(1) {
        sources.insert(input, BTreeSet::from([0]));
    }
    let union = |sources: &HashMap<Value<'_>, BTreeSet<usize>>, values: Vec<Value<'_>>| -> BTreeSet<usize> {
        values.iter().filter_map(|value| sources.get(value)).flatten().copied().collect()
    };
    for node in graph.nodes() {
        // What a branch or a loop takes from outside counts to it.
        let inside = node.blocks().into_iter().flat_map(|block| block.all_nodes()).flat_map(|inner| inner.inputs());
        let mut from = union(&sources, node.inputs().into_iter().chain(inside).collect());
        let layer = layer_of(node, "");
        // A list of tensors is no join: what takes the list is.
        let joins = from.len() > 1 && !node.kind().starts_with("prim::List") && !node.kind().starts_with("prim::Tuple");
        if layer.is_some() || joins {
            let label = match layer {
                Some(layer) if !layer.path.is_empty() => layer.path,
                Some(layer) => layer.operator.to_owned(),
                None => node
                    .kind()
                    .trim_start_matches("aten::")
                    .trim_start_matches("prim::")
                    .trim_end_matches('_')
                    .to_owned(),
            };
            let layer = positions.get(&node).copied();
            nodes.push(OutlineNode { label, layer, after: from.into_iter().collect() });
            from = BTreeSet::from([nodes.len() - 1]);
        }
        for output in node.outputs() {
            // Sizes and other numbers carry no data on.
            let ty = output.type_of();
            if ty.is_tensor() || ty.to_string().contains("Tensor") {
                sources.insert(output, from.clone());
            }
        }
    }
    let after = union(&sources, graph.outputs()).into_iter().collect();
    nodes.push(OutlineNode { label: "output".to_owned(), layer: None, after });
    nodes
}
