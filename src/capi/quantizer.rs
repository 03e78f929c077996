//! From a float module to an INT8 one: options, prepare, calibrate, convert; progress, and ending a call early.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::argument;
use super::buffer::jq_buffer;
use super::callback::{call_program, refuse_in_callback};
use super::handle::{self, Handle};
use super::module::{self, graph_turn, jq_module, read_buffers};
use super::report::{Contents, jq_report};
use super::status::{Failure, Outcome, c_text, enter, jq_status};
use super::value::{self, jq_value};
use crate::error::Result;
use crate::ir::IValue;
use crate::pass::QuantType;
use crate::qconfig::QConfigSpec;
use crate::watch::{Step, watched};
use crate::{Converted, ModelForm, Prepared, Quantizer, WeightOnly};

/// When activations are quantized.
pub type jq_quant_type = i32;

/// With the range of each input as it comes.
pub const JQ_DYNAMIC: jq_quant_type = 0;
/// With ranges that calibration found.
pub const JQ_STATIC: jq_quant_type = 1;

/// Weights alone, in 8 or 4 bits; activations stay in float. For `jq_quantizer_new` only.
pub const JQ_WEIGHT_ONLY: jq_quant_type = 2;

pub(super) fn quant_type(number: jq_quant_type) -> Outcome<QuantType> {
    match number {
        JQ_DYNAMIC => Ok(QuantType::Dynamic),
        JQ_STATIC => Ok(QuantType::Static),
        other => Err(Failure::argument(format!("quant_type {other}: JQ_DYNAMIC (0) and JQ_STATIC (1) are accepted"))),
    }
}

/// Which operators an INT8 model calls: `JQ_PORTABLE` or `JQ_NATIVE`.
pub type jq_model_form = i32;

/// libtorch's own: the model runs in any libtorch.
pub const JQ_PORTABLE: jq_model_form = 0;
/// jitquant's: faster; jitquant has to be loaded where the model runs.
pub const JQ_NATIVE: jq_model_form = 1;

/// How modules are to be quantized. Free it with `jq_quantizer_free`.
pub struct jq_quantizer {
    _opaque: (),
}

/// A module with observers. Free it with `jq_prepared_free`.
pub struct jq_prepared {
    _opaque: (),
}

impl Handle for jq_quantizer {
    const NAME: &'static str = "jq_quantizer";
    type Object = SharedQuantizer;
}

impl Handle for jq_prepared {
    const NAME: &'static str = "jq_prepared";
    type Object = Driven<Prepared>;
}

/// Told where a long call is: before each of its stages, and (with `total` 0) at each tensor that is observed while a
/// model runs. `stage` is a text that stays for the call of the function. What it returns other than 0 ends the call
/// with `JQ_ERROR_CANCELLED`.
///
/// It runs on the thread that made the call. It may cancel, set another callback, and load, look into and run modules;
/// what works on graphs or on something prepared (inspect, prepare, calibrate, convert, save, the passes) is refused there
/// with `JQ_ERROR_BUSY`. It must not throw an exception or jump out.
pub type jq_progress =
    Option<unsafe extern "C" fn(stage: *const c_char, done: usize, total: usize, user_data: *mut c_void) -> i32>;

#[derive(Clone, Copy)]
struct Progress {
    call: unsafe extern "C" fn(*const c_char, usize, usize, *mut c_void) -> i32,
    user_data: *mut c_void,
}

// SAFETY: the header asks the caller for a function and data that any thread which uses the quantizer may use.
unsafe impl Send for Progress {}

/// What calls through a quantizer and through what it prepared have in common.
#[derive(Default)]
pub(super) struct Control {
    cancelled: AtomicBool,
    progress: Mutex<Option<Progress>>,
}

impl Control {
    /// Makes a call that the progress callback watches and that `jq_quantizer_cancel` ends.
    pub fn run<T>(self: &Arc<Self>, call: impl FnOnce() -> Result<T>) -> Outcome<T> {
        let control = self.clone();
        Ok(watched(move |step| control.ask(step), call)?)
    }

