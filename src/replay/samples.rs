//! The calibration batches that are kept to be run again.

use crate::error::Result;
use crate::ir::{IValue, Tensor};

/// Samples that are kept at most where not all are asked for: each layer's results on them are in memory at once.
const MOST_SAMPLES: usize = 128;
/// And bytes.
const MOST_BYTES: usize = 128 << 20;

/// Calibration batches: all, or some that lie evenly among all.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    batches: Vec<Vec<IValue>>,
    seen: usize,
    /// Every which batch is kept.
    every: usize,
}

impl Default for Samples {
    fn default() -> Self {
        Self { batches: Vec::new(), seen: 0, every: 1 }
    }
}

impl Samples {
    /// Keeps the batch.
    pub fn push(&mut self, batch: Vec<IValue>) {
        self.batches.push(batch);
    }

    /// Keeps the batch if its turn comes. Where there are too many, every second one goes, and from then on half as many
    /// come.
    pub fn push_some(&mut self, batch: Vec<IValue>) {
        if self.seen.is_multiple_of(self.every) {
            self.batches.push(batch);
        }
        self.seen += 1;
        while self.batches.len() > 1 && self.is_too_large() {
            let mut number = 0;
            self.batches.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.every *= 2;
        }
    }

    pub fn batches(&self) -> &[Vec<IValue>] {
        &self.batches
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn is_too_large(&self) -> bool {
        let samples: usize = self.batches.iter().map(|batch| samples_in(batch)).sum();
        let tensors = self.batches.iter().flatten().flat_map(IValue::tensors);
        let bytes: usize = tensors.map(crate::ir::Tensor::nbytes).sum();
        samples > MOST_SAMPLES || bytes > MOST_BYTES
    }
}

/// How many samples a batch has: the rows of its first tensor.
pub(crate) fn samples_in(batch: &[IValue]) -> usize {
    let first = batch.iter().flat_map(IValue::tensors).next();
    first.and_then(|tensor| tensor.shape().first().copied()).map_or(1, |rows| rows as usize)
}

/// How many samples a batch has: the first dimension of its first tensor that has dimensions.
pub(crate) fn samples_of(inputs: &[IValue]) -> usize {
    let mut tensors = inputs.iter().flat_map(IValue::tensors);
    tensors.find_map(|tensor| tensor.shape().first().copied()).map_or(1, |size| size.max(1) as usize)
}

/// The first `count` samples of a batch. What does not count samples stays as it is.
pub(crate) fn first_samples(batch: &[IValue], count: usize) -> Result<Vec<IValue>> {
    let samples = samples_of(batch);
    let cut = |tensor: &Tensor| -> Result<IValue> {
        let whole = || IValue::Tensor(tensor.clone());
        let (shape, Some(dtype)) = (tensor.shape(), tensor.dtype()) else { return Ok(whole()) };
        if shape.first() != Some(&(samples as i64)) || samples <= count {
            return Ok(whole());
        }
        let bytes = tensor.raw_bytes()?;
        let shape = [&[count as i64], &shape[1..]].concat();
        Tensor::from_bytes(dtype, &shape, &bytes[..bytes.len() / samples * count]).map(IValue::Tensor)
    };
    batch.iter().map(|value| value.map_tensors(&cut)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;

    #[test]
    fn what_is_kept_lies_evenly_among_all() {
        let mut samples = Samples::default();
        for number in 0..1000 {
            samples.push_some(vec![Tensor::from_slice(&[number as f32; 4], &[4]).unwrap().into()]);
        }
        let kept: Vec<f32> =
            samples.batches().iter().map(|batch| batch[0].tensors()[0].to_f32_vec().unwrap()[0]).collect();
        // Batches of 4: 32 would be 128 samples.
        assert_eq!(kept, (0..32).map(|i| i as f32 * 32.0).collect::<Vec<_>>());
    }
}
