//! Programs that PT2E quantized: pairs of quantize and dequantize around what is computed in float.
//!
//! They say how another engine would round. The float model is what stands between them: a pair on an activation gives its
//! argument, and integers that are kept as a weight become the numbers that they stand for. INT8 is then made anew, with
//! ranges of one's own data.

use std::collections::BTreeMap;

use super::call::{first_name, given};
use super::graph::Builder;
use super::schema::{self, Argument, Float, Program};
use super::state::{Held, Role};
use super::weights::Tensors;
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::Tensor;

/// The function's name, of PyTorch's and of torchao's operators.
fn function(node: &schema::Node) -> Option<&str> {
    let rest = node.target.strip_prefix("torch.ops.quantized_decomposed.")?;
    Some(rest.split('.').next().unwrap_or(rest))
}

fn is_quantize(name: &str) -> bool {
    matches!(name, "quantize_per_tensor" | "quantize_per_channel" | "quantize_per_token")
}

fn is_dequantize(name: &str) -> bool {
    matches!(name, "dequantize_per_tensor" | "dequantize_per_channel" | "dequantize_per_token")
}

/// Writes a node of a quantized program.
///
/// # Errors
/// Where it computes with integers.
pub(super) fn translate<'p>(builder: &mut Builder<'_, 'p>, node: &'p schema::Node, name: &str) -> Result<bool> {
    match name {
        _ if function(node).is_some() && (is_quantize(name) || is_dequantize(name)) => {
            let value = builder.tensor_of(node, "input")?;
            builder.bind(first_name(node)?, value)?;
        }
        // Ranges that are found at run time: nobody takes them but the pairs.
        "choose_qparams" | "choose_qparams_symmetric" | "choose_qparams_per_token" if function(node).is_some() => {
            let (scale, zero_point) = (builder.constant(1.0)?, builder.constant(0i64)?);
            builder.bind_all(node, &[scale, zero_point])?;
        }
        _ => {
            return Err(Error::invalid(format!(
                "{} computes with quantized tensors, which are not read: export the float model, and let jitquant quantize \
                 it; pairs of quantized_decomposed.quantize_* and dequantize_* are read, as PT2E's convert_pt2e writes them",
                shortened(&node.target)
            )));
        }
    }
    Ok(true)
}

/// Puts float weights in the place of integers: each tensor that is only ever dequantized becomes the numbers that it
/// stands for, a parameter of the module that uses it. What only served to dequantize goes.
///
/// # Errors
/// Where scales are missing or do not fit, or integers go to something else than dequantize.
pub(super) fn fold_weights(program: &Program, tensors: &mut Tensors, held: &mut Vec<Held<'_>>) -> Result<()> {
    let nodes = &program.graph_module.graph.nodes;
    if !nodes.iter().any(|node| function(node).is_some()) {
        return Ok(());
    }
    let users = users(nodes);
    ensure_paired(nodes, &users)?;
    let paths: BTreeMap<&str, String> = held.iter().map(|held| (held.input, held.path.clone())).collect();
    let folded = |input: &str| match users.get(input).map(Vec::as_slice) {
        Some([node]) if function(node).is_some_and(is_dequantize) => match given(node, "input") {
            Some(Argument::AsTensor(named)) if named.name == input => Some(*node),
            _ => None,
        },
        _ => None,
    };
    let is_scale = |input: &str| {
        let users = users.get(input).map(Vec::as_slice).unwrap_or_default();
        let is_folded = |node: &&schema::Node| match given(node, "input") {
            Some(Argument::AsTensor(named)) => named.name != input && folded(&named.name).is_some(),
            _ => false,
        };
        !users.is_empty() && users.iter().all(is_folded)
    };
    let mut taken: Vec<String> =
        held.iter().filter(|held| users.contains_key(held.input)).map(|held| held.path.clone()).collect();
    held.retain(|held| !is_scale(held.input));
    for held in held.iter_mut() {
        let Some(node) = folded(held.input) else { continue };
        let float = dequantize(node, &held.path, tensors, &paths)
            .map_err(|e| Error::invalid(format!("weight '{}': {e}", shortened(&held.path))))?;
        let layer = users.get(first_name(node)?).and_then(|users| users.first().copied());
        let path = free_path(layer.unwrap_or(node), &held.path, &taken);
        taken.push(path.clone());
        tensors.insert(path.clone(), float);
        (held.path, held.role) = (path, Role::Parameter);
    }
    // The float weight from before is often still there, and nobody uses it.
    let weights: Vec<String> =
        held.iter().filter(|held| folded(held.input).is_some()).map(|held| held.path.clone()).collect();
    held.retain(|held| folded(held.input).is_some() || !weights.contains(&held.path));
    Ok(())
}