    fn ask(&self, step: Step<'_>) -> ControlFlow<()> {
        let progress = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = progress.is_some_and(|Progress { call, user_data }| {
            let stage = c_text(step.stage);
            // SAFETY: the caller of jq_quantizer_set_progress promised a function that may be called so.
            call_program(|| unsafe { call(stage.as_ptr(), step.done, step.total, user_data) }) != 0
        });
        match self.cancelled.swap(false, Ordering::Relaxed) || ended {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

#[derive(Default)]
pub(super) struct SharedQuantizer {
    quantizer: Mutex<Quantizer>,
    pub control: Arc<Control>,
}

impl SharedQuantizer {
    pub fn get(&self) -> Quantizer {
        self.quantizer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn change(&self, change: impl FnOnce(Quantizer) -> Quantizer) {
        let mut quantizer = self.quantizer.lock().unwrap_or_else(PoisonError::into_inner);
        *quantizer = change(quantizer.clone());
    }

    fn set_weights(&self, form: WeightOnly) -> Result<()> {
        let mut quantizer = self.quantizer.lock().unwrap_or_else(PoisonError::into_inner);
        *quantizer = quantizer.clone().with_weights(form)?;
        Ok(())
    }
}

/// What a quantizer made of a module: one call at a time, with the quantizer's progress and cancelling.
pub(super) struct Driven<T> {
    object: Mutex<T>,
    pub(super) control: Arc<Control>,
}

// SAFETY: what a Prepared holds of libtorch are counted pointers (the counts are atomic); it is only reached through the
// mutex, and the calls that read or change graphs do so in `graph_turn`.
unsafe impl Send for Driven<Prepared> {}
// SAFETY: as above.
unsafe impl Sync for Driven<Prepared> {}

impl<T> Driven<T> {
    pub(super) fn new(object: T, control: &Arc<Control>) -> Self {
        Self { object: Mutex::new(object), control: control.clone() }
    }

    /// Waits until no other call uses it. Refused in callbacks.
    pub(super) fn lock(&self) -> Outcome<MutexGuard<'_, T>> {
        refuse_in_callback()?;
        Ok(self.object.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Converts it, and stores the module, and the report where `report` is not null.
    ///
    /// # Safety
    /// `module` and `report` are null or as for [`argument::Out::put`].
    pub(super) unsafe fn convert(
        &self,
        convert: impl FnOnce(&T) -> Result<Converted>,
        module: *mut *mut jq_module,
        report: *mut *mut jq_report,
    ) -> Outcome<()> {
        let room = argument::room(module, "module")?;
        let object = self.lock()?;
        let _turn = graph_turn()?;
        let converted = self.control.run(|| convert(&object))?;
        // SAFETY: the caller's promise.
        unsafe {
            room.put(module::issue(converted.module));
            if !report.is_null() {
                let contents = Contents::of_converted(&converted.report);
                argument::room(report, "report")?.put(handle::issue(contents));
            }
        }
        Ok(())
    }
}

/// A quantizer with the defaults of `quant_type` (`JQ_STATIC`, `JQ_DYNAMIC` or `JQ_WEIGHT_ONLY`), into `*quantizer`. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_new(quant_type: jq_quant_type, quantizer: *mut *mut jq_quantizer) -> jq_status {
    enter(|| {
        let room = argument::room(quantizer, "quantizer")?;
        let made = match quant_type {
            JQ_WEIGHT_ONLY => Quantizer::weight_only(WeightOnly::Bits8),
            other => Quantizer::new(self::quant_type(other)?),
        };
        let made = Mutex::new(made);
        let made = SharedQuantizer { quantizer: made, ..SharedQuantizer::default() };
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(made)) };
        Ok(())
    })
}

/// Takes the observers that the TOML text `qconfig` gives for the parts of a model; `docs/configuration.md` describes
/// it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_set_qconfig(quantizer: *mut jq_quantizer, qconfig: *const c_char) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        // SAFETY: the caller's promise.
        let spec: QConfigSpec = unsafe { argument::text(qconfig, "qconfig")? }.parse()?;
        quantizer.change(|quantizer| quantizer.qconfig(spec));
        Ok(())
    })
}

/// Leaves the submodule at `path`, and all below it, in float. May be called several times. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_skip(quantizer: *mut jq_quantizer, path: *const c_char) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        // SAFETY: the caller's promise.
        let path = unsafe { argument::text(path, "path")? };
        quantizer.change(|quantizer| quantizer.skip(path));
        Ok(())
    })
}

