//! Plans that were made, by the sizes of their calls.

use std::sync::{Arc, PoisonError, RwLock};

use jitquant_kernels::{ConvShape, Parallel};

use super::{Plan, plan};
use crate::layout::Layout;
use crate::program::{Program, Weight};
use crate::run::Call;
use crate::{Result, refuse};

/// Plans that are kept, at most: the oldest one goes.
const KEPT: usize = 32;

/// What a plan depends on beside the Program.
struct Key {
    inputs: Vec<Layout>,
    numbers: Vec<i64>,
    weights: Vec<WeightShape>,
    threads: usize,
}

/// The sizes of a weight.
#[derive(PartialEq)]
enum WeightShape {
    Conv(ConvShape, usize),
    Linear { n: usize, k: usize },
}

impl WeightShape {
    fn of(weight: &Weight<'_>) -> Self {
        match weight {
            Weight::Conv { packed, dimensions, .. } => Self::Conv(*packed.shape(), *dimensions),
            Weight::Linear { packed, .. } => Self::Linear { n: packed.n(), k: packed.k() },
        }
    }
}

impl Key {
    fn of(call: &Call<'_>, threads: &dyn Parallel) -> Self {
        Self {
            inputs: call.inputs.iter().map(|input| input.layout()).collect(),
            numbers: call.numbers.to_vec(),
            weights: call.weights.iter().map(WeightShape::of).collect(),
            threads: threads.threads(),
        }
    }

    fn is(&self, call: &Call<'_>, threads: usize) -> bool {
        let (inputs, weights) = (self.inputs.iter().zip(call.inputs), self.weights.iter().zip(call.weights));
        self.threads == threads
            && self.numbers == call.numbers
            && self.inputs.len() == call.inputs.len()
            && inputs.into_iter().all(|(known, input)| input.is(known))
            && self.weights.len() == call.weights.len()
            && weights.into_iter().all(|(known, weight)| *known == WeightShape::of(weight))
    }
}

/// The plans of a Program, and why there is none for some calls.
#[derive(Default)]
pub(crate) struct Plans(RwLock<Vec<(Key, Result<Arc<Plan>>)>>);

impl Plans {
    fn find(&self, call: &Call<'_>, threads: usize) -> Option<Result<Arc<Plan>>> {
        let plans = self.0.read().unwrap_or_else(PoisonError::into_inner);
        plans.iter().find(|(key, _)| key.is(call, threads)).map(|(_, plan)| plan.clone())
    }
}

impl Program {
    /// The plan for a call: the one that was made for its sizes, or a new one.
    ///
    /// # Errors
    /// Where the Program does not take what the call gives.
    pub fn plan(&self, call: &Call<'_>, threads: &dyn Parallel) -> Result<Arc<Plan>> {
        if let Some(plan) = self.plans.find(call, threads.threads()) {
            return plan;
        }
        let given = (call.inputs.len(), call.numbers.len(), call.weights.len());
        if given != (self.inputs.len(), self.numbers, self.weights) {
            return refuse(format!("{given:?} tensors, numbers and weights"));
        }
        let made = plan(self, call, threads).map(Arc::new);
        let mut plans = self.plans.0.write().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= KEPT {
            drop(plans.remove(0));
        }
        plans.push((Key::of(call, threads), made.clone()));
        made
    }

    /// How many plans are kept.
    pub fn plans(&self) -> usize {
        self.plans.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}
