//! The packed weight of a convolution, taken apart and packed again.

use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Node, Tensor};
use crate::pass::op_table::Geometry;

/// TorchScript that takes a packed weight apart and packs another like it; `@` is its number of dimensions.
const CODE: &str = "
def parts(self):
    weight, bias = ops.quantized.conv@d_unpack(self.packed)
    return (weight, bias, ops.quantized.conv@d_stride(self.packed), ops.quantized.conv@d_padding(self.packed), ops.quantized.conv@d_dilation(self.packed), ops.quantized.conv@d_output_padding(self.packed), ops.quantized.conv@d_groups(self.packed))

def per_channel(self, weight: Tensor, like: Tensor):
    return torch._make_per_channel_quantized_tensor(weight, torch.q_per_channel_scales(like), torch.q_per_channel_zero_points(like), torch.q_per_channel_axis(like))

def per_tensor(self, weight: Tensor, like: Tensor):
    return torch._make_per_tensor_quantized_tensor(weight, torch.q_scale(like), torch.q_zero_point(like))

def pack(self, weight: Tensor, bias: Optional[Tensor], stride: List[int], padding: List[int], dilation: List[int], output_padding: List[int], groups: int):
    return ops.quantized.conv@d_prepack(weight, bias, stride, padding, dilation, groups)

def pack_transposed(self, weight: Tensor, bias: Optional[Tensor], stride: List[int], padding: List[int], dilation: List[int], output_padding: List[int], groups: int):
    return ops.quantized.conv_transpose@d_prepack(weight, bias, stride, padding, output_padding, dilation, groups)
";

/// A convolution's weight with what its kernel depends on. One of one dimension is an image of one row.
pub(super) struct Packed {
    code: Module,
    weight: Tensor,
    bias: IValue,
    output_padding: IValue,
    /// The weight's integers.
    pub values: Vec<i8>,
    /// The weight's sizes.
    pub sizes: Vec<i64>,
    pub geometry: Geometry,
}

impl Packed {
    /// Whether `node` is a convolution on a packed weight.
    pub fn is_taken_by(node: Node<'_>) -> bool {
        let name = node.kind().strip_prefix("quantized::conv");
        name.is_some_and(|name| !name.contains("pack") && !name.contains("dynamic") && !name.contains("_add"))
    }

    /// The module and the attribute that hold the packed weight of `node`, where it is an attribute.
    pub fn place(module: &Module, node: Node<'_>) -> Option<(Module, String)> {
        let path = node.input(1)?.attribute_path()?;
        let (name, owner) = path.split_last()?;
        Some((module.submodule(&owner.join(".")).ok()?, name.clone()))
    }

    /// What `node` of `module` takes, where it is known now.
    ///
    /// # Errors
    /// Where libtorch does not unpack it.
    pub fn read(module: &Module, node: Node<'_>) -> Result<Option<Self>> {
        let constant = node.input(1).and_then(|packed| packed.constant());
        let content = match Self::place(module, node) {
            Some((owner, name)) => Some(owner.attribute(&name)?),
            None => constant,
        };
        let Some(content) = content else { return Ok(None) };
        let IValue::Other(object) = &content else { return Ok(None) };
        let dimensions = if node.kind().contains("3d") { "3" } else { "2" };
        let code = Module::new("jitquant.PackedConvolution")?;
        code.register_attribute("packed", &object.type_of()?, &content)?;
        code.define(&CODE.replace('@', dimensions))?;
        let IValue::Tuple(parts) = code.call::<IValue>("parts", &[])? else { return Ok(None) };
        let transposed = node.kind().contains("transpose");
        Self::of(code, parts, transposed).map(Some)
    }

    fn of(code: Module, parts: Vec<IValue>, transposed: bool) -> Result<Self> {
        let wrong = || Error::invalid("a packed convolution should give weight, bias and geometry");
        let [weight, bias, stride, padding, dilation, output_padding, groups] =
            <[IValue; 7]>::try_from(parts).map_err(|_| wrong())?;
        let ints = |value: &IValue| match value {
            IValue::List { items, .. } => items.iter().map(IValue::as_int).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let weight = weight.as_tensor().ok_or_else(wrong)?.clone();
        let groups = groups.as_int().ok_or_else(wrong)?;
        let sizes = weight.shape();
        let [first, second, kernel @ ..] = &sizes[..] else { return Err(wrong()) };
        let (inputs, outputs) = if transposed { (*first, second * groups) } else { (second * groups, *first) };
        let geometry = Geometry {
            inputs,
            outputs,
            groups,
            kernel: kernel.to_vec(),
            stride: ints(&stride).ok_or_else(wrong)?,
            padding: ints(&padding).ok_or_else(wrong)?,
            dilation: ints(&dilation).ok_or_else(wrong)?,
            transposed,
        };
        Ok(Self { values: weight.to_vec::<i8>()?, sizes, code, weight, bias, output_padding, geometry })
    }

    /// Another weight with this one's scales, packed by libtorch's engine.
    ///
    /// # Errors
    /// Where libtorch refuses it.
    pub fn pack(&self, values: &[i8], sizes: &[i64], geometry: &Geometry) -> Result<IValue> {
        let plain = IValue::from(Tensor::from_slice(values, sizes)?);
        let like = IValue::from(&self.weight);
        let scaled = self.code.call::<IValue>("per_channel", &[plain.clone(), like.clone()]);
        let weight = scaled.or_else(|_| self.code.call::<IValue>("per_tensor", &[plain, like]))?;
        let list = |items: &[i64]| IValue::int_list(items.iter().copied());
        let arguments = [
            weight,
            self.bias.clone(),
            list(&geometry.stride),
            list(&geometry.padding),
            list(&geometry.dilation),
            self.output_padding.clone(),
            IValue::Int(geometry.groups),
        ];
        self.code.call::<IValue>(if geometry.transposed { "pack_transposed" } else { "pack" }, &arguments)
    }
}
