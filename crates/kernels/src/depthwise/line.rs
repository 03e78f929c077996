//! The line buffer: a few rows of the input, four to a quad, interleaved as the dot product reads them.
//!
//! For one block of channels and one row (or two) of outputs, column `i` of the line holds, for each quad of kernel rows,
//! four registers whose 32-bit lanes are the four rows' bytes of one channel. Neighbouring outputs share columns, two
//! rows of outputs share the quads, and what lies in the padding holds the zero point: the micro-kernel that reads the
//! line knows nothing of edges.

#![allow(unsafe_code)]

use super::layout::Block;
use super::vector::Vector;

/// What a line is made of.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    /// Bytes from one pixel to the next: input channels.
    pub pixel: usize,
    /// Output channels for each input channel.
    pub multiplier: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Stands in the padding.
    pub zero_point: u8,
    /// The block of output channels.
    pub block: Block,
}

/// Where the columns of a line lie in their rows.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    /// The row's pixel of column 0; negative in the padding.
    pub start: isize,
    pub count: usize,
}

impl Columns {
    /// The columns inside a row of `width` pixels; the others are padding.
    #[inline(always)]
    pub fn inside(&self, width: usize) -> std::ops::Range<usize> {
        let inside = |pixel: usize| (pixel as isize - self.start).clamp(0, self.count as isize) as usize;
        inside(0)..inside(width)
    }
}

/// Fills quad `quad` of `quads`. `rows[k]` points to pixel 0 of the `k`-th row, at the input channel of the block's first
/// channel, or is none in the padding and for rows that the kernel does not have (whose weights are 0).
///
/// # Safety
/// As [`Vector`]'s. Every row has `width` pixels; `line` holds `columns.count * quads` times four registers.
#[inline(always)]
pub(crate) unsafe fn fill<V: Vector>(
    line: *mut u8,
    (quad, quads): (usize, usize),
    rows: [Option<*const u8>; 4],
    columns: Columns,
    source: &Source,
) {
    // SAFETY: by the contract.
    unsafe {
        let line = line.add(quad * 4 * V::BYTES);
        match (source.multiplier, source.block.count == V::BYTES) {
            (1, true) => fill_as::<V, WHOLE>(line, quads, rows, columns, source),
            (1, false) => fill_as::<V, FIRST>(line, quads, rows, columns, source),
            _ => fill_as::<V, REPEATED>(line, quads, rows, columns, source),
        }
    }
}

/// A block's bytes at a pixel are a whole register,
const WHOLE: u8 = 0;
/// or the first bytes of one,
const FIRST: u8 = 1;
/// or come from fewer input channels, each repeated `multiplier` times.
const REPEATED: u8 = 2;

/// The bytes of a block at the pixel `from`.
#[inline(always)]
unsafe fn load<V: Vector, const FORM: u8>(from: *const u8, source: &Source) -> V::Reg {
    let count = source.block.count;
    // SAFETY: the caller's pixel has the block's input channels, and `repeated` is as long as the longest register.
    unsafe {
        match FORM {
            WHOLE => V::load(from),
            FIRST => V::load_first(from, count),
            _ => {
                let first = source.block.start % source.multiplier;
                let mut repeated = [0u8; 64];
                for (n, byte) in repeated[..count].iter_mut().enumerate() {
                    *byte = *from.add((first + n) / source.multiplier);
                }
                V::load(repeated.as_ptr())
            }
        }
    }
}

/// Where the bytes of a quad's rows are, from some column on, and how far the next column is: in the padding nowhere.
#[derive(Clone, Copy)]
struct Rows([(*const u8, usize); 4]);

impl Rows {
    /// The rows from pixel `first` on. Rows in the padding read `zeros` over and over.
    #[inline(always)]
    fn new(rows: [Option<*const u8>; 4], first: usize, pixel: usize, zeros: &[u8; 64]) -> Self {
        Self(rows.map(|row| match row {
            Some(row) => (row.wrapping_add(first * pixel), pixel),
            None => (zeros.as_ptr(), 0),
        }))
    }

