//! Attributes that libtorch's freezing takes for constants, though the code changes them.

use std::collections::{HashMap, HashSet};

use super::op_table::Condition;
use super::prepare::{viewed, writes, written};
use crate::error::Result;
use crate::ir::{Graph, IValue, Module, Node, Value, join_path};

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

/// The tensors among the attributes of a module, and of what is below it, that this code writes into or binds anew.
pub(crate) fn written_tensors(graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    for node in graph.all_nodes() {
        if node.kind() == "prim::SetAttr" {
            let owner = node.inputs()[0].attribute_path().map(|path| path.join("."));
            names.extend(owner.zip(node.name_attribute()).map(|(owner, name)| join_path(&owner, &name)));
        }
        let tensors = written(node).into_iter().map(viewed).filter(|value| value.type_of().is_tensor());
        // Batch norms count their batches, in training alone.
        names.extend(tensors.filter_map(attribute).filter(|name| !name.ends_with("num_batches_tracked")));
    }
    names
}

/// The path of the module's attribute that a value is.
fn attribute(value: Value<'_>) -> Option<String> {
    let is_of_module = value.node().kind() == "prim::GetAttr" && value.node().input(0)?.type_of().is_module();
    is_of_module.then(|| value.attribute_path())?.map(|path| path.join("."))
}

/// Attributes that a round of a loop hands to the next one, where the loop writes in place: libtorch takes them for
/// constants.
fn written_next_round(graph: &Graph) -> Vec<String> {
    let loops = graph.all_nodes().into_iter().filter(|node| node.kind() == "prim::Loop");
    let bodies = loops.map(|node| node.blocks()[0]).filter(|body| body.all_nodes().into_iter().any(writes));
    let handed = bodies.flat_map(|body| body.outputs()).filter(|value| value.type_of().is_tensor());
    handed.filter_map(attribute).collect()
}

/// Attributes whose contents the code changes: what lies in lists, tuples and dictionaries, objects of script classes, and the
/// statistics of norms that may train. libtorch takes these for constants.
fn changed_inside(graph: &Graph, norms_may_train: bool) -> Vec<String> {
    let mut names = Vec::new();
    for node in graph.all_nodes() {
        let is_norm = norms_may_train && trains(node);
        let changed: Vec<Value<'_>> = match node.kind() {
            _ if is_norm => node.inputs()[3..5].to_vec(),
            "prim::CallMethod" | "prim::SetAttr" => {
                node.input(0).into_iter().filter(|value| is_object(*value)).collect()
            }
            _ => written(node),
        };
        for value in changed {
            attributes_behind(value, is_norm, &mut HashSet::new(), &mut names);
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

/// The attributes that `value` may be, or lie in; those that are tensors themselves, which libtorch follows, where
/// `with_tensors`.
fn attributes_behind<'g>(value: Value<'g>, with_tensors: bool, seen: &mut HashSet<Value<'g>>, names: &mut Vec<String>) {
    if !seen.insert(value) {
        return;
    }
    if let Some(name) = attribute(value) {
        names.extend((with_tensors || !value.type_of().is_tensor()).then_some(name));
        return;
    }
    // Reading an attribute of an object is reading what lies in it.
    let reads = ["prim::GetAttr", "prim::TupleUnpack", "prim::ListUnpack", "prim::TupleIndex"];
    let looks_up = ["aten::__getitem__", "aten::values", "aten::items", "aten::get", "aten::setdefault"];
    let node = value.node();
    let base = viewed(value);
    let sources = match node.kind() {
        kind if reads.contains(&kind) || looks_up.contains(&kind) => node.input(0).into_iter().collect(),
        _ if base != value => vec![base],
        _ => value.joined(),
    };
    sources.into_iter().for_each(|source| attributes_behind(source, with_tensors, seen, names));
}
