//! Programs as libtorch's interpreter calls them: `jitquant::run` (cpp/program.cpp).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cxx::SharedPtr;
use jitquant_runtime::{Call, Element, Input, Layout, Plan, Program, Weight};

use super::bridge::ffi;
use super::threads::HostThreads;
use crate::error::{Error, Result, no_panic};
use crate::ir::Graph;
use crate::ir::ffi::bridge::Graph as RawGraph;

/// What a part takes, in the order of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Tensor,
    Number,
    Conv,
    Linear,
}

/// A part's Program.
pub(crate) struct CompiledProgram {
    pub program: Program,
    pub given: Vec<Given>,
}

/// Makes a Program of a part's graph.
type Compiler = fn(&Graph) -> Result<CompiledProgram>;

/// The compiler is a pass, which stands above the operators: whoever registers it says so.
static COMPILER: OnceLock<Compiler> = OnceLock::new();

/// Has `jitquant::run` compile its parts so; the first call counts.
pub(crate) fn compile_parts_by(compiler: Compiler) {
    COMPILER.get_or_init(|| compiler);
}

/// A part of a graph, compiled.
pub(super) struct CompiledPart {
    program: Program,
    given: Vec<Given>,
}

pub(super) fn compile_part(graph: &SharedPtr<RawGraph>) -> Result<Box<CompiledPart>> {
    let compiled = no_panic(|| match COMPILER.get() {
        Some(compile) => compile(&Graph::of_host(graph.clone())),
        None => Err(Error::invalid("nobody registered what compiles it")),
    });
    match compiled {
        Ok(CompiledProgram { program, given }) => Ok(Box::new(CompiledPart { program, given })),
        Err(e) => {
            tracing::warn!("a part of a model runs without a Program: {e}");
            Err(e)
        }
    }
}

/// libtorch's numbers of the element types.
const BYTE: i32 = 0;
const FLOAT: i32 = 6;

pub(super) fn run_part(part: &CompiledPart, operands: &ffi::Operands, results: Pin<&mut ffi::Results>) -> bool {
    match no_panic(|| part.run(operands, results)) {
        Ok(()) => {
            TAKEN.fetch_add(1, Ordering::Relaxed);
            true
        }
        Err(e) => {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("a call that a Program does not take: {e}");
            false
        }
    }
}

static TAKEN: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// How many calls of this process Programs have run, and how many they left to the operators of their part.
pub fn program_calls() -> (u64, u64) {
    (TAKEN.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed))
}

impl CompiledPart {
    fn run(&self, operands: &ffi::Operands, results: Pin<&mut ffi::Results>) -> Result<()> {
        let (mut inputs, mut numbers, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (index, given) in self.given.iter().enumerate() {
            match given {
                Given::Tensor => inputs.push(input(operands, index)?),
                Given::Number => numbers.push(ffi::operand_number(operands, index)?),
                Given::Conv => weights.push(conv(operands, index)?),
                Given::Linear => weights.push(linear(operands, index)?),
            }
        }
        let call = Call { inputs: &inputs, numbers: &numbers, weights: &weights };
        let threads = HostThreads::new();
        let plan = self.program.plan(&call, &threads)?;
        let mut outputs = made(plan.outputs(), results)?;
        match WATCHED.load(Ordering::Relaxed) {
            true => self.run_watched(&plan, &call, &mut outputs, &threads),
            false => Ok(self.program.run(&plan, &call, &mut outputs, &threads)?),
        }
    }
}

/// What one step of a Program took, over all calls that were watched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepTime {
    /// What it is.
    pub name: &'static str,
    /// How often it ran.
    pub runs: u32,
    /// How long that took.
    pub total: Duration,
    /// Multiplications in a run.
    pub products: u64,
    /// Bytes that a run reads and writes, beside weights.
    pub bytes: u64,
}

static WATCHED: AtomicBool = AtomicBool::new(false);

/// The steps that were watched, by the plan's address and the step's number in it.
static STEPS: Mutex<BTreeMap<(usize, usize), StepTime>> = Mutex::new(BTreeMap::new());