    /// Interleaves the bytes of one column and goes on to the next.
    ///
    /// # Safety
    /// As [`Vector`]'s; the column is inside the row, and `to` has room for four registers.
    #[inline(always)]
    unsafe fn advance<V: Vector, const FORM: u8>(&mut self, to: *mut u8, source: &Source) {
        let rows = &mut self.0;
        // SAFETY: by the contract.
        unsafe {
            let bytes = V::interleave([
                load::<V, FORM>(rows[0].0, source),
                load::<V, FORM>(rows[1].0, source),
                load::<V, FORM>(rows[2].0, source),
                load::<V, FORM>(rows[3].0, source),
            ]);
            V::store(to, bytes[0]);
            V::store(to.add(V::BYTES), bytes[1]);
            V::store(to.add(2 * V::BYTES), bytes[2]);
            V::store(to.add(3 * V::BYTES), bytes[3]);
        }
        rows[0].0 = rows[0].0.wrapping_add(rows[0].1);
        rows[1].0 = rows[1].0.wrapping_add(rows[1].1);
        rows[2].0 = rows[2].0.wrapping_add(rows[2].1);
        rows[3].0 = rows[3].0.wrapping_add(rows[3].1);
    }
}

/// [`fill`] for one form of pixel.
#[inline(always)]
unsafe fn fill_as<V: Vector, const FORM: u8>(
    line: *mut u8,
    quads: usize,
    rows: [Option<*const u8>; 4],
    columns: Columns,
    source: &Source,
) {
    let zeros = [source.zero_point; 64];
    let inside = columns.inside(source.width);
    let first = (columns.start + inside.start as isize).max(0) as usize;
    let mut rows = Rows::new(rows, first, source.pixel, &zeros);
    let column_bytes = quads * 4 * V::BYTES;
    // SAFETY: columns inside the row are read from its pixels, or from `zeros`, which is as long as the longest
    // register; stores stay within `columns.count`.
    unsafe {
        let padding = V::splat(source.zero_point);
        for column in (0..inside.start).chain(inside.end..columns.count) {
            store_padding::<V>(line.add(column * column_bytes), padding);
        }
        for column in inside {
            rows.advance::<V, FORM>(line.add(column * column_bytes), source);
        }
    }
}

#[inline(always)]
unsafe fn store_padding<V: Vector>(to: *mut u8, padding: V::Reg) {
    // SAFETY: by the caller's contract, four registers fit.
    unsafe {
        V::store(to, padding);
        V::store(to.add(V::BYTES), padding);
        V::store(to.add(2 * V::BYTES), padding);
        V::store(to.add(3 * V::BYTES), padding);
    }
}

/// A line that is filled while it is read, a few columns ahead: shuffles and dot products then overlap, which use
/// different ports of a processor.
pub(crate) struct Filling<const QUADS: usize> {
    rows: [Rows; QUADS],
    inside: std::ops::Range<usize>,
    line: *mut u8,
    /// Columns that are there.
    filled: usize,
}

impl<const QUADS: usize> Filling<QUADS> {
    /// See [`fill`]; for whole blocks with one output channel an input channel. `zeros` hold the zero point.
    #[inline(always)]
    pub fn new(
        line: *mut u8,
        rows: [[Option<*const u8>; 4]; QUADS],
        columns: Columns,
        source: &Source,
        zeros: &[u8; 64],
    ) -> Self {
        let inside = columns.inside(source.width);
        let first = (columns.start + inside.start as isize).max(0) as usize;
        Self { rows: rows.map(|rows| Rows::new(rows, first, source.pixel, zeros)), inside, line, filled: 0 }
    }

    /// Fills columns before `end`.
    ///
    /// # Safety
    /// As [`fill`]'s.
    #[inline(always)]
    pub unsafe fn fill<V: Vector>(&mut self, end: usize, source: &Source) {
        // SAFETY: by the contract.
        unsafe {
            while self.filled < end {
                let to = self.line.add(self.filled.wrapping_mul(QUADS * 4 * V::BYTES));
                if self.inside.contains(&self.filled) {
                    for (quad, rows) in self.rows.iter_mut().enumerate() {
                        rows.advance::<V, WHOLE>(to.add(quad * 4 * V::BYTES), source);
                    }
                } else {
                    for quad in 0..QUADS {
                        store_padding::<V>(to.add(quad * 4 * V::BYTES), V::splat(source.zero_point));
                    }
                }
                self.filled += 1;
            }
        }
    }
}
