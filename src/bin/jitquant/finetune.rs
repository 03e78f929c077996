//! `jitquant quantize --finetune`: the model is trained for a few hundred steps while it rounds as INT8 will.
//!
//! Without labels it learns to give the float model's outputs. An eighth of the batches is held out: the parameters with
//! the least loss there are taken, and training ends early where it no longer falls.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jitquant::ir::{IValue, Module};
use jitquant::qat::QatModule;
use jitquant::{Converted, Quantizer};
use tch::{Kind, Tensor, no_grad};

use crate::feed::Feed;

/// How a model is trained.
pub struct Options {
    /// At most so many steps.
    pub steps: usize,
    /// Samples of a step.
    pub batch_size: NonZeroUsize,
    /// At most so many samples.
    pub samples: Option<NonZeroUsize>,
    /// Where a killed run goes on from.
    pub checkpoint: PathBuf,
}

/// The largest step that Adam makes in a parameter's size of 1; it falls to 0 along a cosine.
const LEARNING_RATE: f64 = 2e-5;
/// Looks at the held-out samples after so many steps, and writes a checkpoint.
const INTERVAL: usize = 20;
/// Ends where so many looks in a row found no smaller loss.
const PATIENCE: usize = 8;
const BETAS: (f64, f64) = (0.9, 0.999);

struct Batch {
    inputs: Vec<IValue>,
    /// What the float model gives.
    targets: Vec<Tensor>,
    /// Class numbers, where the loss is that of labels.
    labels: Option<Tensor>,
}

fn float_tensors(output: &IValue) -> Vec<Tensor> {
    let tensors = output.tensors().into_iter().map(Tensor::from);
    tensors.filter(|tensor| matches!(tensor.kind(), Kind::Float)).collect()
}

fn collect(feed: &Feed, float: &Module, options: &Options) -> Result<Vec<Batch>> {
    let limit = options.samples.map_or(feed.len(), |limit| limit.get().min(feed.len()));
    let mut batches = Vec::new();
    let mut done = 0;
    for batch in feed.batches(options.batch_size) {
        if done >= limit {
            break;
        }
        let (samples, inputs) = batch?;
        let targets = float_tensors(&feed.run(float, &inputs)?);
        ensure!(!targets.is_empty(), "the model returns no float tensor to train towards");
        let labels = feed.labels.as_ref().map(|labels| Tensor::from_slice(&labels[done..done + samples]));
        batches.push(Batch { inputs, targets, labels });
        done += samples;
    }
    ensure!(batches.len() >= 2, "training needs at least two batches, one of them held out: give more samples");
    Ok(batches)
}

/// The mean squared difference over the float outputs, each in parts of its target's variance; with labels the cross
/// entropy of the first output.
fn loss(outputs: &[Tensor], batch: &Batch) -> Tensor {
    if let Some(labels) = &batch.labels {
        return outputs[0].cross_entropy_for_logits(labels);
    }
    let mut total = Tensor::from(0.0f32);
    for (output, target) in outputs.iter().zip(&batch.targets) {
        let size = no_grad(|| (target - target.mean(Kind::Float)).square().mean(Kind::Float).clamp_min(1e-12));
        total = &total + (output - target).square().mean(Kind::Float) / size;
    }
    total
}

/// The mean loss, and the share of samples whose first output has its largest value where the float model's has.
fn evaluate(qat: &QatModule, held_out: &[Batch]) -> Result<(f64, Option<f64>)> {
    qat.module().train(false)?;
    let (mut sum, mut same, mut all) = (0.0, 0.0, 0.0);
    for batch in held_out {
        let outputs = float_tensors(&qat.module().call("forward", &batch.inputs)?);
        sum += loss(&outputs, batch).double_value(&[]);
        if outputs[0].dim() == 2 && outputs[0].size()[1] > 1 {
            let agreed = outputs[0].argmax(1, false).eq_tensor(&batch.targets[0].argmax(1, false));
            same += agreed.sum(Kind::Float).double_value(&[]);
            all += outputs[0].size()[0] as f64;
        }
    }
    qat.module().train(true)?;
    Ok((sum / held_out.len() as f64, (all > 0.0).then_some(same / all)))
}

/// What is trained, Adam's averages, and the best parameters so far: all that a checkpoint holds.
struct State {
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    best: Vec<Tensor>,
    step: usize,
    best_loss: f64,
    looks_since_best: usize,
}

impl State {
    fn new(qat: &QatModule) -> Result<Self> {
        let parameters = qat.parameters()?;
        let tensors: Vec<Tensor> = parameters.iter().map(|(_, tensor)| Tensor::from(tensor)).collect();
        let zeros = || tensors.iter().map(|tensor| tensor.detach().zeros_like()).collect();
        Ok(Self {
            names: parameters.into_iter().map(|(name, _)| name).collect(),
            first: zeros(),
            second: zeros(),
            best: tensors.iter().map(|tensor| tensor.detach().copy()).collect(),
            parameters: tensors,
            step: 0,
            best_loss: f64::INFINITY,
            looks_since_best: 0,
        })
    }