/// Makes sure that what is quantized is dequantized next.
fn ensure_paired(nodes: &[schema::Node], users: &Users<'_>) -> Result<()> {
    for node in nodes.iter().filter(|node| function(node).is_some_and(is_quantize)) {
        let name = first_name(node)?;
        let mut users = users.get(name).into_iter().flatten();
        let other = users.find(|user| !function(user).is_some_and(is_dequantize));
        if let Some(other) = other {
            return Err(Error::invalid(format!(
                "node '{}' computes with the integers of '{}': only pairs of quantize and dequantize are read",
                shortened(other.name.as_deref().unwrap_or(&other.target)),
                shortened(name)
            )));
        }
    }
    Ok(())
}

/// The nodes that take a tensor, among others or alone, by its name.
type Users<'p> = BTreeMap<&'p str, Vec<&'p schema::Node>>;

fn users(nodes: &[schema::Node]) -> Users<'_> {
    let mut users = Users::new();
    for node in nodes {
        for input in &node.inputs {
            let taken = match &input.arg {
                Argument::AsTensor(named) => std::slice::from_ref(named),
                Argument::AsTensors(all) => all,
                _ => &[],
            };
            for named in taken {
                let known = users.entry(named.name.as_str()).or_default();
                // A node may take one twice.
                if known.last().is_none_or(|last| !std::ptr::eq(*last, node)) {
                    known.push(node);
                }
            }
        }
    }
    users
}

/// The parameter's name: `weight` of the module that the node was called in.
fn free_path(node: &schema::Node, path: &str, taken: &[String]) -> String {
    let stack = node.metadata.get("nn_module_stack").map(String::as_str).unwrap_or_default();
    let module = stack.split(';').next_back().and_then(|entry| entry.split(',').nth(1)).unwrap_or_default();
    let wanted = match module {
        "" => format!("{path}_float"),
        module => format!("{module}.weight"),
    };
    let mut free = wanted.clone();
    let mut number = 1;
    while taken.contains(&free) {
        number += 1;
        free = format!("{wanted}_{number}");
    }
    free
}

/// `(integer - zero point) * scale`, by channel where there are several scales.
fn dequantize(node: &schema::Node, path: &str, tensors: &Tensors, paths: &BTreeMap<&str, String>) -> Result<Tensor> {
    let held = |name: &str| paths.get(name).and_then(|path| tensors.get(path));
    let integers = tensors.get(path).ok_or_else(|| Error::invalid("it is missing"))?;
    let number = |names: &[&str]| -> Result<Vec<f32>> {
        match names.iter().find_map(|name| given(node, name)) {
            Some(Argument::AsFloat(Float(value))) => Ok(vec![*value as f32]),
            Some(Argument::AsInt(value)) => Ok(vec![*value as f32]),
            Some(Argument::AsTensor(named)) => match held(&named.name) {
                Some(tensor) => tensor.to_f32_vec(),
                None => Err(Error::invalid(format!("its {} is computed when the model runs", names[0]))),
            },
            Some(Argument::AsNone(_)) => Ok(vec![0.0]),
            _ => Err(Error::invalid(format!("its {} is missing", names[0]))),
        }
    };
    let (scales, zero_points) = (number(&["scale", "scales"])?, number(&["zero_point", "zero_points"])?);
    let shape = integers.shape();
    let axis = match given(node, "axis") {
        Some(Argument::AsInt(axis)) => usize::try_from(*axis).unwrap_or(usize::MAX),
        _ => 0,
    };
    let channels = if scales.len() == 1 { 1 } else { shape.get(axis).copied().unwrap_or(0) };
    if scales.len() as i64 != channels || ![1, scales.len()].contains(&zero_points.len()) {
        return Err(Error::invalid(format!(
            "{} scales and {} zero points do not fit {shape:?}",
            scales.len(),
            zero_points.len()
        )));
    }
    let inner = shape.iter().skip(axis + 1).product::<i64>().max(1) as usize;
    let mut values = integers.to_f32_vec()?;
    for (place, value) in values.iter_mut().enumerate() {
        let channel = if scales.len() == 1 { 0 } else { place / inner % scales.len() };
        *value = (*value - zero_points[channel.min(zero_points.len() - 1)]) * scales[channel];
    }
    Tensor::from_slice(&values, &shape)
}
