//! An observed flat graph run layer by layer on the calibration data, in float and as it will be quantized side by side:
//! for the methods that compare the two at each layer and change it before the next one runs.
//!
//! Observers are taken for what they will become: activations are quantized and dequantized with the range that was
//! found. What a layer takes in the quantized run has the errors of all layers before it.

mod absorb;
mod equalize;
mod layer;
mod learned_rounding;
mod samples;
mod solver;

use std::collections::{HashMap, HashSet};

pub(crate) use self::equalize::equalize;
use self::layer::Layer;
pub(crate) use self::samples::{Samples, samples_in};
use self::solver::Solver;
use crate::error::{Context, Error, Result};
use crate::ir::{Graph, IValue, Module, Node, Tensor, Value};
use crate::methods::Rounding;
use crate::watch::step;

/// Which methods to apply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    pub rounding: Rounding,
    pub bias_correction: bool,
}

/// Runs `method` of the calibrated flat module on `batches` and changes its observed layers' weights and biases.
///
/// # Errors
/// Where the graph has branches or loops, an operator fails, or a weight cannot be read.
pub(crate) fn replay(module: &Module, method: &str, batches: &[Vec<IValue>], methods: Replay) -> Result<()> {
    let graph = module.graph(method)?;
    if !graph.nodes().any(|node| Layer::of(module, node).is_some()) {
        return Ok(());
    }
    if let Some(node) = branch(&graph) {
        let source = crate::pass::source_of(node);
        return Err(Error::invalid(format!(
            "learned rounding and bias correction run the model operator by operator, which does not go with its \
             branches and loops ({} at {source}); use rounding = \"sums\" and no bias correction",
            node.kind()
        )));
    }
    let mut runner = Runner { module, solver: Solver::new()?, methods, seen: HashSet::new() };
    let mut pairs = Pairs::of_inputs(module, &graph, batches)?;
    let nodes: Vec<_> = graph.nodes().collect();
    for (done, node) in nodes.iter().enumerate() {
        step("fitting layers to the data", done, nodes.len())?;
        runner.run(*node, &mut pairs).context(|| {
            format!(
                "running {} of '{}' ({})",
                node.kind(),
                node.scope().unwrap_or_default(),
                crate::pass::source_of(*node)
            )
        })?;
        pairs.forget_after(*node);
    }
    Ok(())
}

/// Whether the graph has no branches and no loops, so that it can be replayed.
pub(crate) fn is_straight(graph: &Graph) -> bool {
    branch(graph).is_none()
}

pub(crate) fn branch(graph: &Graph) -> Option<Node<'_>> {
    graph.nodes().find(|node| !node.blocks().is_empty() && !is_guard(*node))
}

/// Whether a node only raises an exception where something is wrong with the inputs: `if …: raise …`. It is passed over,
/// since the model has run on the data before.
fn is_guard(node: Node<'_>) -> bool {
    let only_raises =
        |node: Node<'_>| matches!(node.kind(), "prim::Constant" | "prim::RaiseException" | "aten::format");
    node.kind() == "prim::If"
        && node.outputs().is_empty()
        && node.blocks().into_iter().flat_map(|block| block.all_nodes()).all(only_raises)
}

/// What a value is in one batch.
#[derive(Clone)]
struct Pair {
    float: IValue,
    quantized: IValue,
}

impl Pair {
    fn same(value: IValue) -> Self {
        Self { float: value.clone(), quantized: value }
    }
}

/// The values computed so far, for each batch; those that are used no more are dropped.
struct Pairs<'g> {
    values: HashMap<Value<'g>, Vec<Pair>>,
    uses_left: HashMap<Value<'g>, usize>,
    batches: usize,
}

impl<'g> Pairs<'g> {
    fn of_inputs(module: &Module, graph: &'g Graph, batches: &[Vec<IValue>]) -> Result<Self> {
        let mut pairs = Self { values: HashMap::new(), uses_left: HashMap::new(), batches: batches.len() };
        let inputs = graph.inputs();
        for (index, input) in inputs.iter().enumerate() {
            let of_batch = |batch: &Vec<IValue>| match index {
                0 => Ok(Pair::same(IValue::Module(module.clone()))),
                _ => batch.get(index - 1).cloned().map(Pair::same).ok_or_else(|| {
                    Error::invalid(format!("the model takes {} inputs, a batch has {}", inputs.len() - 1, batch.len()))
                }),
            };
            pairs.values.insert(*input, batches.iter().map(of_batch).collect::<Result<_>>()?);
        }
        Ok(pairs)
    }

