//! Reads layers that weight-only quantization wrote, whoever saved and loaded them since.

use super::tensor_of;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};

/// A layer whose weight is kept in fewer bits.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'g> {
    /// The convolution, linear layer or embedding.
    pub layer: Node<'g>,
    /// The layer's result: that of the scaling after it, where it is scaled after.
    pub result: Value<'g>,
    /// int8, or uint8 with two numbers a byte.
    pub weight: Value<'g>,
    /// The scales.
    pub scales: Value<'g>,
    /// The offsets of a weight of 4 bits.
    pub offsets: Option<Value<'g>>,
    /// What is added to the result; `None` where that is nothing, or part of the layer.
    pub bias: Option<Value<'g>>,
}

/// The node of kind `kind` that computes `value`.
fn made_by<'g>(value: Value<'g>, kind: &str) -> Option<Node<'g>> {
    let node = value.node();
    (node.kind() == kind).then_some(node)
}

/// The input of the one node of kind `kind` that computes `value`.
fn through<'g>(value: Value<'g>, kind: &str) -> Option<Value<'g>> {
    made_by(value, kind)?.input(0)
}

/// Whether a value is a constant, or an attribute.
fn is_kept(value: Value<'_>) -> bool {
    value.is_constant() || value.attribute_path().is_some()
}

fn or_none(value: Value<'_>) -> Option<Value<'_>> {
    (!matches!(value.constant(), Some(IValue::None))).then_some(value)
}

impl<'g> Stored<'g> {
    /// The layer `node`, where it is one that weight-only quantization wrote.
    pub fn of(node: Node<'g>) -> Option<Self> {
        match node.kind() {
            "aten::linear" => Self::eight_bits(node).or_else(|| Self::four_bits(node)),
            "aten::embedding" => Self::embedding(node),
            kind if kind.starts_with("aten::conv") => {
                let scaled = made_by(node.input(1)?, "aten::mul_")?;
                let weight = through(scaled.input(0)?, "aten::type_as").filter(|weight| is_kept(*weight))?;
                let scales = scaled.input(1).filter(|scales| is_kept(*scales))?;
                Some(Self { layer: node, result: node.output(0)?, weight, scales, offsets: None, bias: None })
            }
            _ => None,
        }
    }

    fn eight_bits(node: Node<'g>) -> Option<Self> {
        let weight = through(node.input(1)?, "aten::type_as").filter(|weight| is_kept(*weight))?;
        or_none(node.input(2)?).is_none().then_some(())?;
        let output = node.output(0)?;
        let [only] = &output.uses()[..] else { return None };
        let (scales, bias) = match (only.user.kind(), only.offset) {
            ("aten::mul", 0) => (only.user.input(1)?, None),
            ("aten::addcmul", 1) => (only.user.input(2)?, Some(only.user.input(0)?)),
            _ => return None,
        };
        let result = only.user.output(0)?;
        is_kept(scales).then_some(Self { layer: node, result, weight, scales, offsets: None, bias })
    }

    fn four_bits(node: Node<'g>) -> Option<Self> {
        let shifted = made_by(through(node.input(1)?, "aten::view")?, "aten::add_")?;
        let scaled = made_by(shifted.input(0)?, "aten::mul_")?;
        let q = through(through(scaled.input(0)?, "aten::type_as")?, "aten::view")?;
        let halves = through(q, "aten::cat")?.node().inputs();
        let weight = through(*halves.first()?, "aten::bitwise_and").filter(|weight| is_kept(*weight))?;
        let kept = |value: Option<Value<'g>>| through(value?, "aten::type_as").filter(|value| is_kept(*value));
        let (scales, offsets) = (kept(scaled.input(1))?, kept(shifted.input(1))?);
        let (result, bias) = (node.output(0)?, or_none(node.input(2)?));
        Some(Self { layer: node, result, weight, scales, offsets: Some(offsets), bias })
    }

    /// Of the two tables that are looked up, the one of numbers.
    fn embedding(node: Node<'g>) -> Option<Self> {
        let weight = node.input(0).filter(|table| is_kept(*table))?;
        let output = node.output(0)?;
        let [only] = &output.uses()[..] else { return None };
        if only.user.kind() != "aten::mul" || only.offset != 0 {
            return None;
        }
        let steps = made_by(only.user.input(1)?, "aten::embedding")?;
        let scales = steps.input(0).filter(|table| is_kept(*table) && steps.input(1) == node.input(1))?;
        Some(Self { layer: node, result: only.user.output(0)?, weight, scales, offsets: None, bias: None })
    }

    /// The weight in float, row-major, and its sizes; `None` where it is not known in `module`.
    ///
    /// # Errors
    /// Where libtorch cannot convert it.
    pub fn values(&self, module: &Module) -> Result<Option<(Vec<i64>, Vec<f32>)>> {
        let content = |value| tensor_of(module, value);
        let (Some(weight), Some(scales)) = (content(self.weight), content(self.scales)) else { return Ok(None) };
        let offsets = match self.offsets.map(content) {
            Some(None) => return Ok(None),
            known => known.flatten(),
        };
        kept_values(&weight, &scales, offsets.as_ref(), self.layer.kind().contains("transpose"))
    }
}

/// What a kept weight stands for, row-major, and its sizes; `None` where its tensors do not fit each other.
///
/// # Errors
/// Where libtorch cannot convert them.
pub(crate) fn kept_values(
    weight: &Tensor,
    scales: &Tensor,
    offsets: Option<&Tensor>,
    transposed: bool,
) -> Result<Option<(Vec<i64>, Vec<f32>)>> {
    match offsets {
        None => eight_bit_values(weight, scales, transposed),
        Some(offsets) => four_bit_values(weight, scales, offsets),
    }
}

fn eight_bit_values(weight: &Tensor, scales: &Tensor, transposed: bool) -> Result<Option<(Vec<i64>, Vec<f32>)>> {
    let sizes = weight.shape();
    let (Ok(q), scales) = (weight.to_vec::<i8>(), scales.to_f32_vec()?) else { return Ok(None) };
    let axis = usize::from(transposed);
    let inner = sizes.iter().skip(axis + 1).product::<i64>().max(1) as usize;
    if sizes.get(axis).copied() != Some(scales.len() as i64) || scales.is_empty() {
        return Ok(None);
    }
    let value = |(i, q): (usize, i8)| f32::from(q) * scales[i / inner % scales.len()];
    Ok(Some((sizes, q.into_iter().enumerate().map(value).collect())))
}

fn four_bit_values(weight: &Tensor, scales: &Tensor, offsets: &Tensor) -> Result<Option<(Vec<i64>, Vec<f32>)>> {
    let Ok(bytes) = weight.to_vec::<u8>() else { return Ok(None) };
    let [outputs, half] = weight.shape()[..] else { return Ok(None) };
    let (scales, offsets) = (scales.to_f32_vec()?, offsets.to_f32_vec()?);
    let (rows, half) = (outputs as usize, half as usize);
    if rows == 0 || half == 0 || scales.is_empty() || scales.len() != offsets.len() {
        return Ok(None);
    }
    let group = 2 * half * rows / scales.len();
    let value = |i: usize| {
        let (row, column) = (i / (2 * half), i % (2 * half));
        let byte = bytes[row * half + column % half];
        let q = if column < half { byte & 15 } else { byte >> 4 };
        scales[i / group] * f32::from(q) + offsets[i / group]
    };
    Ok(Some((vec![outputs, 2 * half as i64], (0..rows * 2 * half).map(value).collect())))
}
