//! The arithmetic: a few neighbouring outputs of one block of channels from a filled line.

#![allow(unsafe_code)]

use super::store::Place;
use super::vector::Vector;

/// What all tiles of one line share.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    /// The filled line.
    pub line: *const u8,
    /// The block's weights: quads in the order `[kernel column][quad][row of outputs]`.
    pub weights: *const u8,
    /// Quads in a column of the line.
    pub quads: usize,
    /// Kernel columns.
    pub taps: usize,
    /// Columns of the line from one kernel column to the next.
    pub dilation: usize,
    /// Columns of the line from one output to the next.
    pub stride: usize,
    /// Rows of outputs that the weights are packed for.
    pub weight_rows: usize,
    /// Elements from one pixel of the output to the next: output channels.
    pub pixel: usize,
    /// Elements from one row of outputs to the next.
    pub row: usize,
    pub place: Place<'a>,
}

/// Computes `columns` outputs in each of `ROWS` rows. `at` is the element of the first one in the output.
///
/// `TAPS` and `QUADS` are the kernel columns and quads where they are known at compile time, else 0.
///
/// # Safety
/// As [`Vector`]'s. The line holds the columns that these outputs read.
#[inline(always)]
pub(crate) unsafe fn line<V: Vector, const ROWS: usize, const TAPS: usize, const QUADS: usize>(
    tiles: &Tiles<'_>,
    columns: usize,
    at: usize,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut column = 0;
        while column + 2 <= columns {
            tile::<V, ROWS, 2, TAPS, QUADS>(tiles, column, at);
            column += 2;
        }
        if column < columns {
            tile::<V, ROWS, 1, TAPS, QUADS>(tiles, column, at);
        }
    }
}

/// `COLUMNS` outputs in each of `ROWS` rows, from column `column` on.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const COLUMNS: usize, const TAPS: usize, const QUADS: usize>(
    tiles: &Tiles<'_>,
    column: usize,
    at: usize,
) {
    let taps = if TAPS == 0 { tiles.taps } else { TAPS };
    let quads = if QUADS == 0 { tiles.quads } else { QUADS };
    let weight_register = V::BYTES * if V::WIDENED { 2 } else { 1 };
    let column_bytes = quads * 4 * V::BYTES;
    // SAFETY: the caller's line and weights hold every register addressed below.
    unsafe {
        let line = tiles.line.add(column * tiles.stride * column_bytes);
        let mut words = [[V::splat(0); COLUMNS]; ROWS];
        for half in 0..2 {
            let initial = [tiles.place.initial::<V>(2 * half), tiles.place.initial::<V>(2 * half + 1)];
            let mut sums = [[initial; COLUMNS]; ROWS];
            for tap in 0..taps {
                for quad in 0..quads {
                    for register in 0..2 {
                        let from = (tap * tiles.dilation * quads + quad) * 4 + 2 * half + register;
                        let from = line.add(from * V::BYTES);
                        let weights =
                            ((tap * quads + quad) * tiles.weight_rows * 4 + 2 * half + register) * weight_register;
                        let weights = tiles.weights.add(weights);
                        for row in 0..ROWS {
                            let weights = V::weights(weights.add(row * 4 * weight_register));
                            for column in 0..COLUMNS {
                                let bytes = V::taps(from.add(column * tiles.stride * column_bytes));
                                let sum = &mut sums[row][column][register];
                                *sum = V::dot(*sum, bytes, weights);
                            }
                        }
                    }
                }
            }
            for row in 0..ROWS {
                for column_in in 0..COLUMNS {
                    let at = at + row * tiles.row + (column + column_in) * tiles.pixel;
                    let first = words[row][column_in];
                    words[row][column_in] = tiles.place.finish::<V>(sums[row][column_in], half, at, first);
                }
            }
        }
    }
}
