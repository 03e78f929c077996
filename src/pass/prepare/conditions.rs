//! Conditions that the graph itself decides, and attributes that nothing writes: what scripted `torch.nn` leaves in the way
//! of its layers.

use super::nested::makes_nested;
use crate::error::Result;
use crate::ir::{GeneralPass, Graph, IValue, Module, Node, Value};
use crate::pass::changed_attributes::changed_attributes;

/// How often one decision makes room for the next at most.
const ROUNDS: usize = 8;

/// Decides, until nothing changes:
/// - `x is x`;
/// - "is it a nested tensor?", which INT8 layers do not take, where the graph makes none;
/// - results of a branch that are one value in each block: they are one result.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn decide_conditions(graph: &mut Graph) -> Result<()> {
    for _ in 0..ROUNDS {
        // Views of one tensor that are the same are one value.
        graph.run(GeneralPass::CommonSubexpressionElimination)?;
        let has_nested = graph.all_nodes().into_iter().any(makes_nested);
        let mut changes = 0;
        for node in graph.all_nodes() {
            let inputs = node.inputs();
            let same = || inputs.len() == 2 && inputs[0] == inputs[1];
            changes += match node.kind() {
                "aten::__is__" if same() => answer(node, true)?,
                "aten::__isnot__" if same() => answer(node, false)?,
                "prim::is_nested" if !has_nested => answer(node, false)?,
                "prim::If" => join_results(node)?,
                _ => 0,
            };
        }
        if changes == 0 {
            break;
        }
        graph.run(GeneralPass::ConstantPropagation)?;
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(())
}

/// Puts a constant in the place of a question.
fn answer(node: Node<'_>, answer: bool) -> Result<usize> {
    let Some(output) = node.output(0).filter(|output| output.is_used()) else { return Ok(0) };
    output.replace_all_uses_with(node.insert_constant(answer)?)?;
    Ok(1)
}

/// Has users of a result take an earlier one that is the same value in every block.
fn join_results(node: Node<'_>) -> Result<usize> {
    let outputs = node.outputs();
    let blocks: Vec<Vec<Value<'_>>> = node.blocks().into_iter().map(|block| block.outputs()).collect();
    let mut joined = 0;
    for (index, output) in outputs.iter().enumerate().filter(|(_, output)| output.is_used()) {
        let is_same = |earlier: &usize| blocks.iter().all(|results| results[*earlier] == results[index]);
        if let Some(earlier) = (0..index).find(is_same) {
            output.replace_all_uses_with(outputs[earlier])?;
            joined += 1;
        }
    }
    Ok(joined)
}

/// Makes constants of the tensors that the flat `method` reads from attributes, where no code of it writes tensors or
/// attributes: freezing keeps those that its alias analysis loses sight of. How many.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn unwritten_attributes(module: &Module, method: &str) -> Result<usize> {
    let graph = module.graph(method)?;
    let nodes = graph.all_nodes();
    // Other methods could write what this one reads.
    if module.method_names().len() > 1 || nodes.iter().any(|node| writes(*node)) {
        return Ok(0);
    }
    let changed = changed_attributes(module, true)?;
    let mut made = 0;
    for node in nodes.into_iter().filter(|node| node.kind() == "prim::GetAttr") {
        let Some(output) = node.output(0).filter(|output| output.type_of().is_tensor() && output.is_used()) else {
            continue;
        };
        let Some(path) = output.attribute_path().filter(|path| !changed.contains(&path.join("."))) else { continue };
        let Some((name, owner)) = path.split_last() else { continue };
        let Ok(IValue::Tensor(tensor)) = module.submodule(&owner.join(".")).and_then(|owner| owner.attribute(name))
        else {
            continue;
        };
        if tensor.is_defined() {
            let constant = node.insert_constant(tensor.plain()?)?;
            constant.node().copy_metadata(node)?;
            output.replace_all_uses_with(constant)?;
            made += 1;
        }
    }
    Ok(made)
}

/// Whether a node may change a tensor or an attribute that was there before. Lists have their own methods, which change no
/// tensor.
fn writes(node: Node<'_>) -> bool {
    let kind = node.kind();
    let name = kind.rsplit("::").next().unwrap_or(kind);
    let in_place = name.ends_with('_') && !name.starts_with('_') && !name.ends_with("__");
    let of_tensor = node.output(0).is_some_and(|output| output.type_of().is_tensor());
    (in_place && of_tensor)
        || matches!(kind, "prim::SetAttr" | "prim::CallMethod" | "prim::CallFunction" | "aten::_set_item")
        || node.schema().is_some_and(|schema| schema.arguments.iter().any(|argument| argument.name == "out"))
}