    /// One step of Adam down the gradients.
    fn descend(&mut self, rate: f64) {
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
                let change = (&self.first[index] / c1) / ((&self.second[index] / c2).sqrt() + 1e-8) * rate;
                let _ = parameter.g_sub_(&change);
                parameter.zero_grad();
            }
        });
    }

    fn keep_best(&mut self, loss: f64) {
        self.looks_since_best += 1;
        if loss < self.best_loss {
            (self.best_loss, self.looks_since_best) = (loss, 0);
            self.best = self.parameters.iter().map(|tensor| tensor.detach().copy()).collect();
        }
    }

    fn set_parameters(&mut self, values: &[Tensor]) {
        no_grad(|| self.parameters.iter_mut().zip(values).for_each(|(parameter, value)| parameter.copy_(value)));
    }

    /// Written beside and renamed: a kill leaves the old checkpoint or the new one.
    fn save(&self, path: &Path) -> Result<()> {
        let mut named = Vec::new();
        for (kind, tensors) in
            [("now", &self.parameters), ("first", &self.first), ("second", &self.second), ("best", &self.best)]
        {
            named.extend(self.names.iter().zip(tensors).map(|(name, t)| (format!("{kind}/{name}"), t.detach())));
        }
        let numbers = [self.step as f64, self.best_loss, self.looks_since_best as f64];
        named.push(("numbers".to_owned(), Tensor::from_slice(&numbers)));
        let part = path.with_extension("checkpoint.part");
        Tensor::write_safetensors(&named, &part).with_context(|| part.display().to_string())?;
        std::fs::rename(&part, path).with_context(|| path.display().to_string())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let what = || format!("{} is a checkpoint of another model or other options: delete it", path.display());
        let named = Tensor::read_safetensors(path).with_context(what)?;
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
        let numbers = find("numbers").with_context(what)?;
        (self.first, self.second, self.best) = (first, second, best);
        self.step = numbers.double_value(&[0]) as usize;
        self.best_loss = numbers.double_value(&[1]);
        self.looks_since_best = numbers.double_value(&[2]) as usize;
        self.set_parameters(&now);
        Ok(())
    }
}

/// The order of the batches in a pass over them: the same for the same pass in every run.
fn order(batches: usize, pass: usize) -> Vec<usize> {
    let mut state = (pass as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut order: Vec<usize> = (0..batches).collect();
    for i in (1..batches).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order
}

/// Calibrates, trains and converts; and how many samples there were.
pub fn run(float: &Module, quantizer: &Quantizer, feed: &Feed, options: &Options) -> Result<(Converted, usize)> {
    let reference = float.deep_clone()?;
    reference.train(false)?;
    let batches = collect(feed, &reference, options)?;
    let samples = batches.iter().map(|batch| batch.targets[0].size().first().copied().unwrap_or(1) as usize).sum();
    let mut qat = QatModule::prepare(float, quantizer)?;
    for batch in &batches {
        qat.calibrate(&batch.inputs)?;
    }
    qat.observe(false)?;
    qat.fake_quantize(true)?;
    // A few samples are no better statistics than those that the model came with.
    qat.freeze_batch_norms(true)?;
    qat.module().train(true)?;
    let (training, held_out) = batches.split_at(batches.len() - (batches.len() / 8).max(1));
    let mut state = State::new(&qat)?;
    if options.checkpoint.exists() {
        state.load(&options.checkpoint)?;
        eprintln!("goes on from step {} ({})", state.step, options.checkpoint.display());
    } else {
        look(&qat, &mut state, held_out, None)?;
    }
    let mut running = 0.0;
    while state.step < options.steps && state.looks_since_best < PATIENCE {
        let batch = &training[order(training.len(), state.step / training.len())[state.step % training.len()]];
        let outputs = float_tensors(&qat.module().call_with_gradients("forward", &batch.inputs)?);
        let loss = loss(&outputs, batch);
        loss.backward();
        let now = loss.double_value(&[]);
        ensure!(now.is_finite(), "training diverged at step {}: the loss is {now}", state.step);
        running += now / INTERVAL as f64;
        let share = state.step as f64 / options.steps as f64;
        state.descend(LEARNING_RATE * 0.5 * (1.0 + (std::f64::consts::PI * share).cos()));
        if state.step.is_multiple_of(INTERVAL) || state.step == options.steps {
            look(&qat, &mut state, held_out, Some(running))?;
            running = 0.0;
            state.save(&options.checkpoint)?;
        }
    }
    let best = std::mem::take(&mut state.best);
    state.set_parameters(&best);
    qat.module().train(false)?;
    let converted = qat.convert()?;
    Ok((converted, samples))
}

fn look(qat: &QatModule, state: &mut State, held_out: &[Batch], training: Option<f64>) -> Result<()> {
    let (loss, agreement) = evaluate(qat, held_out)?;
    state.keep_best(loss);
    let agreement = agreement.map_or(String::new(), |share| format!(", agreement {:.1} %", share * 100.0));
    let training = training.map_or(String::new(), |loss| format!("loss {loss:.5}, "));
    eprintln!("step {:>5}: {training}held out {loss:.5}{agreement}", state.step);
    Ok(())
}
