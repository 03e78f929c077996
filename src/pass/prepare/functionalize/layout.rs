//! Which tensors lie in row-major order without gaps: of these, `reshape` gives a view.

use std::collections::HashSet;

use super::views::{Sharing, sharing, viewed};
use super::walk::{holds_tensors, is_tensor};
use crate::ir::{Graph, IValue, Node, Value};

/// Operators that give a view of a row-major tensor, which is row-major again.
const KEEPS_ORDER: &[&str] = &[
    "aten::view",
    "aten::view_as",
    "aten::_unsafe_view",
    "aten::unsqueeze",
    "aten::squeeze",
    "aten::detach",
    "aten::alias",
    "aten::unflatten",
    "aten::to",
    "aten::dropout",
];

/// Operators whose new results need not be row-major, or of which it is not known.
const OTHER_ORDER: &[&str] = &[
    "aten::lstm",
    "aten::gru",
    "aten::rnn_tanh",
    "aten::rnn_relu",
    "aten::einsum",
    "aten::tensordot",
    "aten::index",
    "aten::stft",
    "aten::istft",
    "aten::scaled_dot_product_attention",
    "aten::_native_multi_head_attention",
    "aten::_transformer_encoder_layer_fwd",
];

/// Operators that change in place how a tensor is seen.
const CHANGES_ORDER: &[&str] = &[
    "aten::t_",
    "aten::transpose_",
    "aten::swapaxes_",
    "aten::swapdims_",
    "aten::as_strided_",
    "aten::set_",
    "aten::resize_",
    "aten::resize_as_",
];

/// Operators that give a view of a row-major tensor, and may give a copy of another one; the result is row-major.
const RESHAPES: &[&str] = &["aten::reshape", "aten::reshape_as", "aten::flatten", "aten::ravel", "aten::contiguous"];

/// Operators that give a part of a tensor: what is left lies in the same order, with gaps.
const PARTS: &[&str] = &[
    "aten::slice",
    "aten::select",
    "aten::narrow",
    "aten::chunk",
    "aten::split",
    "aten::split_with_sizes",
    "aten::tensor_split",
    "aten::unbind",
];

/// What is known of tensors where the arguments of the graph are row-major.
struct Orders<'g> {
    /// Row-major, perhaps with gaps: what is computed of them is row-major without gaps.
    ordered: HashSet<Value<'g>>,
    /// Those of them that have no gaps.
    dense: HashSet<Value<'g>>,
}

/// The nodes of `graph` that give a view or a copy, depending on their input's layout, and give a view wherever the arguments
/// of the graph are row-major. Nodes that look at an argument are not among them: a caller whose tensor is not row-major does not
/// expect a write into it.
pub(super) fn views_of_row_major<'g>(graph: &'g Graph) -> HashSet<Node<'g>> {
    let nodes = graph.all_nodes();
    if nodes.iter().any(|node| CHANGES_ORDER.contains(&node.kind())) {
        return HashSet::new();
    }
    let arguments: HashSet<Value<'g>> = graph.inputs().into_iter().collect();
    let mut orders = Orders { ordered: arguments.clone(), dense: arguments.clone() };
    let mut views = HashSet::new();
    for node in nodes {
        let reshapes = RESHAPES.contains(&node.kind());
        if let Some(base) = node.input(0).filter(|_| reshapes && !asks_for_channels_last(node))
            && orders.dense.contains(&base)
            && !arguments.contains(&viewed(base))
        {
            views.insert(node);
        }
        orders.note(node);
    }
    views
}

impl<'g> Orders<'g> {
    /// Notes what the results of `node` are.
    fn note(&mut self, node: Node<'g>) {
        let is_unknown = !node.blocks().is_empty()
            || OTHER_ORDER.contains(&node.kind())
            || node.kind().starts_with("aten::linalg_")
            || asks_for_channels_last(node);
        if is_unknown {
            return;
        }
        let of_first = |of: &HashSet<Value<'g>>| node.input(0).is_some_and(|base| of.contains(&base));
        let (ordered, dense) = match sharing(node) {
            Sharing::None => {
                let all = node.inputs().into_iter().filter(carries_tensors).all(|value| self.ordered.contains(&value));
                (all, all)
            }
            _ if KEEPS_ORDER.contains(&node.kind()) || RESHAPES.contains(&node.kind()) => {
                (of_first(&self.ordered), of_first(&self.dense))
            }
            _ if PARTS.contains(&node.kind()) => (of_first(&self.ordered), false),
            _ => (false, false),
        };
        if ordered {
            self.ordered.extend(node.outputs());
        }
        if dense {
            self.dense.extend(node.outputs());
        }
    }
}

/// Whether a value is a tensor that is computed, or holds one.
fn carries_tensors(value: &Value<'_>) -> bool {
    let ty = value.type_of();
    value.constant().is_none() && (is_tensor(&ty) || holds_tensors(&ty))
}

/// Whether an argument gives an order of memory other than row-major, or one that is not known.
fn asks_for_channels_last(node: Node<'_>) -> bool {
    let Some(schema) = node.schema() else { return false };
    let inputs = node.inputs();
    let formats = schema.arguments.iter().zip(&inputs).filter(|(argument, _)| argument.name == "memory_format");
    // torch::MemoryFormat: Contiguous 0, Preserve 1, ChannelsLast 2, ChannelsLast3d 3.
    formats.into_iter().any(|(_, value)| !matches!(value.constant(), Some(IValue::None | IValue::Int(0 | 1))))
}
