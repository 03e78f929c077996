//! Training on many processes: each has a copy of the module, takes gradients of its own samples, and all go the same step.

use super::QatModule;
use super::operators::bridge as ffi;
use crate::distributed::Group;
use crate::error::{Error, Result};
use crate::ir::Tensor;

impl QatModule {
    /// Makes the gradient of each parameter the mean of those of all processes, in which each counts by its `samples` (0 where
    /// it had none this time): between `backward` and the optimizer's step. Every process then has the same bits, so the
    /// copies stay equal where they began so.
    ///
    /// Where each process's loss is a mean over its samples, the result is the gradient of the mean over all samples.
    ///
    /// # Errors
    /// Where no process has samples, another has ended or failed (the message names it), or trains another model.
    pub fn average_gradients(&self, group: &Group, samples: usize) -> Result<()> {
        let parameters = self.parameters()?;
        let weight = samples as f32;
        let mut values = Vec::new();
        // How many samples there were, and how many processes have a gradient of each parameter.
        let mut counts = vec![samples as f64];
        for (_, parameter) in &parameters {
            let gradient = Tensor(ffi::tensor_gradient(&parameter.0)?);
            let has_gradient = gradient.is_defined() && samples > 0;
            counts.push(f64::from(u8::from(has_gradient)));
            match has_gradient {
                true => values.extend(gradient.to_f32_vec()?.into_iter().map(|value| value * weight)),
                false => values.extend(std::iter::repeat_n(0.0, parameter.shape().iter().product::<i64>() as usize)),
            }
        }
        group.all_reduce(&mut counts)?;
        group.all_reduce(&mut values)?;
        if counts[0] == 0.0 {
            return Err(Error::invalid("no process has samples to average gradients of"));
        }
        let share = 1.0 / counts[0] as f32;
        values.iter_mut().for_each(|value| *value *= share);
        let mut rest = &values[..];
        for ((_, parameter), count) in parameters.iter().zip(&counts[1..]) {
            let shape = parameter.shape();
            let (gradient, after) = rest.split_at(shape.iter().product::<i64>() as usize);
            rest = after;
            if *count > 0.0 {
                ffi::tensor_set_gradient(&parameter.0, &Tensor::from_slice(gradient, &shape)?.0)?;
            }
        }
        Ok(())
    }
}
