//! A part's graph as a Program.

use std::collections::HashMap;

use jitquant_runtime::{Builder, NumberId, Size, ValueId, View, WeightId};

use super::read::int;
use super::steps::{Shown, WeightKind, computation, is_size, views};
use crate::engine::{CompiledProgram, Given};
use crate::error::{Error, Result};
use crate::ir::{Graph, Node, Value};

/// Compiles a part's graph.
///
/// # Errors
/// Where a node has no step, or an argument is of another type than the step takes.
pub(crate) fn compile_part(graph: &Graph) -> Result<CompiledProgram> {
    let mut compiler = Compiler::default();
    let given = graph.inputs().into_iter().map(|value| compiler.argument(value)).collect::<Result<Vec<_>>>()?;
    for node in graph.nodes() {
        compiler.node(node).map_err(|e| Error::invalid(format!("{}: {e}", node.kind())))?;
    }
    let outputs = graph.outputs().into_iter().map(|value| compiler.tensor(value)).collect::<Result<Vec<_>>>()?;
    Ok(CompiledProgram { program: compiler.builder.finish(&outputs)?, given })
}

/// What a value of the graph is in the Program.
#[derive(Clone, Copy)]
pub(super) enum Known {
    Tensor(ValueId),
    Number(NumberId),
    Weight(WeightId),
}

#[derive(Default)]
pub(super) struct Compiler<'g> {
    pub builder: Builder,
    pub known: HashMap<Value<'g>, Known>,
}

impl<'g> Compiler<'g> {
    fn argument(&mut self, value: Value<'g>) -> Result<Given> {
        let (known, given) = match value.type_of().kind().as_str() {
            "IntType" => (Known::Number(self.builder.number()), Given::Number),
            "ClassType" => {
                let kind = value.uses().into_iter().find_map(|place| match computation(place.user) {
                    Some(Ok(step)) => step.weight.filter(|(weight, _)| *weight == value).map(|(_, kind)| kind),
                    _ => None,
                });
                let kind = kind.ok_or_else(|| Error::invalid("an object that is no layer's weight"))?;
                let given = if kind == WeightKind::Conv { Given::Conv } else { Given::Linear };
                (Known::Weight(self.builder.weight()), given)
            }
            _ => (Known::Tensor(self.builder.input()), Given::Tensor),
        };
        self.known.insert(value, known);
        Ok(given)
    }

    pub fn tensor(&self, value: Value<'g>) -> Result<ValueId> {
        match self.known.get(&value) {
            Some(Known::Tensor(id)) => Ok(*id),
            _ => Err(Error::invalid(format!("%{} is no tensor of the part", value.debug_name()))),
        }
    }

    /// Adds the steps of a node.
    pub fn node(&mut self, node: Node<'g>) -> Result<()> {
        if let Some(step) = computation(node) {
            let step = step?;
            let operands = step.operands.iter().map(|value| self.tensor(*value)).collect::<Result<Vec<_>>>()?;
            let weight = step.weight.and_then(|(value, _)| match self.known.get(&value) {
                Some(Known::Weight(id)) => Some(*id),
                _ => None,
            });
            let result = self.builder.step((step.op)(weight)?, &operands)?;
            self.known.insert(node.outputs()[0], Known::Tensor(result));
            return Ok(());
        }
        if let Some(shown) = views(node) {
            let operand = self.tensor(shown.operand)?;
            for (output, view) in node.outputs().into_iter().zip(shown.views) {
                let view = self.view(view)?;
                let result = self.builder.step(jitquant_runtime::Op::View(view), &[operand])?;
                self.known.insert(output, Known::Tensor(result));
            }
            return Ok(());
        }
        // Sizes are computed where they are asked for.
        match node.kind() == "prim::Constant" || is_size(node) {
            true => Ok(()),
            false => Err(Error::invalid("no step")),
        }
    }

    fn view(&self, view: Shown<'g>) -> Result<View> {
        let sizes = |values: &[Value<'g>]| values.iter().map(|value| self.size(*value)).collect::<Result<Vec<_>>>();
        let or =
            |value: Option<Value<'g>>, absent: i64| value.map_or(Ok(Size::Known(absent)), |value| self.size(value));
        Ok(match view {
            Shown::Known(view) => view,
            Shown::Reshape(values) => View::Reshape(sizes(&values)?),
            Shown::Reinterpret(values) => View::Reinterpret(sizes(&values)?),
            Shown::Expand(values) => View::Expand(sizes(&values)?),
            Shown::Slice { axis, start, end, step } => {
                View::Slice { axis, start: or(start, 0)?, end: or(end, i64::MAX)?, step }
            }
        })
    }

    fn size(&self, value: Value<'g>) -> Result<Size> {
        if let Some(Known::Number(number)) = self.known.get(&value) {
            return Ok(Size::Given(*number));
        }
        if value.is_constant() {
            return Ok(Size::Known(int(value)?));
        }
        let node = value.node();
        let inputs = node.inputs();
        let boxed = |value: Value<'g>| self.size(value).map(Box::new);
        match (node.kind(), &inputs[..]) {
            ("aten::size", [x, axis]) => Ok(Size::Of(self.tensor(*x)?, int(*axis)?)),
            ("prim::NumToTensor" | "aten::Int", [x]) => self.size(*x),
            ("aten::mul", [a, b]) => Ok(Size::Product(boxed(*a)?, boxed(*b)?)),
            ("aten::floor_divide" | "aten::floordiv", [a, b]) => Ok(Size::Quotient(boxed(*a)?, boxed(*b)?)),
            ("aten::add", [a, b, ..]) => Ok(Size::Sum(boxed(*a)?, boxed(*b)?)),
            ("aten::sub", [a, b, ..]) => Ok(Size::Difference(boxed(*a)?, boxed(*b)?)),
            (kind, _) => Err(Error::invalid(format!("a size that {kind} gives"))),
        }
    }
}
