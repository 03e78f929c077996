//! Layers as methods of their modules.
//!
//! A program is one graph without modules. Reports, `--skip` and configurations tell layers by the module whose code they
//! are: what uses the tensors of a module alone becomes a method of that module, as if the model had been traced.

use super::graph::output;
use crate::error::Result;
use crate::ir::{Graph, Module, Node, Type, Value};

/// Layers without tensors of their own; they belong to the module that the program names.
const PRODUCTS: &[&str] = &["aten::scaled_dot_product_attention", "aten::matmul", "aten::bmm", "aten::baddbmm"];

/// Moves layers into methods; `placed` are nodes with the paths of the modules that they were called in.
///
/// # Errors
/// What libtorch says.
pub(super) fn outline<'g>(graph: &'g Graph, module: &Module, placed: &[(Node<'g>, &str)]) -> Result<()> {
    let Some(this) = graph.inputs().first().copied() else { return Ok(()) };
    for (node, path) in placed {
        let mut layer = Layer { owner: None, nodes: Vec::new(), inputs: Vec::new() };
        if !node.inputs().into_iter().all(|input| layer.take(input)) {
            continue;
        }
        if layer.owner.is_none() && PRODUCTS.contains(&node.kind()) && module.submodule(path).is_ok() {
            let names = path.split('.').filter(|name| !name.is_empty());
            layer.owner = Some(node.insert_attribute_path(this, names)?);
        }
        if let Some(owner) = layer.owner.filter(|owner| *owner != this)
            && let Some(path) = owner.attribute_path()
        {
            layer.call(*node, owner, &module.submodule(&path.join("."))?)?;
        }
    }
    Ok(())
}

/// What an operator takes.
struct Layer<'g> {
    /// The module that all attributes are of.
    owner: Option<Value<'g>>,
    /// What reads attributes and makes constants, in order.
    nodes: Vec<Node<'g>>,
    /// What comes from elsewhere.
    inputs: Vec<Value<'g>>,
}

impl<'g> Layer<'g> {
    /// Takes an input in; whether all attributes are still of one module.
    fn take(&mut self, value: Value<'g>) -> bool {
        if self.is_own(value) {
            return self.take_own(value);
        }
        if !self.inputs.contains(&value) {
            self.inputs.push(value);
        }
        true
    }

    /// Whether it is a constant, an attribute, or a list of these.
    fn is_own(&self, value: Value<'g>) -> bool {
        let node = value.node();
        match node.kind() {
            "prim::Constant" | "prim::GetAttr" => true,
            "prim::ListConstruct" => {
                node.inputs().into_iter().all(|item| matches!(item.node().kind(), "prim::Constant" | "prim::GetAttr"))
            }
            _ => false,
        }
    }

    fn take_own(&mut self, value: Value<'g>) -> bool {
        let node = value.node();
        if self.nodes.contains(&node) {
            return true;
        }
        let fits = match node.kind() {
            "prim::GetAttr" => match node.input(0) {
                Some(module) => *self.owner.get_or_insert(module) == module,
                None => false,
            },
            "prim::ListConstruct" => node.inputs().into_iter().all(|item| self.take_own(item)),
            _ => true,
        };
        self.nodes.push(node);
        fits
    }

    /// Replaces the operator by a call of a new method of its module.
    fn call(mut self, node: Node<'g>, owner: Value<'g>, module: &Module) -> Result<()> {
        let results = node.outputs();
        self.nodes.push(node);
        let packed = match results[..] {
            [_] => None,
            _ => Some(pack(node, &results)?),
        };
        self.nodes.extend(packed);
        let given = packed.map_or(Ok(results.clone()), |tuple| Ok::<_, crate::Error>(vec![output(tuple)?]))?;
        let arguments: Vec<_> = std::iter::once(owner).chain(self.inputs.iter().copied()).collect();
        let body = Graph::of_nodes(&self.nodes, &arguments, &given)?;
        for (place, argument) in body.inputs().into_iter().enumerate() {
            argument.set_debug_name(&match place {
                0 => "self".to_owned(),
                1 => "input".to_owned(),
                place => format!("input_{place}"),
            })?;
        }
        let name = free_name(module);
        module.create_method(&name, &body)?;
        let called = node.insert_method_call(owner, &name, &self.inputs)?;
        called.node().copy_metadata(node)?;
        let replacements = match packed {
            None => vec![called],
            Some(tuple) => {
                tuple.destroy()?;
                unpack(node, called, &results)?
            }
        };
        for (old, new) in results.into_iter().zip(replacements) {
            new.set_debug_name(&old.debug_name()).ok();
            old.replace_all_uses_with(new)?;
        }
        node.destroy()
    }
}

/// A tuple of an operator's results.
fn pack<'g>(node: Node<'g>, results: &[Value<'g>]) -> Result<Node<'g>> {
    let types: Vec<_> = results.iter().map(|result| result.type_of()).collect();
    let tuple = node.graph().create("prim::TupleConstruct", results, 1)?.insert_after(node)?;
    output(tuple)?.set_type(&Type::tuple(&types)?)?;
    Ok(tuple)
}

/// The parts of a tuple.
fn unpack<'g>(before: Node<'g>, tuple: Value<'g>, like: &[Value<'g>]) -> Result<Vec<Value<'g>>> {
    let parts = before.graph().create("prim::TupleUnpack", &[tuple], like.len())?.insert_before(before)?;
    for (part, like) in parts.outputs().into_iter().zip(like) {
        part.set_type(&like.type_of())?;
    }
    Ok(parts.outputs())
}

/// `forward`, or with a number where a module has several layers or is used several times.
fn free_name(module: &Module) -> String {
    let names = module.method_names();
    let numbered = (2..).map(|number| format!("forward_{number}"));
    let mut all = std::iter::once("forward".to_owned()).chain(numbered);
    all.find(|name| !names.contains(name)).unwrap_or_default()
}
