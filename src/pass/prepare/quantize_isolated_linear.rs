//! The INT8 forms of linear layers between float operators ([`super::isolated_linear`]), from libtorch's operators.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::isolated_linear::{IsolatedLinear, ROWS, mark_of, norm_before};
use super::round_weights::rounded;
use super::weight_grid::WeightGrid;
use crate::error::{Context, Error, Result};
use crate::ir::{GeneralPass, IValue, Module, Node, Tensor, Value};
use crate::observer::{QRange, qparams};
use crate::pass::QuantType;
use crate::qconfig::QConfig;

/// How smoothing divides the difficulty between activations and weights.
///
/// A channel's scale is `s = range^strength / largest_weight^(1 - strength)`, ranges being halves of largest minus
/// smallest: with 1 all activations have the same range, with 0 all columns of the weight.
pub(crate) type Strength = f32;

/// Quantizes the marked layers of an observed flat module in place, the weights as `qconfig` says.
///
/// # Errors
/// Where an observer or libtorch's packing refuses a weight.
pub(crate) fn quantize_isolated_linear<'q>(
    module: &Module,
    method: &str,
    isolated: IsolatedLinear,
    strength: Strength,
    qconfig: impl Fn(Node<'_>) -> Option<&'q QConfig>,
) -> Result<()> {
    let mut graph = module.graph(method)?;
    let packer = Packer::new(module)?;
    let mut groups: Vec<(Value<'_>, Vec<Node<'_>>)> = Vec::new();
    for layer in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::linear") {
        if mark_of(module, layer).is_none() || qconfig(layer).is_none() {
            continue;
        }
        let mark = layer.inputs()[0];
        match groups.iter_mut().find(|(known, _)| *known == mark) {
            Some((_, layers)) => layers.push(layer),
            None => groups.push((mark, vec![layer])),
        }
    }
    for (mark, layers) in groups {
        let Some(observer) = mark_of(module, layers[0]) else { continue };
        let what = || format!("quantizing linear layer '{}'", layers[0].scope().unwrap_or_default());
        quantize_group(&packer, mark, &layers, &observer, isolated, strength, &qconfig).context(what)?;
    }
    // A mark whose layers stay in float, and those just quantized.
    for call in graph.all_nodes() {
        let marks = |name: &str| name.starts_with(super::isolated_linear::MARK);
        if call.kind() == "prim::CallMethod"
            && call.input(0).and_then(|object| object.node().name_attribute()).is_some_and(|name| marks(&name))
        {
            call.outputs()[0].replace_all_uses_with(call.inputs()[1])?;
            let object = call.inputs()[0].node();
            call.destroy()?;
            object.destroy()?;
        }
    }
    graph.run(GeneralPass::DeadCodeElimination)
}

fn quantize_group<'g, 'q>(
    packer: &Packer<'_>,
    mark: Value<'g>,
    layers: &[Node<'g>],
    observer: &Module,
    isolated: IsolatedLinear,
    strength: Strength,
    qconfig: &impl Fn(Node<'_>) -> Option<&'q QConfig>,
) -> Result<()> {
    let mut weights = Vec::new();
    for layer in layers {
        weights.push(LinearWeights::of(packer.module, *layer)?);
    }
    let mut input = mark.node().inputs()[1];
    let mut static_range = None;
    if let Some(ranges) = channel_ranges(observer)? {
        let smoothing = Smoothing::between(&ranges, &weights, strength);
        weights.iter_mut().for_each(|weight| smoothing.scale_weight(weight));
        input = smoothing.insert(layers[0], input, mark)?;
        let is_earned = !isolated.per_row || rows_seen(observer)? >= ROWS_OF_RANGES;
        static_range = (isolated.quant_type == QuantType::Static && is_earned).then(|| smoothing.range(&ranges));
    }
    let rows = match static_range {
        Some(_) => None,
        None => Some(stretch_rows(layers[0], input)?),
    };
    for (layer, weight) in std::iter::zip(layers, weights) {
        let Some(qconfig) = qconfig(*layer) else { continue };
        let result = match (&rows, static_range) {
            (None, Some(range)) => packer.quantize_static(*layer, input, range, weight, &qconfig.weight)?,
            (Some(rows), _) => packer.quantize_rows(*layer, rows, weight, &qconfig.weight)?,
            _ => continue,
        };
        layer.outputs()[0].replace_all_uses_with(result)?;
        layer.destroy()?;
    }
    Ok(())
}

/// A linear layer's weight (outputs x inputs) and bias.
struct LinearWeights {
    weight: Vec<f32>,
    outputs: usize,
    inputs: usize,
    bias: Option<Vec<f32>>,
}

impl LinearWeights {
    fn of(module: &Module, layer: Node<'_>) -> Result<Self> {
        let tensor = |value: Value<'_>| match (value.constant(), value.attribute_path()) {
            (Some(IValue::None), _) => Ok(None),
            (Some(IValue::Tensor(tensor)), _) => Ok(Some(tensor)),
            // The flat module's own attributes have dots in their names.
            (_, Some(path)) => match (module.attribute(&path.join(".")), path.split_last()) {
                (Err(_), Some((name, owner))) => {
                    Tensor::try_from(module.submodule(&owner.join("."))?.attribute(name)?).map(Some)
                }
                (own, _) => Tensor::try_from(own?).map(Some),
            },
            _ => Err(Error::invalid("its weight or bias is computed when the model runs")),
        };
        let weight = tensor(layer.inputs()[1])?.ok_or_else(|| Error::invalid("it has no weight"))?;
        let [outputs, inputs] = weight.shape()[..] else {
            return Err(Error::invalid(format!("its weight has the sizes {:?}", weight.shape())));
        };
        let bias = tensor(layer.inputs()[2])?.map(|bias| bias.to_f32_vec()).transpose()?;
        Ok(Self { weight: weight.to_f32_vec()?, outputs: outputs as usize, inputs: inputs as usize, bias })
    }

    fn tensor(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.weight, &[self.outputs as i64, self.inputs as i64])
    }

    fn bias_or_zeros(&self) -> Vec<f32> {
        self.bias.clone().unwrap_or_else(|| vec![0.0; self.outputs])
    }
}

