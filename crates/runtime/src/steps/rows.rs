//! Steps on rows of floats: norms, softmax, the least and the largest of each.

use jitquant_kernels::float::{self, Norm, Target};
use jitquant_kernels::{Isa, Parallel};

use super::Kernel;
use super::elements::{floats, floats_mut};
use crate::layout::{Element, Format, Layout};
use crate::parts::in_parts;
use crate::plan::{OPERANDS, Placed, Planner};
use crate::{Error, Result, refuse};

/// A kernel over rows, for known sizes.
pub(crate) struct Call {
    form: Form,
    columns: usize,
}

enum Form {
    /// Whether there is a weight, and a bias.
    LayerNorm {
        eps: f64,
        weight: bool,
        bias: bool,
    },
    Softmax,
    Least,
    Most,
}

/// Plans a layer norm of `x` with its parameters behind it.
pub(super) fn layer_norm(
    planner: &mut Planner<'_>,
    sizes: &[i64],
    eps: f64,
    [weight, bias]: [bool; 2],
    operands: &[Placed],
) -> Result<Placed> {
    let x = planner.dense(&operands[0], Format::Contiguous)?;
    let ends = x.layout.sizes.ends_with(sizes) && !sizes.is_empty();
    if !ends || operands[1..].iter().any(|parameter| parameter.layout.sizes != sizes) {
        return refuse(format!("a norm over {sizes:?} of a tensor of sizes {:?}", x.layout.sizes));
    }
    let mut all = vec![x];
    for parameter in &operands[1..] {
        all.push(planner.dense(parameter, Format::Contiguous)?);
    }
    let columns = sizes.iter().map(|size| *size as usize).product();
    let out = planner.result(Layout::new(Element::F32, &all[0].layout.sizes, Format::Contiguous))?;
    let call = Call { form: Form::LayerNorm { eps, weight, bias }, columns };
    planner.push(Kernel::FloatRows(call), &all.iter().collect::<Vec<_>>(), &out, 0);
    Ok(out)
}

/// The length of the rows of `x`.
fn columns(x: &Layout) -> Result<usize> {
    match x.sizes.last() {
        Some(size) => Ok(*size as usize),
        None => refuse("rows of a tensor without dimensions"),
    }
}

/// Plans softmax along the last dimension.
pub(super) fn softmax(planner: &mut Planner<'_>, x: &Placed) -> Result<Placed> {
    let columns = columns(&x.layout)?;
    let x = planner.dense(x, Format::Contiguous)?;
    let out = planner.result(x.layout.like(Element::F32, &x.layout.sizes))?;
    planner.push(Kernel::FloatRows(Call { form: Form::Softmax, columns }), &[&x], &out, 0);
    Ok(out)
}

/// Plans the least or the largest along the last dimension.
pub(super) fn extreme(planner: &mut Planner<'_>, is_most: bool, keeps: bool, x: &Placed) -> Result<Placed> {
    let columns = columns(&x.layout)?;
    let x = planner.dense(x, Format::Contiguous)?;
    let mut sizes = x.layout.sizes.clone();
    sizes.pop();
    if keeps {
        sizes.push(1);
    }
    let out = planner.result(Layout::new(Element::F32, &sizes, Format::Contiguous))?;
    let form = if is_most { Form::Most } else { Form::Least };
    planner.push(Kernel::FloatRows(Call { form, columns }), &[&x], &out, 0);
    Ok(out)
}

impl Call {
    pub fn name(&self) -> &'static str {
        match self.form {
            Form::LayerNorm { .. } => "layer_norm",
            Form::Softmax => "softmax",
            Form::Least => "amin",
            Form::Most => "amax",
        }
    }

    pub fn run(
        &self,
        isa: Isa,
        inputs: [Option<&[u8]>; OPERANDS],
        out: &mut [u8],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let operand = |index: usize| match inputs[index] {
            Some(bytes) => floats(bytes),
            None => Err(Error("rows without an operand".to_owned())),
        };
        let (x, values, columns) = (operand(0)?, floats_mut(out)?, self.columns);
        let (rows, all) = (x.len() / columns, float::Rows::new(x, columns));
        match self.form {
            Form::LayerNorm { eps, weight, bias } => {
                let norm = Norm {
                    columns,
                    weight: if weight { operand(1)? } else { &[] },
                    bias: if bias { operand(1 + usize::from(weight))? } else { &[] },
                    eps,
                };
                let target = Target::F32 { values, stride: columns };
                float::layer_norm(isa, all, None, None, rows, norm, target, &mut [], threads);
            }
            Form::Softmax => {
                let target = Target::F32 { values, stride: columns };
                float::softmax(isa, all, [1, 1, rows], columns, 1.0, None, target, &mut [], threads);
            }
            Form::Least | Form::Most => in_parts(threads, values, 1, columns, &|first, part| {
                for (row, to) in x[first * columns..].chunks_exact(columns).zip(part) {
                    // As libtorch: a NaN is the least and the largest of its row.
                    *to = match row.iter().any(|x| x.is_nan()) {
                        true => f32::NAN,
                        false => {
                            let (least, most) = jitquant_kernels::min_max(isa, row);
                            if matches!(self.form, Form::Least) { least } else { most }
                        }
                    };
                }
            }),
        }
        Ok(())
    }
}
