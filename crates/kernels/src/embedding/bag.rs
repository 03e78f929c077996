//! Sums of rows of an embedding table.

use std::ops::Range;

use thiserror::Error;

use super::{EmbeddingBits, EmbeddingTable};
use crate::Isa;
use crate::elementwise::simd::{Kernel, Simd, dispatch};

/// An index type: `i32` or `i64`.
pub trait Index: Copy {
    /// The index, or `None` if it is negative.
    fn to_usize(self) -> Option<usize>;
    /// The index as it was given.
    fn to_i64(self) -> i64;
}

impl Index for i32 {
    fn to_usize(self) -> Option<usize> {
        usize::try_from(self).ok()
    }

    fn to_i64(self) -> i64 {
        i64::from(self)
    }
}

impl Index for i64 {
    fn to_usize(self) -> Option<usize> {
        usize::try_from(self).ok()
    }

    fn to_i64(self) -> i64 {
        self
    }
}

/// What [`embedding_bag`] sums up.
#[derive(Clone, Copy, Debug)]
pub struct Bags<'a, I> {
    /// Rows, bag after bag.
    pub indices: &'a [I],
    /// Where each bag begins in `indices`.
    pub offsets: &'a [I],
    /// Whether the last offset is the end of the last bag, and begins none.
    pub include_last_offset: bool,
    /// A factor for each index.
    pub per_sample_weights: Option<&'a [f32]>,
    /// For a pruned table: the row that each index stands for, negative for a row that was pruned and counts as 0.
    pub pruned_rows: Option<&'a [i32]>,
    /// Whether to divide each sum by the number of indices of its bag.
    pub mean: bool,
}

impl<I: Index> Bags<'_, I> {
    /// The number of bags.
    pub fn len(&self) -> usize {
        self.offsets.len() - usize::from(self.include_last_offset && !self.offsets.is_empty())
    }

    /// Whether there are no bags.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The positions in `indices` that bag `bag` has.
    fn range(&self, bag: usize) -> Result<Range<usize>, EmbeddingError> {
        let count = self.indices.len();
        let bound = |k: usize| {
            let offset = match self.offsets.get(k) {
                Some(offset) => offset.to_usize().ok_or(offset.to_i64()),
                None => Ok(count),
            };
            offset.map_err(|offset| EmbeddingError::Offset { position: k, offset, indices: count })
        };
        let (start, end) = (bound(bag)?, bound(bag + 1)?);
        if start <= end && end <= count {
            Ok(start..end)
        } else {
            let (position, offset) = if start > count { (bag, start) } else { (bag + 1, end) };
            Err(EmbeddingError::Offset { position, offset: offset as i64, indices: count })
        }
    }

    /// The row of the table that the index at `position` stands for, `None` if it was pruned.
    fn row(&self, position: usize, rows: usize) -> Result<Option<usize>, EmbeddingError> {
        let given = self.indices[position];
        let known = self.pruned_rows.map_or(rows, <[i32]>::len);
        let error = EmbeddingError::Index { position, index: given.to_i64(), rows: known };
        let Some(index) = given.to_usize().filter(|index| *index < known) else { return Err(error) };
        match self.pruned_rows {
            None => Ok(Some(index)),
            Some(pruned) => match usize::try_from(pruned[index]) {
                Err(_) => Ok(None),
                Ok(row) if row < rows => Ok(Some(row)),
                Ok(row) => Err(EmbeddingError::PrunedRow { index, row, rows }),
            },
        }
    }
}

/// Why an embedding cannot be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EmbeddingError {
    /// An index is negative or beyond the table.
    #[error("index {index} at position {position} is not a row of a table of {rows}")]
    Index {
        /// Where the index is.
        position: usize,
        /// The index.
        index: i64,
        /// The number of rows.
        rows: usize,
    },
    /// Offsets are negative, decrease, or go beyond the indices.
    #[error("offset {offset} at position {position}: offsets must not decrease, nor exceed the {indices} indices")]
    Offset {
        /// Where the offset is.
        position: usize,
        /// The offset.
        offset: i64,
        /// The number of indices.
        indices: usize,
    },
    /// The map of a pruned table leads out of it.
    #[error("index {index} of a pruned table stands for row {row}, but it has {rows}")]
    PrunedRow {
        /// The index.
        index: usize,
        /// The row that it is mapped to.
        row: usize,
        /// The number of rows.
        rows: usize,
    },
}

/// The sum of each bag's rows: `out` holds `table.dim()` values for each bag.
///
/// Row by row in the order of the indices, with weight `w`: `out = q * (w * scale) + (out + w * bias)`, the product and
/// the sum around it in one f32 rounding; the order of FBGEMM's `EmbeddingSpMDM`. A mean multiplies with
/// `1 / length` at the end.
///
/// # Errors
/// Where an index or an offset is out of range; `out` may then be partly written.
///
/// # Panics
/// If `out` or the weights have the wrong length.
pub fn embedding_bag<I: Index>(
    isa: Isa,
    table: EmbeddingTable<'_>,
    bags: Bags<'_, I>,
    out: &mut [f32],
) -> Result<(), EmbeddingError> {
    assert_eq!(out.len(), bags.len() * table.dim, "length of the output");
    assert!(bags.per_sample_weights.is_none_or(|w| w.len() == bags.indices.len()), "number of weights");
    dispatch(isa, EmbeddingBag { table, bags, out })
}

