//! Weights that INT8 has no room for.

use crate::ir::{IValue, Module, Node, Tensor, Value};

use super::layers::computes_weight;
use super::op_table::Operator;

/// The most products that kernels add up in 32 bits whatever the operands are: `255 * 128` each.
const LONGEST_SUM: i64 = i32::MAX as i64 / (255 * 128);

/// Why the weight of a layer of a flat module cannot be quantized to INT8, where it cannot.
pub(crate) fn unfit_weight(module: &Module, layer: Node<'_>) -> Option<String> {
    let row = Operator::of(layer)?;
    let weight = Operator::argument(layer, row.weight?)?;
    if computes_weight(layer) {
        return Some("its weight is computed when the model runs".to_owned());
    }
    let weight = tensor_of(module, weight)?;
    let sizes = weight.shape();
    if sizes.contains(&0) {
        return Some(format!(
            "its weight is empty ({})",
            sizes.iter().map(i64::to_string).collect::<Vec<_>>().join(" x ")
        ));
    }
    let longest = products(layer, &sizes);
    if row.packing.is_some() && longest > LONGEST_SUM {
        return Some(format!(
            "it adds up {longest} products; more than {LONGEST_SUM} may overflow 32-bit sums of INT8"
        ));
    }
    let values = weight.to_f32_vec().ok()?;
    values.iter().find(|value| !value.is_finite()).map(|value| format!("its weight holds {value}"))
}

/// How many products of weights and inputs an output adds up.
fn products(layer: Node<'_>, sizes: &[i64]) -> i64 {
    match (layer.kind().starts_with("aten::conv_transpose"), sizes) {
        // Inputs x (outputs / groups) x kernel; the groups are left out of account where they are not constant.
        (true, [inputs, _, kernel @ ..]) => {
            let groups = layer.named_input("groups").and_then(Value::constant).and_then(|groups| groups.as_int());
            inputs * kernel.iter().product::<i64>() / groups.unwrap_or(1).max(1)
        }
        (_, [_, each @ ..]) => each.iter().product(),
        (_, []) => 0,
    }
}

/// A tensor that a graph reads from a constant or from an attribute of `module`.
fn tensor_of(module: &Module, value: Value<'_>) -> Option<Tensor> {
    let content = match value.constant() {
        Some(constant) => Some(constant),
        None => {
            let path = value.attribute_path()?;
            let (name, owner) = path.split_last()?;
            module.submodule(&owner.join(".")).ok()?.attribute(name).ok()
        }
    };
    content.as_ref().and_then(IValue::as_tensor).filter(|tensor| tensor.is_defined()).cloned()
}
