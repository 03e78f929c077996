//! Writes in place, changed lists and dictionaries: made into operators that give new values.
//!
//! ```text
//! %y = aten::conv2d(%x, …)                       %y = aten::conv2d(%x, …)
//! %v = aten::slice(%y, 1, 0, 2, 1)               %v = aten::slice(%y, 1, 0, 2, 1)
//! %w = aten::mul_(%v, %two)                  =>  %w = aten::mul(%v, %two)
//! %z = aten::linear(%y, …)                       %y1 = aten::slice_scatter(%y, %w, 1, 0, 2, 1)
//!                                                %z = aten::linear(%y1, …)
//! ```
//!
//! The graph is walked once in the order in which it runs ([`walk`]), with what is known of each value ([`state`]): a
//! tensor is a chain of views on a *storage*, and a storage has a current value, which a write replaces ([`writes`],
//! [`views`]); a list or dictionary is its items ([`containers`]). Who reads gets the value of that time. Branches end in
//! new results of `prim::If` ([`branches`]), loops carry what they write or are written out ([`loops`]).
//!
//! `reshape` gives a view of what lies in row-major order ([`layout`]).
//!
//! What cannot be told before the model runs (whether `reshape` of another order gave a view or a copy, how often a loop runs) is found out
//! on the way: then it is noted, with the reason, and the walk begins again on a fresh copy of the graph. A noted tensor
//! stays written in place, on a copy of its own that every reader copies again at its time; a noted list stays a list. No
//! observer and no quantized operator ever meets either.

mod branches;
mod containers;
mod dicts;
mod fold;
mod layout;
mod loops;
mod rounds;
mod state;
mod views;
mod walk;
mod writes;

use std::collections::HashMap;

pub(super) use self::rounds::show_next_rounds;
use self::state::Knowledge;
pub(crate) use self::views::viewed;
use self::walk::{Stop, Walker};
pub(crate) use self::writes::{writes, written};
use crate::error::{Error, Result};
use crate::ir::{GeneralPass, Graph, Node};
use crate::pass::layers::{Layer, place};

/// How often the walk begins again at most: each time it knows more.
const MOST_WALKS: usize = 200;

/// Replaces in `graph`, one flat graph, what writes in place by operators that give new values; what stays as it is, with
/// why.
///
/// A write into an argument of the graph is made at its end, in one copy; so is a write into a buffer.
///
/// # Errors
/// Where libtorch refuses to change the graph; it has not changed then.
pub fn functionalize(graph: &mut Graph) -> Result<Vec<(Layer, String)>> {
    let nodes = graph.all_nodes();
    if !nodes.iter().any(|node| writes::changes_something(*node)) {
        return Ok(Vec::new());
    }
    if let Some(call) = nodes.iter().find(|node| is_unknown_code(**node)) {
        let why = format!("its code calls {}, whose writes are not known: writes in place stay", call.kind());
        return Ok(vec![(place(*call, "write in place"), why)]);
    }
    drop(nodes);
    let mut knowledge = Knowledge::default();
    for _ in 0..MOST_WALKS {
        let attempt = graph.deep_clone()?;
        match Walker::new(&attempt, &mut knowledge).run() {
            Ok(()) => {
                let mut attempt = attempt;
                show_next_rounds(&attempt)?;
                attempt.run(GeneralPass::DeadCodeElimination)?;
                let kept = kept(graph, &knowledge);
                refill(graph, &attempt)?;
                return Ok(kept);
            }
            Err(Stop::Again) => {}
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    Err(Error::invalid("the writes in place of this model could not be followed"))
}

/// Whether `node` runs code that the graph does not show.
fn is_unknown_code(node: Node<'_>) -> bool {
    let known_blocks = matches!(node.kind(), "prim::If" | "prim::Loop");
    let calls = ["prim::CallMethod", "prim::CallFunction", "prim::fork", "aten::wait", "prim::PythonOp"];
    calls.contains(&node.kind()) || (!known_blocks && !node.blocks().is_empty())
}

/// What stays as it is, by the nodes of the graph as it was.
fn kept(graph: &Graph, knowledge: &Knowledge) -> Vec<(Layer, String)> {
    let by_index: HashMap<usize, Node<'_>> = graph.all_nodes().into_iter().enumerate().collect();
    let mut kept = Vec::new();
    for (notes, what) in [(&knowledge.real, "write in place"), (&knowledge.opaque, "list")] {
        for (site, why) in notes {
            let node = by_index.get(&site.0).copied().or_else(|| graph.nodes().next());
            kept.extend(node.map(|node| (place(node, what), why.clone())));
        }
    }
    kept
}

/// Gives `graph` the nodes and results of `source` in place of its own.
fn refill(graph: &Graph, source: &Graph) -> Result<()> {
    let old: Vec<_> = graph.nodes().collect();
    let end = graph.block().return_node();
    let results = end.insert_graph(source, &graph.inputs())?;
    for (index, result) in results.into_iter().enumerate() {
        end.replace_input(index, result)?;
    }
    old.into_iter().rev().try_for_each(Node::destroy)
}
