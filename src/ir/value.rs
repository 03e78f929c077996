//! Values: what nodes compute and use.

use super::block::Block;
use super::ffi::bridge as ffi;
use super::graph::Graph;
use super::ivalue::IValue;
use super::node::{Node, borrowed};
use super::types::Type;
use crate::error::{Error, Result};

/// What a node computes, or a block's argument.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    pub(super) graph: &'g Graph,
    pub(super) raw: &'g ffi::Value,
}

borrowed!(Value);

/// A place where a value is used: an input of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use<'g> {
    /// The node.
    pub user: Node<'g>,
    /// Which of its inputs.
    pub offset: usize,
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
    pub(super) fn usable_in(self, graph: &Graph) -> Result<()> {
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

    /// The values that control flow makes it of: a branch's result of each block; for what a loop carries, what it begins with
    /// and what a round hands on. Empty for other values.
    pub(crate) fn joined(self) -> Vec<Value<'g>> {
        let (node, offset) = (self.node(), self.offset());
        // A loop's inputs begin with two of its own, and its body's results and arguments with one.
        let carried = |owner: Node<'g>, index: usize| {
            let handed = owner.blocks().into_iter().filter_map(|body| body.outputs().get(index + 1).copied());
            owner.input(index + 2).into_iter().chain(handed).collect()
        };
        match node.kind() {
            "prim::If" => node.blocks().into_iter().filter_map(|block| block.outputs().get(offset).copied()).collect(),
            "prim::Loop" => carried(node, offset),
            "prim::Param" if offset > 0 => match node.owning_block().and_then(Block::owner) {
                Some(owner) if owner.kind() == "prim::Loop" => carried(owner, offset - 1),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// The names of the attributes through which the graph's first argument leads to it: `["features", "weight"]` for
    /// `self.features.weight`, empty for `self`; `None` where it is found otherwise.
    pub fn attribute_path(self) -> Option<Vec<String>> {
        let mut path = Vec::new();
        let mut value = self;
        while value.graph().inputs().first() != Some(&value) {
            let read = value.node();
            if read.kind() != "prim::GetAttr" {
                return None;
            }
            path.push(read.name_attribute()?);
            value = read.input(0)?;
        }
        path.reverse();
        Some(path)
    }
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "%{}", self.debug_name())
    }
}
