//! How close an INT8 model is to the float one, on samples that played no part in calibration.

use serde::{Deserialize, Serialize};

use super::{Clock, Data, Goal};
use crate::error::{Context, Error, Result};
use crate::ir::{FORWARD, IValue, Module, Tensor};
use crate::measure::{Comparison, top_classes};
use crate::replay::samples_of;

/// A model's outputs for a batch as plain numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// All floating-point outputs, one after the other for each of the `rows`.
    pub values: Vec<f32>,
    /// As many as there are samples; 1 where an output does not divide into samples, so that they are compared as a whole.
    pub rows: usize,
    /// The first output, where it has one row of scores for each sample.
    pub scores: Option<Vec<f32>>,
}

impl Outputs {
    /// Reads the floating-point tensors in what a model gave for `samples` samples.
    ///
    /// # Errors
    /// Where there is no tensor in it.
    pub fn of(output: &IValue, samples: usize) -> Result<Self> {
        let tensors = output.tensors();
        let Some(first) = tensors.first() else {
            return Err(Error::invalid(format!("the model returns no tensor but {}", output.kind())));
        };
        let is_scores = first.shape().len() == 2 && first.shape()[0] == samples as i64 && first.shape()[1] > 1;
        let scores = if is_scores { Some(first.to_f32_vec()?) } else { None };
        let parts = tensors.into_iter().map(Tensor::to_f32_vec).collect::<Result<Vec<_>>>()?;
        let rows = if parts.iter().all(|part| part.len().is_multiple_of(samples)) { samples } else { 1 };
        let mut values = Vec::new();
        for row in 0..rows {
            for part in &parts {
                let width = part.len() / rows;
                values.extend_from_slice(&part[row * width..(row + 1) * width]);
            }
        }
        Ok(Self { values, rows, scores })
    }
}

/// How close an INT8 model is to the float one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// On how many samples.
    pub samples: usize,
    /// Signal to quantization noise ratio of the outputs in dB; infinite (`null` in JSON) where nothing differs.
    pub sqnr_db: f64,
    /// The mean cosine between a sample's two outputs.
    pub mean_cosine: f64,
    /// The share of samples for which both put the same class first; `None` where the outputs are no class scores.
    pub agreement: Option<f64>,
    /// The float model's accuracy on the labels.
    pub float_accuracy: Option<f64>,
    /// The INT8 model's.
    pub int8_accuracy: Option<f64>,
}

impl Figures {
    /// How much accuracy is lost, as a share of the samples; negative where some is gained.
    pub fn drop(&self) -> Option<f64> {
        Some(self.float_accuracy? - self.int8_accuracy?)
    }

    /// The noise in parts of the signal.
    pub(super) fn noise(&self) -> f64 {
        10f64.powf(-self.sqnr_db / 10.0)
    }
}

/// How much of the data a model is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The first samples: enough to tell one layer's noise from another's.
    Few,
    /// All.
    All,
}

/// Samples that [`Part::Few`] is made of, at least, where there are as many.
const FEW: usize = 32;

struct Batch<'d> {
    inputs: &'d [IValue],
    samples: usize,
    reference: Outputs,
    labels: Option<&'d [i64]>,
}

/// The evaluation data and the float model's outputs.
pub(super) struct Evaluation<'d> {
    batches: Vec<Batch<'d>>,
}

impl<'d> Evaluation<'d> {
    /// Runs the float model.
    pub fn of(float: &Module, data: &'d Data, mut done: impl FnMut(usize, usize)) -> Result<Self> {
        let mut batches = Vec::new();
        let mut first = 0;
        let total = data.evaluation.iter().map(|inputs| samples_of(inputs)).sum();
        for inputs in &data.evaluation {
            done(first, total);
            let samples = samples_of(inputs);
            let output =
                float.call_on_copies(FORWARD, inputs).context(|| "the float model on evaluation data".into())?;
            let labels = data.labels.as_ref().map(|labels| labels.get(first..first + samples));
            let labels = match labels {
                Some(None) => return Err(Error::invalid("there are fewer labels than evaluation samples")),
                other => other.flatten(),
            };
            batches.push(Batch { inputs, samples, reference: Outputs::of(&output, samples)?, labels });
            first += samples;
        }
        match batches.is_empty() {
            true => Err(Error::invalid("accuracy control needs evaluation data")),
            false => Ok(Self { batches }),
        }
    }

