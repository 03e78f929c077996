//! Modules: load, save, look into, run, and share with the host.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::argument;
use super::buffer::{self, jq_buffer};
use super::bytes::{self, jq_bytes};
use super::callback::refuse_in_callback;
use super::handle::{self, Handle};
use super::status::{Outcome, enter, jq_status};
use super::strings::{self, jq_strings};
use super::value::{self, jq_value};
use crate::ir::{IValue, Module};

/// A TorchScript module. Two handles may be on the same module. Free each with `jq_module_free`.
pub struct jq_module {
    _opaque: (),
}

impl Handle for jq_module {
    const NAME: &'static str = "jq_module";
    type Object = SharedModule;
}

/// A module that threads share.
pub(super) struct SharedModule(Mutex<Module>);

// SAFETY: a Module is a counted pointer (the count is atomic) and a cell; the cell is only reached through the mutex, and
// `handle` gives each call a Module of its own. What changes a module's classes or graphs does so in `graph_turn`.
unsafe impl Send for SharedModule {}
// SAFETY: as above.
unsafe impl Sync for SharedModule {}

impl SharedModule {
    /// A handle of the calling thread's own on the module.
    pub(super) fn handle(&self) -> Module {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits until no other call of this library reads or changes graphs: libtorch's passes share state without locks. Refused
/// in callbacks.
pub(super) fn graph_turn() -> Outcome<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    refuse_in_callback()?;
    Ok(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(super) fn issue(module: Module) -> *mut jq_module {
    handle::issue(SharedModule(Mutex::new(module)))
}

pub(super) fn resolve(module: *const jq_module, argument: &str) -> Outcome<Module> {
    Ok(handle::resolve(module, argument)?.handle())
}

/// Loads a shared library that defines operators or classes of its own (torchvision's, for one), for models that use them.
/// It stays until the process ends. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_load_library(path: *const c_char) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| Ok(crate::load_library(unsafe { argument::path(path, "path")? })?))
}

/// Loads a TorchScript file, or a program that `torch.export.save` wrote (`.pt2`), into `*module`; its tensors go to the
/// CPU. The file is checked before libtorch reads it: a damaged one gives JQ_ERROR_FILE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_load(path: *const c_char, module: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(module, "module")?;
        // SAFETY: the caller's promise.
        let loaded = Module::load(unsafe { argument::path(path, "path")? })?;
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(loaded)) };
        Ok(())
    })
}

/// Loads the `len` bytes at `bytes`, the content of a TorchScript file, into `*module`. The bytes are not needed after
/// the call. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_load_bytes(bytes: *const u8, len: usize, module: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(module, "module")?;
        // SAFETY: the caller's promise.
        let loaded = Module::load_bytes(unsafe { argument::items(bytes, len, "bytes")? })?;
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(loaded)) };
        Ok(())
    })
}

/// Saves the module as a TorchScript file. It is written beside `path` and renamed: a failed call leaves the old file as
/// it was. Any thread, as long as no other one changes the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_save(module: *const jq_module, path: *const c_char) -> jq_status {
    enter(|| {
        let module = resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let path = unsafe { argument::path(path, "path")? };
        let _turn = graph_turn()?;
        Ok(module.save(path)?)
    })
}

/// The content of a TorchScript file that holds the module, into `*bytes`, to be freed with `jq_bytes_free`; what
/// `jq_module_load_bytes` takes. Any thread, as long as no other one changes the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_save_bytes(module: *const jq_module, bytes: *mut *mut jq_bytes) -> jq_status {
    enter(|| {
        let room = argument::room(bytes, "bytes")?;
        let module = resolve(module, "module")?;
        let _turn = graph_turn()?;
        let content = module.save_bytes()?;
        // SAFETY: the caller's promise.
        unsafe { room.put(bytes::issue(content)) };
        Ok(())
    })
}

/// Frees the handle; the module goes with its last handle (the host's own included). Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_free(module: *mut jq_module) -> jq_status {
    enter(|| handle::release(module, "module"))
}

