//! Convolutions whose padding is a word, `"same"` or `"valid"`: the padding in numbers.

use crate::error::{Error, Result};
use crate::ir::{Graph, IValue, Node, Value};

const WEIGHT: usize = 1;
const STRIDE: usize = 3;
const PADDING: usize = 4;
const DILATION: usize = 5;
const GROUPS: usize = 6;

/// Gives numbers to the paddings of `aten::_convolution_mode` (traced) and of `aten::conv1d` … `aten::conv3d` with a word
/// (scripted), where stride, dilation and the weight's sizes are known; how many.
///
/// `"same"` with an odd sum of paddings, as kernels of an even size have it, puts the one that is over behind: a
/// `constant_pad_nd` before the convolution, as libtorch itself does it.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn number_paddings(graph: &Graph) -> Result<usize> {
    let mut named = 0;
    for node in graph.all_nodes() {
        if let Some(geometry) = Geometry::of(node) {
            geometry.write(node)?;
            named += 1;
        }
    }
    Ok(named)
}

/// Stride, padding and dilation of a convolution, a number a dimension.
struct Geometry {
    stride: Vec<i64>,
    dilation: Vec<i64>,
    /// On both sides.
    padding: Vec<i64>,
    /// What is padded behind besides.
    behind: Vec<i64>,
}

impl Geometry {
    fn of(node: Node<'_>) -> Option<Self> {
        let inputs = node.inputs();
        let constant = |index: usize| inputs.get(index)?.constant();
        let mode = constant(PADDING)?;
        let mode = mode.as_str()?;
        // Where the weight is computed, its sizes may be known all the same only by running it.
        let kernel = constant(WEIGHT)?.as_tensor()?.shape();
        let kernel = kernel.get(2..).filter(|kernel| (1..=3).contains(&kernel.len()))?;
        let known = match node.kind() {
            "aten::_convolution_mode" => true,
            "aten::conv1d" => kernel.len() == 1,
            "aten::conv2d" => kernel.len() == 2,
            "aten::conv3d" => kernel.len() == 3,
            _ => false,
        };
        let list = |index: usize| {
            let mut items = match constant(index)? {
                IValue::List { items, .. } => items.iter().map(IValue::as_int).collect::<Option<Vec<_>>>()?,
                IValue::Int(one) => vec![one],
                _ => return None,
            };
            // One number stands for all dimensions.
            if let [one] = items[..] {
                items = vec![one; kernel.len()];
            }
            (items.len() == kernel.len()).then_some(items)
        };
        let (stride, dilation) = (list(STRIDE)?, list(DILATION)?);
        let total: Vec<i64> = match mode {
            "valid" => vec![0; kernel.len()],
            // libtorch refuses "same" with a stride.
            "same" if stride.iter().all(|step| *step == 1) => {
                std::iter::zip(&dilation, kernel).map(|(dilation, size)| dilation * (size - 1)).collect()
            }
            _ => return None,
        };
        known.then(|| Self {
            stride,
            dilation,
            padding: total.iter().map(|total| total / 2).collect(),
            behind: total.iter().map(|total| total % 2).collect(),
        })
    }

    fn write(&self, node: Node<'_>) -> Result<()> {
        let inputs = node.inputs();
        let [x, weight, bias, .., groups] = inputs[..] else {
            return Err(Error::invalid(format!("{} should have {} inputs", node.kind(), GROUPS + 1)));
        };
        let list = |items: &[i64]| node.insert_constant(IValue::int_list(items.iter().copied()));
        let geometry = [list(&self.stride)?, list(&self.padding)?, list(&self.dilation)?];
        let x = match self.behind.iter().all(|size| *size == 0) {
            true => x,
            false => self.pad(node, x)?,
        };
        let kind = format!("aten::conv{}d", self.stride.len());
        let named = node.insert_operator(&kind, &[&[x, weight, bias], &geometry[..], &[groups]].concat())?;
        named.node().copy_metadata(node)?;
        let output = node.outputs()[0];
        named.set_type(&output.type_of())?;
        output.replace_all_uses_with(named)?;
        node.destroy()
    }

    /// The input with the zeros that only one side has.
    fn pad<'g>(&self, node: Node<'g>, x: Value<'g>) -> Result<Value<'g>> {
        // From the last dimension on: before, after.
        let sizes = self.behind.iter().rev().flat_map(|behind| [0, *behind]);
        let (sizes, zero) =
            (node.insert_constant(IValue::int_list(sizes))?, node.insert_constant(IValue::Double(0.0))?);
        let padded = node.insert_operator("aten::constant_pad_nd", &[x, sizes, zero])?;
        padded.node().copy_metadata(node)?;
        Ok(padded)
    }
}
