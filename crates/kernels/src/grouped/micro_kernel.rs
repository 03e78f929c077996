//! The arithmetic: a few neighbouring outputs of one block of channels from filled lines.
//!
//! Places are multiplied with `wrapping_mul`: all lie within lines whose length was checked before.

#![allow(unsafe_code)]
// Columns and registers are counted at compile time and index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::line::source;
use crate::depthwise::micro_kernel::words;
use crate::depthwise::store::{Place, PlainBytes};
use crate::depthwise::vector::Vector;

/// What all tiles of one row of outputs share.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    /// The filled line of each row of the window (and again for each further part of the weights).
    pub lines: &'a [*const u8],
    /// The block's weights: quads in the order `[kernel column][row][step]`.
    pub weights: *const u8,
    /// Dot products a tap.
    pub steps: usize,
    /// Registers of a pixel in a line.
    pub registers: usize,
    /// Kernel columns.
    pub taps: usize,
    /// Columns of a line from one kernel column to the next.
    pub dilation: usize,
    /// Columns of a line from one output to the next.
    pub stride: usize,
    /// Elements from one pixel of the output to the next: output channels.
    pub pixel: usize,
    pub place: Place<'a>,
}

/// Computes `columns` outputs, `COLUMNS` at once. `at` is the element of the first one in the output.
///
/// `STEPS` are those of [`super::line::Sources::Spread`], or 0.
///
/// # Safety
/// As [`Vector`]'s. The lines hold the columns that these outputs read.
#[inline(always)]
pub(super) unsafe fn row<V: Vector, const COLUMNS: usize, const STEPS: usize>(
    tiles: Tiles<'_>,
    columns: usize,
    at: usize,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut column = 0;
        match tiles.place.plain_bytes::<V>() {
            Some(bytes) => {
                while column + COLUMNS <= columns {
                    tile::<V, COLUMNS, STEPS>(tiles, bytes, column, at);
                    column += COLUMNS;
                }
                while column + 2 <= columns {
                    tile::<V, 2, STEPS>(tiles, bytes, column, at);
                    column += 2;
                }
                if column < columns {
                    tile::<V, 1, STEPS>(tiles, bytes, column, at);
                }
            }
            None => {
                while column + 2 <= columns {
                    tile_any::<V, 2, STEPS>(tiles, column, at);
                    column += 2;
                }
                if column < columns {
                    tile_any::<V, 1, STEPS>(tiles, column, at);
                }
            }
        }
    }
}

/// `COLUMNS` outputs from column `column` on, requantized to bytes and nothing else.
#[inline(always)]
unsafe fn tile<V: Vector, const COLUMNS: usize, const STEPS: usize>(
    tiles: Tiles<'_>,
    bytes: PlainBytes,
    column: usize,
    at: usize,
) {
    // SAFETY: by the contract of `row`.
    unsafe {
        let first = sums::<V, COLUMNS, STEPS>(tiles, column, 0);
        let first = words::<V, 1, COLUMNS>(tiles.place, bytes, &[first], 0);
        let second = sums::<V, COLUMNS, STEPS>(tiles, column, 1);
        let second = words::<V, 1, COLUMNS>(tiles.place, bytes, &[second], 1);
        for n in 0..COLUMNS {
            let packed = V::bytes([first[0][n], second[0][n]], bytes.min, bytes.max);
            V::store(bytes.to.add(at + (column + n) * tiles.pixel), packed);
        }
    }
}

/// `COLUMNS` outputs with any epilogue.
#[inline(always)]
unsafe fn tile_any<V: Vector, const COLUMNS: usize, const STEPS: usize>(tiles: Tiles<'_>, column: usize, at: usize) {
    // SAFETY: by the contract of `row`.
    unsafe {
        let mut words = [V::splat(0); COLUMNS];
        for half in 0..2 {
            let sums = sums::<V, COLUMNS, STEPS>(tiles, column, half);
            for n in 0..COLUMNS {
                let at = at + (column + n) * tiles.pixel;
                words[n] = tiles.place.finish::<V>(sums[n], half, at, words[n]);
            }
        }
    }
}

/// The accumulators of registers `2 half` and `2 half + 1`.
#[inline(always)]
unsafe fn sums<V: Vector, const COLUMNS: usize, const STEPS: usize>(
    tiles: Tiles<'_>,
    column: usize,
    half: usize,
) -> [[V::Reg; 2]; COLUMNS] {
    let steps = if STEPS == 0 { tiles.steps } else { STEPS };
    let registers = if STEPS == 0 { tiles.registers } else { STEPS.max(4) };
    let weight_register = V::BYTES * if V::WIDENED { 2 } else { 1 };
    let column_bytes = registers * V::BYTES;
    // SAFETY: the caller's lines and weights hold every register addressed here.
    unsafe {
        let mut weights = tiles.weights.add(2 * half * weight_register);
        let initial = [tiles.place.initial::<V>(2 * half), tiles.place.initial::<V>(2 * half + 1)];
        let mut sums = [initial; COLUMNS];
        for tap in 0..tiles.taps {
            let first = column
                .wrapping_mul(tiles.stride)
                .wrapping_add(tap.wrapping_mul(tiles.dilation))
                .wrapping_mul(column_bytes);
            for line in tiles.lines {
                let line = line.add(first);
                for step in 0..steps {
                    let pair = [V::weights(weights), V::weights(weights.add(weight_register))];
                    for n in 0..COLUMNS {
                        let pixel = line.add(n.wrapping_mul(tiles.stride).wrapping_mul(column_bytes));
                        for register in 0..2 {
                            let bytes = V::taps(pixel.add(source::<STEPS>(2 * half + register, step) * V::BYTES));
                            sums[n][register] = V::dot(sums[n][register], bytes, pair[register]);
                        }
                    }
                    weights = weights.add(4 * weight_register);
                }
            }
        }
        sums
    }
}
