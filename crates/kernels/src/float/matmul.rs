//! Products of f32 matrices, many of a size.
//!
//! A tile of six rows and up to 64 columns stays in registers (after Goto and van de Geijn, Anatomy of high-performance
//! matrix multiplication, 2008). The right matrix lies in panels of [`GROUP`] columns, packed by the task that needs them.
//! A value is one chain of fused multiply-adds in the order of the inner dimension, whatever the tile: the same bits
//! everywhere.

use super::{Mask, Shared, end, split};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::geometry::elements;
use crate::{Isa, Parallel};

/// Columns of a panel.
pub(super) const GROUP: usize = 16;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 6;

/// Matrices numbered by two dimensions, `[batch, heads, rows, columns]`, with any strides: a stride of 0 repeats.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Values from one batch, head, row, column to the next.
    pub strides: [usize; 4],
}

impl<'a> Batch<'a> {
    /// Contiguous matrices.
    pub fn new(data: &'a [f32], [heads, rows, columns]: [usize; 3]) -> Self {
        Self { data, strides: [heads * rows * columns, rows * columns, columns, 1] }
    }

    /// The same with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let [batch, head, row, column] = self.strides;
        Self { strides: [batch, head, column, row], ..self }
    }

    pub(super) fn check(&self, what: &str, [batch, heads, rows, columns]: [usize; 4]) {
        let [a, b, c, d] = self.strides;
        let last = end([batch, heads, rows], [a, b, c], 1);
        let needed = columns.checked_sub(1).and_then(|column| last?.checked_add(column.checked_mul(d)?)).unwrap_or(0);
        let empty = [batch, heads, rows, columns].contains(&0);
        let fits = empty || last.is_some() && (needed > 0 && needed <= self.data.len());
        assert!(fits, "{what}: {:?} do not fit {} values", [batch, heads, rows, columns], self.data.len());
    }

    /// Where a matrix begins.
    #[inline(always)]
    pub(super) fn offset(&self, batch: usize, head: usize) -> usize {
        batch * self.strides[0] + head * self.strides[1]
    }
}

/// Where matrices go, `[batch, heads, rows, columns]`; the values of a row follow each other.
#[derive(Debug)]
pub struct BatchMut<'a> {
    /// The values.
    pub data: &'a mut [f32],
    /// Values from one batch, head, row to the next.
    pub strides: [usize; 3],
}

impl<'a> BatchMut<'a> {
    /// Contiguous matrices.
    pub fn new(data: &'a mut [f32], [heads, rows, columns]: [usize; 3]) -> Self {
        Self { data, strides: [heads * rows * columns, rows * columns, columns] }
    }

    /// # Panics
    /// If the rows do not fit, or overlap.
    pub(super) fn check(&self, sizes: [usize; 3], columns: usize) {
        let fits = end(sizes, self.strides, columns).is_some_and(|end| end <= self.data.len());
        assert!(fits, "output: {sizes:?} rows of {columns} do not fit {} values", self.data.len());
        if sizes.contains(&0) {
            return;
        }
        let mut dimensions: [(usize, usize); 3] = std::array::from_fn(|i| (self.strides[i], sizes[i]));
        dimensions.sort_unstable();
        let mut extent = columns;
        for (stride, size) in dimensions.into_iter().filter(|(_, size)| *size > 1) {
            assert!(stride >= extent, "output: rows of {columns} with strides {:?} overlap", self.strides);
            extent += (size - 1) * stride;
        }
    }
}

/// The sizes of [`matmul`]: `batch * heads` products of `[rows, inner]` and `[inner, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// The first number of a matrix.
    pub batch: usize,
    /// The second one.
    pub heads: usize,
    /// Rows of the left matrix and the result.
    pub rows: usize,
    /// Columns of the left matrix, rows of the right one.
    pub inner: usize,
    /// Columns of the right matrix and the result.
    pub columns: usize,
}

/// Values of scratch that [`matmul`] needs on `threads` threads: a right matrix for each.
///
/// # Panics
/// If no memory could hold them.
pub fn matmul_scratch_len(product: Product, threads: usize) -> usize {
    elements([panels_len(product.inner, product.columns), threads]).expect("a size that memory can hold")
}

