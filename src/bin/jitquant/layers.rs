//! The layers of a float and an INT8 model side by side: for `compare --layers` and `report`.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use jitquant::analysis::{
    FloatNorm, Histogram, LayerComparison, LayerFigures, LayerTime, OutlineNode, OutputRange, WeightFigures,
};
use jitquant::ir::Module;
use serde::Serialize;

use crate::feed::Feed;
use crate::output;

/// One layer's figures. What is infinite (nothing differs) is `null` in JSON.
#[derive(Serialize)]
pub struct LayerRow {
    /// Its place in the order of execution, from 1.
    pub position: usize,
    pub path: String,
    pub operator: String,
    pub int8_operator: String,
    pub source: String,
    pub quantized: bool,
    /// SQNR of its output, the errors of the layers before it included.
    pub sqnr_db: f64,
    pub cosine: f64,
    /// The float output's smallest and largest value.
    pub min: f32,
    pub max: f32,
    pub clipped_share: f64,
    pub range: Option<OutputRange>,
    /// Bytes of the weight's elements in float, and in the INT8 model.
    pub weight_bytes: Option<(u64, u64)>,
    /// Seconds for one batch, where layers were timed.
    pub time: Option<LayerTime>,
    pub weight: Option<WeightFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

/// The layers compared.
#[derive(Serialize)]
pub struct Layers {
    pub layers: Vec<LayerRow>,
    /// Layers of the INT8 model that could not be compared, and why.
    pub not_compared: Vec<String>,
    /// The float model's layers and what joins them; `layer` counts the layers above from 0.
    pub graph: Vec<OutlineNode>,
    /// Norms that the INT8 model computes in float.
    pub float_norms: Vec<FloatNorm>,
}

/// Runs both models on all of the data and compares their layers.
pub fn compare(float: &Module, int8: &Module, feed: &Feed, batch_size: NonZeroUsize, timed: bool) -> Result<Layers> {
    let mut comparison = LayerComparison::new(float, int8)?;
    let bar = output::progress(feed.len(), "layers");
    let (mut done, mut times) = (0, Vec::new());
    for batch in feed.batches(batch_size) {
        let (samples, inputs) = batch?;
        comparison.add(&inputs).with_context(|| feed.refusal(done, &inputs))?;
        if timed && done == 0 {
            times = comparison.times(&inputs)?;
        }
        done += samples;
        bar.inc(samples as u64);
    }
    bar.finish_and_clear();
    let time = |index: usize| times.get(index).copied().flatten();
    let layers = comparison.layers().iter().enumerate();
    Ok(Layers {
        layers: layers.map(|(index, figures)| LayerRow::new(index + 1, figures, time(index))).collect(),
        not_compared: comparison.unmatched().to_vec(),
        graph: comparison.outline().to_vec(),
        float_norms: comparison.float_norms().to_vec(),
    })
}

impl LayerRow {
    fn new(position: usize, figures: &LayerFigures, time: Option<LayerTime>) -> Self {
        let output = &figures.output;
        Self {
            position,
            path: figures.path.clone(),
            operator: figures.operator.clone(),
            int8_operator: figures.int8_operator.clone(),
            source: figures.source.clone(),
            quantized: figures.quantized,
            sqnr_db: output.sqnr_db(),
            cosine: output.cosine(),
            min: output.min,
            max: output.max,
            clipped_share: output.clipped_share(),
            range: figures.range,
            weight_bytes: figures.weight_bytes,
            time,
            weight: figures.weight.clone(),
            histogram: output.histogram.clone(),
        }
    }

    /// Its path, or what it is and where, for models that have no paths.
    pub fn name(&self) -> String {
        match self.path.is_empty() {
            true => format!("{} {}", self.operator, self.source).trim_end().to_owned(),
            false => self.path.clone(),
        }
    }
}

impl Layers {
    /// Keeps the `count` layers with the lowest SQNR, the worst first.
    pub fn keep_worst(&mut self, count: usize) {
        self.layers.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        self.layers.truncate(count);
    }

    pub fn print(&self) {
        let mut table = output::table(&[
            "layer",
            "#",
            "INT8 operator",
            "SQNR dB",
            "cosine",
            "float min … max",
            "INT8 range",
            "zero point",
            "clipped",
            "weight dB",
        ]);
        for layer in &self.layers {
            let range = layer.range.map(|range| format!("{:.3} … {:.3}", range.min(), range.max()));
            table.add_row([
                layer.name(),
                layer.position.to_string(),
                match layer.quantized {
                    // The table is narrow, and most of them are.
                    true => layer.int8_operator.trim_start_matches("quantized::").to_owned(),
                    false => format!("{} (float)", layer.operator),
                },
                format!("{:.1}", layer.sqnr_db),
                format!("{:.5}", layer.cosine),
                format!("{:.3} … {:.3}", layer.min, layer.max),
                range.unwrap_or_default(),
                layer.range.map(|range| range.zero_point.to_string()).unwrap_or_default(),
                layer.range.map(|_| format!("{:.2} %", layer.clipped_share * 100.0)).unwrap_or_default(),
                layer.weight.as_ref().map(|weight| format!("{:.1}", weight.sqnr_db)).unwrap_or_default(),
            ]);
        }
        output::align_numbers(&mut table);
        println!("{table}");
        for why in &self.not_compared {
            println!("not compared: {why}");
        }
    }
}
