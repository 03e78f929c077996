//! Submodules chosen at run time: each use of "one of these modules" becomes a branch for each of them.
//!
//! ```text
//! m = self.a if c else self.b        number = 0 if c else 1
//! y = m.forward(x)               =>  y = self.a.forward(x) if number == 0 else self.b.forward(x)
//! ```
//!
//! After that every module is reached by a path of attributes, which inlining and freezing need.

use crate::error::{Error, Result};
use crate::ir::{GeneralPass, Graph, IValue, Module, Node, Type, Value};

/// A module that is one of several.
struct Choice<'g> {
    /// An `int`: which of `candidates` it is.
    number: Value<'g>,
    /// Paths of attributes from the method's `self`.
    candidates: Vec<Vec<String>>,
}

/// Rewrites what `graph`, a method of `module`, does with modules that are chosen at run time: by `if`, or by number or
/// key out of a `ModuleList` or a `ModuleDict`. What cannot be followed stays as it is.
pub(super) fn lower_choices(module: &Module, graph: &mut Graph) -> Result<()> {
    let mut lowered = false;
    for node in graph.all_nodes() {
        let is_use = matches!(node.kind(), "prim::CallMethod" | "prim::GetAttr" | "prim::SetAttr");
        let gives_module = node.outputs().iter().any(|output| output.type_of().is_module());
        if !is_use || gives_module || node.is_destroyed() {
            continue;
        }
        let Some(object) = node.input(0).filter(|object| object.type_of().is_module()) else { continue };
        if object.attribute_path().is_none()
            && let Some(choice) = choice_of(module, object)?
        {
            let results = branch(node, node, &choice, 0)?;
            for (output, result) in std::iter::zip(node.outputs(), results) {
                output.replace_all_uses_with(result)?;
            }
            node.destroy()?;
            lowered = true;
        }
    }
    if lowered {
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(())
}

/// What `value` may be, where all that it may be lies at paths of attributes.
fn choice_of<'g>(module: &Module, value: Value<'g>) -> Result<Option<Choice<'g>>> {
    let node = value.node();
    match node.kind() {
        "prim::If" => by_condition(module, node, value.offset()),
        "prim::ModuleContainerIndex" => by_index(module, node),
        "prim::GetAttr" => {
            let (Some(object), Some(name)) = (node.input(0), node.name_attribute()) else { return Ok(None) };
            let choice = choice_of(module, object)?;
            Ok(choice.map(|mut choice| {
                choice.candidates.iter_mut().for_each(|path| path.push(name.clone()));
                choice
            }))
        }
        _ => Ok(None),
    }
}

fn by_condition<'g>(module: &Module, node: Node<'g>, offset: usize) -> Result<Option<Choice<'g>>> {
    let mut candidates = Vec::new();
    let mut numbers = Vec::new();
    for block in node.blocks() {
        let end = block.return_node();
        let base = end.insert_constant(IValue::Int(candidates.len() as i64))?;
        let Some(chosen) = block.outputs().get(offset).copied() else { return Ok(None) };
        if let Some(path) = chosen.attribute_path() {
            candidates.push(path);
            numbers.push(base);
        } else if let Some(inner) = choice_of(module, chosen)? {
            candidates.extend(inner.candidates);
            numbers.push(end.insert_operator("aten::add", &[inner.number, base])?);
        } else {
            return Ok(None);
        }
    }
    for (block, number) in std::iter::zip(node.blocks(), numbers) {
        block.register_output(number)?;
    }
    let number = node.add_output()?;
    number.set_type(&Type::parse("int")?)?;
    Ok(Some(Choice { number, candidates }))
}

/// `modules[index]`: by number, from the front only, or by key.
fn by_index<'g>(module: &Module, node: Node<'g>) -> Result<Option<Choice<'g>>> {
    let (Some(container), Some(index)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let Some(path) = container.attribute_path() else { return Ok(None) };
    let names: Vec<String> = module.submodule(&path.join("."))?.children().into_iter().map(|(name, _)| name).collect();
    let keys = match index.type_of().kind().as_str() {
        "IntType" => IValue::int_list(names.iter().filter_map(|name| name.parse().ok())),
        "StringType" => {
            IValue::List { element: "str".into(), items: names.iter().map(|name| name.as_str().into()).collect() }
        }
        _ => return Ok(None),
    };
    // Fails when it runs, as the model's own indexing does, where the index is none of them.
    let number = node.insert_operator("aten::index", &[node.insert_constant(keys)?, index])?;
    let within = |name: String| path.iter().cloned().chain([name]).collect();
    Ok(Some(Choice { number, candidates: names.into_iter().map(within).collect() }))
}

/// Copies of `user` before `at` on each candidate from number `first` on; the results.
fn branch<'g>(user: Node<'g>, at: Node<'g>, choice: &Choice<'g>, first: usize) -> Result<Vec<Value<'g>>> {
    let graph = user.graph();
    let Some(path) = choice.candidates.get(first) else {
        return Err(Error::invalid("a module is chosen out of none"));
    };
    if first + 1 == choice.candidates.len() {
        return on_candidate(user, at, path);
    }
    let this = at.insert_constant(IValue::Int(first as i64))?;
    let condition = at.insert_operator("aten::eq", &[choice.number, this])?;
    let branches = graph.create("prim::If", &[condition], 0)?.insert_before(at)?;
    branches.copy_metadata(user)?;
    let (is_it, is_not) = (branches.add_block()?, branches.add_block()?);
    for result in on_candidate(user, is_it.return_node(), path)? {
        is_it.register_output(result)?;
        branches.add_output()?.set_type(&result.type_of())?;
    }
    for result in branch(user, is_not.return_node(), choice, first + 1)? {
        is_not.register_output(result)?;
    }
    Ok(branches.outputs())
}

/// A copy of `user` before `at`, its object the module at `path`.
fn on_candidate<'g>(user: Node<'g>, at: Node<'g>, path: &[String]) -> Result<Vec<Value<'g>>> {
    let object = at.insert_attribute_path(user.graph().inputs()[0], path)?;
    let copy = user.copy()?.insert_before(at)?;
    copy.replace_input(0, object)?;
    Ok(copy.outputs())
}
