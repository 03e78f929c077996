//! Transposed convolutions: which scales their weights have.
//!
//! Their output channels are the second dimension of the weight, and libtorch's kernels take one scale for all of it. The
//! kernels of the native form take a scale for each output channel, where there is one group.

use super::recurrent::{PER_CHANNEL_AFFINE, PER_CHANNEL_SYMMETRIC};
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};
use crate::observer::{ObserverConfig, ObserverKind};

/// The index of the number of groups among a transposed convolution's inputs.
const GROUPS: usize = 6;

/// Whether `node` is a transposed convolution that names its number of dimensions.
pub(crate) fn is_transposed(node: Node<'_>) -> bool {
    node.kind().starts_with("aten::conv_transpose")
}

/// Has the weights of the transposed convolutions of an observed flat module observed as their kernels take them: the
/// scale of an output channel with `per_channel` (the native form), else of the whole weight.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn scale_transposed_weights(module: &Module, method: &str, per_channel: bool) -> Result<()> {
    let graph = module.graph(method)?;
    for node in graph.all_nodes().into_iter().filter(|node| is_transposed(*node)) {
        let Some(call) = node.input(1).map(|weight| weight.node()).filter(|call| call.kind() == "prim::CallMethod")
        else {
            continue;
        };
        let Some(path) = call.input(0).and_then(|observer| observer.attribute_path()) else { continue };
        let [name] = &path[..] else { continue };
        let observer = module.submodule(name)?;
        let int = |name: &str| observer.attribute(name).ok().and_then(|value| value.as_int());
        if !matches!(int("qscheme"), Some(PER_CHANNEL_AFFINE | PER_CHANNEL_SYMMETRIC)) {
            continue;
        }
        let groups = node.input(GROUPS).and_then(|groups| groups.constant()?.as_int());
        if per_channel && groups == Some(1) && observer.has_attribute("ch_axis") {
            observer.set_attribute("ch_axis", &IValue::Int(1))?;
            continue;
        }
        let whole = ObserverConfig::weight(ObserverKind::MinMax).module()?;
        for same in ["observed", "quant_min", "quant_max", "reduce_range", "eps"] {
            if let Ok(value) = observer.attribute(same)
                && whole.has_attribute(same)
            {
                whole.set_attribute(same, &value)?;
            }
        }
        let object = call.inputs()[0].node();
        let new = format!("{name}_whole");
        module.register_submodule(&new, &whole)?;
        let read = call.insert_get_attribute(graph.inputs()[0], &new)?;
        let observed = call.insert_method_call(read, "forward", &call.inputs()[1..])?;
        observed.node().copy_metadata(call)?;
        let old = call.outputs()[0];
        observed.set_type(&old.type_of())?;
        old.replace_all_uses_with(observed)?;
        call.destroy()?;
        if !object.outputs()[0].is_used() {
            object.destroy()?;
            module.remove_attribute(name)?;
        }
    }
    Ok(())
}