    fn get(&self, value: Value<'g>) -> Result<Vec<Pair>> {
        if let Some(pairs) = self.values.get(&value) {
            return Ok(pairs.clone());
        }
        let constant =
            value.constant().ok_or_else(|| Error::invalid(format!("%{} is not known", value.debug_name())))?;
        Ok(vec![Pair::same(constant); self.batches])
    }

    fn set(&mut self, value: Value<'g>, pairs: Vec<Pair>) {
        self.uses_left.insert(value, value.uses().len());
        self.values.insert(value, pairs);
    }

    fn forget_after(&mut self, node: Node<'g>) {
        for input in node.inputs() {
            if let Some(left) = self.uses_left.get_mut(&input) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.values.remove(&input);
                }
            }
        }
    }
}

struct Runner<'g> {
    module: &'g Module,
    solver: Solver,
    methods: Replay,
    /// Weights that were changed already: a weight that two layers share fits the first one.
    seen: HashSet<String>,
}

impl<'g> Runner<'g> {
    fn run(&mut self, node: Node<'g>, pairs: &mut Pairs<'g>) -> Result<()> {
        if node.kind() == "prim::Constant" || is_guard(node) {
            return Ok(());
        }
        if node.kind() == "prim::CallMethod" {
            return self.observe(node, pairs);
        }
        let mut inputs: Vec<Vec<Pair>> =
            node.inputs().into_iter().map(|input| pairs.get(input)).collect::<Result<_>>()?;
        if let Some(layer) = Layer::of(self.module, node)
            && self.seen.insert(layer.weight_name.clone())
        {
            self.fit(&layer, &mut inputs)?;
        }
        let mut results: Vec<Vec<Pair>> = vec![Vec::new(); node.outputs().len()];
        for batch in 0..pairs.batches {
            let run = |pick: fn(&Pair) -> &IValue| {
                let inputs: Vec<IValue> = inputs.iter().map(|input| pick(&input[batch]).clone()).collect();
                execute(node, inputs)
            };
            let (float, quantized) = (run(|pair| &pair.float)?, run(|pair| &pair.quantized)?);
            for (results, (float, quantized)) in std::iter::zip(&mut results, std::iter::zip(float, quantized)) {
                results.push(Pair { float, quantized });
            }
        }
        for (output, results) in std::iter::zip(node.outputs(), results) {
            pairs.set(output, results);
        }
        Ok(())
    }

    /// What an observer watched, quantized with the range that it found. Weights are quantized by their layer.
    fn observe(&self, call: Node<'g>, pairs: &mut Pairs<'g>) -> Result<()> {
        let mut watched = pairs.get(call.inputs()[1])?;
        let path = call.input(0).and_then(Value::attribute_path).unwrap_or_default().join(".");
        let observer = self.module.submodule(&path)?;
        let is_weight = call.inputs()[1].node().kind() == "prim::GetAttr";
        if !is_weight && let Some(range) = self.solver.range_of(&observer)? {
            for pair in &mut watched {
                pair.quantized = self.solver.quantize(&pair.quantized, &range)?;
            }
        }
        pairs.set(call.outputs()[0], watched);
        Ok(())
    }

    /// Rounds the layer's weight and corrects its bias, on what the layer takes in both runs.
    fn fit(&self, layer: &Layer<'g>, inputs: &mut [Vec<Pair>]) -> Result<()> {
        let weight = Tensor::try_from(self.module.attribute(&layer.weight_name)?)?;
        let bias = layer.bias(self.module)?;
        let fitted = match self.methods.rounding {
            Rounding::Learned => self.learned(layer, &weight, bias.as_deref(), &inputs[0])?,
            Rounding::Nearest => Some((weight.clone(), bias.clone())),
            Rounding::Sums | Rounding::Auto => layer.rounded_by_sums(&weight)?.map(|weight| (weight, bias.clone())),
        };
        let Some((weight, mut bias)) = fitted else { return Ok(()) };
        let quantized: IValue = match layer.grid(&weight)? {
            Some(grid) => self.solver.quantize_weight(&weight, &grid)?.into(),
            None => (&weight).into(),
        };
        for pair in &mut inputs[1] {
            pair.quantized = quantized.clone();
        }
        if self.methods.bias_correction && self.methods.rounding != Rounding::Learned {
            bias = Some(self.corrected_bias(layer, bias, inputs)?);
        }
        self.module.set_attribute(&layer.weight_name, &weight.into())?;
        if let Some(bias) = bias {
            layer.set_bias(self.module, &bias)?;
            let bias: IValue = Tensor::from_slice(&bias, &[bias.len() as i64])?.into();
            for pair in &mut inputs[2] {
                pair.quantized = bias.clone();
            }
        }
        Ok(())
    }

