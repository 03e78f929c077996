//! Steps on floats: which kernel plans each; functions and arithmetic.

use jitquant_kernels::float::{Arithmetic, DIMENSIONS, Rows, Strided, Target, activate, arithmetic};
use jitquant_kernels::{Activation, Isa, Parallel};

use super::elements::{expect, floats, floats_mut, map};
use super::{Kernel, binary, products, rows, stretched};
use crate::float::{Float, name};
use crate::layout::{Element, Layout};
use crate::plan::{Placed, Planner};
use crate::program::ValueId;
use crate::view::expanded;
use crate::{Error, Result, refuse};

const FLOATS: (Element, Element) = (Element::F32, Element::F32);

/// Plans a step.
pub(super) fn plan(planner: &mut Planner<'_>, form: &Float, inputs: &[ValueId]) -> Result<Placed> {
    let operands = inputs.iter().map(|id| planner.value(*id).cloned()).collect::<Result<Vec<_>>>()?;
    let masks = matches!(form, Float::Attention(_));
    operands.iter().take(if masks { 3 } else { operands.len() }).try_for_each(|x| expect(x, Element::F32))?;
    match (form, &operands[..]) {
        (Float::Function(function), [x]) => map(planner, x, FLOATS, Kernel::Function(*function)),
        // With a tensor of doubles without dimensions, libtorch gives doubles.
        (Float::Number { .. }, [x]) if x.layout.rank() == 0 => refuse("a number and a tensor without dimensions"),
        (Float::Number { op, number, is_left }, [x]) => {
            let layout = x.layout.like(Element::F32, &x.layout.sizes);
            let call = Call::new(*op, &layout, [&x.layout; 2], Some((*number, *is_left)))?;
            let out = planner.result(layout)?;
            planner.push(Kernel::Arithmetic(call), &[x], &out, 0);
            Ok(out)
        }
        (Float::Arithmetic { op, in_place }, [a, b]) => {
            let layout = combined(a, b, *in_place)?;
            let out = planner.result(layout)?;
            combine(planner, *op, [a, b], &out)?;
            Ok(out)
        }
        (Float::MultiplyAdd { in_place }, [a, b, c]) => {
            let product = planner.temporary(combined(b, c, false)?);
            let layout = combined(a, &product, *in_place)?;
            combine(planner, Arithmetic::Mul, [b, c], &product)?;
            let out = planner.result(layout)?;
            combine(planner, Arithmetic::Add, [a, &product], &out)?;
            Ok(out)
        }
        (Float::LayerNorm { sizes, eps, weight, bias }, _) => {
            rows::layer_norm(planner, sizes, *eps, [*weight, *bias], &operands)
        }
        (Float::Softmax, [x]) => rows::softmax(planner, x),
        (Float::Extreme { is_most, keeps }, [x]) => rows::extreme(planner, *is_most, *keeps, x),
        (Float::Matmul, [a, b]) => products::matmul(planner, a, b),
        (Float::Attention(form), _) => products::attention(planner, form, &operands),
        (Float::StretchedLinear { weight, function, .. }, _) => stretched::plan(planner, *weight, *function, &operands),
        _ => refuse(format!("{} with {} operands", form.name(), operands.len())),
    }
}

/// A function over dense memory.
pub(super) fn function(isa: Isa, x: &[u8], function: Activation, out: &mut [u8], threads: &dyn Parallel) -> Result<()> {
    let (x, values) = (floats(x)?, floats_mut(out)?);
    let stride = x.len();
    activate(isa, Rows::new(x, stride), 1, stride, &[], function, Target::F32 { values, stride }, &mut [], threads);
    Ok(())
}

/// The layout of `a op b`: the order of the operand that has all sizes.
fn combined(a: &Placed, b: &Placed, in_place: bool) -> Result<Layout> {
    let sizes = binary::broadcast(&a.layout.sizes, &b.layout.sizes)?;
    if in_place && sizes != a.layout.sizes {
        return refuse(format!("a tensor of sizes {:?} that is to have {sizes:?}", a.layout.sizes));
    }
    let first = if a.layout.sizes == sizes { a } else { b };
    Ok(first.layout.like(Element::F32, &sizes))
}

/// Plans `a op b` into `out`.
fn combine(planner: &mut Planner<'_>, op: Arithmetic, [a, b]: [&Placed; 2], out: &Placed) -> Result<()> {
    let (x, y) = (expanded(&a.layout, &out.layout.sizes)?, expanded(&b.layout, &out.layout.sizes)?);
    let call = Call::new(op, &out.layout, [&x, &y], None)?;
    planner.push(Kernel::Arithmetic(call), &[a, b], out, 0);
    Ok(())
}

/// Arithmetic for known sizes.
pub(crate) struct Call {
    op: Arithmetic,
    /// Sizes in the order of the result's memory, and the strides of both operands.
    sizes: Vec<usize>,
    strides: [Vec<usize>; 2],
    /// A number in the place of an operand, and whether it is the left one.
    number: Option<(f32, bool)>,
}

impl Call {
    /// For operands that have the result's sizes.
    fn new(op: Arithmetic, out: &Layout, operands: [&Layout; 2], number: Option<(f32, bool)>) -> Result<Self> {
        let mut axes: Vec<usize> = (0..out.rank()).filter(|axis| out.sizes[*axis] != 1).collect();
        axes.sort_by_key(|axis| std::cmp::Reverse(out.strides[*axis]));
        let mut call = Self { op, sizes: Vec::new(), strides: [Vec::new(), Vec::new()], number };
        for axis in axes {
            let size = out.sizes[axis] as usize;
            let steps = operands.map(|x| x.strides[axis] as usize);
            // Dimensions that all walk as one are one.
            let last = call
                .sizes
                .len()
                .checked_sub(1)
                .filter(|last| (0..2).all(|i| call.strides[i][*last] == steps[i] * size));
            match last {
                Some(last) => {
                    call.sizes[last] *= size;
                    (0..2).for_each(|i| call.strides[i][last] = steps[i]);
                }
                None => {
                    call.sizes.push(size);
                    (0..2).for_each(|i| call.strides[i].push(steps[i]));
                }
            }
        }
        match call.sizes.len() <= DIMENSIONS {
            true => Ok(call),
            false => refuse(format!("tensors of {} dimensions", call.sizes.len())),
        }
    }

    pub fn name(&self) -> &'static str {
        name(self.op)
    }

    pub fn run(&self, isa: Isa, x: &[u8], y: Option<&[u8]>, out: &mut [u8], threads: &dyn Parallel) -> Result<()> {
        let zeros = [0; DIMENSIONS];
        let (x, [a, b]) = (floats(x)?, &self.strides);
        let own = Strided { data: x, strides: a };
        let number;
        let (a, b) = match self.number {
            Some((value, is_left)) => {
                number = [value];
                let number = Strided { data: &number, strides: &zeros[..self.sizes.len()] };
                if is_left { (number, own) } else { (own, number) }
            }
            None => {
                let y = y.ok_or_else(|| Error("arithmetic without a second operand".to_owned()))?;
                (own, Strided { data: floats(y)?, strides: b })
            }
        };
        arithmetic(isa, self.op, a, b, &self.sizes, None, floats_mut(out)?, threads);
        Ok(())
    }
}