/// Keeps the method or attribute `name` beside `forward` in converted modules. May be called several times. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_preserve(quantizer: *mut jq_quantizer, name: *const c_char) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        // SAFETY: the caller's promise.
        let name = unsafe { argument::text(name, "name")? };
        quantizer.change(|quantizer| quantizer.preserve(name));
        Ok(())
    })
}

/// Makes models of this form: `JQ_PORTABLE`, the default, or `JQ_NATIVE`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_set_form(quantizer: *mut jq_quantizer, form: jq_model_form) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        let form = match form {
            JQ_PORTABLE => ModelForm::Portable,
            JQ_NATIVE => ModelForm::Native,
            other => {
                let accepted = "JQ_PORTABLE (0) and JQ_NATIVE (1) are accepted";
                return Err(Failure::argument(format!("form {other}: {accepted}")));
            }
        };
        quantizer.change(|quantizer| quantizer.form(form));
        Ok(())
    })
}

/// Whether `jq_prepared_convert` ends with a check, which it does by default (`on` is not 0): the float model and the INT8
/// one, read back as a file, run on up to 32 of the samples that calibrated. Layers that break the model stay in float; where
/// that does not help, the conversion fails. `jq_report_check` has what was measured. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_set_check(quantizer: *mut jq_quantizer, on: i32) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        quantizer.change(|quantizer| quantizer.check(on != 0));
        Ok(())
    })
}

/// For a quantizer made with `JQ_WEIGHT_ONLY`: weights of `bits` bits, 8 (the default) or 4. With 4, linear layers have a
/// scale and an offset for each `group` of inputs, 32, 64 or 128; what else has weights keeps 8. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_set_weight_bits(
    quantizer: *mut jq_quantizer,
    bits: usize,
    group: usize,
) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        Ok(quantizer.set_weights(WeightOnly::new(bits, group)?)?)
    })
}

/// Has `progress` told of the stages of every call that takes the quantizer or what it prepared; null: nobody.
///
/// `progress` and `user_data` stay usable, from any thread that makes such a call, until they are replaced and no call
/// is in progress, or the quantizer and all it prepared are freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_set_progress(
    quantizer: *mut jq_quantizer,
    progress: jq_progress,
    user_data: *mut c_void,
) -> jq_status {
    enter(|| {
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        let progress = progress.map(|call| Progress { call, user_data });
        *quantizer.control.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        Ok(())
    })
}

/// Ends the call in progress that takes the quantizer or what it prepared, at its next stage or observed tensor, with
/// `JQ_ERROR_CANCELLED`; where none is in progress, the next one. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_cancel(quantizer: *mut jq_quantizer) -> jq_status {
    enter(|| {
        handle::resolve(quantizer, "quantizer")?.control.cancelled.store(true, Ordering::Relaxed);
        Ok(())
    })
}

/// The layers of `module`, each with why it would stay in float, into `*report`, to be freed with `jq_report_free`.
/// Nothing is changed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_inspect(
    quantizer: *const jq_quantizer,
    module: *const jq_module,
    report: *mut *mut jq_report,
) -> jq_status {
    enter(|| {
        let room = argument::room(report, "report")?;
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        let verdicts = quantizer.control.run(|| quantizer.get().verdicts(&module))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(Contents::of_verdicts(&verdicts))) };
        Ok(())
    })
}

/// Puts observers into a copy of `module`, into `*prepared`, to be freed with `jq_prepared_free`. `module` stays as it
/// is. Any thread; calls that work on graphs wait for each other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_prepare(
    quantizer: *const jq_quantizer,
    module: *const jq_module,
    prepared: *mut *mut jq_prepared,
) -> jq_status {
    enter(|| {
        let room = argument::room(prepared, "prepared")?;
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        let module = module::resolve(module, "module")?;
        let _turn = graph_turn()?;
        let made = quantizer.control.run(|| quantizer.get().prepare(&module))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(Driven::new(made, &quantizer.control))) };
        Ok(())
    })
}

