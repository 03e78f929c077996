//! Attributes that libtorch's freezing takes for constants, though the code changes them.

use std::collections::{HashMap, HashSet};

use super::op_table::Condition;
use super::prepare::{Sharing, sharing, writes};
use crate::error::Result;
use crate::ir::{Block, Graph, IValue, Module, Node, Value, join_path};

/// The attributes of `module` and what is below it that freezing has to be told to leave alone, by path; the statistics of
/// norms where these may train ([`may_train`]).
///
/// # Errors
/// Where a method has no graph.
pub(crate) fn changed_attributes(module: &Module, norms_may_train: bool) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (path, part) in module.modules() {
        for method in part.method_names() {
            let graph = part.graph(&method)?;
            let changed = written_next_round(&graph).into_iter().chain(changed_inside(&graph, norms_may_train));
            all.extend(changed.map(|name| join_path(&path, &name)));
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// What `module` writes into by one name and reads by another: two attributes that share memory, or two places of a module.
/// Each gets memory of its own in a flat copy, so that the writes would be lost.
///
/// # Errors
/// Where a method has no graph.
pub(crate) fn shared_and_written(module: &Module) -> Result<Option<(String, String)>> {
    let mut places: HashMap<usize, Vec<String>> = HashMap::new();
    let mut written = Vec::new();
    for (path, part) in module.modules() {
        for attribute in part.attributes().into_iter().filter(|attribute| attribute.type_name == "Tensor") {
            if let IValue::Tensor(tensor) = part.attribute(&attribute.name)?
                && let Some(storage) = tensor.storage()
            {
                places.entry(storage).or_default().push(join_path(&path, &attribute.name));
            }
        }
        for method in part.method_names() {
            let names = written_tensors(&part.graph(&method)?);
            written.extend(names.into_iter().map(|name| join_path(&path, &name)));
        }
    }
    let shared = |name: &String| {
        let all = places.values().find(|all| all.contains(name))?;
        Some((name.clone(), all.iter().find(|other| *other != name)?.clone()))
    };
    Ok(written.iter().find_map(shared))
}

/// The tensors among a module's own attributes that a method of it writes into or binds anew.
fn written_tensors(graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    for node in graph.all_nodes() {
        if node.kind() == "prim::SetAttr" {
            let owner = node.inputs()[0].attribute_path().map(|path| path.join("."));
            names.extend(owner.zip(node.name_attribute()).map(|(owner, name)| join_path(&owner, &name)));
            continue;
        }
        let schema = node.schema();
        for (index, mut value) in node.inputs().into_iter().enumerate() {
            let argument = schema.as_ref().and_then(|schema| schema.arguments.get(index));
            if !argument.is_some_and(|argument| argument.is_write) {
                continue;
            }
            while sharing(value.node()) != Sharing::None
                && let Some(base) = value.node().input(0)
            {
                value = base;
            }
            if value.node().kind() == "prim::GetAttr" && value.type_of().is_tensor() {
                let path = value.attribute_path().map(|path| path.join("."));
                // Batch norms count their batches, in training alone.
                names.extend(path.filter(|path| !path.ends_with("num_batches_tracked")));
            }
        }
    }
    names
}

/// Attributes that a round of a loop hands to the next one, where the loop writes in place: libtorch takes them for
/// constants.
fn written_next_round(graph: &Graph) -> Vec<String> {
    let loops = graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::Loop");
    let bodies = loops.map(|node| node.blocks()[0]).filter(|body| body.all_nodes().into_iter().any(writes));
    let handed = bodies.flat_map(|body| body.outputs()).map(|value| value.node());
    let attributes = handed.filter(|node| node.kind() == "prim::GetAttr" && node.outputs()[0].type_of().is_tensor());
    attributes.filter_map(|node| node.name_attribute()).collect()
}

/// Attributes whose contents the code changes: what lies in lists, tuples and dictionaries, objects of script classes, and the
/// statistics of norms that may train. libtorch takes these for constants.
fn changed_inside(graph: &Graph, norms_may_train: bool) -> Vec<String> {
    let mut names = Vec::new();
    for node in graph.all_nodes() {
        let inputs = node.inputs();
        let changed: Vec<Value<'_>> = match node.kind() {
            _ if norms_may_train && trains(node) => inputs[3..5].to_vec(),
            "prim::CallMethod" => inputs.first().copied().into_iter().filter(|object| is_object(*object)).collect(),
            "prim::SetAttr" => inputs.first().copied().into_iter().filter(|object| is_object(*object)).collect(),
            _ => {
                let schema = node.schema();
                let is_write = |index: usize| {
                    schema
                        .as_ref()
                        .and_then(|schema| schema.arguments.get(index))
                        .is_some_and(|argument| argument.is_write)
                };
                (0..inputs.len()).filter(|index| is_write(*index)).map(|index| inputs[index]).collect()
            }
        };
        let is_tensor_op = !matches!(node.kind(), "aten::batch_norm" | "aten::instance_norm");
        for value in changed {
            let mut seen = HashSet::new();
            attributes_behind(value, is_tensor_op, &mut seen, &mut names);
        }
    }
    names
}

/// Whether a norm with statistics of a frozen module is not known to use them as they are.
pub(crate) fn may_train(frozen: &Module) -> Result<bool> {
    let mut found = false;
    for (_, part) in frozen.modules() {
        for method in part.method_names() {
            found |= part.graph(&method)?.all_nodes().into_iter().any(trains);
        }
    }
    Ok(found)
}

fn trains(node: Node<'_>) -> bool {
    matches!(node.kind(), "aten::batch_norm" | "aten::instance_norm")
        && !Condition::False(5).holds(node)
        && node.input(3).is_some_and(|mean| !matches!(mean.constant(), Some(IValue::None)))
}

fn is_object(value: Value<'_>) -> bool {
    let ty = value.type_of();
    ty.kind() == "ClassType" && !ty.is_module()
}

/// The attributes that `value` may be, or lie in; a tensor itself, which libtorch follows, only where not `inside`.
fn attributes_behind<'g>(value: Value<'g>, inside: bool, seen: &mut HashSet<Value<'g>>, names: &mut Vec<String>) {
    if !seen.insert(value) {
        return;
    }
    let (node, offset) = (value.node(), value.offset());
    let mut follow = |sources: Vec<Value<'g>>| {
        sources.into_iter().for_each(|source| attributes_behind(source, inside, seen, names));
    };
    match node.kind() {
        "prim::GetAttr" if node.inputs()[0].type_of().is_module() => {
            if !(inside && value.type_of().is_tensor()) {
                names.extend(node.name_attribute());
            }
        }
        "prim::If" => {
            follow(node.blocks().into_iter().filter_map(|block| block.outputs().get(offset).copied()).collect());
        }
        "prim::Loop" => follow(node.input(offset + 2).into_iter().collect()),
        "prim::GetAttr"
        | "prim::TupleUnpack"
        | "prim::ListUnpack"
        | "prim::TupleIndex"
        | "prim::unchecked_cast"
        | "aten::__getitem__"
        | "aten::values"
        | "aten::items"
        | "aten::get"
        | "aten::setdefault" => {
            follow(node.inputs().first().copied().into_iter().collect());
        }
        _ if sharing(node) != Sharing::None => follow(node.input(0).into_iter().collect()),
        _ => {
            let owner = node.owning_block().and_then(Block::owner);
            if let Some(owner) = owner.filter(|owner| value.is_block_input() && owner.kind() == "prim::Loop") {
                follow(offset.checked_sub(1).and_then(|index| owner.input(index + 2)).into_iter().collect());
            }
        }
    }
}
