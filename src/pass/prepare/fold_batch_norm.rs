//! Batch norm folded into the layer before it, by data flow.
//!
//! A batch norm with fixed statistics computes, for channel c,
//! `y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c] = scale[c] * x + shift[c]`.
//! After a layer that gives channel c as `dot(w[c], x) + b[c]` that is the layer with the weight `scale[c] * w[c]` and
//! the bias `scale[c] * b[c] + shift[c]`.

use super::axis::{Axis, rank_of, source_axis};
use crate::error::Result;
use crate::ir::{DType, Graph, IValue, Node, Tensor, Use, Value};
use crate::pass::op_table::Operator;
use crate::pass::{Layer, source_of};

/// Folds each `aten::batch_norm` of a flat graph ([`super::flatten`]) into the convolution, transposed convolution or
/// linear layer that computes its input, where their weights are constants and nothing else sees the layer's result.
///
/// Permutations and reshapes that keep the channels between the two are passed through, and so is padding by a constant where it
/// stays one constant. The
/// weight is multiplied in f64 and rounded once. Where the graph does not tell the rank of a linear layer's result, batch
/// norm is taken to normalize its last dimension: for `N x L x C`, of which it normalizes L, this is wrong if L equals C
/// (else the model itself would fail).
///
/// The batch norms that stay, each with the reason.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub fn fold_batch_norm(graph: &Graph) -> Result<Vec<(Layer, String)>> {
    let mut kept = Vec::new();
    for norm in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::batch_norm") {
        match Fold::of(norm) {
            Ok(fold) => fold.apply(norm)?,
            Err(reason) => {
                let layer = Layer { path: norm.scope()?, operator: "batch_norm", source: source_of(norm) };
                kept.push((layer, reason));
            }
        }
    }
    Ok(kept)
}

/// `scale[c] * x + shift[c]`.
struct ChannelAffine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl ChannelAffine {
    /// What a batch norm computes; why it is not known, where it is not.
    fn of(norm: Node<'_>) -> Result<Self, String> {
        let argument = |name: &str| norm.named_input(name).and_then(Value::constant);
        match argument("training") {
            Some(IValue::Bool(false)) => {}
            Some(_) => return Err("it takes the statistics of each batch".to_owned()),
            None => return Err("whether it takes the statistics of each batch is decided at run time".to_owned()),
        }
        let eps = argument("eps").and_then(|eps| eps.as_number()).ok_or("its eps is not a constant")?;
        let mean = channels(argument("running_mean"), "running_mean")?;
        let variance = channels(argument("running_var"), "running_var")?;
        let affine = |name: &str, missing: f64| match argument(name) {
            Some(IValue::None) => Ok(vec![missing; mean.len()]),
            other => channels(other, name),
        };
        let (weight, bias) = (affine("weight", 1.0)?, affine("bias", 0.0)?);
        if [&variance, &weight, &bias].into_iter().any(|values| values.len() != mean.len()) {
            return Err("its constants differ in length".to_owned());
        }
        let scale: Vec<f64> = std::iter::zip(&variance, &weight).map(|(v, w)| w / (v + eps).sqrt()).collect();
        if scale.iter().any(|scale| !scale.is_finite()) {
            return Err("a variance of it is not positive".to_owned());
        }
        let shift = (0..mean.len()).map(|c| bias[c] - mean[c] * scale[c]).collect();
        Ok(Self { scale, shift })
    }

    /// The one number that `value` becomes in every channel.
    fn of_number(&self, value: f64) -> Option<f64> {
        let mut results = std::iter::zip(&self.scale, &self.shift).map(|(scale, shift)| scale * value + shift);
        let first = results.next()?;
        results.all(|result| result == first).then_some(first)
    }
}

fn channels(constant: Option<IValue>, name: &str) -> Result<Vec<f64>, String> {
    let tensor = f32_tensor(constant, name)?;
    Ok(tensor.to_vec::<f32>().map_err(|e| e.to_string())?.into_iter().map(f64::from).collect())
}

fn f32_tensor(constant: Option<IValue>, name: &str) -> Result<Tensor, String> {
    match constant {
        Some(IValue::Tensor(tensor)) if tensor.is_defined() && tensor.dtype() == Some(DType::F32) => Ok(tensor),
        Some(IValue::Tensor(tensor)) => Err(format!("its {name} is of type {:?}, not f32", tensor.dtype())),
        _ => Err(format!("its {name} is not a constant")),
    }
}

