//! A whole model that runs by itself: a Program with its weights, and the names of what it takes and gives.

mod describe;
mod file;
mod tensor;
mod threads;
mod weight;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use jitquant_kernels::{Parallel, Serial};
use serde::{Deserialize, Serialize};

pub use tensor::{OwnedValues, Tensor, TensorRef, Values, ValuesMut};
pub use weight::{PlainWeight, WeightForm};

use crate::layout::{Element, Format, Layout};
use crate::program::{Program, Weight};
use crate::run::{Call, Input};
use crate::{Error, Result, refuse};
use threads::Pool;
use weight::OwnedWeight;

/// A size in a description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// The same in every call.
    Known(i64),
    /// What a call decides; the same where the name is the same.
    Named(String),
}

/// What an input or output is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub element: Element,
    /// Its sizes, where `jitquant export` found some that the model takes; a model may take others as well.
    pub sizes: Option<Vec<Dim>>,
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = match self.element {
            Element::U8 => "uint8",
            Element::F32 => "float32",
            Element::Bool => "bool",
        };
        write!(f, "{}: {element}", self.name)?;
        let Some(sizes) = &self.sizes else { return Ok(()) };
        let dim = |dim: &Dim| match dim {
            Dim::Known(size) => size.to_string(),
            Dim::Named(name) => name.clone(),
        };
        write!(f, " [{}]", sizes.iter().map(dim).collect::<Vec<_>>().join(", "))
    }
}

/// A model that needs nothing but this crate: what `jitquant export` writes.
///
/// ```no_run
/// use jitquant_runtime::{Model, TensorRef};
///
/// let model = Model::open("model.jqp")?;
/// let pixels = vec![0.5f32; 3 * 224 * 224];
/// let results = model.run(&[TensorRef::floats(&pixels, &[1, 3, 224, 224])])?;
/// println!("{}: {:?}", model.outputs()[0], results[0].floats());
/// # Ok::<(), jitquant_runtime::Error>(())
/// ```
///
/// It may be used from any number of threads at once; each run computes in memory of its own.
pub struct Model {
    program: Program,
    weights: Vec<OwnedWeight>,
    inputs: Vec<Described>,
    outputs: Vec<Described>,
    pool: RwLock<Option<Arc<Pool>>>,
}

impl Model {
    fn of(program: Program, weights: Vec<OwnedWeight>, inputs: Vec<Described>, outputs: Vec<Described>) -> Self {
        Self { program, weights, inputs, outputs, pool: RwLock::default() }
    }