/// A handle, into `*module`, on the module of the host's `torch::jit::Module` at `torch_module`. Both share the module,
/// and either may go first.
///
/// `torch_module` is not null and the address of a `torch::jit::Module` of the libtorch, and the compiler's ABI, that the
/// library was built for. Any thread, as long as no other one changes the host's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_from_torch(torch_module: *const c_void, module: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(module, "module")?;
        let host = argument::host(torch_module, "torch_module", "torch::jit::Module")?;
        // SAFETY: the caller's promise.
        let shared = unsafe { Module::from_host(host)? };
        // SAFETY: the caller's promise.
        unsafe { room.put(issue(shared)) };
        Ok(())
    })
}

/// Makes the host's `torch::jit::Module` at `torch_module` a handle on the module; what it was a handle on before loses
/// one. The rest is as for `jq_module_from_torch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_to_torch(module: *const jq_module, torch_module: *mut c_void) -> jq_status {
    enter(|| {
        let module = resolve(module, "module")?;
        let host = argument::host(torch_module.cast_const(), "torch_module", "torch::jit::Module")?;
        // SAFETY: the caller's promise.
        unsafe { module.store_to_host(host.cast_mut()) };
        Ok(())
    })
}

/// The names of its methods, into `*names`, to be freed with `jq_strings_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_methods(module: *const jq_module, names: *mut *mut jq_strings) -> jq_status {
    enter(|| {
        let room = argument::room(names, "names")?;
        let module = resolve(module, "module")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(strings::issue(module.method_names())) };
        Ok(())
    })
}

/// The paths of its submodules (`features.0.conv`), each before those below it, into `*paths`, to be freed with
/// `jq_strings_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_submodules(module: *const jq_module, paths: *mut *mut jq_strings) -> jq_status {
    enter(|| {
        let room = argument::room(paths, "paths")?;
        let module = resolve(module, "module")?;
        let below = module.modules().into_iter().map(|(path, _)| path).filter(|path| !path.is_empty());
        // SAFETY: the caller's promise.
        unsafe { room.put(strings::issue(below)) };
        Ok(())
    })
}

/// The graph of method `method` as libtorch prints it, the only text of `*graph`, to be freed with `jq_strings_free`.
/// Any thread, as long as no other one changes the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_graph(
    module: *const jq_module,
    method: *const c_char,
    graph: *mut *mut jq_strings,
) -> jq_status {
    enter(|| {
        let room = argument::room(graph, "graph")?;
        let module = resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let method = unsafe { argument::text(method, "method")? };
        let _turn = graph_turn()?;
        let text = module.graph(method)?.to_string();
        // SAFETY: the caller's promise.
        unsafe { room.put(strings::issue([text])) };
        Ok(())
    })
}

/// Runs method `method` on the `count` values at `inputs`, without gradients; the result goes into `*output`, to be
/// freed with `jq_value_free`.
///
/// Many threads may run one module at once, where the model's own code allows it (one that keeps state in its attributes
/// does not); none while a call changes the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_run(
    module: *const jq_module,
    method: *const c_char,
    inputs: *const *const jq_value,
    count: usize,
    output: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        let room = argument::room(output, "output")?;
        let module = resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let method = unsafe { argument::text(method, "method")? };
        // SAFETY: the caller's promise.
        let inputs = value::resolve_all(unsafe { argument::items(inputs, count, "inputs")? }, "inputs")?;
        let result = module.call(method, &inputs)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(value::issue(result)) };
        Ok(())
    })
}

/// Runs `forward` on copies of the `count` buffers at `inputs`; the rest is as for `jq_module_run`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_forward(
    module: *const jq_module,
    inputs: *const jq_buffer,
    count: usize,
    output: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        let room = argument::room(output, "output")?;
        let module = resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let inputs = unsafe { read_buffers(inputs, count)? };
        let result = module.forward(&inputs)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(value::issue(result)) };
        Ok(())
    })
}

/// Copies of the buffers as values.
///
/// # Safety
/// As for [`buffer::read`], for each of the `count` buffers.
pub(super) unsafe fn read_buffers(inputs: *const jq_buffer, count: usize) -> Outcome<Vec<IValue>> {
    // SAFETY: the caller's promise.
    let inputs = unsafe { argument::items(inputs, count, "inputs")? };
    let tensor = |(i, input): (usize, &jq_buffer)| {
        // SAFETY: the caller's promise.
        Ok(IValue::Tensor(unsafe { buffer::read(input, &format!("inputs[{i}]"))? }))
    };
    inputs.iter().enumerate().map(tensor).collect()
}