/// Has the times of steps be taken from now on, or no longer; forgets those that were taken before.
pub fn watch_steps(on: bool) {
    STEPS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    WATCHED.store(on, Ordering::Relaxed);
}

/// The times that were taken, Program after Program, in the order of the steps.
pub fn step_times() -> Vec<StepTime> {
    STEPS.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

impl CompiledPart {
    fn run_watched(
        &self,
        plan: &Arc<Plan>,
        call: &Call<'_>,
        outputs: &mut [&mut [u8]],
        threads: &HostThreads,
    ) -> Result<()> {
        let tasks = plan.tasks();
        let mut times = vec![Duration::ZERO; tasks.len()];
        self.program.run_timed(plan, call, outputs, threads, &mut |task, time| times[task] = time)?;
        let mut steps = STEPS.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, (task, time)) in tasks.iter().zip(times).enumerate() {
            let new = StepTime {
                name: task.kernel,
                runs: 0,
                total: Duration::ZERO,
                products: task.products,
                bytes: task.bytes,
            };
            let step = steps.entry((Arc::as_ptr(plan) as usize, number)).or_insert(new);
            step.runs += 1;
            step.total += time;
        }
        Ok(())
    }
}

fn conv(operands: &ffi::Operands, index: usize) -> Result<Weight<'_>> {
    Ok(ffi::operand_conv(operands, index)?.weight(ffi::operand_conv_bias(operands, index)?))
}

fn linear(operands: &ffi::Operands, index: usize) -> Result<Weight<'_>> {
    Ok(ffi::operand_linear(operands, index)?.weight(ffi::operand_linear_bias(operands, index)?))
}

/// A tensor of the call.
fn input(operands: &ffi::Operands, index: usize) -> Result<Input<'_>> {
    if !ffi::operand_is_plain(operands, index) {
        return Err(Error::invalid("an argument that is no plain tensor on the CPU"));
    }
    let element = match ffi::operand_type(operands, index) {
        BYTE => Element::U8,
        FLOAT => Element::F32,
        other => return Err(Error::invalid(format!("elements of libtorch's type {other}"))),
    };
    let (sizes, strides) = (ffi::operand_sizes(operands, index), ffi::operand_strides(operands, index));
    let len = span(sizes, strides).and_then(|span| span.checked_mul(element.size()));
    let data = ffi::operand_data(operands, index) as *const u8;
    match len {
        Some(len) if len > 0 && !data.is_null() && data.align_offset(element.size()) == 0 => {
            // SAFETY: the tensor, which the interpreter's stack holds during the call, has elements at its sizes and strides
            // from `data` on; bytes are in each. Nobody writes into it meanwhile: no operator of a part writes.
            let memory = unsafe { std::slice::from_raw_parts(data, len) };
            Ok(Input { element, sizes, strides, memory })
        }
        _ => Err(Error::invalid(format!("a tensor of sizes {sizes:?} and strides {strides:?}"))),
    }
}

/// Elements from the first one in memory to the last one, both included.
fn span(sizes: &[i64], strides: &[i64]) -> Option<usize> {
    let reach = |(size, stride): (&i64, &i64)| {
        let (size, stride) = (usize::try_from(*size).ok()?, usize::try_from(*stride).ok()?);
        size.checked_sub(1)?.checked_mul(stride)
    };
    sizes.iter().zip(strides).map(reach).try_fold(1usize, |sum, reach| sum.checked_add(reach?))
}

/// Tensors for the results.
fn made<'a>(layouts: &[Layout], mut results: Pin<&mut ffi::Results>) -> Result<Vec<&'a mut [u8]>> {
    let mut outputs = Vec::with_capacity(layouts.len());
    for layout in layouts {
        let element = if layout.element == Element::U8 { BYTE } else { FLOAT };
        let address = ffi::results_add(results.as_mut(), element, &layout.sizes, &layout.strides)?;
        let len = layout.span() * layout.element.size();
        // SAFETY: libtorch gave a new tensor of these sizes and strides, which nobody else has and which lives in `results`
        // until the call ends. Any bytes are elements of both types, and each is written before it is read.
        outputs.push(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) });
    }
    Ok(outputs)
}
