//! Layers that INT8 would slow down: which they are, on this machine, and leaving them in float.
//!
//! The float model and the INT8 one run operator by operator, in turns, on samples of the calibration data: a layer's time
//! is that of its operator, an activation behind it included. What is decided is not each layer by itself: between an INT8
//! layer and one in float a tensor is converted, which costs time as well. The cheapest choice for all layers together is
//! the minimal cut of a network ([`super::cut`]): a layer has a price in INT8 and one in float, and for each tensor there is
//! a price for being quantized (where float computes it and INT8 takes it) and for being dequantized (the other way round),
//! to be paid once however many take it. Operators between layers that exist in both forms (sums, pools, relu) go where it
//! is cheaper; those that exist in float alone, and the model's inputs and outputs, are float.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::cut::{NEVER, Network};
use super::profile::{Conversions, NodeTimes, passes};
use super::timing::{ModelTimes, Runs, medians};
use super::variants::{Plan, Variants};
use super::{Clock, Data, Progress, Ranges};
use crate::engine;
use crate::error::{Error, Result};
use crate::ir::{FORWARD, Graph, IValue, Module, Node, Value};
use crate::pass::op_table::Operator;
use crate::pass::{QuantType, layer_of, tag_layer, tag_of};
use crate::quantizer::Quantizer;
use crate::replay::{first_samples, samples_of};

/// How long operators are timed, and then whole models.
const TIMING: Duration = Duration::from_secs(2);

/// The times of one layer in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerTimes {
    /// Its number, for [`Quantizer::skip_layer`].
    pub number: usize,
    /// The path of its module.
    pub path: String,
    /// What it does, e.g. `conv2d`.
    pub operator: String,
    /// Its place in the TorchScript source.
    pub source: String,
    /// In float, an activation behind it included.
    pub float_seconds: f64,
    /// In INT8, the conversions around it not counted.
    pub int8_seconds: f64,
    /// To quantize its input and to dequantize its result, where float operators surround it.
    pub conversion_seconds: f64,
    /// Whether it stays in float.
    pub in_float: bool,
}

/// What came of [`only_faster`].
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// The layers that could be in INT8, in the order of execution.
    pub layers: Vec<LayerTimes>,
    /// The whole model's times for the same samples.
    pub model: ModelTimes,
    /// What calibration found.
    #[serde(skip)]
    pub ranges: Ranges,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

impl Latency {
    /// A quantizer that leaves these layers in float.
    pub fn apply(&self, quantizer: Quantizer) -> Quantizer {
        let slower = self.layers.iter().filter(|layer| layer.in_float);
        slower.fold(quantizer, |quantizer, layer| quantizer.skip_layer(layer.number, "no faster in INT8 here"))
    }
}