/// The smallest and largest value of each channel, where the observer has seen data.
fn channel_ranges(observer: &Module) -> Result<Option<Vec<(f32, f32)>>> {
    let read = |name: &str| match observer.attribute(name) {
        Ok(IValue::Tensor(tensor)) => tensor.to_f32_vec().map(Some),
        _ => Ok(None),
    };
    let (Some(min), Some(max)) = (read("min_val")?, read("max_val")?) else { return Ok(None) };
    let ranges: Vec<_> = std::iter::zip(min, max).collect();
    let is_seen = !ranges.is_empty() && ranges.iter().all(|(min, max)| min.is_finite() && max.is_finite());
    Ok(is_seen.then_some(ranges))
}

/// From how many rows ranges of channels are taken for those of other rows as well. A value of another row lies outside the
/// range of its channel in one of `n / 2` cases after `n` rows, and every channel has steps of its own size to lose: of 8
/// rows that costs 25 dB, of 1000 less than rounding does. With fewer rows the range is that of each row, as it comes.
const ROWS_OF_RANGES: f32 = 1024.0;

/// How many rows an observer has seen.
fn rows_seen(observer: &Module) -> Result<f32> {
    match observer.attribute(ROWS) {
        Ok(IValue::Tensor(rows)) => Ok(rows.to_f32_vec()?.first().copied().unwrap_or(0.0)),
        // A recorded range of before rows were counted.
        _ => Ok(0.0),
    }
}

/// `x' = (x - shift) / scale` a channel.
struct Smoothing {
    shift: Vec<f32>,
    scale: Vec<f32>,
}

impl Smoothing {
    fn between(ranges: &[(f32, f32)], weights: &[LinearWeights], strength: Strength) -> Self {
        const LEAST: f32 = 1e-5;
        let mut largest = vec![LEAST; ranges.len()];
        for layer in weights {
            for row in layer.weight.chunks(layer.inputs) {
                std::iter::zip(&mut largest, row).for_each(|(largest, w)| *largest = largest.max(w.abs()));
            }
        }
        let scale = std::iter::zip(ranges, largest)
            .map(|(&(min, max), weight)| ((max - min) / 2.0).max(LEAST).powf(strength) / weight.powf(1.0 - strength));
        Self { shift: ranges.iter().map(|(min, max)| min / 2.0 + max / 2.0).collect(), scale: scale.collect() }
    }

    /// The range of all channels together.
    fn range(&self, ranges: &[(f32, f32)]) -> (f32, f32) {
        let channels = std::iter::zip(ranges, std::iter::zip(&self.shift, &self.scale));
        channels.fold((0.0, 0.0), |(low, high), (&(min, max), (shift, scale))| {
            (f32::min(low, (min - shift) / scale), f32::max(high, (max - shift) / scale))
        })
    }

