//! Blocks, nodes and values: borrowed from their [`Graph`].

use super::ffi::bridge as ffi;
use super::graph::{Code, GRAVEYARD, Graph};
use super::ivalue::IValue;
use super::types::Type;
use crate::error::{Error, Result};

pub use super::ffi::bridge::{Argument, Schema, SourceRange};

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

/// A sequence of nodes: a graph's body, a branch of `prim::If`, the body of `prim::Loop`.
#[derive(Clone, Copy)]
pub struct Block<'g> {
    graph: &'g Graph,
    raw: &'g ffi::Block,
}

/// An operation.
#[derive(Clone, Copy)]
pub struct Node<'g> {
    graph: &'g Graph,
    raw: &'g ffi::Node,
}

/// What a node computes, or a block's argument.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    graph: &'g Graph,
    raw: &'g ffi::Value,
}

/// A place where a value is used: an input of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use<'g> {
    /// The node.
    pub user: Node<'g>,
    /// Which of its inputs.
    pub offset: usize,
}

borrowed!(Block);
borrowed!(Node);
borrowed!(Value);

fn refs<'g>(values: &[Value<'g>]) -> Vec<ffi::ValueRef<'g>> {
    values.iter().map(|value| ffi::ValueRef { value: value.raw }).collect()
}

impl<'g> Block<'g> {
    /// The block's arguments.
    pub fn inputs(self) -> Vec<Value<'g>> {
        (0..ffi::block_inputs_len(self.raw)).map(|i| Value::new(self.graph, ffi::block_input(self.raw, i))).collect()
    }

    /// The block's results.
    pub fn outputs(self) -> Vec<Value<'g>> {
        self.return_node().inputs()
    }

    /// The nodes in order. The block may be changed meanwhile: the node after the current one is the one that was
    /// there when the current one was handed out, or, where that one has gone, the one after the last that is left.
    pub fn nodes(self) -> impl Iterator<Item = Node<'g>> {
        let end = self.return_node();
        let mut passed = vec![self.param_node()];
        let mut next = self.param_node().next();
        std::iter::from_fn(move || {
            if next.owning_block() != Some(self) {
                while passed.last()?.owning_block() != Some(self) {
                    passed.pop();
                }
                next = passed.last()?.next();
            }
            let current = next;
            (current != end).then(|| {
                passed.push(current);
                next = current.next();
                current
            })
        })
    }

    /// Its nodes and those of the blocks within, each node before the nodes of its own blocks.
    pub fn all_nodes(self) -> Vec<Node<'g>> {
        let mut nodes = Vec::new();
        self.collect(&mut nodes);
        nodes
    }

    /// Its arguments, and the outputs of its nodes, each followed by the values of the node's own blocks.
    pub(super) fn all_values(self) -> Vec<Value<'g>> {
        let of_node = |node: Node<'g>| {
            let within = node.blocks().into_iter().flat_map(Block::all_values);
            node.outputs().into_iter().chain(within).collect::<Vec<_>>()
        };
        self.inputs().into_iter().chain(self.nodes().flat_map(of_node)).collect()
    }

    fn collect(self, into: &mut Vec<Node<'g>>) {
        for node in self.nodes() {
            into.push(node);
            node.blocks().into_iter().for_each(|block| block.collect(into));
        }
    }

    /// The node whose inputs are the block's results (`prim::Return`); new nodes go before it.
    pub fn return_node(self) -> Node<'g> {
        Node::new(self.graph, ffi::block_return_node(self.raw))
    }

    /// The node whose outputs are the block's arguments (`prim::Param`).
    pub fn param_node(self) -> Node<'g> {
        Node::new(self.graph, ffi::block_param_node(self.raw))
    }

    /// The node that the block belongs to; `None` for a graph's outermost block.
    pub fn owner(self) -> Option<Node<'g>> {
        match ffi::block_has_owner(self.raw) {
            true => ffi::block_owner(self.raw).ok().map(|node| Node::new(self.graph, node)),
            false => None,
        }
    }

    /// Adds an argument, named `name` where that is not empty.
    ///
    /// # Errors
    /// Where libtorch refuses the name.
    pub fn add_input(self, name: &str) -> Result<Value<'g>> {
        Ok(Value::new(self.graph, ffi::block_add_input(self.raw, name)?))
    }

    /// Adds a result; its index.
    ///
    /// # Errors
    /// Where `value` is of another graph.
    pub fn register_output(self, value: Value<'g>) -> Result<usize> {
        value.usable_in(self.graph)?;
        Ok(ffi::block_register_output(self.raw, value.raw)?)
    }

    /// Puts a node that is in no block at the end.
    ///
    /// # Errors
    /// Where the node is in a block already.
    pub fn append(self, node: Node<'g>) -> Result<()> {
        node.may_go_before(self.return_node())?;
        Ok(ffi::block_append(self.raw, node.raw)?)
    }

    /// Puts a node that is in no block at the beginning.
    ///
    /// # Errors
    /// Where the node is in a block already.
    pub fn prepend(self, node: Node<'g>) -> Result<()> {
        node.may_go_before(self.return_node())?;
        Ok(ffi::block_prepend(self.raw, node.raw)?)
    }

    /// Appends copies of all nodes and results of `source`, another block of the same graph, and adds its arguments.
    ///
    /// # Errors
    /// Where both are the same block or of different graphs, or libtorch refuses to copy a node.
    pub fn copy_from(self, source: Block<'g>) -> Result<()> {
        if self == source || self.graph.id() != source.graph.id() {
            return Err(Error::invalid("a block is copied from another block of the same graph"));
        }
        Ok(ffi::block_copy_from(self.raw, source.raw)?)
    }
}

