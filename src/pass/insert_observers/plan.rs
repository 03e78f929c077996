//! Decides which values are observed, walking through a method in the order in which it runs.
//!
//! Code is shared: a graph belongs to a class, and a class may have many instances and its methods many callers. So
//! the observers of a graph's arguments and results are placed where it is called, and what a graph observes inside is
//! decided once, on the first walk through it. Later walks only find out which results come back observed.

use std::collections::{HashMap, HashSet};

use super::calls::{CalledGraphs, Callee, callee};
use super::facts::{Wanted, always_raises, observed_after_relu, passes_from};
use crate::error::{Error, Result};
use crate::ir::{Block, Graph, Module, Node, Value};
use crate::pass::QuantType;
use crate::qconfig::QConfig;

/// Values to observe, in the order in which they are decided on.
pub(super) struct Plan<'g> {
    pub observations: Vec<Observation<'g>>,
}

/// A value to observe.
pub(super) struct Observation<'g> {
    pub value: Value<'g>,
    /// The module whose code computes the value.
    pub module: Module,
    /// The observer to copy.
    pub observer: Module,
}

/// Makes the plan for `method` of `module`; `qconfigs` has each module's observers by [`Module::id`].
pub(super) fn plan<'g>(
    module: &Module,
    method: &str,
    graphs: &'g CalledGraphs,
    qconfigs: &HashMap<usize, Option<QConfig>>,
    quant_type: QuantType,
) -> Result<Plan<'g>> {
    let mut planner = Planner {
        graphs,
        qconfigs,
        wanted: Wanted { quant_type },
        observers: HashMap::new(),
        across_calls: HashMap::new(),
        after_relu: HashMap::new(),
        configured: HashSet::new(),
        walked: HashSet::new(),
        planned: HashSet::new(),
        plan: Plan { observations: Vec::new() },
    };
    let graph = graphs.entry(module, method)?;
    planner.configure(module, graph)?;
    let context = Context { module: module.clone(), graph, is_entry: true, is_function: false };
    planner.walk(graph.block(), &context, &mut HashSet::new())?;
    Ok(planner.plan)
}

struct Planner<'g, 'a> {
    graphs: &'g CalledGraphs,
    qconfigs: &'a HashMap<usize, Option<QConfig>>,
    wanted: Wanted,
    /// The observer that a value's own graph asks for.
    observers: HashMap<Value<'g>, Module>,
    /// For what goes into or comes out of a call or a branch: the same value inside, producers before consumers.
    across_calls: HashMap<Value<'g>, Vec<Value<'g>>>,
    /// For what a relu takes: what the relu gives, to be observed instead.
    after_relu: HashMap<Value<'g>, Value<'g>>,
    configured: HashSet<(usize, usize)>,
    walked: HashSet<Block<'g>>,
    /// The values of the plan.
    planned: HashSet<Value<'g>>,
    plan: Plan<'g>,
}

/// Where a block stands.
struct Context<'g> {
    module: Module,
    graph: &'g Graph,
    /// It is the method's own outermost block: nobody else will observe its arguments and results.
    is_entry: bool,
    is_function: bool,
}

/// What a caller has to know of a block.
struct Outcome {
    /// The observers that its arguments ask for.
    arguments: Vec<Option<Module>>,
    /// The observers that its results ask for.
    results: Vec<Option<Module>>,
    /// Which results are observed already.
    observed_results: Vec<bool>,
}

type Observed<'g> = HashSet<Value<'g>>;

