//! A layer of the INT8 model: what it computes, with which weight, and where its result is.

use super::layer::OutputRange;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};
use crate::pass::exact::{narrowed, trimmed};
use crate::pass::layer_of;
use crate::pass::op_table::Operator;
use crate::pass::weight_only::{Stored, kept_values};

/// A weight's sizes and its values in float, row-major.
pub(super) type Weight = (Vec<i64>, Vec<f32>);

/// What a native layer has taken in beside clamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakenIn {
    Nothing,
    /// The sum with another tensor.
    Residual,
    /// A function of one value.
    Table,
}

pub(super) struct Int8Layer<'g> {
    /// The report's name, e.g. `conv2d`.
    pub operator: String,
    /// What the model calls, e.g. `quantized::conv2d_relu`.
    pub calls: String,
    pub quantized: bool,
    pub weight: Option<Weight>,
    /// Bits of an element of the weight.
    pub weight_bits: u32,
    pub range: Option<OutputRange>,
    /// Its result is plain bytes, which stand for `range`.
    pub is_bytes: bool,
    pub taken_in: TakenIn,
    /// Its weight may be one that smoothing changed.
    pub may_be_smoothed: bool,
    pub result: Value<'g>,
    /// What it takes that is not constant.
    pub inputs: Vec<Value<'g>>,
}

/// Stock operators, by the first part of their names.
const FAMILIES: [&str; 7] =
    ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv1d", "conv2d", "conv3d", "linear"];

fn variable_inputs(node: Node<'_>) -> Vec<Value<'_>> {
    node.inputs().into_iter().filter(|input| !input.is_constant()).collect()
}

/// Whether the operator `quantized::` with this name has a float input that it quantizes itself, and a float result.
fn gives_float(name: &str) -> bool {
    name.ends_with("output_fp32")
}

/// The layer that `node` of `module` is, where it is one.
///
/// # Errors
/// Where a weight cannot be read.
pub(super) fn read<'g>(module: &Module, node: Node<'g>) -> Result<Option<Int8Layer<'g>>> {
    let Some(result) = node.output(0) else { return Ok(None) };
    let layer = Int8Layer {
        operator: String::new(),
        calls: node.kind().to_owned(),
        quantized: true,
        weight: None,
        weight_bits: 8,
        range: None,
        is_bytes: false,
        taken_in: TakenIn::Nothing,
        may_be_smoothed: false,
        result,
        inputs: variable_inputs(node),
    };
    if let Some(name) = node.kind().strip_prefix("quantized::") {
        let family = FAMILIES.into_iter().find(|family| name.starts_with(family) && !name.contains("pack"));
        let Some(family) = family else { return Ok(None) };
        return Ok(Some(Int8Layer {
            operator: family.to_owned(),
            weight: packed_weight(node, if gives_float(name) { 3 } else { 1 }, family)?,
            range: range_at(node, 2).filter(|_| !name.contains("dynamic") && !gives_float(name)),
            may_be_smoothed: gives_float(name),
            ..layer
        }));
    }
    if node.kind().starts_with("jitquant::") {
        return native(node, layer);
    }
    if is_scale_of_embedding(node) {
        return Ok(None);
    }
    let Some(known) = layer_of(node, "") else { return Ok(None) };
    if let Some(stored) = Stored::of(node) {
        let weight_bits = if stored.offsets.is_some() { 4 } else { 8 };
        return Ok(Some(Int8Layer {
            operator: known.operator.to_owned(),
            calls: format!("{} ({weight_bits}-bit weight)", node.kind()),
            weight: stored.values(module)?,
            weight_bits,
            result: stored.result,
            // The weight is made when the model runs: that belongs to the layer.
            inputs: [usize::from(known.operator == "embedding")]
                .iter()
                .filter_map(|index| node.input(*index))
                .collect(),
            ..layer
        }));
    }
    let weight = float_weight(module, node)?;
    Ok(Some(Int8Layer { operator: known.operator.to_owned(), quantized: false, weight, weight_bits: 32, ..layer }))
}

/// The look-up of the scales of an embedding in 8 bits belongs to the one of its numbers.
fn is_scale_of_embedding(node: Node<'_>) -> bool {
    let uses = node.output(0).map(|output| output.uses()).unwrap_or_default();
    node.kind() == "aten::embedding"
        && matches!(&uses[..], [only] if only.user.kind() == "aten::mul" && only.offset == 1
            && only.user.input(0).is_some_and(|numbers| Stored::of(numbers.node()).is_some()))
}

