//! Decides which values are observed, walking through a method in the order in which it runs.
//!
//! Code is shared: a graph belongs to a class, and a class may have many instances and its methods many callers. So
//! the observers of a graph's arguments and results are placed where it is called, and what a graph observes inside is
//! decided once, on the first walk through it. Later walks only find out which results come back observed.

use std::collections::{HashMap, HashSet};

use super::calls::{CalledGraphs, Callee, callee};
use super::facts::{
    Wanted, always_raises, may_be_missing, observed_after_clamp, observed_after_fused_relu, observed_after_relu,
    passes_from,
};
use crate::error::Result;
use crate::ir::{Block, Graph, Module, Node, Value};
use crate::pass::op_table::{Conditions, Operator};
use crate::pass::{QuantType, computes_weight};
use crate::qconfig::{QConfig, QConfigDict, qconfig_for};

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

/// Which observers hold where.
pub(super) enum Configuration<'a> {
    /// By [`Module::id`]: for the code of each module.
    ByModule(&'a HashMap<usize, Option<QConfig>>),
    /// For a flat graph: by the path that each node records ([`Node::scope`]), and the nodes ([`Node::address`]) that are
    /// quantized otherwise. Clamps are observed instead of what they clamp.
    ByScope(&'a QConfigDict, &'a HashSet<usize>),
}

impl<'a> Configuration<'a> {
    /// That of `node` in the code of `module`.
    fn of(&self, module: &Module, node: Node<'_>) -> Option<&'a QConfig> {
        match self {
            Self::ByModule(qconfigs) => qconfigs.get(&module.id())?.as_ref(),
            // A batch norm that was not folded stays in float: 8 bits of its input are not enough for both.
            Self::ByScope(..) if node.kind() == "aten::batch_norm" => None,
            // What a layer norm takes has outliers that only it evens out: 8 bits ruin it (MiniLM: cosine 0.86).
            Self::ByScope(..) if node.kind() == "aten::layer_norm" => None,
            Self::ByScope(..) if computes_weight(node) => None,
            Self::ByScope(..) if !Operator::of(node).is_none_or(|row| row.has_forms(node, Conditions::Asked)) => None,
            Self::ByScope(_, elsewhere) if elsewhere.contains(&node.address().addr()) => None,
            Self::ByScope(qconfigs, _) => qconfig_for(qconfigs, &node.scope().ok()?),
        }
    }

    fn conditions(&self) -> Conditions {
        match self {
            Self::ByModule(_) => Conditions::Ignored,
            Self::ByScope(..) => Conditions::Asked,
        }
    }
}

/// Makes the plan for `method` of `module`.
pub(super) fn plan<'g>(
    module: &Module,
    method: &str,
    graphs: &'g CalledGraphs,
    qconfigs: &Configuration<'_>,
    quant_type: QuantType,
) -> Result<Plan<'g>> {
    let graph = graphs.entry(module, method)?;
    let stay_float = match qconfigs {
        Configuration::ByModule(_) => HashSet::new(),
        Configuration::ByScope(..) => {
            let float = graph.all_nodes().into_iter().filter(|node| qconfigs.of(module, *node).is_none());
            float.map(|node| node.address().addr()).collect()
        }
    };
    let mut planner = Planner {
        graphs,
        qconfigs,
        wanted: Wanted {
            quant_type,
            stay_float,
            conditions: qconfigs.conditions(),
            flat: matches!(qconfigs, Configuration::ByScope(..)),
        },
        observers: HashMap::new(),
        across_calls: HashMap::new(),
        observed_later: HashMap::new(),
        configured: HashSet::new(),
        walked: HashSet::new(),
        planned: HashSet::new(),
        plan: Plan { observations: Vec::new() },
    };
    planner.configure(module, graph)?;
    let context = Context { module: module.clone(), graph, place: Place::Entry, is_function: false };
    planner.walk(graph.block(), &context, &mut HashSet::new())?;
    Ok(planner.plan)
}

