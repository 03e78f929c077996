//! Functions of one quantized value, however they are spelled, as tables of 256 bytes.

use std::collections::HashMap;

use super::call::{Bytes, constant_qparams, constant_table, operator, qparams};
use crate::error::Result;
use crate::ir::{IValue, Node, Tensor, Value};
use crate::kernel::QParams;

/// Operators that compute each element of their result from the elements at the same place.
const ELEMENTWISE: &[&str] = &[
    "aten::abs",
    "aten::add",
    "aten::celu",
    "aten::clamp",
    "aten::clamp_max",
    "aten::clamp_min",
    "aten::div",
    "aten::elu",
    "aten::erf",
    "aten::exp",
    "aten::gelu",
    "aten::hardsigmoid",
    "aten::hardswish",
    "aten::hardtanh",
    "aten::leaky_relu",
    "aten::log_sigmoid",
    "aten::mish",
    "aten::mul",
    "aten::neg",
    "aten::pow",
    "aten::reciprocal",
    "aten::relu",
    "aten::relu6",
    "aten::rsub",
    "aten::selu",
    "aten::sigmoid",
    "aten::silu",
    "aten::softplus",
    "aten::softsign",
    "aten::sqrt",
    "aten::sub",
    "aten::tanh",
    "aten::threshold",
];

/// The most operators of a function.
const LONGEST: usize = 32;

/// A function of one quantized tensor, computed in float.
struct Function<'g> {
    source: Option<Bytes<'g>>,
    /// Its operators, each after those that it takes.
    nodes: Vec<Node<'g>>,
    /// The values that are the dequantized source.
    sources: Vec<Value<'g>>,
}

impl<'g> Function<'g> {
    /// Whether `value` is a function of one quantized tensor, of which everything was seen.
    fn reaches(&mut self, value: Value<'g>) -> bool {
        let node = value.node();
        if value.is_constant() {
            return value.constant().is_some_and(|constant| match constant {
                IValue::Tensor(tensor) => tensor.shape().iter().product::<i64>() == 1,
                _ => true,
            });
        }
        if let Some(x) = dequantized(node) {
            let same = |known: Bytes<'g>| known.bytes == x.bytes && known.qparams() == x.qparams();
            self.sources.push(value);
            return same(*self.source.get_or_insert(x)) && x.qparams().is_some();
        }
        if self.nodes.contains(&node) {
            return true;
        }
        let is_known = ELEMENTWISE.contains(&node.kind()) && node.outputs().len() == 1 && self.nodes.len() < LONGEST;
        if !is_known || !node.inputs().into_iter().all(|input| self.reaches(input)) {
            return false;
        }
        self.nodes.push(node);
        true
    }

    /// Nobody but the function itself, and `consumer`, uses what it computes.
    fn is_private(&self, consumer: Node<'g>) -> bool {
        let inside = |user: Node<'g>| user == consumer || self.nodes.contains(&user);
        self.nodes.iter().all(|node| node.outputs()[0].uses().into_iter().all(|place| inside(place.user)))
    }

    /// Its value for each byte of the source.
    fn values(&self, from: QParams) -> Result<Option<Vec<f32>>> {
        let bytes: Vec<f32> = (0..=255u8).map(|byte| from.dequantize(byte)).collect();
        let source = IValue::Tensor(Tensor::from_slice(&bytes, &[256])?);
        let mut known: HashMap<Value<'g>, IValue> = self.sources.iter().map(|value| (*value, source.clone())).collect();
        let mut last = None;
        for node in &self.nodes {
            let inputs = node.inputs().into_iter().map(|input| known.get(&input).cloned().or_else(|| input.constant()));
            let Some(inputs) = inputs.collect::<Option<Vec<_>>>() else { return Ok(None) };
            let Some(result) = node.run(&inputs)?.into_iter().next() else { return Ok(None) };
            last = Some(result.clone());
            known.insert(node.outputs()[0], result);
        }
        let Some(IValue::Tensor(result)) = last else { return Ok(None) };
        let values = result.to_f32_vec()?;
        Ok((values.len() == 256 && values.iter().all(|value| !value.is_nan())).then_some(values))
    }
}

/// What `jitquant::dequantize` takes, where `node` is one.
pub(super) fn dequantized(node: Node<'_>) -> Option<Bytes<'_>> {
    let [bytes, scale, zero_point] = node.inputs()[..] else { return None };
    (node.kind() == "jitquant::dequantize").then_some(Bytes { bytes, scale, zero_point })
}

/// Where the `jitquant::quantize` at `node` quantizes a function of one quantized tensor: its bytes, looked up in a table.
pub(super) fn looked_up<'g>(node: Node<'g>) -> Result<Option<Value<'g>>> {
    let [x, scale, zero_point] = node.inputs()[..] else { return Ok(None) };
    let mut function = Function { source: None, nodes: Vec::new(), sources: Vec::new() };
    let fits = function.reaches(x) && !function.nodes.is_empty() && function.is_private(node);
    let (Some(source), Some(to)) = (function.source.filter(|_| fits), qparams(scale, zero_point)) else {
        return Ok(None);
    };
    let Some(from) = source.qparams() else { return Ok(None) };
    let Some(values) = function.values(from)? else { return Ok(None) };
    let table: Vec<u8> = values.into_iter().map(|value| to.quantize(value)).collect();
    let Ok(table) = <[u8; 256]>::try_from(table) else { return Ok(None) };
    let table = constant_table(node, &table)?;
    operator(node, "jitquant::lookup", &[source.bytes, table]).map(Some)
}

/// `x` with the parameters of `quantize`, which are others than its own.
pub(super) fn requantized<'g>(quantize: Node<'g>, x: Bytes<'g>, to: QParams) -> Result<Value<'g>> {
    let [scale, zero_point] = constant_qparams(quantize, to)?;
    operator(quantize, "jitquant::requantize", &[x.bytes, x.scale, x.zero_point, scale, zero_point])
}
