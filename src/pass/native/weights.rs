//! Packed weights of the native form: made of stock ones, once each.

use std::collections::HashMap;

use super::call::output;
use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Node, Type, Value};

/// Where packed weights are kept.
#[derive(Clone, Copy)]
pub(super) enum Holder<'m> {
    /// As attributes of a module.
    Module(&'m Module),
    /// As constants of the graph, where libtorch executes it. Weights that the graph reads from a module are looked up at
    /// each run.
    Graph,
}

/// The native weights of a module or graph.
pub(super) struct Weights<'m> {
    holder: Holder<'m>,
    /// By the attribute that held the stock weight: the attribute that holds the native one.
    moved: HashMap<String, String>,
    /// By the stock weight, where it is a constant that several layers may share, and the operator that reads it: the native one.
    /// The stock weight is kept, so that no other takes its address.
    of_constants: HashMap<(usize, String), (IValue, IValue)>,
    made: usize,
}

/// An attribute of a module, read by its graph.
pub(super) fn attribute_of(value: Value<'_>) -> Option<String> {
    let path = value.attribute_path()?;
    let [name] = &path[..] else { return None };
    (!name.is_empty()).then(|| name.clone())
}

impl<'m> Weights<'m> {
    pub fn new(holder: Holder<'m>) -> Self {
        Self { holder, moved: HashMap::new(), of_constants: HashMap::new(), made: 0 }
    }

    /// The native weight of the stock packed weight `packed`, before `at`, by the operator `from_packed`.
    pub fn native<'g>(&mut self, at: Node<'g>, from_packed: &str, packed: Value<'g>) -> Result<Value<'g>> {
        let looked_up = at.insert_operator(from_packed, &[packed])?;
        let node = looked_up.node();
        let (constant, attribute) = (packed.constant(), attribute_of(packed));
        let value = match (self.holder, constant, attribute) {
            (_, Some(stock), _) => {
                let content = self.of_constant(node, from_packed, stock)?;
                self.keep(at, &looked_up.type_of(), content)?
            }
            (Holder::Module(module), None, Some(name)) => {
                if !self.moved.contains_key(&name) {
                    let stock = module.attribute(&name)?;
                    let kept = self.register(module, &looked_up.type_of(), &run(node, &[stock])?)?;
                    self.moved.insert(name.clone(), kept);
                }
                at.insert_get_attribute(at.graph().inputs()[0], &self.moved[&name])?
            }
            _ => return Ok(looked_up),
        };
        node.destroy()?;
        Ok(value)
    }

    /// What `node`, the operator `from_packed`, makes of a stock weight: the same of the same one.
    fn of_constant(&mut self, node: Node<'_>, from_packed: &str, stock: IValue) -> Result<IValue> {
        let object = match &stock {
            IValue::Other(other) => other.object(),
            _ => None,
        };
        let Some(object) = object else { return run(node, &[stock]) };
        let key = (object, from_packed.to_owned());
        if let Some((_, native)) = self.of_constants.get(&key) {
            return Ok(native.clone());
        }
        let native = run(node, std::slice::from_ref(&stock))?;
        self.of_constants.insert(key, (stock, native.clone()));
        Ok(native)
    }

    /// The content of a native weight, where it is known now.
    pub fn content(&self, weight: Value<'_>) -> Option<IValue> {
        match (self.holder, weight.constant()) {
            (_, Some(content)) => Some(content),
            (Holder::Module(module), None) => module.attribute(&attribute_of(weight)?).ok(),
            (Holder::Graph, None) => None,
        }
    }

    /// Keeps a weight; the value before `at` that it is.
    pub fn keep<'g>(&mut self, at: Node<'g>, ty: &Type, content: IValue) -> Result<Value<'g>> {
        match self.holder {
            Holder::Graph => at.insert_constant(content),
            Holder::Module(module) => {
                let name = self.register(module, ty, &content)?;
                at.insert_get_attribute(at.graph().inputs()[0], &name)
            }
        }
    }

    fn register(&mut self, module: &Module, ty: &Type, content: &IValue) -> Result<String> {
        let name =
            (self.made..).map(|number| format!("jitquant_weight_{number}")).find(|name| !module.has_attribute(name));
        let name = name.unwrap_or_default();
        self.made += 1;
        module.register_attribute(&name, ty, content)?;
        Ok(name)
    }

    /// Takes away the weights, stock ones that were moved and native ones that were replaced, that no code of the module
    /// reads any more.
    pub fn release_unread(&self) -> Result<()> {
        let Holder::Module(module) = self.holder else { return Ok(()) };
        let mut read = std::collections::HashSet::new();
        for method in module.method_names() {
            let graph = module.graph(&method)?;
            read.extend(
                graph
                    .all_nodes()
                    .into_iter()
                    .filter(|node| node.kind() == "prim::GetAttr")
                    .filter_map(Node::name_attribute),
            );
        }
        let ours = module.attributes().into_iter().map(|attribute| attribute.name);
        let ours = ours.filter(|name| name.starts_with("jitquant_weight_") || self.moved.contains_key(name));
        ours.filter(|name| !read.contains(name)).try_for_each(|name| module.remove_attribute(&name))
    }
}

/// Runs an operator once.
pub(super) fn run(node: Node<'_>, inputs: &[IValue]) -> Result<IValue> {
    output(node)?;
    node.run(inputs)?.into_iter().next().ok_or_else(|| Error::invalid(format!("{} gives nothing", node.kind())))
}
