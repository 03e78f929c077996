//! The micro-kernel: a tile of a few rows and strips, accumulated in registers.
//!
//! Innermost loops multiply places with `wrapping_mul`: all lie within memory whose length was checked before, and builds check
//! other sums for overflow.

use super::finish::{Finish, PlainStrips, finish_spilled};
use super::panels::{GROUP, Panels};
use super::vector::{STRIP, Vector};

/// Runs `$body` for each row below `$rows`, at most 12, without a loop: an array of accumulators that is indexed by a
/// variable would live in memory.
macro_rules! each_row {
    ($row:ident < $rows:ident => $body:block) => {
        each_row!(@ $row $rows $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $row:ident $rows:ident $body:block, $($index:literal)*) => {
        $(if $index < $rows {
            let $row: usize = $index;
            $body
        })*
    };
}
pub(super) use each_row;

/// A block of output rows that are equally spaced in the input and in the output.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// The first row's first byte, where offset 0 of a segment is.
    pub input: *const u8,
    /// Bytes from one row to the next.
    pub input_step: usize,
    /// The element of the first row's channel 0 in the output.
    pub output: usize,
    /// Elements from one row to the next.
    pub output_step: usize,
    /// How many; at most [`Vector::ROWS`].
    pub count: usize,
    /// The number of the first row, where rows have scales of their own.
    pub index: usize,
}

/// A product's operands, apart from the rows.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub panels: &'a Panels,
    /// Where each segment begins, in bytes from the start of a row.
    pub segments: &'a [usize],
    /// Bytes beyond a segment's end may be read, up to a multiple of four: their weights are zero.
    pub slack: bool,
    /// The activations' zero point, 0 where rows have their own.
    pub zero_point: u8,
}

/// How many strips a tile of `rows` rows takes at once.
#[inline(always)]
pub(crate) fn strips<V: Vector>(rows: usize) -> usize {
    (V::ACCUMULATORS / rows.max(1)).clamp(1, V::STRIPS)
}

/// Computes `rows` of the `count` strips from `strip` on; `count` is at most [`strips`].
///
/// # Safety
/// The rows' segments are readable, and their outputs, within the sink, are written by nobody else.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector>(
    v: V,
    operands: &Operands<'_>,
    finish: &Finish<'_>,
    rows: Rows,
    strip: usize,
    count: usize,
) {
    macro_rules! shapes {
        ($(($rows:literal, $strips:literal))*) => {
            match (rows.count, count) {
                // Shapes that do not fit the registers are compiled to nothing: `strips` never asks for them.
                $(($rows, $strips) => if const { $rows * $strips <= V::ACCUMULATORS && $rows <= V::ROWS && $strips <= V::STRIPS } {
                    // SAFETY: by the contract.
                    unsafe { sized::<V, $rows, $strips>(v, operands, finish, rows, strip) }
                })*
                _ => debug_assert!(false, "no tile of {} rows and {count} strips", rows.count),
            }
        };
    }
    shapes! {
        (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1) (7, 1) (8, 1) (9, 1) (10, 1) (11, 1) (12, 1)
        (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2)
        (1, 3) (2, 3) (3, 3) (4, 3) (5, 3) (6, 3) (7, 3) (8, 3)
        (1, 4) (2, 4) (3, 4) (4, 4) (5, 4) (6, 4)
        (1, 5) (1, 6)
    }
}

#[inline(always)]
unsafe fn sized<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    operands: &Operands<'_>,
    finish: &Finish<'_>,
    rows: Rows,
    strip: usize,
) {
    // SAFETY: by the contract of `tile`.
    unsafe {
        let sums = match V::SORTED {
            true => accumulate_sorted::<V, ROWS, STRIPS>(v, operands, rows, strip),
            false => accumulate::<V, ROWS, STRIPS>(v, operands, rows, strip),
        };
        match finish.plain(operands.panels, strip, STRIPS) {
            Some(plain) => PlainStrips::<V, STRIPS>::new(v, plain, strip).store(v, &sums, rows),
            None => finish_spilled::<V, ROWS, STRIPS>(v, operands, finish, &sums, rows, strip),
        }
    }
}

/// What a strip's sums begin with: the correction for the activations' zero point.
///
/// # Safety
/// The strip exists.
#[inline(always)]
pub(super) unsafe fn initial<V: Vector>(v: V, operands: &Operands<'_>, strip: usize) -> V::I32 {
    let zero = v.splat(V::OFFSET - i32::from(operands.zero_point));
    // SAFETY: the panels have sums for whole strips.
    v.mul(zero, unsafe { v.load(operands.panels.sums().as_ptr().add(strip * STRIP), STRIP) })
}

/// What all rows' sums begin with.
///
/// # Safety
/// The strips exist.
#[inline(always)]
unsafe fn initial_sums<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    operands: &Operands<'_>,
    strip: usize,
) -> [[V::I32; STRIPS]; ROWS] {
    let mut sums = [[v.splat(0); STRIPS]; ROWS];
    for s in 0..STRIPS {
        // SAFETY: by the contract.
        let initial = unsafe { initial(v, operands, strip + s) };
        each_row!(row < ROWS => {
            sums[row][s] = initial;
        });
    }
    sums
}

