//! A module as it was loaded, with all of its methods, attributes and submodules, whose `forward` runs another module in its
//! place: as long as it does not train and computes in float32, which the other one is for.

use crate::error::{Error, Result};
use crate::ir::{AttributeInfo, DType, FORWARD, Graph, IValue, Module, Node, Value};

/// The attribute that holds the other module.
const OTHER: &str = "jitquant_observed";
/// The method that is `forward` as it was.
const AS_IT_WAS: &str = "jitquant_forward";

/// Whether [`with_forward_of`] made it.
pub(super) fn has_forward_of_another(module: &Module) -> bool {
    module.has_method(AS_IT_WAS)
}

/// A copy of `module`, with its tensors, whose `forward` is that of `other`.
///
/// # Errors
/// Where `other` does not take or return what `module` does.
pub(super) fn with_forward_of(other: &Module, module: &Module) -> Result<Module> {
    let copy = module.clone_sharing(|_, _| true)?;
    copy.clone_method(FORWARD, AS_IT_WAS)?;
    copy.register_submodule(OTHER, other)?;
    let mut graph = copy.graph(FORWARD)?;
    let before: Vec<Node<'_>> = graph.nodes().collect();
    let [result] = graph.outputs()[..] else {
        return Err(Error::invalid(format!("'{FORWARD}' returns {} values", graph.outputs().len())));
    };
    let chosen = choose(&graph, &copy)?;
    if !chosen.type_of().is_subtype_of(&result.type_of()) {
        return Err(Error::invalid(format!("'{FORWARD}' returns a {}", result.type_of())));
    }
    graph.block().register_output(chosen)?;
    graph.block().erase_output(0)?;
    before.into_iter().rev().try_for_each(Node::destroy)?;
    graph.lint()?;
    drop(graph);
    Ok(copy)
}

/// The result of the other module's `forward`, or of that which was, at the end of the graph.
fn choose<'g>(graph: &'g Graph, module: &Module) -> Result<Value<'g>> {
    let end = graph.block().return_node();
    let inputs = graph.inputs();
    let (object, arguments) = (inputs[0], &inputs[1..]);
    let call = |at: Node<'g>| at.insert_method_call(at.insert_get_attribute(object, OTHER)?, FORWARD, arguments);
    let Some(fits) = condition(end, object, module)? else { return call(end) };
    let branches = graph.create("prim::If", &[fits], 0)?.insert_before(end)?;
    let (other, as_it_was) = (branches.add_block()?, branches.add_block()?);
    let returned = call(other.return_node())?;
    other.register_output(returned)?;
    as_it_was.register_output(as_it_was.return_node().insert_method_call(object, AS_IT_WAS, arguments)?)?;
    let result = branches.add_output()?;
    result.set_type(&returned.type_of())?;
    Ok(result)
}

/// Whether the module does not train, and its first parameter is float32; `None` where it has neither.
fn condition<'g>(at: Node<'g>, object: Value<'g>, module: &Module) -> Result<Option<Value<'g>>> {
    let is_flag = |attribute: &AttributeInfo| attribute.name == "training" && attribute.type_name == "bool";
    let evaluates = match module.attributes().iter().any(is_flag) {
        true => Some(at.insert_operator("aten::__not__", &[at.insert_get_attribute(object, "training")?])?),
        false => None,
    };
    let Some(path) = float_parameter(module)? else { return Ok(evaluates) };
    let parameter = at.insert_attribute_path(object, path)?;
    let dtype = at.insert_operator("prim::dtype", &[parameter])?;
    let is_float = at.insert_operator("aten::eq", &[dtype, at.insert_constant(IValue::Int(DType::F32 as i64))?])?;
    Ok(Some(match evaluates {
        Some(evaluates) => at.insert_operator("aten::__and__", &[evaluates, is_float])?,
        None => is_float,
    }))
}

/// The attributes that lead to the first parameter of float32.
fn float_parameter(module: &Module) -> Result<Option<Vec<String>>> {
    for attribute in module.attributes() {
        let value = module.attribute(&attribute.name)?;
        let is_float =
            value.as_tensor().is_some_and(|tensor| tensor.is_defined() && tensor.dtype() == Some(DType::F32));
        if attribute.is_parameter && is_float {
            return Ok(Some(vec![attribute.name]));
        }
    }
    for (name, child) in module.children().into_iter().filter(|(name, _)| name != OTHER) {
        if let Some(path) = float_parameter(&child)? {
            return Ok(Some([vec![name], path].concat()));
        }
    }
    Ok(None)
}