    /// Opens a file: it is mapped into memory, checked as a whole, and its weights are packed for this machine. The file is
    /// not needed afterwards. It must not be written into during the call (it may be replaced); where others can do that,
    /// read it yourself and call [`from_bytes`](Self::from_bytes).
    ///
    /// # Errors
    /// Where it cannot be read, is no Program of this version, or anything in it does not fit.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        crate::map::mapped(path, Self::from_bytes).map_err(|Error(why)| Error(format!("{}: {why}", path.display())))
    }

    /// Opens a file's bytes.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        file::read(bytes)
    }

    /// What it takes.
    pub fn inputs(&self) -> &[Described] {
        &self.inputs
    }

    /// What it gives.
    pub fn outputs(&self) -> &[Described] {
        &self.outputs
    }

    /// Has it run on so many threads, which are its own from now on; one, the caller's, until this is called.
    ///
    /// Results are the same bits with any number of threads. Runs that are under way end with the threads that they had.
    ///
    /// # Errors
    /// Where there are none or too many, or the system has no more.
    pub fn set_threads(&self, threads: usize) -> Result<()> {
        let pool = Pool::new(threads)?.map(Arc::new);
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
        Ok(())
    }

    /// Runs it on tensors in the order of [`inputs`](Self::inputs); the results are in the order of
    /// [`outputs`](Self::outputs).
    ///
    /// # Errors
    /// Where a tensor is not what the model takes, in words.
    pub fn run(&self, inputs: &[TensorRef<'_>]) -> Result<Vec<Tensor>> {
        self.with_call(inputs, |call, threads| {
            let plan = self.program.plan(call, threads)?;
            let zeros = |layout: &Layout| Tensor::zeros(layout.element, &layout.sizes, layout.len());
            let mut results = plan.outputs().iter().map(zeros).collect::<Result<Vec<_>>>()?;
            let mut lent: Vec<ValuesMut<'_>> = results.iter_mut().map(Tensor::values_mut).collect();
            let mut memory: Vec<&mut [u8]> = lent.iter_mut().map(ValuesMut::bytes).collect();
            self.program.run(&plan, call, &mut memory, threads)?;
            Ok(results)
        })
    }

    /// As [`run`](Self::run), on tensors with names in any order.
    ///
    /// # Errors
    /// As [`run`](Self::run), and where a name is missing or not the model's.
    pub fn run_named(&self, inputs: &[(&str, TensorRef<'_>)]) -> Result<Vec<Tensor>> {
        let find = |described: &Described| inputs.iter().find(|(name, _)| *name == described.name).map(|given| given.1);
        let ordered: Option<Vec<_>> = self.inputs.iter().map(find).collect();
        match ordered {
            Some(ordered) if ordered.len() == inputs.len() => self.run(&ordered),
            _ => {
                let given: Vec<_> = inputs.iter().map(|(name, _)| *name).collect();
                refuse(format!("{given:?} given; the model takes {}", list(&self.inputs)))
            }
        }
    }

    /// As [`run`](Self::run), into the caller's memory, as long as [`output_sizes`](Self::output_sizes) says.
    ///
    /// # Errors
    /// As [`run`](Self::run), and where the memory is not of an output's length and type; nothing is written then.
    pub fn run_into(&self, inputs: &[TensorRef<'_>], outputs: &mut [ValuesMut<'_>]) -> Result<()> {
        self.with_call(inputs, |call, threads| {
            let plan = self.program.plan(call, threads)?;
            if outputs.len() != plan.outputs().len() {
                return refuse(format!("{} outputs given; the model gives {}", outputs.len(), list(&self.outputs)));
            }
            for ((output, layout), described) in outputs.iter_mut().zip(plan.outputs()).zip(&self.outputs) {
                let (element, len) = (output.element(), output.bytes().len() / output.element().size());
                if element != layout.element || len != layout.len() {
                    let sizes = &layout.sizes;
                    return refuse(format!("{len} {element:?} for {described}, which is {sizes:?} here"));
                }
            }
            let mut memory: Vec<&mut [u8]> = outputs.iter_mut().map(ValuesMut::bytes).collect();
            self.program.run(&plan, call, &mut memory, threads)
        })
    }

    /// The types and sizes of the outputs for these inputs; nothing is computed.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn output_sizes(&self, inputs: &[TensorRef<'_>]) -> Result<Vec<(Element, Vec<i64>)>> {
        self.with_call(inputs, |call, threads| {
            let plan = self.program.plan(call, threads)?;
            Ok(plan.outputs().iter().map(|layout| (layout.element, layout.sizes.clone())).collect())
        })
    }

    /// Bytes that a run on these inputs computes in, beside weights, inputs and outputs.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn arena_bytes(&self, inputs: &[TensorRef<'_>]) -> Result<usize> {
        self.with_call(inputs, |call, threads| Ok(self.program.plan(call, threads)?.arena_bytes()))
    }

    /// Has `work` done with a call of the Program.
    fn with_call<R>(
        &self,
        inputs: &[TensorRef<'_>],
        work: impl FnOnce(&Call<'_>, &dyn Parallel) -> Result<R>,
    ) -> Result<R> {
        self.check(inputs)?;
        let strides: Vec<Vec<i64>> = inputs
            .iter()
            .map(|input| Layout::new(input.values.element(), input.sizes, Format::Contiguous).strides)
            .collect();
        let tensors: Vec<Input<'_>> = inputs
            .iter()
            .zip(&strides)
            .map(|(input, strides)| Input {
                element: input.values.element(),
                sizes: input.sizes,
                strides,
                memory: input.values.bytes(),
            })
            .collect();
        let weights: Vec<Weight<'_>> = self.weights.iter().map(OwnedWeight::weight).collect();
        let call = Call { inputs: &tensors, numbers: &[], weights: &weights };
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let threads: &dyn Parallel = match &pool {
            Some(pool) => &**pool,
            None => &Serial,
        };
        work(&call, threads).map_err(|Error(why)| {
            let sizes: Vec<_> = inputs.iter().map(|input| input.sizes).collect();
            Error(format!("the model, which takes {}, refuses sizes {sizes:?}: {why}", list(&self.inputs)))
        })
    }

    /// Checks that tensors are as many, and of the types, that the model takes.
    fn check(&self, inputs: &[TensorRef<'_>]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            return refuse(format!("{} tensors given; the model takes {}", inputs.len(), list(&self.inputs)));
        }
        for (input, described) in inputs.iter().zip(&self.inputs) {
            input.check().map_err(|Error(why)| Error(format!("{}: {why}", described.name)))?;
            if input.values.element() != described.element {
                return refuse(format!("{:?} given for {described}", input.values.element()));
            }
        }
        Ok(())
    }
}

fn list(all: &[Described]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The bytes of a file that holds this Program, its weights in the order of their numbers, and the names of its inputs and
/// outputs. Types and sizes are found by planning it on tensors of sizes that its weights suggest, those of `like` first (the
/// sizes of each input that it is known to take).
///
/// # Errors
/// Where names or weights are not as many as the Program has, it takes integers, has steps on floats, or something in it does
/// not fit.
pub fn write_model(
    program: &Program,
    weights: &[PlainWeight],
    inputs: &[String],
    outputs: &[String],
    like: Option<&[Vec<i64>]>,
) -> Result<Vec<u8>> {
    let plain = |name: &String| Described { name: name.clone(), element: Element::F32, sizes: None };
    let [mut given, mut results] = [inputs, outputs].map(|names| names.iter().map(plain).collect::<Vec<_>>());
    // As it will be read: so it is known that it can be.
    let model = file::read(&file::write(program, weights, &given, &results)?)?;
    let packed: Vec<Weight<'_>> = model.weights.iter().map(OwnedWeight::weight).collect();
    describe::describe(&model.program, &packed, &mut given, &mut results, like);
    file::write(program, weights, &given, &results)
}
