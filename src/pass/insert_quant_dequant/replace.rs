//! Calls of observers become quantize and dequantize.

use super::embedding_bag;
use super::observed::{ObservedCode, Observer, QParams, dtype, is_placeholder};
use super::weights::{depends_on_arguments, is_weight};
use crate::error::Result;
use crate::ir::{DType, Graph, IValue, Node, Type, Value};
use crate::pass::QuantType;

/// Puts quantize and dequantize in the place of every observer of the code. The observers' calls stay, unused.
pub(in crate::pass) fn replace_observers(code: &ObservedCode, quant_type: QuantType) -> Result<()> {
    for observer in code.observers()? {
        let names = register_qparams(code, &observer)?;
        let at = observer.call.next();
        let original = observer.original()?;
        let quantization = quantize(code, &observer, &names, quant_type)?;
        observer.output().replace_all_uses_with(original)?;
        if let Some(dequantized) = quantization {
            let mut node = at;
            while node.prev() != observer.call {
                node = node.prev();
                node.copy_metadata(original.node())?;
            }
            original.replace_all_uses_after(dequantized.node(), dequantized)?;
        }
    }
    Ok(())
}

/// Keeps what the observer found in attributes of each module that runs the code; their names.
fn register_qparams(code: &ObservedCode, observer: &Observer<'_>) -> Result<Vec<String>> {
    let value = observer.original()?.debug_name();
    let mut found: Vec<QParams> = Vec::new();
    for (index, instance) in code.instances.iter().enumerate() {
        let qparams = QParams::of(&observer.of(instance)?);
        // A module on which the code is never called has no data; it shares the class, and with it the attributes.
        found.push(if index < code.called { qparams? } else { qparams.unwrap_or_else(|_| found[0].clone()) });
    }
    let mut names = Vec::new();
    for index in 0..found[0].attributes.len() {
        let (suffix, content) = &found[0].attributes[index];
        let free = |name: &String| code.instances.iter().all(|instance| !instance.has_attribute(name));
        let name = (0..).map(|number: usize| format!("{value}{suffix}_{number}")).find(free).unwrap_or_default();
        let ty = Type::parse(match content {
            IValue::Tensor(_) => "Tensor",
            IValue::Double(_) => "float",
            _ => "int",
        })?;
        for (instance, qparams) in code.instances.iter().zip(&found) {
            instance.register_attribute(&name, &ty, &qparams.attributes[index].1)?;
        }
        names.push(name);
    }
    Ok(names)
}

/// Inserts what takes the observer's place; the dequantized value, or `None` where what it watches stays in float.
fn quantize<'g>(
    code: &'g ObservedCode,
    observer: &Observer<'g>,
    names: &[String],
    quant_type: QuantType,
) -> Result<Option<Value<'g>>> {
    let (at, original) = (observer.call.next(), observer.original()?);
    let module = observer.first()?;
    if let Some(operator) = embedding_bag::operator(&module) {
        if is_weight(&code.instances[0], observer.output()) {
            embedding_bag::quantize(observer, &operator)?;
        }
        return Ok(None);
    }
    let per_channel = QParams::of(&module)?.per_channel;
    if quant_type == QuantType::Static {
        return match is_placeholder(&module) {
            true => Ok(None),
            false => quantize_and_dequantize(&code.graph, at, original, names, per_channel).map(Some),
        };
    }
    let is_weight = is_weight(&code.instances[0], observer.output());
    if is_weight && depends_on_arguments(original) {
        // Its observer could not be run beforehand.
        return Ok(None);
    }
    let dtype = dtype(&module)?;
    if dtype == DType::F16 as i64 {
        let node = code.graph.create("aten::_saturate_weight_to_fp16", &[original], 1)?.insert_before(at)?;
        return Ok(node.output(0));
    }
    if is_weight {
        return quantize_and_dequantize(&code.graph, at, original, names, per_channel).map(Some);
    }
    let quantized = [DType::QU8, DType::QI8].into_iter().any(|quantized| quantized as i64 == dtype);
    match names.last().filter(|_| quantized) {
        Some(name) => {
            let dtype = at.insert_get_attribute(code.graph.inputs()[0], name)?;
            dynamic_quantization(at, original, dtype).map(Some)
        }
        None => Ok(None),
    }
}

fn quantize_and_dequantize<'g>(
    graph: &'g Graph,
    at: Node<'g>,
    original: Value<'g>,
    names: &[String],
    per_channel: bool,
) -> Result<Value<'g>> {
    let mut inputs = vec![original];
    for name in names {
        inputs.push(at.insert_get_attribute(graph.inputs()[0], name)?);
    }
    let kind = if per_channel { "aten::quantize_per_channel" } else { "aten::quantize_per_tensor" };
    let quantized = insert(at, kind, &inputs)?;
    name_after(quantized, original, "quant")?;
    dequantize(at, quantized, original, 0)
}

/// Inserts `value` quantized with the range that it has when the model runs, and dequantized again.
pub(in crate::pass) fn dynamic_quantization<'g>(at: Node<'g>, value: Value<'g>, dtype: Value<'g>) -> Result<Value<'g>> {
    // FBGEMM's kernels overflow without it, QNNPACK's do not look at it.
    let reduce_range = at.insert_constant(true)?;
    let graph = at.graph();
    let choose = graph.create("aten::_choose_qparams_per_tensor", &[value, reduce_range], 2)?.insert_before(at)?;
    let [scale, zero_point] = [choose.outputs()[0], choose.outputs()[1]];
    scale.set_type(&Type::parse("float")?)?;
    name_after(scale, value, "scale")?;
    zero_point.set_type(&Type::parse("int")?)?;
    name_after(zero_point, value, "zero_point")?;
    let quantized = insert(at, "aten::quantize_per_tensor", &[value, scale, zero_point, dtype])?;
    name_after(quantized, value, "quant")?;
    dequantize(at, quantized, value, 0)
}

/// Inserts `quantized` dequantized, number `number` of those of `original`, before `at`.
pub(in crate::pass) fn dequantize<'g>(
    at: Node<'g>,
    quantized: Value<'g>,
    original: Value<'g>,
    number: usize,
) -> Result<Value<'g>> {
    let dequantized = insert(at, "aten::dequantize", &[quantized])?;
    name_after(dequantized, original, &format!("dequant.{number}"))?;
    dequantized.set_type(&original.type_of())?;
    Ok(dequantized)
}

/// Inserts a node with one output before `at`.
pub(in crate::pass) fn insert<'g>(at: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    Ok(at.graph().create(kind, inputs, 1)?.insert_before(at)?.outputs()[0])
}

pub(in crate::pass) fn name_after(value: Value<'_>, original: Value<'_>, what: &str) -> Result<()> {
    value.set_debug_name(&format!("{}.{what}", original.debug_name()))
}
