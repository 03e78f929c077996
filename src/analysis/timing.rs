//! How long a layer takes in both models, on the tensors that it takes there.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::ir::{FORWARD, Graph, IValue, Module, Node, Value};
use crate::measure;

/// Median times of a layer, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerTime {
    /// In the float model.
    pub float: f64,
    /// In the INT8 model; what makes its input INT8 is an operator of its own, and not counted.
    pub int8: f64,
}

/// A part of a flat graph: what computes a value from others. Values go by their names.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub result: String,
    pub inputs: Vec<String>,
}

impl Span {
    pub fn new(result: Value<'_>, inputs: &[Value<'_>]) -> Self {
        Self { result: result.debug_name(), inputs: inputs.iter().map(|value| value.debug_name()).collect() }
    }
}

/// How long each layer is measured, and how often at least.
const BUDGET: Duration = Duration::from_millis(60);
const LEAST: usize = 5;

/// Values that a span needs, by their names.
pub(super) type Known = HashMap<String, IValue>;

/// Times both spans of a layer in turns; `None` where one cannot be run on its own.
///
/// # Errors
/// Where an operator refuses what it was given.
pub(super) fn in_turns(
    float: (&Graph, &Module, &Span, &Known),
    int8: (&Graph, &Module, &Span, &Known),
) -> Result<Option<LayerTime>> {
    let program = |(graph, module, span, known): (_, _, _, _)| Program::new(graph, module, span, known);
    let (Some(float), Some(int8)) = (program(float)?, program(int8)?) else { return Ok(None) };
    let programs = [float, int8];
    // The first runs touch memory and pack what is packed once.
    let times = measure::in_turns(programs.len(), 2, LEAST, BUDGET, |index| programs[index].run())?;
    let median = |index: usize| measure::quantile(&times[index], 0.5);
    Ok(Some(LayerTime { float: median(0), int8: median(1) }))
}

/// Operators in the order in which they run, and what they start from.
struct Program<'g> {
    steps: Vec<Node<'g>>,
    known: HashMap<Value<'g>, IValue>,
}

impl<'g> Program<'g> {
    fn new(graph: &'g Graph, module: &Module, span: &Span, known: &Known) -> Result<Option<Self>> {
        let values: HashMap<String, Value<'g>> = graph
            .inputs()
            .into_iter()
            .chain(graph.nodes().flat_map(|node| node.outputs()))
            .map(|value| (value.debug_name(), value))
            .collect();
        let mut program = Self { steps: Vec::new(), known: HashMap::new() };
        for name in &span.inputs {
            let (Some(value), Some(content)) = (values.get(name), known.get(name)) else { return Ok(None) };
            program.known.insert(*value, content.clone());
        }
        let Some(result) = values.get(&span.result) else { return Ok(None) };
        Ok(program.reach(*result, module).is_some().then_some(program))
    }

    fn reach(&mut self, value: Value<'g>, module: &Module) -> Option<()> {
        let node = value.node();
        if self.known.contains_key(&value) || self.steps.contains(&node) {
            return Some(());
        }
        let kept = value.constant().or_else(|| {
            let path = value.attribute_path()?;
            let (name, owner) = path.split_last()?;
            module.submodule(&owner.join(".")).ok()?.attribute(name).ok()
        });
        if let Some(content) = kept {
            self.known.insert(value, content);
            return Some(());
        }
        let is_operator = node.kind().contains("::") && !node.kind().starts_with("prim::");
        if (!is_operator && node.kind() != "prim::ListConstruct") || !node.blocks().is_empty() {
            return None;
        }
        node.inputs().into_iter().try_for_each(|input| self.reach(input, module))?;
        self.steps.push(node);
        Some(())
    }

    fn run(&self) -> Result<()> {
        let mut made: HashMap<Value<'g>, IValue> = HashMap::new();
        for step in &self.steps {
            let inputs =
                step.inputs().into_iter().map(|input| made.get(&input).or_else(|| self.known.get(&input)).cloned());
            let inputs: Vec<IValue> =
                inputs.collect::<Option<_>>().ok_or_else(|| Error::invalid("a value is missing"))?;
            let results = match step.kind() {
                "prim::ListConstruct" => vec![IValue::List { element: "Tensor".into(), items: inputs }],
                _ => step.run(&inputs)?,
            };
            made.extend(step.outputs().into_iter().zip(results));
        }
        Ok(())
    }
}

/// The names of the values that spans start from, once each, without the graph's own arguments.
pub(super) fn starts<'a>(module: &Module, spans: impl Iterator<Item = &'a Span>) -> Result<Vec<String>> {
    let arguments: Vec<String> = module.graph(FORWARD)?.inputs().into_iter().map(|value| value.debug_name()).collect();
    let graph = module.graph(FORWARD)?;
    let tensors: std::collections::HashSet<String> = graph
        .nodes()
        .flat_map(|node| node.outputs())
        .filter(|value| value.type_of().is_tensor())
        .map(|value| value.debug_name())
        .collect();
    let mut names: Vec<String> = spans.flat_map(|span| span.inputs.iter().cloned()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| !arguments.contains(name) && tensors.contains(name));
    Ok(names)
}
