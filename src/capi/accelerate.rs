//! Stock operators on jitquant's kernels, and operators of its own.

use super::argument;
use super::module::{self, graph_turn, jq_module};
use super::status::{enter, jq_status};
use super::strings::{self, jq_strings};
use crate::{engine, pass};

/// Makes libtorch's `quantized::` operators in `module` run on jitquant's kernels: packed weights are replaced one after the
/// other, libtorch's copies are released, and every graph that shares them sees the change at once. Results are at most one
/// quantization step from libtorch's; the module saves as before, into a file that needs no jitquant.
///
/// How many weights run on jitquant's kernels from now on goes into `*accelerated`; a line for each that stays with libtorch
/// (where it is, its class, why) into `*left`, to be freed with `jq_strings_free`. Either may be null. Any thread, as long as
/// no other one uses the module meanwhile; afterwards as many as like.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_accelerate(
    module: *mut jq_module,
    accelerated: *mut usize,
    left: *mut *mut jq_strings,
) -> jq_status {
    enter(|| {
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        let done = engine::accelerate(&module)?;
        if let Ok(room) = argument::room(accelerated, "accelerated") {
            // SAFETY: the caller's promise.
            unsafe { room.put(done.replaced + done.already) };
        }
        if let Ok(room) = argument::room(left, "left") {
            // SAFETY: the caller's promise.
            unsafe { room.put(strings::issue(done.left.iter().map(ToString::to_string))) };
        }
        Ok(())
    })
}

/// `module`, an INT8 one, in native form, into `*native`, to be freed with `jq_module_free`: jitquant's own operators on plain
/// bytes take the place of libtorch's `quantized::` ones. It runs and loads where jitquant is loaded. `module` stays as it is.
/// Any thread; calls that work on graphs wait for each other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_to_native(module: *const jq_module, native: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(native, "native")?;
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        let result = pass::to_native(&module)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(module::issue(result)) };
        Ok(())
    })
}
