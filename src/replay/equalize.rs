//! Equalization across layers: the channels between layers get ranges alike, so that one scale fits them all.
//!
//! Between the layers that give a tensor and those that take it, each channel `c` may be multiplied by `s[c] > 0`: what
//! gives it multiplies its output channel's weights and bias, what takes it divides its input channel's weights. Relu,
//! pooling, zero padding and sums do not mind; all layers around a residual stream take part together. A clamp to 0 to 6
//! does mind, beyond the largest value that was seen: there it clips as the range of a quantized tensor does anyway.
//!
//! The scales come from the ranges that activations have on the calibration data. (Nagel et al., Data-Free Quantization,
//! 2019, equalize the ranges of weights instead: with a scale for each channel of a weight nothing is left to gain there.)
//! Multiplying an output channel costs the weights nothing, as each has its own scale; dividing the input channels of a
//! dense layer makes its weights less alike, hence only a part of the way is gone there.
//!
//! Then high biases are absorbed ([`super::absorb`]).

use std::collections::{HashMap, HashSet};

use super::absorb::absorb;
use super::layer::Layer;
use super::run::{drop_observer, given, is_observer_call, obstacle};
use super::solver::Solver;
use crate::error::{Context, Result};
use crate::ir::{Graph, IValue, Module, Node, Stretch, Tensor, Value};
use crate::watch::step;

/// How much of the difference between channels is taken away where only depthwise layers take them.
const DEPTHWISE_STRENGTH: f32 = 1.0;
/// And where dense layers do.
const DENSE_STRENGTH: f32 = 0.5;
/// What is left between the largest value seen and a clamp, as a multiple of that value.
const ROOM_BELOW_CLAMP: f32 = 3.0;
/// The largest scale: what is hardly ever seen is not blown up.
const LARGEST: f32 = 32.0;

/// Equalizes the channels between the observed layers of a flat module; whether anything changed. What observers saw
/// before is wrong then.
///
/// # Errors
/// Where the model fails on the data, or a weight cannot be read.
pub(crate) fn equalize(module: &Module, method: &str, batches: &[Vec<IValue>]) -> Result<bool> {
    let graph = module.graph(method)?;
    let solver = Solver::new()?;
    let families = families(module, &graph);
    let watched: HashSet<Value<'_>> = families.iter().flat_map(|family| family.values.iter().copied()).collect();
    let ranges = channel_ranges(module, (method, &graph), &solver, batches, &watched)?;
    let mut changed = false;
    for family in families {
        let Some(scales) = family.scales(&ranges) else { continue };
        for layer in &family.producers {
            layer.scale_outputs(module, &scales).context(|| format!("equalizing '{}'", layer.weight_name))?;
        }
        for layer in &family.consumers {
            layer.divide_inputs(module, &scales).context(|| format!("equalizing '{}'", layer.weight_name))?;
        }
        changed = true;
    }
    Ok(absorb(module, (method, &graph), &solver, batches)? || changed)
}

/// Values that have their channels in common, and the layers around them.
#[derive(Default)]
struct Family<'g> {
    values: Vec<Value<'g>>,
    producers: Vec<Layer<'g>>,
    consumers: Vec<Layer<'g>>,
}

/// Sets of values, each set with its first value as its name.
#[derive(Default)]
struct Sets<'g> {
    parent: HashMap<Value<'g>, Value<'g>>,
}

