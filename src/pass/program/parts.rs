//! Which operators become a part together.

use std::collections::{HashMap, HashSet};

use super::read::writes;
use super::steps::{computation, is_size, may_copy, views};
use crate::error::Result;
use crate::ir::{Block, Graph, Node, Value};

/// Steps that are worth a part.
const WORTH: usize = 2;

/// Which nodes of a graph cost nothing.
#[derive(Clone, Copy)]
struct FreeNodes {
    /// Whether the graph writes into memory: what may be a copy is then none that can be made later.
    writes: bool,
}

impl FreeNodes {
    fn of(graph: &Graph) -> Self {
        // What code that is not in the graph does is not known.
        let is_unknown =
            |node: Node<'_>| matches!(node.kind(), "prim::CallMethod" | "prim::CallFunction" | "prim::PythonOp");
        Self { writes: graph.all_nodes().into_iter().any(|node| writes(node) || is_unknown(node)) }
    }

    /// Whether a node is a view, a size or a list: inside a part and outside it each has its own copy.
    fn has(self, node: Node<'_>) -> bool {
        node.kind() != "prim::Param"
            && computation(node).is_none()
            && (is_size(node) || views(node).is_some())
            && !(self.writes && may_copy(node))
    }
}

/// Cuts the parts out of a graph; how many.
pub(super) fn cut(graph: &Graph) -> Result<usize> {
    cut_block(graph, graph.block(), FreeNodes::of(graph))
}

fn cut_block<'g>(graph: &'g Graph, block: Block<'g>, free: FreeNodes) -> Result<usize> {
    let nodes: Vec<_> = block.nodes().collect();
    let mut made = 0;
    for inner in nodes.iter().flat_map(|node| node.blocks()) {
        made += cut_block(graph, inner, free)?;
    }
    for part in find(&nodes, free)? {
        if part.len() >= WORTH {
            made += usize::from(replace(graph, block, &part, free)?);
        }
    }
    Ok(made)
}

/// The parts of a graph, each with its steps in order.
pub(super) fn all(graph: &Graph) -> Result<Vec<Vec<Node<'_>>>> {
    all_of(graph.block(), FreeNodes::of(graph))
}

fn all_of(block: Block<'_>, free: FreeNodes) -> Result<Vec<Vec<Node<'_>>>> {
    let nodes: Vec<_> = block.nodes().collect();
    let mut parts = find(&nodes, free)?;
    parts.retain(|part| part.len() >= WORTH);
    for inner in nodes.iter().flat_map(|node| node.blocks()) {
        parts.extend(all_of(inner, free)?);
    }
    Ok(parts)
}

/// What a node is to a part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It computes, and has a step.
    Step,
    /// It costs nothing: a view, a size, a list. Inside a part and outside it each has its own copy.
    Free,
    /// Nothing may move past it.
    Barrier,
    Other,
}

fn kind(node: Node<'_>, free: FreeNodes) -> Result<Kind> {
    if let Some(step) = computation(node) {
        return Ok(if step.is_ok() { Kind::Step } else { Kind::Other });
    }
    if free.has(node) {
        return Ok(Kind::Free);
    }
    let is_plain = matches!(node.kind(), "prim::Constant" | "prim::GetAttr");
    if is_plain {
        return Ok(Kind::Other);
    }
    let is_barrier = writes(node) || !node.blocks().is_empty() || node.schema().is_none() || node.has_side_effects()?;
    Ok(if is_barrier { Kind::Barrier } else { Kind::Other })
}

/// The values that a node needs which are no views, sizes or lists: what it is computed from.
fn bases<'g>(node: Node<'g>, free: FreeNodes) -> Vec<Value<'g>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut open = node.inputs();
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        match free.has(value.node()) {
            true => open.extend(value.node().inputs()),
            false => found.push(value),
        }
    }
    found
}

/// The parts of a block, each with its steps in order.
fn find<'g>(nodes: &[Node<'g>], free: FreeNodes) -> Result<Vec<Vec<Node<'g>>>> {
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    // What depends on the part that is open: computed by it, or from that by others.
    let (mut own, mut beyond): (HashSet<Value<'g>>, HashSet<Value<'g>>) = Default::default();
    for node in nodes {
        match kind(*node, free)? {
            Kind::Step => {
                if bases(*node, free).iter().any(|value| beyond.contains(value)) {
                    parts.push(std::mem::take(&mut part));
                    (own, beyond) = Default::default();
                }
                part.push(*node);
                own.extend(node.outputs());
            }
            Kind::Free => {}
            Kind::Barrier => {
                parts.push(std::mem::take(&mut part));
                (own, beyond) = Default::default();
            }
            Kind::Other => {
                if bases(*node, free).iter().any(|value| own.contains(value) || beyond.contains(value)) {
                    beyond.extend(node.outputs());
                }
            }
        }
    }
    parts.push(part);
    Ok(parts)
}

