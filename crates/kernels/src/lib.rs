//! INT8 arithmetic for inference in pure Rust: matrix products, convolutions, element-wise operators, norms, pooling,
//! tables, recurrent cells, rounding to INT8 and fake quantization. Knows nothing of libtorch.
//!
//! `real = scale * (q - zero_point)`: activations are `u8` with one scale and zero point for a tensor (or for a row),
//! weights `i8` with a scale for each channel, sums exact in `i32`. Every kernel takes an [`Isa`] and gives the bits of
//! [`Isa::Scalar`] on each; work is split by a [`Parallel`], and the bits do not depend on how.
#![deny(unsafe_code)]
#![warn(missing_docs)]

#[macro_use]
mod multiversion;

mod conv;
mod depthwise;
mod elementwise;
mod embedding;
mod epilogue;
mod error;
mod fake_quantize;
pub mod float;
mod gemm;
pub mod geometry;
mod grouped;
mod isa;
mod norm;
mod parallel;
mod pool;
mod quantize;
mod rnn;
mod sink;
mod softmax;
mod table;
mod upsample;
mod weight_only;
#[cfg(feature = "serde")]
mod written;

pub use conv::{ConvShape, PackedConv};
pub use depthwise::{DepthwiseShape, PackedDepthwise, Window as ConvWindow};
pub use epilogue::{Dequantize, Output, Requantize, Residual};
pub use error::{Error, Result};
pub use fake_quantize::FakeQuantize;
pub use gemm::{DynamicRows, DynamicScheme, PackedGemm};
pub use grouped::{GroupedShape, PackedGrouped};
pub use isa::Isa;

pub use elementwise::{Operand, Quantized, add, cat, clamp, mul, relu};
pub use embedding::{
    Bags, EmbeddingBits, EmbeddingError, EmbeddingTable, Index, embedding, embedding_bag, quantize_embedding,
};
pub use norm::{BatchNorm, GroupNorm, LayerNorm, NormScratch, batch_norm, group_norm, layer_norm};
pub use parallel::{Parallel, Serial};
pub use pool::{AveragePool, Pixels, Window, adaptive_avg_pool, avg_pool, max_pool};
pub use quantize::{
    Channels, QParams, choose_qparams, dequantize, dequantize_per_channel, dynamic_qparams, min_max, quantize,
    quantize_dynamic_rows, quantize_per_channel,
};
pub use rnn::{gru_cell, lstm_cell};
pub use softmax::softmax;
pub use table::{Activation, Table};
pub use upsample::{Upsampling, upsample};
pub use weight_only::{GroupWeight, PackedWeightOnly, round_channels, round_groups};
