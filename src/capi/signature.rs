//! What a method takes and returns.

use std::ffi::{CString, c_char};

use super::argument;
use super::handle::{self, Handle};
use super::module::{self, jq_module};
use super::status::{Outcome, c_text, enter, jq_status};
use crate::ir::Argument;

/// What a method takes and returns. Free it with `jq_signature_free`.
pub struct jq_signature {
    _opaque: (),
}

/// An input or an output of a method. The texts belong to the `jq_signature` and go with it.
#[repr(C)]
pub struct jq_argument {
    /// Its name; empty where it has none, as outputs mostly.
    pub name: *const c_char,
    /// Its type as TorchScript writes it, e.g. `Tensor`, `Tuple[Tensor, Tensor]` or `Dict[str, Tensor]`. The sizes of tensors are
    /// not part of it: a TorchScript model takes what its operators take.
    pub type_name: *const c_char,
    /// Not 0 where it may be left out: it has a default value then.
    pub has_default: i32,
}

struct Entry {
    name: CString,
    type_name: CString,
    has_default: bool,
}

impl From<&Argument> for Entry {
    fn from(argument: &Argument) -> Self {
        let Argument { name, type_name, has_default, .. } = argument;
        Self { name: c_text(name), type_name: c_text(type_name), has_default: *has_default }
    }
}

pub(super) struct Signature {
    inputs: Vec<Entry>,
    outputs: Vec<Entry>,
}

impl Handle for jq_signature {
    const NAME: &'static str = "jq_signature";
    type Object = Signature;
}

/// The inputs of method `method` behind the module itself, and its outputs (mostly one, which may be a tuple), into
/// `*signature`, to be freed with `jq_signature_free`. Any thread, as long as no other one changes the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_module_signature(
    module: *const jq_module,
    method: *const c_char,
    signature: *mut *mut jq_signature,
) -> jq_status {
    enter(|| {
        let room = argument::room(signature, "signature")?;
        let module = module::resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let schema = module.schema(unsafe { argument::text(method, "method")? })?;
        let inputs = schema.arguments.iter().skip(1).map(Entry::from).collect();
        let outputs = schema.returns.iter().map(Entry::from).collect();
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(Signature { inputs, outputs })) };
        Ok(())
    })
}

/// How many inputs and outputs there are, into `*inputs` and `*outputs`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_signature_count(
    signature: *const jq_signature,
    inputs: *mut usize,
    outputs: *mut usize,
) -> jq_status {
    enter(|| {
        let (inputs, outputs) = (argument::room(inputs, "inputs")?, argument::room(outputs, "outputs")?);
        let signature = handle::resolve(signature, "signature")?;
        // SAFETY: the caller's promise.
        unsafe {
            inputs.put(signature.inputs.len());
            outputs.put(signature.outputs.len());
        }
        Ok(())
    })
}

/// Input `index`, into `*input`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_signature_input(
    signature: *const jq_signature,
    index: usize,
    input: *mut jq_argument,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(signature, |signature| &signature.inputs, "inputs", index, input) })
}

/// Output `index`, into `*output`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_signature_output(
    signature: *const jq_signature,
    index: usize,
    output: *mut jq_argument,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { store(signature, |signature| &signature.outputs, "outputs", index, output) })
}

/// # Safety
/// `out` is as for [`argument::Out::put`].
unsafe fn store(
    signature: *const jq_signature,
    entries: impl Fn(&Signature) -> &[Entry],
    what: &str,
    index: usize,
    out: *mut jq_argument,
) -> Outcome<()> {
    let room = argument::room(out, "argument")?;
    let signature = handle::resolve(signature, "signature")?;
    let entries = entries(&signature);
    let Entry { name, type_name, has_default } = &entries[argument::index(index, entries.len(), what)?];
    let found =
        jq_argument { name: name.as_ptr(), type_name: type_name.as_ptr(), has_default: i32::from(*has_default) };
    // SAFETY: the caller's promise.
    unsafe { room.put(found) };
    Ok(())
}

/// Frees the signature. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_signature_free(signature: *mut jq_signature) -> jq_status {
    enter(|| handle::release(signature, "signature"))
}
