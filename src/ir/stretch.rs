//! Parts of a graph that libtorch's interpreter runs by themselves.
//!
//! The interpreter runs what single operators cannot be called for: branches, loops, objects, lists that grow. Values go
//! from one part to the next as libtorch has them.

use std::collections::{HashMap, HashSet};

use cxx::UniquePtr;

use super::ffi::bridge as ffi;
use super::ivalue::IValue;
use super::module::Module;
use super::node::Node;
use super::value::Value;
use crate::error::{Error, Result};

/// A value as libtorch has it: lists, dictionaries and objects are the ones themselves, and not copies.
pub(crate) struct Held(UniquePtr<ffi::IValue>);

impl Clone for Held {
    fn clone(&self) -> Self {
        Self(ffi::ivalue_copy(&self.0))
    }
}

impl Held {
    /// A value made of what Rust knows.
    pub fn of(value: &IValue) -> Result<Self> {
        value.to_raw().map(Self)
    }

    /// What Rust can know of it; lists and dictionaries are copied.
    pub fn value(&self) -> Result<IValue> {
        IValue::from_raw(ffi::ivalue_copy(&self.0))
    }

    /// A copy that shares no memory with it.
    pub fn deep_copy(&self) -> Result<Self> {
        Ok(Self(ffi::ivalue_deepcopy(&self.0)?))
    }

    /// What argument `index` of a method is where none is given, `self` being argument 0.
    ///
    /// # Errors
    /// Where it has no default value.
    pub fn default_argument(module: &Module, method: &str, index: usize) -> Result<Self> {
        Ok(Self(ffi::module_default_argument(module.raw(), method, index)?))
    }
}

/// Nodes that follow one another, to be run at once.
pub(crate) struct Stretch<'g> {
    code: UniquePtr<ffi::Code>,
    inputs: Vec<Value<'g>>,
}

impl<'g> Stretch<'g> {
    /// `nodes` are of one block and in its order; `outputs` are computed by them.
    ///
    /// # Errors
    /// Where libtorch cannot compile them.
    pub fn of(nodes: &[Node<'g>], outputs: &[Value<'g>]) -> Result<Self> {
        let (constants, inputs) = taken(nodes);
        let all = constants.iter().chain(nodes);
        let nodes: Vec<_> = all.map(|node| ffi::NodeRef { node: node.raw }).collect();
        let of = |values: &[Value<'g>]| -> Vec<_> {
            values.iter().map(|value| ffi::ValueRef { value: value.raw }).collect()
        };
        let graph = ffi::graph_of_nodes(&nodes, &of(&inputs), &of(outputs))?;
        Ok(Self { code: ffi::code_of_graph(&graph)?, inputs })
    }

    /// What they give for `outputs`; `read` gives the values that others computed.
    ///
    /// # Errors
    /// Where a node fails, with libtorch's words.
    pub fn run<'a>(&self, read: impl Fn(Value<'g>) -> Option<&'a Held>) -> Result<Vec<Held>> {
        let mut stack = ffi::ivalues_new();
        for input in &self.inputs {
            let missing = || Error::invalid(format!("%{} is not known", input.debug_name()));
            ffi::ivalues_push(stack.pin_mut(), &read(*input).ok_or_else(missing)?.0);
        }
        ffi::code_run(&self.code, stack.pin_mut())?;
        (0..ffi::ivalues_len(&stack)).map(|index| Ok(Held(ffi::ivalues_get(&stack, index)?))).collect()
    }
}

/// The constants beyond `nodes` that they take, and what else they take that they do not compute.
fn taken<'g>(nodes: &[Node<'g>]) -> (Vec<Node<'g>>, Vec<Value<'g>>) {
    let all: Vec<_> = nodes.iter().flat_map(|node| with_inner(*node)).collect();
    let arguments = all.iter().flat_map(|node| node.blocks()).flat_map(|block| block.inputs());
    let mut known: HashSet<_> = all.iter().flat_map(|node| node.outputs()).chain(arguments).collect();
    let (mut constants, mut inputs) = (Vec::new(), Vec::new());
    for value in all.iter().flat_map(|node| values_taken(*node)) {
        if known.insert(value) {
            match value.is_constant() {
                true => constants.push(value.node()),
                false => inputs.push(value),
            }
        }
    }
    (constants, inputs)
}

/// A node and those in its blocks, each before those of its own blocks.
fn with_inner(node: Node<'_>) -> Vec<Node<'_>> {
    let inner = node.blocks().into_iter().flat_map(|block| block.all_nodes());
    std::iter::once(node).chain(inner).collect()
}

/// What a node takes itself, and what its blocks give that is computed outside of them.
fn values_taken(node: Node<'_>) -> Vec<Value<'_>> {
    let given = node.blocks().into_iter().flat_map(|block| block.outputs());
    node.inputs().into_iter().chain(given).collect()
}

/// The place among `nodes` of the last one that takes each value, its blocks included.
pub(crate) fn last_uses<'g>(nodes: &[Node<'g>]) -> HashMap<Value<'g>, usize> {
    let mut last = HashMap::new();
    for (place, node) in nodes.iter().enumerate() {
        for inner in with_inner(*node) {
            last.extend(values_taken(inner).into_iter().map(|value| (value, place)));
        }
    }
    last
}