    /// Refuses a goal that these outputs cannot be measured by.
    pub fn check(&self, goal: &Goal) -> Result<()> {
        let first = &self.batches[0];
        if (goal.min_agreement.is_some() || goal.max_drop.is_some()) && first.reference.scores.is_none() {
            return Err(Error::invalid(
                "agreement and accuracy compare class scores, samples x classes, which the model's first output is not: \
                 set a goal for the SQNR",
            ));
        }
        match goal.max_drop.is_some() && first.labels.is_none() {
            true => Err(Error::invalid("a goal for the accuracy needs labels")),
            false => Ok(()),
        }
    }

    pub fn samples(&self) -> usize {
        self.batches.iter().map(|batch| batch.samples).sum()
    }

    /// Measures an INT8 model.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where time runs out.
    pub fn measure(&self, module: &Module, part: Part, clock: &Clock) -> Result<Figures> {
        let mut comparison = Comparison::default();
        let mut correct = (0, 0);
        let mut done = 0;
        for batch in &self.batches {
            if part == Part::Few && done >= FEW {
                break;
            }
            clock.check()?;
            let output = module.call_on_copies(FORWARD, batch.inputs)?;
            let outputs = Outputs::of(&output, batch.samples)?;
            let reference = &batch.reference;
            if outputs.values.len() != reference.values.len() {
                let (one, other) = (reference.values.len(), outputs.values.len());
                return Err(Error::invalid(format!("{one} values in float, {other} in INT8: the models differ")));
            }
            comparison.add(&reference.values, &outputs.values, reference.rows);
            if let (Some(float), Some(int8)) = (&reference.scores, &outputs.scores) {
                comparison.add_classes(float, int8, batch.samples);
                if let Some(labels) = batch.labels {
                    let hits = |scores: &[f32]| {
                        let classes = top_classes(scores, batch.samples).into_iter();
                        classes.zip(labels).filter(|(class, label)| *class as i64 == **label).count()
                    };
                    correct = (correct.0 + hits(float), correct.1 + hits(int8));
                }
            }
            done += batch.samples;
        }
        let agreement = comparison.top1_agreement();
        let share = |count: usize| (count as f64) / (done.max(1) as f64);
        let has_labels = self.batches[0].labels.is_some() && agreement.is_some();
        Ok(Figures {
            samples: done,
            sqnr_db: comparison.sqnr_db(),
            mean_cosine: comparison.mean_cosine(),
            agreement,
            float_accuracy: has_labels.then(|| share(correct.0)),
            int8_accuracy: has_labels.then(|| share(correct.1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outputs_of_two_tensors_are_sorted_by_sample() {
        let tensor = |values: &[f32], shape: &[i64]| IValue::Tensor(Tensor::from_slice(values, shape).unwrap());
        let output = IValue::Tuple(vec![tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2]), tensor(&[5.0, 6.0], &[2])]);
        let outputs = Outputs::of(&output, 2).unwrap();
        assert_eq!(outputs.values, [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
        assert_eq!(outputs.scores.unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert!(Outputs::of(&IValue::Int(1), 2).is_err());
        // Three values of two samples: one output as a whole.
        let joined = Outputs::of(&tensor(&[1.0, 2.0, 3.0], &[3]), 2).unwrap();
        assert_eq!((joined.values.as_slice(), joined.rows), (&[1.0, 2.0, 3.0][..], 1));
    }
}
