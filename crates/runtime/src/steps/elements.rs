//! Steps that take each element by itself.

use jitquant_kernels::{Isa, Parallel, QParams};

use super::Kernel;
use crate::layout::{Element, Layout};
use crate::parts::in_parts;
use crate::plan::{Placed, Planner};
use crate::{Error, Result, refuse};

/// Element types from and to.
type Types = (Element, Element);

pub(super) const QUANTIZE: Types = (Element::F32, Element::U8);
pub(super) const DEQUANTIZE: Types = (Element::U8, Element::F32);
pub(super) const BYTES: Types = (Element::U8, Element::U8);

/// Plans `kernel` on the elements of `x` in the order of their memory.
pub(super) fn map(planner: &mut Planner<'_>, x: &Placed, (from, to): Types, kernel: Kernel) -> Result<Placed> {
    expect(x, from)?;
    let x = planner.without_gaps(x)?;
    let out = planner.result(Layout { element: to, ..x.layout.clone() })?;
    planner.push(kernel, &[&x], &out, 0);
    Ok(out)
}

/// Checks the type of an operand.
pub(super) fn expect(x: &Placed, element: Element) -> Result<()> {
    match x.layout.element == element {
        true => Ok(()),
        false => refuse(format!("elements of type {:?} where {element:?} is taken", x.layout.element)),
    }
}

/// Bytes as floats.
pub(super) fn floats(x: &[u8]) -> Result<&[f32]> {
    bytemuck::try_cast_slice(x).map_err(|_| Error("floats that are not aligned".to_owned()))
}

/// Bytes as floats to write.
pub(super) fn floats_mut(x: &mut [u8]) -> Result<&mut [f32]> {
    bytemuck::try_cast_slice_mut(x).map_err(|_| Error("floats that are not aligned".to_owned()))
}

pub(super) fn quantize(isa: Isa, x: &[u8], to: QParams, out: &mut [u8], threads: &dyn Parallel) -> Result<()> {
    let x = floats(x)?;
    in_parts(threads, out, 1, 1, &|first, part| {
        jitquant_kernels::quantize(isa, &x[first..][..part.len()], to, part);
    });
    Ok(())
}

pub(super) fn dequantize(isa: Isa, x: &[u8], from: QParams, out: &mut [u8], threads: &dyn Parallel) -> Result<()> {
    in_parts(threads, floats_mut(out)?, 1, 1, &|first, part| {
        jitquant_kernels::dequantize(isa, &x[first..][..part.len()], from, part);
    });
    Ok(())
}

/// Applies `work` to equally long parts of `x` and `out`.
pub(super) fn bytes(x: &[u8], out: &mut [u8], threads: &dyn Parallel, work: &(dyn Fn(&[u8], &mut [u8]) + Sync)) {
    in_parts(threads, out, 1, 1, &|first, part| work(&x[first..][..part.len()], part));
}
