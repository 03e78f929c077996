//! A Program for the sizes of a call: which kernel computes what, and where each value lies.

mod cache;
mod place;

pub(crate) use cache::Plans;
pub use place::{Buffer, place};

use jitquant_kernels::Parallel;

use crate::arena::ALIGNMENT;
use crate::layout::{Format, Layout};
use crate::program::{Program, ValueId};
use crate::run::Call;
use crate::size::Size;
use crate::steps::copy::{Copy, Rows};
use crate::steps::{self, Kernel};
use crate::view::Seen;
use crate::{Error, Result, refuse};

/// Memory that values lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A tensor of the caller's.
    Input(usize),
    /// A result, which the caller gives memory for.
    Output(usize),
    /// A buffer of the plan's, by its number while the plan is made; later the arena, of which there is one.
    Arena(usize),
}

/// A value: its layout, and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub layout: Layout,
    pub root: Root,
    /// In elements.
    pub offset: usize,
}

impl Placed {
    /// The same memory in another layout.
    pub fn seen(&self, layout: Layout, offset: usize) -> Self {
        Self { layout, root: self.root, offset: self.offset + offset }
    }

    fn region(&self) -> Region {
        let size = self.layout.element.size();
        Region { root: self.root, offset: self.offset * size, len: self.layout.span() * size }
    }
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub root: Root,
    pub offset: usize,
    pub len: usize,
}

impl Region {
    fn overlaps(&self, other: &Region) -> bool {
        let is_same = match (self.root, other.root) {
            (Root::Arena(_), Root::Arena(_)) => true,
            (a, b) => a == b,
        };
        is_same && self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// Operands of a task, at most.
pub(crate) const OPERANDS: usize = 4;

/// A kernel and the memory that it works on.
pub(crate) struct Task {
    pub kernel: Kernel,
    pub inputs: [Option<Region>; OPERANDS],
    pub output: Region,
    pub scratch: Region,
    /// The step that it is of.
    pub step: usize,
}

/// What a task of a plan is, for people.
#[derive(Clone, Debug)]
pub struct TaskInfo {
    /// The number of its step in [`Program::steps`].
    pub step: usize,
    /// Its kernel.
    pub kernel: &'static str,
    /// Multiplications.
    pub products: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// A Program planned for the sizes of a call.
pub struct Plan {
    pub(crate) tasks: Vec<Task>,
    pub(crate) arena: usize,
    outputs: Vec<Layout>,
}

impl Plan {
    /// The layouts of the results.
    pub fn outputs(&self) -> &[Layout] {
        &self.outputs
    }

    /// Bytes that a run computes in, beside its inputs and outputs.
    pub fn arena_bytes(&self) -> usize {
        self.arena
    }

    /// What it does, in order.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        let bytes =
            |task: &Task| task.inputs.iter().flatten().map(|region| region.len).sum::<usize>() + task.output.len;
        let info = |task: &Task| TaskInfo {
            step: task.step,
            kernel: task.kernel.name(),
            products: task.kernel.products(),
            bytes: bytes(task) as u64,
        };
        self.tasks.iter().map(info).collect()
    }
}

/// Makes a plan step by step.
pub(crate) struct Planner<'a> {
    program: &'a Program,
    pub call: &'a Call<'a>,
    pub threads: &'a dyn Parallel,
    values: Vec<Option<Placed>>,
    buffers: Vec<Buffer>,
    tasks: Vec<Task>,
    step: usize,
}

/// Plans `program` for a call.
pub(crate) fn plan(program: &Program, call: &Call<'_>, threads: &dyn Parallel) -> Result<Plan> {
    let mut values = vec![None; program.values];
    for (index, (value, input)) in program.inputs.iter().zip(call.inputs).enumerate() {
        let layout = input.layout();
        layout.check()?;
        values[value.0] = Some(Placed { layout, root: Root::Input(index), offset: 0 });
    }
    let mut planner = Planner { program, call, threads, values, buffers: Vec::new(), tasks: Vec::new(), step: 0 };
    for (number, step) in program.steps.iter().enumerate() {
        planner.step = number;
        let result = steps::plan(&mut planner, &step.op, &step.inputs)?;
        result.layout.check()?;
        planner.values[step.output.0] = Some(result);
    }
    let outputs = planner.outputs()?;
    planner.write_into_results();
    planner.finish(outputs)
}

impl Planner<'_> {
    /// A value that steps before this one gave.
    pub fn value(&self, id: ValueId) -> Result<&Placed> {
        self.values.get(id.0).and_then(Option::as_ref).ok_or_else(|| Error("a value that nothing gives".to_owned()))
    }

