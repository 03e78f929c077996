//! Embedding tables of 8 and 4 bits with a scale and a bias for each row: look-up, bags, and how tables are made.
//!
//! The layout is FBGEMM's, which libtorch's packed embeddings unpack to: the quantized values of a row, then its scale
//! and bias; for 8 bits as two f32, for 4 bits as two f16 after `ceil(dim / 2)` bytes, the even columns in the low
//! halves. A value is `scale * q + bias`. Numbers are little-endian.

mod bag;
mod half;
mod rows;

pub use bag::{Bags, EmbeddingError, Index, embedding, embedding_bag};
pub use rows::quantize_embedding;

/// Bits of a quantized embedding value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingBits {
    /// A byte for a value, scale and bias in f32.
    Eight,
    /// A byte for two values, scale and bias in f16.
    Four,
}

impl EmbeddingBits {
    /// Bytes of the quantized values of a row.
    pub const fn value_bytes(self, dim: usize) -> usize {
        match self {
            EmbeddingBits::Eight => dim,
            EmbeddingBits::Four => dim.div_ceil(2),
        }
    }

    /// Bytes of a row with its scale and bias.
    ///
    /// ```
    /// use jitquant_kernels::EmbeddingBits;
    /// assert_eq!((EmbeddingBits::Eight.row_bytes(64), EmbeddingBits::Four.row_bytes(64)), (72, 36));
    /// ```
    pub const fn row_bytes(self, dim: usize) -> usize {
        match self {
            EmbeddingBits::Eight => dim + 8,
            EmbeddingBits::Four => dim.div_ceil(2) + 4,
        }
    }
}

/// A quantized embedding table: rows of `bits.row_bytes(dim)` bytes.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingTable<'a> {
    data: &'a [u8],
    dim: usize,
    bits: EmbeddingBits,
}

impl<'a> EmbeddingTable<'a> {
    /// The table in `data`.
    ///
    /// # Panics
    /// If `dim` is 0 or `data` is not a number of whole rows.
    pub fn new(data: &'a [u8], dim: usize, bits: EmbeddingBits) -> Self {
        let row = bits.row_bytes(dim);
        assert!(dim > 0 && data.len().is_multiple_of(row), "{} bytes are not rows of {row}", data.len());
        Self { data, dim, bits }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.bits.row_bytes(self.dim)
    }

    /// Values in a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The quantized bytes of a row, its scale and its bias.
    #[inline(always)]
    fn row(&self, row: usize) -> (&'a [u8], f32, f32) {
        let bytes = self.bits.row_bytes(self.dim);
        let (values, rest) = self.data[row * bytes..(row + 1) * bytes].split_at(self.bits.value_bytes(self.dim));
        let (scale, bias) = match self.bits {
            EmbeddingBits::Eight => (
                f32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]),
                f32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]),
            ),
            EmbeddingBits::Four => (
                half::to_f32(u16::from_le_bytes([rest[0], rest[1]])),
                half::to_f32(u16::from_le_bytes([rest[2], rest[3]])),
            ),
        };
        (values, scale, bias)
    }
}
