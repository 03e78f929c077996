//! INT8 arithmetic in pure Rust; knows nothing of libtorch.

mod isa;

pub use isa::Isa;
