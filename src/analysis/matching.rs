//! Which layer of the float model is which of the INT8 one. A saved INT8 file has lost the layers' paths: their order
//! and their weights tell.

use super::METHOD;
use super::layer::{LayerFigures, OutputFigures, OutputRange, WeightFigures};
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};
use crate::pass::layer_of;
use crate::pass::op_table::Operator;

/// Weights nearer than this are one weight before and after rounding: 8 bits leave 30 dB and more, different layers of
/// a shape are at 0 dB.
const SAME_WEIGHT_DB: f64 = 10.0;

/// Activations that conversion fuses with the layer before, or that saturation makes needless.
const ACTIVATIONS: [&str; 8] = [
    "aten::relu",
    "aten::relu_",
    "aten::relu6",
    "aten::hardtanh",
    "aten::hardtanh_",
    "aten::clamp",
    "aten::clamp_min",
    "quantized::relu6",
];

/// INT8 forms of recurrent layers.
const RECURRENT: [&str; 3] = ["aten::quantized_lstm", "aten::quantized_gru", "quantized::quantized_"];

#[derive(Debug, Default)]
pub(super) struct Matched {
    pub layers: Vec<LayerFigures>,
    /// The name of each layer's output in the float graph, and in the INT8 one.
    pub float_values: Vec<String>,
    pub int8_values: Vec<String>,
    pub unmatched: Vec<String>,
}

struct Candidate<'g> {
    node: Node<'g>,
    operator: &'static str,
    path: String,
    source: String,
    weight: Option<(Vec<i64>, Vec<f32>)>,
    taken: bool,
}

/// Pairs the layers of two flat modules.
pub(super) fn pair(float: &Module, int8: &Module) -> Result<Matched> {
    let (float_graph, int8_graph) = (float.graph(METHOD)?, int8.graph(METHOD)?);
    let mut candidates = Vec::new();
    for node in float_graph.nodes() {
        if let Some(layer) = layer_of(node, "") {
            let weight = float_weight(float, node)?;
            let (operator, path, source) = (layer.operator, layer.path, layer.source);
            candidates.push(Candidate { node, operator, path, source, weight, taken: false });
        }
    }
    let mut matched = Matched::default();
    for node in int8_graph.all_nodes() {
        let Some((operator, quantized)) = operator_of(node) else {
            if RECURRENT.iter().any(|kind| node.kind().starts_with(kind)) {
                matched.unmatched.push(format!("{}: recurrent layers are not compared", node.kind()));
            }
            continue;
        };
        if node.owning_block() != Some(int8_graph.block()) {
            matched.unmatched.push(format!("{} in a branch or a loop", node.kind()));
            continue;
        }
        let weight = if quantized { packed_weight(node, operator)? } else { float_weight(int8, node)? };
        let fits = |candidate: &Candidate<'_>| {
            let shape = |weight: &Option<(Vec<i64>, Vec<f32>)>| weight.as_ref().map(|(shape, _)| shape.clone());
            !candidate.taken && candidate.operator == operator && shape(&candidate.weight) == shape(&weight)
        };
        let figures = |candidate: &Candidate<'_>| match (&candidate.weight, &weight) {
            (Some((shape, float)), Some((_, int8))) => Some(WeightFigures::new(shape.clone(), float, int8)),
            _ => None,
        };
        let fitting: Vec<usize> = (0..candidates.len()).filter(|&index| fits(&candidates[index])).collect();
        let same = |index: &&usize| figures(&candidates[**index]).is_none_or(|weight| weight.sqnr_db > SAME_WEIGHT_DB);
        let Some(&chosen) = fitting.iter().find(same) else {
            let why = match fitting.is_empty() {
                true => "no layer of the float model has its kind and shape",
                false => "no layer of the float model has its weight; equalizing and smoothing change weights",
            };
            matched.unmatched.push(format!("{}: {why}", node.kind()));
            continue;
        };
        let weight = figures(&candidates[chosen]);
        let candidate = &mut candidates[chosen];
        candidate.taken = true;
        let (Some(mut reference), Some(output)) = (candidate.node.output(0), node.output(0)) else { continue };
        if !is_activated_later(output)
            && let Some(activation) = only_user(reference).filter(|user| ACTIVATIONS.contains(&user.kind()))
            && let Some(activated) = activation.output(0)
        {
            reference = activated;
        }
        matched.float_values.push(reference.debug_name());
        matched.int8_values.push(output.debug_name());
        matched.layers.push(LayerFigures {
            path: candidate.path.clone(),
            operator: candidate.operator.to_owned(),
            int8_operator: node.kind().to_owned(),
            source: candidate.source.clone(),
            quantized,
            range: if quantized { range_of(node) } else { None },
            weight,
            output: OutputFigures::default(),
        });
    }
    Ok(matched)
}

