//! For which arguments a row of the table is true.

use crate::ir::{IValue, Node, Value};

/// Whether the conditions of the table are asked.
///
/// libtorch's passes take every row for true whatever the arguments are: sum pooling then saturates to the range of what it
/// sums. The passes with libtorch's names do what libtorch's do; [`Quantizer`](crate::Quantizer) asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditions {
    /// They are not asked: what libtorch does.
    Ignored,
    /// They are.
    Asked,
}

/// What has to be so of a node of `aten`. Arguments are counted from 0; one that a node does not have counts as `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Condition {
    /// It never is.
    Never,
    /// This argument is `None`.
    None(usize),
    /// This argument is a tensor, whichever.
    Tensor(usize),
    /// This argument is a list.
    IsList(usize),
    /// This argument is the constant `True`.
    True(usize),
    /// This argument is the constant `False`.
    False(usize),
    /// This argument is the constant integer 1.
    One(usize),
    /// This argument is a constant number from the one to the other.
    Within(usize, f64, f64),
    /// The argument that the schema calls `dtype` is `None`, or there is none.
    NoDtype,
    /// Arguments 1 and 2 are numbers or `None`, not tensors.
    NumberBounds,
    /// The list that is argument 0 has one tensor, or one again and again.
    OneTensor,
    /// It takes the largest or smallest of one tensor's values, not of two tensors' (argument 1 is a tensor then), and what it
    /// gives is the value and not its index.
    FirstOfReduction,
}

impl Condition {
    /// Whether it is so of `node`.
    pub fn holds(self, node: Node<'_>) -> bool {
        let constant = |index: usize| node.input(index).and_then(Value::constant);
        let number = |index: usize| constant(index).and_then(|constant| constant.as_number());
        let is_none = |argument: Option<Value<'_>>| {
            argument.is_none_or(|value| {
                matches!(value.constant(), Some(IValue::None)) || value.type_of().kind() == "NoneType"
            })
        };
        match self {
            Self::Never => false,
            Self::None(index) => is_none(node.input(index)),
            Self::Tensor(index) => node.input(index).is_some_and(|value| value.type_of().is_tensor()),
            Self::IsList(index) => node.input(index).is_some_and(|value| value.type_of().kind() == "ListType"),
            Self::True(index) => matches!(constant(index), Some(IValue::Bool(true))),
            Self::False(index) => matches!(constant(index), Some(IValue::Bool(false))),
            Self::One(index) => matches!(constant(index), Some(IValue::Int(1))),
            Self::Within(index, low, high) => number(index).is_some_and(|number| (low..=high).contains(&number)),
            Self::NoDtype => is_none(node.named_input("dtype")),
            Self::NumberBounds => !(1..=2).any(|index| Self::Tensor(index).holds(node)),
            Self::OneTensor => node.input(0).is_some_and(|list| {
                let items = list.node().inputs();
                list.node().kind() == "prim::ListConstruct" && items.iter().all(|item| *item == items[0])
            }),
            Self::FirstOfReduction => !Self::Tensor(1).holds(node),
        }
    }

    /// Whether it is so of the node that gives `output`.
    pub fn holds_for(self, output: Value<'_>) -> bool {
        self.holds(output.node()) && (self != Self::FirstOfReduction || output.offset() == 0)
    }
}
