//! Sizes of features that the layers tell: what a linear layer takes has as many as its weight has columns.
//!
//! `torch.nn.MultiheadAttention` asks its input how long a row is and cuts its weight into pieces of that length: with the
//! length known, the pieces are constants.

use super::axis::rank_of;
use crate::error::Result;
use crate::ir::{Block, Graph, IValue, Node, Value};

/// How many operators are followed from a value at most.
const STEPS: usize = 8;

/// Puts numbers in the place of questions for the size of a tensor's last dimension, where a layer tells it; how many.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn know_feature_sizes(graph: &Graph) -> Result<usize> {
    let mut known = 0;
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::size") {
        known += match node.inputs()[..] {
            [x, dimension] => of_dimension(node, x, dimension)?,
            [x] => of_all(node, x)?,
            _ => 0,
        };
    }
    Ok(known)
}

/// `x.size(-1)`
fn of_dimension(node: Node<'_>, x: Value<'_>, dimension: Value<'_>) -> Result<usize> {
    let Some(number) = dimension.constant().and_then(|number| number.as_int()) else { return Ok(0) };
    let is_last = number == -1 || (number >= 0 && rank_of(x) == Some(number as usize + 1));
    answer(node.outputs()[0], node, is_last.then(|| features(x, node)).flatten())
}

/// `x.size()[-1]`, and the last of `a, b, c = x.size()`
fn of_all(node: Node<'_>, x: Value<'_>) -> Result<usize> {
    let mut known = 0;
    for place in node.outputs()[0].uses() {
        let user = place.user;
        let last = match user.kind() {
            "prim::ListUnpack" => user.outputs().last().copied(),
            "aten::__getitem__" => {
                let number = user.input(1).and_then(Value::constant).and_then(|number| number.as_int());
                (number == Some(-1)).then(|| user.outputs()[0])
            }
            _ => None,
        };
        if let Some(last) = last {
            known += answer(last, user, features(x, user))?;
        }
    }
    Ok(known)
}

fn answer(size: Value<'_>, at: Node<'_>, number: Option<i64>) -> Result<usize> {
    let Some(number) = number.filter(|_| size.is_used()) else { return Ok(0) };
    size.replace_all_uses_with(at.insert_constant(number)?)?;
    Ok(1)
}

/// The size of the last dimension of `x`, asked by `asker`.
fn features(x: Value<'_>, asker: Node<'_>) -> Option<i64> {
    given(x, STEPS).or_else(|| taken(x, asker))
}

/// Operators that keep the last dimension as it is.
fn keeps_features(node: Node<'_>) -> bool {
    const KINDS: [&str; 10] = [
        "aten::relu",
        "aten::gelu",
        "aten::dropout",
        "aten::contiguous",
        "aten::detach",
        "aten::tanh",
        "aten::sigmoid",
        "aten::layer_norm",
        "aten::softmax",
        "aten::silu",
    ];
    let number = |index: usize| node.input(index)?.constant()?.as_int();
    KINDS.contains(&node.kind())
        || (node.kind() == "aten::unsqueeze" && number(1) == Some(0))
        // Batch and time in front of features.
        || (node.kind() == "aten::transpose" && (number(1), number(2)) == (Some(0), Some(1)) && has_three(node))
}

/// Whether a transposed tensor has more than the two dimensions that change places.
fn has_three(transpose: Node<'_>) -> bool {
    transpose.input(0).and_then(rank_of).is_some_and(|rank| rank > 2)
}

/// What the operator that computes `x` tells.
fn given(x: Value<'_>, steps: usize) -> Option<i64> {
    let node = x.node();
    match node.kind() {
        "aten::linear" => sizes(node.input(1)?)?.first().copied(),
        "aten::embedding" => sizes(node.input(0)?)?.last().copied(),
        "aten::layer_norm" => match node.input(1)?.constant()? {
            IValue::List { items, .. } => items.last()?.as_int(),
            _ => None,
        },
        _ if keeps_features(node) && steps > 0 => given(node.input(0)?, steps - 1),
        _ => None,
    }
}

/// What the layers that take `x` tell: those that run whenever `asker` does, for where they would fail, the model fails.
fn taken(x: Value<'_>, asker: Node<'_>) -> Option<i64> {
    let mut block = asker.owning_block();
    while let Some(around) = block {
        if let Some(columns) = taken_in(x, around, STEPS) {
            return Some(columns);
        }
        block = around.owner().and_then(Node::owning_block);
    }
    None
}

/// What a layer tells that takes `x` whenever `block` runs: one that stands in it, or one in each branch of a condition.
fn taken_in(x: Value<'_>, block: Block<'_>, steps: usize) -> Option<i64> {
    if steps == 0 {
        return None;
    }
    let mut conditions = Vec::new();
    for place in x.uses() {
        let user = place.user;
        if user.owning_block() != Some(block) {
            conditions.extend(condition_around(user, block).filter(|condition| !conditions.contains(condition)));
            continue;
        }
        let told = match user.kind() {
            "aten::linear" if place.offset == 0 => columns(user.input(1)?),
            _ if place.offset == 0 && keeps_features(user) => taken_in(user.output(0)?, block, steps - 1),
            _ => None,
        };
        if told.is_some() {
            return told;
        }
    }
    conditions.into_iter().find_map(|condition| {
        let mut branches = condition.blocks().into_iter().filter(|branch| !raises(*branch));
        let first = taken_in(x, branches.next()?, steps - 1)?;
        branches.all(|branch| taken_in(x, branch, steps - 1) == Some(first)).then_some(first)
    })
}

/// The condition in `block` in one of whose branches `node` stands.
fn condition_around<'g>(node: Node<'g>, block: Block<'g>) -> Option<Node<'g>> {
    let mut inner = node.owning_block()?;
    loop {
        let owner = inner.owner()?;
        let outer = owner.owning_block()?;
        if outer == block {
            return (owner.kind() == "prim::If").then_some(owner);
        }
        inner = outer;
    }
}

fn raises(block: Block<'_>) -> bool {
    block.nodes().any(|node| node.kind() == "prim::RaiseException")
}

fn sizes(weight: Value<'_>) -> Option<Vec<i64>> {
    Some(weight.constant()?.as_tensor()?.shape())
}

/// The columns of a weight: of a constant, or of one that is cut from a constant row by row.
fn columns(weight: Value<'_>) -> Option<i64> {
    if weight.is_constant() {
        return sizes(weight)?.get(1).copied();
    }
    let list = match weight.node().kind() {
        "prim::ListUnpack" => weight.node().input(0)?,
        _ => return None,
    };
    let cut = list.node();
    let by_rows = match cut.kind() {
        "aten::split" | "aten::split_with_sizes" | "aten::chunk" => cut.input(2)?.constant()?.as_int() == Some(0),
        _ => false,
    };
    sizes(cut.input(0).filter(|_| by_rows)?)?.get(1).copied()
}
