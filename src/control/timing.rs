//! Times of whole models, taken in turns.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine;
use crate::error::Result;
use crate::ir::{FORWARD, IValue, Module};
use crate::measure::{in_turns, quantile};
use crate::quantizer::ModelForm;

/// What runs the operators of an INT8 model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// libtorch's kernels: a portable model in a process without jitquant.
    #[default]
    Stock,
    /// jitquant's kernels behind libtorch's operators ([`crate::engine::accelerate`]).
    Accelerated,
    /// jitquant's operators: a model in native form.
    Native,
}

impl Runs {
    /// What can run a model of that form.
    pub fn of(form: ModelForm) -> &'static [Self] {
        match form {
            ModelForm::Portable => &[Self::Stock, Self::Accelerated],
            ModelForm::Native => &[Self::Native],
        }
    }

    /// A copy of a converted module that runs in this way.
    pub(super) fn ready(self, converted: &Module) -> Result<Module> {
        if self != Self::Accelerated {
            return Ok(converted.clone());
        }
        // Packed parameters are replaced for all who share them: a copy through bytes shares none.
        let copy = Module::load_bytes(&converted.save_bytes()?)?;
        engine::accelerate(&copy)?;
        Ok(copy)
    }
}

/// Median times of one run of a model in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ModelTimes {
    /// What ran the INT8 models.
    pub kernels: Runs,
    /// The float model.
    pub float: f64,
    /// All layers in INT8 that can be.
    pub all_int8: f64,
    /// What was made.
    pub chosen: f64,
    /// Samples of a run.
    pub samples: usize,
    /// Threads of libtorch's.
    pub threads: i32,
}

/// The least number of times that each model runs.
const LEAST_ROUNDS: usize = 7;

/// The median time of one run of each module on `inputs`, in turns. The executor optimizes a model in its first runs: they are
/// not counted.
pub(super) fn medians(modules: &[&Module], inputs: &[IValue], at_least: Duration) -> Result<Vec<f64>> {
    // The models may write into what they are given.
    let inputs = inputs.iter().map(IValue::deep_clone).collect::<Result<Vec<_>>>()?;
    let run = |index: usize| modules[index].call::<IValue>(FORWARD, &inputs).map(drop);
    let times = in_turns(modules.len(), 3, LEAST_ROUNDS, at_least, run)?;
    Ok(times.iter().map(|times| quantile(times, 0.5)).collect())
}
