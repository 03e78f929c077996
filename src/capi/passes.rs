//! The passes, one by one, for who drives them himself.

use std::ffi::{c_char, c_void};

use super::argument;
use super::callback::call_program;
use super::module::{self, graph_turn, jq_module};
use super::node::{jq_node, visit};
use super::quantizer::{jq_quant_type, quant_type};
use super::status::{Failure, Outcome, enter, jq_status};
use super::strings::{self, jq_strings};
use crate::error::Result;
use crate::ir::Module;
use crate::pass::{self, QuantType};
use crate::qconfig::{QConfig, QConfigDict};

/// The observers of one part of a model.
#[repr(C)]
pub struct jq_qconfig {
    /// The path of a submodule; an empty text for the whole model. Not null.
    pub path: *const c_char,
    /// Watches activations: a module whose `forward` returns its argument. Null, as `weight` then: the part stays in
    /// float.
    pub activation: *const jq_module,
    /// Watches weights.
    pub weight: *const jq_module,
}

/// Whether a node is one that is asked for: 1 says yes, 0 no; a negative number ends the call with `JQ_ERROR_CANCELLED`,
/// and the module stays as it was.
///
/// It runs on the thread that made the call, and asks about the node through the `jq_node_…` functions; no other
/// function of this library may be called from it. It must not throw an exception or jump out.
pub type jq_node_filter = Option<unsafe extern "C" fn(node: *const jq_node, user_data: *mut c_void) -> i32>;

/// `InsertObservers`: a copy of `module` whose method `method` is watched by the observers of the `count` entries at
/// `qconfigs`, into `*observed`, to be freed with `jq_module_free`.
///
/// The observers are copied. Tensors are copied too, or shared with `module` where `inplace` is not 0. `module` stays as
/// it is. Any thread; calls that work on graphs wait for each other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_insert_observers(
    module: *const jq_module,
    method: *const c_char,
    qconfigs: *const jq_qconfig,
    count: usize,
    inplace: i32,
    quant_type: jq_quant_type,
    observed: *mut *mut jq_module,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe {
        observe(pass::insert_observers, module, method, (qconfigs, count), inplace, quant_type, observed)
    })
}

/// `InsertObserversForOnDevicePTQ`: as `jq_insert_observers`, in a method `observe_{method}` that is added, for models that are
/// quantized where they run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_insert_observers_for_on_device_ptq(
    module: *const jq_module,
    method: *const c_char,
    qconfigs: *const jq_qconfig,
    count: usize,
    inplace: i32,
    quant_type: jq_quant_type,
    observed: *mut *mut jq_module,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe {
        observe(
            pass::insert_observers_for_on_device_ptq,
            module,
            method,
            (qconfigs, count),
            inplace,
            quant_type,
            observed,
        )
    })
}

type ObserverPass = fn(&Module, &str, &QConfigDict, bool, QuantType) -> Result<Module>;

/// # Safety
/// The texts and the `qconfigs` are as the header asks for, `observed` as for [`argument::Out::put`].
unsafe fn observe(
    insert: ObserverPass,
    module: *const jq_module,
    method: *const c_char,
    (qconfigs, count): (*const jq_qconfig, usize),
    inplace: i32,
    quant_type: jq_quant_type,
    observed: *mut *mut jq_module,
) -> Outcome<()> {
    let room = argument::room(observed, "observed")?;
    let module = module::resolve(module, "module")?;
    // SAFETY: the caller's promise.
    let method = unsafe { argument::text(method, "method")? };
    let quant_type = self::quant_type(quant_type)?;
    let mut dict = QConfigDict::new();
    // SAFETY: the caller's promise.
    for (i, entry) in unsafe { argument::items(qconfigs, count, "qconfigs")? }.iter().enumerate() {
        // SAFETY: the caller's promise.
        let path = unsafe { argument::text(entry.path, &format!("qconfigs[{i}].path"))? };
        let qconfig = match entry.activation.is_null() && entry.weight.is_null() {
            true => None,
            false => Some(QConfig {
                activation: module::resolve(entry.activation, &format!("qconfigs[{i}].activation"))?,
                weight: module::resolve(entry.weight, &format!("qconfigs[{i}].weight"))?,
            }),
        };
        dict.insert(path.to_owned(), qconfig);
    }
    let _turn = graph_turn()?;
    let result = insert(&module, method, &dict, inplace != 0, quant_type)?;
    // SAFETY: the caller's promise.
    unsafe { room.put(module::issue(result)) };
    Ok(())
}

/// `InsertQuantDeQuant`: a copy of `observed`, whose method `method` was watched by observers, that rounds what they
/// watched as INT8 does, into `*quantized`, to be freed with `jq_module_free`.
///
/// Tensors are copied, or shared with `observed` where `inplace` is not 0. With `debug` not 0, operators whose float form
/// computes something else are named in the log. `observed` stays as it is. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_insert_quant_dequant(
    observed: *const jq_module,
    method: *const c_char,
    inplace: i32,
    debug: i32,
    quant_type: jq_quant_type,
    quantized: *mut *mut jq_module,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { quantize(pass::insert_quant_dequant, observed, method, inplace, debug, quant_type, quantized) })
}

/// `InsertQuantDeQuantOnDevicePTQ`: as `jq_insert_quant_dequant`, for the method `observe_…` that
/// `jq_insert_observers_for_on_device_ptq` made; the result is in a method `quantize_…`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_insert_quant_dequant_on_device_ptq(
    observed: *const jq_module,
    method: *const c_char,
    inplace: i32,
    debug: i32,
    quant_type: jq_quant_type,
    quantized: *mut *mut jq_module,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe {
        quantize(pass::insert_quant_dequant_on_device_ptq, observed, method, inplace, debug, quant_type, quantized)
    })
}

