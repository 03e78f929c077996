//! Post-training INT8 quantization of TorchScript models, without Python.
#![cfg_attr(
    feature = "torch",
    doc = r#"
```no_run
use jitquant::{Quantizer, ir::{Module, Tensor}};

fn main() -> jitquant::Result<()> {
    let model = Module::load("model.pt")?;
    let mut prepared = Quantizer::static_ptq().prepare(&model)?;
    for _ in 0..16 {
        let batch = Tensor::from_slice(&[0.5f32; 3 * 224 * 224], &[1, 3, 224, 224])?; // or a tch::Tensor
        prepared.calibrate(&[batch])?;
    }
    let converted = prepared.convert()?;
    for layer in &converted.report.float {
        println!("{} stays in float: {}", layer.path, layer.reason);
    }
    converted.module.save("model.int8.pt")
}
```

`examples/rust-app` is a project that works with tch and compares the two models; `docs/rust.md` is the guide."#
)]
#![deny(unsafe_code)]
#![warn(missing_docs)]
// Nodes, values and blocks are keys by their address, which nothing inside their graph changes.
#![allow(clippy::mutable_key_type)]

#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod capi;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod engine;
mod error;
#[cfg(feature = "torch")]
mod file;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod ir;
pub mod kernel;
pub mod measure;
#[cfg(feature = "torch")]
mod methods;
pub mod observer;
#[cfg(feature = "torch")]
pub mod pass;
#[cfg(feature = "torch")]
mod pipeline;
#[cfg(feature = "torch")]
pub mod plugin;
#[cfg(feature = "torch")]
pub mod qconfig;
#[cfg(feature = "torch")]
mod replay;

#[cfg(feature = "torch")]
pub mod watch;
#[cfg(feature = "torch")]
mod zero_touch;

pub use error::{Error, Result};
#[cfg(feature = "torch")]
pub use methods::{Methods, Rounding};
#[cfg(feature = "torch")]
pub use pipeline::{Converted, FloatLayer, ModelForm, Prepared, Quantizer, Report};

/// Registers jitquant's operators with libtorch; later calls do nothing.
///
/// Loading a module through [`ir::Module::load`] does it; call it before another library loads a model that holds
/// jitquant's operators.
///
/// # Errors
/// Where the process has a libtorch of another version than the library was built for; nothing else of it works then.
#[cfg(feature = "torch")]
pub fn init() -> Result<()> {
    observer::keep_observer_operators();
    engine::keep_native_operators();
    match ir::ffi::bridge::host_refusal() {
        "" => Ok(()),
        refusal => Err(Error::Host(refusal.to_owned())),
    }
}

/// The version of the libtorch that this library was built with, e.g. `2.13.0`.
#[cfg(feature = "torch")]
pub fn torch_version() -> String {
    ir::ffi::bridge::torch_version()
}

/// Sets how many threads libtorch uses inside an operator.
#[cfg(feature = "torch")]
pub fn set_threads(threads: usize) {
    ir::ffi::bridge::torch_set_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// How many threads libtorch uses inside an operator.
#[cfg(feature = "torch")]
pub fn threads() -> i32 {
    ir::ffi::bridge::torch_threads()
}

/// Drops libtorch's warnings of this thread, which otherwise go to stderr.
#[cfg(feature = "torch")]
pub fn silence_torch_warnings() {
    ir::ffi::bridge::torch_silence_warnings();
}

/// The program of `docs/rust.md`.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../docs/rust.md")]
struct RustGuide;