/// The report's name of a layer, and whether it runs in INT8.
fn operator_of(node: Node<'_>) -> Option<(&'static str, bool)> {
    const FAMILIES: [&str; 7] =
        ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv1d", "conv2d", "conv3d", "linear"];
    let Some(name) = node.kind().strip_prefix("quantized::") else {
        return layer_of(node, "").map(|layer| (layer.operator, false));
    };
    if name.contains("pack") {
        return None;
    }
    FAMILIES.into_iter().find(|family| name.starts_with(family)).map(|family| (family, true))
}

fn only_user(value: Value<'_>) -> Option<Node<'_>> {
    match value.uses().as_slice() {
        [only] => Some(only.user),
        _ => None,
    }
}

/// Whether an activation stands behind the INT8 model's layer: then it is not part of the layer.
fn is_activated_later(output: Value<'_>) -> bool {
    output.uses().iter().any(|each| match each.user.kind() {
        "aten::dequantize" | "aten::quantize_per_tensor" => each.user.output(0).is_some_and(is_activated_later),
        kind => ACTIVATIONS.contains(&kind),
    })
}

fn float_weight(module: &Module, layer: Node<'_>) -> Result<Option<(Vec<i64>, Vec<f32>)>> {
    let Some(index) = Operator::of(layer).and_then(|row| row.weight) else { return Ok(None) };
    let Some(weight) = Operator::argument(layer, index) else { return Ok(None) };
    let value = match (weight.constant(), weight.attribute_path().as_deref()) {
        (Some(value), _) => Some(value),
        (None, Some([path @ .., name])) => module.submodule(&path.join("."))?.attribute(name).ok(),
        _ => None,
    };
    Ok(match value.as_ref().and_then(IValue::as_tensor) {
        Some(tensor) => Some((tensor.shape(), tensor.to_f32_vec()?)),
        None => None,
    })
}

/// The weight that an INT8 layer was packed from, dequantized; `None` where libtorch does not unpack it.
fn packed_weight(layer: Node<'_>, operator: &str) -> Result<Option<(Vec<i64>, Vec<f32>)>> {
    let Some(packed) = layer.input(1).and_then(|value| value.constant()) else { return Ok(None) };
    let IValue::Other(object) = &packed else { return Ok(None) };
    let reader = Module::new("PackedWeight")?;
    reader.register_attribute("packed", &object.type_of()?, &packed)?;
    reader.define(&format!(
        "def weight(self) -> Tensor:\n    weight, bias = ops.quantized.{operator}_unpack(self.packed)\n    return weight"
    ))?;
    let weight = Tensor::try_from(reader.call::<IValue>("weight", &[])?)?;
    Ok(Some((weight.shape(), weight.to_f32_vec()?)))
}

/// The u8 grid of a static layer's output.
fn range_of(layer: Node<'_>) -> Option<OutputRange> {
    if layer.kind().contains("dynamic") || layer.kind().contains("fp32") {
        return None;
    }
    let scale = layer.input(2)?.constant()?.as_number()?;
    Some(OutputRange { scale, zero_point: layer.input(3)?.constant()?.as_int()? })
}
