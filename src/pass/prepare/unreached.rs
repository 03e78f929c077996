//! What no data reached: a branch for long inputs, an expert without tokens.
//!
//! An observer that saw nothing has no range to give. (torch.ao's gives scale 1 and zero point 0 with a warning, which
//! rounds whatever comes to whole numbers.)

use super::clamps::observer_called_by;
use super::isolated_linear::MARK;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Value};
use crate::pass::layers::{Layer, layer_of};
use crate::pass::op_table::Operator;

/// Why a layer is not quantized that calibration did not run.
const UNREACHED: &str = "no calibration sample reached it";

/// Why a layer is not quantized that takes the result of branches, one of which calibration did not run.
const BEHIND_UNREACHED: &str = "it takes the result of a branch that no calibration sample reached";

/// Why a layer is not quantized whose input or result was refused ([`crate::Prepared::calibrate`]).
const NOT_FINITE: &str = "its input or its result holds NaN or infinity on the calibration data";

/// Takes the observers that saw nothing out of an observed flat module, and those of the weights of layers that no data
/// reached, so that both stay in float; these layers. Layers that are quantized by row need no data, and are not
/// among them.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(crate) fn leave_unreached(module: &Module, method: &str) -> Result<Vec<(Layer, &'static str)>> {
    let graph = module.graph(method)?;
    let mut unreached = Vec::new();
    let mut idle = Vec::new();
    for node in graph.all_nodes() {
        if why_no_range(module, node).is_some() {
            idle.push(node);
        }
        let Some(weight) = weight_observer(module, node) else { continue };
        let around = [Some(weight), node.input(0).map(Value::node), result_observer(node)];
        if let Some(why) = around.into_iter().flatten().find_map(|call| why_no_range(module, call)) {
            idle.push(weight);
            unreached.extend(layer_of(node, "").map(|layer| (layer, why)));
        }
    }
    let mut ends = Vec::new();
    for call in idle.into_iter().filter(|call| !call.is_destroyed()) {
        ends.extend(call.outputs()[0].uses().into_iter().map(|place| place.user));
        call.outputs()[0].replace_all_uses_with(call.inputs()[1])?;
        let object = call.inputs()[0].node();
        call.destroy()?;
        if object.outputs().into_iter().all(|output| !output.is_used()) {
            object.destroy()?;
        }
    }
    let is_joined = |branches: Node<'_>| branches.blocks().into_iter().any(|block| ends.contains(&block.return_node()));
    for node in graph.all_nodes().into_iter().filter(|node| weight_observer(module, *node).is_some()) {
        if node.input(0).is_some_and(|input| is_joined(input.node())) {
            unreached.extend(layer_of(node, "").map(|layer| (layer, BEHIND_UNREACHED)));
        }
    }
    Ok(unreached)
}

/// The layers of an observed flat module that no data reached, as [`leave_unreached`] tells them.
///
/// # Errors
/// Where the module cannot be copied.
pub(crate) fn unreached_layers(module: &Module, method: &str) -> Result<Vec<(Layer, &'static str)>> {
    let graph = module.graph(method)?;
    if !graph.all_nodes().into_iter().any(|node| why_no_range(module, node).is_some()) {
        return Ok(Vec::new());
    }
    leave_unreached(&module.deep_clone()?, method)
}

/// The call of the observer of a layer's weight.
fn weight_observer<'g>(module: &Module, layer: Node<'g>) -> Option<Node<'g>> {
    let weight = Operator::argument(layer, Operator::of(layer)?.weight?)?.node();
    observer_called_by(module, weight).map(|_| weight)
}

/// The call of the observer of what a layer gives, or what an activation after it gives.
fn result_observer(layer: Node<'_>) -> Option<Node<'_>> {
    let mut value: Value<'_> = layer.output(0)?;
    loop {
        let [place] = value.uses()[..] else { return None };
        let user = place.user;
        if user.kind() == "prim::CallMethod" {
            return Some(user);
        }
        let is_activation = Operator::of(user).is_some_and(|row| row.is_clamp || row.pass_through.is_of_first());
        value = user.output(0).filter(|_| is_activation)?;
    }
}

/// Why an observer that `call` calls has no range, where it has none.
fn why_no_range(module: &Module, call: Node<'_>) -> Option<&'static str> {
    let is_mark = || {
        let name = call.input(0).and_then(|object| object.node().name_attribute());
        name.is_some_and(|name| name.starts_with(MARK))
    };
    if call.kind() != "prim::CallMethod" || is_mark() {
        return None;
    }
    let Ok(IValue::Tensor(min)) = observer_called_by(module, call)?.attribute("min_val") else { return None };
    let min = min.to_vec::<f32>().ok()?;
    match min.iter().any(|min| min.is_nan()) {
        true => Some(NOT_FINITE),
        false => (!min.iter().any(|min| min.is_finite())).then_some(UNREACHED),
    }
}
