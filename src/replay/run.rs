//! One of the two runs of a replay: a copy of the graph that libtorch's interpreter runs from layer to layer, and what goes
//! from one layer to the next in each batch.

use std::collections::HashMap;

use super::solver::{Range, Solver};
use crate::error::{Error, Result};
use crate::ir::{Graph, Held, IValue, Module, Node, Stretch, Tensor, Value, last_uses};
use crate::pass::op_table::{Operator, PassThrough};

/// The arguments of the layers that are fitted.
const INPUT: usize = 0;
const WEIGHT: usize = 1;
const BIAS: usize = 2;

/// Whether the graph has no branches and no loops.
pub(crate) fn is_straight(graph: &Graph) -> bool {
    branch(graph).is_none()
}

/// The first branch or loop of a graph.
pub(super) fn branch(graph: &Graph) -> Option<Node<'_>> {
    graph.nodes().find(|node| !node.blocks().is_empty() && !is_guard(*node))
}

/// Whether a node only raises an exception where something is wrong with the inputs: `if …: raise …`.
fn is_guard(node: Node<'_>) -> bool {
    let only_raises =
        |node: Node<'_>| matches!(node.kind(), "prim::Constant" | "prim::RaiseException" | "aten::format");
    node.kind() == "prim::If"
        && node.outputs().is_empty()
        && node.blocks().into_iter().flat_map(|block| block.all_nodes()).all(only_raises)
}

/// What keeps a graph from being run in parts, each part on all batches: one batch would see what the next one leaves.
pub(super) fn obstacle(graph: &Graph) -> Option<(Node<'_>, &'static str)> {
    graph.all_nodes().into_iter().find_map(|node| match node.kind() {
        "prim::SetAttr" if node.input(0).is_some_and(|object| object.type_of().is_module() || is_of_module(object)) => {
            Some((node, "keeps state from one call to the next"))
        }
        kind if writes(kind) && is_of_module(node.input(0)?) => Some((node, "writes into what it keeps")),
        _ => None,
    })
}

/// A copy of an observed flat module: its weights are those of the module, its observers, and whatever else it changes when
/// it runs, its own.
pub(crate) fn trial_copy(module: &Module, method: &str) -> Result<Module> {
    match obstacle(&module.graph(method)?) {
        Some(_) => module.deep_clone(),
        None => module.clone_sharing(|path, _| path.is_empty()),
    }
}

/// A copy of an observed flat module that observes nothing.
pub(crate) fn float_copy(module: &Module, method: &str) -> Result<Module> {
    let copy = trial_copy(module, method)?;
    copy.graph(method)?.all_nodes().into_iter().try_for_each(drop_observer)?;
    Ok(copy)
}

/// What an observer watches goes on without it.
pub(super) fn drop_observer(node: Node<'_>) -> Result<()> {
    if is_observer_call(node).is_none() {
        return Ok(());
    }
    node.outputs()[0].replace_all_uses_with(node.inputs()[1])?;
    node.destroy()
}

/// Whether an operator changes its first argument.
fn writes(kind: &str) -> bool {
    let name = kind.rsplit("::").next().unwrap_or(kind);
    (name.ends_with('_') && !name.ends_with("__"))
        || matches!(
            kind,
            "aten::append"
                | "aten::extend"
                | "aten::insert"
                | "aten::pop"
                | "aten::clear"
                | "aten::remove"
                | "aten::reverse"
                | "aten::sort"
                | "aten::_set_item"
                | "aten::Delete"
                | "aten::update"
                | "aten::popitem"
                | "aten::setdefault"
        )
}

/// Whether a value is an attribute of the model, or may be a view of one.
fn is_of_module(value: Value<'_>) -> bool {
    let node = value.node();
    let moves = Operator::of(node).is_some_and(|row| row.pass_through == PassThrough::Shape);
    match node.kind() {
        "prim::GetAttr" => true,
        "aten::detach" | "aten::alias" | "aten::to" | "aten::as_strided" | "aten::expand_as" | "aten::view_as"
        | "aten::diagonal" | "aten::unbind" | "aten::split" | "prim::ListUnpack" | "aten::__getitem__"
        | "aten::select" | "aten::slice" | "aten::narrow" | "aten::t" | "aten::expand" => {
            node.input(0).is_some_and(is_of_module)
        }
        _ if moves => node.input(0).is_some_and(is_of_module),
        _ => false,
    }
}

