//! The observed tensors of a prepared module: what each is called in a file, and what its observer keeps.

use std::collections::HashMap;

use super::file::{Model, State};
use crate::error::Result;
use crate::ir::{FORWARD, Graph, IValue, Module, Node, Tensor, Value};
use crate::pass::prepare::ROWS;

/// An observed tensor of a flat module.
pub(crate) struct Watched<'g> {
    /// The tensor's place, and what is kept of it: the same whatever else is observed.
    pub key: String,
    pub observer: Module,
    /// The observed tensor, as what takes it sees it.
    pub output: Value<'g>,
}

/// The observed tensors of a module that [`Prepared`] holds. Observers that keep nothing are left out.
pub(crate) fn watched(module: &Module) -> Result<Vec<(String, Module)>> {
    let graph = module.graph(FORWARD)?;
    Ok(watched_in(module, &graph).into_iter().map(|watched| (watched.key, watched.observer)).collect())
}

/// As [`watched`], with the values.
pub(crate) fn watched_in<'g>(module: &Module, graph: &'g Graph) -> Vec<Watched<'g>> {
    let places = places(graph);
    let mut found = Vec::new();
    for call in graph.all_nodes() {
        let Some(name) = observer_name(call).filter(|_| call.kind() == "prim::CallMethod") else { continue };
        let Ok(observer) = module.submodule(&name) else { continue };
        let mut value = call.inputs()[1];
        while observer_name(value.node()).is_some() && value.node().kind() == "prim::CallMethod" {
            value = value.node().inputs()[1];
        }
        if let (Some(place), Some(kept)) = (places.get(&value), kept(&observer)) {
            found.push(Watched { key: format!("{place} {kept}"), observer, output: call.outputs()[0] });
        }
    }
    found
}

/// The name of the observer that a node reads or calls.
fn observer_name(node: Node<'_>) -> Option<String> {
    let read = match node.kind() {
        "prim::GetAttr" => node,
        "prim::CallMethod" => node.input(0)?.node(),
        _ => return None,
    };
    let name = (read.kind() == "prim::GetAttr").then(|| read.name_attribute())??;
    name.starts_with("_observer_").then_some(name)
}

/// Where each value of a graph is computed, observers not counted.
fn places(graph: &Graph) -> HashMap<Value<'_>, String> {
    let mut places: HashMap<_, _> =
        graph.inputs().into_iter().enumerate().map(|(index, input)| (input, format!("input:{index}"))).collect();
    let nodes = graph.all_nodes().into_iter().filter(|node| observer_name(*node).is_none());
    for (number, node) in nodes.enumerate() {
        places.extend(node.outputs().into_iter().enumerate().map(|(i, output)| (output, format!("{number}:{i}"))));
        for (b, block) in node.blocks().into_iter().enumerate() {
            let inputs = block.inputs().into_iter().enumerate();
            places.extend(inputs.map(|(i, input)| (input, format!("{number}.{b}:{i}"))));
        }
    }
    places
}

/// What an observer keeps, in a word; `None` of what is no observer of jitquant's or keeps nothing.
fn kept(observer: &Module) -> Option<String> {
    let number = |name: &str| observer.attribute(name).ok();
    let constant = || number("averaging_constant").and_then(|constant| constant.as_number()).unwrap_or(0.0);
    let axis = || number("ch_axis").and_then(|axis| axis.as_int()).unwrap_or(0);
    if let Some(IValue::Tensor(histogram)) = number("histogram") {
        return Some(format!("histogram-{}", histogram.shape().first()?));
    }
    let class = crate::qconfig::plain_class_name(&observer.class_name());
    match class.rsplit('.').next()? {
        "MinMaxObserver" => Some("min-max".to_owned()),
        "MovingAverageMinMaxObserver" => Some(format!("average-{}", constant())),
        "PerChannelMinMaxObserver" => Some(format!("channels-{}", axis())),
        "MovingAveragePerChannelMinMaxObserver" => Some(format!("average-{}-channels-{}", constant(), axis())),
        _ => None,
    }
}

/// Gives the observers of a prepared module what was recorded; the tensors that nothing was recorded of.
pub(crate) fn restore(prepared: &Module, recorded: &Model) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for (key, observer) in watched(prepared)? {
        let Some(State { min, max, counts }) = state_for(&key, recorded) else {
            let what = match observer.attribute("observed") {
                Ok(IValue::Str(what)) if !what.is_empty() => what,
                _ => key,
            };
            missing.push(what);
            continue;
        };
        let set = |name: &str, values: &[f32]| {
            let is_single = matches!(observer.attribute(name)?, IValue::Tensor(old) if old.shape().is_empty());
            let shape = if is_single { vec![] } else { vec![values.len() as i64] };
            observer.set_attribute(name, &Tensor::from_slice(values, &shape)?.into())
        };
        set("min_val", min)?;
        set("max_val", max)?;
        if observer.has_attribute("histogram") {
            set("histogram", counts)?;
        }
        if observer.has_attribute(ROWS) {
            set(ROWS, if counts.is_empty() { &[0.0] } else { counts })?;
        }
    }
    recorded.range.map_or(Ok(()), |choice| super::choice::decide(prepared, choice))?;
    Ok(missing)
}

/// What was recorded for an observed tensor: of what its observer keeps, or of what has that in it. A histogram has the
/// smallest and the largest value.
fn state_for<'a>(key: &str, recorded: &'a Model) -> Option<&'a State> {
    let of_histogram = || {
        let place = key.strip_suffix("min-max")?;
        let histograms = format!("{place}histogram-");
        let mut all = recorded.observers.range(histograms.clone()..);
        all.next().filter(|(key, _)| key.starts_with(&histograms)).map(|(_, state)| state)
    };
    recorded.observers.get(key).or_else(of_histogram)
}
