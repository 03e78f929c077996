//! How close a quantized model's outputs are to the float model's, and how long models take.

#[cfg(feature = "torch")]
use std::time::{Duration, Instant};

/// Sums over pairs of outputs, from which the figures come; sums of two runs add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    signal: f64,
    noise: f64,
    cosine: f64,
    largest: f64,
    samples: usize,
    agreeing: usize,
    classified: usize,
}

impl Comparison {
    /// Takes in the outputs of `samples` samples: both in row-major order, the first dimension counting the samples.
    ///
    /// # Panics
    /// Where the two differ in length, or do not divide into `samples` parts.
    pub fn add(&mut self, reference: &[f32], other: &[f32], samples: usize) {
        assert_eq!(reference.len(), other.len(), "values of the two outputs");
        assert!(samples > 0 && reference.len().is_multiple_of(samples), "outputs of {samples} samples");
        let width = (reference.len() / samples).max(1);
        for (a, b) in reference.chunks(width).zip(other.chunks(width)) {
            let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (f64::from(a), f64::from(b));
                dot += a * b;
                aa += a * a;
                bb += b * b;
                self.noise += (a - b) * (a - b);
                self.largest = self.largest.max((a - b).abs());
            }
            self.signal += aa;
            self.cosine +=
                if aa == 0.0 && bb == 0.0 { 1.0 } else { dot / (aa.sqrt() * bb.sqrt()).max(f64::MIN_POSITIVE) };
        }
        self.samples += samples;
    }

    /// Takes in the class scores of `samples` samples: whether both models put the same class first.
    pub fn add_classes(&mut self, reference: &[f32], other: &[f32], samples: usize) {
        let pairs = top_classes(reference, samples).into_iter().zip(top_classes(other, samples));
        self.agreeing += pairs.filter(|(a, b)| a == b).count();
        self.classified += samples;
    }

    /// The sum of the squares of the reference.
    pub fn signal(&self) -> f64 {
        self.signal
    }

    /// Signal to quantization noise ratio in dB: `10 log10(sum a^2 / sum (a - b)^2)`. Infinite where nothing differs.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }

    /// Cosine of the angle between a sample's two outputs, mean over the samples.
    pub fn mean_cosine(&self) -> f64 {
        self.cosine / self.samples.max(1) as f64
    }

    /// The largest difference between two values.
    pub fn largest_difference(&self) -> f64 {
        self.largest
    }

    /// The share of samples for which both models put the same class first; `None` where the outputs are no class
    /// scores.
    pub fn top1_agreement(&self) -> Option<f64> {
        (self.classified > 0).then(|| self.agreeing as f64 / self.classified as f64)
    }

    /// How many samples were taken in.
    pub fn samples(&self) -> usize {
        self.samples
    }
}

/// Seconds of each run of `count` contestants: `run` is called for them in turns, so that what else the machine does hits all
/// of them alike, until each ran `least` times and `at_least` has passed. The first `warm_up` rounds are not counted.
///
/// # Errors
/// The first error of `run`.
#[cfg(feature = "torch")]
pub(crate) fn in_turns<E>(
    count: usize,
    warm_up: usize,
    least: usize,
    at_least: Duration,
    mut run: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<f64>>, E> {
    for _ in 0..warm_up {
        (0..count).try_for_each(&mut run)?;
    }
    let (mut times, start) = (vec![Vec::new(); count], Instant::now());
    while times.iter().any(|times| times.len() < least) || start.elapsed() < at_least {
        for (contestant, times) in times.iter_mut().enumerate() {
            let begin = Instant::now();
            run(contestant)?;
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

/// The class with the highest score of each sample, the first where several are equal.
pub fn top_classes(scores: &[f32], samples: usize) -> Vec<usize> {
    let width = scores.len() / samples.max(1);
    let best = |row: &[f32]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
    scores.chunks(width.max(1)).map(best).collect()
}

/// The value below which `share` of `values` lie (nearest rank); 0 where there are none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_known_difference() {
        let mut comparison = Comparison::default();
        comparison.add(&[3.0, 4.0, 0.0, 1.0], &[3.0, 4.5, 0.0, 1.0], 2);
        comparison.add_classes(&[3.0, 4.0, 0.0, 1.0], &[3.0, 4.5, 2.0, 1.0], 2);
        assert!((comparison.sqnr_db() - 10.0 * (26.0f64 / 0.25).log10()).abs() < 1e-12);
        assert_eq!(comparison.largest_difference(), 0.5);
        assert_eq!(comparison.top1_agreement(), Some(0.5));
        let cosine = (9.0 + 18.0) / (5.0 * 29.25f64.sqrt());
        assert!((comparison.mean_cosine() - (cosine + 1.0) / 2.0).abs() < 1e-12);
        assert_eq!(Comparison::default().top1_agreement(), None);
    }

    #[test]
    fn equal_outputs_have_no_noise() {
        let mut comparison = Comparison::default();
        comparison.add(&[0.0, 0.0, 1.0], &[0.0, 0.0, 1.0], 3);
        assert_eq!((comparison.sqnr_db(), comparison.mean_cosine()), (f64::INFINITY, 1.0));
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.95), 3.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(top_classes(&[1.0, 1.0, 0.0, 0.0, 0.0, 2.0], 2), [0, 2]);
    }
}
