//! Padding folded into the convolution after it.

use super::axis::rank_of;
use crate::error::Result;
use crate::ir::{Graph, IValue, Node, Value};

/// Makes padding with zeros, the same number on both sides, the padding of the convolution that alone takes the padded
/// tensor; how many were folded.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub fn fold_padding(graph: &Graph) -> Result<usize> {
    let mut folded = 0;
    for convolution in graph.all_nodes() {
        if let Some((padding, sizes)) = folded_padding(convolution) {
            convolution.replace_input(0, padding.inputs()[0])?;
            convolution.replace_input(PADDING, convolution.insert_constant(IValue::int_list(sizes))?)?;
            padding.destroy()?;
            folded += 1;
        }
    }
    Ok(folded)
}

/// The index of the padding among a convolution's inputs.
const PADDING: usize = 4;

/// The padding before a convolution that can be part of it, and the convolution's own padding then.
fn folded_padding(convolution: Node<'_>) -> Option<(Node<'_>, Vec<i64>)> {
    let spatial = match convolution.kind() {
        "aten::conv1d" => 1,
        "aten::conv2d" => 2,
        "aten::conv3d" => 3,
        _ => return None,
    };
    let padding = convolution.input(0)?.node();
    let fits = padding.kind() == "aten::constant_pad_nd"
        && padding.outputs()[0].uses().len() == 1
        && padding.owning_block() == convolution.owning_block()
        && padding.input(2)?.constant()?.as_number() == Some(0.0)
        && rank_of(padding.input(0)?).is_none_or(|rank| rank == spatial + 2);
    let around = ints(padding.input(1).filter(|_| fits)?)?;
    let mut own = ints(convolution.input(PADDING)?)?;
    own.resize(spatial, *own.first()?);
    // Sizes start with the last dimension: before, after.
    let (pairs, rest) = around.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > spatial {
        return None;
    }
    for (size, [before, after]) in std::iter::zip(own.iter_mut().rev(), pairs) {
        if before != after || *before < 0 {
            return None;
        }
        *size += before;
    }
    Some((padding, own))
}

fn ints(value: Value<'_>) -> Option<Vec<i64>> {
    match value.constant()? {
        IValue::List { items, .. } => items.iter().map(IValue::as_int).collect(),
        _ => None,
    }
}