    /// `W x + b = (W scale) x' + (b + W shift)`.
    fn scale_weight(&self, layer: &mut LinearWeights) {
        let mut bias = layer.bias_or_zeros();
        for (bias, row) in std::iter::zip(&mut bias, layer.weight.chunks_mut(layer.inputs)) {
            *bias += std::iter::zip(row.iter(), &self.shift).map(|(w, shift)| w * shift).sum::<f32>();
            std::iter::zip(row, &self.scale).for_each(|(w, scale)| *w *= scale);
        }
        layer.bias = Some(bias);
    }

    /// Computes `x'` before `layer`: in the layer norm, where nobody else takes its result.
    fn insert<'g>(&self, layer: Node<'g>, input: Value<'g>, mark: Value<'g>) -> Result<Value<'g>> {
        let channels = self.scale.len() as i64;
        let inverse: Vec<f32> = self.scale.iter().map(|scale| 1.0 / scale).collect();
        if let Some(norm) = norm_before(input)
            && norm.outputs()[0] == input
            && input.uses().iter().all(|place| place.user == mark.node())
            && let (Some(IValue::Tensor(gamma)), Some(IValue::Tensor(beta))) =
                (norm.inputs()[2].constant(), norm.inputs()[3].constant())
            && gamma.shape() == [channels]
        {
            let gamma: Vec<f32> = std::iter::zip(gamma.to_f32_vec()?, &inverse).map(|(g, r)| g * r).collect();
            let beta = std::iter::zip(beta.to_f32_vec()?, std::iter::zip(&self.shift, &inverse));
            let beta: Vec<f32> = beta.map(|(b, (shift, r))| (b - shift) * r).collect();
            norm.replace_input(2, norm.insert_constant(Tensor::from_slice(&gamma, &[channels])?)?)?;
            norm.replace_input(3, norm.insert_constant(Tensor::from_slice(&beta, &[channels])?)?)?;
            return Ok(input);
        }
        let offset: Vec<f32> = std::iter::zip(&self.shift, &inverse).map(|(shift, r)| -shift * r).collect();
        let offset = layer.insert_constant(Tensor::from_slice(&offset, &[channels])?)?;
        let inverse = layer.insert_constant(Tensor::from_slice(&inverse, &[channels])?)?;
        operator(layer, "aten::addcmul", &[offset, input, inverse])
    }
}

/// Rows stretched to 0 to 1.
struct Rows<'g> {
    stretched: Value<'g>,
    low: Value<'g>,
    span: Value<'g>,
}

/// `(x - min) / (max - min)` of each row before `layer`. Only new tensors are changed in place, which spares the pages
/// that others would first have to touch.
fn stretch_rows<'g>(layer: Node<'g>, input: Value<'g>) -> Result<Rows<'g>> {
    let last = layer.insert_constant(IValue::int_list([-1]))?;
    let keep = layer.insert_constant(true)?;
    let low = operator(layer, "aten::amin", &[input, last, keep])?;
    let high = operator(layer, "aten::amax", &[input, last, keep])?;
    // A row of equal values has no span: it is all in `low`.
    let least = layer.insert_constant(IValue::Double(1e-12))?;
    let span = operator(layer, "aten::clamp_min", &[operator(layer, "aten::sub", &[high, low])?, least])?;
    let stretched = operator(layer, "aten::div_", &[operator(layer, "aten::sub", &[input, low])?, span])?;
    Ok(Rows { stretched, low, span })
}

fn operator<'g>(before: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = before.insert_operator(kind, inputs)?;
    value.node().copy_metadata(before)?;
    Ok(value)
}

struct Packer<'m> {
    module: &'m Module,
    /// TorchScript that quantizes and packs.
    code: Module,
    /// What was packed, by what it was made of ([`digest`]), and the attribute that has it: layers that share a weight share it
    /// packed as well.
    packed: RefCell<HashMap<u128, String>>,
}

/// A number that weights with another content have another one of.
fn digest(weight: &Tensor, scale: &Tensor, zero_point: &Tensor, bias: Option<&[f32]>) -> Result<u128> {
    let mut halves = [0u8, 1].map(|seed| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(seed);
        hasher
    });
    let shape = weight.shape();
    let qparams = [scale.raw_bytes()?, zero_point.raw_bytes()?];
    weight.with_f32(|values| {
        for half in &mut halves {
            (&shape, &qparams, bias.is_some()).hash(half);
            half.write(bytemuck::cast_slice(values));
            half.write(bytemuck::cast_slice(bias.unwrap_or_default()));
        }
    })?;
    let [high, low] = halves.map(|half| u128::from(half.finish()));
    Ok(high << 64 | low)
}

