//! Transposed convolutions of the native form: libtorch has no kernel for a scale for each output channel, and some of its
//! engines take only as many outputs as inputs. They become native before the rest does, and meet none of its kernels.

use super::call::{constant, output};
use super::weights::attribute_of;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};
use crate::pass::prepare::is_transposed;

/// TorchScript that packs; 12 is the type of `qint8`.
const PACK: &str = "
def pack(self, weight: Tensor, scales: Tensor, zero_points: Tensor, bias: Optional[Tensor], stride: List[int], padding: List[int], output_padding: List[int], groups: int, dilation: List[int]):
    if scales.numel() == 1:
        q = torch.int_repr(torch.quantize_per_tensor(weight, float(scales), int(zero_points), 12))
    else:
        q = torch.int_repr(torch.quantize_per_channel(weight, scales, zero_points, 1, 12))
    return ops.jitquant.conv_prepack(q, scales, zero_points, bias, stride, padding, dilation, output_padding, groups, True)
";

/// Makes native layers of the transposed convolutions, between dequantize and quantize, of a module that
/// [`insert_quant_dequant`](crate::pass::insert_quant_dequant) returned, in place; how many.
///
/// # Errors
/// Where a weight cannot be packed, or libtorch refuses to change the graph.
pub(crate) fn pack_transposed(module: &Module, method: &str) -> Result<usize> {
    let graph = module.graph(method)?;
    let code = Module::new("jitquant.PackTransposed")?;
    code.define(PACK)?;
    let mut made = 0;
    for node in graph.all_nodes().into_iter().filter(|node| is_transposed(*node)) {
        if let Some(layer) = Layer::of(module, node) {
            layer.write(module, &code, node)?;
            made += 1;
        }
    }
    Ok(made)
}

/// What stands around a transposed convolution.
struct Layer<'g> {
    /// The quantized input.
    x: Value<'g>,
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    /// Bias, stride, padding, output padding, groups, dilation.
    geometry: Vec<IValue>,
    has_relu: bool,
    quantize: Node<'g>,
}

impl<'g> Layer<'g> {
    fn of(module: &Module, node: Node<'g>) -> Option<Self> {
        let dequantized = |index: usize| {
            let made = node.input(index)?.node();
            (made.kind() == "aten::dequantize").then(|| made.input(0)).flatten()
        };
        let x = dequantized(0)?;
        let weight = dequantized(1)?.node();
        let [float, scales, zero_points, axis] = *weight.inputs().first_chunk::<4>()?;
        let content = |value: Value<'_>| match value.constant() {
            Some(constant) => Some(constant),
            None => module.attribute(&attribute_of(value)?).ok(),
        };
        let tensor = |value: Value<'_>| content(value)?.as_tensor().cloned();
        let (scales, zero_points) = match weight.kind() {
            "aten::quantize_per_channel" if content(axis)?.as_int() == Some(1) => {
                (tensor(scales)?, tensor(zero_points)?)
            }
            "aten::quantize_per_tensor" => {
                let (scale, zero_point) = (content(scales)?.as_number()?, content(zero_points)?.as_int()?);
                (Tensor::from_slice(&[scale as f32], &[1]).ok()?, Tensor::from_slice(&[zero_point as i32], &[1]).ok()?)
            }
            _ => return None,
        };
        let geometry = node.inputs()[2..].iter().map(|value| content(*value)).collect::<Option<Vec<_>>>()?;
        let alone = |value: Value<'g>| match value.uses()[..] {
            [place] if place.user.owning_block() == node.owning_block() => Some(place.user),
            _ => None,
        };
        let next = alone(node.output(0)?)?;
        let has_relu = next.kind() == "aten::relu";
        let quantize = if has_relu { alone(next.output(0)?)? } else { next };
        (quantize.kind() == "aten::quantize_per_tensor").then_some(())?;
        let weight = tensor(float)?;
        Some(Self { x, weight, scales, zero_points, geometry, has_relu, quantize })
    }

    fn write(&self, module: &Module, code: &Module, node: Node<'g>) -> Result<()> {
        let mut arguments: Vec<IValue> = vec![(&self.weight).into(), (&self.scales).into(), (&self.zero_points).into()];
        arguments.extend(self.geometry.iter().cloned());
        let packed: IValue = code.call("pack", &arguments)?;
        let IValue::Other(object) = &packed else {
            return Err(crate::error::Error::invalid("a packed weight should be an object"));
        };
        let name = (0..).map(|n| format!("jitquant_weight_transposed_{n}")).find(|name| !module.has_attribute(name));
        let name = name.unwrap_or_default();
        module.register_attribute(&name, &object.type_of()?, &packed)?;
        let at = self.quantize;
        let weight = at.insert_get_attribute(at.graph().inputs()[0], &name)?;
        let part = |kind: &str| at.insert_operator(kind, &[self.x]);
        let [scale, zero_point] = [at.inputs()[1], at.inputs()[2]];
        let low = if self.has_relu { zero_point } else { constant(at, 0i64)? };
        let x = [part("aten::int_repr")?, weight, part("aten::q_scale")?, part("aten::q_zero_point")?];
        let bytes =
            at.insert_operator("jitquant::conv", &[&x[..], &[scale, zero_point, low, constant(at, 255i64)?]].concat())?;
        bytes.node().copy_metadata(node)?;
        let made = at.insert_operator("aten::_make_per_tensor_quantized_tensor", &[bytes, scale, zero_point])?;
        made.node().copy_metadata(node)?;
        output(at)?.replace_all_uses_with(made)?;
        let before = at.inputs()[0].node();
        at.destroy()?;
        if before != node {
            before.destroy()?;
        }
        node.destroy()
    }
}
