//! Concatenation.

use jitquant_kernels::Table;

use super::Kernel;
use super::copy::{Copy, Rows};
use super::elements::{BYTES, expect};
use crate::layout::{Element, Format, Layout};
use crate::plan::{Placed, Planner};
use crate::program::ValueId;
use crate::{Result, refuse};

/// Plans a concatenation: each operand is written into its part of the result.
pub(super) fn plan(
    planner: &mut Planner<'_>,
    axis: i64,
    tables: &[Option<Box<Table>>],
    inputs: &[ValueId],
) -> Result<Placed> {
    let operands = inputs.iter().map(|id| planner.value(*id).cloned()).collect::<Result<Vec<_>>>()?;
    let first = &operands[0].layout;
    let axis = first.axis(axis)?;
    let fits = |x: &Layout| {
        x.element == first.element
            && x.rank() == first.rank()
            && (0..x.rank()).all(|other| other == axis || x.sizes[other] == first.sizes[other])
    };
    if !operands.iter().all(|x| fits(&x.layout)) {
        return refuse("tensors of other sizes than the first");
    }
    if first.element != Element::U8 && tables.iter().any(Option::is_some) {
        return refuse("a table of something else than bytes");
    }
    let mut sizes = first.sizes.clone();
    sizes[axis] = operands.iter().map(|x| x.layout.sizes[axis]).sum();
    // libtorch's rule: channels last where all of them are.
    let is_last = operands.iter().all(|x| x.layout.format() == Format::ChannelsLast);
    let format = if is_last { Format::ChannelsLast } else { Format::Contiguous };
    let out = planner.result(Layout::new(first.element, &sizes, format))?;
    let mut at = 0;
    for (x, table) in operands.iter().zip(tables) {
        let mut part = out.layout.clone();
        part.sizes[axis] = x.layout.sizes[axis];
        let to = out.seen(part, at * out.layout.strides[axis] as usize);
        at += x.layout.sizes[axis] as usize;
        write(planner, x, table.as_deref(), &to)?;
    }
    Ok(out)
}

/// Plans one operand.
fn write(planner: &mut Planner<'_>, x: &Placed, table: Option<&Table>, to: &Placed) -> Result<()> {
    if let Some((rows, width, from, to_step)) = rows(x, to) {
        let size = x.layout.element.size();
        let table = table.copied();
        let kernel = Rows { rows, width: width * size, from: from * size, to: to_step * size, table };
        planner.push(Kernel::Rows(kernel), &[x], to, 0);
        return Ok(());
    }
    let looked_up = match table {
        Some(table) => {
            expect(x, BYTES.0)?;
            let dense = planner.without_gaps(x)?;
            let place = planner.temporary(dense.layout.clone());
            planner.push(Kernel::Lookup(*table), &[&dense], &place, 0);
            place
        }
        None => x.clone(),
    };
    planner.push(Kernel::Copy(Copy::new(&looked_up.layout, &to.layout)?), &[&looked_up], to, 0);
    Ok(())
}

/// Rows in the memory of both: how many, elements of one, and from one to the next in each.
fn rows(x: &Placed, to: &Placed) -> Option<(usize, usize, usize, usize)> {
    let (from, to) = (x.layout.merged_in(&to.layout), to.layout.merged_in(&to.layout));
    match (&from[..], &to[..]) {
        ([], []) => Some((1, 1, 1, 1)),
        ([(n, 1)], [(m, 1)]) if n == m => Some((1, *n, *n, *n)),
        ([(n, a), (w, 1)], [(m, b), (v, 1)]) if n == m && w == v && a >= w => Some((*n, *w, *a, *b)),
        // One of them has no gaps.
        ([(n, 1)], [(m, b), (v, 1)]) if *n == m * v => Some((*m, *v, *v, *b)),
        ([(n, a), (w, 1)], [(m, 1)]) if *m == n * w && a >= w => Some((*n, *w, *a, *w)),
        _ => None,
    }
}
