//! Native graphs as Programs: how they run fast.
//!
//! In a graph that libtorch executes, maximal parts whose operators all have a step become one node `jitquant::run`, which
//! holds the part as its `Subgraph`. When libtorch makes code of the graph, [`compile_part`] makes a
//! [`Program`](jitquant_runtime::Program) of it. A call that the Program does not take runs the part's operators. What has no
//! step stays TorchScript between parts. What is saved, inspected and copied is the native graph.
//!
//! 1. [`steps`]: what an operator is as a step.
//! 2. [`parts`]: which operators become a part together.
//! 3. [`compile`]: a part's graph as a Program.
//! 4. [`export`]: a whole model as a file that runs without libtorch.

mod compile;
mod export;
mod parts;
mod read;
mod steps;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use self::compile::compile_part;
pub use self::export::export_program;
use crate::error::Result;
use crate::ir::{GeneralPass, Graph, Module};

/// Whether graphs that libtorch optimizes from now on get Programs.
static ON: AtomicBool = AtomicBool::new(true);

/// Has native models run as Programs, or not, from their next optimization on; they do unless the environment says
/// `JITQUANT_PROGRAM=0`.
pub fn set_programs(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Whether native models run as Programs.
pub fn programs() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Cuts the parts out of a graph that libtorch executes; how many there are.
pub(crate) fn make_programs(graph: &mut Graph) -> Result<usize> {
    if !programs() || !graph.all_nodes().into_iter().any(|node| node.kind().starts_with("jitquant::")) {
        return Ok(0);
    }
    let made = parts::cut(graph)?;
    if made > 0 {
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(made)
}

/// How a method of a native model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramParts {
    /// The operators of each part that runs as a Program, and how often it calls them.
    pub parts: Vec<BTreeMap<String, usize>>,
    /// Operators of jitquant that run by themselves, how often, and why the first of them does.
    pub alone: BTreeMap<String, (usize, String)>,
}

/// The parts of a method that run as Programs when libtorch has optimized it, its calls inlined.
///
/// # Errors
/// Where the module has no such method, or its graph cannot be read.
pub fn program_parts(module: &Module, method: &str) -> Result<ProgramParts> {
    let mut graph = module.graph(method)?.deep_clone()?;
    graph.run(GeneralPass::Inline)?;
    graph.run(GeneralPass::ConstantPropagation)?;
    let mut found = ProgramParts::default();
    let mut within = std::collections::HashSet::new();
    for part in parts::all(&graph)? {
        let mut operators = BTreeMap::new();
        for node in &part {
            within.insert(*node);
            *operators.entry(node.kind().to_owned()).or_default() += 1;
        }
        found.parts.push(operators);
    }
    let alone = |node: &crate::ir::Node<'_>| node.kind().starts_with("jitquant::") && !within.contains(node);
    for node in graph.all_nodes().into_iter().filter(alone) {
        let why = match steps::computation(node) {
            Some(Ok(_)) => "it stands alone".to_owned(),
            Some(Err(e)) => e.to_string(),
            None => "it has no step".to_owned(),
        };
        found.alone.entry(node.kind().to_owned()).or_insert((0, why)).0 += 1;
    }
    Ok(found)
}
