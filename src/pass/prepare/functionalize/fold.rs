//! Numbers that are known before the model runs.

use super::state::Known;
use super::walk::{Step, Walker};
use crate::ir::{IValue, Node, Type, Value};

/// Whether a value of this type is a number or a truth value.
fn is_scalar(ty: &Type) -> bool {
    matches!(ty.kind().as_str(), "IntType" | "FloatType" | "BoolType" | "NumberType")
}

impl<'g> Walker<'g, '_> {
    /// Puts a constant for the result of `node` where its inputs are constants.
    pub fn fold(&mut self, node: Node<'g>) -> Step<()> {
        let [output] = node.outputs()[..] else { return Ok(()) };
        if !is_scalar(&output.type_of()) || !node.kind().starts_with("aten::") && !is_number_function(node.kind()) {
            return Ok(());
        }
        if let Some(truth) = self.is_none(node)? {
            return self.put_constant(output, IValue::Bool(truth), node);
        }
        let inputs: Option<Vec<IValue>> = node.inputs().into_iter().map(scalar).collect();
        let Some(inputs) = inputs.filter(|inputs| !inputs.is_empty()) else { return Ok(()) };
        if node.schema().is_none() || node.has_side_effects()? {
            return Ok(());
        }
        match node.run(&inputs) {
            Ok(results) if results.len() == 1 => self.put_constant(output, results[0].clone(), node),
            // It raises when the model runs, too.
            _ => Ok(()),
        }
    }

    pub fn put_constant(&mut self, output: Value<'g>, value: IValue, at: Node<'g>) -> Step<()> {
        let constant = at.insert_constant(value)?;
        self.known.insert(output, Known::Plain(constant));
        self.dead.push(at);
        Ok(())
    }

    /// `x is None` and `x is not None`, where that is known.
    fn is_none(&mut self, node: Node<'g>) -> Step<Option<bool>> {
        let wanted = match node.kind() {
            "aten::__is__" => true,
            "aten::__isnot__" => false,
            _ => return Ok(None),
        };
        let [value, none] = node.inputs()[..] else { return Ok(None) };
        if !matches!(none.constant(), Some(IValue::None)) {
            return Ok(None);
        }
        Ok(match value.constant() {
            Some(IValue::None) => Some(wanted),
            Some(_) => Some(!wanted),
            None => {
                let kind = value.type_of().kind();
                let may_be_none = matches!(kind.as_str(), "OptionalType" | "NoneType" | "AnyType" | "UnionType");
                (!may_be_none).then_some(!wanted)
            }
        })
    }

    /// A constant whole number.
    pub fn int(&mut self, value: Value<'g>) -> Step<Option<i64>> {
        Ok(match self.known_of(value)? {
            Known::Plain(value) => value.constant().and_then(|constant| constant.as_int()),
            _ => None,
        })
    }

    /// A constant truth value.
    pub fn truth(&mut self, value: Value<'g>) -> Step<Option<bool>> {
        Ok(match self.known_of(value)? {
            Known::Plain(value) => match value.constant() {
                Some(IValue::Bool(truth)) => Some(truth),
                _ => None,
            },
            _ => None,
        })
    }
}

fn is_number_function(kind: &str) -> bool {
    matches!(kind, "prim::min" | "prim::max" | "prim::abs")
}

fn scalar(value: Value<'_>) -> Option<IValue> {
    let constant = value.constant()?;
    let items = match &constant {
        IValue::List { items, .. } => &items[..],
        other => std::slice::from_ref(other),
    };
    let is_plain = |item: &IValue| {
        matches!(item, IValue::Int(_) | IValue::Double(_) | IValue::Bool(_) | IValue::Str(_) | IValue::None)
    };
    items.iter().all(is_plain).then_some(constant)
}
