//! Dimensions followed through a graph: how many a tensor has, and where one of them came from.

use crate::ir::{IValue, Node, Value};

/// A dimension of a tensor whose rank need not be known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Counted from the first one, 0; where known.
    front: Option<usize>,
    /// Counted from the last one, 0; where known.
    back: Option<usize>,
}

impl Axis {
    /// A dimension of a tensor of that rank as TorchScript numbers it, negative from the end.
    pub fn numbered(number: i64, rank: Option<usize>) -> Self {
        let axis = match usize::try_from(number) {
            Ok(front) => Self { front: Some(front), back: None },
            Err(_) => Self { front: None, back: usize::try_from(-1 - number).ok() },
        };
        axis.of_rank(rank)
    }

    /// The same dimension, where the tensor's rank is known too.
    pub fn of_rank(self, rank: Option<usize>) -> Self {
        let other_end = |axis: Option<usize>| rank?.checked_sub(axis? + 1);
        Self { front: self.front.or(other_end(self.back)), back: self.back.or(other_end(self.front)) }
    }

    /// Counted from the first one, where that is known.
    pub fn front(self) -> Option<usize> {
        self.front
    }

    /// Counted from the last one, where that is known.
    pub fn back(self) -> Option<usize> {
        self.back
    }

    /// Whether both are the same dimension of a tensor; `None` where that cannot be told.
    fn is(self, other: Self) -> Option<bool> {
        let from_front = self.front.zip(other.front);
        from_front.or(self.back.zip(other.back)).map(|(one, other)| one == other)
    }
}

/// Operators that keep the rank of their first input, and each of its dimensions where it is.
const ELEMENTWISE: [&str; 13] = [
    "aten::relu",
    "aten::hardtanh",
    "aten::clamp",
    "aten::dropout",
    "aten::contiguous",
    "aten::detach",
    "aten::gelu",
    "aten::silu",
    "aten::sigmoid",
    "aten::tanh",
    "aten::hardswish",
    "aten::leaky_relu",
    "aten::batch_norm",
];

/// Whether `node` works on each element, whatever the dimensions.
pub(super) fn is_elementwise(node: Node<'_>) -> bool {
    ELEMENTWISE.contains(&node.kind()) && node.kind() != "aten::batch_norm"
}

/// Whether `node` gives a tensor with as many dimensions as its first input has.
pub(super) fn keeps_rank(node: Node<'_>) -> bool {
    let kind = node.kind();
    let layer = kind == "aten::linear" || kind.starts_with("aten::conv1d") || kind.starts_with("aten::conv_transpose");
    layer || matches!(kind, "aten::conv2d" | "aten::conv3d" | "aten::transpose") || ELEMENTWISE.contains(&kind)
}

/// How many dimensions `value` has, where the graph tells. A convolution is taken to run on batches.
pub(super) fn rank_of(value: Value<'_>) -> Option<usize> {
    let node = value.node();
    let constant = |index: usize| node.input(index)?.constant();
    match node.kind() {
        "prim::Constant" => Some(value.constant()?.as_tensor()?.shape().len()),
        "aten::conv1d" | "aten::conv_transpose1d" => Some(3),
        "aten::conv2d" | "aten::conv_transpose2d" => Some(4),
        "aten::conv3d" | "aten::conv_transpose3d" => Some(5),
        "aten::t" | "aten::addmm" | "aten::mm" => Some(2),
        "aten::flatten" if constant(2)?.as_int() == Some(-1) => usize::try_from(constant(1)?.as_int()? + 1).ok(),
        "aten::view" | "aten::reshape" | "aten::permute" => length(node.input(1)?),
        "aten::constant_pad_nd" => rank_of(node.input(0)?),
        _ if keeps_rank(node) => rank_of(node.input(0)?),
        _ => None,
    }
}

/// The length of a list of numbers.
fn length(list: Value<'_>) -> Option<usize> {
    match list.constant() {
        Some(IValue::List { items, .. }) => Some(items.len()),
        _ => (list.node().kind() == "prim::ListConstruct").then(|| list.node().inputs().len()),
    }
}

/// The dimension of the first input of `node` that is dimension `axis` of its result; `None` where `node` does more
/// than move dimensions, or it cannot be told.
pub(super) fn source_axis(node: Node<'_>, axis: Axis) -> Option<Axis> {
    let number = |index: usize| node.input(index)?.constant()?.as_int();
    match node.kind() {
        "aten::contiguous" | "aten::detach" => Some(axis),
        "aten::permute" => {
            let IValue::List { items, .. } = node.input(1)?.constant()? else { return None };
            let rank = Some(items.len());
            let source = items.get(axis.of_rank(rank).front()?)?.as_int()?;
            Some(Axis::numbered(source, rank))
        }
        "aten::transpose" => {
            let rank = rank_of(node.input(0)?);
            let (first, second) = (Axis::numbered(number(1)?, rank), Axis::numbered(number(2)?, rank));
            let axis = axis.of_rank(rank);
            if axis.is(first)? {
                Some(second)
            } else if axis.is(second)? {
                Some(first)
            } else {
                Some(axis)
            }
        }
        // Rows lie in memory as before where the last dimension keeps its size. That it does is the caller's to see to.
        "aten::view" | "aten::reshape" => {
            let is_last = axis.of_rank(length(node.input(1)?)).back() == Some(0);
            is_last.then(|| Axis::numbered(-1, node.input(0).and_then(rank_of)))
        }
        "aten::flatten" => {
            let rank = rank_of(node.input(0)?);
            let end = |index: usize| Axis::numbered(number(index)?, rank).front();
            let (first, last, axis) = (end(1)?, end(2), axis.front()?);
            let source =
                if axis < first { axis } else { (axis > first).then_some(axis + last?.checked_sub(first)?)? };
            Some(Axis::numbered(source as i64, rank))
        }
        "aten::squeeze" => {
            let rank = rank_of(node.input(0)?);
            let (squeezed, axis) = (Axis::numbered(number(1)?, rank).front()?, axis.front()?);
            (axis < squeezed).then(|| Axis::numbered(axis as i64, rank))
        }
        "aten::unsqueeze" => {
            let rank = rank_of(node.input(0)?);
            let new = Axis::numbered(number(1)?, rank.map(|rank| rank + 1)).front()?;
            let source = match axis.front()? {
                axis if axis < new => axis,
                axis if axis > new => axis - 1,
                _ => return None,
            };
            Some(Axis::numbered(source as i64, rank))
        }
        _ => None,
    }
}