/// A layer that a batch norm folds into, with what it becomes.
struct Fold<'g> {
    layer: Node<'g>,
    weight: Tensor,
    bias: Tensor,
    /// Paddings on the way, each with the number that it is to pad with.
    paddings: Vec<(Node<'g>, f64)>,
}

impl<'g> Fold<'g> {
    fn of(norm: Node<'g>) -> Result<Self, String> {
        let affine = ChannelAffine::of(norm)?;
        let (layer, paddings) = layer_before(norm, &affine)?;
        let constant = |index: usize| layer.input(index).and_then(Value::constant);
        let weight = f32_tensor(constant(1), "layer's weight")?;
        let shape = weight.shape();
        let values = weight.to_vec::<f32>().map_err(|e| e.to_string())?;
        let channel_of = Channels::of(layer, &shape)?;
        if channel_of.count != affine.scale.len() {
            let (layer, norm) = (channel_of.count, affine.scale.len());
            return Err(format!("it normalizes {norm} channels, the layer before it has {layer}"));
        }
        let bias = match constant(2) {
            Some(IValue::None) => vec![0.0; channel_of.count],
            other => channels(other, "layer's bias")?,
        };
        if bias.len() != channel_of.count {
            return Err("the bias of the layer before it does not have a value for each channel".to_owned());
        }
        let scaled = values.iter().enumerate().map(|(i, w)| (f64::from(*w) * affine.scale[channel_of.at(i)]) as f32);
        let bias = (0..bias.len()).map(|c| (bias[c] * affine.scale[c] + affine.shift[c]) as f32);
        let tensor =
            |values: Vec<f32>, shape: &[i64]| Tensor::from_slice(&values, shape).map_err(|refusal| refusal.to_string());
        Ok(Self {
            layer,
            weight: tensor(scaled.collect(), &shape)?,
            bias: tensor(bias.collect(), &[channel_of.count as i64])?,
            paddings,
        })
    }

    fn apply(self, norm: Node<'g>) -> Result<()> {
        for (padding, value) in self.paddings {
            padding.replace_input(2, padding.insert_constant(IValue::Double(value))?)?;
        }
        for (index, tensor) in [(1, self.weight), (2, self.bias)] {
            self.layer.replace_input(index, self.layer.insert_constant(tensor)?)?;
        }
        norm.outputs()[0].replace_all_uses_with(norm.inputs()[0])?;
        norm.destroy()?;
        leave_shape_as_it_was(self.layer.outputs()[0])
    }
}

/// Takes away what gives a reshaped `result` its own shape back, as `bn(x.flatten(0, 1)).reshape_as(x)` does.
fn leave_shape_as_it_was(result: Value<'_>) -> Result<()> {
    for place in result.uses().into_iter().filter(|place| is_shape_given(place)) {
        if is_reshaped(place.user.inputs()[0], result) {
            place.user.outputs()[0].replace_all_uses_with(result)?;
            place.user.destroy()?;
        }
    }
    Ok(())
}

/// Whether `value` is `source` with other sizes.
fn is_reshaped(value: Value<'_>, source: Value<'_>) -> bool {
    let node = value.node();
    let is_reshape =
        matches!(node.kind(), "aten::flatten" | "aten::view" | "aten::reshape" | "aten::squeeze" | "aten::unsqueeze");
    value == source || (is_reshape && is_reshaped(node.inputs()[0], source))
}