struct Planner<'g, 'a> {
    graphs: &'g CalledGraphs,
    qconfigs: &'a Configuration<'a>,
    wanted: Wanted,
    /// The observer that a value's own graph asks for.
    observers: HashMap<Value<'g>, Module>,
    /// For what comes out of or goes into a call or a branch: the same value inside. Its producer is met first.
    across_calls: HashMap<Value<'g>, Vec<Value<'g>>>,
    /// For what a relu or a clamp takes: what it gives, to be observed instead.
    observed_later: HashMap<Value<'g>, Value<'g>>,
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
    place: Place,
    is_function: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The method's own outermost block: nobody else will observe its arguments and results.
    Entry,
    /// What is called, or a branch: its results are observed where they arrive.
    Inner,
    /// The body of a loop: what it takes and gives is not what the loop takes and gives, and is observed in it.
    LoopBody,
}

impl Context<'_> {
    fn inside(&self, place: Place) -> Self {
        Self { module: self.module.clone(), place, ..*self }
    }
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
                self.connect(&node.outputs(), &inner.outputs());
                self.connect(&node.inputs()[callee.skipped_inputs..], &inner.inputs());
            }
            if node.kind() == "prim::If" {
                for block in node.blocks() {
                    self.connect(&node.outputs(), &block.outputs());
                }
            }
            if let Some((before, after)) = observed_after_relu(*node) {
                self.observed_later.insert(before, after);
            }
            if self.wanted.flat
                && let Some((before, after)) = observed_after_clamp(*node).or_else(|| observed_after_fused_relu(*node))
            {
                self.observed_later.insert(before, after);
            }
        }
        let outputs = nodes.iter().flat_map(|node| node.outputs());
        for value in graph.inputs().into_iter().chain(outputs) {
            if let Some(observer) = self.wanted.observer(value, |node| self.qconfigs.of(module, node)) {
                self.observers.entry(value).or_insert_with(|| observer.clone());
            }
        }
        Ok(())
    }

    fn connect(&mut self, outer: &[Value<'g>], inner: &[Value<'g>]) {
        for (outer, inner) in std::iter::zip(outer, inner) {
            let same = self.across_calls.entry(*outer).or_default();
            if !same.contains(inner) {
                same.push(*inner);
            }
        }
    }

    /// The observer for `value`: its own graph's, else what the code that it goes through in calls asks for. Where a
    /// producer and a consumer are configured differently the producer's observer is taken.
    fn observer(&self, value: Value<'g>) -> Option<Module> {
        self.observers
            .get(&value)
            .cloned()
            .or_else(|| self.across_calls.get(&value)?.iter().find_map(|inner| self.observer_inside(*inner)))
    }

    /// What a branch or a callee asks for. In a flat graph a sum or product does not ask for itself: where its operands are in
    /// INT8 it is observed where it stands, else it is float (the update of a buffer).
    fn observer_inside(&self, inner: Value<'g>) -> Option<Module> {
        if self.wanted.flat && Operator::of(inner.node()).is_some_and(|row| row.propagation.is_some()) {
            return None;
        }
        self.observer(inner)
    }

    fn is_observed(&self, value: Value<'g>, observed: &Observed<'g>) -> bool {
        observed.contains(&value) || self.planned.contains(&value)
    }

    fn walk(&mut self, block: Block<'g>, context: &Context<'g>, observed: &mut Observed<'g>) -> Result<Outcome> {
        let mut outcome = Outcome { arguments: Vec::new(), results: Vec::new(), observed_results: Vec::new() };
        // What is observed elsewhere: where the graph is called, or after the branches have joined.
        let mut left_to_caller = Observed::new();
        if context.place != Place::Entry {
            left_to_caller.extend(context.graph.inputs());
            left_to_caller.extend(context.graph.outputs());
        }
        if context.place == Place::Inner {
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
                let sources = passes_from(output, self.wanted.conditions);
                if !sources.is_empty() && sources.iter().all(|source| observed.contains(source)) {
                    observed.insert(output);
                }
                // On a later walk libtorch finds the observer alone where the first one has put it between the value and
                // those who take it.
                let is_taken_by_observer = !visit.is_first && self.planned.contains(&output);
                let is_observed = |value| self.is_observed(value, observed);
                let applies = match is_taken_by_observer {
                    true => self.wanted.follows_inputs(node, is_observed),
                    false => self.wanted.applies(node, is_observed),
                };
                if applies {
                    self.observe(output, &mut visit, observed);
                }
            }
        }
        outcome.observed_results = block.outputs().into_iter().map(|value| self.is_observed(value, observed)).collect();
        self.conclude(visit);
        Ok(outcome)
    }

    /// Walks through what `node` calls or the branches that it has; whether its outputs are still to be looked at.
    fn step_into(&mut self, node: Node<'g>, visit: &mut Visit<'g, '_>, observed: &mut Observed<'g>) -> Result<bool> {
        if let Some(callee) = callee(&visit.context.module, node)? {
            self.step_into_call(node, &callee, visit, observed)?;
            return Ok(true);
        }
        match node.kind() {
            "prim::CallMethod" => return Ok(false),
            "prim::If" => self.step_into_branches(node, visit, observed)?,
            "prim::Loop" => {
                for body in node.blocks() {
                    self.walk(body, &visit.context.inside(Place::LoopBody), observed)?;
                }
            }
            _ => {}
        }
        Ok(true)
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
        let context = Context { module: callee.module.clone(), graph: inner, place: Place::Inner, is_function };
        let outcome = self.walk(inner.block(), &context, &mut observed_inside)?;
        for (output, is_observed) in call.outputs().into_iter().zip(outcome.observed_results) {
            if is_observed {
                observed.insert(output);
            }
        }
        // On a later walk libtorch finds the observer's output passed, where the first one has planned it.
        let is_itself = |(value, _): &(Value<'g>, _)| visit.is_first || !self.planned.contains(value);
        let arguments: Vec<_> = passed.iter().copied().zip(outcome.arguments).filter(is_itself).collect();
        for (value, observer) in arguments.into_iter().chain(call.outputs().into_iter().zip(outcome.results)) {
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
        // A result is observed where every branch gives an observed value; else it may get an observer of its own.
        let mut joined: Option<Vec<bool>> = None;
        for block in node.blocks() {
            if always_raises(block) {
                continue;
            }
            let outcome = self.walk(block, &visit.context.inside(Place::Inner), observed)?;
            for (value, observer) in block.outputs().into_iter().zip(outcome.results) {
                // In a flat graph a sum of float values stays in float in a branch, too.
                let is_float = self.wanted.flat
                    && !self.wanted.follows_inputs(value.node(), |input| self.is_observed(input, observed));
                if let Some(observer) = observer.filter(|_| !is_float) {
                    self.observe_with(value, observer, visit, observed);
                }
            }
            let state = std::iter::zip(block.outputs(), outcome.observed_results)
                .map(|(value, is_observed)| is_observed || self.is_observed(value, observed));
            joined = Some(match joined {
                None => state.collect(),
                Some(other) => std::iter::zip(other, state).map(|(a, b)| a && b).collect(),
            });
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
        if visit.left_to_caller.contains(&value) || observed.contains(&value) {
            return;
        }
        if self.wanted.flat && (!value.type_of().is_tensor() || may_be_missing(value)) {
            return;
        }
        let value = self.observed_later.get(&value).copied().unwrap_or(value);
        // A function has no module to hold an observer. What a later walk would observe is planned no more and counts as
        // observed, as in libtorch.
        if !visit.context.is_function && observed.insert(value) && visit.is_first {
            visit.found.push((value, observer));
        }
    }

    /// Adds what a first walk found to the plan.
    fn conclude(&mut self, visit: Visit<'g, '_>) {
        for (value, observer) in visit.found {
            if self.planned.insert(value) {
                let module = visit.context.module.clone();
                self.plan.observations.push(Observation { value, module, observer });
            }
        }
    }
}

/// One walk through a block.
struct Visit<'g, 'c> {
    context: &'c Context<'g>,
    is_first: bool,
    left_to_caller: Observed<'g>,
    found: Vec<(Value<'g>, Module)>,
}
