//! Calibration whose batches are dealt out to the processes of a group.
//!
//! Smallest and largest values, and counts of histograms, add up in any order. A moving average does not: it depends on the
//! order of the batches. Its observers therefore start afresh in each batch, and the batches' ranges are averaged in their
//! order once all are known.

use super::Group;
use super::wire::{Reader, Writer};
use crate::error::{Context, Error, Result};
use crate::ir::{IValue, Module, Tensor};
use crate::observer::{UNSET, average_range};
use crate::pass::prepare::ROWS;
use crate::quantizer::Prepared;
use crate::ranges::State;

/// The calibration of one module by all processes of a group, or by this one alone.
///
/// Batch `n` belongs to process `n % world`. The batches are those of a single process, so each gives the same numbers there
/// and here; after [`Calibration::merge`] min-max and moving-average observers have the bits that a single process would find,
/// histograms the same values in bins that may be one off ([`Histogram::merge`](crate::observer::Histogram::merge)).
#[derive(Debug)]
pub struct Calibration<'a> {
    prepared: &'a mut Prepared,
    group: Option<&'a Group>,
    observers: Vec<Observer>,
    /// What the moving-average observers saw in each batch of this process.
    batches: Vec<(u64, Vec<State>)>,
    /// The types and dimensions of a batch's tensors; empty where none was run here.
    form: String,
}

#[derive(Debug)]
struct Observer {
    path: String,
    module: Module,
    /// How much of each batch a moving average takes in.
    averaging: Option<f32>,
    /// What it had seen before.
    before: State,
}

impl<'a> Calibration<'a> {
    /// Begins to calibrate `prepared`, which may have observed before; in process 0 that counts.
    ///
    /// # Errors
    /// Where an observer cannot be read.
    pub fn new(prepared: &'a mut Prepared, group: Option<&'a Group>) -> Result<Self> {
        let mut observers = Vec::new();
        if let Some(group) = group {
            for (path, module) in prepared.observers() {
                if !module.has_attribute("min_val") {
                    continue;
                }
                let before = State::of(&module)?;
                let averaging = match averages(&module)? {
                    true => module.attribute("averaging_constant")?.as_number().map(|constant| constant as f32),
                    false => None,
                };
                if averaging.is_some() || group.rank() > 0 {
                    set_observed(&module, &State::default())?;
                }
                observers.push(Observer { path, module, averaging, before });
            }
        }
        Ok(Self { prepared, group, observers, batches: Vec::new(), form: String::new() })
    }

    /// Whether this process needs batch `number`: one of its own, or in process 0 one that conversion runs again.
    pub fn wants(&self, number: usize) -> bool {
        self.is_mine(number) || (self.group.is_some_and(|group| group.rank() == 0) && self.prepared.needs_inputs())
    }

    fn is_mine(&self, number: usize) -> bool {
        self.group.is_none_or(|group| number % group.world() == group.rank())
    }

