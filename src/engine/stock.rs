//! libtorch's own engines for quantized operators.

use super::bridge::ffi;
use crate::error::{Error, Result};

/// The engines that this libtorch has, e.g. `fbgemm`, `x86`, `onednn`.
pub fn stock_engines() -> Vec<String> {
    ffi::stock_engines().into_iter().map(|name| name.to_lowercase()).filter(|name| name != "noqengine").collect()
}

/// The engine that packs weights now.
pub fn stock_engine() -> String {
    ffi::stock_engine().to_lowercase()
}

/// Runs `work` with libtorch's engine `name`: weights that it packs, and models that it loads, are that engine's from then
/// on. The choice is the process's: no other thread may load or pack meanwhile.
///
/// # Errors
/// Where libtorch has no such engine; the message lists those it has. What `work` returns.
pub fn with_stock_engine<R>(name: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
    let refuse = || Error::invalid(format!("libtorch has no engine '{name}'; it has {}", stock_engines().join(", ")));
    let find = |wanted: &str| ffi::stock_engines().into_iter().find(|engine| engine.to_lowercase() == wanted);
    let engine = find(name).ok_or_else(refuse)?;
    let before = ffi::stock_engine();
    ffi::set_stock_engine(&engine)?;
    let result = work();
    ffi::set_stock_engine(&before)?;
    result
}
