//! Weights in dynamic quantization: nothing was calibrated, so their observers are run here.

use std::collections::HashMap;

use super::observed::ObservedCode;
use crate::error::{Context, Error, Result};
use crate::ir::{IValue, Module, Node, Value};
use crate::pass::layers::called_method;
use crate::pass::op_table::Operator;

/// Whether an operator takes `value` as its weight, in this code or in what it calls.
pub(in crate::pass) fn is_weight(module: &Module, value: Value<'_>) -> bool {
    value.uses().into_iter().any(|place| {
        if Operator::of_use(place).is_some_and(|(row, argument)| row.weight == Some(argument)) {
            return true;
        }
        if place.user.kind() != "prim::CallMethod" {
            return false;
        }
        let Some((path, method)) = called_method(place.user) else { return false };
        let Ok(callee) = module.submodule(&path) else { return false };
        let Ok(graph) = callee.graph(&method) else { return false };
        graph.inputs().get(place.offset).is_some_and(|inner| is_weight(&callee, *inner))
    })
}

/// Whether what `value` is depends on the method's arguments, and not on the module alone.
pub(in crate::pass) fn depends_on_arguments(value: Value<'_>) -> bool {
    match value.is_block_input() {
        true => value.graph().inputs().first() != Some(&value),
        false => !value.node().blocks().is_empty() || value.node().inputs().into_iter().any(depends_on_arguments),
    }
}

/// Shows every observer of a weight the weight that it watches, in each module that runs the code.
pub(in crate::pass) fn run_observers(code: &ObservedCode) -> Result<()> {
    for observer in code.observers()? {
        if !is_weight(&code.instances[0], observer.output()) || depends_on_arguments(observer.original()?) {
            continue;
        }
        for instance in &code.instances {
            let mut evaluation = Evaluation { module: instance, known: HashMap::new() };
            evaluation.value(observer.output()).context(|| "running the observer of a weight".into())?;
        }
    }
    Ok(())
}

/// Computes values of a module's code that depend on the module alone.
struct Evaluation<'g, 'm> {
    module: &'m Module,
    known: HashMap<Value<'g>, IValue>,
}

impl<'g> Evaluation<'g, '_> {
    fn value(&mut self, value: Value<'g>) -> Result<IValue> {
        if value.graph().inputs().first() == Some(&value) {
            return Ok(self.module.clone().into());
        }
        if !self.known.contains_key(&value) {
            let results = self.node(value.node())?;
            self.known.extend(value.node().outputs().into_iter().zip(results));
        }
        self.known.get(&value).cloned().ok_or_else(|| Error::invalid(format!("{value:?} has no value")))
    }

    fn node(&mut self, node: Node<'g>) -> Result<Vec<IValue>> {
        if let Some(constant) = node.output(0).and_then(Value::constant) {
            return Ok(vec![constant]);
        }
        let mut inputs = Vec::new();
        for input in node.inputs() {
            inputs.push(self.value(input)?);
        }
        match (node.kind(), node.name_attribute(), &inputs[..]) {
            ("prim::GetAttr", Some(name), [IValue::Module(object)]) => Ok(vec![object.attribute(&name)?]),
            ("prim::CallMethod", Some(method), [IValue::Module(object), arguments @ ..]) => {
                Ok(vec![object.call(&method, arguments)?])
            }
            _ => node.run(&inputs),
        }
    }
}
