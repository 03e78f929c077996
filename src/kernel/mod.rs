//! INT8 arithmetic in pure Rust; knows nothing of libtorch.

mod conv;
mod depthwise;
mod elementwise;
mod embedding;
mod epilogue;
mod fake_quantize;
mod gemm;
pub(crate) mod geometry;
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

pub use conv::{ConvShape, PackedConv};
pub use depthwise::{DepthwiseShape, PackedDepthwise, Window as ConvWindow};
pub use epilogue::{Dequantize, Output, Requantize, Residual};
pub use fake_quantize::FakeQuantize;
pub use gemm::{DynamicScheme, PackedGemm};
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
