//! What a method runs: the graphs of the methods and functions that it calls.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::ir::{Graph, IValue, Module, Node, Value};
use crate::pass::op_table::Operator;

/// The graphs that a method runs, each once, callees before callers.
pub(super) struct CalledGraphs {
    graphs: Vec<CalledGraph>,
    by_id: HashMap<usize, usize>,
}

pub(super) struct CalledGraph {
    pub graph: Graph,
    /// It is a function's and not a method's: it has no `self` to hold observers.
    pub is_function: bool,
}

/// What a call runs, seen from the module that calls.
pub(super) struct Callee {
    /// The module that the callee's `self` is; of a function the caller's.
    pub module: Module,
    /// A handle that only identifies the graph.
    graph: Graph,
    pub is_function: bool,
    /// The call's inputs before the callee's first argument.
    pub skipped_inputs: usize,
}

impl CalledGraphs {
    pub fn of(module: &Module, method: &str) -> Result<Self> {
        let mut all = Self { graphs: Vec::new(), by_id: HashMap::new() };
        all.add(module, module.graph(method)?, false, &mut HashSet::new())?;
        Ok(all)
    }

    fn add(
        &mut self,
        module: &Module,
        graph: Graph,
        is_function: bool,
        seen: &mut HashSet<(usize, usize)>,
    ) -> Result<()> {
        if !seen.insert((module.id(), graph.id())) {
            return Ok(());
        }
        for node in graph.all_nodes() {
            if let Some(callee) = callee(module, node)? {
                self.add(&callee.module, callee.graph, callee.is_function, seen)?;
            }
        }
        if !self.by_id.contains_key(&graph.id()) {
            self.by_id.insert(graph.id(), self.graphs.len());
            self.graphs.push(CalledGraph { graph, is_function });
        }
        Ok(())
    }

    /// The methods' graphs, to be rewritten.
    pub fn methods_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.graphs.iter_mut().filter(|called| !called.is_function).map(|called| &mut called.graph)
    }

    pub fn entry(&self, module: &Module, method: &str) -> Result<&Graph> {
        self.known(&module.graph(method)?)
    }

    /// The callee's graph.
    pub fn graph(&self, callee: &Callee) -> Result<&Graph> {
        self.known(&callee.graph)
    }

    fn known(&self, graph: &Graph) -> Result<&Graph> {
        let index = self.by_id.get(&graph.id()).ok_or_else(|| Error::invalid("a called graph was not collected"))?;
        Ok(&self.graphs[*index].graph)
    }
}

/// What `node`, in code that runs on `module`, calls; `None` where it calls nothing, or something that is quantized as
/// a whole or stays in float as a whole: a function with a row in the table, a method of an object that is no module.
pub(super) fn callee(module: &Module, node: Node<'_>) -> Result<Option<Callee>> {
    match node.kind() {
        "prim::CallFunction" if Operator::of(node).is_none() => {
            let Ok(graph) = node.called_graph() else { return Ok(None) };
            Ok(Some(Callee { module: module.clone(), graph, is_function: true, skipped_inputs: 1 }))
        }
        "prim::CallMethod" => {
            let (Some(object), Some(method)) = (node.input(0), node.name_attribute()) else { return Ok(None) };
            match called_module(module, object)? {
                Some(module) => {
                    let graph = module.graph(&method)?;
                    Ok(Some(Callee { module, graph, is_function: false, skipped_inputs: 0 }))
                }
                None => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

/// The module that `object` is, followed through `self.a.b`; `None` where it is something else.
fn called_module(module: &Module, object: Value<'_>) -> Result<Option<Module>> {
    let mut names = Vec::new();
    let mut value = object;
    while value.node().kind() == "prim::GetAttr" {
        let (Some(parent), Some(name)) = (value.node().input(0), value.node().name_attribute()) else {
            return Ok(None);
        };
        names.push(name);
        value = parent;
    }
    if object.graph().inputs().first() != Some(&value) {
        tracing::warn!(
            "the call of %{} stays in float: it is reached through '{}' and not through attributes of self",
            object.debug_name(),
            value.node().kind()
        );
        return Ok(None);
    }
    let mut module = module.clone();
    for name in names.iter().rev() {
        match module.attribute(name)? {
            IValue::Module(child) => module = child,
            _ => return Ok(None),
        }
    }
    Ok(Some(module))
}