/// Finds the layers of `float` that INT8 would slow down on this machine, with the shapes that the first `samples` samples of
/// the calibration data give, INT8 operators run by `kernels`.
///
/// # Errors
/// Those of [`Quantizer::prepare`]; where the model fails on the data; where `kernels` do not run the quantizer's form;
/// and where no layer is faster in INT8.
pub fn only_faster(
    quantizer: &Quantizer,
    float: &Module,
    data: &Data,
    known: Option<&Ranges>,
    (samples, kernels): (usize, Runs),
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Latency> {
    if !Runs::of(quantizer.model_form()).contains(&kernels) {
        return Err(Error::invalid(format!("{kernels:?} does not run a model in {:?} form", quantizer.model_form())));
    }
    let batch = data.calibration.first().or(data.evaluation.first());
    let batch = batch.ok_or_else(|| Error::invalid("layers are timed on data, and there is none"))?;
    let inputs = first_samples(batch, samples.max(1))?;
    let mut variants = Variants::open(&quantizer.clone().tag_layers(), float, data, known, progress)?;
    let layers: BTreeMap<_, _> = variants.layers()?.into_iter().collect();
    let mut tell = |stage: &str| progress(&Progress { stage, done: 0, total: 0, found: None });
    tell("making a model to time");
    let flat = variants.flat().deep_clone()?.copy_instance()?;
    let flat_graph = flat.graph(FORWARD)?;
    let nodes = flat_graph.all_nodes().into_iter().filter(|node| layer_of(*node, "").is_some());
    nodes.enumerate().try_for_each(|(number, node)| tag_layer(node, number).map(drop))?;
    let make = |variants: &mut Variants<'_>, plan: &Plan| {
        let module = variants.convert(plan, Clock::endless())?.module;
        if kernels == Runs::Accelerated {
            engine::accelerate(&module)?;
        }
        Ok::<Module, Error>(module)
    };
    let all = make(&mut variants, &Plan::default())?;
    let all_graph = all.graph(FORWARD)?;
    tell("timing each layer");
    let [in_float, in_int8] = passes([(&flat, &flat_graph), (&all, &all_graph)], &inputs, TIMING)?;
    let mut conversions = Conversions::new(kernels == Runs::Native)?;
    let isolated = match quantizer.quant_type() {
        QuantType::Dynamic => layers.keys().copied().collect(),
        QuantType::Static => lone_layers(variants.prepared(&Plan::default())?.module())?,
    };
    let sizes = sizes(&flat_graph, &in_float, &inputs);
    let timed = Timed::of((&flat_graph, &in_float), (&all_graph, &in_int8), sizes, &isolated, conversions.overhead);
    let slower = timed.slower(&flat_graph, &isolated, &mut conversions)?;
    let mut rows = Vec::new();
    for (number, layer) in &layers {
        let (Some(float_seconds), Some(int8_seconds)) = (timed.float.get(number), timed.int8.get(number)) else {
            continue;
        };
        rows.push(LayerTimes {
            number: *number,
            path: layer.path.clone(),
            operator: layer.operator.to_owned(),
            source: layer.source.clone(),
            float_seconds: *float_seconds,
            int8_seconds: *int8_seconds,
            conversion_seconds: timed.around(*number, &isolated, &mut conversions)?,
            in_float: slower.contains(number),
        });
    }
    if !layers.is_empty() && layers.keys().all(|number| slower.contains(number)) {
        return Err(Error::invalid(format!(
            "no layer of the model is faster in INT8 on this machine ({samples} samples at once, {} threads): there is \
             nothing to quantize it for but its size",
            crate::threads()
        )));
    }
    drop((flat_graph, all_graph));
    tell("timing whole models");
    let mut notes = Vec::new();
    if rows.len() < layers.len() {
        notes.push(format!("{} layers could not be timed by themselves and stay in INT8", layers.len() - rows.len()));
    }
    let plan = Plan { float: slower, ..Plan::default() };
    let chosen = make(&mut variants, &plan)?;
    let times = medians(&[&flat, &all, &chosen], &inputs, TIMING)?;
    let mut chosen = times[2];
    if !plan.float.is_empty() && chosen > times[1] {
        rows.iter_mut().for_each(|layer| layer.in_float = false);
        notes.push(format!(
            "leaving {} layers in float makes the whole model no faster ({:.2} ms instead of {:.2} ms): all stay in INT8",
            plan.float.len(),
            chosen * 1e3,
            times[1] * 1e3
        ));
        chosen = times[1];
    }
    Ok(Latency {
        layers: rows,
        model: ModelTimes {
            kernels,
            float: times[0],
            all_int8: times[1],
            chosen,
            samples: samples_of(&inputs),
            threads: crate::threads(),
        },
        ranges: variants.ranges().clone(),
        notes,
    })
}

/// The layers that take float and give float, quantized inside: no conversion is saved by having others beside them.
fn lone_layers(prepared: &Module) -> Result<BTreeSet<usize>> {
    let graph = prepared.graph(FORWARD)?;
    let is_marked = |node: Node<'_>| {
        let path = node.input(0)?.node().input(0)?.attribute_path()?;
        path.first()?.starts_with("_observer_lone_").then_some(())
    };
    let layers = graph.all_nodes().into_iter().filter(|node| layer_of(*node, "").is_some()).enumerate();
    Ok(layers.filter(|(_, node)| is_marked(*node).is_some()).map(|(number, _)| number).collect())
}

/// What changes a tensor between float and INT8.
fn is_conversion(node: Node<'_>) -> bool {
    matches!(
        node.kind(),
        "aten::quantize_per_tensor" | "aten::dequantize" | "jitquant::quantize" | "jitquant::dequantize"
    )
}

/// How many elements each tensor of a float graph has.
fn sizes<'g>(graph: &'g Graph, times: &[NodeTimes], inputs: &[IValue]) -> HashMap<Value<'g>, usize> {
    let elements = |input: &IValue| Some(input.as_tensor()?.shape().iter().product::<i64>() as usize);
    let of_inputs = std::iter::zip(graph.inputs().into_iter().skip(1), inputs.iter().map(elements));
    let of_nodes =
        std::iter::zip(graph.nodes(), times).filter_map(|(node, times)| Some((node.output(0)?, times.elements)));
    of_inputs.chain(of_nodes).filter_map(|(value, elements)| Some((value, elements?))).collect()
}

