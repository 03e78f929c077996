//! What training has come to: all that a checkpoint holds.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use jitquant::qat::QatModule;
use tch::{Kind, Tensor, no_grad};

/// The decay of Adam's averages of the gradient and of its square.
const BETAS: (f64, f64) = (0.9, 0.999);

/// What a run has to have in common with the one whose checkpoint it goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub steps: usize,
    /// Of all processes.
    pub samples_of_a_step: usize,
    pub samples: usize,
    pub with_labels: bool,
    pub plain: bool,
    /// How many tensors on the way are targets.
    pub on_the_way: usize,
}

impl Plan {
    fn numbers(self) -> [f64; 6] {
        let number = |truth: bool| f64::from(u8::from(truth));
        let (steps, size, samples) = (self.steps as f64, self.samples_of_a_step as f64, self.samples as f64);
        [steps, size, samples, number(self.with_labels), number(self.plain), self.on_the_way as f64]
    }
}

/// What a parameter that is not quantized moves by, in parts of its mean size, where a weight moves by its step.
const PART: f64 = 1.0 / 127.0;

/// What is trained, Adam's averages, and the best parameters so far.
pub struct State {
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    best: Vec<Tensor>,
    /// What each parameter's moves are measured in: a weight's quantization steps, since what turns is the rounding.
    units: Vec<Tensor>,
    pub step: usize,
    pub best_loss: f64,
    pub looks_since_best: usize,
}

impl State {
    pub fn new(qat: &QatModule) -> Result<Self> {
        let parameters = qat.parameters()?;
        let tensors: Vec<Tensor> = parameters.iter().map(|(_, tensor)| Tensor::from(tensor)).collect();
        let steps = qat.weight_steps()?;
        let unit = |(name, parameter): (&String, &Tensor)| match steps.get(name) {
            Some(step) => {
                let mut shape = vec![1; parameter.dim()];
                shape[0] = -1;
                Tensor::from(step).reshape(shape)
            }
            None => parameter.detach().abs().mean(Kind::Float) * PART,
        };
        let names: Vec<String> = parameters.into_iter().map(|(name, _)| name).collect();
        let zeros = || tensors.iter().map(|tensor| tensor.detach().zeros_like()).collect();
        Ok(Self {
            units: names.iter().zip(&tensors).map(unit).collect(),
            names,
            first: zeros(),
            second: zeros(),
            best: tensors.iter().map(|tensor| tensor.detach().copy()).collect(),
            parameters: tensors,
            step: 0,
            best_loss: f64::INFINITY,
            looks_since_best: 0,
        })
    }

    /// One step of Adam down the gradients, by at most `rate` units or little more.
    pub fn descend(&mut self, rate: f64) {
        self.step += 1;
        let (b1, b2) = BETAS;
        let (c1, c2) = (1.0 - b1.powi(self.step as i32), 1.0 - b2.powi(self.step as i32));
        no_grad(|| {
            for (index, parameter) in self.parameters.iter_mut().enumerate() {
                let gradient = parameter.grad();
                if !gradient.defined() {
                    continue;
                }
                self.first[index] = &self.first[index] * b1 + &gradient * (1.0 - b1);
                self.second[index] = &self.second[index] * b2 + gradient.square() * (1.0 - b2);
                let change =
                    (&self.first[index] / c1) / ((&self.second[index] / c2).sqrt() + 1e-12) * rate * &self.units[index];
                let _ = parameter.g_sub_(&change);
                parameter.zero_grad();
            }
        });
    }

    /// Keeps the parameters where the held-out loss is the least so far; what training begins with unless another is better
    /// by more than the share `chance` of its loss.
    pub fn keep_best(&mut self, loss: f64, chance: f64) {
        self.looks_since_best += 1;
        let is_start = self.best_loss.is_infinite();
        if loss < self.best_loss {
            (self.best_loss, self.looks_since_best) = (if is_start { loss * (1.0 - chance) } else { loss }, 0);
            self.best = self.parameters.iter().map(|tensor| tensor.detach().copy()).collect();
        }
    }

    /// Goes back to the best parameters.
    pub fn take_best(&mut self) {
        let best = std::mem::take(&mut self.best);
        self.set_parameters(&best);
    }

    fn set_parameters(&mut self, values: &[Tensor]) {
        no_grad(|| self.parameters.iter_mut().zip(values).for_each(|(parameter, value)| parameter.copy_(value)));
    }

    /// Written beside and renamed: a kill leaves the old checkpoint or the new one.
    pub fn save(&self, plan: Plan, path: &Path) -> Result<()> {
        let mut named = Vec::new();
        for (kind, tensors) in
            [("now", &self.parameters), ("first", &self.first), ("second", &self.second), ("best", &self.best)]
        {
            named.extend(self.names.iter().zip(tensors).map(|(name, t)| (format!("{kind}/{name}"), t.detach())));
        }
        let numbers = [self.step as f64, self.best_loss, self.looks_since_best as f64];
        named.push(("numbers".to_owned(), Tensor::from_slice(&numbers)));
        named.push(("plan".to_owned(), Tensor::from_slice(&plan.numbers())));
        let write = |part: &Path| {
            Tensor::write_safetensors(&named, part)
                .map_err(|e| jitquant::Error::Torch(format!("{}: {e}", path.display())))
        };
        Ok(jitquant::write_atomically(path, write)?)
    }

    /// Goes on from the checkpoint in `file`, which the user knows as `path`.
    pub fn load(&mut self, plan: Plan, file: &Path, path: &Path) -> Result<()> {
        let what = || format!("{} is no checkpoint of this model: delete it", path.display());
        let named = Tensor::read_safetensors(file).with_context(what)?;
        let find = |name: &str| named.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
        let read = |kind: &str| -> Result<Vec<Tensor>> {
            let mut found = Vec::new();
            for (name, parameter) in self.names.iter().zip(&self.parameters) {
                match find(&format!("{kind}/{name}")) {
                    Some(tensor) if tensor.size() == parameter.size() => found.push(tensor.copy()),
                    _ => bail!("{}", what()),
                }
            }
            Ok(found)
        };
        let (now, first, second, best) = (read("now")?, read("first")?, read("second")?, read("best")?);
        let (numbers, theirs) = (find("numbers").with_context(what)?, find("plan").with_context(what)?);
        let theirs = Vec::<f64>::try_from(theirs).with_context(what)?;
        ensure!(
            theirs == plan.numbers(),
            "{} is the checkpoint of a run with other options or data (steps, samples of a step, samples, with labels, \
             plain, targets on the way: {theirs:?}, now {:?}): give the same, or delete it",
            path.display(),
            plan.numbers()
        );
        (self.first, self.second, self.best) = (first, second, best);
        self.step = numbers.double_value(&[0]) as usize;
        self.best_loss = numbers.double_value(&[1]);
        self.looks_since_best = numbers.double_value(&[2]) as usize;
        self.set_parameters(&now);
        Ok(())
    }
}
