//! Quantization is handed on by operators that need no range of their own.
//!
//! One that only moves elements takes the quantized tensor itself: the dequantize before it moves behind it. One that
//! computes within its input's range is followed by a quantize with the input's parameters, or with its own where it has
//! fixed ones, so that fusion finds it between dequantize and quantize.

use super::replace::{insert, name_after};
use super::replicate::dequantize_uses;
use crate::error::Result;
use crate::ir::{Block, DType, Graph, IValue, Node, Type, Value};
use crate::pass::insert_observers::facts::{is_scalar, passes_from};
use crate::pass::op_table::{Conditions, FixedQParams, Op, Operator, PassThrough, Propagation};
use crate::pass::source_of;

/// How an operator hands quantization on.
enum Handling {
    /// It is quantized like its input.
    LikeInput,
    /// It has parameters of its own.
    Fixed(FixedQParams),
    /// It moves elements, or does not hand it on.
    Moves,
}

fn handling(node: Node<'_>, conditions: Conditions) -> Handling {
    let passes_on = |row: &Operator| node.output(0).is_some_and(|output| row.passes_on(output, conditions));
    match Operator::of(node) {
        Some(row) if !passes_on(row) => Handling::Moves,
        Some(Operator { fixed_qparams: Some(qparams), .. }) => Handling::Fixed(*qparams),
        Some(Operator { pass_through: PassThrough::Value, op: Op::Node(_), .. }) => Handling::LikeInput,
        Some(row) if has_scalar_operand(row, node) => Handling::LikeInput,
        _ => Handling::Moves,
    }
}

fn has_scalar_operand(row: &Operator, node: Node<'_>) -> bool {
    row.propagation == Some(Propagation::BothArguments) && node.input(1).is_some_and(is_scalar)
}

/// Hands quantization on through the block and the blocks within.
pub(super) fn propagate(block: Block<'_>, debug: bool, conditions: Conditions) -> Result<()> {
    for node in block.nodes() {
        for inner in node.blocks() {
            propagate(inner, debug, conditions)?;
        }
        match handling(node, conditions) {
            Handling::LikeInput => follow_input(node, debug, conditions)?,
            Handling::Fixed(qparams) => {
                for output in node.outputs() {
                    if let Some(source) = dequantized_source(output, conditions) {
                        requantize(output, source, Some(qparams))?;
                    }
                }
            }
            Handling::Moves => move_dequantize(node, conditions)?,
        }
    }
    Ok(())
}

fn is_dequantized(value: Value<'_>) -> bool {
    value.node().kind() == "aten::dequantize"
}

