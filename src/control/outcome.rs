//! What came of a search, and what each layer has to do with the loss.

use serde::Serialize;

use super::Ranges;
use super::evaluation::Figures;
use super::timing::ModelTimes;
use crate::pass::Layer;
use crate::quantizer::Converted;

/// A layer and its share of the loss.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerShare {
    /// Its number, for [`Quantizer::skip_layer`](crate::Quantizer::skip_layer).
    pub number: usize,
    /// The path of its module.
    pub path: String,
    /// What it does, e.g. `conv2d`.
    pub operator: String,
    /// Its place in the TorchScript source.
    pub source: String,
    /// Which part of the outputs' noise goes where this layer alone is in float, all others in INT8: 0 to 1. `None` where
    /// time ran out before it was measured, or where the goal was reached without.
    pub share: Option<f64>,
    /// The other layers around a tensor that this one gives or takes, and which part of the noise goes where all of them are
    /// in float: a tensor between two layers stays quantized as long as one of them is.
    pub together: Option<(Vec<usize>, f64)>,
}

impl LayerShare {
    pub(super) fn new(number: usize, layer: &Layer) -> Self {
        Self {
            number,
            path: layer.path.clone(),
            operator: layer.operator.to_owned(),
            source: layer.source.clone(),
            share: None,
            together: None,
        }
    }

    /// What it is to blame for: its share, or what it has in the largest of those together.
    pub(super) fn blame(&self) -> f64 {
        let together = self.together.as_ref().map(|(others, share)| share / (others.len() + 1) as f64);
        self.share.unwrap_or(-1.0).max(together.unwrap_or(-1.0))
    }

    pub(super) fn reason(&self) -> String {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        match (self.share, &self.together) {
            (share, Some((others, together))) if *together > share.unwrap_or(0.0) => {
                let others = others.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                format!("for accuracy: {} of the loss go with it and layer {others}", percent(*together))
            }
            (Some(share), _) => format!("for accuracy: {} of the loss go with it", percent(share)),
            _ => "for accuracy".to_owned(),
        }
    }
}

/// Something done for accuracy that costs no speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remedy {
    /// Where: a layer's path, or `the model`.
    pub place: String,
    /// What, e.g. `bias correction`, `range of the input by percentile`.
    pub what: String,
}

/// What came of [`tune`](super::tune).
#[derive(Debug)]
pub struct Outcome {
    /// The model: one that reaches the goal, or else the one that came nearest.
    pub converted: Converted,
    /// Whether it reaches the goal.
    pub reached: bool,
    /// Whether the search ended for want of time; more of it could find a better model.
    pub out_of_time: bool,
    /// How close the model is; one in portable form, where it reaches the goal, as libtorch's own kernels run it.
    pub figures: Figures,
    /// How close a model is that has all layers in INT8 that can be.
    pub all_int8: Figures,
    /// The layers left in float for the goal, the largest share of the loss first.
    pub float_layers: Vec<LayerShare>,
    /// What was done for accuracy besides.
    pub remedies: Vec<Remedy>,
    /// All layers whose share was measured, the largest first; empty where the goal was reached without.
    pub shares: Vec<LayerShare>,
    /// How long the models take for one sample, with each of the kernels that the form runs on.
    pub times: Vec<ModelTimes>,
    /// Models that were made and measured, those of an earlier run not counted.
    pub trials: usize,
    /// What calibration found.
    pub ranges: Ranges,
    /// What did not go, and why.
    pub notes: Vec<String>,
}
