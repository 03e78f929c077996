//! Linear layers whose result is wanted in float give it so.

use crate::error::Result;
use crate::ir::{Graph, Node, Value};
use crate::pass::op_table::{Operator, PassThrough};

/// The operators, and those that do the same with a float input and a float result.
const FORMS: [(&str, &str); 2] = [
    ("quantized::linear", "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"),
    ("quantized::linear_relu", "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32"),
];

/// Has each quantized linear layer of an INT8 graph whose result is dequantized at once give a float result instead, which
/// has not been rounded to 8 bits; how many. A classifier's last layer is such a one, and to round the scores of a
/// thousand classes to 256 steps often loses more than all the rest of the network.
///
/// ```text
/// dequantize(quantized::linear(x, w, scale, zero_point))
///     -> quantized::linear_with_input_q_dq_qweight_dq_output_fp32(dequantize(x), x's scale, x's zero point, w)
/// ```
///
/// The layer quantizes its input itself, to the numbers that it had. The scale that calibration found for its result is
/// not used any more. The operator is there wherever libtorch packs weights for FBGEMM, which it does by default on x86.
///
/// # Errors
/// Where libtorch refuses the operator.
pub fn float_results(graph: &Graph) -> Result<usize> {
    let mut changed = 0;
    for layer in graph.all_nodes() {
        let Some((_, form)) = FORMS.iter().find(|(kind, _)| *kind == layer.kind()) else { continue };
        let (&[x, packed, ..], [result]) = (&layer.inputs()[..], &layer.outputs()[..]) else { continue };
        let consumers: Vec<_> = result.uses().into_iter().map(|place| place.user).collect();
        if consumers.is_empty() || consumers.iter().any(|consumer| consumer.kind() != "aten::dequantize") {
            continue;
        }
        let (input, [scale, zero_point]) = float_input(layer, x)?;
        let float = insert(layer, form, &[input, scale, zero_point, packed])?;
        for consumer in consumers {
            consumer.outputs()[0].replace_all_uses_with(float)?;
            consumer.destroy()?;
        }
        layer.destroy()?;
        changed += 1;
    }
    Ok(changed)
}

/// A float tensor that quantizes to `x`, before `layer`; with the scale and zero point.
fn float_input<'g>(layer: Node<'g>, x: Value<'g>) -> Result<(Value<'g>, [Value<'g>; 2])> {
    if x.node().kind() == "aten::quantize_per_tensor"
        && let Some(known) = parameters(x)
    {
        return Ok((x.node().inputs()[0], known));
    }
    let parameters = match parameters(x) {
        Some(known) => known,
        None => [insert(layer, "aten::q_scale", &[x])?, insert(layer, "aten::q_zero_point", &[x])?],
    };
    Ok((insert(layer, "aten::dequantize", &[x])?, parameters))
}

/// An operator before `layer` that belongs to it.
fn insert<'g>(layer: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = layer.insert_operator(kind, inputs)?;
    value.node().copy_metadata(layer)?;
    Ok(value)
}

/// Scale and zero point of a quantized tensor, where the operator that made it, or that made what it was moved from, has them
/// as constant arguments.
pub(super) fn parameters(x: Value<'_>) -> Option<[Value<'_>; 2]> {
    let node = x.node();
    let named = |name: &str| {
        let value = node.named_input(&format!("output_{name}")).or_else(|| node.named_input(name))?;
        value.constant()?.as_number().map(|_| value)
    };
    if node.kind().starts_with("quantized::") || node.kind() == "aten::quantize_per_tensor" {
        return Some([named("scale")?, named("zero_point")?]);
    }
    let row = Operator::of(node)?;
    let is_first = x.offset() == 0 || row.pass_through != PassThrough::FirstOutput;
    let keeps = row.pass_through.is_of_first() && is_first && row.fixed_qparams.is_none();
    if keeps { parameters(node.input(0)?) } else { None }
}