/// The quantized value that `output` is computed from, where it follows from a dequantized one alone.
fn dequantized_source(output: Value<'_>, conditions: Conditions) -> Option<Value<'_>> {
    match passes_from(output, conditions)[..] {
        [input] if is_dequantized(input) => input.node().input(0),
        _ => None,
    }
}

fn follow_input(node: Node<'_>, debug: bool, conditions: Conditions) -> Result<()> {
    let row = Operator::of(node);
    for output in node.outputs() {
        let Some(source) = dequantized_source(output, conditions) else { continue };
        requantize(output, source, None)?;
        if row.is_some_and(|row| row.is_clamp) {
            for bound in [1, 2].into_iter().filter_map(|index| node.input(index)) {
                requantize_bound(bound, source)?;
            }
        }
        if debug && row.is_some_and(|row| has_scalar_operand(row, node)) {
            tracing::warn!(
                "{} with a number ({}) has other quantization parameters in INT8 than this model shows",
                node.kind(),
                source_of(node)
            );
        }
    }
    Ok(())
}

/// Quantizes `value` where it is used later: with the parameters of `source`, or with fixed ones; the dequantized
/// values that its uses take then.
fn requantize<'g>(value: Value<'g>, source: Value<'g>, fixed: Option<FixedQParams>) -> Result<Vec<Value<'g>>> {
    let (computed, known) = (value.node(), source.node());
    let at = if computed.is_before(known)? { known.next() } else { computed.next() };
    let qparams = match fixed {
        Some(FixedQParams { scale, zero_point }) => [
            at.insert_constant(f64::from(scale))?,
            at.insert_constant(zero_point)?,
            at.insert_constant(DType::QU8 as i64)?,
        ],
        None => {
            let ask = |kind: &str, ty: &str, what: &str| {
                let qparam = insert(at, kind, &[source])?;
                name_after(qparam, source, what)?;
                qparam.set_type(&Type::parse(ty)?)?;
                Ok::<_, crate::Error>(qparam)
            };
            [
                ask("aten::q_scale", "float", "q_scale")?,
                ask("aten::q_zero_point", "int", "q_zero_point")?,
                ask("prim::dtype", "int", "dtype")?,
            ]
        }
    };
    let [scale, zero_point, dtype] = qparams;
    let quantized = insert(at, "aten::quantize_per_tensor", &[value, scale, zero_point, dtype])?;
    name_after(quantized, value, "quant")?;
    value.replace_all_uses_after(quantized.node(), quantized)?;
    dequantize_uses(quantized, quantized)
}

/// Rounds a clamp's bound, a number, to what the quantized clamp can do.
fn requantize_bound<'g>(bound: Value<'g>, source: Value<'g>) -> Result<()> {
    if matches!(bound.constant(), Some(IValue::None)) {
        return Ok(());
    }
    let at = bound.node().next();
    let float = at.insert_constant(DType::F32 as i64)?;
    let none = at.insert_constant(IValue::None)?;
    let tensor = insert(at, "aten::scalar_tensor", &[bound, float, none, none, none])?;
    name_after(tensor, bound, "tensor")?;
    bound.replace_all_uses_after(tensor.node(), tensor)?;
    for dequantized in requantize(tensor, source, None)? {
        let number = insert(dequantized.node().next(), "aten::item", &[dequantized])?;
        name_after(number, dequantized, "scalar")?;
        number.set_type(&Type::parse("float")?)?;
        dequantized.replace_all_uses_after(number.node(), number)?;
    }
    Ok(())
}

/// Moves the dequantize before a node behind it, where all that it hands on is dequantized.
fn move_dequantize(node: Node<'_>, conditions: Conditions) -> Result<()> {
    let mut moved = Vec::new();
    let mut inputs = Vec::new();
    for output in node.outputs() {
        let sources = passes_from(output, conditions);
        if !stays_whole(output) && !sources.is_empty() && sources.iter().copied().all(is_dequantized) {
            inputs.extend(sources);
            moved.push(output);
        }
    }
    let ends: Vec<_> = node.blocks().into_iter().map(Block::return_node).collect();
    for input in inputs {
        let dequantize = input.node();
        for place in input.uses() {
            if place.user == node || ends.contains(&place.user) {
                place.user.replace_input(place.offset, dequantize.inputs()[0])?;
            }
        }
        if !dequantize.is_destroyed() && !input.is_used() {
            dequantize.destroy()?;
        }
    }
    for output in moved {
        dequantize_uses(output, output)?;
    }
    Ok(())
}

/// Whether it is a tuple that is handed on as it is: no operator dequantizes one, in a file that can be loaded.
fn stays_whole(output: Value<'_>) -> bool {
    output.node().kind() == "prim::TupleConstruct"
        && output.uses().into_iter().any(|place| place.user.kind() != "prim::TupleUnpack")
}

/// Questions about a tensor's shape are asked of the quantized tensor.
pub(super) fn drop_idle_dequantize(graph: &Graph) -> Result<()> {
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::dequantize") {
        let dequantized = node.outputs()[0];
        let [place] = dequantized.uses()[..] else { continue };
        if Operator::of(place.user).is_some_and(|row| row.is_tensor_info) {
            dequantized.replace_all_uses_with(node.inputs()[0])?;
            node.destroy()?;
        }
    }
    Ok(())
}