/// The layer whose channels `norm` normalizes, and the paddings between them.
fn layer_before<'g>(norm: Node<'g>, affine: &ChannelAffine) -> Result<(Node<'g>, Vec<(Node<'g>, f64)>), String> {
    let mut paddings = Vec::new();
    let mut axis = Axis::numbered(1, None);
    let mut is_reshaped = false;
    let (mut user, mut value) = (norm, norm.inputs()[0]);
    loop {
        let node = value.node();
        let others = value.uses().into_iter().filter(|each| each.user != user && !asks_for_shape(each));
        if let Some(other) = others.map(|each| each.user.kind()).next() {
            return Err(format!("what it normalizes is used by {other} as well"));
        }
        match node.kind() {
            kind if is_convolution(kind) || kind == "aten::linear" => {
                let rank = rank_of(value);
                let is_channels = match kind {
                    // Of a result of unknown rank it is taken to be the last dimension.
                    "aten::linear" => axis.of_rank(rank).back().map_or(axis.front() != Some(0), |back| back == 0),
                    _ => axis.of_rank(rank).front() == Some(1),
                };
                return match is_channels {
                    true => Ok((node, paddings)),
                    false => Err(format!("it does not normalize the channels of the {kind} before it")),
                };
            }
            "aten::constant_pad_nd" => {
                let pads_channels = pads_axis(node, axis);
                let padded = node.input(2).and_then(Value::constant).and_then(|value| value.as_number());
                match padded.and_then(|padded| affine.of_number(padded)) {
                    Some(number) if !pads_channels => paddings.push((node, number)),
                    _ => return Err("the padding before it would differ from channel to channel".to_owned()),
                }
            }
            // That one view keeps the size of the channels shows in the layer's; between two of them it could be any.
            "aten::view" | "aten::reshape" if std::mem::replace(&mut is_reshaped, true) => {
                return Err("it comes after several reshapes, into which it cannot be folded".to_owned());
            }
            kind => match source_axis(node, axis) {
                Some(source) => axis = source,
                None if kind == "prim::Param" => return Err("it normalizes an input of the model".to_owned()),
                None => return Err(format!("it comes after {kind}, into which it cannot be folded")),
            },
        }
        (user, value) = (node, node.inputs()[0]);
    }
}

/// Whether `padding` may pad dimension `axis`; its sizes start from the last dimension, two for each.
fn pads_axis(padding: Node<'_>, axis: Axis) -> bool {
    let rank = padding.input(0).and_then(rank_of);
    let padded = match padding.input(1).and_then(Value::constant) {
        Some(IValue::List { items, .. }) => Some(items.len() / 2),
        _ => None,
    };
    match (rank, padded) {
        (Some(rank), Some(padded)) => axis.of_rank(Some(rank)).back().is_none_or(|back| back < padded),
        _ => true,
    }
}

fn is_convolution(kind: &str) -> bool {
    const CONVOLUTIONS: [&str; 6] = [
        "aten::conv1d",
        "aten::conv2d",
        "aten::conv3d",
        "aten::conv_transpose1d",
        "aten::conv_transpose2d",
        "aten::conv_transpose3d",
    ];
    CONVOLUTIONS.contains(&kind)
}

fn asks_for_shape(place: &Use<'_>) -> bool {
    is_shape_given(place) || Operator::of(place.user).is_some_and(|row| row.is_tensor_info)
}

/// Whether the value gives another one its shape there.
fn is_shape_given(place: &Use<'_>) -> bool {
    matches!(place.user.kind(), "aten::reshape_as" | "aten::view_as") && place.offset == 1
}

/// Which output channel an element of a layer's weight belongs to.
struct Channels {
    /// How many output channels there are.
    count: usize,
    /// Elements for one step in the dimension of output channels.
    stride: usize,
    /// The size of that dimension.
    size: usize,
    /// Elements of a group of input channels, where output channels are counted by group (transposed convolutions).
    group: usize,
}

impl Channels {
    fn of(layer: Node<'_>, shape: &[i64]) -> Result<Self, String> {
        let size = |index: usize| shape.get(index).map_or(0, |size| *size as usize);
        let within = |index: usize| shape.get(index..).map_or(0, |sizes| sizes.iter().product::<i64>() as usize);
        if shape.len() < 2 || within(0) == 0 {
            return Err("the weight of the layer before it is empty".to_owned());
        }
        if !layer.kind().starts_with("aten::conv_transpose") {
            return Ok(Self { count: size(0), stride: within(1), size: size(0), group: within(0) });
        }
        // Its weight is inputs x (outputs / groups) x kernel.
        let groups = layer.named_input("groups").and_then(Value::constant).and_then(|groups| groups.as_int());
        let groups = groups.filter(|groups| *groups > 0).ok_or("the layer before it has no constant groups")? as usize;
        Ok(Self { count: size(1) * groups, stride: within(2), size: size(1), group: within(0) / groups })
    }

    /// The output channel of element `index`, in row-major order.
    fn at(&self, index: usize) -> usize {
        index / self.group * self.size + index / self.stride % self.size
    }
}
