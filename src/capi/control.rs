//! Accuracy and latency control: INT8 models that reach a goal, with as few layers in float as it takes.

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::argument;
use super::handle::{self, Handle};
use super::module::{self, graph_turn, jq_module};
use super::quantizer::jq_quantizer;
use super::report::{Contents, jq_report};
use super::status::{Failure, Outcome, enter, jq_status};
use super::value::{self, jq_value};
use crate::control::{Budget, Data, Figures, Goal, Progress, Runs, only_faster, tune};
use crate::ir::IValue;
use crate::{ModelForm, watch};

/// What samples are for: `JQ_CALIBRATE` or `JQ_MEASURE`.
pub type jq_data_use = i32;

/// Ranges are found on them.
pub const JQ_CALIBRATE: jq_data_use = 0;
/// Accuracy is measured on them.
pub const JQ_MEASURE: jq_data_use = 1;

/// Samples, held in memory. Free it with `jq_data_free`.
pub struct jq_data {
    _opaque: (),
}

impl Handle for jq_data {
    const NAME: &'static str = "jq_data";
    type Object = Samples;
}

/// The samples that a program gave.
#[derive(Default)]
pub(super) struct Samples(Mutex<Data>);

// SAFETY: what the data hold of libtorch are counted pointers (the counts are atomic), reached through the mutex.
unsafe impl Send for Samples {}
// SAFETY: as above.
unsafe impl Sync for Samples {}

impl Samples {
    fn change(&self, change: impl FnOnce(&mut Data)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was given to calibrate with.
    pub(super) fn calibration(&self) -> Vec<Vec<IValue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).calibration.clone()
    }

    /// The data, where none is there to measure on with every fourth batch held out for that.
    fn split(&self) -> crate::Result<Data> {
        let data = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match data.evaluation.is_empty() {
            true => Data::held_out(data.calibration, data.labels.as_deref(), 4),
            false => Ok(data),
        }
    }
}

/// How accurate an INT8 model has to be; all that is asked for has to hold. A negative number asks for nothing.
#[repr(C)]
pub struct jq_goal {
    /// The least share of samples for which float and INT8 model put the same class first, e.g. 0.99.
    pub min_agreement: f64,
    /// The least signal to quantization noise ratio of the outputs, in dB.
    pub min_sqnr_db: f64,
    /// How much of the accuracy on labels may be lost at most, as a share of the samples, e.g. 0.005.
    pub max_drop: f64,
}

/// How close an INT8 model is to the float one, and whether that was the goal.
#[repr(C)]
pub struct jq_figures {
    /// On how many samples it was measured.
    pub samples: usize,
    /// Signal to quantization noise ratio of the outputs in dB; infinite where nothing differs.
    pub sqnr_db: f64,
    /// The mean cosine between a sample's two outputs.
    pub mean_cosine: f64,
    /// The share of samples for which both put the same class first; NaN where the outputs are no class scores.
    pub agreement: f64,
    /// The float model's accuracy on the labels; NaN without labels.
    pub float_accuracy: f64,
    /// The INT8 model's; NaN without labels.
    pub int8_accuracy: f64,
    /// 1 where the goal is reached, else 0.
    pub reached: i32,
    /// 1 where the search ended for want of time, else 0.
    pub out_of_time: i32,
}

impl jq_figures {
    fn of(figures: &Figures, reached: bool, out_of_time: bool) -> Self {
        let or_nan = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
        Self {
            samples: figures.samples,
            sqnr_db: figures.sqnr_db,
            mean_cosine: figures.mean_cosine,
            agreement: or_nan(figures.agreement),
            float_accuracy: or_nan(figures.float_accuracy),
            int8_accuracy: or_nan(figures.int8_accuracy),
            reached: reached.into(),
            out_of_time: out_of_time.into(),
        }
    }
}

/// Tells the progress callback; where that ends the call, the next stage does, which is told that it is over.
fn tell(progress: &Progress<'_>) {
    if let Some(found) = &progress.found {
        tracing::info!("{}: {found}", progress.stage);
    }
    let _ = watch::step(progress.stage, progress.done, progress.total);
}

/// No samples, into `*data`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_data_new(data: *mut *mut jq_data) -> jq_status {
    enter(|| {
        let room = argument::room(data, "data")?;
        // SAFETY: the caller's promise.
        unsafe { room.put(handle::issue(Samples::default())) };
        Ok(())
    })
}

/// Adds a batch: the `count` values at `inputs`, the arguments of `forward`, with the samples along their first
/// dimension. `purpose` is `JQ_CALIBRATE` or `JQ_MEASURE`. Tensors are shared, not copied. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_data_add(
    data: *mut jq_data,
    purpose: jq_data_use,
    inputs: *const *const jq_value,
    count: usize,
) -> jq_status {
    enter(|| {
        let data = handle::resolve(data, "data")?;
        // SAFETY: the caller's promise.
        let inputs: Vec<IValue> = value::resolve_all(unsafe { argument::items(inputs, count, "inputs")? }, "inputs")?;
        match purpose {
            JQ_CALIBRATE => data.change(|data| data.calibration.push(inputs)),
            JQ_MEASURE => data.change(|data| data.evaluation.push(inputs)),
            other => {
                let accepted = "JQ_CALIBRATE (0) and JQ_MEASURE (1) are accepted";
                return Err(Failure::argument(format!("purpose {other}: {accepted}")));
            }
        }
        Ok(())
    })
}

