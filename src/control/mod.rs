//! Control over what quantization costs: accuracy, latency, and the time that calibration takes.
//!
//! [`tune`] makes an INT8 model that reaches a goal for its accuracy, [`only_faster`] finds the layers that INT8 slows
//! down on this machine, [`Ranges`] keeps what calibration found. docs/accuracy.md is the guide.
//!
//! ```no_run
//! use jitquant::control::{Budget, Data, Goal, tune};
//! use jitquant::ir::{IValue, Module, Tensor};
//! use jitquant::Quantizer;
//! # fn batches() -> Vec<Vec<IValue>> { Vec::new() }
//!
//! let float = Module::load("model.pt")?;
//! let data = Data::held_out(batches(), None, 4)?; // every fourth batch is measured on, the others calibrate
//! let goal = Goal { min_agreement: Some(0.99), ..Goal::default() };
//! let outcome = tune(&Quantizer::static_ptq(), &float, &data, &goal, &Budget::minutes(10.0), &mut |step| {
//!     println!("{} ({}/{})", step.stage, step.done, step.total);
//! })?;
//! for layer in &outcome.float_layers {
//!     println!("in float: {} ({:?} of the loss)", layer.path, layer.share);
//! }
//! outcome.converted.module.save("model.int8.pt")?;
//! # Ok::<(), jitquant::Error>(())
//! ```

mod convert;
mod cut;
mod evaluation;
mod latency;
mod outcome;
mod profile;
mod ranges;
mod repair;
mod search;
mod shares;
mod state;
mod timing;
mod variants;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use self::evaluation::{Figures, Outputs};
pub use self::latency::{Latency, LayerTimes, only_faster};
pub use self::outcome::{LayerShare, Outcome, Remedy};
pub use self::ranges::Ranges;
pub use self::search::tune;
pub use self::timing::{ModelTimes, Runs};

use crate::error::{Error, Result};
use crate::ir::IValue;

/// The samples that a model is calibrated with, and those that it is measured on.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// Batches of inputs that ranges are found on.
    pub calibration: Vec<Vec<IValue>>,
    /// Batches of inputs that accuracy is measured on.
    pub evaluation: Vec<Vec<IValue>>,
    /// The class of each evaluation sample, where it is known.
    pub labels: Option<Vec<i64>>,
}

impl Data {
    /// Takes every `nth` of the batches to measure on and the others to calibrate; `labels` are those of all samples.
    ///
    /// # Errors
    /// Where there is but one batch, or there are fewer labels than samples.
    pub fn held_out(batches: Vec<Vec<IValue>>, labels: Option<&[i64]>, nth: usize) -> Result<Self> {
        if batches.len() < 2 {
            return Err(Error::invalid(
                "at least two batches of samples are needed, to calibrate with and to measure on",
            ));
        }
        let nth = nth.clamp(2, batches.len());
        let mut data = Self { labels: labels.map(|_| Vec::new()), ..Self::default() };
        let mut first = 0;
        for (index, batch) in batches.into_iter().enumerate() {
            let samples = crate::replay::samples_of(&batch);
            if index % nth != nth - 1 {
                data.calibration.push(batch);
            } else {
                if let (Some(kept), Some(labels)) = (&mut data.labels, labels) {
                    let of_batch = labels.get(first..first + samples);
                    kept.extend(of_batch.ok_or_else(|| Error::invalid("there are fewer labels than samples"))?);
                }
                data.evaluation.push(batch);
            }
            first += samples;
        }
        Ok(data)
    }
}

/// How accurate an INT8 model has to be; all that is given has to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goal {
    /// The least share of samples for which both models put the same class first, e.g. 0.99.
    pub min_agreement: Option<f64>,
    /// The least signal to quantization noise ratio of the outputs, in dB.
    pub min_sqnr_db: Option<f64>,
    /// How much of the accuracy on labels may be lost at most, as a share of the samples, e.g. 0.005.
    pub max_drop: Option<f64>,
}

impl Goal {
    /// Whether `figures` reach it.
    pub fn is_reached(&self, figures: &Figures) -> bool {
        self.shortfall(figures) <= 0.0
    }

    /// How far `figures` are from it, in percentage points and dB added up; 0 where it is reached.
    fn shortfall(&self, figures: &Figures) -> f64 {
        let below = |wanted: Option<f64>, got: Option<f64>, unit: f64| match (wanted, got) {
            // A share of samples is compared as one: 0.94 of 50 samples is 47 of them.
            (Some(wanted), Some(got)) => ((wanted - got) * unit).max(0.0),
            (Some(_), None) => f64::INFINITY,
            (None, _) => 0.0,
        };
        let rounded = |missing: f64| if missing < 1e-9 { 0.0 } else { missing };
        rounded(below(self.min_agreement, figures.agreement, 100.0))
            + rounded(below(self.min_sqnr_db, Some(figures.sqnr_db), 1.0))
            + rounded(below(self.max_drop.map(|drop| -drop), figures.drop().map(|drop| -drop), 100.0))
    }

