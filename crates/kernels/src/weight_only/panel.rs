//! More rows: a block of the weight becomes f32 in scratch, once for all rows, and is multiplied from there.

use super::super::gemm::vector::{STRIP, Vector};
use super::{Form, Part};

/// Columns of a panel. It is even, so that pairs stay together.
const COLUMNS: usize = 256;

/// The most strips of a panel.
const STRIPS: usize = 2;

/// Elements of a panel: 32 KiB, which stay in the cache while the rows go by.
pub(super) const SCRATCH: usize = COLUMNS * STRIPS * STRIP;

/// # Safety
/// The part's lengths fit, and nobody else writes its strips of the output or its panel.
#[inline(always)]
pub(super) unsafe fn product<V: Vector>(v: V, part: &Part<'_>) {
    // As many rows and strips as the accumulators of an instruction set allow.
    // SAFETY: by the contract.
    unsafe {
        match V::ACCUMULATORS >= 24 {
            true => strips::<V, 12, 2>(v, part),
            false => strips::<V, 6, 1>(v, part),
        }
    }
}

/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn strips<V: Vector, const ROWS: usize, const WIDTH: usize>(v: V, part: &Part<'_>) {
    let mut strip = part.strips[0];
    // SAFETY: by the contract.
    unsafe {
        while strip + WIDTH <= part.strips[1] {
            blocks::<V, ROWS, WIDTH>(v, part, strip);
            strip += WIDTH;
        }
        while strip < part.strips[1] {
            blocks::<V, ROWS, 1>(v, part, strip);
            strip += 1;
        }
    }
}

/// `WIDTH` strips from `strip` on.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn blocks<V: Vector, const ROWS: usize, const WIDTH: usize>(v: V, part: &Part<'_>, strip: usize) {
    for first in (0..part.weight.k).step_by(COLUMNS) {
        let columns = COLUMNS.min(part.weight.k - first);
        let mut row = 0;
        // SAFETY: by the contract; the columns and rows are there.
        unsafe {
            for index in 0..WIDTH {
                fill(v, part, strip + index, first, columns, part.panel.add(index * STRIP), WIDTH * STRIP);
            }
            while row + ROWS <= part.rows {
                tile::<V, ROWS, WIDTH>(v, part, strip, first, columns, row);
                row += ROWS;
            }
            while row + 4 <= part.rows {
                tile::<V, 4, WIDTH>(v, part, strip, first, columns, row);
                row += 4;
            }
            while row < part.rows {
                tile::<V, 1, WIDTH>(v, part, strip, first, columns, row);
                row += 1;
            }
        }
    }
    if part.weight.k == 0 {
        for (row, index) in (0..part.rows).flat_map(|row| (0..WIDTH).map(move |index| (row, index))) {
            let strip = strip + index;
            // SAFETY: `valid` outputs of the strip are in the row.
            unsafe {
                let to = part.y.add(row * part.weight.n + strip * STRIP);
                v.store_f32(part.bias(v, strip), to, part.valid(strip));
            }
        }
    }
}

/// Columns `first..first + columns` of a strip as f32, to vectors that lie `step` elements apart.
///
/// # Safety
/// The columns exist, and there is room for them at `to`.
#[inline(always)]
unsafe fn fill<V: Vector>(
    v: V,
    part: &Part<'_>,
    strip: usize,
    first: usize,
    columns: usize,
    to: *mut f32,
    step: usize,
) {
    let bytes = part.strip(strip).as_ptr();
    // SAFETY: the strip has its bytes column by column (or pair by pair), and 16 scales for itself or for each group.
    unsafe {
        match &part.weight.form {
            Form::Channels { scales } => {
                let scale = v.load_f32(scales.as_ptr().add(strip * STRIP), STRIP);
                for column in 0..columns {
                    let w = v.load_i8(bytes.add(first.wrapping_add(column).wrapping_mul(STRIP)).cast());
                    v.store_f32(v.mul_add(w, scale, v.splat_f32(0.0)), to.add(column.wrapping_mul(step)), STRIP);
                }
            }
            Form::Groups { group, scales, offsets } => {
                let mut column = 0;
                while column < columns {
                    let index = (first + column) / group;
                    let end = ((index + 1) * group - first).min(columns);
                    let place = (strip * (part.weight.k / group) + index) * STRIP;
                    let scale = v.load_bf16(scales.as_ptr().add(place));
                    let offset = v.load_bf16(offsets.as_ptr().add(place));
                    while column < end {
                        let w = v.load_nibbles(bytes.add((first + column) / 2 * STRIP));
                        v.store_f32(v.mul_add(w[0], scale, offset), to.add(column.wrapping_mul(step)), STRIP);
                        v.store_f32(v.mul_add(w[1], scale, offset), to.add((column + 1) * step), STRIP);
                        column += 2;
                    }
                }
            }
        }
    }
}

/// Adds the panel's columns to `ROWS` rows of the output; the first ones start from the bias.
///
/// # Safety
/// As [`product`]; the rows exist, and the panel holds the columns of `WIDTH` strips.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const WIDTH: usize>(
    v: V,
    part: &Part<'_>,
    strip: usize,
    first: usize,
    columns: usize,
    row: usize,
) {
    let (k, n) = (part.weight.k, part.weight.n);
    let valid: [usize; WIDTH] = std::array::from_fn(|index| part.valid(strip + index));
    // SAFETY: by the contract.
    unsafe {
        let x = part.x.as_ptr().add(row * k + first);
        let y = part.y.add(row * n + strip * STRIP);
        let mut sums = [[v.splat_f32(0.0); WIDTH]; ROWS];
        for i in 0..ROWS {
            for j in 0..WIDTH {
                sums[i][j] = match first {
                    0 => part.bias(v, strip + j),
                    _ => v.load_f32(y.add(i * n + j * STRIP), valid[j]),
                };
            }
        }
        for column in 0..columns {
            let mut w = [v.splat_f32(0.0); WIDTH];
            for j in 0..WIDTH {
                w[j] =
                    v.load_f32(part.panel.add(column.wrapping_mul(WIDTH).wrapping_add(j).wrapping_mul(STRIP)), STRIP);
            }
            for i in 0..ROWS {
                let x = v.splat_f32(*x.add(i.wrapping_mul(k).wrapping_add(column)));
                for j in 0..WIDTH {
                    sums[i][j] = v.mul_add(w[j], x, sums[i][j]);
                }
            }
        }
        for i in 0..ROWS {
            for j in 0..WIDTH {
                v.store_f32(sums[i][j], y.add(i * n + j * STRIP), valid[j]);
            }
        }
    }
}
