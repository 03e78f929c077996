//! Running a plan.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use jitquant_kernels::Parallel;

use crate::layout::{Element, Layout};
use crate::plan::{Plan, Region, Root};
use crate::program::{Program, Weight};
use crate::steps;
use crate::{Result, refuse};

/// A tensor that a call gives: its memory from the first element to the last one, whatever the order.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The type of its elements.
    pub element: Element,
    /// Its sizes.
    pub sizes: &'a [i64],
    /// Elements from one index to the next along each dimension.
    pub strides: &'a [i64],
    /// Its memory.
    pub memory: &'a [u8],
}

impl<'a> Input<'a> {
    /// A tensor of bytes.
    pub fn bytes(memory: &'a [u8], sizes: &'a [i64], strides: &'a [i64]) -> Self {
        Self { element: Element::U8, sizes, strides, memory }
    }

    /// A tensor of floats.
    pub fn floats(memory: &'a [f32], sizes: &'a [i64], strides: &'a [i64]) -> Self {
        Self { element: Element::F32, sizes, strides, memory: bytemuck::cast_slice(memory) }
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout { element: self.element, sizes: self.sizes.to_vec(), strides: self.strides.to_vec() }
    }

    pub(crate) fn is(&self, layout: &Layout) -> bool {
        self.element == layout.element && self.sizes == layout.sizes && self.strides == layout.strides
    }
}

/// What a call gives.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Tensors.
    pub inputs: &'a [Input<'a>],
    /// Integers.
    pub numbers: &'a [i64],
    /// Weights.
    pub weights: &'a [Weight<'a>],
}

/// The memory of a run.
struct Memory<'a> {
    inputs: &'a [Input<'a>],
    /// The first of as many as were checked.
    outputs: *const *mut [u8],
    arena: *mut u8,
}

impl Memory<'_> {
    /// Where a region begins: within its memory, as `check` below and that of the plan found.
    fn start(&self, region: &Region) -> *mut u8 {
        let base = match region.root {
            Root::Input(index) => self.inputs[index].memory.as_ptr().cast_mut(),
            // SAFETY: `check` found an output of this number; an exclusive reference can be read as a pointer.
            Root::Output(index) => unsafe { *self.outputs.add(index) }.cast(),
            Root::Arena(_) => self.arena,
        };
        base.wrapping_add(region.offset)
    }
}

impl Program {
    /// Runs a plan of this Program for a call of the sizes that it was made for.
    ///
    /// `outputs` are as many, and as long, as [`Plan::outputs`] says. Nothing is allocated but what the first runs compute in.
    ///
    /// # Errors
    /// Where the call does not fit the plan, or an output is too short.
    pub fn run(&self, plan: &Plan, call: &Call<'_>, outputs: &mut [&mut [u8]], threads: &dyn Parallel) -> Result<()> {
        self.run_watched(plan, call, outputs, threads, &mut |_| {})
    }

    /// As [`run`](Self::run), and tells `watch` how long each task took, by its number.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_timed(
        &self,
        plan: &Plan,
        call: &Call<'_>,
        outputs: &mut [&mut [u8]],
        threads: &dyn Parallel,
        watch: &mut dyn FnMut(usize, Duration),
    ) -> Result<()> {
        let mut before = Instant::now();
        self.run_watched(plan, call, outputs, threads, &mut |task| {
            let now = Instant::now();
            watch(task, now - before);
            before = now;
        })
    }

    fn run_watched(
        &self,
        plan: &Plan,
        call: &Call<'_>,
        outputs: &mut [&mut [u8]],
        threads: &dyn Parallel,
        watch: &mut dyn FnMut(usize),
    ) -> Result<()> {
        check(plan, call, outputs)?;
        self.arenas.with(plan.arena, |arena| {
            let memory = Memory { inputs: call.inputs, outputs: outputs.as_mut_ptr().cast(), arena: arena.start() };
            for (number, task) in plan.tasks.iter().enumerate() {
                let read = |region: &Region| {
                    // SAFETY: the region lies in memory that the caller lends for the run, or in the arena, which this run
                    // has alone and all of whose bytes were written (`check` below, `Plan::check`, `Arenas::with`). The task
                    // writes nowhere in it (`Plan::check`); outputs are exclusive borrows, so no input lies in one.
                    unsafe { std::slice::from_raw_parts(memory.start(region).cast_const(), region.len) }
                };
                let inputs = task.inputs.each_ref().map(|region| region.as_ref().map(read));
                // SAFETY: as above; nothing else of the task overlaps the region (`Plan::check`), and it is in an output or
                // the arena, which may be written.
                let output = unsafe { std::slice::from_raw_parts_mut(memory.start(&task.output), task.output.len) };
                // SAFETY: as above.
                let scratch = unsafe { std::slice::from_raw_parts_mut(memory.start(&task.scratch), task.scratch.len) };
                steps::run(&task.kernel, inputs, output, scratch, call.weights, threads)?;
                watch(number);
            }
            Ok(())
        })
    }
}

/// Checks that all that the tasks touch is there.
fn check(plan: &Plan, call: &Call<'_>, outputs: &[&mut [u8]]) -> Result<()> {
    let holds = |region: &Region| {
        let len = match region.root {
            Root::Input(index) => call.inputs.get(index).map(|input| input.memory.len()),
            Root::Output(index) => outputs.get(index).map(|output| output.len()),
            Root::Arena(_) => return true,
        };
        len.is_some_and(|len| region.offset.checked_add(region.len).is_some_and(|end| end <= len))
    };
    let mut regions =
        plan.tasks.iter().flat_map(|task| task.inputs.iter().flatten().chain([&task.output, &task.scratch]));
    match regions.all(holds) && outputs.len() == plan.outputs().len() {
        true => Ok(()),
        false => refuse("a call that does not fit its plan"),
    }
}