fn native<'g>(node: Node<'g>, layer: Int8Layer<'g>) -> Result<Option<Int8Layer<'g>>> {
    let name = node.kind().trim_start_matches("jitquant::");
    let is_layer = matches!(
        name,
        "linear" | "linear_float" | "linear_dynamic" | "linear_weight_only" | "conv" | "conv_float" | "conv_dynamic"
    );
    let Some(packed) = node.input(1).and_then(|packed| packed.constant()).filter(|_| is_layer) else { return Ok(None) };
    let unpack = match name {
        "linear_weight_only" => "linear_weight_only_unpack",
        _ if name.starts_with("linear") => "linear_unpack",
        _ => "conv_unpack",
    };
    let IValue::Tuple(parts) = unpacked(&packed, &format!("jitquant.{unpack}"), "")? else { return Ok(None) };
    let is_transposed = matches!(parts.last(), Some(IValue::Bool(true)));
    let tensor = |index: usize| parts.get(index).and_then(IValue::as_tensor);
    let (weight, bits) = match (tensor(0), tensor(1), tensor(2)) {
        (Some(weight), Some(scales), offsets) if name == "linear_weight_only" => {
            (kept_values(weight, scales, offsets, false)?, if offsets.is_some() { 4 } else { 8 })
        }
        (Some(weight), Some(scales), Some(zero_points)) => {
            (plain_weight(weight, scales, zero_points, is_transposed)?, 8)
        }
        _ => (None, 8),
    };
    let dimensions = weight.as_ref().map_or(0, |(shape, _)| shape.len().saturating_sub(2));
    let operator = match (name.starts_with("linear"), is_transposed) {
        (true, _) => "linear".to_owned(),
        (false, true) => format!("conv_transpose{dimensions}d"),
        (false, false) => format!("conv{dimensions}d"),
    };
    let is_bytes = matches!(name, "linear" | "conv");
    let is_given = |index: usize| {
        is_bytes && node.input(index).is_some_and(|value| !matches!(value.constant(), Some(IValue::None)))
    };
    let taken_in = match (is_given(8), is_given(11)) {
        (_, true) => TakenIn::Table,
        (true, _) => TakenIn::Residual,
        _ => TakenIn::Nothing,
    };
    let range = if is_bytes { range_at(node, 4) } else { None };
    Ok(Some(Int8Layer { operator, weight, weight_bits: bits, range, is_bytes, taken_in, ..layer }))
}

/// Scale and zero point at input `index` of a node and the next one.
fn range_at(node: Node<'_>, index: usize) -> Option<OutputRange> {
    let scale = node.input(index)?.constant()?.as_number()?;
    Some(OutputRange { scale, zero_point: node.input(index + 1)?.constant()?.as_int()? })
}

/// What an unpacking operator gives.
fn unpacked(packed: &IValue, operator: &str, pick: &str) -> Result<IValue> {
    let IValue::Other(object) = packed else { return Ok(IValue::None) };
    let reader = Module::new("PackedWeight")?;
    reader.register_attribute("packed", &object.type_of()?, packed)?;
    reader.define(&format!("def parts(self):\n    return ops.{operator}(self.packed){pick}"))?;
    reader.call::<IValue>("parts", &[])
}

/// The weight that a stock INT8 layer was packed from, its input `index`, dequantized; `None` where libtorch does not unpack
/// it.
fn packed_weight(layer: Node<'_>, index: usize, operator: &str) -> Result<Option<Weight>> {
    let Some(packed) = layer.input(index).and_then(|value| value.constant()) else { return Ok(None) };
    match unpacked(&packed, &format!("quantized.{operator}_unpack"), "[0]")? {
        IValue::Tensor(weight) => {
            let (sizes, values) = (weight.shape(), weight.to_f32_vec()?);
            // Zeros that are there for an engine's sake are not the layer's.
            let own = match operator {
                "linear" => None,
                _ if operator.starts_with("conv_transpose") => trimmed(&sizes, &values),
                _ => narrowed(&sizes, &values),
            };
            Ok(Some(own.unwrap_or((sizes, values))))
        }
        _ => Ok(None),
    }
}

/// A weight of plain int8, dequantized.
fn plain_weight(weight: &Tensor, scales: &Tensor, zero_points: &Tensor, transposed: bool) -> Result<Option<Weight>> {
    let shape = weight.shape();
    let axis = usize::from(transposed);
    let inner = shape.iter().skip(axis + 1).product::<i64>().max(1) as usize;
    let (scales, zeros) = (scales.to_f32_vec()?, zero_points.to_f32_vec()?);
    let fits = scales.len() == 1 || shape.get(axis) == Some(&(scales.len() as i64));
    if scales.len() != zeros.len() || !fits {
        return Ok(None);
    }
    let value = |(i, q): (usize, f32)| {
        let channel = i / inner % scales.len();
        (q - zeros[channel]) * scales[channel]
    };
    Ok(Some((shape, weight.to_f32_vec()?.into_iter().enumerate().map(value).collect())))
}

/// The weight of a float layer, where it is kept.
pub(super) fn float_weight(module: &Module, layer: Node<'_>) -> Result<Option<Weight>> {
    let index = match layer.kind() {
        "aten::embedding" => Some(0),
        _ => Operator::of(layer).and_then(|row| row.weight),
    };
    let Some(weight) = index.and_then(|index| Operator::argument(layer, index)) else { return Ok(None) };
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
