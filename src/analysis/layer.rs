//! The figures of one layer.

use serde::Serialize;

/// What became of one layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerFigures {
    /// The path of its module in the float model; empty where the model does not tell.
    pub path: String,
    /// What it does, e.g. `conv2d`.
    pub operator: String,
    /// The operator that the INT8 model calls for it, e.g. `quantized::conv2d_relu`.
    pub int8_operator: String,
    /// Its place in the float model's TorchScript source.
    pub source: String,
    /// Whether it runs in INT8.
    pub quantized: bool,
    /// What the INT8 output can hold; `None` where the output is float (dynamic layers, and those left in float).
    pub range: Option<OutputRange>,
    /// Bytes of its weight's elements in float and in the INT8 model; scales and biases are not counted. `None` where the
    /// weight cannot be read.
    pub weight_bytes: Option<(u64, u64)>,
    /// Its weight; `None` where the weight cannot be read.
    pub weight: Option<WeightFigures>,
    /// Its output, the errors of the layers before it included.
    pub output: OutputFigures,
}

/// A norm that the INT8 model computes in float.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FloatNorm {
    /// The path of its module in the float model; empty where the model does not tell.
    pub path: String,
    /// Which norm, e.g. `layer_norm`.
    pub operator: String,
    /// Its place in the TorchScript source.
    pub source: String,
}

/// The u8 grid of an output: `x = scale (q - zero_point)`, q from 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OutputRange {
    /// The step.
    pub scale: f64,
    /// The integer that stands for 0.
    pub zero_point: i64,
}

impl OutputRange {
    /// The smallest value.
    pub fn min(&self) -> f64 {
        -(self.zero_point as f64) * self.scale
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        (255 - self.zero_point) as f64 * self.scale
    }
}

/// A weight before and after rounding.
#[derive(Clone, Debug, Serialize)]
pub struct WeightFigures {
    /// Its sizes.
    pub shape: Vec<i64>,
    /// Signal to rounding noise in dB; infinite (`null` in JSON) where nothing is lost.
    pub sqnr_db: f64,
    /// Each output channel: along the first dimension, of transposed convolutions input channels.
    pub channels: Vec<Channel>,
}

/// A channel of a weight.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Channel {
    /// Its largest absolute value in float.
    pub largest: f32,
    /// Signal to rounding noise in dB.
    pub sqnr_db: f64,
}

/// A layer's output in both models: sums over all batches.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OutputFigures {
    #[serde(skip)]
    signal: f64,
    #[serde(skip)]
    noise: f64,
    #[serde(skip)]
    dot: f64,
    #[serde(skip)]
    other: f64,
    /// The smallest value in float.
    pub min: f32,
    /// The largest value in float.
    pub max: f32,
    /// Values taken in.
    pub count: usize,
    /// Values of the float output outside of the INT8 range.
    pub clipped: usize,
    /// How the values are spread, of the bins of the first batch.
    pub histogram: Option<Histogram>,
}

/// Counts of values in bins of equal width; what lies outside counts to the outermost bins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Where the first bin begins.
    pub min: f64,
    /// Where the last bin ends.
    pub max: f64,
    /// The float model's values.
    pub float: Vec<u64>,
    /// The INT8 model's.
    pub int8: Vec<u64>,
}

const BINS: usize = 64;