/// The first `count` bytes, at most four, and zeros.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn first_bytes(from: *const u8, count: usize) -> [u8; 4] {
    let mut bytes = [0; 4];
    for (i, byte) in bytes.iter_mut().enumerate().take(count) {
        // SAFETY: by the contract.
        *byte = unsafe { *from.add(i) };
    }
    bytes
}

/// The exact sums of `(x - zero_x) * w`.
#[inline(always)]
unsafe fn accumulate<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    operands: &Operands<'_>,
    rows: Rows,
    strip: usize,
) -> [[V::I32; STRIPS]; ROWS] {
    let panels = operands.panels;
    let strip_bytes = panels.strip_bytes();
    let tail = if operands.slack { 0 } else { panels.length() % 4 };
    let whole = panels.groups() - usize::from(tail != 0);
    let step = rows.input_step;
    // SAFETY: the panels hold the strips; the rows' segments are readable by the contract of `tile`.
    unsafe {
        let mut weights = panels.as_ptr().add(strip * strip_bytes);
        let mut sums = initial_sums::<V, ROWS, STRIPS>(v, operands, strip);
        for &segment in operands.segments {
            // Every third row has a pointer, the two after it are one and two steps away: few enough registers.
            let mut pointers = [rows.input; 4];
            for (i, pointer) in pointers.iter_mut().enumerate() {
                *pointer = rows.input.wrapping_add(segment.wrapping_add((3 * i).wrapping_mul(step)));
            }
            for _ in 0..whole {
                let mut w = [v.weights(weights); STRIPS];
                for s in 1..STRIPS {
                    w[s] = v.weights(weights.add(s.wrapping_mul(strip_bytes)));
                }
                each_row!(row < ROWS => {
                    let x = v.activations(pointers[row / 3].wrapping_add((row % 3).wrapping_mul(step)));
                    for s in 0..STRIPS {
                        sums[row][s] = v.dot(sums[row][s], x, w[s]);
                    }
                });
                weights = weights.add(GROUP);
                for pointer in &mut pointers {
                    *pointer = pointer.wrapping_add(4);
                }
            }
            if tail != 0 {
                let from = rows.input.wrapping_add(segment + 4 * whole);
                let mut w = [v.weights(weights); STRIPS];
                for s in 1..STRIPS {
                    w[s] = v.weights(weights.add(s.wrapping_mul(strip_bytes)));
                }
                each_row!(row < ROWS => {
                    let x = v.activations(first_bytes(from.wrapping_add(row.wrapping_mul(step)), tail).as_ptr());
                    for s in 0..STRIPS {
                        sums[row][s] = v.dot(sums[row][s], x, w[s]);
                    }
                });
                weights = weights.add(GROUP);
            }
        }
        sums
    }
}

/// As [`accumulate`], of sorted panels.
#[inline(always)]
unsafe fn accumulate_sorted<V: Vector, const ROWS: usize, const STRIPS: usize>(
    v: V,
    operands: &Operands<'_>,
    rows: Rows,
    strip: usize,
) -> [[V::I32; STRIPS]; ROWS] {
    let panels = operands.panels;
    let (step, wide) = (rows.input_step, v.wide());
    // Where a group's first byte is in the first row.
    macro_rules! at {
        ($place:expr) => {{
            let [segment, group] = $place.map(usize::from);
            rows.input.wrapping_add(operands.segments.get_unchecked(segment).wrapping_add(4 * group))
        }};
    }
    // SAFETY: as of `accumulate`; the places are those of the panels' segments.
    unsafe {
        let mut sums = initial_sums::<V, ROWS, STRIPS>(v, operands, strip);
        macro_rules! groups {
            ($v:ident, $s:ident, $places:expr, $weights:ident) => {
                for place in $places {
                    // Every third row has a pointer, as above.
                    let pointers = [0usize, 3, 6, 9].map(|i| at!(place).wrapping_add(i.wrapping_mul(step)));
                    let w = $v.weights($weights);
                    each_row!(row < ROWS => {
                        let x = $v.activations(pointers[row / 3].wrapping_add((row % 3).wrapping_mul(step)));
                        sums[row][$s] = $v.dot(sums[row][$s], x, w);
                    });
                    $weights = $weights.add(GROUP);
                }
            };
        }
        each_row!(s < STRIPS => {
            let mut weights = panels.as_ptr().add((strip + s) * panels.strip_bytes());
            let [small, large, ends] = panels.places(strip + s);
            groups!(v, s, small, weights);
            groups!(wide, s, large, weights);
            if operands.slack {
                groups!(wide, s, ends, weights);
            } else {
                for place in ends {
                    let w = wide.weights(weights);
                    each_row!(row < ROWS => {
                        let bytes = first_bytes(at!(place).wrapping_add(row.wrapping_mul(step)), panels.length() % 4);
                        sums[row][s] = wide.dot(sums[row][s], wide.activations(bytes.as_ptr()), w);
                    });
                    weights = weights.add(GROUP);
                }
            }
        });
        sums
    }
}