impl<'m> Packer<'m> {
    fn new(module: &'m Module) -> Result<Self> {
        let code = Module::new("jitquant.PackLinear")?;
        code.define(
            "def pack(self, weight: Tensor, scale: Tensor, zero_point: Tensor, axis: int, bias: Optional[Tensor]):
    if scale.numel() == 1:
        quantized = torch.quantize_per_tensor(weight, float(scale), int(zero_point), 12)
    else:
        quantized = torch.quantize_per_channel(weight, scale, zero_point, axis, 12)
    return ops.quantized.linear_prepack(quantized, bias)
",
        )?;
        Ok(Self { module, code, packed: RefCell::default() })
    }

    /// The packed weight as a value before `layer`; and the weight as it is packed.
    fn packed<'g>(
        &self,
        layer: Node<'g>,
        weight: &LinearWeights,
        bias: Option<&[f32]>,
        observer: &Module,
    ) -> Result<(Value<'g>, Vec<f32>)> {
        let float = weight.tensor()?;
        let grid = WeightGrid::of(&float, observer)?;
        let float = rounded(&float, observer)?.unwrap_or(float);
        let [scale, zero_point] = &grid.qparams;
        let digest = digest(&float, scale, zero_point, bias)?;
        let known = self.packed.borrow().get(&digest).cloned();
        let name = match known {
            Some(name) => name,
            None => {
                let name = self.pack(&float, &grid, bias)?;
                self.packed.borrow_mut().insert(digest, name.clone());
                name
            }
        };
        Ok((layer.insert_get_attribute(layer.graph().inputs()[0], &name)?, float.to_f32_vec()?))
    }

    /// Packs a weight; the attribute that keeps it.
    fn pack(&self, float: &Tensor, grid: &WeightGrid, bias: Option<&[f32]>) -> Result<String> {
        let bias = match bias {
            Some(bias) => Tensor::from_slice(bias, &[bias.len() as i64])?.into(),
            None => IValue::None,
        };
        let [scale, zero_point] = &grid.qparams;
        let packed =
            self.code.call("pack", &[float.into(), scale.into(), zero_point.into(), IValue::Int(grid.axis), bias])?;
        let IValue::Other(object) = &packed else { return Err(Error::invalid("a packed weight should be an object")) };
        let name = (0..).map(|number| format!("_packed_linear_{number}")).find(|name| !self.module.has_attribute(name));
        let name = name.unwrap_or_default();
        self.module.register_attribute(&name, &object.type_of()?, &packed)?;
        Ok(name)
    }

    fn quantize_static<'g>(
        &self,
        layer: Node<'g>,
        input: Value<'g>,
        (low, high): (f32, f32),
        weight: LinearWeights,
        observer: &Module,
    ) -> Result<Value<'g>> {
        let q = qparams(low, high, &QRange::U8_AFFINE).map_err(|e| Error::invalid(e.to_string()))?;
        let (packed, _) = self.packed(layer, &weight, weight.bias.as_deref(), observer)?;
        let scale = layer.insert_constant(IValue::Double(q.scale.into()))?;
        let zero_point = layer.insert_constant(IValue::Int(q.zero_point.into()))?;
        let inputs = [input, scale, zero_point, packed];
        operator(layer, "quantized::linear_with_input_q_dq_qweight_dq_output_fp32", &inputs)
    }

    fn quantize_rows<'g>(
        &self,
        layer: Node<'g>,
        rows: &Rows<'g>,
        weight: LinearWeights,
        observer: &Module,
    ) -> Result<Value<'g>> {
        let (packed, used) = self.packed(layer, &weight, None, observer)?;
        let sums: Vec<f32> =
            used.chunks(weight.inputs).map(|row| row.iter().map(|w| f64::from(*w)).sum::<f64>() as f32).collect();
        let outputs = weight.outputs as i64;
        let bias = layer.insert_constant(Tensor::from_slice(&weight.bias_or_zeros(), &[outputs])?)?;
        let sums = layer.insert_constant(Tensor::from_slice(&sums, &[outputs])?)?;
        let full_range = layer.insert_constant(false)?;
        let product = operator(layer, "quantized::linear_dynamic", &[rows.stretched, packed, full_range])?;
        let product = operator(layer, "aten::mul_", &[product, rows.span])?;
        let product = operator(layer, "aten::addcmul_", &[product, rows.low, sums])?;
        operator(layer, "aten::add_", &[product, bias])
    }
}