    /// The bias less what the quantized layer gives too much on average, for each output channel.
    fn corrected_bias(&self, layer: &Layer<'g>, bias: Option<Vec<f32>>, inputs: &[Vec<Pair>]) -> Result<Vec<f32>> {
        let mut errors: Vec<f64> = Vec::new();
        let batches = inputs[0].len();
        for batch in 0..batches {
            let run = |pick: fn(&Pair) -> &IValue| {
                let inputs: Vec<IValue> = inputs.iter().map(|input| pick(&input[batch]).clone()).collect();
                layer.node.run(&inputs)
            };
            let (float, quantized) = (run(|pair| &pair.float)?, run(|pair| &pair.quantized)?);
            let mean = self.solver.mean_error(&float[0], &quantized[0], layer.channel_axis())?;
            errors.resize(mean.len(), 0.0);
            std::iter::zip(&mut errors, mean).for_each(|(sum, mean)| *sum += f64::from(mean) / batches as f64);
        }
        let bias = bias.unwrap_or_else(|| vec![0.0; errors.len()]);
        Ok(std::iter::zip(bias, errors).map(|(bias, error)| bias - error as f32).collect())
    }
}

/// Runs a flat graph on the arguments of its method node by node: `run` gets the place of each node that is no constant, the
/// node, and its inputs, and gives its results. A value is held until the last node that takes it has run.
pub(crate) fn walk<'g>(
    module: &Module,
    graph: &'g Graph,
    arguments: &[IValue],
    mut run: impl FnMut(usize, Node<'g>, Vec<IValue>) -> Result<Vec<IValue>>,
) -> Result<()> {
    let mut values: HashMap<Value<'g>, IValue> = HashMap::new();
    let mut uses_left: HashMap<Value<'g>, usize> = HashMap::new();
    let arguments = std::iter::once(IValue::Module(module.clone())).chain(arguments.iter().cloned());
    values.extend(std::iter::zip(graph.inputs(), arguments));
    for (place, node) in
        graph.nodes().enumerate().filter(|(_, node)| node.kind() != "prim::Constant" && !is_guard(*node))
    {
        let read = |value: &Value<'g>| values.get(value).cloned().or_else(|| value.constant());
        let inputs: Option<Vec<IValue>> = node.inputs().iter().map(read).collect();
        let inputs = inputs.ok_or_else(|| Error::invalid(format!("an input of {} is not known", node.kind())))?;
        let results = run(place, node, inputs).context(|| format!("running {}", node.kind()))?;
        for (output, result) in std::iter::zip(node.outputs(), results) {
            uses_left.insert(output, output.uses().len());
            values.insert(output, result);
        }
        for input in node.inputs() {
            if let Some(left) = uses_left.get_mut(&input) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    values.remove(&input);
                }
            }
        }
    }
    Ok(())
}

/// Runs one operator.
pub(crate) fn execute(node: Node<'_>, inputs: Vec<IValue>) -> Result<Vec<IValue>> {
    Ok(match node.kind() {
        "prim::GetAttr" => match (&inputs[0], node.name_attribute()) {
            (IValue::Module(module), Some(name)) => vec![module.attribute(&name)?],
            _ => return Err(Error::invalid("an attribute of something else than a module")),
        },
        "prim::ListConstruct" => {
            let element = node.outputs()[0].type_of().contained().first().map(|ty| ty.annotation()).unwrap_or_default();
            vec![IValue::List { element, items: inputs }]
        }
        "prim::TupleConstruct" => vec![IValue::Tuple(inputs)],
        "prim::TupleUnpack" | "prim::ListUnpack" => match inputs.into_iter().next() {
            Some(IValue::Tuple(items) | IValue::List { items, .. }) => items,
            _ => return Err(Error::invalid("nothing to unpack")),
        },
        _ => node.run(&inputs)?,
    })
}
