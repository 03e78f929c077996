//! libjitquant_runtime.so: Program files run from C, without libtorch. `include/jitquant_runtime.h` is made of this crate.
//!
//! Errors and panics become a status; nothing unwinds into C.
#![allow(non_camel_case_types)]
#![warn(missing_docs)]

mod model;
mod status;
mod tensor;

pub use model::*;
pub use status::*;
pub use tensor::*;
