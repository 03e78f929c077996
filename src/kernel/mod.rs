//! INT8 arithmetic in pure Rust; knows nothing of libtorch.

mod epilogue;
mod gemm;
mod isa;
mod parallel;
mod sink;

pub use epilogue::{Dequantize, Output, Requantize, Residual};
pub use gemm::{DynamicScheme, PackedGemm};
pub use isa::Isa;
pub use parallel::{Parallel, Serial};