impl<'g> Planner<'g, '_> {
    /// Collects what the graphs say by themselves, callees first.
    fn configure(&mut self, module: &Module, graph: &'g Graph) -> Result<()> {
        if !self.configured.insert((module.id(), graph.id())) {
            return Ok(());
        }
        let nodes = graph.all_nodes();
        for node in &nodes {
            if let Some(callee) = callee(module, *node)? {
                let inner = self.graphs.graph(&callee)?;
                if !callee.is_function {
                    self.configure(&callee.module, inner)?;
                }
                self.connect(*node, &callee, inner);
            }
            if node.kind() == "prim::If" {
                for block in node.blocks() {
                    self.connect_each(&node.outputs(), &block.outputs(), false);
                }
            }
            if let Some((before, after)) = observed_after_relu(*node) {
                self.after_relu.insert(before, after);
            }
        }
        if let Some(Some(qconfig)) = self.qconfigs.get(&module.id()) {
            let outputs = nodes.iter().flat_map(|node| node.outputs());
            for value in graph.inputs().into_iter().chain(outputs) {
                if let Some(observer) = self.wanted.observer(value, qconfig) {
                    self.observers.entry(value).or_insert_with(|| observer.clone());
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, call: Node<'g>, callee: &Callee, inner: &'g Graph) {
        self.connect_each(&call.outputs(), &inner.outputs(), true);
        self.connect_each(&call.inputs()[callee.skipped_inputs..], &inner.inputs(), false);
    }

    fn connect_each(&mut self, outer: &[Value<'g>], inner: &[Value<'g>], inner_produces: bool) {
        for (outer, inner) in outer.iter().zip(inner) {
            let same = self.across_calls.entry(*outer).or_default();
            match (same.contains(inner), inner_produces) {
                (true, _) => {}
                (false, true) => same.insert(0, *inner),
                (false, false) => same.push(*inner),
            }
        }
    }

    /// The observer for `value`: its own graph's, else what the code that it goes through in calls asks for. Where a
    /// producer and a consumer are configured differently the producer's observer is taken.
    fn observer(&self, value: Value<'g>) -> Option<Module> {
        self.observers
            .get(&value)
            .cloned()
            .or_else(|| self.across_calls.get(&value)?.iter().find_map(|inner| self.observer(*inner)))
    }

    fn is_observed(&self, value: Value<'g>, observed: &Observed<'g>) -> bool {
        observed.contains(&value) || self.planned.contains(&value)
    }

    fn walk(&mut self, block: Block<'g>, context: &Context<'g>, observed: &mut Observed<'g>) -> Result<Outcome> {
        let mut outcome = Outcome { arguments: Vec::new(), results: Vec::new(), observed_results: Vec::new() };
        // What is observed elsewhere: where the graph is called, or after the branches have joined.
        let mut left_to_caller = Observed::new();
        if !context.is_entry {
            left_to_caller.extend(context.graph.inputs());
            left_to_caller.extend(context.graph.outputs());
            left_to_caller.extend(block.outputs());
            outcome.arguments = block.inputs().into_iter().map(|value| self.observer(value)).collect();
            outcome.results = block
                .outputs()
                .into_iter()
                .map(|value| if self.is_observed(value, observed) { None } else { self.observer(value) })
                .collect();
        }
        let mut visit = Visit { context, is_first: self.walked.insert(block), left_to_caller, found: Vec::new() };
        for value in block.inputs() {
            self.observe(value, &mut visit, observed);
        }
        for node in block.nodes() {
            if !self.step_into(node, &mut visit, observed)? {
                continue;
            }
            for output in node.outputs() {
                let sources = passes_from(output);
                if !sources.is_empty() && sources.iter().all(|source| self.is_observed(*source, observed)) {
                    observed.insert(output);
                }
                if self.wanted.applies(node, |value| self.is_observed(value, observed)) {
                    self.observe(output, &mut visit, observed);
                }
            }
        }
        outcome.observed_results = block.outputs().into_iter().map(|value| self.is_observed(value, observed)).collect();
        self.conclude(visit)?;
        Ok(outcome)
    }

    /// Walks through what `node` calls or the branches that it has; whether its outputs are still to be looked at.
    fn step_into(&mut self, node: Node<'g>, visit: &mut Visit<'g, '_>, observed: &mut Observed<'g>) -> Result<bool> {
        if let Some(callee) = callee(&visit.context.module, node)? {
            self.step_into_call(node, &callee, visit, observed)?;
            return Ok(true);
        }
        match node.kind() {
            "prim::CallMethod" => Ok(false),
            "prim::If" => self.step_into_branches(node, visit, observed).map(|()| true),
            _ => Ok(true),
        }
    }

    fn step_into_call(
        &mut self,
        call: Node<'g>,
        callee: &Callee,
        visit: &mut Visit<'g, '_>,
        observed: &mut Observed<'g>,
    ) -> Result<()> {
        let inner = self.graphs.graph(callee)?;
        let passed = &call.inputs()[callee.skipped_inputs..];
        let mut observed_inside: Observed<'g> = std::iter::zip(passed, inner.inputs())
            .filter_map(|(outer, inner)| self.is_observed(*outer, observed).then_some(inner))
            .collect();
        let is_function = visit.context.is_function || callee.is_function;
        let context = Context { module: callee.module.clone(), graph: inner, is_entry: false, is_function };
        let outcome = self.walk(inner.block(), &context, &mut observed_inside)?;
        for (output, is_observed) in call.outputs().into_iter().zip(outcome.observed_results) {
            if is_observed {
                observed.insert(output);
            }
        }
        let arguments = passed.iter().copied().zip(outcome.arguments);
        for (value, observer) in arguments.chain(call.outputs().into_iter().zip(outcome.results)) {
            if let Some(observer) = observer {
                self.observe_with(value, observer, visit, observed);
            }
        }
        Ok(())
    }

    fn step_into_branches(
        &mut self,
        node: Node<'g>,
        visit: &mut Visit<'g, '_>,
        observed: &mut Observed<'g>,
    ) -> Result<()> {
        let mut joined: Option<Vec<bool>> = None;
        for block in node.blocks() {
            if always_raises(block) {
                continue;
            }
            let context = Context { is_entry: false, module: visit.context.module.clone(), ..*visit.context };
            let outcome = self.walk(block, &context, observed)?;
            for (value, observer) in block.outputs().into_iter().zip(outcome.results) {
                if let Some(observer) = observer {
                    self.observe_with(value, observer, visit, observed);
                }
            }
            let state: Vec<_> = std::iter::zip(block.outputs(), outcome.observed_results)
                .map(|(value, is_observed)| is_observed || self.is_observed(value, observed))
                .collect();
            if joined.as_ref().is_some_and(|other| *other != state) {
                return Err(Error::invalid(format!(
                    "the branches of an `if` should give results that are quantized in both or in none:\n{node}"
                )));
            }
            joined = Some(state);
        }
        let results = node.outputs().into_iter().zip(joined.unwrap_or_default());
        observed.extend(results.filter_map(|(value, is_observed)| is_observed.then_some(value)));
        Ok(())
    }

    /// Plans to observe `value` where something asks for it.
    fn observe(&mut self, value: Value<'g>, visit: &mut Visit<'g, '_>, observed: &mut Observed<'g>) {
        if let Some(observer) = self.observer(value) {
            self.observe_with(value, observer, visit, observed);
        }
    }

    fn observe_with(
        &mut self,
        value: Value<'g>,
        observer: Module,
        visit: &mut Visit<'g, '_>,
        observed: &mut Observed<'g>,
    ) {
        if visit.left_to_caller.contains(&value) || self.is_observed(value, observed) {
            return;
        }
        let value = self.after_relu.get(&value).copied().unwrap_or(value);
        if visit.is_first && observed.insert(value) {
            visit.found.push((value, observer));
        }
    }

    /// Adds what a first walk found to the plan.
    fn conclude(&mut self, visit: Visit<'g, '_>) -> Result<()> {
        for (value, observer) in visit.found {
            if visit.context.is_function {
                return Err(Error::invalid(format!(
                    "%{} would have to be observed inside a function, which has no module to hold the observer:\n{}",
                    value.debug_name(),
                    value.node()
                )));
            }
            if self.planned.insert(value) {
                let module = visit.context.module.clone();
                self.plan.observations.push(Observation { value, module, observer });
            }
        }
        Ok(())
    }
}

/// One walk through a block.
struct Visit<'g, 'c> {
    context: &'c Context<'g>,
    is_first: bool,
    left_to_caller: Observed<'g>,
    found: Vec<(Value<'g>, Module)>,
}
