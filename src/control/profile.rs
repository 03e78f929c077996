//! Times of single operators: modules that run operator by operator, in turns.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::ir::{FORWARD, Graph, Held, IValue, Module, Node, Stretch, Tensor, Value, last_uses};
use crate::measure::quantile;
use crate::replay::given;

/// The least number of passes that are timed.
const LEAST_PASSES: usize = 9;
/// Passes before those: memory is touched for the first time, libtorch looks its operators up.
const WARM_UP: usize = 2;

/// What a pass over a graph found of one node.
pub(super) struct NodeTimes {
    pub(super) seconds: Vec<f64>,
    /// Elements of its first output, where that is a tensor.
    pub elements: Option<usize>,
}

impl NodeTimes {
    /// The median, less what it takes to call any operator in this way.
    pub fn median(&self, overhead: f64) -> f64 {
        (quantile(&self.seconds, 0.5) - overhead).max(0.0)
    }
}

/// Runs the graphs of both modules on `inputs`, node by node and in turns, for `time`; the times of each graph's nodes, in
/// their order. A branch or a loop is one node.
///
/// # Errors
/// Where an operator fails.
pub(super) fn passes(graphs: [(&Module, &Graph); 2], inputs: &[IValue], time: Duration) -> Result<[Vec<NodeTimes>; 2]> {
    let [one, other] = graphs;
    let passes = [Pass::of(one.0, one.1)?, Pass::of(other.0, other.1)?];
    let empty = |graph: &Graph| graph.nodes().map(|_| NodeTimes { seconds: Vec::new(), elements: None }).collect();
    let mut times: [Vec<NodeTimes>; 2] = graphs.map(|(_, graph)| empty(graph));
    let start = Instant::now();
    for round in 0.. {
        if round >= WARM_UP + LEAST_PASSES && start.elapsed() >= time {
            break;
        }
        for (pass, times) in std::iter::zip(&passes, &mut times) {
            pass.run(inputs, times, round >= WARM_UP)?;
        }
    }
    Ok(times)
}

/// A graph whose nodes run one by one.
struct Pass<'g> {
    module: &'g Module,
    graph: &'g Graph,
    /// The place of each node that is no constant, and the node.
    steps: Vec<(usize, Node<'g>, Stretch<'g>)>,
    last_uses: HashMap<Value<'g>, usize>,
}

impl<'g> Pass<'g> {
    fn of(module: &'g Module, graph: &'g Graph) -> Result<Self> {
        let nodes: Vec<_> = graph.nodes().collect();
        let work = nodes.iter().enumerate().filter(|(_, node)| node.kind() != "prim::Constant");
        let step = |(place, node): (usize, &Node<'g>)| Ok((place, *node, Stretch::of(&[*node], &node.outputs())?));
        Ok(Self { module, graph, steps: work.map(step).collect::<Result<_>>()?, last_uses: last_uses(&nodes) })
    }

    fn run(&self, inputs: &[IValue], times: &mut [NodeTimes], counts: bool) -> Result<()> {
        let mut values: HashMap<Value<'g>, Held> = given(self.module, FORWARD, self.graph, inputs)?;
        for (place, node, stretch) in &self.steps {
            let begin = Instant::now();
            let results = stretch.run(|value| values.get(&value));
            let seconds = begin.elapsed().as_secs_f64();
            let results = results.context(|| format!("running {}", node.kind()))?;
            let times = &mut times[*place];
            if counts {
                times.seconds.push(seconds);
            } else if let Some(result) = results.first() {
                let shape = result.value()?.as_tensor().map(Tensor::shape);
                times.elements = shape.map(|shape| shape.iter().product::<i64>() as usize);
            }
            values.extend(std::iter::zip(node.outputs(), results));
            let is_done = |value: &Value<'g>| self.last_uses.get(value).is_none_or(|last| last <= place);
            node.inputs()
                .into_iter()
                .chain(node.outputs())
                .filter(is_done)
                .for_each(|value| drop(values.remove(&value)));
        }
        Ok(())
    }
}

/// What it costs to go from float to INT8 and back, and to call an operator at all.
pub(super) struct Conversions {
    code: Module,
    pub(super) known: HashMap<usize, (f64, f64)>,
    /// Seconds that an operator takes which does nothing.
    pub overhead: f64,
}

impl Conversions {
    /// Of tensors of libtorch's quantized types, or of plain bytes with jitquant's operators.
    pub fn new(is_native: bool) -> Result<Self> {
        let code = Module::new("jitquant.Conversions")?;
        code.define(match is_native {
            true => {
                "def quantize(self, x: Tensor) -> Tensor:\n    return ops.jitquant.quantize(x, 0.01, 100)\n\
                 def dequantize(self, x: Tensor) -> Tensor:\n    return ops.jitquant.dequantize(x, 0.01, 100)\n"
            }
            false => {
                "def quantize(self, x: Tensor) -> Tensor:\n    return torch.quantize_per_tensor(x, 0.01, 100, 13)\n\
                 def dequantize(self, x: Tensor) -> Tensor:\n    return torch.dequantize(x)\n"
            }
        })?;
        code.define("def nothing(self, x: Tensor) -> int:\n    return torch.dim(x)\n")?;
        let mut conversions = Self { code, known: HashMap::new(), overhead: 0.0 };
        let x = IValue::Tensor(Tensor::from_slice(&[0.0f32], &[1])?);
        conversions.overhead = conversions.time("nothing", &x)?.0;
        Ok(conversions)
    }

    /// Seconds to quantize and to dequantize so many elements.
    pub fn of(&mut self, elements: usize) -> Result<(f64, f64)> {
        if let Some(known) = self.known.get(&elements) {
            return Ok(*known);
        }
        let values: Vec<f32> = (0..elements).map(|index| (index % 151) as f32 * 0.01).collect();
        let x = IValue::Tensor(Tensor::from_slice(&values, &[elements as i64])?);
        let (quantize, quantized) = self.time("quantize", &x)?;
        let (dequantize, _) = self.time("dequantize", &quantized)?;
        let times = ((quantize - self.overhead).max(0.0), (dequantize - self.overhead).max(0.0));
        self.known.insert(elements, times);
        Ok(times)
    }

    /// The median time of the one operator of a method on `x`, and its result.
    fn time(&self, method: &str, x: &IValue) -> Result<(f64, IValue)> {
        let graph = self.code.graph(method)?;
        let is_operator = |node: &Node<'_>| node.kind() != "prim::Constant";
        let node = graph.nodes().find(is_operator).ok_or_else(|| Error::invalid("a method without an operator"))?;
        let stretch = Stretch::of(&[node], &node.outputs())?;
        let x = Held::of(x)?;
        let mut seconds = Vec::new();
        let mut results = Vec::new();
        for round in 0..WARM_UP + 2 * LEAST_PASSES {
            let begin = Instant::now();
            results = stretch.run(|_| Some(&x))?;
            if round >= WARM_UP {
                seconds.push(begin.elapsed().as_secs_f64());
            }
        }
        let result = results.first().map_or(Ok(IValue::None), Held::value)?;
        Ok((quantile(&seconds, 0.5), result))
    }
}
