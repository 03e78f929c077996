//! The arithmetic: a few neighbouring outputs of one block of channels from a filled line.
//!
//! Places are multiplied with `wrapping_mul`: all lie within a line whose length was checked before.

#![allow(unsafe_code)]
// Rows, columns and registers are counted at compile time and index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::line::{Filling, Source};
use super::store::{Place, PlainBytes};
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
    tiles: Tiles<'_>,
    columns: usize,
    at: usize,
) {
    // SAFETY: by the contract.
    unsafe {
        for column in 0..columns {
            tile_any::<V, ROWS, TAPS, QUADS>(tiles, column, at);
        }
    }
}

/// As [`line`], for [`PlainBytes`], from a line that is filled on the way.
///
/// # Safety
/// As [`Vector`]'s. The line has room for the columns that these outputs read.
#[inline(always)]
pub(crate) unsafe fn filled_line<V: Vector, const ROWS: usize, const TAPS: usize, const QUADS: usize>(
    tiles: Tiles<'_>,
    bytes: PlainBytes,
    mut filling: Filling<QUADS>,
    source: &Source,
    columns: usize,
    at: usize,
) {
    let reach = (tiles.taps - 1) * tiles.dilation + 1;
    // SAFETY: by the contract.
    unsafe {
        let mut column = 0;
        while column + 2 <= columns {
            filling.fill::<V>((column + 1) * tiles.stride + reach, source);
            tile::<V, ROWS, 2, TAPS, QUADS>(tiles, bytes, column, at);
            column += 2;
        }
        if column < columns {
            filling.fill::<V>(column * tiles.stride + reach, source);
            tile::<V, ROWS, 1, TAPS, QUADS>(tiles, bytes, column, at);
        }
    }
}

/// `COLUMNS` outputs in each of `ROWS` rows, from column `column` on, requantized to bytes and nothing else.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const COLUMNS: usize, const TAPS: usize, const QUADS: usize>(
    tiles: Tiles<'_>,
    bytes: PlainBytes,
    column: usize,
    at: usize,
) {
    // SAFETY: by the contract of `line`.
    unsafe {
        let first = sums::<V, ROWS, COLUMNS, TAPS, QUADS>(tiles, column, 0);
        let first = words::<V, ROWS, COLUMNS>(tiles.place, bytes, &first, 0);
        let second = sums::<V, ROWS, COLUMNS, TAPS, QUADS>(tiles, column, 1);
        let second = words::<V, ROWS, COLUMNS>(tiles.place, bytes, &second, 1);
        for row in 0..ROWS {
            for n in 0..COLUMNS {
                let packed = V::bytes([first[row][n], second[row][n]], bytes.min, bytes.max);
                V::store(bytes.to.add(at + row * tiles.row + (column + n) * tiles.pixel), packed);
            }
        }
    }
}

/// Requantizes a half of a tile: registers `2 half` and `2 half + 1`.
///
/// # Safety
/// As [`Vector`]'s.
#[inline(always)]
pub(crate) unsafe fn words<V: Vector, const ROWS: usize, const COLUMNS: usize>(
    place: Place<'_>,
    bytes: PlainBytes,
    sums: &[[[V::Reg; 2]; COLUMNS]; ROWS],
    half: usize,
) -> [[V::Reg; COLUMNS]; ROWS] {
    // SAFETY: by the contract of `line`.
    unsafe {
        let mut words = [[V::splat(0); COLUMNS]; ROWS];
        for row in 0..ROWS {
            for n in 0..COLUMNS {
                words[row][n] = V::words(place.affine::<V>(sums[row][n], half), bytes.high, bytes.zero);
            }
        }
        words
    }
}

/// One output in each of `ROWS` rows, with any epilogue.
#[inline(always)]
unsafe fn tile_any<V: Vector, const ROWS: usize, const TAPS: usize, const QUADS: usize>(
    tiles: Tiles<'_>,
    column: usize,
    at: usize,
) {
    // SAFETY: by the contract of `line`.
    unsafe {
        let mut words = [V::splat(0); ROWS];
        for half in 0..2 {
            let sums = sums::<V, ROWS, 1, TAPS, QUADS>(tiles, column, half);
            for row in 0..ROWS {
                let at = at + row * tiles.row + column * tiles.pixel;
                words[row] = tiles.place.finish::<V>(sums[row][0], half, at, words[row]);
            }
        }
    }
}

/// The accumulators of registers `2 half` and `2 half + 1`.
#[inline(always)]
unsafe fn sums<V: Vector, const ROWS: usize, const COLUMNS: usize, const TAPS: usize, const QUADS: usize>(
    tiles: Tiles<'_>,
    column: usize,
    half: usize,
) -> [[[V::Reg; 2]; COLUMNS]; ROWS] {
    let taps = if TAPS == 0 { tiles.taps } else { TAPS };
    let quads = if QUADS == 0 { tiles.quads } else { QUADS };
    let weight_register = V::BYTES * if V::WIDENED { 2 } else { 1 };
    let column_bytes = quads * 4 * V::BYTES;
    // SAFETY: the caller's line and weights hold every register addressed here.
    unsafe {
        let line = tiles.line.add(column * tiles.stride * column_bytes + 2 * half * V::BYTES);
        let weights = tiles.weights.add(2 * half * weight_register);
        let initial = [tiles.place.initial::<V>(2 * half), tiles.place.initial::<V>(2 * half + 1)];
        let mut sums = [[initial; COLUMNS]; ROWS];
        for tap in 0..taps {
            for quad in 0..quads {
                let line = line.add(
                    tap.wrapping_mul(tiles.dilation).wrapping_mul(quads).wrapping_add(quad).wrapping_mul(4 * V::BYTES),
                );
                let weights = weights.add(
                    tap.wrapping_mul(quads)
                        .wrapping_add(quad)
                        .wrapping_mul(tiles.weight_rows)
                        .wrapping_mul(4 * weight_register),
                );
                for register in 0..2 {
                    for row in 0..ROWS {
                        let weights = V::weights(weights.add((row * 4 + register) * weight_register));
                        for n in 0..COLUMNS {
                            let bytes = V::taps(
                                line.add(
                                    n.wrapping_mul(tiles.stride)
                                        .wrapping_mul(column_bytes)
                                        .wrapping_add(register * V::BYTES),
                                ),
                            );
                            sums[row][n][register] = V::dot(sums[row][n][register], bytes, weights);
                        }
                    }
                }
            }
        }
        sums
    }
}
