//! Times of single operators: modules that run operator by operator, in turns.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::ir::{Graph, IValue, Module, Node, Tensor, Value};
use crate::measure::quantile;
use crate::replay::{branch, execute, walk};

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
/// their order.
///
/// # Errors
/// Where a graph has branches or loops, or an operator fails.
pub(super) fn passes(graphs: [(&Module, &Graph); 2], inputs: &[IValue], time: Duration) -> Result<[Vec<NodeTimes>; 2]> {
    for (_, graph) in &graphs {
        if let Some(node) = branch(graph) {
            let source = crate::pass::source_of(node);
            return Err(Error::invalid(format!(
                "layers are timed operator by operator, which does not go with the model's branches and loops ({} at \
                 {source})",
                node.kind()
            )));
        }
    }
    let empty = |graph: &Graph| graph.nodes().map(|_| NodeTimes { seconds: Vec::new(), elements: None }).collect();
    let mut times: [Vec<NodeTimes>; 2] = graphs.map(|(_, graph)| empty(graph));
    let start = Instant::now();
    for round in 0.. {
        if round >= WARM_UP + LEAST_PASSES && start.elapsed() >= time {
            break;
        }
        for ((module, graph), times) in std::iter::zip(&graphs, &mut times) {
            pass(module, graph, inputs, times, round >= WARM_UP)?;
        }
    }
    Ok(times)
}

fn pass(module: &Module, graph: &Graph, inputs: &[IValue], times: &mut [NodeTimes], counts: bool) -> Result<()> {
    walk(module, graph, inputs, |place, node, inputs| {
        let begin = Instant::now();
        let results = execute(node, inputs)?;
        let times = &mut times[place];
        if counts {
            times.seconds.push(begin.elapsed().as_secs_f64());
        }
        let shape = results.first().and_then(IValue::as_tensor).map(Tensor::shape);
        times.elements = shape.map(|shape| shape.iter().product::<i64>() as usize);
        Ok(results)
    })
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
        let of = |value: &Value<'_>| value.constant().unwrap_or_else(|| x.clone());
        let inputs: Vec<IValue> = node.inputs().iter().map(of).collect();
        let mut seconds = Vec::new();
        let mut results = Vec::new();
        for round in 0..WARM_UP + 2 * LEAST_PASSES {
            let begin = Instant::now();
            results = execute(node, inputs.clone())?;
            if round >= WARM_UP {
                seconds.push(begin.elapsed().as_secs_f64());
            }
        }
        Ok((quantile(&seconds, 0.5), results.into_iter().next().unwrap_or(IValue::None)))
    }
}
