//! One spelling for what is the same, so that the table of operators and the other passes know it.

use super::axis::keeps_rank;
use super::einsum::linear_of_einsum;
use super::padding_mode::number_paddings;
use crate::error::Result;
use crate::ir::{GeneralPass, Graph, IValue, Node, Tensor, Type, Value};
use crate::pass::fuse_linear::fuse_linear;
use crate::pass::op_table::Condition;
use crate::pass::replace_convolution::replace_convolution;

/// Brings a flat graph ([`super::flatten`]) into the spelling that quantization knows:
/// - operators that write in place give a new tensor where nobody else sees the old one;
/// - products with a weight are `aten::linear`, `einsum` included, convolutions name their number of dimensions
///   and have paddings in numbers;
/// - `relu6`, and clamps from 0 on, are `aten::hardtanh` and `aten::relu`;
/// - `pad` with a constant by constant sizes is `constant_pad_nd`;
/// - `stack` is `cat` of tensors with one dimension more; an instance norm with stored statistics is a batch norm;
/// - a bias that is computed is added behind its layer;
/// - a question for the rank of a layer's result goes to its input, so that checks do not stand between two layers.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub fn canonicalize(graph: &mut Graph) -> Result<()> {
    graph.run(GeneralPass::RemoveTensorMutation)?;
    graph.run(GeneralPass::RemoveListMutation)?;
    replace_convolution(graph)?;
    number_paddings(graph)?;
    fuse_linear(graph)?;
    linear_of_einsum(graph)?;
    for node in graph.all_nodes() {
        match node.kind() {
            "aten::matmul" | "aten::mm" | "aten::addmm" => linear_of_constant(node)?,
            "aten::relu6" | "aten::clamp_min" | "aten::clamp" => name_clamp(node)?,
            "aten::dim" => ask_source(node)?,
            "aten::pad" => name_padding(node)?,
            "aten::stack" => stack_as_cat(node)?,
            "aten::instance_norm" => name_statistics(node)?,
            "aten::linear" => set_bias_aside(node, 0)?,
            "aten::conv1d" | "aten::conv_transpose1d" => set_bias_aside(node, 1)?,
            "aten::conv2d" | "aten::conv_transpose2d" => set_bias_aside(node, 2)?,
            "aten::conv3d" | "aten::conv_transpose3d" => set_bias_aside(node, 3)?,
            _ => {}
        }
    }
    graph.run(GeneralPass::DeadCodeElimination)?;
    graph.run(GeneralPass::CommonSubexpressionElimination)
}

/// Replaces `old` by operator `kind` of `inputs`.
fn replace<'g>(old: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<()> {
    let new = old.graph().create(kind, inputs, 1)?.insert_before(old)?;
    new.copy_metadata(old)?;
    new.outputs()[0].set_type(&old.outputs()[0].type_of())?;
    old.outputs()[0].replace_all_uses_with(new.outputs()[0])?;
    old.destroy()
}

/// A bias that is computed when the model runs cannot be packed: it is added to the result, which has `spatial` dimensions
/// behind the channels.
fn set_bias_aside(node: Node<'_>, spatial: usize) -> Result<()> {
    let [_, _, bias, ..] = node.inputs()[..] else { return Ok(()) };
    if bias.is_constant() || bias.node().kind() == "prim::GetAttr" || bias.type_of().kind() != "TensorType" {
        return Ok(());
    }
    let none = node.insert_constant(IValue::None)?;
    none.set_type(&Type::parse("Optional[Tensor]")?)?;
    node.replace_input(2, none)?;
    let at = node.next();
    let mut added = bias;
    if spatial > 0 {
        let sizes = std::iter::once(-1).chain(std::iter::repeat_n(1, spatial));
        added = at.insert_operator("aten::reshape", &[bias, at.insert_constant(IValue::int_list(sizes))?])?;
        added.node().copy_metadata(node)?;
    }
    let result = node.outputs()[0];
    let one = at.insert_constant(IValue::Int(1))?;
    let sum = at.graph().create("aten::add", &[result, added, one], 1)?.insert_before(at)?;
    sum.copy_metadata(node)?;
    sum.outputs()[0].set_type(&result.type_of())?;
    result.replace_all_uses_with(sum.outputs()[0])?;
    sum.replace_input(0, result)
}

fn number(value: Option<Value<'_>>) -> Option<f64> {
    value?.constant()?.as_number()
}

