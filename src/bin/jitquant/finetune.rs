//! `jitquant quantize --finetune`: the model is trained for a few hundred steps while it rounds as INT8 will.
//!
//! Without labels it learns to give the float model's outputs, and tensors on the way where these are asked for. An eighth
//! of the batches is held out: the parameters with the least loss there are taken, and training ends early where it no
//! longer falls. On several processes a step takes one batch in each, and gradients are averaged.

mod state;
mod views;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use jitquant::distributed::Group;
use jitquant::ir::{IValue, Module};
use jitquant::observer::ObserverKind;
use jitquant::qat::{QatModule, Targets};
use jitquant::{Converted, Quantizer};
use tch::{Kind, Tensor, no_grad};

use self::state::{Plan, State};
use crate::feed::Feed;

/// How a model is trained.
pub struct Options {
    /// At most so many steps.
    pub steps: usize,
    /// Samples of a step, in each process.
    pub batch_size: NonZeroUsize,
    /// At most so many samples.
    pub samples: Option<NonZeroUsize>,
    /// Whether images are trained on as they are, and not in random views.
    pub plain: bool,
    /// What is to be as in the float model beside the outputs.
    pub targets: Targets,
    /// Where a killed run goes on from.
    pub checkpoint: PathBuf,
}

impl Options {
    fn limit(&self, feed: &Feed) -> usize {
        self.samples.map_or(feed.len(), |limit| limit.get().min(feed.len()))
    }
}

/// The largest move of a step, in parts of a weight's quantization step; it falls to 0 along a cosine.
const LEARNING_RATE: f64 = 0.02;
/// Looks at the held-out samples after so many steps, and writes a checkpoint.
const INTERVAL: usize = 20;
/// Layers are fitted to at most so many samples before training: each layer's results on them are in memory at once.
const FITTED_TO: usize = 128;
/// Ends where so many looks in a row found no smaller loss.
const PATIENCE: usize = 8;
/// By what share the loss of one sample goes up and down with small moves of the weights, about: on eight samples a tenth.
const CHANCE: f64 = 0.3;

struct Batch {
    /// The number of its first sample.
    first: usize,
    samples: usize,
    inputs: Vec<IValue>,
    /// What the float model gives: kept for the outputs alone; with tensors on the way it is computed again at each step.
    targets: Option<Vec<Tensor>>,
    /// Class numbers, where the loss is that of labels.
    labels: Option<Tensor>,
}

/// The samples: a slot for each step's worth, with this process's batch of it; the last slot may have none for it.
struct Data {
    slots: Vec<Option<Batch>>,
    /// Of all processes.
    samples: usize,
    /// What the loss of each target is measured in: its variance over all samples; those on the way count together as much
    /// as one output.
    units: Vec<f64>,
}

/// The method of the trained and of the float module that gives outputs and targets on the way.
const TARGETS: &str = "_jitquant_targets";

fn float_tensors(output: &IValue) -> Vec<Tensor> {
    let tensors = output.tensors().into_iter().map(Tensor::from);
    tensors.filter(|tensor| matches!(tensor.kind(), Kind::Float)).collect()
}

/// The sums of `values` over the processes.
fn sum(group: Option<&Group>, values: &mut [f64]) -> Result<()> {
    Ok(group.map_or(Ok(()), |group| group.all_reduce(values))?)
}

