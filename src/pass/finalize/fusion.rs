//! Operators between dequantize and quantize become quantized operators: `QuantFusion`.
//!
//! What becomes of an operator is in its row of `op_table`. A fusion takes nothing away from anybody else: what it makes
//! superfluous is used once, and all of it stands in one block.

use super::one_dimension::as_image;
use crate::error::Result;
use crate::ir::{Graph, IValue, Node, Value};
use crate::pass::QuantType;
use crate::pass::insert_observers::facts::is_scalar;
use crate::pass::op_table::{Conditions, Form, FormInput, Op, Operator, ReluFusion, ResultQParams};

/// Puts quantized operators in the place of float ones: static quantization's between dequantize and quantize, dynamic
/// quantization's where an input is quantized as it comes or a weight is quantized.
///
/// # Errors
/// Where libtorch refuses a change of the graph.
pub fn quant_fusion(graph: &Graph, quant_type: QuantType) -> Result<()> {
    quant_fusion_by(graph, quant_type, Conditions::Ignored)
}

/// As [`quant_fusion`]; where conditions are asked, for the arguments alone for which operators have quantized forms.
pub(super) fn quant_fusion_by(graph: &Graph, quant_type: QuantType, conditions: Conditions) -> Result<()> {
    for node in graph.all_nodes() {
        if node.is_destroyed() {
            continue;
        }
        match quant_type {
            QuantType::Static if node.kind() == "aten::quantize_per_tensor" => {
                if !fuse_forms(node, conditions)? {
                    fuse_itself(node, conditions)?;
                }
            }
            QuantType::Static => {}
            QuantType::Dynamic => fuse_dynamic(node)?,
        }
    }
    Ok(())
}

/// The node that computes `value` for one user alone, in the block of `place`.
fn alone<'g>(value: Value<'g>, place: Node<'g>) -> Option<Node<'g>> {
    (value.uses().len() == 1 && value.node().owning_block() == place.owning_block()).then(|| value.node())
}

/// What `value` was before it was dequantized for this user alone.
fn quantized<'g>(value: Value<'g>, place: Node<'g>) -> Option<Value<'g>> {
    alone(value, place).filter(|node| node.kind() == "aten::dequantize")?.input(0)
}

fn is_relu_operator(node: Node<'_>) -> bool {
    Operator::of(node).is_some_and(|row| row.relu == ReluFusion::Relu && matches!(row.op, Op::Node(_)))
}

