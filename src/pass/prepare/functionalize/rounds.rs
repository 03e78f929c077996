//! What libtorch's alias analysis does not know of loops.

use super::branches::is_inside;
use super::views::viewed;
use super::writes::writes;
use crate::error::Result;
use crate::ir::{Graph, IValue};

/// libtorch does not see that a round of a loop writes into what the one before handed to it, and takes that for a constant:
///
/// ```text
/// for i in range(n):        h = cache if h.dim() < 0 else h
///     h += 1            =>  for i in range(n):
///     h = cache                 …
/// ```
pub fn show_next_rounds(graph: &Graph) -> Result<()> {
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::Loop") {
        let body = node.blocks()[0];
        if !body.all_nodes().into_iter().any(writes) {
            continue;
        }
        for (index, (argument, result)) in std::iter::zip(&body.inputs()[1..], &body.outputs()[1..]).enumerate() {
            let root = viewed(*result);
            let handed = match body.inputs()[1..].iter().position(|input| *input == root) {
                Some(other) => node.inputs()[other + 2],
                None if is_inside(root, node) => continue,
                None => root,
            };
            let first = node.inputs()[index + 2];
            if root == *argument || handed == first || !first.type_of().is_tensor() || !handed.type_of().is_tensor() {
                continue;
            }
            let rank = node.insert_operator("aten::dim", &[first])?;
            let never = node.insert_operator("aten::lt", &[rank, node.insert_constant(IValue::Int(0))?])?;
            let either = graph.create("prim::If", &[never], 1)?.insert_before(node)?;
            either.outputs()[0].set_type(&first.type_of())?;
            either.add_block()?.register_output(handed)?;
            either.add_block()?.register_output(first)?;
            node.replace_input(index + 2, either.outputs()[0])?;
        }
    }
    Ok(())
}