fn collect(feed: &Feed, float: &Module, on_the_way: usize, options: &Options, group: Option<&Group>) -> Result<Data> {
    let (rank, world) = group.map_or((0, 1), |group| (group.rank(), group.world()));
    let limit = options.limit(feed);
    let count = limit.div_ceil(options.batch_size.get());
    let slots = count.div_ceil(world);
    ensure!(
        slots >= 2,
        "training needs at least two batches in each process, one of them held out, but {limit} samples are {count} \
         batches of {} for {world} processes: give more samples or a smaller --finetune-batch-size",
        options.batch_size
    );
    let mut data = Data { slots: (0..slots).map(|_| None).collect(), samples: 0, units: Vec::new() };
    let mut moments: Vec<[f64; 3]> = Vec::new();
    for batch in feed.batches_where(options.batch_size, limit, |number| number % world == rank) {
        let (number, samples, inputs) = batch?;
        let first = number * options.batch_size.get();
        let targets = float_tensors(&float.call(TARGETS, &inputs).with_context(|| feed.refusal(first, &inputs))?);
        ensure!(!targets.is_empty(), "the model returns no float tensor to train towards");
        moments.resize(targets.len(), [0.0; 3]);
        for (moments, target) in moments.iter_mut().zip(&targets) {
            let target = target.to_kind(Kind::Double);
            moments[0] += target.numel() as f64;
            moments[1] += target.sum(Kind::Double).double_value(&[]);
            moments[2] += target.square().sum(Kind::Double).double_value(&[]);
        }
        let targets = (on_the_way == 0).then_some(targets);
        let labels = feed.labels.as_ref().map(|labels| Tensor::from_slice(&labels[first..first + samples]));
        data.slots[number / world] = Some(Batch { first, samples, inputs, targets, labels });
        data.samples += samples;
    }
    let mut samples = [data.samples as f64];
    sum(group, &mut samples)?;
    data.samples = samples[0] as usize;
    sum(group, moments.as_flattened_mut())?;
    let variance = |[count, sum, squares]: &[f64; 3]| (squares / count - (sum / count).powi(2)).max(1e-12);
    data.units = moments.iter().map(variance).collect();
    let outputs = data.units.len() - on_the_way;
    data.units[outputs..].iter_mut().for_each(|unit| *unit *= on_the_way as f64);
    Ok(data)
}

/// The mean squared difference over the float outputs, each in its target's unit; with labels the cross entropy of the first
/// output.
fn loss(outputs: &[Tensor], targets: &[Tensor], labels: Option<&Tensor>, units: &[f64]) -> Tensor {
    if let Some(labels) = labels {
        return outputs[0].cross_entropy_for_logits(labels);
    }
    let mut total = Tensor::from(0.0f32);
    for ((output, target), unit) in outputs.iter().zip(targets).zip(units) {
        total = &total + (output - target).square().mean(Kind::Float) / *unit;
    }
    total
}

/// A training run in this process.
struct Run<'a> {
    qat: QatModule,
    float: &'a Module,
    /// Whether images are trained on as they are.
    plain: bool,
    state: State,
    training: &'a [Option<Batch>],
    held_out: &'a [Option<Batch>],
    units: &'a [f64],
    group: Option<&'a Group>,
    plan: Plan,
    /// The sum of the losses of this process's samples since the last look, and how many there were.
    losses: [f64; 2],
}

