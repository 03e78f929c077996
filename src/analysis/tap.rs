//! Reading tensors inside a model: a method that returns them.

use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Tensor, Type};

/// A module with a method that returns tensors on the way.
#[derive(Debug)]
pub(super) struct Tapped {
    module: Module,
    /// The method that runs as the model does.
    method: String,
    /// The method that returns what is tapped.
    tap: String,
}

impl Tapped {
    /// [`add_tap`] to `module`.
    pub fn new(module: Module, method: &str, tap: &str, values: &[String]) -> Result<Self> {
        add_tap(&module, method, tap, values)?;
        Ok(Self { module, method: method.to_owned(), tap: tap.to_owned() })
    }

    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The tapped tensors for `inputs`.
    pub fn run<'a, T>(&self, inputs: &'a [T]) -> Result<Vec<Tensor>>
    where
        IValue: From<&'a T>,
    {
        let mut inputs: Vec<IValue> = inputs.iter().map(IValue::from).collect();
        // A method that is made of a graph has no default values.
        for argument in inputs.len() + 1..self.module.schema(&self.method)?.arguments.len() {
            inputs.push(self.module.argument_default(&self.method, argument)?);
        }
        match self.module.call::<IValue>(&self.tap, &inputs)? {
            IValue::Tuple(items) => items.into_iter().map(Tensor::try_from).collect(),
            other => Err(Error::invalid(format!("the tapped method returns {}", other.kind()))),
        }
    }
}

/// Gives `module` a method `tap` that runs as `method` does and returns a tuple of the values with these names
/// ([`Value::debug_name`](crate::ir::Value::debug_name)), in that order. They must not lie in a branch or a loop.
pub(crate) fn add_tap(module: &Module, method: &str, tap: &str, values: &[String]) -> Result<()> {
    let original = module.graph(method)?;
    // A copy numbers the values that have no name anew, in the same order.
    let names: Vec<_> = original.nodes().flat_map(|node| node.outputs()).map(|value| value.debug_name()).collect();
    let graph = original.deep_clone()?;
    let found: Vec<_> = graph.nodes().flat_map(|node| node.outputs()).collect();
    let tapped = values
        .iter()
        .map(|name| {
            let value = names.iter().position(|known| known == name).and_then(|index| found.get(index)).copied();
            value.ok_or_else(|| Error::invalid(format!("%{name} is not in the graph of '{method}'")))
        })
        .collect::<Result<Vec<_>>>()?;
    let types: Vec<String> = tapped
        .iter()
        .map(|value| value.type_of())
        .map(|ty| if ty.is_tensor() { "Tensor".to_owned() } else { ty.annotation() })
        .collect();
    let tuple = graph.create("prim::TupleConstruct", &tapped, 1)?;
    graph.block().append(tuple)?;
    let output = tuple.output(0).ok_or_else(|| Error::invalid("a tuple without a value"))?;
    output.set_type(&Type::parse(&format!("Tuple[{}]", types.join(", ")))?)?;
    while !graph.outputs().is_empty() {
        graph.block().erase_output(0)?;
    }
    graph.block().register_output(output)?;
    drop(original);
    module.create_method(tap, &graph)
}
