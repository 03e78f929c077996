//! Element-wise arithmetic on u8 tensors: [`add`], [`mul`], [`relu`], [`clamp`], [`cat`].
//!
//! The other one-operand functions are lookups in a table of 256 bytes: see [`Table`](super::Table).
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod binary;
mod cat;
mod clamp;
pub(crate) mod scalar;
pub(crate) mod simd;

pub use binary::{Operand, add, mul};
pub use cat::cat;
pub use clamp::{clamp, relu};
pub use simd::Quantized;