/// A product with a constant matrix is a linear layer with that matrix transposed.
fn linear_of_constant(node: Node<'_>) -> Result<()> {
    let inputs = node.inputs();
    let (x, matrix, bias) = match (node.kind(), &inputs[..]) {
        ("aten::addmm", [bias, x, matrix, ..])
            if number(node.input(3)).zip(number(node.input(4))) == Some((1.0, 1.0)) =>
        {
            (*x, *matrix, Some(*bias))
        }
        ("aten::matmul" | "aten::mm", [x, matrix]) => (*x, *matrix, None),
        _ => return Ok(()),
    };
    let Some(IValue::Tensor(matrix)) = matrix.constant() else { return Ok(()) };
    let [rows, columns] = matrix.shape()[..] else { return Ok(()) };
    let Ok(values) = matrix.to_vec::<f32>() else { return Ok(()) };
    // The bias of a linear layer is one row.
    if bias.is_some_and(|bias| super::axis::rank_of(bias) != Some(1)) {
        return Ok(());
    }
    let at = |i: usize| values[i % rows as usize * columns as usize + i / rows as usize];
    let weight: Vec<f32> = (0..values.len()).map(at).collect();
    let weight = node.insert_constant(Tensor::from_slice(&weight, &[columns, rows])?)?;
    let bias = match bias {
        Some(bias) => bias,
        None => node.insert_constant(IValue::None)?,
    };
    replace(node, "aten::linear", &[x, weight, bias])
}

fn name_clamp(node: Node<'_>) -> Result<()> {
    let x = node.inputs()[0];
    let is_none = |value: Option<Value<'_>>| matches!(value.and_then(Value::constant), Some(IValue::None));
    let (low, high) = (number(node.input(1)), number(node.input(2)));
    match (node.kind(), low, high) {
        ("aten::relu6", ..) => {
            let bounds = [node.insert_constant(IValue::Double(0.0))?, node.insert_constant(IValue::Double(6.0))?];
            replace(node, "aten::hardtanh", &[x, bounds[0], bounds[1]])
        }
        ("aten::clamp_min", Some(0.0), _) => replace(node, "aten::relu", &[x]),
        ("aten::clamp", Some(0.0), None) if is_none(node.input(2)) => replace(node, "aten::relu", &[x]),
        _ => Ok(()),
    }
}

fn name_padding(node: Node<'_>) -> Result<()> {
    let inputs = node.inputs();
    let constant = |index: usize| inputs.get(index).copied().and_then(Value::constant);
    let sizes = match constant(1) {
        None if inputs[1].node().kind() == "prim::ListConstruct" => {
            let sizes = inputs[1].node().inputs().into_iter().map(|size| size.constant()?.as_int());
            sizes.collect::<Option<Vec<_>>>().map(IValue::int_list)
        }
        sizes => sizes,
    };
    let value = match constant(3) {
        Some(IValue::None) => Some(0.0),
        value => value.and_then(|value| value.as_number()),
    };
    let is_constant = constant(2).is_some_and(|mode| mode.as_str() == Some("constant"));
    match (sizes, value) {
        (Some(sizes), Some(value)) if is_constant => {
            let (sizes, value) = (node.insert_constant(sizes)?, node.insert_constant(IValue::Double(value))?);
            replace(node, "aten::constant_pad_nd", &[inputs[0], sizes, value])
        }
        _ => Ok(()),
    }
}

/// `stack([a, b], d)` is `cat([unsqueeze(a, d), unsqueeze(b, d)], d)`, which has an INT8 form with a range of its own.
fn stack_as_cat(node: Node<'_>) -> Result<()> {
    let [list, dimension] = node.inputs()[..] else { return Ok(()) };
    // Others who see the list may change it.
    let is_read_only = list.uses().iter().all(|place| matches!(place.user.kind(), "aten::stack" | "aten::cat"));
    if list.node().kind() != "prim::ListConstruct" || !is_read_only || list.node().inputs().is_empty() {
        return Ok(());
    }
    let mut items = Vec::new();
    for item in list.node().inputs() {
        let wider = node.insert_operator("aten::unsqueeze", &[item, dimension])?;
        wider.node().copy_metadata(node)?;
        items.push(wider);
    }
    if let [single] = items[..] {
        node.outputs()[0].replace_all_uses_with(single)?;
        return node.destroy();
    }
    let wider = node.graph().create("prim::ListConstruct", &items, 1)?.insert_before(node)?;
    wider.outputs()[0].set_type(&list.type_of())?;
    replace(node, "aten::cat", &[wider.outputs()[0], dimension])
}

/// An instance norm that normalizes by stored statistics, those of no instance, is a batch norm with fixed ones.
fn name_statistics(norm: Node<'_>) -> Result<()> {
    let inputs = norm.inputs();
    let is_stored = Condition::False(5).holds(norm) && (3..=4).all(|index| Condition::Tensor(index).holds(norm));
    // (x, weight, bias, mean, variance, use_input_stats or training, momentum, eps, cudnn)
    match is_stored {
        true => replace(norm, "aten::batch_norm", &inputs),
        false => Ok(()),
    }
}

/// Asks the first input of what computes a tensor, and so on, where it has the same rank.
fn ask_source(dim: Node<'_>) -> Result<()> {
    let mut asked = dim.inputs()[0];
    while keeps_rank(asked.node())
        && let Some(source) = asked.node().input(0)
    {
        asked = source;
    }
    dim.replace_input(0, asked)
}
