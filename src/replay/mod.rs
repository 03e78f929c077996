//! An observed flat graph run layer by layer on the calibration data, in float and as it will be quantized side by side:
//! for the methods that compare the two at each layer and change it before the next one runs.
//!
//! Observers are taken for what they will become: activations are quantized and dequantized with the range that was
//! found. What a layer takes in the quantized run has the errors of all layers before it.
//!
//! What lies between two layers is run by libtorch's interpreter, whatever it is. Layers in branches and loops are not
//! fitted, and are rounded by sums before.

mod absorb;
mod equalize;
mod layer;
mod learned_rounding;
mod run;
mod samples;
mod solver;
mod windows;

use std::collections::HashSet;

pub(crate) use self::equalize::equalize;
use self::layer::Layer;
use self::run::branch;
use self::run::{Side, obstacle};
pub(crate) use self::run::{float_copy, given, is_straight, trial_copy};
pub(crate) use self::samples::{Samples, first_samples, samples_in, samples_of};
use self::solver::Solver;
use crate::error::{Context, Error, Result};
use crate::ir::{Graph, IValue, Module, Node, Tensor};
use crate::methods::Rounding;
use crate::pass::source_of;
use crate::watch::step;

/// Which methods to apply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    pub rounding: Rounding,
    pub bias_correction: bool,
    /// Whether layers that cannot be fitted are an error; else they are rounded by sums.
    pub is_required: bool,
}

/// Runs `method` of the calibrated flat module on `batches` and changes its observed layers' weights and biases.
///
/// # Errors
/// Where it is cancelled or a weight cannot be read; where it is required, also where the graph has branches or keeps state,
/// or fails on the data.
pub(crate) fn replay(module: &Module, method: &str, batches: &[Vec<IValue>], methods: Replay) -> Result<()> {
    let graph = module.graph(method)?;
    let layers: Vec<_> = graph.all_nodes().into_iter().filter_map(|node| Layer::of(module, node)).collect();
    if layers.is_empty() {
        return Ok(());
    }
    if let Some(node) = branch(&graph).filter(|_| methods.is_required) {
        return Err(Error::invalid(format!(
            "learned rounding runs the model layer by layer, which does not go with its branches and loops ({}); use \
             rounding = \"sums\", or \"auto\", which learns where it goes",
            place_of(node)
        )));
    }
    let mut places = places(module, &graph);
    if let Some((node, what)) = obstacle(&graph) {
        let why = format!("the model {what} ({})", place_of(node));
        if methods.is_required {
            return Err(Error::invalid(format!(
                "learned rounding runs the model layer by layer, and {why}; use rounding = \"sums\" or \"auto\""
            )));
        }
        tracing::debug!("weights are rounded by sums: {why}");
        places.clear();
    }
    let fitted: HashSet<&str> = places.iter().map(|(_, layer)| layer.weight_name.as_str()).collect();
    let others: Vec<_> = layers.iter().filter(|layer| !fitted.contains(layer.weight_name.as_str())).collect();
    if let (Some(layer), false) = (others.first(), places.is_empty()) {
        tracing::debug!(
            "{} layers in branches or loops are rounded by sums, the first one {}",
            others.len(),
            place_of(layer.node)
        );
    }
    round_by_sums(module, others, methods)?;
    let mut done = 0;
    let outcome = fit_all(module, (method, &graph), &places, batches, methods, &mut done);
    match outcome {
        Err(e) if !methods.is_required && !e.is_cancelled() => {
            let (_, layer) = &places[done];
            tracing::debug!("the layers from {} on are rounded by sums: {e}", place_of(layer.node));
            round_by_sums(module, places[done..].iter().map(|(_, layer)| layer), methods)
        }
        outcome => outcome,
    }
}

/// A node for people: the layer and its place in the source.
fn place_of(node: Node<'_>) -> String {
    let (path, source) = (node.scope().unwrap_or_default(), source_of(node));
    let name = if path.is_empty() { node.kind().to_owned() } else { format!("{} of '{path}'", node.kind()) };
    if source.is_empty() { name } else { format!("{name} at {source}") }
}

/// The layers that can be fitted and their places among the graph's nodes: those that always run. A weight that two layers
/// share is fitted to the first one.
fn places<'g>(module: &Module, graph: &'g Graph) -> Vec<(usize, Layer<'g>)> {
    let mut seen = HashSet::new();
    let mut contexts = 0;
    let mut found = Vec::new();
    for (place, node) in graph.nodes().enumerate() {
        match node.kind() {
            // What a `with` statement enters it leaves in the same run of the interpreter.
            "prim::Enter" if !run::is_of_gradients(node) => contexts += 1,
            "prim::Exit" if !run::is_of_gradients(node) => contexts -= 1,
            _ => {}
        }
        if contexts == 0
            && let Some(layer) = Layer::of(module, node)
            && seen.insert(layer.weight_name.clone())
        {
            found.push((place, layer));
        }
    }
    found
}

