//! Layers whose input has no batch dimension: a linear layer on a vector, a convolution on `C x H x W`. libtorch's INT8
//! kernels want one, so that it is put before the layer and taken away behind it.
//!
//! A graph does not tell how many dimensions a tensor has. Where there is data, it is looked up with the first batch
//! ([`Ranks::of_run`]); without data, linear layers get the dimension wherever it cannot be excluded
//! ([`guard_vectors`]), which is right for any number of dimensions.

use std::collections::HashMap;

use super::axis::{keeps_rank, rank_of};
use super::isolated_linear::MARK;
use crate::error::Result;
use crate::ir::{Graph, IValue, Module, Node, Type, Value};

/// The layers that want a batch dimension, and how many dimensions with it; a linear layer wants two or more.
fn wanted_rank(node: Node<'_>) -> Option<usize> {
    match node.kind() {
        "aten::linear" => Some(2),
        "aten::conv1d" | "aten::conv_transpose1d" => Some(3),
        "aten::conv2d" | "aten::conv_transpose2d" => Some(4),
        "aten::conv3d" | "aten::conv_transpose3d" => Some(5),
        _ => None,
    }
}

/// How many dimensions the inputs of a flat module's layers have, layer by layer in order.
pub(crate) struct Ranks(Vec<Vec<usize>>);

/// The attribute of a copy of the module that takes down numbers of dimensions.
const RECORD: &str = "jitquant_ranks";

impl Ranks {
    /// Runs a copy of the observed flat `module`, without its observers, on a batch; `None` where it refuses it.
    ///
    /// # Errors
    /// Where libtorch refuses to change the copy.
    pub fn of_run(module: &Module, method: &str, inputs: &[IValue]) -> Result<Option<Self>> {
        let mut copy = module.clone_by(true, |_| ())?;
        if copy.graph(method)?.all_nodes().iter().any(|node| node.kind() == "prim::SetAttr") {
            // Its state stays where it is.
            copy = copy.copy_instance()?;
        }
        copy.register_attribute(RECORD, &Type::parse("List[int]")?, &IValue::int_list([]))?;
        let layers = {
            let graph = copy.graph(method)?;
            let mut layers = 0;
            for node in graph.all_nodes() {
                if is_observer_call(node) {
                    node.outputs()[0].replace_all_uses_with(node.inputs()[1])?;
                    node.destroy()?;
                } else if wanted_rank(node).is_some() {
                    let list = node.insert_get_attribute(graph.inputs()[0], RECORD)?;
                    let dimensions = node.insert_operator("aten::dim", &[node.inputs()[0]])?;
                    node.insert_operator("aten::append", &[list, node.insert_constant(IValue::Int(layers))?])?;
                    node.insert_operator("aten::append", &[list, dimensions])?;
                    layers += 1;
                }
            }
            layers
        };
        let outcome: Result<IValue> = copy.call_once_on_copies(method, inputs);
        if outcome.is_err() {
            return Ok(None);
        }
        let mut ranks = vec![Vec::new(); layers as usize];
        if let IValue::List { items, .. } = copy.attribute(RECORD)? {
            let numbers: Vec<i64> = items.iter().filter_map(IValue::as_int).collect();
            for pair in numbers.chunks_exact(2) {
                if let Some(seen) = ranks.get_mut(pair[0] as usize) {
                    seen.push(pair[1] as usize);
                }
            }
        }
        Ok(Some(Self(ranks)))
    }

    /// Puts a batch dimension around the layers of the same observed module that had none; how many.
    ///
    /// # Errors
    /// Where libtorch refuses to change the graph.
    pub fn add_dimensions(&self, module: &Module, method: &str) -> Result<usize> {
        let graph = module.graph(method)?;
        let layers = graph.all_nodes().into_iter().filter_map(|node| Some((node, wanted_rank(node)?)));
        let mut changed = 0;
        for ((layer, wanted), seen) in std::iter::zip(layers, &self.0) {
            let lacks = match layer.kind() {
                "aten::linear" => seen.contains(&1) || loses_batch_of_one(layer.inputs()[0]),
                _ => !seen.is_empty() && seen.iter().all(|rank| rank + 1 == wanted),
            };
            if lacks {
                add_dimension(layer)?;
                changed += 1;
            }
        }
        Ok(changed)
    }
}

