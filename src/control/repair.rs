//! An INT8 model that does not fit the float one, made again without the layers where that begins.
//!
//! An exception, another structure or NaN comes from single layers: the first layer of which the model does not fit is
//! found by bisection (the layers up to one in INT8, all later ones in float), stays in float, and the search goes on.
//! Noise comes from all layers: [`tune`] finds the fewest that have to stay in float.

use std::collections::BTreeSet;
use std::time::Duration;

use super::variants::{Plan, Variants};
use super::{Budget, Clock, Data, Goal, Ranges, tune};
use crate::check::{Fit, Misfit, Reference};
use crate::error::{Error, Result};
use crate::ir::{IValue, Module};
use crate::pass::Layer;
use crate::quantizer::{Converted, Quantizer};

/// Layers that are left in float one by one at most.
const MOST_CULPRITS: usize = 8;
/// How long [`tune`] may look.
const TUNING: Duration = Duration::from_secs(180);
/// Above the least that is asked, in dB: outputs that are measured together hide one that is worse.
const MARGIN_DB: f64 = 1.0;

/// A model that fits.
pub(crate) struct Repaired {
    pub converted: Converted,
    /// What the check measured, and the module that it read back; `None` where there is no data to check with.
    pub checked: Option<(Fit, Module)>,
    /// The layers left in float for it, with why.
    pub left_in_float: Vec<String>,
}

/// What a repair works with.
pub(crate) struct Patient<'a> {
    pub quantizer: &'a Quantizer,
    pub float: &'a Module,
    /// Batches that calibrate what was not observed yet.
    pub batches: &'a [Vec<IValue>],
    /// What was observed.
    pub ranges: Ranges,
    /// The float model's outputs; `None` where there is no data.
    pub reference: Option<&'a Reference<'a>>,
    /// The least SQNR of an output.
    pub least_db: f64,
}

impl Patient<'_> {
    /// An INT8 model that fits, where one can be found.
    ///
    /// # Errors
    /// Where none is found: how the model does not fit, from which layer on, and what can be done. [`Error::Cancelled`]
    /// where the caller's watch ends it.
    pub fn repair(&self, misfit: &Misfit) -> Result<Repaired> {
        match misfit {
            Misfit::Noisy { .. } => self.tuned(misfit),
            _ => self.without_culprits(misfit),
        }
    }

    fn data(&self) -> Data {
        Data { calibration: self.batches.to_vec(), ..Data::default() }
    }

    fn without_culprits(&self, first: &Misfit) -> Result<Repaired> {
        let data = self.data();
        let mut variants = Variants::open(self.quantizer, self.float, &data, Some(&self.ranges), &mut |_| {})?;
        let layers = variants.layers()?;
        let mut misfit = first.clone();
        let mut culprits: BTreeSet<usize> = BTreeSet::new();
        let mut left = Vec::new();
        while culprits.len() < MOST_CULPRITS && culprits.len() + 1 < layers.len() {
            let (number, layer) = self.first_culprit(&mut variants, &layers, &culprits)?;
            let reason = format!("in INT8 it breaks the model: {misfit}");
            tracing::info!("{} stays in float: {reason}", words(layer));
            left.push(format!("{}: {reason}", words(layer)));
            variants.reasons.insert(number, reason);
            culprits.insert(number);
            match self.tried(&mut variants, &Plan::default().with_float(culprits.iter().copied()))? {
                Ok((converted, checked)) => {
                    // The methods that were asked for, where they keep what was found.
                    let methods = Some(self.quantizer.accuracy_methods().clone());
                    let plan = Plan { methods, ..Plan::default().with_float(culprits.iter().copied()) };
                    let (converted, checked) = self.tried(&mut variants, &plan)?.unwrap_or((converted, checked));
                    return Ok(Repaired { converted, checked, left_in_float: left });
                }
                Err(next) => misfit = next,
            }
        }
        Err(self.refusal(first, left.first().map(String::as_str)))
    }

    /// The first layer of which the model does not fit, with all later ones in float.
    fn first_culprit<'l>(
        &self,
        variants: &mut Variants<'_>,
        layers: &'l [(usize, Layer)],
        known: &BTreeSet<usize>,
    ) -> Result<(usize, &'l Layer)> {
        let candidates: Vec<&(usize, Layer)> = layers.iter().filter(|(number, _)| !known.contains(number)).collect();
        let (mut good, mut bad) = (0, candidates.len());
        while bad - good > 1 {
            let middle = good.midpoint(bad);
            let later = candidates[middle..].iter().map(|(number, _)| *number);
            let plan = Plan::default().with_float(known.iter().copied().chain(later));
            match self.tried(variants, &plan)? {
                Ok(_) => good = middle,
                Err(_) => bad = middle,
            }
        }
        let (number, layer) = candidates[bad - 1];
        Ok((*number, layer))
    }

    /// The model of a plan and its check, or how it does not fit.
    #[allow(clippy::type_complexity)]
    fn tried(
        &self,
        variants: &mut Variants<'_>,
        plan: &Plan,
    ) -> Result<std::result::Result<(Converted, Option<(Fit, Module)>), Misfit>> {
        let converted = match variants.convert(plan, Clock::endless()) {
            Ok(converted) => converted,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => return Ok(Err(Misfit::Fails(error.to_string()))),
        };
        let Some(reference) = self.reference else { return Ok(Ok((converted, None))) };
        Ok(reference.compare(&converted.module)?.map(|checked| (converted, Some(checked))))
    }

    fn tuned(&self, misfit: &Misfit) -> Result<Repaired> {
        let Some(reference) = self.reference else { return Err(self.refusal(misfit, None)) };
        let data = Data { evaluation: reference.batches().to_vec(), ..self.data() };
        let goal = Goal { min_sqnr_db: Some(self.least_db + MARGIN_DB), ..Goal::default() };
        let budget = Budget { time: TUNING, state: None, ranges: Some(self.ranges.clone()) };
        let outcome = match tune(self.quantizer, self.float, &data, &goal, &budget, &mut |_| {}) {
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            outcome => outcome?,
        };
        let left: Vec<String> = outcome
            .float_layers
            .iter()
            .map(|layer| format!("{}: it loses too much in INT8", place(&layer.path, &layer.operator, &layer.source)))
            .collect();
        let worst = left.first().or(None).cloned();
        match reference.compare(&outcome.converted.module)? {
            Ok(checked) => Ok(Repaired { converted: outcome.converted, checked: Some(checked), left_in_float: left }),
            Err(misfit) => Err(self.refusal(&misfit, worst.as_deref())),
        }
    }

    fn refusal(&self, misfit: &Misfit, place: Option<&str>) -> Error {
        let begins = place.map_or(String::new(), |place| format!(" It begins at {place}."));
        Error::invalid(format!(
            "{misfit}.{begins} Leaving layers in float did not help, and no model was made. What can be done: other or \
             more calibration data, more of the model in float (--skip PATH, `Quantizer::skip`), or the INT8 model as it is, \
             unchecked (--no-check, `Quantizer::check(false)`)"
        ))
    }
}

fn words(layer: &Layer) -> String {
    place(&layer.path, layer.operator, &layer.source)
}

/// `layer 'a.b' (conv2d, net.py:12)`.
fn place(path: &str, operator: &str, source: &str) -> String {
    let source = if source.is_empty() { String::new() } else { format!(", {source}") };
    match path {
        "" => format!("{operator}{source}"),
        path => format!("layer '{path}' ({operator}{source})"),
    }
}