fn round_by_sums<'a, 'g: 'a>(
    module: &Module,
    layers: impl IntoIterator<Item = &'a Layer<'g>>,
    methods: Replay,
) -> Result<()> {
    for layer in layers {
        if methods.rounding != Rounding::Nearest {
            let weight = Tensor::try_from(module.attribute(&layer.weight_name)?)?;
            if let Some(rounded) = layer.rounded_by_sums(&weight)? {
                module.set_attribute(&layer.weight_name, &rounded.into())?;
            }
        }
    }
    Ok(())
}

/// Fits the layers one after the other; `done` counts them.
fn fit_all(
    module: &Module,
    (method, graph): (&str, &Graph),
    places: &[(usize, Layer<'_>)],
    batches: &[Vec<IValue>],
    methods: Replay,
    done: &mut usize,
) -> Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let solver = Solver::new()?;
    let [float_graph, quantized_graph] = [graph.deep_clone()?, graph.deep_clone()?];
    let stops: Vec<usize> = places.iter().map(|(place, _)| *place).collect();
    let mut float = Side::float((module, method), &float_graph, &stops, batches)?;
    let mut quantized = Side::quantized((module, method), &quantized_graph, &stops, batches, &solver)?;
    let runner = Runner { module, solver, methods };
    for (number, (_, layer)) in places.iter().enumerate() {
        *done = number;
        step("fitting layers to the data", number, places.len())?;
        let before = || format!("running what is before {}", place_of(layer.node));
        float.advance(number).context(before)?;
        quantized.advance(number).context(before)?;
        runner.fit(layer, number, &float, &mut quantized).context(|| format!("fitting {}", place_of(layer.node)))?;
    }
    Ok(())
}

/// What a layer takes in one batch.
struct Pair {
    float: IValue,
    quantized: IValue,
}

struct Runner<'m> {
    module: &'m Module,
    solver: Solver,
    methods: Replay,
}

impl Runner<'_> {
    /// Rounds the layer's weight and corrects its bias, on what the layer takes in both runs.
    fn fit(&self, layer: &Layer<'_>, number: usize, float: &Side<'_>, quantized: &mut Side<'_>) -> Result<()> {
        let weight = Tensor::try_from(self.module.attribute(&layer.weight_name)?)?;
        let bias = layer.bias(self.module)?;
        let fitted = match self.methods.rounding {
            Rounding::Learned => {
                let inputs = std::iter::zip(float.layer_inputs(number)?, quantized.layer_inputs(number)?);
                let pairs: Vec<_> = inputs.map(|(float, quantized)| Pair { float, quantized }).collect();
                self.learned(layer, &weight, bias.as_deref(), &pairs)?
            }
            Rounding::Nearest => Some((weight.clone(), bias.clone())),
            Rounding::Sums | Rounding::Auto => layer.rounded_by_sums(&weight)?.map(|weight| (weight, bias.clone())),
        };
        let Some((weight, mut bias)) = fitted else { return Ok(()) };
        let rounded = match layer.grid(&weight)? {
            Some(grid) => self.solver.quantize_weight(&weight, &grid)?,
            None => weight.clone(),
        };
        quantized.set_weight(number, &layer.weight_name, &rounded)?;
        if self.methods.bias_correction && self.methods.rounding != Rounding::Learned {
            bias = Some(self.corrected_bias(layer, bias, float.run_layer(number)?, quantized.run_layer(number)?)?);
        }
        self.module.set_attribute(&layer.weight_name, &weight.into())?;
        if let Some(bias) = bias {
            quantized.set_bias(number, layer.bias_name().as_deref(), &bias)?;
            layer.set_bias(self.module, &bias)?;
        }
        Ok(())
    }

    /// The bias less what the quantized layer gives too much on average, for each output channel.
    fn corrected_bias(
        &self,
        layer: &Layer<'_>,
        bias: Option<Vec<f32>>,
        float: Vec<IValue>,
        quantized: Vec<IValue>,
    ) -> Result<Vec<f32>> {
        let mut errors: Vec<f64> = Vec::new();
        let batches = float.len() as f64;
        for (float, quantized) in std::iter::zip(float, quantized) {
            let mean = self.solver.mean_error(&float, &quantized, layer.channel_axis())?;
            errors.resize(mean.len(), 0.0);
            std::iter::zip(&mut errors, mean).for_each(|(sum, mean)| *sum += f64::from(mean) / batches);
        }
        let bias = bias.unwrap_or_else(|| vec![0.0; errors.len()]);
        Ok(std::iter::zip(bias, errors).map(|(bias, error)| bias - error as f32).collect())
    }
}