/// The layers' times in seconds, by number.
struct Timed<'g> {
    float: BTreeMap<usize, f64>,
    int8: BTreeMap<usize, f64>,
    /// Elements of each layer's input and result.
    around: BTreeMap<usize, (usize, usize)>,
    sizes: HashMap<Value<'g>, usize>,
}

impl<'g> Timed<'g> {
    fn of(
        (float, in_float): (&'g Graph, &[NodeTimes]),
        (int8, in_int8): (&Graph, &[NodeTimes]),
        sizes: HashMap<Value<'g>, usize>,
        isolated: &BTreeSet<usize>,
        overhead: f64,
    ) -> Self {
        let mut timed = Self { float: BTreeMap::new(), int8: BTreeMap::new(), around: BTreeMap::new(), sizes };
        let is_work = |node: &Node<'_>| !matches!(node.kind(), "prim::Constant" | "prim::GetAttr");
        for (node, times) in std::iter::zip(float.nodes(), in_float).filter(|(node, _)| is_work(node)) {
            let Some(number) = tag_of(node) else { continue };
            *timed.float.entry(number).or_default() += times.median(overhead);
            let result = times.elements.unwrap_or(0);
            let input = node.input(0).and_then(|input| timed.sizes.get(&input).copied()).unwrap_or(result);
            timed.around.entry(number).or_insert((input, result)).1 = result;
        }
        for (node, times) in std::iter::zip(int8.nodes(), in_int8).filter(|(node, _)| is_work(node)) {
            let Some(number) = tag_of(node) else { continue };
            if !is_conversion(node) || isolated.contains(&number) {
                *timed.int8.entry(number).or_default() += times.median(overhead);
            }
        }
        timed
    }

    /// What the conversions around a layer take where float operators surround it.
    fn around(&self, number: usize, isolated: &BTreeSet<usize>, conversions: &mut Conversions) -> Result<f64> {
        match self.around.get(&number) {
            Some((input, result)) if !isolated.contains(&number) => {
                Ok(conversions.of(*input)?.0 + conversions.of(*result)?.1)
            }
            _ => Ok(0.0),
        }
    }

    /// The layers that are to be in float so that all together take the least time.
    fn slower(
        &self,
        graph: &'g Graph,
        isolated: &BTreeSet<usize>,
        conversions: &mut Conversions,
    ) -> Result<BTreeSet<usize>> {
        let nanos = |seconds: f64| (seconds * 1e9) as u64;
        let mut network = Network::new();
        let mut of_layer: BTreeMap<usize, usize> = BTreeMap::new();
        let mut places: HashMap<Node<'_>, usize> = HashMap::new();
        let mut slower = BTreeSet::new();
        for node in graph.nodes() {
            let layer =
                tag_of(node).and_then(|number| Some((number, *self.float.get(&number)?, *self.int8.get(&number)?)));
            let place = match layer {
                Some((number, float, int8)) if isolated.contains(&number) => {
                    if float < int8 {
                        slower.insert(number);
                    }
                    Network::SINK
                }
                Some((number, float, int8)) => *of_layer.entry(number).or_insert_with(|| {
                    let place = network.node();
                    network.price(Network::SOURCE, place, nanos(float));
                    network.price(place, Network::SINK, nanos(int8));
                    place
                }),
                // A layer that is in INT8 and has no time stays there.
                None if tag_of(node).is_some_and(|number| self.float.contains_key(&number))
                    && layer_of(node, "").is_some() =>
                {
                    Network::SINK
                }
                None if exists_in_both(node) => network.node(),
                None => Network::SINK,
            };
            places.insert(node, place);
        }
        for value in graph.nodes().flat_map(Node::outputs).chain(graph.inputs()) {
            let consumers = consumers(value, &places);
            let producer = places.get(&value.node()).copied().unwrap_or(Network::SINK);
            if consumers.is_empty() || !carries_data(value) {
                continue;
            }
            let (quantize, dequantize) = match self.sizes.get(&value) {
                Some(elements) => {
                    let (quantize, dequantize) = conversions.of(*elements)?;
                    // Of two choices that cost the same the one with fewer conversions.
                    (nanos(quantize) + 1, nanos(dequantize) + 1)
                }
                None if value.type_of().is_tensor() => (1, 1),
                // A list goes with what takes it.
                None => (NEVER, NEVER),
            };
            // Dequantized once if anybody takes it in float, quantized once if anybody takes it in INT8.
            let (in_float, in_int8) = (network.node(), network.node());
            network.price(producer, in_float, dequantize);
            network.price(in_int8, producer, quantize);
            for consumer in consumers {
                network.price(in_float, consumer, NEVER);
                network.price(consumer, in_int8, NEVER);
            }
        }
        let is_int8 = network.first_side();
        slower.extend(of_layer.into_iter().filter(|(_, place)| !is_int8[*place]).map(|(number, _)| number));
        Ok(slower)
    }
}

/// Whether a tensor that is computed from the inputs goes along it.
fn carries_data(value: Value<'_>) -> bool {
    let kind = value.type_of();
    let is_data = kind.is_tensor() || kind.contained().iter().any(crate::ir::Type::is_tensor);
    is_data && !matches!(value.node().kind(), "prim::Constant" | "prim::GetAttr")
}

/// Where in the network those are who take `value`; the model's output is float.
fn consumers(value: Value<'_>, places: &HashMap<Node<'_>, usize>) -> Vec<usize> {
    let users = value.uses().into_iter().map(|place| places.get(&place.user).copied().unwrap_or(Network::SINK));
    users.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Whether an operator takes INT8 tensors as it takes float ones.
fn exists_in_both(node: Node<'_>) -> bool {
    use crate::pass::op_table::PassThrough;
    let is_layer_norm = matches!(node.kind(), "aten::layer_norm" | "aten::batch_norm");
    !is_layer_norm
        && layer_of(node, "").is_none()
        && Operator::of(node).is_some_and(|row| {
            row.is_quantized(QuantType::Static) || row.propagation.is_some() || row.pass_through != PassThrough::No
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// conv (tag 0), relu, conv (1), conv (2) in a row, with times made up.
    fn chain(float: [f64; 3], int8: [f64; 3]) -> Vec<usize> {
        let graph = Graph::parse(
            "graph(%x : Tensor, %l : int[]):
               %w : Tensor = prim::GetAttr[name=\"w\"](%x)
               %none : NoneType = prim::Constant()
               %one : int = prim::Constant[value=1]()
               %a : Tensor = aten::conv2d(%x, %w, %none, %l, %l, %l, %one)
               %r : Tensor = aten::relu(%a)
               %b : Tensor = aten::conv2d(%r, %w, %none, %l, %l, %l, %one)
               %c : Tensor = aten::conv2d(%b, %w, %none, %l, %l, %l, %one)
               return (%c)",
        )
        .unwrap();
        let convolutions: Vec<_> = graph.nodes().filter(|node| node.kind() == "aten::conv2d").collect();
        for (number, node) in convolutions.into_iter().enumerate() {
            tag_layer(node, number).unwrap();
        }
        let values = graph.inputs().into_iter().chain(graph.nodes().flat_map(Node::outputs));
        let timed = Timed {
            float: float.into_iter().enumerate().collect(),
            int8: int8.into_iter().enumerate().collect(),
            around: BTreeMap::new(),
            sizes: values.map(|value| (value, 1000)).collect(),
        };
        let mut conversions = Conversions::new(false).unwrap();
        // 10 and 5 µs for each tensor.
        conversions.known.insert(1000, (10e-6, 5e-6));
        let slower = timed.slower(&graph, &BTreeSet::new(), &mut conversions).unwrap();
        slower.into_iter().collect()
    }

    #[test]
    fn a_layer_in_a_chain_goes_to_float_where_it_gains_more_than_two_conversions() {
        let fast = [100e-6, 100e-6, 100e-6];
        assert_eq!(chain(fast, [20e-6, 20e-6, 20e-6]), Vec::<usize>::new());
        // 14 µs slower in INT8: less than the 15 that a float island between INT8 layers costs.
        assert_eq!(chain(fast, [20e-6, 114e-6, 20e-6]), Vec::<usize>::new());
        assert_eq!(chain(fast, [20e-6, 116e-6, 20e-6]), [1]);
        // The last one is followed by float: leaving it in float only moves a conversion.
        assert_eq!(chain(fast, [20e-6, 20e-6, 101e-6]), [2]);
        // Two neighbours that are a little slower share the two conversions.
        assert_eq!(chain(fast, [20e-6, 108e-6, 108e-6]), [1, 2]);
        // A fast one between two slow ones is not worth converting for.
        assert_eq!(chain(fast, [150e-6, 90e-6, 150e-6]), [0, 1, 2]);
    }
}
