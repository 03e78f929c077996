//! From data on disk to a model's inputs, and its outputs back.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jitquant::control::Outputs;
use jitquant::ir::{DType, FloatChanges, IValue, Module, Tensor};

use crate::arguments::Arguments;
use crate::data::{DataOptions, Dataset};

/// The method that the command line runs.
pub const FORWARD: &str = "forward";

/// Data, its labels, and the order of the model's arguments.
pub struct Feed {
    dataset: Dataset,
    arguments: Arguments,
    /// Class labels, where asked for; one a sample.
    pub labels: Option<Vec<i64>>,
}

impl Feed {
    /// Opens DATA for `model`.
    pub fn open(model: &Module, paths: &[PathBuf], options: &DataOptions, labels: Option<&str>) -> Result<Self> {
        let mut dataset = Dataset::open(paths, options)?;
        let labels = labels.map(|name| dataset.take_labels(name)).transpose()?;
        if !has_dtype(model, DType::F64) {
            dataset.convert_float64();
        }
        let names: Vec<String> = dataset.inputs().map(|input| input.name.clone()).collect();
        let arguments = Arguments::of(model, FORWARD, &names, &options.given)?;
        dataset.bind(&arguments.arrays(), arguments.required())?;
        for note in dataset.notes() {
            eprintln!("note: {note}");
        }
        Ok(Self { dataset, arguments, labels })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.dataset.len()
    }

    /// A sample in words: name, type and shape of each input.
    pub fn form(&self) -> String {
        self.dataset.inputs().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The samples, `size` at a time: how many, and the model's inputs.
    pub fn batches(&self, size: NonZeroUsize) -> impl Iterator<Item = Result<(usize, Vec<IValue>)>> {
        self.dataset.batches(size).map(move |batch| {
            let arrays = batch?;
            let samples = arrays.iter().find_map(|array| array.shape.first()).copied().unwrap_or(0);
            Ok((samples, self.arguments.inputs(&arrays)?))
        })
    }

    /// Those batches of the first `limit` samples, `size` at a time, whose number `wanted` takes: number, how many samples,
    /// and the model's inputs. What is not wanted is not read.
    pub fn batches_where(
        &self,
        size: NonZeroUsize,
        limit: usize,
        wanted: impl Fn(usize) -> bool,
    ) -> impl Iterator<Item = Result<(usize, usize, Vec<IValue>)>> {
        let batches = (0..limit.min(self.len())).step_by(size.get()).enumerate();
        batches.filter(move |(number, _)| wanted(*number)).map(move |(number, first)| {
            let samples = size.get().min(self.len() - first);
            let arrays = self.dataset.batch(first..first + samples)?;
            Ok((number, samples, self.arguments.inputs(&arrays)?))
        })
    }

    /// Runs `model` on a batch; a refusal says what it was given.
    pub fn run(&self, model: &Module, inputs: &[IValue]) -> Result<IValue> {
        model.call_on_copies(FORWARD, inputs).with_context(|| self.refusal(0, inputs))
    }

    /// What to say where a model refuses the batch that begins with sample `first`.
    pub fn refusal(&self, first: usize, inputs: &[IValue]) -> String {
        format!("the model fails on the samples from {first} on, given {}", describe(&self.dataset, inputs))
    }
}

/// The inputs in words: name, type and shape of each.
fn describe(dataset: &Dataset, inputs: &[IValue]) -> String {
    let tensors: Vec<&Tensor> = inputs.iter().flat_map(IValue::tensors).collect();
    let mut shapes = tensors.iter().map(|tensor| tensor.shape());
    let of = |info: &crate::data::InputInfo| match (info.is_number, shapes.next()) {
        (false, Some(shape)) => format!("{}: {} {shape:?}", info.name, info.element_type),
        _ => info.name.clone(),
    };
    dataset.inputs().map(of).collect::<Vec<_>>().join(", ")
}

/// Whether some parameter or buffer has elements of that type.
fn has_dtype(model: &Module, dtype: DType) -> bool {
    let attributes = |module: Module| {
        let tensors = module.attributes().into_iter().filter(|attribute| attribute.is_parameter || attribute.is_buffer);
        tensors.filter_map(|attribute| module.attribute(&attribute.name).ok()).collect::<Vec<_>>()
    };
    let values = model.modules().into_iter().flat_map(|(_, module)| attributes(module));
    values.into_iter().any(|value| value.as_tensor().is_some_and(|t| t.is_defined() && t.dtype() == Some(dtype)))
}

/// Reads the floating-point tensors in `output`.
pub fn outputs(output: &IValue, samples: usize) -> Result<Outputs> {
    Ok(Outputs::of(output, samples)?)
}

/// Reads a model, and says on stderr what its user may want to know of the file.
pub fn read(path: &Path) -> Result<Module> {
    let (model, notes) = Module::load_with_notes(path)?;
    for note in notes {
        eprintln!("note: {}: {note}", path.display());
    }
    Ok(model)
}

/// Brings a model to float32, and says on stderr what that took.
pub fn convert_to_float(model: &Module) -> Result<()> {
    let FloatChanges { tensors, constants, casts } = model.to_float()?;
    eprintln!(
        "note: converted to float32: {tensors} parameters and buffers, {constants} constants, {casts} casts in the code"
    );
    Ok(())
}

/// Loads a model for running.
pub fn load(path: &Path) -> Result<Module> {
    let model = read(path)?;
    if model.is_training() {
        model.train(false)?;
    }
    Ok(model)
}
