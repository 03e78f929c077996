//! Weight-only quantization: weights of 8 or 4 bits, activations in float. For models whose activations do not
//! quantize, and for those that are bound by how fast their weights can be read. It needs no data.
//!
//! Weights are kept as plain int8 or uint8 tensors and made float where a layer uses them, by operators that every
//! libtorch has ([`portable`]). Each of these takes the layer's input as well (`type_as`, `new_full`): so nothing folds
//! them while the input is not known, neither freezing nor `optimize_for_inference`, and the weight stays small.
//! [`stored`] reads such a layer again; the native form ([`to_native`](super::to_native)) calls
//! `jitquant::linear_weight_only` instead.

mod portable;
mod stored;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::portable::Writer;
pub(crate) use self::stored::{Stored, kept_values};
use super::layers::{Layer, layer_of};
use crate::error::{Context, Error, Result};
use crate::ir::{DType, GeneralPass, IValue, Module, Node, Tensor, Value};
use crate::kernel::{Channels, round_channels, round_groups};

/// How weights are kept in weight-only quantization.
///
/// ```
/// use jitquant::Quantizer;
/// use jitquant::ir::{Module, Tensor};
/// use jitquant::pass::WeightOnly;
/// # let linear = Module::new("torch.nn.modules.linear.Linear")?;
/// # linear.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # linear.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
/// let small = Quantizer::weight_only(WeightOnly::Bits8).prepare(&linear)?.convert()?; // no data
/// assert_eq!(small.report.quantized_operators["linear_8bit"], 1);
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WeightOnly {
    /// 8 bits, with a scale for each output channel (for each row of an embedding).
    Bits8,
    /// Linear layers: 4 bits, with scale and offset for each group of inputs. What else has weights, and linear layers
    /// whose inputs are not a number of whole groups: 8 bits.
    Bits4 {
        /// Inputs of a group: 32, 64 or 128. A smaller group is more accurate and larger by `32 / group` bits a weight.
        group: usize,
    },
}

impl WeightOnly {
    /// Groups that are accepted.
    pub const GROUPS: [usize; 3] = [32, 64, 128];

    /// What `bits` (8 or 4) and `group` (32, 64 or 128) say.
    ///
    /// # Errors
    /// Where it is another number.
    pub fn new(bits: usize, group: usize) -> Result<Self> {
        if !Self::GROUPS.contains(&group) {
            return Err(Error::invalid(format!("groups of {group} weights: 32, 64 and 128 are accepted")));
        }
        match bits {
            8 => Ok(Self::Bits8),
            4 => Ok(Self::Bits4 { group }),
            other => Err(Error::invalid(format!("weights of {other} bits: 8 and 4 are accepted"))),
        }
    }
}

/// What became of a module's weights.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How many layers of each kind keep their weight in how many bits, e.g. `linear_4bit`.
    pub kept: BTreeMap<String, usize>,
    /// Layers whose weight stays in float, and why, beyond those that nobody asked for.
    pub float: Vec<(Layer, String)>,
}

/// Why a layer has no weight-only form, where it has none.
pub(crate) fn why_never(layer: Node<'_>, operator: &str) -> Option<&'static str> {
    match operator {
        "linear" if weight_of(layer).is_none() => {
            Some("a product with a constant that is no matrix on the right is no linear layer")
        }
        "matmul" | "attention" => Some("it multiplies two activations and has no weight"),
        "lstm" | "gru" | "lstm_cell" | "gru_cell" | "rnn_cell" => {
            Some("recurrent layers have no weight-only form; dynamic quantization takes them")
        }
        "embedding_bag" => Some("embedding bags have no weight-only form"),
        _ if weight_of(layer).is_none() => Some("this operator has no weight-only form"),
        _ => None,
    }
}

/// Where a layer's weight is among its inputs, and the axis of its output channels.
fn weight_of(layer: Node<'_>) -> Option<(usize, usize)> {
    match layer.kind() {
        "aten::conv1d" | "aten::conv2d" | "aten::conv3d" | "aten::linear" => Some((1, 0)),
        "aten::conv_transpose1d" | "aten::conv_transpose2d" | "aten::conv_transpose3d" => Some((1, 1)),
        "aten::embedding" => Some((0, 0)),
        _ => None,
    }
}

/// A tensor that a graph reads from a constant or from an attribute of `module`.
fn tensor_of(module: &Module, value: Value<'_>) -> Option<Tensor> {
    let content = match value.constant() {
        Some(constant) => Some(constant),
        None => {
            let path = value.attribute_path()?;
            let (name, owner) = path.split_last()?;
            module.submodule(&owner.join(".")).ok()?.attribute(name).ok()
        }
    };
    content.as_ref().and_then(IValue::as_tensor).filter(|tensor| tensor.is_defined()).cloned()
}

/// Keeps the weights of a flat module's layers ([`prepare`](super::prepare::prepare)) in fewer bits, in place, where
/// `wanted` says so.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn quantize_weights(
    module: &Module,
    method: &str,
    form: WeightOnly,
    wanted: impl Fn(Node<'_>) -> bool,
) -> Result<Outcome> {
    let mut graph = module.graph(method)?;
    let mut outcome = Outcome::default();
    let mut writer = Writer::default();
    for node in graph.all_nodes() {
        let (Some((index, axis)), Some(layer)) = (weight_of(node), layer_of(node, "")) else { continue };
        if !wanted(node) {
            continue;
        }
        let weight = node.input(index).and_then(|weight| tensor_of(module, weight));
        let Some(weight) = weight else {
            outcome.float.push((layer, "its weight is computed when the model runs".to_owned()));
            continue;
        };
        if weight.shape().contains(&0) {
            outcome.float.push((layer, "its weight is empty".to_owned()));
            continue;
        }
        let values = match weight.dtype() {
            Some(DType::F32) => weight.to_f32_vec()?,
            other => {
                let dtype = other.map_or("of another type".to_owned(), |dtype| format!("{dtype:?}"));
                outcome.float.push((layer, format!("its weight is {dtype}; F32 is quantized")));
                continue;
            }
        };
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            outcome.float.push((layer, format!("its weight holds {value}")));
            continue;
        }
        let what = || format!("the weight of '{}' ({})", layer.path, layer.operator);
        let sizes = weight.shape();
        let bits = match (form, node.kind(), &sizes[..]) {
            (WeightOnly::Bits4 { group }, "aten::linear", [_, inputs])
                if *inputs > 0 && inputs.unsigned_abs().is_multiple_of(group as u64) =>
            {
                writer
                    .linear_4bit(node, &weight, || round_groups(&values, sizes[1] as usize, group), group)
                    .context(what)?;
                4
            }
            _ => {
                let dimensions: Vec<usize> = sizes.iter().map(|size| *size as usize).collect();
                let rounded = || round_channels(&values, Channels::of(&dimensions, axis));
                writer.eight_bits(node, &weight, axis, rounded).context(what)?;
                8
            }
        };
        *outcome.kept.entry(format!("{}_{bits}bit", layer.operator)).or_default() += 1;
    }
    graph.run(GeneralPass::DeadCodeElimination)?;
    Ok(outcome)
}