/// Whether `value` is a vector where the batch has one sample, whatever it is for others: `squeeze` takes that dimension away.
fn loses_batch_of_one(mut value: Value<'_>) -> bool {
    loop {
        let node = value.node();
        value = match node.kind() {
            "aten::squeeze" => match node.input(1) {
                None => return true,
                Some(dimension) if zero(dimension).is_some() => return true,
                Some(_) => node.inputs()[0],
            },
            "aten::add" | "aten::mul" | "aten::sub" | "aten::div" => node.inputs()[0],
            _ if is_observer_call(node) || is_mark(node) => node.inputs()[1],
            _ if keeps_rank(node) && node.kind() != "aten::transpose" => node.inputs()[0],
            _ => return false,
        };
    }
}

/// Puts a dimension before each linear layer of a flat graph whose input may be a vector, and takes it away behind it; how
/// many.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn guard_vectors(graph: &Graph) -> Result<usize> {
    let least = least_ranks(graph);
    let may_be_vector = |node: &Node<'_>| least.get(&node.inputs()[0]).copied().unwrap_or(0) < 2;
    let linear = graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::linear");
    let layers: Vec<_> = linear.filter(may_be_vector).collect();
    layers.iter().try_for_each(|layer| add_dimension(*layer))?;
    for layer in &layers {
        join_neighbours(*layer)?;
    }
    Ok(layers.len())
}

/// `squeeze(0)` and `unsqueeze(0)` between two layers go, also with an activation between them.
fn join_neighbours(layer: Node<'_>) -> Result<()> {
    let unsqueeze = layer.inputs()[0].node();
    if unsqueeze.kind() != "aten::unsqueeze" {
        return Ok(());
    }
    let mut last = unsqueeze.inputs()[0];
    let mut between = Vec::new();
    while super::axis::is_elementwise(last.node()) && last.uses().len() == 1 {
        between.push(last.node());
        last = last.node().inputs()[0];
    }
    let squeeze = last.node();
    let is_alone = last.uses().len() == 1 && squeeze.owning_block() == layer.owning_block();
    if squeeze.kind() != "aten::squeeze" || !is_alone || squeeze.input(1).and_then(zero).is_none() {
        return Ok(());
    }
    // What stands between works on any number of dimensions.
    last.replace_all_uses_with(squeeze.inputs()[0])?;
    squeeze.destroy()?;
    unsqueeze.outputs()[0].replace_all_uses_with(unsqueeze.inputs()[0])?;
    unsqueeze.destroy()
}

fn zero(value: Value<'_>) -> Option<()> {
    (value.constant()?.as_int() == Some(0)).then_some(())
}

fn is_observer_call(node: Node<'_>) -> bool {
    let name = || node.input(0)?.attribute_path()?.last().cloned();
    node.kind() == "prim::CallMethod" && name().is_some_and(|name| name.starts_with("_observer_"))
}

fn is_mark(node: Node<'_>) -> bool {
    let name = || node.input(0)?.attribute_path()?.last().cloned();
    node.kind() == "prim::CallMethod" && name().is_some_and(|name| name.starts_with(MARK))
}

/// `squeeze(layer(unsqueeze(x, 0)), 0)`: the activation that the layer takes in, and the observer of its result, stay with
/// it.
fn add_dimension(layer: Node<'_>) -> Result<()> {
    let input = layer.inputs()[0];
    // A mark is shared by layers with the same input: the first one puts the dimension before it.
    let (reader, index) = if is_mark(input.node()) { (input.node(), 1) } else { (layer, 0) };
    let x = reader.inputs()[index];
    if reader == layer || !is_batch_of_one(x) {
        let zero = reader.insert_constant(IValue::Int(0))?;
        let batch = reader.insert_operator("aten::unsqueeze", &[x, zero])?;
        batch.node().copy_metadata(layer)?;
        reader.replace_input(index, batch)?;
    }
    let mut result = layer.outputs()[0];
    let only_user = |value: Value<'_>| match value.uses()[..] {
        [place] if place.user.owning_block() == layer.owning_block() => Some(place.user.address()),
        _ => None,
    };
    for follows in [is_activation as fn(Node<'_>) -> bool, is_observer_call] {
        let Some(user) = result.uses().first().map(|place| place.user) else { break };
        if only_user(result) == Some(user.address()) && follows(user) {
            result = user.outputs()[0];
        }
    }
    let at = result.node().next();
    let zero = at.insert_constant(IValue::Int(0))?;
    let without = at.insert_operator("aten::squeeze", &[result, zero])?;
    without.node().copy_metadata(layer)?;
    result.replace_all_uses_with(without)?;
    without.node().replace_input(0, result)
}

