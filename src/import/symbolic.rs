//! Sizes as numbers, arithmetic with them, and what the program asserts.

use super::call::{first_name, given};
use super::graph::{Builder, names, output};
use super::schema::{self, Argument};
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::Value;

/// What a result is, in TorchScript's syntax.
fn type_of(node: &schema::Node) -> Result<&'static str> {
    match node.outputs.first() {
        Some(Argument::AsSymInt(_) | Argument::AsInt(_)) => Ok("int"),
        Some(Argument::AsSymFloat(_) | Argument::AsFloat(_)) => Ok("float"),
        Some(Argument::AsSymBool(_) | Argument::AsBool(_)) => Ok("bool"),
        _ => Err(Error::invalid("its result should be a number")),
    }
}

/// Functions of two numbers in Python, and in TorchScript.
const BINARY: &[(&str, &str)] = &[
    ("add", "aten::add"),
    ("sub", "aten::sub"),
    ("mul", "aten::mul"),
    ("truediv", "aten::div"),
    ("floordiv", "aten::floordiv"),
    ("mod", "aten::remainder"),
    ("pow", "aten::pow"),
    ("eq", "aten::eq"),
    ("ne", "aten::ne"),
    ("lt", "aten::lt"),
    ("le", "aten::le"),
    ("gt", "aten::gt"),
    ("ge", "aten::ge"),
    ("and_", "aten::__and__"),
    ("or_", "aten::__or__"),
    ("lshift", "aten::__lshift__"),
    ("rshift", "aten::__rshift__"),
    ("sym_max", "prim::max"),
    ("sym_min", "prim::min"),
];

/// Functions of one number.
const UNARY: &[(&str, &str)] = &[
    ("neg", "aten::neg"),
    ("sym_not", "aten::__not__"),
    ("sym_float", "aten::Float"),
    ("sym_int", "aten::Int"),
    ("trunc", "aten::Int"),
    ("ceil", "aten::ceil"),
    ("floor", "aten::floor"),
    ("sym_sqrt", "aten::sqrt"),
    ("_sym_sqrt", "aten::sqrt"),
];

/// Writes a function of numbers, `_operator.add` for one.
///
/// # Errors
/// Where it is none that is known.
pub(super) fn translate<'p>(builder: &mut Builder<'_, 'p>, node: &'p schema::Node) -> Result<()> {
    let function = node.target.rsplit('.').next().unwrap_or(&node.target);
    let inputs = node.inputs.iter().map(|input| builder.number(&input.arg));
    let find = |table: &[(&str, &'static str)]| table.iter().find(|(name, _)| *name == function).map(|(_, kind)| *kind);
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let ty = type_of(node)?;
    let value = match (function, &inputs[..]) {
        ("pos", [value]) => *value,
        ("sym_ite", [condition, yes, no]) => select(builder, *condition, (*yes, *no), ty)?,
        // Of two integers TorchScript makes a float.
        ("pow", [_, _]) if ty == "int" => {
            let power = builder.emit_one("aten::pow", &inputs, "float")?;
            builder.emit_one("aten::Int", &[power], ty)?
        }
        (_, [_]) if find(UNARY).is_some() => builder.emit_one(find(UNARY).unwrap_or_default(), &inputs, ty)?,
        (_, [_, _]) if find(BINARY).is_some() => builder.emit_one(find(BINARY).unwrap_or_default(), &inputs, ty)?,
        _ => {
            return Err(Error::invalid(format!(
                "the function {} is not read: sizes are computed with + - * / // % **, comparisons, min, max and rounding",
                shortened(&node.target)
            )));
        }
    };
    if value.node().schema().is_none() && value.node().kind().starts_with("aten::") {
        return Err(Error::invalid(format!("TorchScript has no {} for these numbers", value.node().kind())));
    }
    builder.bind(first_name(node)?, value)
}

/// One of two numbers.
fn select<'g>(
    builder: &Builder<'g, '_>,
    condition: Value<'g>,
    (yes, no): (Value<'g>, Value<'g>),
    ty: &str,
) -> Result<Value<'g>> {
    let choice = builder.emit("prim::If", &[condition], &[ty])?;
    choice.add_block()?.register_output(yes)?;
    choice.add_block()?.register_output(no)?;
    output(choice)
}

/// Operators of `aten` that give numbers, or assert; whether it is one of them.
///
/// # Errors
/// Where its arguments are not those that it has.
pub(super) fn translate_aten<'p>(builder: &mut Builder<'_, 'p>, node: &'p schema::Node, name: &str) -> Result<bool> {
    match name {
        "sym_size" | "sym_stride" | "sym_numel" | "sym_storage_offset" => {
            let tensor = builder.tensor_of(node, "self")?;
            let kind = format!("aten::{}", name.trim_start_matches("sym_"));
            let mut inputs = vec![tensor];
            if let Some(dim) = given(node, "dim") {
                inputs.push(builder.number(dim)?);
            }
            let value = builder.emit_one(&kind, &inputs, "int")?;
            builder.bind(first_name(node)?, value)?;
        }
        "item" | "_local_scalar_dense" => {
            let tensor = builder.tensor_of(node, "self")?;
            // Where nobody uses the number there is nothing to do.
            if names(&node.outputs)?.iter().any(Option::is_some) {
                let (kind, ty) = match type_of(node)? {
                    "int" => ("aten::Int", "int"),
                    "float" => ("aten::Float", "float"),
                    _ => ("aten::Bool", "bool"),
                };
                let value = builder.emit_one(kind, &[tensor], ty)?;
                builder.bind(first_name(node)?, value)?;
            }
        }
        "_assert_scalar" | "_assert_async" => {
            let condition = node.inputs.first().ok_or_else(|| Error::invalid("it asserts nothing"))?;
            let condition = builder.truth(&condition.arg)?;
            let message = match given(node, "assert_msg") {
                Some(Argument::AsString(text)) => shortened(text),
                _ => "an assertion of the model failed".to_owned(),
            };
            builder.require(condition, &message)?;
        }
        "sym_constrain_range" | "sym_constrain_range_for_size" => {
            let size = given(node, "size").ok_or_else(|| Error::invalid("argument 'size' is missing"))?;
            let size = builder.number(size)?;
            let limit = |name| match given(node, name) {
                Some(Argument::AsInt(limit)) => Some(*limit),
                _ => None,
            };
            builder.require_range(size, (limit("min"), limit("max")), "a number that the model computes")?;
        }
        // It tells what the program's types are known to be by now.
        "_assert_tensor_metadata" => {}
        _ => return Ok(false),
    }
    Ok(true)
}
