//! Constants of a graph, as steps take them.

use crate::error::{Error, Result};
use crate::ir::{IValue, Node, Value};
use crate::kernel::{QParams, Table};

fn wanted(what: &str, value: Value<'_>) -> Error {
    Error::invalid(format!("%{} is no constant {what}", value.debug_name()))
}

pub(super) fn constant(value: Value<'_>) -> Result<IValue> {
    value.constant().ok_or_else(|| wanted("value", value))
}

pub(super) fn is_none(value: Value<'_>) -> bool {
    matches!(value.constant(), Some(IValue::None))
}

pub(super) fn int(value: Value<'_>) -> Result<i64> {
    constant(value)?.as_int().ok_or_else(|| wanted("integer", value))
}

pub(super) fn bool(value: Value<'_>) -> Result<bool> {
    match constant(value)? {
        IValue::Bool(value) => Ok(value),
        _ => Err(wanted("truth value", value)),
    }
}

pub(super) fn float(value: Value<'_>) -> Result<f64> {
    constant(value)?.as_number().ok_or_else(|| wanted("number", value))
}

pub(super) fn byte(value: Value<'_>) -> Result<u8> {
    u8::try_from(int(value)?).map_err(|_| wanted("byte", value))
}

/// A bound of a clamp of floats; `absent` for none.
pub(super) fn bound(value: Value<'_>, absent: f32) -> Result<f32> {
    let bound = if is_none(value) { absent } else { float(value)? as f32 };
    if bound.is_nan() { Err(wanted("bound", value)) } else { Ok(bound) }
}

pub(super) fn qparams(scale: Value<'_>, zero_point: Value<'_>) -> Result<QParams> {
    crate::engine::step_qparams(float(scale)?, int(zero_point)?)
}

/// Integers of a constant list, or of one that the graph makes of constants.
pub(super) fn ints(list: Value<'_>) -> Result<Vec<i64>> {
    match list.constant() {
        Some(IValue::List { items, .. }) => {
            items.iter().map(|item| item.as_int().ok_or_else(|| wanted("list", list))).collect()
        }
        Some(_) => Err(wanted("list of integers", list)),
        None => items(list)?.into_iter().map(int).collect(),
    }
}

pub(super) fn floats(list: Value<'_>) -> Result<Vec<f64>> {
    match list.constant() {
        Some(IValue::List { items, .. }) => {
            items.iter().map(|item| item.as_number().ok_or_else(|| wanted("list", list))).collect()
        }
        Some(_) => Err(wanted("list of numbers", list)),
        None => items(list)?.into_iter().map(float).collect(),
    }
}

/// Whether a node writes into something that it takes.
pub(super) fn writes(node: Node<'_>) -> bool {
    node.schema().is_some_and(|schema| schema.arguments.iter().any(|argument| argument.is_write))
}

/// Whether nobody writes into a list.
pub(super) fn is_left_alone(list: Value<'_>) -> bool {
    list.uses().into_iter().all(|place| !writes(place.user))
}

/// What a list is made of that the graph makes and does not change.
pub(super) fn items(list: Value<'_>) -> Result<Vec<Value<'_>>> {
    match list.node().kind() {
        "prim::ListConstruct" if is_left_alone(list) => Ok(list.node().inputs()),
        _ => Err(wanted("list", list)),
    }
}

pub(super) fn table(value: Value<'_>) -> Result<Table> {
    let bytes = constant(value)?.as_tensor().and_then(|tensor| tensor.to_vec::<u8>().ok());
    let bytes = bytes.and_then(|bytes| <[u8; 256]>::try_from(bytes).ok());
    bytes.map(Table::from_bytes).ok_or_else(|| wanted("table of 256 bytes", value))
}