/// Gives the transposed convolutions of a flat module as many output channels as input channels, with zeros: libtorch's engines
/// `x86` and `onednn` compute something else where the two differ (2.13). How many were changed.
///
/// Where there are fewer outputs, the weight gets outputs of zeros, which are cut off behind the layer; where there are
/// fewer inputs, the input gets channels of zeros.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn square_transposed(module: &Module, method: &str) -> Result<usize> {
    let graph = module.graph(method)?;
    let mut changed = 0;
    for node in graph.all_nodes().into_iter().filter(|node| is_transposed(*node)) {
        if let Some(layer) = Uneven::of(module, node) {
            layer.square(module, node)?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// A transposed convolution with more channels on one side.
struct Uneven {
    weight: Tensor,
    bias: Option<Tensor>,
    /// The channels of a group.
    inputs: i64,
    outputs: i64,
    groups: i64,
    /// How many dimensions are behind the channels.
    spatial: i64,
}

impl Uneven {
    fn of(module: &Module, node: Node<'_>) -> Option<Self> {
        let content = |value: Value<'_>| match value.constant() {
            Some(constant) => Some(constant),
            None => module.attribute(&value.attribute_path()?.join(".")).ok(),
        };
        let weight = content(node.input(1)?)?.as_tensor()?.clone();
        let bias = match content(node.input(2)?)? {
            IValue::Tensor(bias) if bias.is_defined() => Some(bias),
            _ => None,
        };
        let groups = node.input(GROUPS)?.constant()?.as_int().filter(|groups| *groups > 0)?;
        let sizes = weight.shape();
        let [all_inputs, outputs, ..] = sizes[..] else { return None };
        let (inputs, spatial) = (all_inputs / groups, sizes.len() as i64 - 2);
        (inputs != outputs).then_some(Self { weight, bias, inputs, outputs, groups, spatial })
    }

    fn square(&self, module: &Module, node: Node<'_>) -> Result<()> {
        let size = self.inputs.max(self.outputs);
        let kernel: i64 = self.weight.shape()[2..].iter().product();
        let values = self.weight.to_f32_vec()?;
        let mut padded = vec![0.0f32; (self.groups * size * size * kernel) as usize];
        for group in 0..self.groups {
            for input in 0..self.inputs {
                let from = ((group * self.inputs + input) * self.outputs * kernel) as usize;
                let to = ((group * size + input) * size * kernel) as usize;
                let count = (self.outputs * kernel) as usize;
                padded[to..to + count].copy_from_slice(&values[from..from + count]);
            }
        }
        let shape: Vec<i64> = [&[self.groups * size, size], &self.weight.shape()[2..]].concat();
        let read = node.inputs()[1];
        let name = read.attribute_path().map_or_else(|| "weight".to_owned(), |path| path.join("."));
        let name = (0..).map(|n| format!("{name}_square_{n}")).find(|name| !module.has_attribute(name));
        let name = name.unwrap_or_default();
        module.register_parameter(&name, Tensor::from_slice(&padded, &shape)?)?;
        let weight = node.insert_get_attribute(node.graph().inputs()[0], &name)?;
        weight.node().copy_metadata(node)?;
        node.replace_input(1, weight)?;
        if let Some(bias) = &self.bias {
            let bias = bias.to_f32_vec()?;
            let mut longer = Vec::new();
            for group in bias.chunks(self.outputs as usize) {
                longer.extend_from_slice(group);
                longer.resize(longer.len() + (size - self.outputs) as usize, 0.0f32);
            }
            node.replace_input(2, node.insert_constant(Tensor::from_slice(&longer, &[longer.len() as i64])?)?)?;
        }
        if self.inputs < size {
            let x = self.in_groups(node, node.inputs()[0], self.inputs)?;
            let mut sizes = vec![0; 2 * self.spatial as usize];
            sizes.extend([0, size - self.inputs]);
            let zero = node.insert_constant(IValue::Double(0.0))?;
            let x =
                operator(node, "aten::constant_pad_nd", &[x, node.insert_constant(IValue::int_list(sizes))?, zero])?;
            node.replace_input(0, self.joined(node, x)?)?;
        }
        if self.outputs < size {
            let (result, at) = (node.outputs()[0], node.next());
            let y = self.in_groups(at, result, size)?;
            let first = if y == result { None } else { Some(y.node()) };
            let int = |value: i64| at.insert_constant(IValue::Int(value));
            let arguments = [y, int(-1 - self.spatial)?, int(0)?, int(self.outputs)?, int(1)?];
            let cut = operator(at, "aten::slice", &arguments)?;
            let joined = self.joined(at, cut)?;
            result.replace_all_uses_with(joined)?;
            first.unwrap_or(cut.node()).replace_input(0, result)?;
        }
        Ok(())
    }

    /// The channels of each group in a dimension of their own, where there are groups.
    fn in_groups<'g>(&self, at: Node<'g>, x: Value<'g>, channels: i64) -> Result<Value<'g>> {
        if self.groups == 1 {
            return Ok(x);
        }
        let dimension = at.insert_constant(IValue::Int(-1 - self.spatial))?;
        operator(at, "aten::unflatten", &[x, dimension, at.insert_constant(IValue::int_list([self.groups, channels]))?])
    }

    /// What [`Uneven::in_groups`] parted.
    fn joined<'g>(&self, at: Node<'g>, x: Value<'g>) -> Result<Value<'g>> {
        if self.groups == 1 {
            return Ok(x);
        }
        let int = |value: i64| at.insert_constant(IValue::Int(value));
        operator(at, "aten::flatten", &[x, int(-2 - self.spatial)?, int(-1 - self.spatial)?])
    }
}

fn operator<'g>(at: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = at.insert_operator(kind, inputs)?;
    value.node().copy_metadata(at)?;
    Ok(value)
}