    /// The number that a size is in this call.
    pub fn number(&self, size: &Size) -> Result<i64> {
        size.value(self.call.numbers, &|id| self.value(id).map(|placed| &placed.layout))
    }

    /// Where the value of this step goes: a result's memory where it is one.
    pub fn result(&mut self, layout: Layout) -> Result<Placed> {
        layout.check()?;
        let output = self.program.steps[self.step].output;
        Ok(match self.program.outputs.iter().position(|id| *id == output) {
            Some(index) => Placed { layout, root: Root::Output(index), offset: 0 },
            None => self.temporary(layout),
        })
    }

    /// Whether the value of this step is a result.
    pub fn is_result(&self) -> bool {
        self.program.outputs.contains(&self.program.steps[self.step].output)
    }

    /// A place in the arena.
    pub fn temporary(&mut self, layout: Layout) -> Placed {
        let bytes = layout.span() * layout.element.size();
        let root = self.buffer(bytes);
        Placed { layout, root, offset: 0 }
    }

    fn buffer(&mut self, bytes: usize) -> Root {
        self.buffers.push(Buffer { bytes, first: usize::MAX, last: 0 });
        Root::Arena(self.buffers.len() - 1)
    }

    /// `x` with its memory in this order: itself, or a copy.
    pub fn dense(&mut self, x: &Placed, format: Format) -> Result<Placed> {
        match x.layout.is_contiguous(format) {
            true => Ok(x.clone()),
            false => {
                let copy = self.temporary(Layout::new(x.layout.element, &x.layout.sizes, format));
                self.copy(x, &copy)?;
                Ok(copy)
            }
        }
    }

    /// `x` with its memory without gaps, in the order that it has where it has none.
    pub fn without_gaps(&mut self, x: &Placed) -> Result<Placed> {
        match x.layout.is_dense() {
            true => Ok(x.clone()),
            false => self.dense(x, Format::Contiguous),
        }
    }

    /// Copies elements.
    pub fn copy(&mut self, from: &Placed, to: &Placed) -> Result<()> {
        let kernel = Kernel::Copy(Copy::new(&from.layout, &to.layout)?);
        self.push(kernel, &[from], to, 0);
        Ok(())
    }

    /// A view of `x`, or a copy where there is none.
    pub fn view(&mut self, x: Placed, seen: Seen) -> Result<Placed> {
        Ok(match seen {
            Seen::Same(layout, offset) => x.seen(layout, offset),
            Seen::Copied(format, layout) => self.dense(&x, format)?.seen(layout, 0),
        })
    }

    /// A task behind those that there are.
    pub fn push(&mut self, kernel: Kernel, inputs: &[&Placed], output: &Placed, scratch: usize) {
        let scratch = Region { root: self.buffer(scratch), offset: 0, len: scratch };
        let mut regions = [None; OPERANDS];
        for (to, input) in regions.iter_mut().zip(inputs) {
            *to = Some(input.region());
        }
        self.tasks.push(Task { kernel, inputs: regions, output: output.region(), scratch, step: self.step });
    }

    /// The layouts of the results; those that are views, or tensors of the caller's, are copied.
    fn outputs(&mut self) -> Result<Vec<Layout>> {
        let mut layouts = Vec::new();
        for (index, id) in self.program.outputs.iter().enumerate() {
            let placed = self.value(*id)?.clone();
            let is_there = placed.root == Root::Output(index) && placed.offset == 0 && placed.layout.is_dense();
            let layout = match placed.layout.is_dense() {
                true => placed.layout.clone(),
                false => Layout::new(placed.layout.element, &placed.layout.sizes, Format::Contiguous),
            };
            if !is_there {
                self.copy(&placed, &Placed { layout: layout.clone(), root: Root::Output(index), offset: 0 })?;
            }
            layouts.push(layout);
        }
        Ok(layouts)
    }