impl<'g> Sets<'g> {
    fn find(&mut self, value: Value<'g>) -> Value<'g> {
        let parent = *self.parent.entry(value).or_insert(value);
        if parent == value {
            return value;
        }
        let root = self.find(parent);
        self.parent.insert(value, root);
        root
    }

    fn join(&mut self, one: Value<'g>, other: Value<'g>) {
        let (one, other) = (self.find(one), self.find(other));
        self.parent.insert(one, other);
    }
}

/// The families whose surroundings are all known, each with layers on both sides.
fn families<'g>(module: &Module, graph: &'g Graph) -> Vec<Family<'g>> {
    let mut sets = Sets::default();
    let mut fixed: Vec<Value<'g>> = graph.inputs();
    fixed.extend(graph.outputs());
    let mut layers = Vec::new();
    let mut weights = HashMap::<String, usize>::new();
    for node in graph.all_nodes() {
        let is_shaped = |layer: &Layer<'_>| node.owning_block() == Some(graph.block()) && layer.is_two_dimensional();
        if let Some(layer) = Layer::of(module, node).filter(is_shaped) {
            *weights.entry(layer.weight_name.clone()).or_default() += 1;
            layers.push(layer);
        } else if let Some(inputs) = joined(node).filter(|_| node.owning_block() == Some(graph.block())) {
            inputs.into_iter().for_each(|input| sets.join(input, node.outputs()[0]));
        } else {
            fixed.extend(node.inputs());
            fixed.extend(node.outputs());
        }
    }
    let (single, shared): (Vec<_>, Vec<_>) = layers.into_iter().partition(|layer| weights[&layer.weight_name] == 1);
    fixed.extend(shared.iter().flat_map(|layer| [layer.node.inputs()[0], layer.node.outputs()[0]]));
    let fixed: HashSet<Value<'_>> = fixed.into_iter().map(|value| sets.find(value)).collect();
    let mut families: HashMap<Value<'_>, Family<'_>> = HashMap::new();
    for layer in single {
        let (input, output) = (sets.find(layer.node.inputs()[0]), sets.find(layer.node.outputs()[0]));
        families.entry(input).or_default().consumers.push(layer.clone());
        families.entry(output).or_default().producers.push(layer);
    }
    let all: Vec<_> = sets.parent.keys().copied().collect();
    for value in all {
        if let Some(family) = families.get_mut(&sets.find(value)) {
            family.values.push(value);
        }
    }
    let is_known = |(name, family): &(Value<'_>, Family<'_>)| {
        !fixed.contains(name) && !family.producers.is_empty() && !family.consumers.is_empty()
    };
    families.into_iter().filter(is_known).map(|(_, family)| family).collect()
}

/// The inputs of `node` whose channels are those of its result, where it gives `s x` for `s x`.
fn joined(node: Node<'_>) -> Option<Vec<Value<'_>>> {
    let inputs = node.inputs();
    let number = |index: usize| node.input(index)?.constant()?.as_number();
    match node.kind() {
        "prim::CallMethod" => (inputs.len() == 2).then(|| vec![inputs[1]]),
        "aten::relu"
        | "aten::max_pool2d"
        | "aten::avg_pool2d"
        | "aten::adaptive_avg_pool2d"
        | "aten::dropout"
        | "aten::contiguous" => Some(vec![inputs[0]]),
        "aten::hardtanh" => (number(1) == Some(0.0)).then(|| vec![inputs[0]]),
        "aten::constant_pad_nd" => (number(2) == Some(0.0)).then(|| vec![inputs[0]]),
        "aten::add" => (number(2) == Some(1.0) && inputs[1].type_of().is_tensor() && !inputs[1].is_constant())
            .then(|| vec![inputs[0], inputs[1]]),
        _ => None,
    }
}

impl Family<'_> {
    /// What each channel is multiplied by; `None` where there is nothing to gain or no range is known.
    fn scales(&self, ranges: &HashMap<Value<'_>, Vec<(f32, f32)>>) -> Option<Vec<f32>> {
        let strength = match self.consumers.iter().all(Layer::is_depthwise) {
            true => DEPTHWISE_STRENGTH,
            false => DENSE_STRENGTH,
        };
        let channels = ranges.get(self.values.first()?)?.len();
        // The largest share that a channel has of the whole range, in any of the tensors that are quantized.
        let mut shares = vec![0.0f32; channels];
        let mut room = vec![f32::INFINITY; channels];
        for value in &self.values {
            let of_value = ranges.get(value).filter(|ranges| ranges.len() == channels)?;
            if value.node().kind() == "aten::hardtanh" {
                let bound = value.node().input(2)?.constant()?.as_number()? as f32;
                std::iter::zip(&mut room, of_value).for_each(|(room, range)| {
                    *room = room.min(bound / (ROOM_BELOW_CLAMP * range.1.max(f32::MIN_POSITIVE)))
                });
            }
            if value.node().kind() != "prim::CallMethod" {
                continue;
            }
            let width = |range: &(f32, f32)| range.1.max(0.0) - range.0.min(0.0);
            let whole = of_value.iter().map(width).fold(0.0, f32::max);
            if whole > 0.0 {
                std::iter::zip(&mut shares, of_value)
                    .for_each(|(share, range)| *share = share.max(width(range) / whole));
            }
        }
        let is_useful = shares.iter().any(|share| *share > 0.0);
        let scale = |(share, room): (&f32, &f32)| match *share > 0.0 {
            true => share.recip().powf(strength).min(*room).clamp(1.0, LARGEST),
            false => 1.0,
        };
        is_useful.then(|| std::iter::zip(&shares, &room).map(scale).collect())
    }
}