/// Whether a value has got its dimension already.
fn is_batch_of_one(value: Value<'_>) -> bool {
    value.node().kind() == "aten::unsqueeze" && value.node().input(1).and_then(zero).is_some()
}

fn is_activation(node: Node<'_>) -> bool {
    matches!(node.kind(), "aten::relu" | "aten::hardtanh" | "aten::clamp")
}

/// How many rounds ranks are handed on through a graph.
const ROUNDS: usize = 6;

/// How many dimensions values have at least, by what computes and what takes them.
fn least_ranks(graph: &Graph) -> HashMap<Value<'_>, usize> {
    let mut least = HashMap::new();
    let nodes = graph.all_nodes();
    for round in 0..ROUNDS {
        let before: usize = least.values().sum();
        let forward: Vec<_> = nodes.iter().collect();
        let ordered: Vec<_> = if round % 2 == 0 { forward } else { forward.into_iter().rev().collect() };
        for node in ordered {
            told_by_node(*node, &mut least);
        }
        if round > 0 && least.values().sum::<usize>() == before {
            break;
        }
    }
    least
}

fn told_by_node<'g>(node: Node<'g>, least: &mut HashMap<Value<'g>, usize>) {
    fn raise<'g>(least: &mut HashMap<Value<'g>, usize>, value: Value<'g>, rank: usize) {
        let known = least.entry(value).or_insert(0);
        *known = (*known).max(rank);
    }
    let number = |index: usize| node.input(index)?.constant()?.as_int();
    // A dimension is asked for by its number.
    let asked = |index: usize| match number(index) {
        Some(at) if at >= 0 => at as usize + 1,
        Some(at) => at.unsigned_abs() as usize,
        None => 0,
    };
    let (Some(first), Some(output)) = (node.input(0), node.output(0)) else { return };
    if let Some(rank) = rank_of(output).filter(|_| !keeps_rank(node)) {
        raise(least, output, rank);
    }
    let of = |least: &HashMap<Value<'g>, usize>, value: Value<'g>| least.get(&value).copied().unwrap_or(0);
    match node.kind() {
        "aten::size" | "aten::softmax" | "aten::unbind" | "aten::log_softmax" => {
            raise(least, first, asked(1));
        }
        "aten::select" | "aten::slice" | "aten::split" => raise(least, first, asked(1)),
        "aten::transpose" => raise(least, first, asked(1).max(asked(2))),
        "aten::permute" => {
            if let Some(rank) = rank_of(output) {
                raise(least, first, rank);
            }
        }
        "aten::bmm" => raise(least, first, 3),
        "aten::lstm" | "aten::gru" => raise(least, first, 2),
        "aten::unsqueeze" => {
            let rank = of(least, first);
            raise(least, output, rank + 1);
        }
        "aten::embedding" => {
            if let Some(indices) = node.input(1) {
                let rank = of(least, indices);
                raise(least, output, rank + 1);
            }
        }
        "aten::add" | "aten::mul" | "aten::sub" | "aten::div" => {
            let others = node.inputs().into_iter().take(2).map(|value| of(least, value)).max();
            raise(least, output, others.unwrap_or(0));
        }
        _ => {}
    }
    if keeps_rank(node) || matches!(node.kind(), "aten::layer_norm" | "aten::softmax" | "aten::slice") {
        let rank = of(least, first).max(of(least, output));
        raise(least, first, rank);
        raise(least, output, rank);
    }
    if node.kind() == "prim::If" {
        for (index, output) in node.outputs().into_iter().enumerate() {
            let results = node.blocks().into_iter().filter_map(|block| block.outputs().get(index).copied());
            let rank = results.map(|value| of(least, value)).min().unwrap_or(0);
            raise(least, output, rank);
        }
    }
}
