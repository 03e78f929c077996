//! Blocks: sequences of nodes.

use super::ffi::bridge as ffi;
use super::graph::Graph;
use super::node::{Node, borrowed};
use super::value::Value;
use crate::error::{Error, Result};

/// A sequence of nodes: a graph's body, a branch of `prim::If`, the body of `prim::Loop`.
#[derive(Clone, Copy)]
pub struct Block<'g> {
    pub(super) graph: &'g Graph,
    pub(super) raw: &'g ffi::Block,
}

borrowed!(Block);

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

    /// Takes result `index` away.
    ///
    /// # Errors
    /// Where it has no such result.
    pub fn erase_output(self, index: usize) -> Result<()> {
        match index < self.outputs().len() {
            true => Ok(ffi::block_erase_output(self.raw, index)?),
            false => Err(Error::invalid(format!("the block has no result {index}"))),
        }
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
