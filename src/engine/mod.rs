//! Ties the kernels to libtorch: its own `quantized::` operators run on them.
//!
//! libtorch's quantized layers hold their weights in objects with virtual functions (`LinearPackedParamsBase`,
//! `ConvPackedParamsBase<2>`, `<3>`, `EmbeddingPackedParamsBase`), and the operators call those. [`accelerate`] puts objects of our own classes in
//! their place; a module that holds them is saved as before, into a file that any libtorch reads.
//!
//! Beside them there are operators of our own in namespace `jitquant`, on plain `uint8` tensors, with scales and zero points as
//! arguments: `docs/operators.md` lists them. [`pass::to_native`](crate::pass::to_native) rewrites a model into them.

mod accelerate;
mod bridge;
mod channels;
mod conv;
mod elementwise;
mod embedding;
mod linear;
mod matmul;
mod norm;
mod pool;
mod program;
mod stock;
mod threads;
mod upsample;
mod weight_only;

pub use accelerate::{Accelerated, LeftOut, accelerate};
pub(crate) use conv::conv_shape;
pub(crate) use elementwise::step_qparams;
pub(crate) use pool::step_window;
pub(crate) use program::{CompiledProgram, Given, compile_parts_by};
pub use program::{StepTime, program_calls, step_times, watch_steps};
pub use stock::{stock_engine, stock_engines, with_stock_engine};
pub(crate) use threads::{HostThreads, in_parts};

/// Keeps the files that register native operators in whatever links the library.
pub(crate) fn keep_native_operators() {
    bridge::ffi::keep_native_layers();
    bridge::ffi::keep_native_elements();
    bridge::ffi::keep_native_embeddings();
    bridge::ffi::keep_program_operators();
    weight_only::bridge::keep_weight_only_operators();
}
