//! Post-training INT8 quantization of TorchScript models, without Python.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod error;
#[cfg(feature = "torch")]
mod file;
#[cfg(feature = "torch")]
#[allow(unsafe_code)]
pub mod ir;
pub mod kernel;
pub mod observer;
#[cfg(feature = "torch")]
pub mod pass;
#[cfg(feature = "torch")]
pub mod qconfig;

pub use error::{Error, Result};

/// Registers jitquant's operators with libtorch; later calls do nothing.
///
/// Loading a module through [`ir::Module::load`] does it; call it before another library loads a model that holds
/// jitquant's operators.
///
/// # Errors
/// Where libtorch refuses the registration (another library registered operators of the same names).
#[cfg(feature = "torch")]
pub fn init() -> Result<()> {
    observer::keep_observer_operators();
    Ok(())
}
