//! Nodes: the operations of a graph.

use super::block::Block;
use super::ffi::bridge as ffi;
use super::graph::{Code, GRAVEYARD, Graph};
use super::ivalue::{IValue, cooked_values, raw_items};
use super::value::Value;
use crate::error::{Error, Result};

pub use super::ffi::bridge::{Argument, Schema, SourceRange};

/// What blocks, nodes and values have in common: they are pointers that borrow their graph.
macro_rules! borrowed {
    ($name:ident) => {
        impl PartialEq for $name<'_> {
            fn eq(&self, other: &Self) -> bool {
                std::ptr::eq(self.raw, other.raw)
            }
        }
        impl Eq for $name<'_> {}
        impl std::hash::Hash for $name<'_> {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                std::ptr::hash(self.raw, state)
            }
        }
        impl<'g> $name<'g> {
            pub(crate) fn new(graph: &'g Graph, raw: &'g ffi::$name) -> Self {
                Self { graph, raw }
            }

            /// The graph it belongs to.
            pub fn graph(self) -> &'g Graph {
                self.graph
            }
        }
    };
}
pub(super) use borrowed;

/// An operation.
#[derive(Clone, Copy)]
pub struct Node<'g> {
    pub(super) graph: &'g Graph,
    pub(super) raw: &'g ffi::Node,
}

borrowed!(Node);

fn refs<'g>(values: &[Value<'g>]) -> Vec<ffi::ValueRef<'g>> {
    values.iter().map(|value| ffi::ValueRef { value: value.raw }).collect()
}

impl<'g> Node<'g> {
    /// libtorch's `torch::jit::Node`.
    pub(crate) fn address(self) -> *const std::ffi::c_void {
        std::ptr::from_ref(self.raw).cast()
    }

