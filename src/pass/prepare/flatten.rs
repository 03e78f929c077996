//! One flat graph: what a model runs, inlined and frozen, each node with the path of the module that it came from.

use std::collections::HashSet;

use super::choices::lower_choices;
use super::functionalize::show_next_rounds;
use crate::error::{Context, Result};
use crate::ir::{DType, GeneralPass, Graph, IValue, Module};
use crate::pass::changed_attributes::{changed_attributes, may_train};

/// A module that computes what `module` computes, its methods inlined and its weights constants.
///
/// `forward` and what `preserve` names stay (methods, attributes), and so do attributes that the code changes, with a
/// value of their own. Each node records the path of the module whose code it was ([`crate::ir::Node::scope`]); nodes
/// of functions count to the module that calls. Submodules chosen at run time, in lists, in dictionaries and behind
/// interfaces become branches. A submodule that stands in two places becomes two. Dropout is taken away.
///
/// # Errors
/// Where the module is in training mode, or libtorch cannot freeze it.
pub fn flatten(module: &Module, preserve: &[String]) -> Result<Module> {
    let model = module.clone_with_own_state().context(|| "cloning the module".into())?;
    let mut classes = HashSet::new();
    for (_, part) in model.modules() {
        if !classes.insert(part.type_of().id()) {
            continue;
        }
        for method in part.method_names() {
            let mut graph = part.graph(&method)?;
            graph.run(GeneralPass::InlineForkWait)?;
            inline_functions(&graph)?;
            take_numbers(&graph)?;
            lower_choices(&part, &mut graph)?;
            show_next_rounds(&graph)?;
        }
    }
    // With a class of its own for each place, a method's graph belongs to one path.
    let places = model.clone_by(true, str::to_owned)?;
    for (path, part) in places.modules() {
        for method in part.method_names() {
            let graph = part.graph(&method)?;
            name_classes(&part, &graph)?;
            graph.all_nodes().into_iter().try_for_each(|node| node.set_scope(&path))?;
        }
    }
    let freeze = |norms_may_train: bool| {
        let preserved = [preserve, &changed_attributes(&places, norms_may_train)?].concat();
        places.freeze(&preserved, false).context(|| "freezing the module".into())
    };
    // Whether norms train is seldom known before.
    let mut frozen = freeze(false)?;
    if may_train(&frozen)? {
        frozen = freeze(true)?;
    }
    // What is left of its attributes changes when it runs, and must not change in `module`.
    frozen.copy_instance()
}

/// Makes numbers of constant tensors without dimensions that arithmetic takes as its second operand, where their type is that of
/// a Python number. Tracing made tensors of them. libtorch's executor takes them for numbers, which do not change the type of
/// the other operand; when it freezes a model, it does not.
fn take_numbers(graph: &Graph) -> Result<()> {
    let arithmetic = ["aten::add", "aten::sub", "aten::mul", "aten::div"];
    for node in graph.all_nodes().into_iter().filter(|node| arithmetic.contains(&node.kind())) {
        let is_of_two = node.input(0).is_some_and(|first| first.type_of().is_tensor() && first.constant().is_none());
        let Some(IValue::Tensor(tensor)) = node.input(1).filter(|_| is_of_two).and_then(|value| value.constant())
        else {
            continue;
        };
        let number = match tensor.dtype().filter(|_| tensor.shape().is_empty()) {
            Some(DType::F64) => IValue::Double(tensor.to_vec::<f64>()?[0]),
            Some(DType::I64) => IValue::Int(tensor.to_vec::<i64>()?[0]),
            _ => continue,
        };
        node.replace_input(1, node.insert_constant(number)?)?;
    }
    Ok(())
}

/// Replaces calls of TorchScript functions by their bodies: functions have no path.
fn inline_functions(graph: &Graph) -> Result<()> {
    while let Some(call) = graph.all_nodes().into_iter().find(|node| node.kind() == "prim::CallFunction") {
        call.inline_call()?;
    }
    Ok(())
}

/// Gives each value that is a submodule the class that the submodule has, where only an interface is declared.
fn name_classes(module: &Module, graph: &Graph) -> Result<()> {
    for node in graph.all_nodes() {
        for value in node.outputs().into_iter().filter(|value| value.type_of().kind() == "InterfaceType") {
            if let Some(path) = value.attribute_path()
                && let Ok(submodule) = module.submodule(&path.join("."))
            {
                value.set_type(&submodule.type_of())?;
            }
        }
    }
    Ok(())
}