/// The classes of the samples to measure on, in their order: `count` numbers at `labels`, which are copied. Where no batch
/// was added to measure on, those of all samples. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_data_set_labels(data: *mut jq_data, labels: *const i64, count: usize) -> jq_status {
    enter(|| {
        let data = handle::resolve(data, "data")?;
        // SAFETY: the caller's promise.
        let labels = unsafe { argument::items(labels, count, "labels")? }.to_vec();
        data.change(|data| data.labels = Some(labels));
        Ok(())
    })
}

/// Frees the samples. Null is allowed. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_data_free(data: *mut jq_data) -> jq_status {
    enter(|| handle::release(data, "data"))
}

/// Makes an INT8 module of `module` that reaches `goal`, with as few layers in float as can be found in `minutes`; into
/// `*converted`, to be freed with `jq_module_free`. docs/accuracy.md says how it looks for them.
///
/// A goal out of reach is no error: `*figures` tells, and the module is the nearest one. Where `data` has no batch to
/// measure on, every fourth one is held out for it. With `state`, a path, what was measured is kept in that file, and a
/// later call with the same model, data and options goes on from there; null: it is not. `*report`, to be freed with
/// `jq_report_free`, lists the layers left in float, each with its share of the loss; `report` and `figures` may be null.
/// Any thread; other calls that work on graphs wait until it has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_tune(
    quantizer: *const jq_quantizer,
    module: *const jq_module,
    data: *const jq_data,
    goal: *const jq_goal,
    minutes: f64,
    state: *const c_char,
    converted: *mut *mut jq_module,
    report: *mut *mut jq_report,
    figures: *mut jq_figures,
) -> jq_status {
    enter(|| {
        let room = argument::room(converted, "converted")?;
        let quantizer = handle::resolve(quantizer, "quantizer")?;
        let module = module::resolve(module, "module")?;
        let samples = handle::resolve(data, "data")?;
        // SAFETY: the caller's promise.
        let goal = unsafe { read_goal(goal)? };
        if !minutes.is_finite() {
            return Err(Failure::argument(format!("{minutes} minutes: a number is expected")));
        }
        let mut budget = Budget::minutes(minutes);
        if !state.is_null() {
            // SAFETY: the caller's promise.
            budget.state = Some(PathBuf::from(unsafe { argument::path(state, "state")? }));
        }
        let _turn = graph_turn()?;
        let outcome = quantizer
            .control
            .run(|| tune(&quantizer.get(), &module, &samples.split()?, &goal, &budget, &mut |step| tell(step)))?;
        // SAFETY: the caller's promise.
        unsafe {
            room.put(module::issue(outcome.converted.module));
            if !report.is_null() {
                let contents = Contents::of_converted(&outcome.converted.report);
                argument::room(report, "report")?.put(handle::issue(contents));
            }
            if !figures.is_null() {
                let found = jq_figures::of(&outcome.figures, outcome.reached, outcome.out_of_time);
                argument::room(figures, "figures")?.put(found);
            }
        }
        Ok(())
    })
}

/// # Safety
/// `goal` is null or points to a goal.
unsafe fn read_goal(goal: *const jq_goal) -> Outcome<Goal> {
    if goal.is_null() || !goal.is_aligned() {
        return Err(Failure::argument("'goal' is null; a jq_goal is expected"));
    }
    // SAFETY: not null, aligned, and the caller's promise.
    let goal = unsafe { &*goal };
    let asked = |number: f64| (number >= 0.0).then_some(number);
    Ok(Goal {
        min_agreement: asked(goal.min_agreement),
        min_sqnr_db: asked(goal.min_sqnr_db),
        max_drop: asked(goal.max_drop),
    })
}

/// Times each layer of `module` in INT8 and in float on this machine, and has the quantizer leave in float what INT8 would
/// slow down, conversions between the two counted in. `samples` of the data's first batch are run at once; `accelerated`
/// other than 0 times portable models on jitquant's kernels (`jq_accelerate`). How many layers stay in float goes into
/// `*left`, which may be null. Layers in branches and loops stay in INT8. Any thread, as `jq_quantizer_tune`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_quantizer_only_faster(
    quantizer: *mut jq_quantizer,
    module: *const jq_module,
    data: *const jq_data,
    samples: usize,
    accelerated: i32,
    left: *mut usize,
) -> jq_status {
    enter(|| {
        let shared = handle::resolve(quantizer, "quantizer")?;
        let module = module::resolve(module, "module")?;
        let data = handle::resolve(data, "data")?.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let kernels = match (shared.get().model_form(), accelerated) {
            (ModelForm::Native, _) => Runs::Native,
            (ModelForm::Portable, 0) => Runs::Stock,
            (ModelForm::Portable, _) => Runs::Accelerated,
        };
        let _turn = graph_turn()?;
        let times = shared
            .control
            .run(|| only_faster(&shared.get(), &module, &data, None, (samples, kernels), &mut |step| tell(step)))?;
        shared.change(|quantizer| times.apply(quantizer));
        if !left.is_null() {
            let in_float = times.layers.iter().filter(|layer| layer.in_float).count();
            // SAFETY: the caller's promise.
            unsafe { argument::room(left, "left")?.put(in_float) };
        }
        Ok(())
    })
}