    /// What it does, e.g. `aten::conv2d`, `prim::CallMethod`.
    pub fn kind(self) -> &'g str {
        ffi::node_kind(self.raw)
    }

    /// The node after it in its block; the last one's is the block's return node. A node that is in no block is its
    /// own.
    pub fn next(self) -> Node<'g> {
        match self.owning_block() {
            Some(_) => Node::new(self.graph, ffi::node_next(self.raw)),
            None => self,
        }
    }

    /// The node before it in its block; the first one's is the block's param node. A node that is in no block is its
    /// own.
    pub fn prev(self) -> Node<'g> {
        match self.owning_block() {
            Some(_) => Node::new(self.graph, ffi::node_prev(self.raw)),
            None => self,
        }
    }

    /// The block it is in; `None` before it is inserted and after it was destroyed.
    pub fn owning_block(self) -> Option<Block<'g>> {
        let block = self.holding_block()?;
        let is_graveyard = block.owner().is_some_and(|owner| owner.kind() == GRAVEYARD);
        (!is_graveyard).then_some(block)
    }

    /// The block it is in, the one of destroyed nodes included.
    fn holding_block(self) -> Option<Block<'g>> {
        match ffi::node_has_owning_block(self.raw) {
            true => ffi::node_owning_block(self.raw).ok().map(|block| Block::new(self.graph, block)),
            false => None,
        }
    }

    /// It and the nodes whose blocks it is in, innermost first.
    fn with_owners(self) -> impl Iterator<Item = Node<'g>> {
        std::iter::successors(Some(self), |node| node.holding_block()?.owner())
    }

    /// Whether it was destroyed, itself or with a node whose block it was in.
    pub fn is_destroyed(self) -> bool {
        self.with_owners().any(|node| node.kind() == GRAVEYARD)
    }

    /// Whether it is in the graph: in its outermost block, or in a block of a node that is.
    pub fn is_inserted(self) -> bool {
        let outermost = self.with_owners().last().and_then(Node::holding_block);
        outermost.is_some_and(|block| block.owner().is_none())
    }

    /// Whether it stands for its block's arguments or results.
    fn is_end_of_block(self) -> bool {
        matches!(self.kind(), "prim::Param" | "prim::Return")
    }

    pub(super) fn may_go_before(self, other: Node<'g>) -> Result<()> {
        self.may_go_beside(other)?;
        match other.kind() {
            "prim::Param" => Err(Error::invalid("no node comes before a block's arguments")),
            _ => Ok(()),
        }
    }

    pub(super) fn may_go_after(self, other: Node<'g>) -> Result<()> {
        self.may_go_beside(other)?;
        match other.kind() {
            "prim::Return" => Err(Error::invalid("no node comes after a block's results")),
            _ => Ok(()),
        }
    }

    fn may_go_beside(self, other: Node<'g>) -> Result<()> {
        let refusal = if self.graph.id() != other.graph.id() {
            "it is of another graph"
        } else if self.is_end_of_block() {
            "it stands for its block's arguments or results"
        } else if other.owning_block().is_none() || other.is_destroyed() {
            "that node is in no block"
        } else if other.with_owners().any(|owner| owner == self) {
            "that is the node itself, or within its blocks"
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("'{}' cannot be put beside '{}': {refusal}", self.kind(), other.kind())))
    }

    /// Its inputs.
    pub fn inputs(self) -> Vec<Value<'g>> {
        (0..ffi::node_inputs_len(self.raw)).filter_map(|i| self.input(i)).collect()
    }

    /// Input `index`, where it has that many.
    pub fn input(self, index: usize) -> Option<Value<'g>> {
        if index >= ffi::node_inputs_len(self.raw) {
            return None;
        }
        ffi::node_input(self.raw, index).ok().map(|value| Value::new(self.graph, value))
    }

    /// The input that the operator's schema calls `name`.
    pub fn named_input(self, name: &str) -> Option<Value<'g>> {
        self.schema()?.arguments.iter().position(|argument| argument.name == name).and_then(|i| self.input(i))
    }

    /// Its outputs.
    pub fn outputs(self) -> Vec<Value<'g>> {
        (0..ffi::node_outputs_len(self.raw)).filter_map(|i| self.output(i)).collect()
    }

    /// Output `index`, where it has that many.
    pub fn output(self, index: usize) -> Option<Value<'g>> {
        if index >= ffi::node_outputs_len(self.raw) {
            return None;
        }
        ffi::node_output(self.raw, index).ok().map(|value| Value::new(self.graph, value))
    }

    /// Adds an output.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn add_output(self) -> Result<Value<'g>> {
        Ok(Value::new(self.graph, ffi::node_add_output(self.raw)?))
    }

    /// The blocks it runs: two of `prim::If`, one of `prim::Loop`.
    pub fn blocks(self) -> Vec<Block<'g>> {
        (0..ffi::node_blocks_len(self.raw))
            .filter_map(|i| ffi::node_block(self.raw, i).ok())
            .map(|block| Block::new(self.graph, block))
            .collect()
    }

    /// Adds a block.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn add_block(self) -> Result<Block<'g>> {
        Ok(Block::new(self.graph, ffi::node_add_block(self.raw)?))
    }

    /// Adds an input at the end.
    ///
    /// # Errors
    /// Where `value` is of another graph.
    pub fn add_input(self, value: Value<'g>) -> Result<()> {
        value.usable_in(self.graph)?;
        Ok(ffi::node_add_input(self.raw, value.raw)?)
    }

    /// Adds an input at `index`.
    ///
    /// # Errors
    /// Where it has fewer inputs, or `value` is of another graph.
    pub fn insert_input(self, index: usize, value: Value<'g>) -> Result<()> {
        value.usable_in(self.graph)?;
        Ok(ffi::node_insert_input(self.raw, index, value.raw)?)
    }

    /// Replaces input `index`.
    ///
    /// # Errors
    /// Where it has no such input, or `value` is of another graph.
    pub fn replace_input(self, index: usize, value: Value<'g>) -> Result<()> {
        value.usable_in(self.graph)?;
        Ok(ffi::node_replace_input(self.raw, index, value.raw)?)
    }

    /// Replaces every input that is `from` by `to`.
    ///
    /// # Errors
    /// Where `to` is of another graph.
    pub fn replace_input_with(self, from: Value<'g>, to: Value<'g>) -> Result<()> {
        to.usable_in(self.graph)?;
        Ok(ffi::node_replace_input_with(self.raw, from.raw, to.raw)?)
    }

    /// Takes input `index` away.
    ///
    /// # Errors
    /// Where it has no such input.
    pub fn remove_input(self, index: usize) -> Result<()> {
        Ok(ffi::node_remove_input(self.raw, index)?)
    }

    /// Takes all inputs away.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn remove_all_inputs(self) -> Result<()> {
        Ok(ffi::node_remove_all_inputs(self.raw)?)
    }

    /// Inserts it, in no block so far, before `other`.
    ///
    /// # Errors
    /// Where it is in a block already, or `other` is in none.
    pub fn insert_before(self, other: Node<'g>) -> Result<Node<'g>> {
        self.may_go_before(other)?;
        ffi::node_insert_before(self.raw, other.raw)?;
        Ok(self)
    }

    /// Inserts it, in no block so far, after `other`.
    ///
    /// # Errors
    /// Where it is in a block already, or `other` is in none.
    pub fn insert_after(self, other: Node<'g>) -> Result<Node<'g>> {
        self.may_go_after(other)?;
        ffi::node_insert_after(self.raw, other.raw)?;
        Ok(self)
    }

    /// Moves it before `other`; that what it uses is computed by then is the caller's to see to.
    ///
    /// # Errors
    /// Where one of them is in no block.
    pub fn move_before(self, other: Node<'g>) -> Result<()> {
        self.may_go_before(other)?;
        Ok(ffi::node_move_before(self.raw, other.raw)?)
    }

    /// Moves it after `other`; that what it uses is computed by then is the caller's to see to.
    ///
    /// # Errors
    /// Where one of them is in no block.
    pub fn move_after(self, other: Node<'g>) -> Result<()> {
        self.may_go_after(other)?;
        Ok(ffi::node_move_after(self.raw, other.raw)?)
    }

    /// A copy with the same inputs, attributes and blocks, in no block yet.
    ///
    /// # Errors
    /// Where libtorch refuses to copy it.
    pub fn copy(self) -> Result<Node<'g>> {
        Ok(Node::new(self.graph, ffi::graph_copy_node(self.graph.raw(), self.raw)?))
    }

    /// Destroys it: it leaves its block and lets go of its inputs, and so do the nodes in its blocks. Handles on it
    /// stay valid; see [`Node::is_destroyed`].
    ///
    /// # Errors
    /// Where one of its outputs is still used, or it stands for a block's arguments or results; nothing has changed
    /// then.
    pub fn destroy(self) -> Result<()> {
        if self.is_destroyed() {
            return Ok(());
        }
        if self.is_end_of_block() {
            return Err(Error::invalid("a block's arguments and results cannot be destroyed"));
        }
        Ok(ffi::node_retire(self.raw, self.graph.graveyard()?)?)
    }

    /// Runs the operator once on `inputs`; what it gives.
    ///
    /// # Errors
    /// Where there is no such operator, the number of inputs is another one, or it fails.
    pub fn run(self, inputs: &[IValue]) -> Result<Vec<IValue>> {
        let wanted = self.inputs().len();
        if inputs.len() != wanted {
            return Err(Error::invalid(format!("'{}' takes {wanted} inputs, not {}", self.kind(), inputs.len())));
        }
        cooked_values(&*ffi::node_run(self.raw, raw_items(inputs)?)?)
    }

    /// Whether it comes before `other`; both may lie in different blocks.
    ///
    /// # Errors
    /// Where one of them is in no block.
    pub fn is_before(self, other: Node<'g>) -> Result<bool> {
        Ok(ffi::node_is_before(self.raw, other.raw)?)
    }

    /// Whether `other` is always run before it.
    ///
    /// # Errors
    /// Where one of them is in no block.
    pub fn is_dominated_by(self, other: Node<'g>) -> Result<bool> {
        if !(self.is_inserted() && other.is_inserted()) {
            return Err(Error::invalid(format!("'{}' or '{}' is not in the graph", self.kind(), other.kind())));
        }
        Ok(ffi::node_is_dominated_by(self.raw, other.raw)?)
    }

    /// Whether it does more than compute its outputs (prints, raises, writes an attribute).
    ///
    /// # Errors
    /// Where the operator is unknown.
    pub fn has_side_effects(self) -> Result<bool> {
        Ok(ffi::node_has_side_effects(self.raw)?)
    }

    /// Whether two runs on the same inputs may differ (dropout, random numbers).
    ///
    /// # Errors
    /// Where the operator is unknown.
    pub fn is_nondeterministic(self) -> Result<bool> {
        Ok(ffi::node_is_nondeterministic(self.raw)?)
    }

    /// The operator's schema, where there is one.
    pub fn schema(self) -> Option<Schema> {
        match ffi::node_has_schema(self.raw) {
            true => ffi::node_schema(self.raw).ok(),
            false => None,
        }
    }

    /// Where in the TorchScript source it came from; empty where that is not recorded.
    ///
    /// # Errors
    /// Where libtorch cannot read its records.
    pub fn source_range(self) -> Result<SourceRange> {
        Ok(ffi::node_source_range(self.raw)?)
    }

    /// Records where it came from: line `line` of `file`, which reads `code`.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn set_source(self, file: &str, line: usize, code: &str) -> Result<()> {
        Ok(ffi::node_set_source(self.raw, file, line, code)?)
    }

    /// The path of modules that a traced node was recorded in, or the path that [`Node::set_scope`] gave it.
    ///
    /// # Errors
    /// Where libtorch cannot read its records.
    pub fn scope(self) -> Result<String> {
        Ok(ffi::node_scope(self.raw)?)
    }

    /// Records the path of the module that it belongs to. Copies of the node and [`Node::copy_metadata`] keep it;
    /// files do not.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn set_scope(self, path: &str) -> Result<()> {
        Ok(ffi::node_set_scope(self.raw, path)?)
    }

    /// Takes over the place in the source, the scope and the call stack of `from`.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn copy_metadata(self, from: Node<'g>) -> Result<()> {
        Ok(ffi::node_copy_metadata(self.raw, from.raw)?)
    }

    /// The names of its attributes.
    pub fn attribute_names(self) -> Vec<String> {
        ffi::node_attribute_names(self.raw)
    }

    /// Attribute `name`; `None` where it has none of that name that is a value.
    pub fn attribute(self, name: &str) -> Option<IValue> {
        match ffi::node_has_attribute(self.raw, name) {
            true => ffi::node_attribute(self.raw, name).ok().and_then(|raw| IValue::from_raw(raw).ok()),
            false => None,
        }
    }

    /// Sets attribute `name`.
    ///
    /// # Errors
    /// Where the value cannot cross to libtorch.
    pub fn set_attribute(self, name: &str, value: &IValue) -> Result<()> {
        Ok(ffi::node_set_attribute(self.raw, name, &*value.to_raw()?)?)
    }

    /// Takes attribute `name` away.
    ///
    /// # Errors
    /// Where it has none of that name.
    pub fn remove_attribute(self, name: &str) -> Result<()> {
        Ok(ffi::node_remove_attribute(self.raw, name)?)
    }

    /// The graph that attribute `name` holds (`Subgraph` of fusion groups).
    pub fn subgraph(self, name: &str) -> Option<Graph> {
        match ffi::node_has_subgraph(self.raw, name) {
            true => ffi::node_subgraph(self.raw, name).ok().map(|raw| Graph::lease(raw, self.graph.code().clone())),
            false => None,
        }
    }

    /// Puts a graph into attribute `name`.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub(crate) fn set_subgraph(self, name: &str, graph: &Graph) -> Result<()> {
        Ok(ffi::node_set_subgraph(self.raw, name, graph.shared())?)
    }

    /// The name in a `prim::GetAttr`, `prim::SetAttr`, `prim::CallMethod` or `prim::CallFunction`.
    pub fn name_attribute(self) -> Option<String> {
        self.attribute("name").and_then(|name| name.as_str().map(str::to_owned))
    }

    /// Has `insert` insert nodes before it; where that fails, what it had inserted so far is taken away again.
    fn insert<T>(
        self,
        inputs: &[Value<'g>],
        insert: impl FnOnce(&'g ffi::Graph) -> Result<T, cxx::Exception>,
    ) -> Result<T> {
        for input in inputs {
            input.usable_in(self.graph)?;
        }
        if self.owning_block().is_none() || self.is_destroyed() || self.kind() == "prim::Param" {
            return Err(Error::invalid(format!("nothing can be inserted before '{}' here", self.kind())));
        }
        let before = self.prev();
        insert(self.graph.raw()).or_else(|refusal| {
            while self.prev() != before {
                self.prev().destroy()?;
            }
            Err(refusal.into())
        })
    }

    /// Inserts a constant before it.
    ///
    /// # Errors
    /// Where a constant cannot have that value (a module, a custom class).
    pub fn insert_constant(self, value: impl Into<IValue>) -> Result<Value<'g>> {
        let value = value.into().to_raw()?;
        let value = self.insert(&[], |graph| ffi::graph_insert_constant(graph, self.raw, &value))?;
        Ok(Value::new(self.graph, value))
    }

    /// Inserts an operator before it, the overload chosen by the inputs' types, missing arguments by their defaults.
    ///
    /// # Errors
    /// Where no overload takes these inputs; the message lists the overloads.
    pub fn insert_operator(self, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
        let value = self.insert(inputs, |graph| ffi::graph_insert_operator(graph, self.raw, kind, &refs(inputs)))?;
        Ok(Value::new(self.graph, value))
    }

    /// Inserts `object.name` (`prim::GetAttr`) before it.
    ///
    /// # Errors
    /// Where the object's class has no such attribute.
    pub fn insert_get_attribute(self, object: Value<'g>, name: &str) -> Result<Value<'g>> {
        let ty = object.type_of().attribute(name)?;
        let node = self.graph.create("prim::GetAttr", &[object], 1)?.insert_before(self)?;
        node.set_attribute("name", &name.into())?;
        let value = node.output(0).ok_or_else(|| Error::invalid("prim::GetAttr has an output"))?;
        value.set_type(&ty)?;
        // Value names may not be numbers; submodules' names may (`features.0`).
        let is_number = name.chars().all(|c| c.is_ascii_digit());
        value.set_debug_name(&if is_number { format!("_{name}") } else { name.to_owned() })?;
        Ok(value)
    }

    /// Inserts `object.a.b` before it, for the path `a`, `b`; the object itself for an empty one.
    ///
    /// # Errors
    /// Where a class on the way has no such attribute.
    pub(crate) fn insert_attribute_path<N: AsRef<str>>(
        self,
        object: Value<'g>,
        path: impl IntoIterator<Item = N>,
    ) -> Result<Value<'g>> {
        path.into_iter().try_fold(object, |object, name| self.insert_get_attribute(object, name.as_ref()))
    }

    /// Inserts `object.name = value` (`prim::SetAttr`) before it.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn insert_set_attribute(self, object: Value<'g>, name: &str, value: Value<'g>) -> Result<Node<'g>> {
        let node = self.graph.create("prim::SetAttr", &[object, value], 0)?.insert_before(self)?;
        node.set_attribute("name", &name.into())?;
        Ok(node)
    }

    /// Inserts `object.method(inputs)` (`prim::CallMethod`) before it, the inputs matched with the method's schema.
    ///
    /// # Errors
    /// Where the object's class has no such method, or it does not take these inputs.
    pub fn insert_method_call(self, object: Value<'g>, method: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
        object.usable_in(self.graph)?;
        let value = self.insert(inputs, |graph| {
            ffi::graph_insert_method_call(graph, self.raw, object.raw, method, &refs(inputs))
        })?;
        Ok(Value::new(self.graph, value))
    }

    /// Inserts a copy of `callee`'s nodes before it, its arguments replaced by `inputs`; the copied results.
    ///
    /// # Errors
    /// Where the number of inputs is another one, `callee` is the graph itself, or it calls functions of another module.
    pub fn insert_graph(self, callee: &Graph, inputs: &[Value<'g>]) -> Result<Vec<Value<'g>>> {
        callee.ensure_portable_to(self.graph.code())?;
        self.insert_body(callee, inputs)
    }

    fn insert_body(self, callee: &Graph, inputs: &[Value<'g>]) -> Result<Vec<Value<'g>>> {
        if callee.inputs().len() != inputs.len() {
            let expected = callee.inputs().len();
            return Err(Error::invalid(format!("a graph of {expected} arguments inserted with {}", inputs.len())));
        }
        if callee.id() == self.graph.id() {
            return Err(Error::invalid("a graph cannot be inserted into itself"));
        }
        let outputs =
            self.insert(inputs, |graph| ffi::graph_insert_graph(graph, self.raw, callee.raw(), &refs(inputs)))?;
        Ok(outputs.iter().map(|output| Value::new(self.graph, output.value)).collect())
    }

    /// The graph that a `prim::CallFunction` or `prim::CallMethod` runs.
    ///
    /// # Errors
    /// Where it is no call, or what it calls has no graph.
    pub fn called_graph(self) -> Result<Graph> {
        let callee = self.input(0).ok_or_else(|| Error::invalid(format!("'{}' is not a call", self.kind())))?;
        match (self.kind(), self.name_attribute()) {
            ("prim::CallFunction", _) => {
                Ok(Graph::lease(ffi::value_function_graph(callee.raw)?, self.graph.code().clone()))
            }
            ("prim::CallMethod", Some(method)) => {
                let ty = callee.type_of();
                let code = Code { module: self.graph.code().module.clone(), ..Code::of_type(&ty) };
                Ok(Graph::lease(ffi::type_method_graph(&ty.0, &method)?, code))
            }
            (kind, _) => Err(Error::invalid(format!("'{kind}' is not a call"))),
        }
    }

    /// Replaces a `prim::CallFunction` or `prim::CallMethod` by the body of what it calls; the values that stand for
    /// its outputs.
    ///
    /// # Errors
    /// Where it is no call, or what it calls has no graph.
    pub fn inline_call(self) -> Result<Vec<Value<'g>>> {
        let callee = self.called_graph()?;
        let skip = usize::from(self.kind() == "prim::CallFunction");
        let results = self.insert_body(&callee, &self.inputs()[skip..])?;
        for (output, result) in self.outputs().into_iter().zip(&results) {
            output.replace_all_uses_with(*result)?;
        }
        self.destroy()?;
        Ok(results)
    }
}

impl std::fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(ffi::node_to_string(self.raw).map_err(|_| std::fmt::Error)?.trim_end())
    }
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