impl<'g> Node<'g> {
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

    fn may_go_before(self, other: Node<'g>) -> Result<()> {
        self.may_go_beside(other)?;
        match other.kind() {
            "prim::Param" => Err(Error::invalid("no node comes before a block's arguments")),
            _ => Ok(()),
        }
    }

    fn may_go_after(self, other: Node<'g>) -> Result<()> {
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

    /// The path of modules that a traced node was recorded in.
    ///
    /// # Errors
    /// Where libtorch cannot read its records.
    pub fn scope(self) -> Result<String> {
        Ok(ffi::node_scope(self.raw)?)
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

impl<'g> Value<'g> {
    /// Its name in the printed graph, without the `%`.
    pub fn debug_name(self) -> String {
        ffi::value_debug_name(self.raw)
    }

    /// Names it; libtorch adds a number where the name is taken.
    ///
    /// # Errors
    /// Where the name is not one (it starts with a digit, say).
    pub fn set_debug_name(self, name: &str) -> Result<()> {
        Ok(ffi::value_set_debug_name(self.raw, name)?)
    }

    /// Its number, unique in the graph.
    pub fn unique(self) -> usize {
        ffi::value_unique(self.raw)
    }

    /// The node that computes it; of a block's argument the block's `prim::Param`.
    pub fn node(self) -> Node<'g> {
        Node::new(self.graph, ffi::value_node(self.raw))
    }

    /// Which output of its node it is.
    pub fn offset(self) -> usize {
        ffi::value_offset(self.raw)
    }

    /// Its type.
    pub fn type_of(self) -> Type {
        Type(ffi::value_type(self.raw))
    }

    /// Sets its type.
    ///
    /// # Errors
    /// Where libtorch refuses.
    pub fn set_type(self, ty: &Type) -> Result<()> {
        Ok(ffi::value_set_type(self.raw, &ty.0)?)
    }

    /// Where it is used.
    pub fn uses(self) -> Vec<Use<'g>> {
        (0..ffi::value_uses_len(self.raw))
            .filter_map(|i| {
                let user = Node::new(self.graph, ffi::value_use_node(self.raw, i).ok()?);
                Some(Use { user, offset: ffi::value_use_offset(self.raw, i).ok()? })
            })
            .collect()
    }

    /// Whether it is used at all.
    pub fn is_used(self) -> bool {
        ffi::value_uses_len(self.raw) > 0
    }

    /// Whether a node of `graph` may use it.
    fn usable_in(self, graph: &Graph) -> Result<()> {
        let refusal = if self.graph.id() != graph.id() {
            "is of another graph"
        } else if self.node().is_destroyed() {
            "was computed by a node that is destroyed"
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("{self:?} {refusal}")))
    }

    /// Puts `other` in every place where it is used.
    ///
    /// # Errors
    /// Where `other` is of another graph.
    pub fn replace_all_uses_with(self, other: Value<'g>) -> Result<()> {
        if self == other {
            return Ok(());
        }
        other.usable_in(self.graph)?;
        Ok(ffi::value_replace_all_uses_with(self.raw, other.raw)?)
    }

    /// Puts `other` in every place after `node` where it is used.
    ///
    /// # Errors
    /// Where `other` or `node` is of another graph, or `node` or one of the users is in no block; nothing has changed
    /// then.
    pub fn replace_all_uses_after(self, node: Node<'g>, other: Value<'g>) -> Result<()> {
        other.usable_in(self.graph)?;
        let mut later = Vec::new();
        for each in self.uses() {
            if node.is_before(each.user)? {
                later.push(each);
            }
        }
        later.into_iter().try_for_each(|each| each.user.replace_input(each.offset, other))
    }

    /// Whether a `prim::Constant` makes it.
    pub fn is_constant(self) -> bool {
        ffi::value_is_constant(self.raw)
    }

    /// Its value, where it is a constant.
    pub fn constant(self) -> Option<IValue> {
        match self.is_constant() {
            true => ffi::value_constant(self.raw).ok().and_then(|raw| IValue::from_raw(raw).ok()),
            false => None,
        }
    }

    /// The name of the function that it is (the callee of `prim::CallFunction`).
    pub fn function_name(self) -> Option<String> {
        match ffi::value_has_function(self.raw) {
            true => ffi::value_function_name(self.raw).ok(),
            false => None,
        }
    }

    /// Whether it is an argument of the graph or of a block.
    pub fn is_block_input(self) -> bool {
        self.node().kind() == "prim::Param"
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

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "%{}", self.debug_name())
    }
}