impl Run<'_> {
    fn is_first(&self) -> bool {
        self.group.is_none_or(|group| group.rank() == 0)
    }

    /// Goes on from the checkpoint, where process 0 has one.
    fn resume(&mut self, path: &Path) -> Result<bool> {
        let Some(group) = self.group else {
            let exists = path.exists();
            if exists {
                self.state.load(self.plan, path, path)?;
            }
            return Ok(exists);
        };
        let mine = if group.rank() == 0 && path.exists() { std::fs::read(path)? } else { Vec::new() };
        let bytes = group.broadcast(&mine)?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let copy = tempfile::NamedTempFile::new()?;
        std::fs::write(&copy, bytes).with_context(|| copy.path().display().to_string())?;
        self.state.load(self.plan, copy.path(), path)?;
        Ok(true)
    }

    /// One step down the gradient of one slot.
    fn step(&mut self) -> Result<()> {
        let (count, step) = (self.training.len(), self.state.step);
        let slot = &self.training[order(count, step / count)[step % count]];
        let samples = slot.as_ref().map_or(0, |batch| batch.samples);
        if let Some(batch) = slot {
            let images = views::as_images(&batch.inputs).filter(|_| !self.plain && batch.labels.is_none());
            let views = images.map(|images| [IValue::from(&views::views(&images, batch.first, step / count))]);
            let inputs = views.as_ref().map_or(&batch.inputs[..], |views| &views[..]);
            let targets = self.targets(batch, inputs, views.is_none())?;
            let outputs = float_tensors(&self.qat.module().call_with_gradients(TARGETS, inputs)?);
            let loss = loss(&outputs, &targets, batch.labels.as_ref(), self.units);
            loss.backward();
            let now = loss.double_value(&[]);
            ensure!(now.is_finite(), "training diverged at step {step}: the loss is {now}");
            self.losses[0] += now * samples as f64;
            self.losses[1] += samples as f64;
        }
        if let Some(group) = self.group {
            self.qat.average_gradients(group, samples)?;
        }
        let share = step as f64 / self.plan.steps as f64;
        self.state.descend(LEARNING_RATE * 0.5 * (1.0 + (std::f64::consts::PI * share).cos()));
        Ok(())
    }

    /// What the float model gives for `inputs`, those of the batch or a view of them.
    fn targets(&self, batch: &Batch, inputs: &[IValue], as_it_is: bool) -> Result<Vec<Tensor>> {
        Ok(match batch.targets.as_ref().filter(|_| as_it_is) {
            Some(targets) => targets.iter().map(Tensor::shallow_clone).collect(),
            None => float_tensors(&self.float.call(TARGETS, inputs)?),
        })
    }

    /// The mean loss of the held-out samples, by what share of it another may be less by chance, and the share of the samples
    /// whose first output has its largest value where the float model's has.
    fn evaluate(&self) -> Result<(f64, f64, Option<f64>)> {
        self.qat.module().train(false)?;
        let mut sums = [0.0; 4];
        for batch in self.held_out.iter().flatten() {
            let outputs = float_tensors(&self.qat.module().call(TARGETS, &batch.inputs)?);
            let targets = self.targets(batch, &batch.inputs, true)?;
            sums[0] +=
                loss(&outputs, &targets, batch.labels.as_ref(), self.units).double_value(&[]) * batch.samples as f64;
            sums[1] += batch.samples as f64;
            if outputs[0].dim() == 2 && outputs[0].size()[1] > 1 {
                let agreed = outputs[0].argmax(1, false).eq_tensor(&targets[0].argmax(1, false));
                sums[2] += agreed.sum(Kind::Float).double_value(&[]);
                sums[3] += outputs[0].size()[0] as f64;
            }
        }
        self.qat.module().train(true)?;
        sum(self.group, &mut sums)?;
        let [losses, samples, same, all] = sums;
        Ok((losses / samples, (CHANCE / samples.sqrt()).min(0.5), (all > 0.0).then(|| same / all)))
    }

    /// Looks at the held-out samples, and says what it sees.
    fn look(&mut self) -> Result<()> {
        let (loss, chance, agreement) = no_grad(|| self.evaluate())?;
        self.state.keep_best(loss, chance);
        let mut losses = std::mem::take(&mut self.losses);
        sum(self.group, &mut losses)?;
        if self.is_first() {
            let agreement = agreement.map_or(String::new(), |share| format!(", agreement {:.1} %", share * 100.0));
            let training = match losses[1] {
                0.0 => String::new(),
                samples => format!("loss {:.5}, ", losses[0] / samples),
            };
            eprintln!("step {:>5}: {training}held out {loss:.5}{agreement}", self.state.step);
        }
        Ok(())
    }

    fn train(&mut self, checkpoint: &Path) -> Result<()> {
        while self.state.step < self.plan.steps && self.state.looks_since_best < PATIENCE {
            self.step()?;
            if self.state.step.is_multiple_of(INTERVAL) || self.state.step == self.plan.steps {
                self.look()?;
                if self.is_first() {
                    self.state.save(self.plan, checkpoint)?;
                }
            }
        }
        Ok(())
    }
}

