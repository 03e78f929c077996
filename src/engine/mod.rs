//! Ties the kernels to libtorch: its own `quantized::` operators run on them.
//!
//! libtorch's quantized layers hold their weights in objects with virtual functions (`LinearPackedParamsBase`,
//! `ConvPackedParamsBase<2>`, `<3>`), and the operators call those. [`accelerate`] puts objects of our own classes in
//! their place; a module that holds them is saved as before, into a file that any libtorch reads.

mod accelerate;
mod bridge;
mod channels;
mod conv;
mod linear;
mod stock;
mod threads;

pub use accelerate::{Accelerated, LeftOut, accelerate};
pub use stock::{stock_engine, stock_engines, with_stock_engine};
