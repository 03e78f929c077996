//! The file of a model: safetensors, with the steps as JSON in its metadata.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};

use super::weight::{OwnedWeight, PlainWeight, Stored, WeightForm};
use super::{Described, Model};
use crate::layout::Format;
use crate::program::{Builder, Op, Program, ValueId};
use crate::view::View;
use crate::{Error, Result, refuse};

/// The metadata's key: one alone, so that the same model gives the same bytes.
const KEY: &str = "jitquant.program";

/// The version of the format that is written and read.
const VERSION: u32 = 1;

/// The first thing that is read.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// What the metadata hold.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    /// The tensors that a call gives are values 0 and on.
    inputs: Vec<Described>,
    weights: Vec<WeightForm>,
    /// Each gives the next value.
    steps: Vec<WrittenStep>,
    /// The values that a call gives back, and what they are.
    results: Vec<ValueId>,
    outputs: Vec<Described>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStep {
    op: Op,
    inputs: Vec<ValueId>,
}

/// The bytes of a file.
///
/// # Errors
/// Where the Program takes integers or has steps on floats, or there are not as many names and weights as it takes.
pub(super) fn write(
    program: &Program,
    weights: &[PlainWeight],
    inputs: &[Described],
    outputs: &[Described],
) -> Result<Vec<u8>> {
    if let Some(step) = program.steps.iter().find(|step| matches!(step.op, Op::Float(_))) {
        return refuse(format!("{}: steps on floats have no form in a file", step.op.name()));
    }
    let sorted = program.inputs.iter().chain(program.steps.iter().map(|step| &step.output));
    let is_in_order = sorted.enumerate().all(|(index, value)| value.0 == index);
    let counts = (program.inputs.len(), program.weights, program.outputs.len());
    if !is_in_order || program.numbers > 0 || counts != (inputs.len(), weights.len(), outputs.len()) {
        return refuse("a Program that takes integers or inputs between steps, or names that are not its own");
    }
    let step = |step: &crate::program::Step| WrittenStep { op: step.op.clone(), inputs: step.inputs.clone() };
    let written = Written {
        version: VERSION,
        inputs: inputs.to_vec(),
        weights: weights.iter().map(|weight| weight.form).collect(),
        steps: program.steps.iter().map(step).collect(),
        results: program.outputs.clone(),
        outputs: outputs.to_vec(),
    };
    let steps = serde_json::to_string(&written).map_err(|why| Error(why.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), steps)]);
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    weights.iter().enumerate().for_each(|(number, weight)| weight.tensors(number, &mut tensors));
    let mut views = Vec::new();
    for (name, (dtype, sizes, bytes)) in &tensors {
        let view = TensorView::new(*dtype, sizes.clone(), bytes).map_err(|why| Error(why.to_string()))?;
        views.push((name, view));
    }
    serialize(views, Some(metadata)).map_err(|why| Error(why.to_string()))
}

/// The model in the bytes of a file.
///
/// # Errors
/// Where they are none, or one of another version, or anything in them does not fit.
pub(super) fn read(bytes: &[u8]) -> Result<Model> {
    let damaged = |why: String| Error(format!("not a Program file, or a damaged one: {why}"));
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|why| damaged(why.to_string()))?;
    let Some(steps) = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)) else {
        return refuse("a safetensors file, but not a Program; `jitquant export` writes those");
    };
    let Versioned { version } = serde_json::from_str(steps).map_err(|why| damaged(why.to_string()))?;
    if version != VERSION {
        return refuse(format!("a Program file of version {version}; this runtime reads version {VERSION}"));
    }
    let written: Written = serde_json::from_str(steps).map_err(|why| damaged(why.to_string()))?;
    let file = SafeTensors::deserialize(bytes).map_err(|why| damaged(why.to_string()))?;
    build(&file, written).map_err(|Error(why)| damaged(why))
}

fn build(file: &SafeTensors<'_>, written: Written) -> Result<Model> {
    let Written { version: _, inputs, weights: forms, steps, results, outputs } = written;
    let mut builder = Builder::default();
    for _ in &inputs {
        builder.input();
    }
    for _ in &forms {
        builder.weight();
    }
    for (number, WrittenStep { op, inputs }) in steps.into_iter().enumerate() {
        if let Some(weight) = op.weight()
            && !forms.get(weight.0).is_some_and(|form| form.suits(&op))
        {
            return refuse(format!("step {number}, {}: a weight of another layer", op.name()));
        }
        builder.step(op, &inputs).map_err(|Error(why)| Error(format!("step {number}, {why}")))?;
    }
    if results.is_empty() || results.len() != outputs.len() {
        return refuse(format!("{} results and descriptions of {}", results.len(), outputs.len()));
    }
    // Who runs a model without libtorch gets values in the order of the indices.
    let ordered = |value: &ValueId| builder.step(Op::View(View::Contiguous(Format::Contiguous)), &[*value]);
    let results = results.iter().map(ordered).collect::<Result<Vec<_>>>()?;
    let program = builder.finish(&results)?;
    let read = |(number, form)| OwnedWeight::read(file, number, form);
    let weights = forms.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
    Ok(Model::of(program, weights, inputs, outputs))
}
