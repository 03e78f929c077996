//! Post-training INT8 quantization of TorchScript models, without Python.
//!
//! ```no_run
//! # #[cfg(feature = "torch")]
//! fn main() -> jitquant::Result<()> {
//!     use jitquant::Quantizer;
//!     use jitquant::ir::{Module, Tensor};
//!
//!     let model = Module::load("model.pt")?; // TorchScript, or Module::try_from a tch::CModule
//!     let mut prepared = Quantizer::static_ptq().prepare(&model)?;
//!     for number in 0..16 {
//!         let pixels = vec![number as f32 / 16.0; 3 * 224 * 224]; // your data, like that of later use
//!         let batch = Tensor::from_slice(&pixels, &[1, 3, 224, 224])?; // or a tch::Tensor
//!         prepared.calibrate(&[batch])?;
//!     }
//!     let converted = prepared.convert()?;
//!     for layer in &converted.report.float {
//!         println!("{} stays in float: {}", layer.path, layer.reason);
//!     }
//!     converted.module.save("model.int8.pt") // any libtorch runs this file
//! }
//! # #[cfg(not(feature = "torch"))]
//! # fn main() {}
//! ```
//!
//! `examples/rust-app` is a project that does this with [`tch`](https://docs.rs/tch) and compares the two models.
//!
//! | module | what |
//! | --- | --- |
//! | [`ir`] | modules, graphs, nodes, values |
//! | [`pass`] | the passes that [`Quantizer`] is made of, under libtorch's names |
//! | [`qconfig`] | which observers for which part of a model |
//! | [`observer`], [`kernel`] | ranges of tensors, and INT8 arithmetic: both build without libtorch |
//! | [`engine`] | libtorch's quantized operators on these kernels |
//! | [`plugin`] | passes over every graph that libtorch executes |
//! | [`distributed`] | calibration and training on many processes |
//! | [`measure`] | comparing an INT8 model with the float one |
//! | [`control`] | a goal for the accuracy, layers that INT8 slows down, ranges in a file |
//! | [`watch`] | progress of long calls, and ending them |
//!
//! The features: `torch` is all that needs libtorch, `tch` adds tch's types, `cli` the command line.
#![cfg_attr(not(feature = "torch"), allow(rustdoc::broken_intra_doc_links))]
#![deny(unsafe_code)]
#![warn(missing_docs)]
// Nodes, values and blocks are keys by their address, which nothing inside their graph changes.
#![allow(clippy::mutable_key_type)]

#[cfg(feature = "torch")]
pub mod analysis;
#[cfg(feature = "torch")]
mod archive;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
// What makes the C library: for C programs, and no part of the Rust API.
#[doc(hidden)]
pub mod capi;
#[cfg(feature = "torch")]
mod check;
#[cfg(feature = "torch")]
pub mod control;
#[cfg(feature = "torch")]
pub mod distributed;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod engine;
mod error;
#[cfg(feature = "torch")]
mod file;
#[cfg(feature = "torch")]
mod import;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod ir;
#[cfg(feature = "torch")]
mod load;
pub mod measure;
#[cfg(feature = "torch")]
mod methods;
pub mod observer;
#[cfg(feature = "torch")]
pub mod pass;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod plugin;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod qat;
#[cfg(feature = "torch")]
pub mod qconfig;
#[cfg(feature = "torch")]
mod quantizer;
#[cfg(feature = "torch")]
mod ranges;
#[cfg(feature = "torch")]
mod replay;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
mod runner;

#[cfg(feature = "torch")]
pub mod watch;
#[cfg(feature = "torch")]
mod zero_touch;

pub use jitquant_kernels as kernel;

#[cfg(feature = "torch")]
pub use check::{Check, SlowLayer};
#[cfg(feature = "torch")]
#[doc(hidden)]
pub use error::brief;
pub use error::{Error, Result};
#[cfg(feature = "torch")]
#[doc(hidden)]
pub use file::{check_writable, write_atomically, write_bytes};
#[cfg(feature = "torch")]
pub use methods::{Methods, Rounding};
#[cfg(feature = "torch")]
pub use pass::WeightOnly;
#[cfg(feature = "torch")]
pub use quantizer::{Converted, FloatLayer, ModelForm, Prepared, Quantizer, Report, StockEngine};
#[cfg(feature = "torch")]
pub use runner::Runner;

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
    qat::keep_operators();
    engine::keep_native_operators();
    leave_parents_threads();
    match ir::ffi::bridge::host_refusal() {
        "" => Ok(()),
        refusal => Err(Error::Host(refusal.to_owned())),
    }
}

/// A process that was forked off has none of its parent's threads, and OpenMP would wait for them for ever: libtorch works on
/// one thread there, until it is told otherwise.
#[cfg(feature = "torch")]
fn leave_parents_threads() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    if ir::ffi::bridge::host_is_forked() {
        ONCE.call_once(|| ir::ffi::bridge::torch_set_threads(1));
    }
}

/// Loads a library that defines operators or classes of its own (torchvision's, one's own), for models that use them. It
/// stays until the process ends. What the library does when it is loaded is done with all rights of the process: load
/// libraries of those whom you trust.
///
/// # Errors
/// Where there is no such file, it is no shared library, or something that it needs is missing.
#[cfg(feature = "torch")]
pub fn load_library(path: impl AsRef<std::path::Path>) -> Result<()> {
    init()?;
    let path = path.as_ref();
    // The system looks for a name without a slash in its own folders.
    let absolute = std::fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
    let text = absolute.to_str().ok_or_else(|| Error::file(path, "the path is not UTF-8"))?;
    let refused = |why: &str| Error::file(path, format!("not loaded as a library of operators: {why}"));
    if !absolute.is_file() {
        return Err(refused("it is not a file"));
    }
    ir::ffi::bridge::library_open(text).map_err(|e| refused(e.what()))
}

/// The version of the libtorch that this library was built with, e.g. `2.13.0`.
#[cfg(feature = "torch")]
pub fn torch_version() -> String {
    ir::ffi::bridge::torch_version()
}

/// Sets how many threads libtorch uses inside an operator: at least one, and at most [`most_threads`].
#[cfg(feature = "torch")]
pub fn set_threads(threads: usize) {
    let threads = threads.clamp(1, most_threads());
    ir::ffi::bridge::torch_set_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// The most threads that are sensible on this machine, several for each processor: libtorch starts as many as it is told,
/// and ends the process where the system has no more.
#[cfg(feature = "torch")]
pub fn most_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).saturating_mul(4).max(64)
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
