//! Weights as attributes of the flat module, named by where they were.

use crate::error::Result;
use crate::ir::{IValue, Module, Node, join_path};
use crate::pass::op_table::Operator;

/// Makes an attribute of each constant weight that quantization will pack, named like the weight of the layer's module:
/// `features.0.conv.weight` (`…weight_1` where that name is taken). Constant propagation then leaves it alone until the
/// module is frozen again, and a saved module still tells what is what.
///
/// # Errors
/// Where there is no such method.
pub fn weights_as_attributes(module: &Module, method: &str) -> Result<()> {
    let graph = module.graph(method)?;
    for node in graph.all_nodes() {
        let Some(index) = Operator::of(node).and_then(|row| row.weight) else { continue };
        let Some(weight) = Operator::argument(node, index).filter(|weight| weight.is_constant()) else { continue };
        if let Some(IValue::Tensor(tensor)) = weight.constant() {
            let name = free_name(module, &join_path(&node.scope()?, "weight"));
            module.register_parameter(&name, tensor)?;
            let read = node.insert_get_attribute(graph.inputs()[0], &name)?;
            read.node().copy_metadata(node)?;
            node.replace_input_with(weight, read)?;
        }
    }
    Ok(())
}

fn free_name(module: &Module, name: &str) -> String {
    let numbered = (1..).map(|number| format!("{name}_{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !module.has_attribute(name)).unwrap_or_default()
}

/// The path of the module whose weight `node` takes, told by the attribute's name, through an observer or not.
pub(crate) fn path_of_weight(node: Node<'_>) -> Option<String> {
    let mut weight = Operator::argument(node, Operator::of(node)?.weight?)?;
    if weight.node().kind() == "prim::CallMethod" {
        weight = weight.node().input(1)?;
    }
    let name = (weight.node().kind() == "prim::GetAttr").then(|| weight.node().name_attribute())??;
    name.rsplit_once('.').map(|(path, _)| path.to_owned())
}