impl Histogram {
    fn over(values: &[f32], range: Option<&OutputRange>) -> Self {
        let finite = values.iter().copied().filter(|value| value.is_finite());
        let (low, high) = finite.fold((f32::MAX, f32::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (mut min, mut max) = (f64::from(low), f64::from(high));
        if let Some(range) = range {
            (min, max) = (min.min(range.min()), max.max(range.max()));
        }
        if min >= max {
            (min, max) = (min.min(0.0) - 0.5, min.min(0.0) + 0.5);
        }
        Self { min, max, float: vec![0; BINS], int8: vec![0; BINS] }
    }

    fn bin(&self, value: f32) -> usize {
        // A cast of NaN or of what lies below gives bin 0.
        let place = (f64::from(value) - self.min) / (self.max - self.min) * BINS as f64;
        (place as usize).min(BINS - 1)
    }
}

impl OutputFigures {
    pub(super) fn add(&mut self, float: &[f32], int8: &[f32], range: Option<&OutputRange>) {
        if self.count == 0 && !float.is_empty() {
            (self.min, self.max) = (f32::MAX, f32::MIN);
            self.histogram = Some(Histogram::over(float, range));
        }
        // Half a step outside of the range is still rounding.
        let bounds = range.map(|range| (range.min() - range.scale / 2.0, range.max() + range.scale / 2.0));
        for (&a, &b) in float.iter().zip(int8) {
            let (x, y) = (f64::from(a), f64::from(b));
            self.signal += x * x;
            self.other += y * y;
            self.dot += x * y;
            self.noise += (x - y) * (x - y);
            self.min = self.min.min(a);
            self.max = self.max.max(a);
            self.clipped += usize::from(bounds.is_some_and(|(min, max)| x < min || x > max));
            if let Some(histogram) = &mut self.histogram {
                let bins = (histogram.bin(a), histogram.bin(b));
                histogram.float[bins.0] += 1;
                histogram.int8[bins.1] += 1;
            }
        }
        self.count += float.len();
    }

    /// Signal to quantization noise in dB: `10 log10(sum a^2 / sum (a - b)^2)`; infinite where nothing differs.
    pub fn sqnr_db(&self) -> f64 {
        sqnr_db(self.signal, self.noise)
    }

    /// The cosine of the angle between both outputs.
    pub fn cosine(&self) -> f64 {
        if self.noise == 0.0 { 1.0 } else { self.dot / (self.signal * self.other).sqrt().max(f64::MIN_POSITIVE) }
    }

    /// The share of the float output's values that the INT8 range cuts off.
    pub fn clipped_share(&self) -> f64 {
        self.clipped as f64 / self.count.max(1) as f64
    }
}

pub(super) fn sqnr_db(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

impl WeightFigures {
    pub(super) fn new(shape: Vec<i64>, float: &[f32], int8: &[f32]) -> Self {
        let sums = |float: &[f32], int8: &[f32]| {
            float.iter().zip(int8).fold((0.0, 0.0), |(signal, noise), (&a, &b)| {
                let (a, b) = (f64::from(a), f64::from(b));
                (signal + a * a, noise + (a - b) * (a - b))
            })
        };
        let width = (float.len() / shape.first().map_or(1, |&n| n.max(1) as usize)).max(1);
        let channel = |(float, int8): (&[f32], &[f32])| {
            let (signal, noise) = sums(float, int8);
            let largest = float.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            Channel { largest, sqnr_db: sqnr_db(signal, noise) }
        };
        let (signal, noise) = sums(float, int8);
        let channels = float.chunks(width).zip(int8.chunks(width)).map(channel).collect();
        Self { shape, sqnr_db: sqnr_db(signal, noise), channels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_known_output() {
        let range = OutputRange { scale: 0.01, zero_point: 55 };
        assert!((range.min() + 0.55).abs() < 1e-12 && (range.max() - 2.0).abs() < 1e-12);
        let mut output = OutputFigures::default();
        output.add(&[3.0, 1.0, 0.0, -0.552], &[2.0, 1.0, 0.0, -0.55], Some(&range));
        assert_eq!((output.clipped, output.count, output.min, output.max), (1, 4, -0.552, 3.0));
        assert!((output.sqnr_db() - 10.0 * (10.304704f64 / 1.000004).log10()).abs() < 1e-4);
        let histogram = output.histogram.unwrap();
        assert_eq!((histogram.float.iter().sum::<u64>(), histogram.int8.iter().sum::<u64>()), (4, 4));
        assert_eq!((histogram.float[BINS - 1], histogram.int8[BINS - 1]), (1, 0));
    }

    #[test]
    fn a_weight_channel_by_channel() {
        let weight = WeightFigures::new(vec![2, 2], &[1.0, -2.0, 0.5, 0.0], &[1.0, -1.5, 0.5, 0.0]);
        assert_eq!(weight.channels.len(), 2);
        assert_eq!((weight.channels[0].largest, weight.channels[1].sqnr_db), (2.0, f64::INFINITY));
        assert!((weight.channels[0].sqnr_db - 10.0 * 20f64.log10()).abs() < 1e-9);
    }
}
