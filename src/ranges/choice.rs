//! Which range of their histograms the observers of a model take, where the choice is left to it
//! ([`ObserverKind::Auto`](crate::observer::ObserverKind::Auto)): the one that loses less at the model's outputs.
//!
//! A range for the least error of a tensor drops its largest values. They are few, and sometimes are what decides: of
//! torchvision's residual networks that costs 4 to 9 dB. In other networks one value in a million takes the steps of all
//! others. The outputs tell which.

use super::watched_in;
use crate::error::Result;
use crate::ir::{FORWARD, IValue, Module, Tensor};
use crate::measure::Comparison;
use crate::observer::{Histogram, ObserverKind};
use crate::replay::{samples_in, trial_copy};
use crate::watch::step;

/// What is tried. All that was seen is the safest for other data, so that another has to be better by [`LEAD`].
const CHOICES: [ObserverKind; 3] = [ObserverKind::MinMax, ObserverKind::Histogram, ObserverKind::SquaredError];

/// In dB, at the outputs.
const LEAD: f64 = 0.5;

/// Batches are run until this many samples were.
const SAMPLES: usize = 64;

/// The observers of a module that leave the choice.
fn undecided(module: &Module) -> Vec<Module> {
    module.modules().into_iter().map(|(_, observer)| observer).filter(is_undecided).collect()
}

fn is_undecided(observer: &Module) -> bool {
    matches!(observer.attribute("search"), Ok(IValue::Str(name)) if name == ObserverKind::Auto.name())
}

/// Whether an observer of the module leaves the choice.
pub(crate) fn is_open(module: &Module) -> bool {
    !undecided(module).is_empty()
}

/// Has the observers that leave the choice take this range. Where few values of the model's input were seen, it takes all of
/// them and some room ([`Histogram::range_with_room`]): what a narrower range gains on so few is chance.
///
/// # Errors
/// Where libtorch refuses.
pub(crate) fn decide(module: &Module, choice: ObserverKind) -> Result<()> {
    let search = |observer: &Module, name: &str| observer.set_attribute("search", &name.into());
    let inputs = undecided_inputs(module)?;
    for observer in undecided(module) {
        search(&observer, choice.name())?;
    }
    for observer in inputs {
        let counts = observer.attribute("histogram")?.as_tensor().map(Tensor::to_f32_vec).transpose()?;
        let seen: f64 = counts.iter().flatten().map(|count| f64::from(*count)).sum();
        if seen < Histogram::ENOUGH {
            search(&observer, Histogram::WITH_ROOM)?;
        }
    }
    Ok(())
}

/// Those of [`undecided`] that see what the model is given.
fn undecided_inputs(module: &Module) -> Result<Vec<Module>> {
    let graph = module.graph(FORWARD)?;
    let all = watched_in(module, &graph).into_iter().filter(|watched| watched.key.starts_with("input:"));
    Ok(all.map(|watched| watched.observer).filter(is_undecided).collect())
}

/// What loses least at the outputs on `batches` of the calibrated module `observed`: `float` makes the same in float, `int8`
/// the INT8 form, and may change what it is given. `None` where no observer leaves the choice, there is no data, or
/// the outputs cannot be compared.
///
/// # Errors
/// Where an operator fails, or `int8` does.
pub(crate) fn choose(
    float: impl FnOnce() -> Result<Module>,
    observed: &Module,
    batches: &[Vec<IValue>],
    int8: impl Fn(&Module) -> Result<Module>,
) -> Result<Option<ObserverKind>> {
    if batches.is_empty() || !is_open(observed) {
        return Ok(None);
    }
    let each = batches.iter().map(|batch| samples_in(batch)).max().unwrap_or(1).max(1);
    let wanted = SAMPLES.div_ceil(each);
    let chosen: Vec<_> = batches.iter().step_by(batches.len().div_ceil(wanted)).collect();
    let total = chosen.len() * (1 + CHOICES.len());
    let mut done = 0;
    let mut outputs = |module: &Module| -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for batch in &chosen {
            step("choosing ranges", done, total)?;
            done += 1;
            let values = module.call_on_copies(FORWARD, batch)?;
            let parts = values.tensors().iter().map(|tensor| tensor.to_f32_vec()).collect::<Result<Vec<_>>>()?;
            all.push(parts.concat());
        }
        Ok(all)
    };
    let float = outputs(&float()?)?;
    let mut best = None;
    for choice in CHOICES {
        let copy = trial_copy(observed, FORWARD)?;
        decide(&copy, choice)?;
        let mut loss = Comparison::default();
        for (float, int8) in std::iter::zip(&float, outputs(&int8(&copy)?)?) {
            if float.is_empty() || float.len() != int8.len() {
                return Ok(None);
            }
            loss.add(float, &int8, 1);
        }
        tracing::debug!(
            "range {} comes to {:.2} dB on the samples that choose the ranges",
            choice.name(),
            loss.sqnr_db()
        );
        let lead = if best.is_some() { LEAD } else { 0.0 };
        if best.is_none_or(|(most, _)| loss.sqnr_db() > most + lead) {
            best = Some((loss.sqnr_db(), choice));
        }
    }
    Ok(best.map(|(_, choice)| choice))
}
