//! The order in which passes number what they insert.

use crate::ir::{Graph, Node};

/// The graph's nodes in the order in which libtorch's quantization passes visit them: a block's own nodes first, then
/// the blocks within, last one first. Numbers in names (`_scale_0`, `_jit_pass_packed_weight_0`) follow it.
pub(super) fn block_order(graph: &Graph) -> Vec<Node<'_>> {
    let mut blocks = vec![graph.block()];
    let mut nodes = Vec::new();
    while let Some(block) = blocks.pop() {
        for node in block.nodes() {
            nodes.push(node);
            blocks.extend(node.blocks());
        }
    }
    nodes
}
