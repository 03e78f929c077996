//! Post-training INT8 quantization of TorchScript models, without Python.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod kernel;
pub mod observer;