/// Values of packed panels.
pub(super) fn panels_len(inner: usize, columns: usize) -> usize {
    elements([columns.div_ceil(GROUP), GROUP, inner]).expect("a size that memory can hold")
}

/// `a * b * scale + mask` for each of the matrices.
///
/// Each sum is one chain of fused multiply-adds in the order of the inner dimension: the error is at most
/// `inner * 2^-24` of the sum of the products' sizes; then `scale`, and `mask`, are one more operation.
///
/// # Panics
/// If a slice is too short, or the output's rows overlap.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    isa: Isa,
    product: Product,
    a: Batch<'_>,
    b: Batch<'_>,
    scale: f32,
    mask: Option<Mask<'_>>,
    out: BatchMut<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    let Product { batch, heads, rows, inner, columns } = product;
    a.check("left", [batch, heads, rows, inner]);
    b.check("right", [batch, heads, inner, columns]);
    out.check([batch, heads, rows], columns);
    if let Some(mask) = mask {
        mask.check([batch, heads, rows], columns);
    }
    let most = threads.threads().max(1);
    let needed = matmul_scratch_len(product, most);
    assert!(scratch.len() >= needed, "{} values of scratch, {needed} are needed", scratch.len());
    if [batch, heads, rows, columns].contains(&0) {
        return;
    }
    let chunks = row_chunks(batch * heads, rows, most);
    let (out, scratch) = ((Shared(out.data.as_mut_ptr()), out.strides), Shared(scratch.as_mut_ptr()));
    let panels = panels_len(inner, columns);
    let cost = (rows.div_ceil(chunks) * columns).saturating_mul(inner) / 8 + 1;
    split(threads, most, batch * heads * chunks, cost, &|task, from, to| {
        // SAFETY: the scratch has been checked for as many tasks as there are threads, and each has its number.
        let panels = unsafe { scratch.slice(task * panels, panels) };
        dispatch_f32(isa, Matmul { product, a, b, scale, mask, out, units: [from, to], chunks, panels });
    });
}

/// In how many parts the rows of a matrix are to be cut so that every thread gets about as much.
pub(super) fn row_chunks(matrices: usize, rows: usize, threads: usize) -> usize {
    if threads <= 1 || matrices >= 4 * threads {
        return 1;
    }
    (4 * threads).div_ceil(matrices.max(1)).min(rows.div_ceil(4 * TILE_ROWS)).max(1)
}

/// The rows of part `chunk`: multiples of a tile.
#[inline(always)]
pub(super) fn chunk_rows(rows: usize, chunks: usize, chunk: usize) -> [usize; 2] {
    let tiles = rows.div_ceil(TILE_ROWS);
    [chunk, chunk + 1].map(|i| (tiles * i / chunks * TILE_ROWS).min(rows))
}

struct Matmul<'a> {
    product: Product,
    a: Batch<'a>,
    b: Batch<'a>,
    scale: f32,
    mask: Option<Mask<'a>>,
    out: (Shared<f32>, [usize; 3]),
    units: [usize; 2],
    chunks: usize,
    panels: &'a mut [f32],
}

impl Kernel for Matmul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { product, a, b, scale, mask, out: (out, strides), units, chunks, panels } = self;
        let Product { heads, rows, inner, columns, .. } = product;
        let mut packed = None;
        for unit in units[0]..units[1] {
            let (matrix, chunk) = (unit / chunks, unit % chunks);
            let (batch, head) = (matrix / heads, matrix % heads);
            let [first, last] = chunk_rows(rows, chunks, chunk);
            if first == last {
                continue;
            }
            let at = b.offset(batch, head);
            if packed != Some(at) {
                pack(s, &b.data[at.min(b.data.len())..], [inner, columns], [b.strides[2], b.strides[3]], panels);
                packed = Some(at);
            }
            let from = a.offset(batch, head) + first * a.strides[2];
            let to = batch * strides[0] + head * strides[1];
            // SAFETY: `matmul` has checked that all rows of the left matrices and the output are inside their slices, the
            // panels are those of `pack`, and the rows of the output belong to this task.
            unsafe {
                multiply(
                    s,
                    [last - first, inner, columns],
                    Left { data: a.data.as_ptr().wrapping_add(from), strides: [a.strides[2], a.strides[3]] },
                    Panels { data: panels.as_ptr(), inner },
                    Factors { data: &scale, step: 0 },
                    out.0.add(to + first * strides[2]),
                    strides[2],
                );
            }
            let Some(mask) = mask else { continue };
            for row in first..last {
                // SAFETY: as above; the pointer is not in use any more.
                let out = unsafe { out.slice(to + row * strides[2], columns) };
                let mask = &mask.at([batch, head, row])[..columns];
                for (out, mask) in out.chunks_mut(S::BYTES).zip(mask.chunks(S::BYTES)) {
                    let (mut x, mask) = (s.load_f32x4(out), s.load_f32x4(mask));
                    for k in 0..4 {
                        x[k] = s.add(x[k], mask[k]);
                    }
                    s.store_f32x4(x, out);
                }
            }
        }
    }
}