    /// Has tasks write straight into a part of a concatenation where they would be copied there as they are.
    fn write_into_results(&mut self) {
        let mut index = 0;
        while index < self.tasks.len() {
            let task = &self.tasks[index];
            let whole = match (&task.kernel, task.inputs[0]) {
                (Kernel::Rows(rows), Some(input)) if rows.is_plain() => {
                    self.whole_buffer(&input).map(|from| (from, task.output))
                }
                _ => None,
            };
            match whole {
                Some((from, to)) => {
                    self.tasks.remove(index);
                    self.redirect(from, to);
                }
                None => index += 1,
            }
        }
    }

    /// The buffer that a region is all of.
    fn whole_buffer(&self, region: &Region) -> Option<usize> {
        let Root::Arena(buffer) = region.root else { return None };
        (region.offset == 0 && region.len == self.buffers[buffer].bytes).then_some(buffer)
    }

    /// Moves all that lies in buffer `from` to where `to` is.
    fn redirect(&mut self, from: usize, to: Region) {
        let moved = |region: &mut Region| {
            if region.root == Root::Arena(from) {
                (region.root, region.offset) = (to.root, region.offset + to.offset);
            }
        };
        for task in &mut self.tasks {
            task.inputs.iter_mut().flatten().for_each(moved);
            moved(&mut task.output);
        }
    }

    fn finish(mut self, outputs: Vec<Layout>) -> Result<Plan> {
        for (number, task) in self.tasks.iter().enumerate() {
            for region in task.inputs.iter().flatten().chain([&task.output, &task.scratch]) {
                if let Root::Arena(buffer) = region.root {
                    let buffer = &mut self.buffers[buffer];
                    (buffer.first, buffer.last) = (buffer.first.min(number), buffer.last.max(number));
                }
            }
        }
        let bytes = |all: usize, buffer: &Buffer| all.checked_add(buffer.bytes.checked_next_multiple_of(ALIGNMENT)?);
        let all = self.buffers.iter().try_fold(0, bytes).filter(|all| *all < isize::MAX as usize);
        if all.is_none() {
            return refuse("values that are larger than memory");
        }
        let (places, arena) = place(&self.buffers);
        for task in &mut self.tasks {
            for region in task.inputs.iter_mut().flatten().chain([&mut task.output, &mut task.scratch]) {
                if let Root::Arena(buffer) = region.root {
                    (region.root, region.offset) = (Root::Arena(0), region.offset + places[buffer]);
                }
            }
        }
        let plan = Plan { tasks: self.tasks, arena, outputs };
        plan.check()?;
        Ok(plan)
    }
}

impl Plan {
    /// What [`run`](crate::run) relies on: a task's output and scratch lie apart from each other and from its inputs, all of
    /// the arena's within it, and nothing is written into the caller's tensors.
    fn check(&self) -> Result<()> {
        for task in &self.tasks {
            let inputs = || task.inputs.iter().flatten();
            let apart = inputs().all(|input| !input.overlaps(&task.output) && !input.overlaps(&task.scratch))
                && !task.output.overlaps(&task.scratch);
            let mut all = inputs().chain([&task.output, &task.scratch]);
            let within = all.all(|region| match region.root {
                Root::Arena(_) => region.offset.checked_add(region.len).is_some_and(|end| end <= self.arena),
                _ => true,
            });
            let writes = matches!(task.scratch.root, Root::Arena(_)) && !matches!(task.output.root, Root::Input(_));
            if !apart || !within || !writes {
                return refuse(format!("a plan whose {} does not fit its memory", task.kernel.name()));
            }
        }
        Ok(())
    }
}

impl Rows {
    /// Whether it copies memory as it is.
    fn is_plain(&self) -> bool {
        self.table.is_none() && (self.rows == 1 || (self.width == self.from && self.width == self.to))
    }
}
