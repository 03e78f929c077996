//! INT8 arithmetic in pure Rust; knows nothing of libtorch.

mod depthwise;
mod epilogue;
mod grouped;
mod isa;
mod parallel;

pub use depthwise::{DepthwiseShape, PackedDepthwise, Window};
pub use epilogue::{Dequantize, Output, Requantize, Residual};
pub use grouped::{GroupedShape, PackedGrouped};
pub use isa::Isa;
pub use parallel::{Parallel, Serial};
