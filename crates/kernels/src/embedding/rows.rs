//! Quantizes embedding tables.

use super::{EmbeddingBits, half};

/// Quantizes rows of `dim` values into the layout of [`EmbeddingTable`](super::EmbeddingTable), each by its own range.
///
/// The arithmetic of libtorch's `embedding_bag_byte_prepack` and `embedding_bag_4bit_prepack`:
/// - 8 bits: `scale = (max - min) / 255`, `bias = min`, `q = round((x - min) * (255 / (max - min + 1e-8)))`.
/// - 4 bits: `bias` is `min` and `scale` is `(max - bias) / 15`, both rounded to f16 (1 where that gives 0),
///   `q = clamp(round((x - bias) * (1 / scale)), 0, 15)`.
///
/// # Panics
/// If `x` is not a number of whole rows, or `out` does not have `bits.row_bytes(dim)` bytes for each.
pub fn quantize_embedding(x: &[f32], dim: usize, bits: EmbeddingBits, out: &mut [u8]) {
    assert!(dim > 0 && x.len().is_multiple_of(dim), "{} values are not rows of {dim}", x.len());
    assert_eq!(out.len(), x.len() / dim * bits.row_bytes(dim), "length of the output");
    for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(bits.row_bytes(dim))) {
        let min = x.iter().copied().fold(f32::INFINITY, f32::min);
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (values, rest) = out.split_at_mut(bits.value_bytes(dim));
        match bits {
            EmbeddingBits::Eight => {
                let range = max - min;
                let steps = 255.0 / (range + 1e-8);
                for (q, x) in values.iter_mut().zip(x) {
                    *q = ((x - min) * steps).round_ties_even() as u8;
                }
                rest[..4].copy_from_slice(&(range / 255.0).to_le_bytes());
                rest[4..].copy_from_slice(&min.to_le_bytes());
            }
            EmbeddingBits::Four => {
                let bias_bits = half::from_f32(min);
                let bias = half::to_f32(bias_bits);
                let range = max - bias;
                let mut scale_bits = half::from_f32(if range == 0.0 { 1.0 } else { range / 15.0 });
                let scale = half::to_f32(scale_bits);
                if scale == 0.0 || (1.0 / scale).is_infinite() {
                    scale_bits = half::from_f32(1.0);
                }
                let steps = 1.0 / half::to_f32(scale_bits);
                values.fill(0);
                for (column, x) in x.iter().enumerate() {
                    let q = ((x - bias) * steps).round_ties_even().clamp(0.0, 15.0) as u8;
                    values[column / 2] |= q << (4 * (column % 2));
                }
                rest[..2].copy_from_slice(&scale_bits.to_le_bytes());
                rest[2..].copy_from_slice(&bias_bits.to_le_bytes());
            }
        }
    }
}
