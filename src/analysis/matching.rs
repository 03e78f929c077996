//! Which layer of the float model is which of the INT8 one. A saved INT8 file has lost the layers' paths: their order
//! and their weights tell.

use std::collections::HashMap;

use super::int8_layer::{Int8Layer, TakenIn, Weight, float_weight, read};
use super::layer::{FloatNorm, LayerFigures, OutputFigures, WeightFigures};
use super::outline::{OutlineNode, outline};
use super::timing::Span;
use crate::error::Result;
use crate::ir::{FORWARD, Graph, Module, Node, Value};
use crate::pass::{layer_of, source_of};

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
    /// Where each layer is in both graphs.
    pub places: Vec<Place>,
    pub unmatched: Vec<String>,
    pub float_norms: Vec<FloatNorm>,
    /// The float model's layers and what joins them.
    pub outline: Vec<OutlineNode>,
}

/// A layer in both graphs.
#[derive(Debug)]
pub(super) struct Place {
    pub float: Span,
    pub int8: Span,
    /// The INT8 result is plain bytes, which stand for the layer's range.
    pub is_bytes: bool,
}

struct Candidate<'g> {
    node: Node<'g>,
    operator: &'static str,
    path: String,
    source: String,
    weight: Option<Weight>,
    taken: bool,
}

/// Pairs the layers of two flat modules.
pub(super) fn pair(float: &Module, int8: &Module) -> Result<Matched> {
    let (float_graph, int8_graph) = (float.graph(FORWARD)?, int8.graph(FORWARD)?);
    let mut candidates = Vec::new();
    for node in float_graph.nodes() {
        if let Some(layer) = layer_of(node, "") {
            let weight = float_weight(float, node)?;
            let (operator, path, source) = (layer.operator, layer.path, layer.source);
            candidates.push(Candidate { node, operator, path, source, weight, taken: false });
        }
    }
    let mut matched = Matched::default();
    let mut positions = HashMap::new();
    for node in int8_graph.all_nodes() {
        let Some(layer) = read(int8, node)? else {
            if RECURRENT.iter().any(|kind| node.kind().starts_with(kind)) {
                matched.unmatched.push(format!("{}: recurrent layers are not compared", node.kind()));
            }
            continue;
        };
        let refused = |why: &str| format!("{}: {why}", layer.calls);
        if node.owning_block() != Some(int8_graph.block()) {
            matched.unmatched.push(refused("it stands in a branch or a loop"));
            continue;
        }
        let (chosen, weight) = match partner(&candidates, &layer) {
            Ok(found) => found,
            Err(why) => {
                matched.unmatched.push(refused(why));
                continue;
            }
        };
        let candidate = &mut candidates[chosen];
        candidate.taken = true;
        let Some(reference) = candidate.node.output(0).and_then(|output| same_result(output, &layer)) else {
            matched
                .unmatched
                .push(format!("{} ({}): what it has taken in is not in the float model", layer.calls, candidate.path));
            continue;
        };
        positions.insert(candidate.node, matched.layers.len());
        matched.places.push(Place {
            float: Span::new(reference, &float_inputs(candidate.node, reference)),
            int8: Span::new(layer.result, &layer.inputs),
            is_bytes: layer.is_bytes,
        });
        let elements = weight.as_ref().map(|weight| weight.shape.iter().product::<i64>().unsigned_abs());
        matched.layers.push(LayerFigures {
            path: candidate.path.clone(),
            operator: candidate.operator.to_owned(),
            int8_operator: layer.calls,
            source: candidate.source.clone(),
            quantized: layer.quantized,
            range: layer.range,
            weight_bytes: elements.map(|count| (count * 4, count * u64::from(layer.weight_bits) / 8)),
            weight,
            output: OutputFigures::default(),
        });
    }
    matched.outline = outline(&float_graph, &positions);
    matched.float_norms = float_norms(&float_graph, &int8_graph);
    Ok(matched)
}

