//! Products with one to four rows, which wait for the weights: these are read in the order of memory.
//!
//! A tile of several strips walks through as many streams at once. That is right where each weight is used by many rows; with
//! few rows, the time is that of reading the weights, and one stream is what memory and prefetchers are fastest at.

use super::panels::GROUP;
use super::tile::{Operands, Rows, each_row};
use super::vector::{STRIP, Vector};

/// Up to how many rows a product is bound by reading the weights.
pub(super) const FEW_ROWS: usize = 4;

/// Groups that are in flight at once, each with an accumulator of its own: one alone would wait for its last sum.
const UNROLL: usize = 4;

/// How far ahead weights are asked for, in bytes: the hardware's prefetchers stop at the end of a page.
const AHEAD: usize = 2048;

/// As [`accumulate`](super::tile) for a single segment: the exact sums of `(x - zero_x) * w`.
///
/// # Safety
/// As `tile`'s.
#[inline(always)]
pub(super) unsafe fn stream<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    operands: &Operands<'_>,
    segment: usize,
    rows: Rows,
    strip: usize,
) -> [[V::I32; STRIPS]; ROWS] {
    let panels = operands.panels;
    let tail = if operands.slack { 0 } else { panels.length() % 4 };
    let whole = panels.groups() - usize::from(tail != 0);
    let zero = v.splat(V::OFFSET - i32::from(operands.zero_point));
    let input = rows.input.wrapping_add(segment);
    let step = rows.input_step;
    let mut sums = [[v.splat(0); STRIPS]; ROWS];
    // SAFETY: the panels hold the strips, `STRIPS` of them one after the other; the rows are readable.
    unsafe {
        let mut weights = panels.as_ptr().add(strip * panels.strip_bytes());
        for s in 0..STRIPS {
            let mut parts = [[v.splat(0); UNROLL]; ROWS];
            let initial = v.mul(zero, v.load(panels.sums().as_ptr().add((strip + s) * STRIP), STRIP));
            each_row!(row < ROWS => {
                parts[row][0] = initial;
            });
            let mut x = input;
            for _ in 0..whole / UNROLL {
                for u in 0..UNROLL {
                    v.prefetch(weights.wrapping_add(AHEAD + u * GROUP));
                    let w = v.weights(weights.add(u * GROUP));
                    each_row!(row < ROWS => {
                        parts[row][u] = v.dot(parts[row][u], v.activations(x.wrapping_add(row * step + 4 * u)), w);
                    });
                }
                weights = weights.add(UNROLL * GROUP);
                x = x.wrapping_add(4 * UNROLL);
            }
            for _ in 0..whole % UNROLL {
                let w = v.weights(weights);
                each_row!(row < ROWS => {
                    parts[row][1] = v.dot(parts[row][1], v.activations(x.wrapping_add(row * step)), w);
                });
                weights = weights.add(GROUP);
                x = x.wrapping_add(4);
            }
            if tail != 0 {
                let w = v.weights(weights);
                each_row!(row < ROWS => {
                    let mut bytes = [0u8; 4];
                    std::ptr::copy_nonoverlapping(x.wrapping_add(row * step), bytes.as_mut_ptr(), tail);
                    parts[row][2] = v.dot(parts[row][2], v.activations(bytes.as_ptr()), w);
                });
                weights = weights.add(GROUP);
            }
            each_row!(row < ROWS => {
                let [a, b, c, d] = parts[row];
                sums[row][s] = v.add(v.add(a, b), v.add(c, d));
            });
        }
    }
    sums
}