/// Whether a `with` statement is about gradients, of which none are recorded here.
pub(super) fn is_of_gradients(node: Node<'_>) -> bool {
    let class = node.input(0).and_then(|context| context.type_of().class_name());
    class.is_some_and(|class| class.contains("torch.autograd.grad_mode."))
}

/// The path of the observer that a node calls.
pub(super) fn is_observer_call(node: Node<'_>) -> Option<String> {
    let path = node.input(0).filter(|_| node.kind() == "prim::CallMethod")?.attribute_path()?;
    path.last()?.starts_with("_observer_").then(|| path.join("."))
}

/// What a method takes in a batch, `module` first; arguments that are not given have their default values.
///
/// # Errors
/// Where an argument without a default value is missing.
fn arguments(module: &Module, method: &str, graph: &Graph, batch: &[IValue]) -> Result<Vec<Held>> {
    let wanted = graph.inputs().len();
    let of = |index: usize| match index.checked_sub(1).map(|place| batch.get(place)) {
        None => Held::of(&IValue::Module(module.clone())),
        Some(Some(given)) => Held::of(given),
        Some(None) => Held::default_argument(module, method, index)
            .map_err(|_| Error::invalid(format!("the model takes {} inputs, a batch has {}", wanted - 1, batch.len()))),
    };
    (0..wanted).map(of).collect()
}

/// The values of a graph's inputs in a batch ([`arguments`]), copied where the graph changes what it is given.
pub(crate) fn given<'g>(
    module: &Module,
    method: &str,
    graph: &'g Graph,
    batch: &[IValue],
) -> Result<HashMap<Value<'g>, Held>> {
    let mut given = arguments(module, method, graph, batch)?;
    if graph.all_nodes().into_iter().any(|node| writes(node.kind())) {
        for value in &mut given[1..] {
            *value = value.deep_copy()?;
        }
    }
    Ok(std::iter::zip(graph.inputs(), given).collect())
}

/// A run.
pub(super) struct Side<'g> {
    /// What the run reads attributes of.
    module: Module,
    nodes: Vec<Node<'g>>,
    /// The layers' places among the nodes.
    stops: Vec<usize>,
    last_uses: HashMap<Value<'g>, usize>,
    /// What was computed and will be used, for each batch.
    values: Vec<HashMap<Value<'g>, Held>>,
    /// The nodes before this one have run.
    at: usize,
}

impl<'g> Side<'g> {
    /// The float run. `graph` is a copy of the method's, and is changed; `stops` are the layers' places in it.
    pub fn float(method: (&Module, &str), graph: &'g Graph, stops: &[usize], batches: &[Vec<IValue>]) -> Result<Self> {
        Self::new(method, graph, stops, batches, |_, _| Ok(None))
    }

