//! What a program takes for granted, as checks with messages of their own.

use super::graph::Builder;
use super::schema::{Argument, Size, TensorMeta};
use crate::error::Result;
use crate::ir::{IValue, Value};

/// Sizes below are not checked: that a size is at least this is how PyTorch writes that it is not known.
const LEAST: i64 = 2;

impl<'g> Builder<'g, '_> {
    /// Writes that the model fails with `message` where `condition` does not hold.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn require(&self, condition: Value<'g>, message: &str) -> Result<()> {
        let check = self.emit("prim::If", &[condition], &[])?;
        check.add_block()?;
        let failure = check.add_block()?.return_node();
        let inputs = [failure.insert_constant(message)?, failure.insert_constant(IValue::None)?];
        self.graph.create("prim::RaiseException", &inputs, 0)?.insert_before(failure)?;
        Ok(())
    }

    /// Writes that a number lies in a range.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn require_range(&self, number: Value<'g>, range: (Option<i64>, Option<i64>), what: &str) -> Result<()> {
        for (limit, kind, word) in [(range.0, "aten::ge", "at least"), (range.1, "aten::le", "at most")] {
            if let Some(limit) = limit {
                let condition = self.emit_one(kind, &[number, self.constant(limit)?], "bool")?;
                self.require(condition, &format!("{what} should be {word} {limit}"))?;
            }
        }
        Ok(())
    }

    /// A truth value, also of a tensor.
    ///
    /// # Errors
    /// Where it is no number.
    pub fn truth(&self, argument: &Argument) -> Result<Value<'g>> {
        self.as_bool(self.number(argument)?)
    }

    /// A number, a truth value or a tensor with one, as a truth value.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn as_bool(&self, value: Value<'g>) -> Result<Value<'g>> {
        match value.type_of().kind().as_str() {
            "BoolType" => Ok(value),
            _ => self.emit_one("aten::Bool", &[value], "bool"),
        }
    }

    /// Writes that an input has the sizes that the program was exported for: constants among them are part of its code.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn require_shape(&self, input: Value<'g>, name: &str, meta: &TensorMeta) -> Result<()> {
        let wanted = meta.sizes.iter().map(|size| match size {
            Size::AsInt(size) => size.to_string(),
            Size::AsExpr(formula) => symbol(&formula.expr_str).unwrap_or("?").to_owned(),
        });
        let wanted = format!(
            "input '{name}' should have the sizes [{}], as when the model was exported",
            wanted.collect::<Vec<_>>().join(", ")
        );
        let rank = self.emit_one("aten::dim", &[input], "int")?;
        let rank = self.emit_one("aten::eq", &[rank, self.constant(meta.sizes.len() as i64)?], "bool")?;
        self.require(rank, &wanted)?;
        for (axis, size) in meta.sizes.iter().enumerate() {
            let range = match size {
                Size::AsInt(_) => None,
                Size::AsExpr(formula) => {
                    let range = symbol(&formula.expr_str).and_then(|name| self.program.range_constraints.get(name));
                    let Some(range) = range else { continue };
                    let limits = (range.min_val.filter(|least| *least > LEAST), range.max_val);
                    if limits == (None, None) {
                        continue;
                    }
                    Some(limits)
                }
            };
            let found = self.emit_one("aten::size", &[input, self.constant(axis as i64)?], "int")?;
            match (size, range) {
                (Size::AsInt(size), _) => {
                    let fits = self.emit_one("aten::eq", &[found, self.constant(*size)?], "bool")?;
                    self.require(fits, &wanted)?;
                }
                (_, Some(limits)) => self.require_range(found, limits, &format!("size {axis} of input '{name}'"))?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name of a symbol that is a formula by itself: `Symbol('s0', positive=True, integer=True)`.
fn symbol(formula: &str) -> Option<&str> {
    let (name, rest) = formula.strip_prefix("Symbol('")?.split_once('\'')?;
    let is_whole = rest.ends_with(')') && !rest[..rest.len() - 1].contains(['(', ')']);
    (is_whole && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::symbol;

    #[test]
    fn symbols_are_told_from_formulas() {
        assert_eq!(symbol("Symbol('s77', positive=True, integer=True)"), Some("s77"));
        assert_eq!(symbol("Mul(Integer(2), Symbol('s0', integer=True))"), None);
        assert_eq!(symbol("Symbol('s0', integer=True) + Symbol('s1')"), None);
    }
}
