//! Operators of one dimension that have a quantized kernel for images only run as images of one row.

use crate::error::Result;
use crate::ir::{IValue, Node, Type, Value};

/// The operator `kind` of two dimensions on the quantized tensor `source`, with the other arguments of `float`, its
/// counterpart of one dimension, inserted before it; `None` where an argument may or may not be given when the model runs.
pub(super) fn as_image<'g>(float: Node<'g>, kind: &str, source: Value<'g>) -> Result<Option<Value<'g>>> {
    let inputs = float.inputs();
    let mut arguments = Vec::new();
    for input in &inputs[1..] {
        let Some(argument) = Argument::of(*input) else { return Ok(None) };
        arguments.push((*input, argument));
    }
    let rows = float.insert_constant(2i64)?;
    let mut image = vec![float.insert_operator("aten::unsqueeze", &[source, rows])?];
    for (input, argument) in arguments {
        match argument {
            Argument::Same => image.push(input),
            // A list has an element a dimension.
            Argument::Sizes => image.push(with_first(float, IValue::from(1i64), input)?),
            Argument::Factors => image.push(with_first(float, IValue::from(1.0f64), input)?),
            // A number stands for the dimension itself, another one for the rows.
            Argument::Factor => image.extend([float.insert_constant(1.0f64)?, input]),
        }
    }
    let result = float.insert_operator(kind, &image)?;
    Ok(Some(float.insert_operator("aten::squeeze", &[result, rows])?))
}

/// What an argument becomes.
enum Argument {
    Same,
    Sizes,
    Factors,
    Factor,
}

impl Argument {
    fn of(value: Value<'_>) -> Option<Self> {
        if let Some(IValue::None | IValue::Bool(_)) = value.constant() {
            return Some(Self::Same);
        }
        let ty = value.type_of();
        let is = |name: &str| Type::parse(name).is_ok_and(|wanted| ty.is_subtype_of(&wanted));
        match () {
            () if is("List[int]") => Some(Self::Sizes),
            () if is("List[float]") => Some(Self::Factors),
            () if is("float") => Some(Self::Factor),
            () if is("bool") => Some(Self::Same),
            () => None,
        }
    }
}

/// The list `[first, *rest]`.
fn with_first<'g>(place: Node<'g>, first: IValue, rest: Value<'g>) -> Result<Value<'g>> {
    let first = place.insert_constant(first)?;
    let list = place.graph().create("prim::ListConstruct", &[first], 1)?.insert_before(place)?;
    list.outputs()[0].set_type(&rest.type_of())?;
    place.insert_operator("aten::add", &[list.outputs()[0], rest])
}
