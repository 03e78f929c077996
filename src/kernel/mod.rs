//! INT8 arithmetic in pure Rust; knows nothing of libtorch.

mod isa;

pub use isa::Isa;

mod elementwise;
mod quantize;
mod table;

pub use elementwise::{Operand, Quantized, add, cat, clamp, mul, relu};
pub use quantize::{
    Channels, QParams, choose_qparams, dequantize, dequantize_per_channel, dynamic_qparams, min_max, quantize,
    quantize_dynamic_rows, quantize_per_channel,
};
pub use table::{Activation, Table};
