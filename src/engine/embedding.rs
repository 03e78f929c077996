//! Embedding tables: plain bytes, a scale and a bias behind the values of each row.

use std::sync::OnceLock;

use super::bridge::ffi::{BagForm, EmbeddingRows};
use super::threads::in_parts;
use crate::error::{Error, Result, no_panic};
use crate::kernel::{self, Bags, EmbeddingBits, EmbeddingError, EmbeddingTable, Index, Isa};

fn width(bits: i64) -> Result<EmbeddingBits> {
    match bits {
        8 => Ok(EmbeddingBits::Eight),
        4 => Ok(EmbeddingBits::Four),
        _ => Err(Error::invalid(format!("an embedding table of {bits} bits; 8 and 4 are accepted"))),
    }
}

pub(super) fn embedding_row_bytes(columns: usize, bits: i64) -> Result<usize> {
    let width = width(bits)?;
    // The bytes of a row would not tell an odd number of 4 bits from the next even one.
    if columns == 0 || (width == EmbeddingBits::Four && !columns.is_multiple_of(2)) {
        return Err(Error::invalid(format!(
            "an embedding table of {columns} columns; 1 or more of 8 bits, or an even number of 4 bits, are accepted"
        )));
    }
    Ok(width.row_bytes(columns))
}

pub(super) fn embedding_columns(row_bytes: usize, bits: i64) -> Result<usize> {
    let width = width(bits)?;
    let parameters = width.row_bytes(0);
    match row_bytes.saturating_sub(parameters) {
        0 => Err(Error::invalid(format!(
            "rows of {row_bytes} bytes; {parameters} for scale and bias, and more for values of {bits} bits, are accepted"
        ))),
        values => values
            .checked_mul(8 / bits as usize)
            .ok_or_else(|| Error::invalid(format!("rows of {row_bytes} bytes; fewer are accepted"))),
    }
}

fn table(rows: EmbeddingRows<'_>) -> Result<EmbeddingTable<'_>> {
    Ok(EmbeddingTable::new(rows.bytes, embedding_columns(rows.row_bytes, rows.bits)?, width(rows.bits)?))
}

pub(super) fn quantize_rows(x: &[f32], columns: usize, bits: i64, out: &mut [u8]) -> Result<()> {
    no_panic(|| {
        let (row, bits) = (embedding_row_bytes(columns, bits)?, width(bits)?);
        in_parts(out, row, columns, &|first, part| {
            let x = &x[first * columns..][..part.len() / row * columns];
            kernel::quantize_embedding(x, columns, bits, part);
        });
        Ok(())
    })
}

/// Has the threads fill rows of `out`, each of which costs `looks` rows of the table; the first error that one of them
/// meets.
fn fill(
    out: &mut [f32],
    columns: usize,
    looks: usize,
    work: impl Fn(usize, &mut [f32]) -> Result<(), EmbeddingError> + Sync,
) -> Result<()> {
    let failed = OnceLock::new();
    in_parts(out, columns, columns * looks, &|first, part| {
        if let Err(error) = work(first, part) {
            failed.get_or_init(|| error);
        }
    });
    failed.into_inner().map_or(Ok(()), |error| Err(Error::invalid(error.to_string())))
}

fn rows<I: Index + Sync>(table_rows: EmbeddingRows<'_>, indices: &[I], out: &mut [f32]) -> Result<()> {
    no_panic(|| {
        let table = table(table_rows)?;
        fill(out, table.dim(), 1, |first, part| {
            let indices = &indices[first..][..part.len() / table.dim()];
            kernel::embedding(Isa::current(), table, indices, part).map_err(|error| match error {
                EmbeddingError::Index { position, index, rows } => {
                    EmbeddingError::Index { position: first + position, index, rows }
                }
                other => other,
            })
        })
    })
}

pub(super) fn embedding_i32(table: EmbeddingRows<'_>, indices: &[i32], out: &mut [f32]) -> Result<()> {
    rows(table, indices, out)
}

pub(super) fn embedding_i64(table: EmbeddingRows<'_>, indices: &[i64], out: &mut [f32]) -> Result<()> {
    rows(table, indices, out)
}

fn bags<I: Index + Sync>(
    table_rows: EmbeddingRows<'_>,
    indices: &[I],
    offsets: &[I],
    form: BagForm<'_>,
    out: &mut [f32],
) -> Result<()> {
    no_panic(|| {
        let table = table(table_rows)?;
        let all = Bags {
            indices,
            offsets,
            include_last_offset: form.include_last_offset,
            per_sample_weights: (!form.weights.is_empty()).then_some(form.weights),
            pruned_rows: (!form.pruned_rows.is_empty()).then_some(form.pruned_rows),
            mean: form.mean,
        };
        let looks = indices.len().div_ceil(all.len().max(1)).max(1);
        fill(out, table.dim(), looks, |first, part| {
            // The end of the part's last bag is the next offset, where there is one.
            let next = first + part.len() / table.dim();
            let is_bounded = next < offsets.len();
            let offsets = &offsets[first..next + usize::from(is_bounded)];
            let bags = Bags { offsets, include_last_offset: is_bounded, ..all };
            kernel::embedding_bag(Isa::current(), table, bags, part).map_err(|error| match error {
                EmbeddingError::Offset { position, offset, indices } => {
                    EmbeddingError::Offset { position: first + position, offset, indices }
                }
                other => other,
            })
        })
    })
}

pub(super) fn embedding_bag_i32(
    table: EmbeddingRows<'_>,
    indices: &[i32],
    offsets: &[i32],
    form: BagForm<'_>,
    out: &mut [f32],
) -> Result<()> {
    bags(table, indices, offsets, form, out)
}

pub(super) fn embedding_bag_i64(
    table: EmbeddingRows<'_>,
    indices: &[i64],
    offsets: &[i64],
    form: BagForm<'_>,
    out: &mut [f32],
) -> Result<()> {
    bags(table, indices, offsets, form, out)
}