/// Puts a matrix of `[inner, columns]` into panels: `[columns / 16, inner, 16]`, zeros behind the last column.
///
/// # Panics
/// If the matrix does not fit `data`, or the panels are too short.
#[inline(always)]
pub(super) fn pack<S: Simd>(s: S, data: &[f32], [inner, columns]: [usize; 2], strides: [usize; 2], panels: &mut [f32]) {
    if inner == 0 || columns == 0 {
        return;
    }
    assert!(
        (inner - 1) * strides[0] + (columns - 1) * strides[1] < data.len()
            && panels.len() >= panels_len(inner, columns)
    );
    for (group, panel) in panels.chunks_exact_mut(GROUP * inner).enumerate().take(columns.div_ceil(GROUP)) {
        let first = group * GROUP;
        let width = (columns - first).min(GROUP);
        let from = data[first * strides[1]..].as_ptr();
        let to = panel.as_mut_ptr();
        if width < GROUP {
            panel.fill(0.0);
        }
        match strides {
            // SAFETY: values `k * strides[0] + column * strides[1]` are inside `data` for each `k` below `inner` and column
            // below `columns`, as asserted, and the panel has `inner` lines of `GROUP`.
            [_, 1] if width == GROUP => unsafe {
                for k in 0..inner {
                    let (from, to) = (from.wrapping_add(k.wrapping_mul(strides[0])), to.wrapping_add(k * GROUP));
                    for lane in 0..GROUP / S::LANES {
                        s.store_at(s.load_at(from.add(lane * S::LANES)), to.add(lane * S::LANES));
                    }
                }
            },
            // SAFETY: as above.
            [1, stride] if width == GROUP => unsafe {
                let fours = inner / 4 * 4;
                for k in (0..fours).step_by(4) {
                    for lane in 0..GROUP / S::LANES {
                        let from = from.wrapping_add(k.wrapping_add((lane * S::LANES).wrapping_mul(stride)));
                        s.transpose_4(from, stride, to.add(k * GROUP + lane * S::LANES), GROUP);
                    }
                }
                pack_values(from, [fours, inner, width], strides, to);
            },
            // SAFETY: as above.
            _ => unsafe { pack_values(from, [0, inner, width], strides, to) },
        }
    }
}

/// Lines `from_line..to_line` of a panel, value by value.
///
/// # Safety
/// They are inside the matrix and the panel.
#[inline(always)]
unsafe fn pack_values(from: *const f32, [from_line, to_line, width]: [usize; 3], strides: [usize; 2], to: *mut f32) {
    for k in from_line..to_line {
        for column in 0..width {
            let at = k.wrapping_mul(strides[0]).wrapping_add(column.wrapping_mul(strides[1]));
            // SAFETY: by the contract.
            unsafe { *to.wrapping_add(k.wrapping_mul(GROUP).wrapping_add(column)) = *from.wrapping_add(at) };
        }
    }
}

/// A left matrix: rows, and values of a row, any number of values apart.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub data: *const f32,
    pub strides: [usize; 2],
}

/// What [`pack`] has made of a right matrix of `inner` rows.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub data: *const f32,
    pub inner: usize,
}

/// A factor for each row of a result: one for all if `step` is 0.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub data: *const f32,
    pub step: usize,
}