    /// Runs the model on batch `number`, where this process [wants](Self::wants) it, and gives what the model returned, if
    /// it ran here. Numbers rise from call to call.
    ///
    /// # Errors
    /// Those of [`Prepared::calibrate`].
    pub fn run<'t, T>(&mut self, number: usize, inputs: &'t [T]) -> Result<Option<IValue>>
    where
        IValue: From<&'t T>,
    {
        if !self.is_mine(number) {
            self.prepared.keep(inputs.iter().map(IValue::from).collect())?;
            return Ok(None);
        }
        let output = self.prepared.calibrate(inputs)?;
        if self.group.is_some() {
            self.form = form(inputs.iter().map(IValue::from));
            let mut states = Vec::new();
            for observer in self.averaging() {
                states.push(State::of(&observer.module)?);
                set_observed(&observer.module, &State::default())?;
            }
            self.batches.push((number as u64, states));
        }
        Ok(Some(output))
    }

    fn averaging(&self) -> impl Iterator<Item = &Observer> {
        self.observers.iter().filter(|observer| observer.averaging.is_some())
    }

    /// Compares the model, the options and the form of the batches with those of the other processes, and `more` besides,
    /// each with its name: what the program deals out batches by. [`Calibration::merge`] does it at the end; whoever calls
    /// this before the first batch knows sooner.
    ///
    /// # Errors
    /// Where something differs: the message says what, and for which ranks; and where another process has ended or failed.
    pub fn agree(&self, more: &[(&str, String)]) -> Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        let [model, options] = self.prepared.identity()?;
        let mine = [("the model", model), ("the options", options), ("the form of the batches", self.form.clone())];
        group.agree(&[&mine, more].concat())
    }

    /// Gives every process's observers what all have seen.
    ///
    /// # Errors
    /// Those of [`Calibration::agree`].
    pub fn merge(self) -> Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        self.agree(&[])?;
        let all = group.all_gather(&self.to_bytes()?).context(|| "merging what the processes observed".into())?;
        let mut merged: Vec<State> = Vec::new();
        let mut batches: Vec<(u64, Vec<State>)> = Vec::new();
        for (rank, bytes) in all.iter().enumerate() {
            let (states, theirs) = self.read(bytes).ok_or_else(|| {
                Error::invalid(format!("rank {rank} calibrates another model, or with other options, than rank 0"))
            })?;
            match rank {
                0 => merged = states,
                _ => merged.iter_mut().zip(&states).for_each(|(all, state)| add(all, state)),
            }
            batches.extend(theirs);
        }
        batches.sort_by_key(|(number, _)| *number);
        let mut place = 0;
        for (observer, merged) in self.observers.iter().zip(merged) {
            let Some(constant) = observer.averaging else {
                set_observed(&observer.module, &merged)?;
                continue;
            };
            // What process 0 had seen before comes first.
            let mut state = merged;
            for (_, states) in &batches {
                average(&mut state, &states[place], constant);
            }
            set_observed(&observer.module, &state)?;
            place += 1;
        }
        Ok(())
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut writer = Writer::default();
        for observer in &self.observers {
            writer.text(&observer.path);
            match observer.averaging {
                Some(_) => writer.state(&observer.before),
                None => writer.state(&State::of(&observer.module)?),
            }
        }
        for (number, states) in &self.batches {
            writer.number(*number);
            states.iter().for_each(|state| writer.state(state));
        }
        Ok(writer.bytes)
    }

    /// The observers' states and those of the batches; `None` where the observers are others than here.
    #[allow(clippy::type_complexity)]
    fn read(&self, bytes: &[u8]) -> Option<(Vec<State>, Vec<(u64, Vec<State>)>)> {
        let mut reader = Reader { bytes };
        let state = |observer: &Observer| (reader.text()? == observer.path).then(|| reader.state()).flatten();
        let states = self.observers.iter().map(state).collect::<Option<Vec<_>>>()?;
        let mut batches = Vec::new();
        while !reader.bytes.is_empty() {
            let number = reader.number()?;
            let states = self.averaging().map(|_| reader.state()).collect::<Option<Vec<_>>>()?;
            batches.push((number, states));
        }
        Some((states, batches))
    }
}

/// The types and the numbers of dimensions of the tensors among `inputs`. Sizes may differ from batch to batch.
fn form(inputs: impl Iterator<Item = IValue>) -> String {
    let inputs: Vec<IValue> = inputs.collect();
    let tensors = inputs.iter().flat_map(IValue::tensors);
    let one = |tensor: &Tensor| match tensor.dtype() {
        Some(dtype) => format!("{dtype:?} of {} dimensions", tensor.shape().len()),
        None => format!("{} dimensions", tensor.shape().len()),
    };
    tensors.map(one).collect::<Vec<_>>().join(", ")
}

/// Whether an observer keeps moving averages.
fn averages(observer: &Module) -> Result<bool> {
    let graph = observer.graph("forward")?;
    Ok(graph.all_nodes().into_iter().any(|node| node.kind().starts_with("jitquant::observe_moving_average")))
}

fn add(all: &mut State, state: &State) {
    match (all.has_values(), state.has_values()) {
        (_, false) => {}
        (false, true) => *all = state.clone(),
        (true, true) => all.merge(state),
    }
}

fn average(all: &mut State, batch: &State, constant: f32) {
    if !batch.has_values() {
        return;
    }
    if !all.has_values() {
        *all = batch.clone();
        return;
    }
    let ranges = batch.min.iter().zip(&batch.max);
    for ((min, max), (low, high)) in all.min.iter_mut().zip(&mut all.max).zip(ranges) {
        average_range((*low, *high), constant, min, max);
    }
}

/// Sets an observer's buffers; a state without values is that before the first observation.
fn set_observed(observer: &Module, state: &State) -> Result<()> {
    let is_set = state.has_values();
    for (name, values, unset) in [
        ("min_val", &state.min, UNSET.0),
        ("max_val", &state.max, UNSET.1),
        ("histogram", &state.counts, 0.0),
        (ROWS, &state.counts, 0.0),
    ] {
        if !observer.has_attribute(name) {
            continue;
        }
        let IValue::Tensor(buffer) = observer.attribute(name)? else { continue };
        let shape = buffer.shape();
        let fresh = match (&shape[..], is_set) {
            ([], true) => Tensor::from_slice(values, &[])?,
            (_, true) => Tensor::from_slice(values, &[values.len() as i64])?,
            ([], false) => Tensor::from_slice(&[unset], &[])?,
            (_, false) if name == "histogram" => Tensor::from_slice(&vec![0.0f32; shape[0] as usize], &shape)?,
            // By channel: as many as the next tensor has.
            (_, false) => Tensor::from_slice::<f32>(&[], &[0])?,
        };
        observer.set_attribute(name, &fresh.into())?;
    }
    Ok(())
}