/// The float layer that `layer` was made of, and what rounding did to its weight; why there is none.
fn partner(
    candidates: &[Candidate<'_>],
    layer: &Int8Layer<'_>,
) -> std::result::Result<(usize, Option<WeightFigures>), &'static str> {
    let shape = |weight: &Option<Weight>| weight.as_ref().map(|(shape, _)| shape.clone());
    let fits = |candidate: &Candidate<'_>| {
        !candidate.taken && candidate.operator == layer.operator && shape(&candidate.weight) == shape(&layer.weight)
    };
    let figures = |candidate: &Candidate<'_>| match (&candidate.weight, &layer.weight) {
        (Some((shape, float)), Some((_, int8))) => Some(WeightFigures::new(shape.clone(), float, int8)),
        _ => None,
    };
    let mut fitting = (0..candidates.len()).filter(|&index| fits(&candidates[index])).peekable();
    if fitting.peek().is_none() {
        return Err("no layer of the float model has its kind and shape");
    }
    let same = |weight: &Option<WeightFigures>| weight.as_ref().is_none_or(|weight| weight.sqnr_db > SAME_WEIGHT_DB);
    let first = fitting.peek().copied();
    let found = fitting.map(|index| (index, figures(&candidates[index]))).find(|(_, weight)| same(weight));
    let by_order = first.filter(|_| layer.may_be_smoothed).map(|index| (index, None));
    found.or(by_order).ok_or("no layer of the float model has its weight; equalizing and smoothing change weights")
}

/// The float value that is the result of the INT8 layer: behind what that has taken in.
fn same_result<'g>(output: Value<'g>, layer: &Int8Layer<'_>) -> Option<Value<'g>> {
    let mut reference = output;
    match layer.taken_in {
        TakenIn::Nothing => {}
        TakenIn::Residual => {
            let sum = only_user(reference).filter(|user| matches!(user.kind(), "aten::add" | "aten::add_"))?;
            reference = sum.output(0)?;
        }
        TakenIn::Table => return None,
    }
    if !is_activated_later(layer.result)
        && let Some(activation) = only_user(reference).filter(|user| ACTIVATIONS.contains(&user.kind()))
        && let Some(activated) = activation.output(0)
    {
        reference = activated;
    }
    Some(reference)
}

/// The norms that the INT8 model computes in float; with their paths where the float model has as many of the kind.
fn float_norms(float: &Graph, int8: &Graph) -> Vec<FloatNorm> {
    const NORMS: [&str; 4] = ["aten::layer_norm", "aten::group_norm", "aten::instance_norm", "aten::batch_norm"];
    let norms = |graph: &Graph, kind: &str| -> Vec<FloatNorm> {
        let nodes = graph.all_nodes().into_iter().filter(|node| node.kind() == kind);
        let norm = |node: Node<'_>| FloatNorm {
            path: node.scope().unwrap_or_default(),
            operator: kind.trim_start_matches("aten::").to_owned(),
            source: source_of(node),
        };
        nodes.map(norm).collect()
    };
    let of_kind = |kind: &str| {
        let (in_float, in_int8) = (norms(float, kind), norms(int8, kind));
        if in_float.len() == in_int8.len() { in_float } else { in_int8 }
    };
    NORMS.into_iter().flat_map(of_kind).collect()
}

/// What a float layer takes that is not constant: its input, and what is added to it.
fn float_inputs<'g>(layer: Node<'g>, result: Value<'g>) -> Vec<Value<'g>> {
    let is_kept = |value: Value<'_>| value.is_constant() || value.attribute_path().is_some();
    let own = layer.outputs();
    let between = [Some(result.node()), result.node().input(0).map(|value| value.node())].into_iter().flatten();
    let mut inputs: Vec<_> = layer.inputs();
    inputs.extend(between.filter(|node| node.kind().starts_with("aten::add")).flat_map(|node| node.inputs()));
    inputs.retain(|value| !is_kept(*value) && !own.contains(value));
    inputs
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
        "aten::dequantize"
        | "aten::quantize_per_tensor"
        | "jitquant::dequantize"
        | "jitquant::quantize"
        | "jitquant::requantize" => each.user.output(0).is_some_and(is_activated_later),
        "jitquant::clamp" => true,
        kind => ACTIVATIONS.contains(&kind),
    })
}