/// The rows of `table` at `indices`, dequantized: `table.dim()` values for each.
///
/// ```
/// use jitquant_kernels::{EmbeddingBits, EmbeddingTable, Isa, embedding, quantize_embedding};
/// let mut bytes = [0; 2 * EmbeddingBits::Eight.row_bytes(2)];
/// quantize_embedding(&[0.0, 255.0, -1.0, 1.0], 2, EmbeddingBits::Eight, &mut bytes);
/// let mut out = [0.0; 2];
/// embedding(Isa::current(), EmbeddingTable::new(&bytes, 2, EmbeddingBits::Eight), &[0i64], &mut out)?;
/// assert_eq!(out, [0.0, 255.0]);
/// # Ok::<(), jitquant_kernels::EmbeddingError>(())
/// ```
///
/// # Errors
/// Where an index is out of range.
///
/// # Panics
/// If `out` has the wrong length.
pub fn embedding<I: Index>(
    isa: Isa,
    table: EmbeddingTable<'_>,
    indices: &[I],
    out: &mut [f32],
) -> Result<(), EmbeddingError> {
    assert_eq!(out.len(), indices.len() * table.dim, "length of the output");
    dispatch(isa, Embedding { table, indices, out })
}

struct Embedding<'a, I> {
    table: EmbeddingTable<'a>,
    indices: &'a [I],
    out: &'a mut [f32],
}

impl<I: Index> Kernel for Embedding<'_, I> {
    type Output = Result<(), EmbeddingError>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), EmbeddingError> {
        let Self { table, indices, out } = self;
        let rows = table.rows();
        for (position, (&index, out)) in indices.iter().zip(out.chunks_exact_mut(table.dim)).enumerate() {
            let row = index.to_usize().filter(|row| *row < rows);
            let error = EmbeddingError::Index { position, index: index.to_i64(), rows };
            let (values, scale, bias) = table.row(row.ok_or(error)?);
            let (scale, bias) = (s.splat(scale), s.splat(bias));
            for (first, out) in (0..).step_by(S::BYTES).zip(out.chunks_mut(S::BYTES)) {
                let mut y = values_block(s, table.bits, values, first, out.len());
                for y in &mut y {
                    *y = s.mul_add(*y, scale, bias);
                }
                s.store_f32x4(y, out);
            }
        }
        Ok(())
    }
}

struct EmbeddingBag<'a, I> {
    table: EmbeddingTable<'a>,
    bags: Bags<'a, I>,
    out: &'a mut [f32],
}

impl<I: Index> Kernel for EmbeddingBag<'_, I> {
    type Output = Result<(), EmbeddingError>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), EmbeddingError> {
        let Self { table, bags, out } = self;
        let rows = table.rows();
        for (bag, out) in out.chunks_exact_mut(table.dim).enumerate() {
            let range = bags.range(bag)?;
            let mean = if bags.mean && !range.is_empty() { 1.0 / range.len() as f32 } else { 1.0 };
            // A block of columns at a time stays in registers while the rows go by.
            for (first, out) in (0..).step_by(S::BYTES).zip(out.chunks_mut(S::BYTES)) {
                let mut sum = [s.splat(0.0); 4];
                for position in range.clone() {
                    let Some(row) = bags.row(position, rows)? else { continue };
                    let (values, scale, bias) = table.row(row);
                    let weight = bags.per_sample_weights.map_or(1.0, |w| w[position]);
                    let (scale, bias) = (s.splat(weight * scale), s.splat(weight * bias));
                    let q = values_block(s, table.bits, values, first, out.len());
                    for k in 0..4 {
                        sum[k] = s.mul_add(q[k], scale, s.add(sum[k], bias));
                    }
                }
                let mean = s.splat(mean);
                for sum in &mut sum {
                    *sum = s.mul(*sum, mean);
                }
                s.store_f32x4(sum, out);
            }
        }
        Ok(())
    }
}

/// Columns `first..first + len` of a row, at most a block; `first` is a multiple of a block, hence even.
#[inline(always)]
fn values_block<S: Simd>(s: S, bits: EmbeddingBits, values: &[u8], first: usize, len: usize) -> [S::F32; 4] {
    match bits {
        EmbeddingBits::Eight => s.to_f32x4(s.widen_u8(&values[first..first + len])),
        EmbeddingBits::Four => s.to_f32x4(s.widen(s.load_u4(&values[first / 2..(first + len).div_ceil(2)]))),
    }
}
