//! Quantization-aware training: the module that a program trains, its switches, and the INT8 module that comes of it.

use std::ffi::c_char;

use super::argument;
use super::control::jq_data;
use super::handle::{self, Handle};
use super::module::{self, graph_turn, jq_module};
use super::quantizer::{Driven, jq_quantizer};
use super::report::jq_report;
use super::status::{Failure, Outcome, enter, jq_status};
use super::strings::{self, jq_strings};
use super::value::{self, jq_value};
use crate::error::Result;
use crate::ir::{IValue, Module};
use crate::qat::QatModule;
use crate::quantizer::Quantizer;

/// A module that is trained for quantization. Free it with `jq_qat_free`.
pub struct jq_qat {
    _opaque: (),
}

impl Handle for jq_qat {
    const NAME: &'static str = "jq_qat";
    type Object = Driven<QatModule>;
}

// SAFETY: as for Driven<Prepared>: counted pointers, reached through the mutex; graphs are changed in `graph_turn`.
unsafe impl Send for Driven<QatModule> {}
// SAFETY: as above.
unsafe impl Sync for Driven<QatModule> {}

/// # Safety
/// `qat` is null or as for [`argument::Out::put`].
unsafe fn begin(
    make: impl FnOnce(&Module, &Quantizer) -> Result<QatModule>,
    quantizer: *const jq_quantizer,
    module: *const jq_module,
    qat: *mut *mut jq_qat,
) -> Outcome<()> {
    let room = argument::room(qat, "qat")?;
    let quantizer = handle::resolve(quantizer, "quantizer")?;
    let module = module::resolve(module, "module")?;
    let _turn = graph_turn()?;
    let made = quantizer.control.run(|| make(&module, &quantizer.get()))?;
    // SAFETY: the caller's promise.
    unsafe { room.put(handle::issue(Driven::new(made, &quantizer.control))) };
    Ok(())
}

/// Calls one of the switches of a module.
fn switch(qat: *mut jq_qat, call: impl FnOnce(&QatModule) -> Result<()>) -> jq_status {
    enter(|| {
        let shared = handle::resolve(qat, "qat")?;
        call(&*shared.lock()?)?;
        Ok(())
    })
}

/// Makes a copy of `module` for quantization-aware training, into `*qat`, to be freed with `jq_qat_free`. It rounds
/// nothing yet: ranges come first (`jq_qat_calibrate_values`), then `jq_qat_fake_quantize`. The quantizer is a static one;
/// weights may have fewer than eight bits. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_prepare_qat(
    quantizer: *const jq_quantizer,
    module: *const jq_module,
    qat: *mut *mut jq_qat,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { begin(QatModule::prepare, quantizer, module, qat) })
}

/// Goes on with a module that `jq_qat_module` gave and that was saved and loaded since, into `*qat`, to be freed with
/// `jq_qat_free`; it shares `module`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_resume_qat(
    quantizer: *const jq_quantizer,
    module: *const jq_module,
    qat: *mut *mut jq_qat,
) -> jq_status {
    // SAFETY: the caller's promise.
    enter(|| unsafe { begin(QatModule::resume, quantizer, module, qat) })
}

/// Runs the model on the `count` values at `inputs`, the arguments of `forward`, for the ranges of activations. Any thread;
/// calls with the same `qat` wait for each other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_calibrate_values(
    qat: *mut jq_qat,
    inputs: *const *const jq_value,
    count: usize,
) -> jq_status {
    enter(|| {
        let shared = handle::resolve(qat, "qat")?;
        // SAFETY: the caller's promise.
        let inputs = value::resolve_all(unsafe { argument::items(inputs, count, "inputs")? }, "inputs")?;
        let mut qat = shared.lock()?;
        shared.control.run(|| qat.calibrate(&inputs))?;
        Ok(())
    })
}