/// The order of the slots in a pass over them: the same for the same pass in every run.
fn order(slots: usize, pass: usize) -> Vec<usize> {
    let mut state = (pass as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut order: Vec<usize> = (0..slots).collect();
    for i in (1..slots).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order
}

/// Chosen ranges and learned rounding where training begins, on some of the samples that it trains on, in process 0 for all.
/// Before going on from a checkpoint too: the units of the moves come from what training began with.
fn start_from_fitted_layers(qat: &QatModule, feed: &Feed, options: &Options, group: Option<&Group>) -> Result<()> {
    let is_first = group.is_none_or(|group| group.rank() == 0);
    let mut choice = None;
    if is_first {
        let limit = options.limit(feed);
        let batch = NonZeroUsize::new(8).unwrap_or(NonZeroUsize::MIN);
        let trained_on = limit - limit / 8;
        let every = trained_on.div_ceil(FITTED_TO).max(1);
        let batches = feed.batches_where(batch, trained_on, |number| number % every == 0);
        let batches = batches.map(|batch| Ok(batch?.2)).collect::<Result<Vec<_>>>()?;
        choice = qat.choose_ranges(&batches)?;
        qat.fit_layers(&batches)?;
    }
    if let Some(group) = group {
        let name = group.broadcast(choice.map_or("", ObserverKind::name).as_bytes())?;
        let chosen = ObserverKind::ALL.into_iter().find(|kind| kind.name().as_bytes() == name);
        chosen.map_or(Ok(()), |choice| qat.take_ranges(choice))?;
        for (_, parameter) in qat.parameters()? {
            let mut parameter = Tensor::from(&parameter);
            let mine = if is_first { Vec::<f32>::try_from(parameter.detach().flatten(0, -1))? } else { Vec::new() };
            let mine: Vec<u8> = mine.into_iter().flat_map(f32::to_ne_bytes).collect();
            let bytes = group.broadcast(&mine)?;
            let values = Tensor::from_data_size(&bytes, &parameter.size(), Kind::Float);
            no_grad(|| parameter.copy_(&values));
        }
    }
    Ok(())
}

/// Calibrates, trains and converts; and how many samples there were. `None` in all processes but the first of a group.
pub fn run(
    float: &Module,
    quantizer: &Quantizer,
    feed: &Feed,
    options: &Options,
    group: Option<&Group>,
) -> Result<Option<(Converted, usize)>> {
    let (rank, world) = group.map_or((0, 1), |group| (group.rank(), group.world()));
    let mut qat = QatModule::prepare_folded(float, quantizer)?;
    let on_the_way = qat.add_targets(TARGETS, &options.targets)?;
    let reference = qat.float_copy()?;
    let data = collect(feed, &reference, on_the_way, options, group)?;
    let mut calibration = qat.calibration(group)?;
    calibration.agree(&[
        ("--finetune-batch-size", options.batch_size.to_string()),
        ("how many samples there are", feed.len().to_string()),
        ("what a sample is", feed.form()),
    ])?;
    for (slot, batch) in data.slots.iter().enumerate() {
        if let Some(batch) = batch {
            calibration.run(slot * world + rank, &batch.inputs)?;
        }
    }
    calibration.merge()?;
    qat.observe(false)?;
    start_from_fitted_layers(&qat, feed, options, group)?;
    qat.fake_quantize(true)?;
    qat.module().train(true)?;
    let (training, held_out) = data.slots.split_at(data.slots.len() - (data.slots.len() / 8).max(1));
    let plan = Plan {
        steps: options.steps,
        samples_of_a_step: options.batch_size.get() * world,
        samples: data.samples,
        with_labels: feed.labels.is_some(),
        plain: options.plain,
        on_the_way,
    };
    let state = State::new(&qat)?;
    let (float, plain) = (&reference, options.plain);
    let mut run =
        Run { qat, float, plain, state, training, held_out, units: &data.units, group, plan, losses: [0.0; 2] };
    if run.resume(&options.checkpoint)? {
        if run.is_first() {
            eprintln!("goes on from step {} ({})", run.state.step, options.checkpoint.display());
        }
    } else {
        run.look()?;
    }
    if let Err(e) = run.train(&options.checkpoint) {
        let saved = run.state.step - run.state.step % INTERVAL;
        return Err(e.context(match saved {
            0 => format!("training ended at step {}, before the first checkpoint", run.state.step),
            _ => format!(
                "training ended at step {}; {} on rank 0 is that of step {saved}, and the same command goes on from it",
                run.state.step,
                options.checkpoint.display()
            ),
        }));
    }
    if rank > 0 {
        return Ok(None);
    }
    if run.state.looks_since_best >= run.state.step.div_ceil(INTERVAL) {
        eprintln!(
            "training was not better on the held-out samples than what it began with, which is kept: give more samples"
        );
    }
    run.state.take_best();
    run.qat.module().train(false)?;
    Ok(Some((run.qat.convert()?, data.samples)))
}