/// `out = a * panels * factors` for `[rows, inner, columns]`.
///
/// # Safety
/// `a` has the rows and values, `panels` at least as many rows and columns, there are as many factors, and `out`, `stride` from row to
/// row, can be written and is nobody else's meanwhile.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    [rows, inner, columns]: [usize; 3],
    a: Left,
    panels: Panels,
    factors: Factors,
    out: *mut f32,
    stride: usize,
) {
    let groups = columns.div_ceil(GROUP);
    // Panels and rows of a tile: as many as there are registers for, as evenly as they can be shared out.
    let most = match S::LANES {
        16 => 4,
        _ => 1,
    };
    let strips = groups.div_ceil(most);
    for strip in 0..strips {
        let [first, last] = [strip, strip + 1].map(|i| groups * i / strips);
        let row_tiles = rows.div_ceil(TILE_ROWS);
        let width = (columns - first * GROUP).min((last - first) * GROUP);
        for tile in 0..row_tiles {
            let [row, end] = [tile, tile + 1].map(|i| rows * i / row_tiles);
            // SAFETY: rows and columns are inside those of the caller.
            unsafe {
                let place = Tile {
                    inner,
                    a: a.data.wrapping_add(row * a.strides[0]),
                    a_strides: a.strides,
                    b: panels.data.add(first * GROUP * panels.inner),
                    b_stride: GROUP * panels.inner,
                    factors: Factors { data: factors.data.add(row * factors.step), ..factors },
                    out: out.add(row * stride + first * GROUP),
                    stride,
                    columns: width,
                };
                run_tile(s, end - row, last - first, &place);
            }
        }
    }
}

/// The operands of one tile.
struct Tile {
    inner: usize,
    a: *const f32,
    a_strides: [usize; 2],
    b: *const f32,
    /// Values from one panel to the next.
    b_stride: usize,
    factors: Factors,
    out: *mut f32,
    stride: usize,
    columns: usize,
}

/// # Safety
/// The operands have `rows` rows and `groups` panels.
#[inline(always)]
unsafe fn run_tile<S: Simd>(s: S, rows: usize, groups: usize, tile: &Tile) {
    macro_rules! rows {
        ($vectors:literal) => {
            // SAFETY: by the contract.
            unsafe {
                match rows {
                    6 => tile.run::<S, 6, $vectors>(s),
                    5 => tile.run::<S, 5, $vectors>(s),
                    4 => tile.run::<S, 4, $vectors>(s),
                    3 => tile.run::<S, 3, $vectors>(s),
                    2 => tile.run::<S, 2, $vectors>(s),
                    _ => tile.run::<S, 1, $vectors>(s),
                }
            }
        };
    }
    match (S::LANES, groups) {
        (16, 4) => rows!(4),
        (16, 3) => rows!(3),
        (16, 2) => rows!(2),
        (16, _) => rows!(1),
        (8, _) => rows!(2),
        _ => rows!(16),
    }
}

impl Tile {
    /// # Safety
    /// The operands have `ROWS` rows and panels for `VECTORS` vectors.
    #[inline(always)]
    unsafe fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, s: S) {
        let (mut b, mut a) = (self.b, self.a);
        let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
        let per_panel = GROUP / S::LANES;
        // SAFETY: the caller's rows and panels: each panel has `inner` lines of `GROUP`.
        unsafe {
            for _ in 0..self.inner {
                let mut line = [s.splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    line[v] = s.load_at(b.add(v / per_panel * self.b_stride + v % per_panel * S::LANES));
                }
                for row in 0..ROWS {
                    let x = s.splat(*a.wrapping_add(row * self.a_strides[0]));
                    for v in 0..VECTORS {
                        sums[row][v] = s.mul_add(x, line[v], sums[row][v]);
                    }
                }
                a = a.wrapping_add(self.a_strides[1]);
                b = b.add(GROUP);
            }
            for row in 0..ROWS {
                let factor = s.splat(*self.factors.data.add(row * self.factors.step));
                let out = self.out.add(row * self.stride);
                for v in 0..VECTORS {
                    let y = s.mul(sums[row][v], factor);
                    let at = v * S::LANES;
                    if at + S::LANES <= self.columns {
                        s.store_at(y, out.add(at));
                    } else if at < self.columns {
                        s.store_f32(y, std::slice::from_raw_parts_mut(out.add(at), self.columns - at));
                    }
                }
            }
        }
    }
}