/// Goes on with an observed module that `jq_prepared_module` gave and that was saved and loaded since, into `*prepared`,
/// to be freed with `jq_prepared_free`; it shares `observed`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_resume(
    quantizer: *const jq_quantizer,
    observed: *const jq_module,
    prepared: *mut *mut jq_prepared,
) -> jq_status {
    enter(|| {
        let room = argument::room(prepared, "prepared")?;
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        let observed = module::resolve(observed, "observed")?;
        let _turn = graph_turn()?;
        let made = quantizer.control.run(|| quantizer.get().resume(&observed))?;
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(Driven::new(made, &quantizer.control))) };
        Ok(())
    })
}

/// Frees the quantizer; what it prepared stays. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_free(quantizer: *mut jq_quantizer) -> jq_status {
    enter(|| handle::release(quantizer, "quantizer"))
}

/// Runs the model on copies of the `count` buffers at `inputs`, the arguments of `forward`, and lets the observers watch.
///
/// The model's result goes into `*output`, to be freed with `jq_value_free`; `output` may be null. Any thread; calls with
/// the same `prepared` wait for each other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_prepared_calibrate(
    prepared: *mut jq_prepared,
    inputs: *const jq_buffer,
    count: usize,
    output: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        let shared = handle::resolve(prepared, "prepared")?;
        // SAFETY: the caller's promise.
        let inputs = unsafe { read_buffers(inputs, count)? };
        // SAFETY: the caller's promise.
        unsafe { calibrate(&shared, &inputs, output) }
    })
}

/// As `jq_prepared_calibrate`, on the `count` values at `inputs`: for inputs that are no plain buffers, and tensors of
/// the host's (`jq_value_from_tensor`), which are not copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_prepared_calibrate_values(
    prepared: *mut jq_prepared,
    inputs: *const *const jq_value,
    count: usize,
    output: *mut *mut jq_value,
) -> jq_status {
    enter(|| {
        let shared = handle::resolve(prepared, "prepared")?;
        // SAFETY: the caller's promise.
        let inputs = value::resolve_all(unsafe { argument::items(inputs, count, "inputs")? }, "inputs")?;
        // SAFETY: the caller's promise.
        unsafe { calibrate(&shared, &inputs, output) }
    })
}

/// # Safety
/// `output` is null or as for [`argument::Out::put`].
unsafe fn calibrate(shared: &Driven<Prepared>, inputs: &[IValue], output: *mut *mut jq_value) -> Outcome<()> {
    let mut prepared = shared.lock()?;
    let result = shared.control.run(|| prepared.calibrate(inputs))?;
    if !output.is_null() {
        // SAFETY: the caller's promise.
        unsafe { argument::room(output, "output")?.put(value::issue(result)) };
    }
    Ok(())
}

/// A handle on the module with the observers, into `*module`, to be freed with `jq_module_free`: to save it and go on
/// later with `jq_quantizer_resume`, or to run it from the program's own loop. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_prepared_module(prepared: *const jq_prepared, module: *mut *mut jq_module) -> jq_status {
    enter(|| {
        let room = argument::room(module, "module")?;
        let observed = handle::resolve(prepared, "prepared")?.lock()?.module().clone();
        // SAFETY: the caller's promise.
        unsafe { room.put(module::issue(observed)) };
        Ok(())
    })
}

/// Makes the INT8 module, into `*module`, to be freed with `jq_module_free`; `prepared` stays as it is. What became of
/// the layers goes into `*report`, to be freed with `jq_report_free`; `report` may be null. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_prepared_convert(
    prepared: *const jq_prepared,
    module: *mut *mut jq_module,
    report: *mut *mut jq_report,
) -> jq_status {
    enter(|| {
        let shared = handle::resolve(prepared, "prepared")?;
        // SAFETY: the caller's promise.
        unsafe { shared.convert(Prepared::convert, module, report) }
    })
}

/// Frees what was prepared. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_prepared_free(prepared: *mut jq_prepared) -> jq_status {
    enter(|| handle::release(prepared, "prepared"))
}

/// Sets how many threads libtorch uses inside an operator, for the whole process: from 1 to 64, or to four for each
/// processor where that is more.
#[unsafe(no_mangle)]
pub extern "C" fn jq_set_threads(threads: usize) -> jq_status {
    enter(|| {
        let most = crate::most_threads();
        if !(1..=most).contains(&threads) {
            return Err(Failure::argument(format!("{threads} threads: from 1 to {most} are sensible on this machine")));
        }
        crate::set_threads(threads);
        Ok(())
    })
}
