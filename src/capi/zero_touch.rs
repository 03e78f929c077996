//! What libjitquant_preload.so calls.

use std::ffi::c_void;

use super::argument;
use super::module::graph_turn;
use super::status::{enter, jq_status};
use crate::ir::Module;
use crate::zero_touch;

/// Replaces the host's `torch::jit::Module` at `torch_module`, which it has just loaded, by what the environment variable
/// `JITQUANT` asks for: `observe:FILE` by a module that records its ranges, `quantize:FILE` by an INT8 one that was made
/// with the ranges recorded there. What cannot be replaced stays as it is, and stderr says why, once for each model.
///
/// libjitquant_preload.so calls it for every model that a program loads; see docs/zero-touch.md. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_zero_touch(torch_module: *mut c_void) -> jq_status {
    enter(|| {
        let host = argument::host(torch_module.cast_const(), "torch_module", "torch::jit::Module")?;
        let _turn = graph_turn()?;
        // SAFETY: the caller's promise.
        let module = unsafe { Module::from_host(host)? };
        if let Some(replacement) = zero_touch::replacement(&module)? {
            // SAFETY: the caller's promise.
            unsafe { replacement.store_to_host(host.cast_mut()) };
        }
        Ok(())
    })
}
