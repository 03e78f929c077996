//! Types and constants that are written often.

use super::schema::{ConstantValue, Float};
use crate::error::Result;
use crate::ir::{IValue, Type};

pub(super) fn tensor() -> Result<Type> {
    Type::parse("Tensor")
}

/// A constant that stands in the program.
pub(super) fn value(constant: &ConstantValue) -> IValue {
    match constant {
        ConstantValue::AsNone(_) => IValue::None,
        ConstantValue::AsInt(value) => IValue::Int(*value),
        ConstantValue::AsFloat(Float(value)) => IValue::Double(*value),
        ConstantValue::AsString(value) => IValue::Str(value.clone()),
        ConstantValue::AsBool(value) => IValue::Bool(*value),
    }
}

/// A list of numbers, as floats where floats are asked for.
pub(super) fn numbers(items: &[i64], as_floats: bool) -> Vec<IValue> {
    items.iter().map(|&item| if as_floats { IValue::Double(item as f64) } else { IValue::Int(item) }).collect()
}