/// Puts a node `jitquant::run` in the place of a part; whether there is one.
fn replace<'g>(graph: &'g Graph, block: Block<'g>, part: &[Node<'g>], free: FreeNodes) -> Result<bool> {
    let members: HashSet<_> = part.iter().copied().collect();
    let outputs: Vec<_> = part
        .iter()
        .flat_map(|node| node.outputs())
        .filter(|value| is_needed_outside(*value, &members, free, &mut HashMap::new()))
        .collect();
    if outputs.is_empty() {
        return Ok(false);
    }
    let (inside, inputs) = inside(part, free);
    let subgraph = Graph::of_nodes(&inside, &inputs, &outputs)?;
    let last = part[part.len() - 1];
    let run = graph.create("jitquant::run", &inputs, outputs.len())?;
    run.set_subgraph("Subgraph", &subgraph)?;
    run.copy_metadata(last)?;
    run.insert_after(last)?;
    move_behind(block, part, run)?;
    for (old, new) in outputs.into_iter().zip(run.outputs()) {
        new.set_type(&old.type_of())?;
        for place in old.uses().into_iter().filter(|place| !members.contains(&place.user)) {
            place.user.replace_input(place.offset, new)?;
        }
    }
    // Now: some stand before what they took, which moved.
    for node in inside.into_iter().rev() {
        if node.outputs().iter().all(|output| !output.is_used()) {
            node.destroy()?;
        }
    }
    Ok(true)
}

/// Whether something else than the part's steps takes a value, itself or what free nodes make of it.
fn is_needed_outside<'g>(
    value: Value<'g>,
    members: &HashSet<Node<'g>>,
    free: FreeNodes,
    known: &mut HashMap<Node<'g>, bool>,
) -> bool {
    value.uses().into_iter().any(|place| {
        let user = place.user;
        if members.contains(&user) {
            return false;
        }
        if !free.has(user) {
            return true;
        }
        if let Some(needed) = known.get(&user) {
            return *needed;
        }
        let needed = user.outputs().into_iter().any(|output| is_needed_outside(output, members, free, known));
        known.insert(user, needed);
        needed
    })
}

/// The nodes of a part with all that costs nothing and constants that it takes, each behind those that it takes, and what else
/// it takes.
fn inside<'g>(part: &[Node<'g>], free: FreeNodes) -> (Vec<Node<'g>>, Vec<Value<'g>>) {
    let mut found = Inside { free, nodes: Vec::new(), inputs: Vec::new(), seen: HashSet::new(), known: HashSet::new() };
    part.iter().for_each(|node| found.add(*node));
    (found.nodes, found.inputs)
}

struct Inside<'g> {
    free: FreeNodes,
    nodes: Vec<Node<'g>>,
    inputs: Vec<Value<'g>>,
    seen: HashSet<Node<'g>>,
    known: HashSet<Value<'g>>,
}

impl<'g> Inside<'g> {
    fn add(&mut self, node: Node<'g>) {
        if !self.seen.insert(node) {
            return;
        }
        for value in node.inputs() {
            let maker = value.node();
            if self.seen.contains(&maker) {
                continue;
            }
            // A weight may be read from a module in other models: it is an input in all.
            let is_object = value.type_of().kind() == "ClassType";
            if (value.is_constant() && !is_object) || self.free.has(maker) {
                self.add(maker);
            } else if self.known.insert(value) {
                self.inputs.push(value);
            }
        }
        self.nodes.push(node);
    }
}

/// Moves what takes the part's results, and stands before its last step, behind `run`.
fn move_behind<'g>(block: Block<'g>, part: &[Node<'g>], run: Node<'g>) -> Result<()> {
    let members: HashSet<_> = part.iter().copied().collect();
    let mut dependent: HashSet<Value<'g>> = part.iter().flat_map(|node| node.outputs()).collect();
    let between = block.nodes().skip_while(|node| *node != part[0]).take_while(|node| *node != run);
    let mut behind = run;
    for node in between.collect::<Vec<_>>() {
        if members.contains(&node) || !node.inputs().iter().any(|value| dependent.contains(value)) {
            continue;
        }
        dependent.extend(node.outputs());
        node.move_after(behind)?;
        behind = node;
    }
    Ok(())
}
