//! From data on disk to a model's inputs, and its outputs back.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jitquant::control::Outputs;
use jitquant::ir::{DType, IValue, Module, Tensor};

use crate::data::{Array, ArrayData, Dataset, ImageOptions};

/// The method that the command line runs.
pub const METHOD: &str = "forward";

/// Data, its labels, and the order of the model's arguments.
pub struct Feed {
    dataset: Dataset,
    /// Class labels, where asked for; one a sample.
    pub labels: Option<Vec<i64>>,
}

impl Feed {
    /// Opens DATA for `model`.
    pub fn open(model: &Module, paths: &[PathBuf], images: &ImageOptions, labels: Option<&str>) -> Result<Self> {
        let mut dataset = Dataset::open(paths, images)?;
        let labels = labels.map(|name| dataset.take_labels(name)).transpose()?;
        if !has_dtype(model, DType::F64) {
            dataset.convert_float64();
        }
        let schema = model.schema(METHOD)?;
        let arguments: Vec<&str> = schema.arguments.iter().skip(1).map(|argument| argument.name.as_str()).collect();
        let required = schema.arguments.iter().skip(1).filter(|argument| !argument.has_default).count();
        dataset.bind(&arguments, required)?;
        for note in dataset.notes() {
            eprintln!("note: {note}");
        }
        Ok(Self { dataset, labels })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.dataset.len()
    }

    /// The samples, `size` at a time: how many, and the model's inputs.
    pub fn batches(&self, size: NonZeroUsize) -> impl Iterator<Item = Result<(usize, Vec<IValue>)>> {
        self.dataset.batches(size).map(|batch| {
            let arrays = batch?;
            let samples = arrays.iter().find_map(|array| array.shape.first()).copied().unwrap_or(0);
            Ok((samples, arrays.iter().map(to_input).collect::<Result<_>>()?))
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
            Ok((number, samples, arrays.iter().map(to_input).collect::<Result<_>>()?))
        })
    }

    /// Runs `model` on a batch; a refusal says what it was given.
    pub fn run(&self, model: &Module, inputs: &[IValue]) -> Result<IValue> {
        model.call(METHOD, inputs).with_context(|| self.refusal(0, inputs))
    }

    /// What to say where a model refuses the batch that begins with sample `first`.
    pub fn refusal(&self, first: usize, inputs: &[IValue]) -> String {
        format!("the model fails on the samples from {first} on, given {}", describe(&self.dataset, inputs))
    }
}

/// The inputs in words: name, type and shape of each.
fn describe(dataset: &Dataset, inputs: &[IValue]) -> String {
    let of = |(info, value): (&crate::data::InputInfo, &IValue)| match value.as_tensor() {
        Some(tensor) => format!("{}: {} {:?}", info.name, info.element_type, tensor.shape()),
        None => info.name.clone(),
    };
    dataset.inputs().zip(inputs).map(of).collect::<Vec<_>>().join(", ")
}

fn to_input(array: &Array) -> Result<IValue> {
    if array.shape.is_empty() {
        return number(&array.data).with_context(|| format!("array `{}` is no number", array.name));
    }
    let shape: Vec<i64> = array.shape.iter().map(|&size| size as i64).collect();
    let tensor = match &array.data {
        ArrayData::F32(values) => Tensor::from_slice(values, &shape),
        ArrayData::F64(values) => Tensor::from_slice(values, &shape),
        ArrayData::I64(values) => Tensor::from_slice(values, &shape),
        ArrayData::I32(values) => Tensor::from_slice(values, &shape),
        ArrayData::I16(values) => Tensor::from_slice(values, &shape),
        ArrayData::I8(values) => Tensor::from_slice(values, &shape),
        ArrayData::U8(values) => Tensor::from_slice(values, &shape),
        ArrayData::Bool(values) => {
            let bytes: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
            Tensor::from_bytes(DType::Bool, &shape, &bytes)
        }
    };
    Ok(IValue::Tensor(tensor?))
}

fn number(data: &ArrayData) -> Option<IValue> {
    Some(match data {
        ArrayData::F32(values) => f64::from(*values.first()?).into(),
        ArrayData::F64(values) => (*values.first()?).into(),
        ArrayData::I64(values) => (*values.first()?).into(),
        ArrayData::I32(values) => i64::from(*values.first()?).into(),
        ArrayData::I16(values) => i64::from(*values.first()?).into(),
        ArrayData::I8(values) => i64::from(*values.first()?).into(),
        ArrayData::U8(values) => i64::from(*values.first()?).into(),
        ArrayData::Bool(values) => (*values.first()?).into(),
    })
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

/// Loads a model for running.
pub fn load(path: &Path) -> Result<Module> {
    let model = Module::load(path)?;
    if model.is_training() {
        model.train(false)?;
    }
    Ok(model)
}
