//! Traced convolutions (`aten::_convolution`) become `aten::conv1d` … `aten::conv_transpose3d`.

use crate::error::{Error, Result};
use crate::ir::{GeneralPass, Graph, IValue, Node};

/// Names each `aten::_convolution` after its number of dimensions, where its geometry is constant.
///
/// `_convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, …)` takes
/// convolutions of every kind; quantized kernels exist by number of dimensions.
pub(super) fn replace_convolution(graph: &mut Graph) -> Result<()> {
    graph.run(GeneralPass::ConstantPropagation)?;
    for node in graph.all_nodes() {
        if node.kind() == "aten::_convolution"
            && let Some((dimensions, transposed)) = geometry(node)
        {
            replace(node, dimensions, transposed)?;
        }
    }
    Ok(())
}

const STRIDE: usize = 3;
const PADDING: usize = 4;
const DILATION: usize = 5;
const TRANSPOSED: usize = 6;
const OUTPUT_PADDING: usize = 7;
const GROUPS: usize = 8;

/// The number of dimensions (1 to 3) and whether it is a transposed convolution.
fn geometry(node: Node<'_>) -> Option<(usize, bool)> {
    let constant = |index| node.input(index)?.constant();
    let length = |index| match constant(index)? {
        IValue::List { items, .. } => Some(items.len()),
        _ => None,
    };
    let dimensions = length(STRIDE)?;
    let alike = [PADDING, DILATION, OUTPUT_PADDING].into_iter().all(|index| length(index) == Some(dimensions));
    let IValue::Bool(transposed) = constant(TRANSPOSED)? else { return None };
    (alike && (1..=3).contains(&dimensions)).then_some((dimensions, transposed))
}

fn replace(node: Node<'_>, dimensions: usize, transposed: bool) -> Result<()> {
    let (name, order) = match transposed {
        false => ("conv", [0, 1, 2, STRIDE, PADDING, DILATION, GROUPS].as_slice()),
        true => ("conv_transpose", [0, 1, 2, STRIDE, PADDING, OUTPUT_PADDING, GROUPS, DILATION].as_slice()),
    };
    let inputs = node.inputs();
    let arguments: Vec<_> = order.iter().map(|index| inputs[*index]).collect();
    let named = node.graph().create(&format!("aten::{name}{dimensions}d"), &arguments, 1)?.insert_before(node)?;
    named.copy_metadata(node)?;
    let (Some(from), Some(to)) = (node.output(0), named.output(0)) else {
        return Err(Error::invalid("a convolution should have one output"));
    };
    to.set_type(&from.type_of())?;
    from.replace_all_uses_with(to)?;
    node.destroy()
}
