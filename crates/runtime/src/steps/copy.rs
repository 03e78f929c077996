//! Copies between layouts.

use jitquant_kernels::{Isa, Table};

use crate::layout::Layout;
use crate::{Result, refuse};

/// Copies elements from one layout to another.
pub(crate) struct Copy {
    /// Sizes with both strides in elements, outermost in the target's memory first.
    dims: Vec<Dim>,
    /// Bytes of an element.
    element: usize,
}

#[derive(Clone, Copy)]
struct Dim {
    size: usize,
    from: usize,
    to: usize,
}

impl Copy {
    pub fn new(from: &Layout, to: &Layout) -> Result<Self> {
        if from.sizes != to.sizes || from.element != to.element {
            return refuse(format!("a copy from sizes {:?} to {:?}", from.sizes, to.sizes));
        }
        let mut dims: Vec<Dim> = from
            .dims()
            .zip(to.dims())
            .filter(|((size, _), _)| *size != 1)
            .map(|((size, from), (_, to))| Dim { size, from, to })
            .collect();
        dims.sort_by_key(|dim| std::cmp::Reverse(dim.to));
        let mut merged: Vec<Dim> = Vec::new();
        for dim in dims {
            match merged.last_mut() {
                Some(outer) if outer.from == dim.from * dim.size && outer.to == dim.to * dim.size => {
                    *outer = Dim { size: outer.size * dim.size, ..dim };
                }
                _ => merged.push(dim),
            }
        }
        Ok(Self { dims: merged, element: from.element.size() })
    }

    pub fn run(&self, x: &[u8], out: &mut [u8]) {
        match self.element {
            4 => self.elements::<4>(x, out),
            _ => self.elements::<1>(x, out),
        }
    }

    fn elements<const N: usize>(&self, x: &[u8], out: &mut [u8]) {
        // Whether the order of the caller's floats is kept does not matter: they are moved as they are.
        let (x, out) = (x.as_chunks::<N>().0, out.as_chunks_mut::<N>().0);
        level(&self.dims, x, out);
    }
}

/// Bytes of the target that a transposition works on at a time: they stay in the nearest cache.
const NEAR: usize = 16 << 10;

fn level<T: std::marker::Copy>(dims: &[Dim], x: &[T], out: &mut [T]) {
    match dims {
        [] => out[0] = x[0],
        [Dim { size, from: 1, to: 1 }] => out[..*size].copy_from_slice(&x[..*size]),
        [dim] => (0..dim.size).for_each(|i| out[i * dim.to] = x[i * dim.from]),
        // A matrix whose rows are columns in the target: image planes to pixels, for one.
        [rows @ Dim { from: 1, .. }, columns] => {
            let near = (NEAR / (size_of::<T>() * rows.to)).clamp(1, rows.size);
            for first in (0..rows.size).step_by(near) {
                let count = near.min(rows.size - first);
                for column in 0..columns.size {
                    let from = &x[column * columns.from + first..][..count];
                    let to = out[column * columns.to + first * rows.to..].iter_mut().step_by(rows.to);
                    to.zip(from).for_each(|(to, from)| *to = *from);
                }
            }
        }
        [outer, inner @ ..] => {
            (0..outer.size).for_each(|i| level(inner, &x[i * outer.from..], &mut out[i * outer.to..]));
        }
    }
}

/// Copies rows, or looks them up in a table.
pub(crate) struct Rows {
    pub rows: usize,
    /// Bytes of a row.
    pub width: usize,
    /// Bytes from one row to the next.
    pub from: usize,
    /// The same where they are written.
    pub to: usize,
    pub table: Option<Table>,
}

impl Rows {
    pub fn run(&self, isa: Isa, x: &[u8], out: &mut [u8]) {
        let rows = x.chunks(self.from).take(self.rows).map(|row| &row[..self.width]);
        let targets = out.chunks_mut(self.to).take(self.rows).map(|row| &mut row[..self.width]);
        match &self.table {
            Some(table) => table.apply_rows(isa, rows, targets),
            None => rows.zip(targets).for_each(|(row, to)| to.copy_from_slice(row)),
        }
    }
}
