//! Layers with small weights, from operators that every libtorch has.

use std::collections::HashMap;

use crate::error::Result;
use crate::ir::{DType, IValue, Node, Tensor, Type, Value};
use crate::kernel::GroupWeight;

/// libtorch's number of `uint8`.
const UINT8: i64 = 0;

/// A weight's tensors, shared by the layers that share the weight.
#[derive(Clone)]
enum Kept {
    Eight { weight: Tensor, scales: Tensor },
    Four { weight: Tensor, scales: Tensor, offsets: Tensor },
}

/// Rewrites layers.
#[derive(Default)]
pub(super) struct Writer {
    /// By where the float weight lies, the axis of its channels, and its group (0: none).
    known: HashMap<(usize, usize, usize), Kept>,
}

/// Operator `kind` on `inputs` before `at`, with the place in the source of `at`.
fn operator<'g>(at: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = at.insert_operator(kind, inputs)?;
    value.node().copy_metadata(at)?;
    Ok(value)
}

fn replace<'g>(layer: Node<'g>, by: Value<'g>) -> Result<()> {
    layer.outputs()[0].replace_all_uses_with(by)?;
    layer.destroy()
}

fn is_none(value: Value<'_>) -> bool {
    matches!(value.constant(), Some(IValue::None))
}

/// bfloat16 numbers of these bits.
fn bfloat16(bits: &[u16], shape: &[i64]) -> Result<Tensor> {
    let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_ne_bytes()).collect();
    Tensor::from_bytes(DType::BF16, shape, &bytes)
}

impl Writer {
    /// A layer's weight in 8 bits; the output channels are along `axis` of it.
    ///
    /// - linear: `linear(x, q) * scale + bias`
    /// - convolution: `conv(x, q * scale, bias)`
    /// - embedding: `embedding(q, index) * embedding(scale, index)`
    pub fn eight_bits(
        &mut self,
        layer: Node<'_>,
        weight: &Tensor,
        axis: usize,
        round: impl FnOnce() -> (Vec<i8>, Vec<f32>),
    ) -> Result<()> {
        let sizes = weight.shape();
        let key = (weight.data() as usize, axis, 0);
        let kept = match self.known.get(&key) {
            Some(kept) => kept.clone(),
            None => {
                let (q, scales) = round();
                let scales = Tensor::from_slice(&scales, &[scales.len() as i64])?;
                let kept = Kept::Eight { weight: Tensor::from_slice(&q, &sizes)?, scales };
                self.known.insert(key, kept.clone());
                kept
            }
        };
        let Kept::Eight { weight, scales } = kept else { return Ok(()) };
        let scales_of = |shape: &[i64]| Tensor::from_bytes(DType::F32, shape, &scales.raw_bytes()?);
        let q = layer.insert_constant(weight)?;
        let inputs = layer.inputs();
        match layer.kind() {
            "aten::linear" => {
                let scales = layer.insert_constant(scales)?;
                let [x, bias] = [inputs[0], inputs[2]];
                let none = layer.insert_constant(IValue::None)?;
                let w = operator(layer, "aten::type_as", &[q, x])?;
                let y = operator(layer, "aten::linear", &[x, w, none])?;
                let y = match is_none(bias) {
                    true => operator(layer, "aten::mul", &[y, scales])?,
                    false => operator(layer, "aten::addcmul", &[bias, y, scales])?,
                };
                replace(layer, y)
            }
            "aten::embedding" => {
                let scales = layer.insert_constant(scales_of(&[sizes[0], 1])?)?;
                let mut arguments = inputs.clone();
                let mut look_up = |table| {
                    arguments[0] = table;
                    operator(layer, "aten::embedding", &arguments)
                };
                let (rows, steps) = (look_up(q)?, look_up(scales)?);
                let y = operator(layer, "aten::mul", &[rows, steps])?;
                replace(layer, y)
            }
            _ => {
                let mut shape = vec![1; sizes.len()];
                shape[axis] = sizes[axis];
                let scales = layer.insert_constant(scales_of(&shape)?)?;
                // In place: the tensor is new, and its memory has been touched.
                let w = operator(layer, "aten::type_as", &[q, inputs[0]])?;
                let w = operator(layer, "aten::mul_", &[w, scales])?;
                layer.replace_input(1, w)
            }
        }
    }

    /// A linear layer's weight in 4 bits: `linear(x, q * scale + offset, bias)`, scale and offset by group. Byte `i` of a
    /// row has element `i` in its low half and element `i + inputs / 2` in its high half.
    pub fn linear_4bit(
        &mut self,
        layer: Node<'_>,
        weight: &Tensor,
        round: impl FnOnce() -> GroupWeight,
        group: usize,
    ) -> Result<()> {
        let [outputs, inputs] = weight.shape()[..] else { return Ok(()) };
        let groups = inputs / group as i64;
        let key = (weight.data() as usize, 0, group);
        let kept = match self.known.get(&key) {
            Some(kept) => kept.clone(),
            None => {
                let rounded = round();
                let kept = Kept::Four {
                    weight: Tensor::from_slice(&rounded.nibbles, &[outputs, inputs / 2])?,
                    scales: bfloat16(&rounded.scales, &[outputs, groups, 1])?,
                    offsets: bfloat16(&rounded.offsets, &[outputs, groups, 1])?,
                };
                self.known.insert(key, kept.clone());
                kept
            }
        };
        let Kept::Four { weight, scales, offsets } = kept else { return Ok(()) };
        let x = layer.inputs()[0];
        let at = layer;
        // Of the input's making, so that nothing folds what takes it.
        let byte = |value: i64| -> Result<Value<'_>> {
            let size = at.insert_constant(IValue::int_list([]))?;
            let (value, dtype) = (at.insert_constant(value)?, at.insert_constant(UINT8)?);
            let none = at.insert_constant(IValue::None)?;
            // Not by `insert_operator`: dtype and what follows have to be named.
            let inputs = [x, size, value, dtype, none, none, none];
            let made = at.graph().create("aten::new_full", &inputs, 1)?.insert_before(at)?;
            made.copy_metadata(at)?;
            Ok(made.outputs()[0])
        };
        let bytes = at.insert_constant(weight)?;
        let low = operator(at, "aten::bitwise_and", &[bytes, byte(15)?])?;
        let high = operator(at, "aten::bitwise_right_shift", &[bytes, byte(4)?])?;
        let halves = at.graph().create("prim::ListConstruct", &[low, high], 1)?.insert_before(at)?;
        halves.outputs()[0].set_type(&Type::parse("List[Tensor]")?)?;
        let q = operator(at, "aten::cat", &[halves.outputs()[0], at.insert_constant(1i64)?])?;
        let by_group = at.insert_constant(IValue::int_list([outputs, groups, group as i64]))?;
        let whole = at.insert_constant(IValue::int_list([outputs, inputs]))?;
        let q = operator(at, "aten::view", &[q, by_group])?;
        let float = |value| operator(at, "aten::type_as", &[value, x]);
        let (scales, offsets) = (float(at.insert_constant(scales)?)?, float(at.insert_constant(offsets)?)?);
        let w = operator(at, "aten::mul_", &[float(q)?, scales])?;
        let w = operator(at, "aten::add_", &[w, offsets])?;
        let w = operator(at, "aten::view", &[w, whole])?;
        layer.replace_input(1, w)
    }
}