/// Destroys the operators that were replaced, and of what they took the quantization and constants that nobody else
/// uses.
fn drop_replaced(replaced: &[Node<'_>]) -> Result<()> {
    let mut inputs = Vec::new();
    for node in replaced {
        inputs.extend(node.inputs().into_iter().map(Value::node));
        node.destroy()?;
    }
    while let Some(node) = inputs.pop() {
        let is_unused = node.outputs().into_iter().all(|output| !output.is_used());
        if is_unused && is_quantization(node.kind()) && !node.is_destroyed() {
            inputs.extend(node.inputs().into_iter().map(Value::node));
            node.destroy()?;
        }
    }
    Ok(())
}

fn is_quantization(kind: &str) -> bool {
    const KINDS: &[&str] = &[
        "aten::dequantize",
        "aten::quantize_per_tensor",
        "aten::_choose_qparams_per_tensor",
        "aten::q_scale",
        "aten::q_zero_point",
        "aten::scalar_tensor",
        "aten::item",
        "prim::dtype",
        "prim::Constant",
        "prim::GetAttr",
    ];
    KINDS.contains(&kind) || (kind.starts_with("quantized::") && kind.contains("_unpack"))
}

/// Fuses what the quantize takes into one of the forms of its operator; whether it did.
fn fuse_forms(quantize: Node<'_>, conditions: Conditions) -> Result<bool> {
    let Some(result) = quantize.inputs().first().and_then(|value| alone(*value, quantize)) else { return Ok(false) };
    let mut candidates = vec![(result, false)];
    if is_relu_operator(result)
        && let Some(before) = result.input(0).and_then(|value| alone(value, quantize))
    {
        candidates.push((before, true));
    }
    for (float, has_relu) in candidates {
        let row = Operator::of(float).filter(|row| row.has_forms(float, conditions));
        for form in row.map_or(&[][..], |row| row.forms) {
            if let Some(inputs) = form_inputs(form, float, has_relu, quantize) {
                let kind = if has_relu { form.with_relu } else { Some(form.kind) };
                replace(quantize, float, kind.unwrap_or(form.kind), &inputs, form)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The inputs of the quantized operator, where the form fits.
fn form_inputs<'g>(form: &Form, float: Node<'g>, has_relu: bool, quantize: Node<'g>) -> Option<Vec<Value<'g>>> {
    let of_input = form.qparams == ResultQParams::OfInput;
    let relu_fits = !has_relu || (form.with_relu.is_some() && !of_input);
    let unit = |index| matches!(float.input(index).and_then(Value::constant), Some(IValue::Int(1)));
    let number = |index| float.input(index).is_some_and(is_scalar);
    if !relu_fits || !form.unit_argument.is_none_or(unit) || !form.scalar_argument.is_none_or(number) {
        return None;
    }
    let input = |input: &FormInput| match *input {
        FormInput::Quantized(index) => quantized(float.input(index)?, float),
        FormInput::Same(index) => float.input(index),
        FormInput::Packed => packed(float),
        FormInput::Scale => quantize.input(1),
        FormInput::ZeroPoint => quantize.input(2),
    };
    let inputs: Option<Vec<_>> = form.inputs.iter().map(input).collect();
    inputs.filter(|inputs| !of_input || has_qparams_of(quantize, inputs[0]))
}

/// The packed parameters that the operator's weight and bias were unpacked from.
fn packed(float: Node<'_>) -> Option<Value<'_>> {
    let row = Operator::of(float)?;
    let weight = quantized(float.input(row.weight?)?, float)?;
    unpacked(float, weight, row.packing?.unpack)
}

/// The packed parameters that `weight` and the operator's bias come from by `unpack`, for this operator alone.
fn unpacked<'g>(float: Node<'g>, weight: Value<'g>, unpack: &str) -> Option<Value<'g>> {
    let unpacking = alone(weight, float).filter(|node| node.kind() == unpack)?;
    let bias = float.input(Operator::of(float)?.bias?)?;
    let fits = unpacking.outputs() == [weight, bias] && bias.uses().len() == 1;
    fits.then(|| unpacking.input(0)).flatten()
}

/// Whether it quantizes with the parameters that `source` has.
fn has_qparams_of(quantize: Node<'_>, source: Value<'_>) -> bool {
    let kinds = ["aten::q_scale", "aten::q_zero_point", "prim::dtype"];
    std::iter::zip(kinds, &quantize.inputs()[1..])
        .all(|(kind, qparam)| qparam.node().kind() == kind && qparam.node().input(0) == Some(source))
}

fn replace<'g>(quantize: Node<'g>, float: Node<'g>, kind: &str, inputs: &[Value<'g>], form: &Form) -> Result<()> {
    let mut numbers = inputs.to_vec();
    for (value, input) in numbers.iter_mut().zip(form.inputs) {
        // Parameters that are calculated while the code runs are tensors.
        let conversion = match input {
            FormInput::Scale => "aten::Float",
            FormInput::ZeroPoint => "aten::Int",
            _ => continue,
        };
        if value.type_of().is_tensor() {
            *value = quantize.insert_operator(conversion, &[*value])?;
        }
    }
    let fused = quantize.graph().create(kind, &numbers, 1)?.insert_before(quantize)?;
    fused.copy_metadata(float)?;
    let result = fused.outputs()[0];
    quantize.outputs()[0].replace_all_uses_with(result)?;
    let before = quantize.inputs()[0].node();
    let replaced = if before == float { vec![quantize, float] } else { vec![quantize, before, float] };
    drop_replaced(&replaced)?;
    match form.with_relu.filter(|_| form.qparams == ResultQParams::OfInput) {
        Some(kind) => take_in_relu(fused, kind),
        None => Ok(()),
    }
}

/// A relu behind an operator that keeps its input's parameters works on quantized tensors already.
fn take_in_relu(fused: Node<'_>, kind: &str) -> Result<()> {
    let [place] = fused.outputs()[0].uses()[..] else { return Ok(()) };
    let relu = place.user;
    if is_relu_operator(relu) && relu.owning_block() == fused.owning_block() {
        let with_relu = fused.graph().create(kind, &fused.inputs(), 1)?.insert_before(relu)?;
        with_relu.copy_metadata(fused)?;
        relu.outputs()[0].replace_all_uses_with(with_relu.outputs()[0])?;
        relu.destroy()?;
        fused.destroy()?;
    }
    Ok(())
}

/// An operator that takes quantized tensors itself needs neither the dequantize before it nor the quantize behind it.
fn fuse_itself(quantize: Node<'_>, conditions: Conditions) -> Result<()> {
    let Some(float) = alone(quantize.inputs()[0], quantize) else { return Ok(()) };
    let passes_on = |row: &&Operator| float.output(0).is_some_and(|output| row.passes_on(output, conditions));
    let Some(row) = Operator::of(float).filter(passes_on) else { return Ok(()) };
    let Some(source) = float.input(0).and_then(|value| quantized(value, float)) else { return Ok(()) };
    if let Some(kind) = row.runs_as_image.filter(|_| has_qparams_of(quantize, source)) {
        if let Some(result) = as_image(float, kind, source)? {
            quantize.outputs()[0].replace_all_uses_with(result)?;
            drop_replaced(&[quantize, float])?;
        }
        return Ok(());
    }
    let Some(kind) = row.runs_quantized else { return Ok(()) };
    let constant = |index| quantize.input(index)?.constant()?.as_number();
    let fits = match row.fixed_qparams {
        Some(fixed) => constant(1) == Some(f64::from(fixed.scale)) && constant(2) == Some(fixed.zero_point as f64),
        None => row.is_clamp || has_qparams_of(quantize, source),
    };
    if !fits {
        return Ok(());
    }
    let mut inputs = float.inputs();
    inputs[0] = source;
    for bound in inputs.iter_mut().skip(1).take(if row.is_clamp { 2 } else { 0 }) {
        *bound = rounded_bound(*bound).unwrap_or(*bound);
    }
    let fused = quantize.graph().create(kind, &inputs, 1)?.insert_before(float)?;
    fused.copy_metadata(float)?;
    quantize.outputs()[0].replace_all_uses_with(fused.outputs()[0])?;
    drop_replaced(&[quantize, float])
}

/// The number that a clamp's bound was before it was quantized and dequantized.
fn rounded_bound(bound: Value<'_>) -> Option<Value<'_>> {
    let mut node = bound.node();
    for kind in ["aten::item", "aten::dequantize", "aten::quantize_per_tensor", "aten::scalar_tensor"] {
        if node.kind() != kind {
            return None;
        }
        let input = node.input(0)?;
        if kind == "aten::scalar_tensor" {
            return Some(input);
        }
        node = input.node();
    }
    None
}

fn fuse_dynamic(float: Node<'_>) -> Result<()> {
    let Some(row) = Operator::of(float) else { return Ok(()) };
    let (Some(form), Some(packing), Some(weight)) = (row.dynamic, row.packing, row.weight) else { return Ok(()) };
    let (Some(input), Some(weight)) = (float.input(0), float.input(weight)) else { return Ok(()) };
    if let Some(params) = packing.half.and_then(|(_, unpack)| unpacked(float, weight, unpack)) {
        return replace_dynamic(float, form.half, &[input, params]);
    }
    let Some(params) = packed(float) else { return Ok(()) };
    match quantized_as_it_comes(input, float) {
        Some([value, reduce_range]) => replace_dynamic(float, form.kind, &[value, params, reduce_range]),
        // FBGEMM's kernels overflow without it, QNNPACK's do not look at it.
        None => replace_dynamic(float, form.kind, &[input, params, float.insert_constant(true)?]),
    }
}

/// The value that is quantized with the range it has when the model runs, and whether one bit less is used.
fn quantized_as_it_comes<'g>(value: Value<'g>, place: Node<'g>) -> Option<[Value<'g>; 2]> {
    let quantize = alone(quantized(value, place)?, place)?;
    let choose = quantize.input(1)?.node();
    let fits = quantize.kind() == "aten::quantize_per_tensor"
        && choose.kind() == "aten::_choose_qparams_per_tensor"
        && quantize.input(0) == choose.input(0);
    fits.then(|| Some([choose.input(0)?, choose.input(1)?])).flatten()
}

fn replace_dynamic<'g>(float: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<()> {
    let fused = float.graph().create(kind, inputs, 1)?.insert_before(float)?;
    fused.copy_metadata(float)?;
    float.outputs()[0].replace_all_uses_with(fused.outputs()[0])?;
    drop_replaced(&[float])
}