    fn check(&self) -> Result<()> {
        let is_share = |share: Option<f64>| share.is_none_or(|share| (0.0..=1.0).contains(&share));
        if *self == Self::default() {
            return Err(Error::invalid("a goal is needed: an agreement, an SQNR or a drop of the accuracy"));
        }
        match is_share(self.min_agreement) && is_share(self.max_drop) && self.min_sqnr_db.is_none_or(f64::is_finite) {
            true => Ok(()),
            false => {
                Err(Error::invalid("a goal's agreement and drop are shares from 0 to 1, its SQNR is a number of dB"))
            }
        }
    }
}

/// How long to look, and where to go on from.
#[derive(Clone, Debug)]
pub struct Budget {
    /// The time after which nothing more is tried. Calibration and the first measurement are made in any case.
    pub time: Duration,
    /// A file that keeps what was measured. With the same model, data and options a later run goes on from there, others
    /// begin anew. It is written atomically, and deleted when the goal is reached.
    pub state: Option<PathBuf>,
    /// Ranges found before, for calibration data that need not run again.
    pub ranges: Option<Ranges>,
}

impl Budget {
    /// So many minutes, and no file. At most a year: infinity is one, and what is no number none.
    pub fn minutes(minutes: f64) -> Self {
        const YEAR: f64 = 365.0 * 24.0 * 60.0;
        let minutes = if minutes.is_nan() { 0.0 } else { minutes.clamp(0.0, YEAR) };
        Self { time: Duration::from_secs_f64(minutes * 60.0), state: None, ranges: None }
    }
}

/// How far a long call is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress<'a> {
    /// What is being done.
    pub stage: &'a str,
    /// How much of it is done.
    pub done: usize,
    /// Of how much; 0 where that is not known.
    pub total: usize,
    /// What was found, where something was; worth a line of its own.
    pub found: Option<String>,
}

/// The time that is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    end: Option<Instant>,
}

impl Clock {
    fn endless() -> Self {
        Self { end: None }
    }

    fn until(end: Instant) -> Self {
        Self { end: Some(end) }
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// # Errors
    /// [`Error::Cancelled`] where no time is left.
    fn check(&self) -> Result<()> {
        if self.is_over() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;

    fn figures(sqnr_db: f64, agreement: Option<f64>, accuracy: Option<(f64, f64)>) -> Figures {
        let (float_accuracy, int8_accuracy) = accuracy.unzip();
        Figures { samples: 50, sqnr_db, mean_cosine: 1.0, agreement, float_accuracy, int8_accuracy }
    }

    #[test]
    fn a_goal_is_reached_where_all_of_it_is() {
        let goal = Goal { min_agreement: Some(0.94), min_sqnr_db: Some(20.0), max_drop: None };
        assert!(goal.is_reached(&figures(20.0, Some(47.0 / 50.0), None)));
        assert!(!goal.is_reached(&figures(19.9, Some(1.0), None)));
        assert!(!goal.is_reached(&figures(30.0, Some(0.92), None)));
        assert!(!goal.is_reached(&figures(30.0, None, None)));
        assert!((goal.shortfall(&figures(18.0, Some(0.92), None)) - 4.0).abs() < 1e-9);
        let goal = Goal { max_drop: Some(0.02), ..Goal::default() };
        assert!(goal.is_reached(&figures(0.0, None, Some((0.80, 0.78)))));
        assert!(goal.is_reached(&figures(0.0, None, Some((0.80, 0.90)))));
        assert!(!goal.is_reached(&figures(0.0, None, Some((0.80, 0.76)))));
    }

    #[test]
    fn a_goal_has_to_be_one() {
        assert!(Goal::default().check().is_err());
        assert!(Goal { min_agreement: Some(99.0), ..Goal::default() }.check().is_err());
        assert!(Goal { min_agreement: Some(0.99), ..Goal::default() }.check().is_ok());
    }

    #[test]
    fn every_nth_batch_is_held_out_with_its_labels() {
        let batch = |first: f32| vec![IValue::Tensor(Tensor::from_slice(&[first, first + 1.0], &[2, 1]).unwrap())];
        let batches: Vec<_> = (0..5).map(|index| batch(index as f32 * 2.0)).collect();
        let data = Data::held_out(batches.clone(), Some(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), 2).unwrap();
        assert_eq!((data.calibration.len(), data.evaluation.len()), (3, 2));
        assert_eq!(data.labels.unwrap(), [2, 3, 6, 7]);
        assert!(Data::held_out(batches[..1].to_vec(), None, 4).is_err());
        assert_eq!(Data::held_out(batches[..2].to_vec(), None, 4).unwrap().evaluation.len(), 1);
    }
}
