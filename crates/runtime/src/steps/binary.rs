//! Sums and products of two operands, broadcast.

use jitquant_kernels::{Isa, Operand, Parallel, QParams, Table};

use super::Kernel;
use super::elements::expect;
use crate::layout::{Element, Layout};
use crate::parts::in_parts;
use crate::plan::{Placed, Planner};
use crate::program;
use crate::view::expanded;
use crate::{Error, Result};

/// An element-wise operator for known sizes.
pub(crate) struct Call {
    multiplies: bool,
    a: QParams,
    b: QParams,
    to: QParams,
    relu: bool,
    /// A clamp that is no relu.
    clamp: Option<Table>,
    shape: Shape,
}

/// How the operands lie.
#[derive(Clone, Copy)]
enum Shape {
    /// Both as the result.
    Same,
    /// One of them has a row for each `rows` rows of the result: row `r` of `width` elements goes with row `r / rows`, or
    /// with the only one.
    Repeated { second: bool, rows: usize, width: usize, is_one: bool },
}

/// Elements that a repeated row is copied to, so that the kernel has enough to do at a time.
const TILE: usize = 4096;

/// Plans the operator.
pub(super) fn plan(
    planner: &mut Planner<'_>,
    multiplies: bool,
    form: &program::Binary,
    operands: [&Placed; 2],
) -> Result<Placed> {
    operands.iter().try_for_each(|x| expect(x, Element::U8))?;
    let [x, y] = operands;
    let is_alike = x.layout.sizes == y.layout.sizes && x.layout.strides == y.layout.strides && x.layout.is_dense();
    let layout = match is_alike {
        true => x.layout.clone(),
        // The order of the operand that has more dimensions, as the operator of libtorch's tensors does.
        false => {
            let format = if x.layout.rank() >= y.layout.rank() { x.layout.format() } else { y.layout.format() };
            Layout::new(Element::U8, &broadcast(&x.layout.sizes, &y.layout.sizes)?, format)
        }
    };
    let mut whole = [x.seen(expanded(&x.layout, &layout.sizes)?, 0), y.seen(expanded(&y.layout, &layout.sizes)?, 0)];
    let mut shape = Shape::Same;
    for index in 0..2 {
        if whole[index].layout.is_like(&layout) {
            continue;
        }
        let other_is_whole =
            index == 1 && whole[0].layout.is_like(&layout) || index == 0 && whole[1].layout.is_like(&layout);
        match repeated(&whole[index].layout, &layout, index == 1) {
            Some(found) if other_is_whole => shape = found,
            _ => {
                let copy = planner.temporary(layout.clone());
                planner.copy(&whole[index], &copy)?;
                whole[index] = copy;
            }
        }
    }
    let out = planner.result(layout)?;
    let relu = i32::from(form.min) == form.to.zero_point && form.max == 255;
    let clamp = (!relu && (form.min, form.max) != (0, 255))
        .then(|| Table::from_bytes(std::array::from_fn(|byte| (byte as u8).max(form.min).min(form.max))));
    let call = Call { multiplies, a: form.a, b: form.b, to: form.to, relu, clamp, shape };
    planner.push(Kernel::Binary(call), &[&whole[0], &whole[1]], &out, 0);
    Ok(out)
}

/// The sizes of both together.
pub(super) fn broadcast(a: &[i64], b: &[i64]) -> Result<Vec<i64>> {
    let rank = a.len().max(b.len());
    let size = |sizes: &[i64], axis: usize| (axis + sizes.len()).checked_sub(rank).map_or(1, |axis| sizes[axis]);
    let both = |axis: usize| match (size(a, axis), size(b, axis)) {
        (a, b) if a == b || b == 1 => Ok(a),
        (1, b) => Ok(b),
        _ => Err(Error(format!("tensors of sizes {a:?} and {b:?}"))),
    };
    (0..rank).map(both).collect()
}

/// How `x`, expanded to the sizes of `out`, repeats rows; `None` where it does something else.
fn repeated(x: &Layout, out: &Layout, second: bool) -> Option<Shape> {
    let form = |rows, width, is_one| Some(Shape::Repeated { second, rows, width, is_one });
    match x.merged_in(out)[..] {
        [(rows, 0)] => form(rows, 1, true),
        [(rows, 0), (width, 1)] => form(rows, width, true),
        [(_, 1), (rows, 0)] => form(rows, 1, false),
        [(_, next), (rows, 0), (width, 1)] if next == width => form(rows, width, false),
        _ => None,
    }
}

impl Call {
    pub fn name(&self) -> &'static str {
        if self.multiplies { "mul" } else { "add" }
    }

    /// Computes equally long parts.
    fn apply(&self, isa: Isa, x: &[u8], y: &[u8], out: &mut [u8]) {
        let kernel = if self.multiplies { jitquant_kernels::mul } else { jitquant_kernels::add };
        let (x, y) = (Operand { data: x, qparams: self.a }, Operand { data: y, qparams: self.b });
        kernel(isa, x, y, self.to, self.relu, out);
        if let Some(clamp) = &self.clamp {
            clamp.apply_in_place(isa, out);
        }
    }

    pub fn run(&self, isa: Isa, x: &[u8], y: &[u8], out: &mut [u8], threads: &dyn Parallel) {
        let Shape::Repeated { second, rows, width, is_one } = self.shape else {
            return in_parts(threads, out, 1, 1, &|first, part| {
                let len = part.len();
                self.apply(isa, &x[first..][..len], &y[first..][..len], part);
            });
        };
        let (whole, few) = if second { (x, y) } else { (y, x) };
        in_parts(threads, out, width, width, &|first, part| {
            let mut tile = Tile::new(width);
            let (mut row, end) = (first, first + part.len() / width);
            while row < end {
                let group = row / rows;
                let one = &few[if is_one { 0 } else { group * width }..][..width];
                let count = (end.min((group + 1) * rows) - row).min(tile.copies);
                let small = &tile.of(one)[..count * width];
                let big = &whole[row * width..][..count * width];
                let out = &mut part[(row - first) * width..][..count * width];
                if second {
                    self.apply(isa, big, small, out)
                } else {
                    self.apply(isa, small, big, out)
                }
                row += count;
            }
        });
    }
}

/// A row several times, one behind the other.
struct Tile<'a> {
    bytes: [u8; TILE],
    copies: usize,
    /// The row that it was filled with.
    row: &'a [u8],
}

impl<'a> Tile<'a> {
    fn new(width: usize) -> Self {
        Self { bytes: [0; TILE], copies: (TILE / width).max(1), row: &[] }
    }

    /// The row as often as there is room for, or itself.
    fn of(&mut self, row: &'a [u8]) -> &[u8] {
        if self.copies == 1 {
            self.row = row;
            return row;
        }
        if !std::ptr::eq(self.row, row) {
            self.row = row;
            self.bytes.chunks_exact_mut(row.len()).for_each(|to| to.copy_from_slice(row));
        }
        &self.bytes
    }
}