type QuantizePass = fn(&Module, &str, bool, bool, QuantType) -> Result<Module>;

/// # Safety
/// `method` is as the header asks for, `quantized` as for [`argument::Out::put`].
unsafe fn quantize(
    insert: QuantizePass,
    observed: *const jq_module,
    method: *const c_char,
    inplace: i32,
    debug: i32,
    quant_type: jq_quant_type,
    quantized: *mut *mut jq_module,
) -> Outcome<()> {
    let room = argument::room(quantized, "quantized")?;
    let observed = module::resolve(observed, "observed")?;
    // SAFETY: the caller's promise.
    let method = unsafe { argument::text(method, "method")? };
    let quant_type = self::quant_type(quant_type)?;
    let _turn = graph_turn()?;
    let result = insert(&observed, method, inplace != 0, debug != 0, quant_type)?;
    // SAFETY: the caller's promise.
    unsafe { room.put(module::issue(result)) };
    Ok(())
}

/// `Finalize`: a copy of `quantized`, which `jq_insert_quant_dequant` gave, with `quantized::` operators and packed
/// weights, frozen, into `*finalized`, to be freed with `jq_module_free`.
///
/// The `count` texts at `preserved` name methods and attributes that stay beside `forward`; may be null where there are
/// none. `quantized` stays as it is. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_finalize(
    quantized: *const jq_module,
    quant_type: jq_quant_type,
    preserved: *const *const c_char,
    count: usize,
    finalized: *mut *mut jq_module,
) -> jq_status {
    enter(|| {
        let room = argument::room(finalized, "finalized")?;
        let quantized = module::resolve(quantized, "quantized")?;
        let quant_type = self::quant_type(quant_type)?;
        // SAFETY: the caller's promise.
        let preserved = unsafe { argument::items(preserved, count, "preserved")? };
        let name = |(i, name): (usize, &*const c_char)| {
            // SAFETY: the caller's promise.
            Ok(unsafe { argument::text(*name, &format!("preserved[{i}]"))? }.to_owned())
        };
        let preserved = preserved.iter().enumerate().map(name).collect::<Outcome<Vec<_>>>()?;
        let _turn = graph_turn()?;
        let result = pass::finalize(&quantized, quant_type, &preserved)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(module::issue(result)) };
        Ok(())
    })
}

/// `FinalizeOnDevicePTQ`: a copy of `quantized` with methods that pack weights and that run in INT8 beside the method
/// `quantize_…` that `method` names, into `*finalized`, to be freed with `jq_module_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_finalize_on_device_ptq(
    quantized: *const jq_module,
    quant_type: jq_quant_type,
    method: *const c_char,
    finalized: *mut *mut jq_module,
) -> jq_status {
    enter(|| {
        let room = argument::room(finalized, "finalized")?;
        let quantized = module::resolve(quantized, "quantized")?;
        let quant_type = self::quant_type(quant_type)?;
        // SAFETY: the caller's promise.
        let method = unsafe { argument::text(method, "method")? };
        let _turn = graph_turn()?;
        let result = pass::finalize_on_device_ptq(&quantized, quant_type, method)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(module::issue(result)) };
        Ok(())
    })
}

/// `FoldConvBatchNorm`: a copy of `module` whose convolutions have taken over the batch norms behind them, into
/// `*folded`, to be freed with `jq_module_free`. `module` stays as it is. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_fold_conv_batch_norm(module: *const jq_module, folded: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(folded, "folded")?;
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        let result = pass::fold_conv_batch_norm(&module)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(module::issue(result)) };
        Ok(())
    })
}

/// `DedupModuleUses`: gives each use of a submodule of `module` that is used more than once a submodule of its own. Any
/// thread, as long as no other one uses the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_dedup_module_uses(module: *mut jq_module) -> jq_status {
    enter(|| {
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        Ok(pass::dedup_module_uses(&module)?)
    })
}

/// `RegisterPrePackParams`: each packed weight that `method` of `module` computes in a node that `is_packed_param` takes
/// is kept in an attribute of `module` whose name begins with `attr_prefix`, and the float weight is released when the
/// method runs.
///
/// The names of the attributes and the paths of the modules whose weights are packed go into `*names`, to be freed with
/// `jq_strings_free`. `is_packed_param` is not null; `user_data` is handed to it. A failed call leaves `module` as it
/// was. Any thread, as long as no other one uses the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_register_prepack_params(
    module: *mut jq_module,
    method: *const c_char,
    is_packed_param: jq_node_filter,
    user_data: *mut c_void,
    attr_prefix: *const c_char,
    names: *mut *mut jq_strings,
) -> jq_status {
    enter(|| {
        let room = argument::room(names, "names")?;
        let module = module::resolve(module, "module")?;
        // SAFETY: the caller's promise.
        let (method, prefix) =
            unsafe { (argument::text(method, "method")?, argument::text(attr_prefix, "attr_prefix")?) };
        let Some(filter) = is_packed_param else {
            return Err(Failure::argument("'is_packed_param' is null; a function is expected"));
        };
        let _turn = graph_turn()?;
        // SAFETY: the caller's promise.
        let ask = |node: crate::ir::Node<'_>| visit(node, |node| call_program(|| unsafe { filter(node, user_data) }));
        // The pass asks about all nodes before it changes anything.
        let takes = |node: crate::ir::Node<'_>| match ask(node) {
            answer if answer < 0 => Failure::cancelled().leave(),
            answer => answer != 0,
        };
        let registered = pass::register_prepack_params(&module, method, takes, prefix)?;
        // SAFETY: the caller's promise.
        unsafe { room.put(strings::issue(registered)) };
        Ok(())
    })
}