/// Has the observers of activations that leave the choice (`auto`, the default) take what loses less at the outputs on the
/// samples to calibrate with of `data`: all that calibration saw, or the part of it with the least error. After
/// calibration and before `jq_qat_fake_quantize`; without it they take all. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_choose_ranges(qat: *mut jq_qat, data: *const jq_data) -> jq_status {
    enter(|| {
        let shared = handle::resolve(qat, "qat")?;
        let batches = handle::resolve(data, "data")?.calibration();
        // In this order, as where it is converted.
        let qat = shared.lock()?;
        let _turn = graph_turn()?;
        shared.control.run(|| qat.choose_ranges(&batches))?;
        Ok(())
    })
}

/// A handle on the module that is trained, into `*module`, to be freed with `jq_module_free`; it is the same module, with
/// the same parameters. In C++, `jq_module_to_torch` makes a `torch::jit::Module` of it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_module(qat: *const jq_qat, module: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(module, "module")?;
        let trained = handle::resolve(qat, "qat")?.lock()?.module().clone();
        // SAFETY: the caller's promise.
        unsafe { room.put(module::issue(trained)) };
        Ok(())
    })
}

/// The names of what an optimizer trains (weights, biases, batch norms, and steps where they are learned), into
/// `*names`, to be freed with `jq_strings_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_parameter_names(qat: *const jq_qat, names: *mut *mut jq_strings) -> jq_status {
    enter(|| {
        let room = argument::room(names, "names")?;
        let parameters = handle::resolve(qat, "qat")?.lock()?.parameters()?;
        // SAFETY: the caller's promise.
        unsafe { room.put(strings::issue(parameters.into_iter().map(|(name, _)| name))) };
        Ok(())
    })
}

/// The parameter of that name, into `*value`, to be freed with `jq_value_free`; its tensor is the module's own. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_parameter(
    qat: *const jq_qat,
    name: *const c_char,
    value: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        let room = argument::room(value, "value")?;
        let shared = handle::resolve(qat, "qat")?;
        // SAFETY: the caller's promise.
        let name = unsafe { argument::text(name, "name")? };
        let found = shared.lock()?.parameters()?.into_iter().find(|(known, _)| known == name);
        let Some((_, tensor)) = found else {
            return Err(Failure::argument(format!(
                "name: no parameter is called '{name}'; jq_qat_parameter_names gives them"
            )));
        };
        // SAFETY: the caller's promise.
        unsafe { room.put(value::issue(IValue::Tensor(tensor))) };
        Ok(())
    })
}

/// Whether activations' ranges follow the data (`on` is not 0). Weights' always follow the weights. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_observe(qat: *mut jq_qat, on: i32) -> jq_status {
    switch(qat, |qat| qat.observe(on != 0))
}

/// Whether tensors are rounded (`on` is not 0). Switching it on takes the ranges observed so far. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_fake_quantize(qat: *mut jq_qat, on: i32) -> jq_status {
    switch(qat, |qat| qat.fake_quantize(on != 0))
}

/// Whether batch norms go on with the running statistics that they have, in training too (`on` is not 0). Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_freeze_batch_norms(qat: *mut jq_qat, on: i32) -> jq_status {
    switch(qat, |qat| qat.freeze_batch_norms(on != 0))
}

/// Makes the steps of activations trained parameters (learned step size), from what they are now: to be called after
/// calibration. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_learn_steps(qat: *mut jq_qat) -> jq_status {
    switch(qat, QatModule::learn_steps)
}

/// Makes the INT8 module of what was trained, into `*module`, to be freed with `jq_module_free`; `qat` stays as it is.
/// What became of the layers goes into `*report`, to be freed with `jq_report_free`; `report` may be null. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_convert(
    qat: *const jq_qat,
    module: *mut *mut jq_module,
    report: *mut *mut jq_report,
) -> jq_status {
    enter(|| {
        let shared = handle::resolve(qat, "qat")?;
        // SAFETY: the caller's promise.
        unsafe { shared.convert(QatModule::convert, module, report) }
    })
}

/// Frees what is trained. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_qat_free(qat: *mut jq_qat) -> jq_status {
    enter(|| handle::release(qat, "qat"))
}