    /// The quantized run: where activations are observed they are quantized. Weights are as [`Side::set_weight`] says, those
    /// of layers that do not stop the run as they will be rounded.
    pub fn quantized(
        method: (&Module, &str),
        graph: &'g Graph,
        stops: &[usize],
        batches: &[Vec<IValue>],
        solver: &Solver,
    ) -> Result<Self> {
        let stopping: Vec<Node<'_>> = graph.nodes().collect();
        let stopping: Vec<Node<'_>> = stops.iter().map(|place| stopping[*place]).collect();
        let others = graph.all_nodes().into_iter().filter(|node| !stopping.contains(node));
        let mut weights = Vec::new();
        for layer in others.filter_map(|node| super::Layer::of(method.0, node)) {
            let weight = Tensor::try_from(method.0.attribute(&layer.weight_name)?)?;
            if let Some(grid) = layer.grid(&weight)? {
                weights.push((layer.weight_name.clone(), solver.quantize_weight(&weight, &grid)?));
            }
        }
        let range_of = |observer: &Module, call: Node<'g>| {
            let is_weight = call.inputs()[1].node().kind() == "prim::GetAttr";
            if is_weight { Ok(None) } else { solver.range_of(observer) }
        };
        let side = Self::new(method, graph, stops, batches, range_of)?;
        weights.iter().try_for_each(|(name, weight)| side.module.set_attribute(name, &weight.into()))?;
        Ok(side)
    }

    fn new(
        (module, method): (&Module, &str),
        graph: &'g Graph,
        stops: &[usize],
        batches: &[Vec<IValue>],
        range_of: impl Fn(&Module, Node<'g>) -> Result<Option<Range>>,
    ) -> Result<Self> {
        let before: Vec<Node<'g>> = graph.nodes().collect();
        let stops: Vec<Node<'g>> = stops.iter().map(|place| before[*place]).collect();
        let all = graph.all_nodes();
        for node in all {
            if let Some(path) = is_observer_call(node) {
                let watched = node.inputs()[1];
                let quantized = match range_of(&module.submodule(&path)?, node)? {
                    Some(range) => range.quantize(node, watched)?,
                    None => watched,
                };
                node.outputs()[0].replace_all_uses_with(quantized)?;
                node.destroy()?;
            } else if is_silent(node) && node.outputs().iter().all(|output| !output.is_used()) {
                node.destroy()?;
            }
        }
        let nodes: Vec<Node<'g>> = graph.nodes().collect();
        let places: HashMap<Node<'g>, usize> = nodes.iter().enumerate().map(|(place, node)| (*node, place)).collect();
        let module = module.shallow_copy()?;
        let values = batches.iter().map(|batch| given(&module, method, graph, batch)).collect::<Result<_>>()?;
        let stops = stops.iter().filter_map(|node| places.get(node).copied()).collect();
        Ok(Self { module, last_uses: last_uses(&nodes), nodes, stops, values, at: 0 })
    }

    /// Runs everything before layer `number`.
    pub fn advance(&mut self, number: usize) -> Result<()> {
        let to = self.stops[number];
        let nodes = &self.nodes[self.at..to];
        let work: Vec<_> = nodes.iter().copied().filter(|node| node.kind() != "prim::Constant").collect();
        self.at = to;
        if work.is_empty() {
            return Ok(());
        }
        let last_uses = &self.last_uses;
        let is_used_later = |value: &Value<'g>| last_uses.get(value).is_some_and(|place| *place >= to);
        let outputs: Vec<_> = work.iter().flat_map(|node| node.outputs()).filter(is_used_later).collect();
        let stretch = Stretch::of(&work, &outputs)?;
        for values in &mut self.values {
            let results = stretch.run(|value| values.get(&value))?;
            values.retain(|value, _| is_used_later(value));
            values.extend(std::iter::zip(outputs.iter().copied(), results));
        }
        Ok(())
    }

    fn layer(&self, number: usize) -> Node<'g> {
        self.nodes[self.stops[number]]
    }

    /// What layer `number` takes in each batch.
    pub fn layer_inputs(&self, number: usize) -> Result<Vec<IValue>> {
        let input = self.layer(number).inputs()[INPUT];
        let of = |values: &HashMap<Value<'g>, Held>| match (values.get(&input), input.constant()) {
            (Some(held), _) => held.value(),
            (None, Some(constant)) => Ok(constant),
            (None, None) => Err(Error::invalid(format!("%{} is not known", input.debug_name()))),
        };
        self.values.iter().map(of).collect()
    }

    /// What layer `number` gives in each batch.
    pub fn run_layer(&self, number: usize) -> Result<Vec<IValue>> {
        let layer = self.layer(number);
        let stretch = Stretch::of(&[layer], &layer.outputs())?;
        let of = |values: &HashMap<Value<'g>, Held>| match &stretch.run(|value| values.get(&value))?[..] {
            [result, ..] => result.value(),
            [] => Err(Error::invalid("a layer without a result")),
        };
        self.values.iter().map(of).collect()
    }

    /// Has layer `number`, and later ones that read the attribute, use this weight.
    pub fn set_weight(&mut self, number: usize, attribute: &str, weight: &Tensor) -> Result<()> {
        self.set(self.layer(number).inputs()[WEIGHT], attribute, &weight.into())
    }

    /// Has layer `number` use this bias: an attribute, or a constant.
    pub fn set_bias(&mut self, number: usize, attribute: Option<&str>, bias: &[f32]) -> Result<()> {
        let layer = self.layer(number);
        let bias: IValue = Tensor::from_slice(bias, &[bias.len() as i64])?.into();
        match attribute {
            Some(name) => self.set(layer.inputs()[BIAS], name, &bias),
            None => layer.replace_input(BIAS, layer.insert_constant(bias)?),
        }
    }

    fn set(&mut self, value: Value<'g>, attribute: &str, to: &IValue) -> Result<()> {
        self.module.set_attribute(attribute, to)?;
        let held = Held::of(to)?;
        self.values.iter_mut().for_each(|values| drop(values.insert(value, held.clone())));
        Ok(())
    }
}

/// Whether a node does nothing that a replay is for: it says something, or begins or ends what is about gradients.
fn is_silent(node: Node<'_>) -> bool {
    match node.kind() {
        "prim::Print" | "aten::warn" => true,
        "prim::Enter" | "prim::Exit" => is_of_gradients(node),
        _ => false,
    }
}