/// The smallest and largest value of each channel of the values `watched`, which are of the graph's own block, in float.
pub(super) fn channel_ranges<'g>(
    module: &Module,
    (method, graph): (&str, &'g Graph),
    solver: &Solver,
    batches: &[Vec<IValue>],
    watched: &HashSet<Value<'g>>,
) -> Result<HashMap<Value<'g>, Vec<(f32, f32)>>> {
    let copy = graph.deep_clone()?;
    let code = solver.channel_ranges_graph()?;
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    let pairs: Vec<_> = std::iter::zip(graph.nodes(), copy.nodes()).collect();
    for (original, node) in pairs {
        let results = match is_observer_call(node) {
            Some(_) => vec![node.inputs()[1]],
            None => node.outputs(),
        };
        for (value, result) in std::iter::zip(original.outputs(), results) {
            if watched.contains(&value) {
                found.extend(node.next().insert_graph(&code, &[copy.inputs()[0], result])?);
                wanted.push(value);
            }
        }
        drop_observer(node)?;
    }
    copy.all_nodes().into_iter().try_for_each(drop_observer)?;
    let nodes: Vec<_> = copy.nodes().filter(|node| node.kind() != "prim::Constant").collect();
    let stretch = Stretch::of(&nodes, &found)?;
    // What the model keeps stays as it is.
    let module = if obstacle(&copy).is_some() { module.copy_instance()? } else { module.shallow_copy()? };
    let mut ranges: HashMap<Value<'_>, Vec<(f32, f32)>> = HashMap::new();
    for batch in batches {
        step("running the model", 0, 0)?;
        let given = given(&module, method, &copy, batch)?;
        let results = stretch.run(|value| given.get(&value)).context(|| "running the model".into())?;
        for (value, result) in std::iter::zip(&wanted, results) {
            let seen = Solver::channel_ranges(&result.value()?)?;
            match ranges.get_mut(value) {
                Some(ranges) => std::iter::zip(ranges, seen)
                    .for_each(|(range, seen)| *range = (range.0.min(seen.0), range.1.max(seen.1))),
                None => drop(ranges.insert(*value, seen)),
            }
        }
    }
    Ok(ranges)
}

impl Layer<'_> {
    fn is_two_dimensional(&self) -> bool {
        self.node.kind() == "aten::conv2d" && self.groups().is_some()
    }

    fn groups(&self) -> Option<usize> {
        usize::try_from(self.node.input(6)?.constant()?.as_int()?).ok()
    }

    fn is_depthwise(&self) -> bool {
        self.groups().is_some_and(|groups| groups > 1)
    }

    fn read_weight(&self, module: &Module) -> Result<(Vec<f32>, Vec<i64>)> {
        let weight = Tensor::try_from(module.attribute(&self.weight_name)?)?;
        Ok((weight.to_f32_vec()?, weight.shape()))
    }

    fn scale_outputs(&self, module: &Module, scales: &[f32]) -> Result<()> {
        let (mut values, shape) = self.read_weight(module)?;
        let size = (values.len() / scales.len()).max(1);
        std::iter::zip(values.chunks_mut(size), scales)
            .for_each(|(row, scale)| row.iter_mut().for_each(|w| *w *= scale));
        module.set_attribute(&self.weight_name, &Tensor::from_slice(&values, &shape)?.into())?;
        match self.bias(module)? {
            Some(bias) => {
                self.set_bias(module, &std::iter::zip(bias, scales).map(|(b, scale)| b * scale).collect::<Vec<_>>())
            }
            None => Ok(()),
        }
    }

    fn divide_inputs(&self, module: &Module, scales: &[f32]) -> Result<()> {
        let (mut values, shape) = self.read_weight(module)?;
        let (outputs, of_group) = (shape[0] as usize, shape[1] as usize);
        let per_group = (outputs / self.groups().unwrap_or(1)).max(1);
        let size = shape[2..].iter().product::<i64>().max(1) as usize;
        for (index, window) in values.chunks_mut(size).enumerate() {
            let (output, input) = (index / of_group, index % of_group);
            let channel = output / per_group * of_group + input;
            window.iter_mut().for_each(|w| *w /= scales[channel]);
        }
        module.set_attribute(&self.weight_name, &Tensor::from_slice(&values, &shape)?.into())
    }
}
