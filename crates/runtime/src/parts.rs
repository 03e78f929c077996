//! Element-wise work on several threads.
#![allow(unsafe_code)]

use jitquant_kernels::Parallel;

/// Elements that are worth a thread of their own.
const ELEMENTS_A_TASK: usize = 64 << 10;

/// Memory that tasks write in distinct parts.
struct Parts<T>(*mut T);

// SAFETY: each task takes its own part of an exclusive borrow.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// # Safety
    /// The part lies in the memory, and nobody else takes it.
    unsafe fn part<'a>(&self, from: usize, len: usize) -> &'a mut [T] {
        // SAFETY: by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}

/// Has `threads` work on `out` in parts of whole units of `unit` elements; `work` gets the number of the first unit and the
/// part. `cost` is how much a unit costs, in elements that are looked at once: a part that is too cheap for a thread of its own
/// is none.
pub fn in_parts<T: Send>(
    threads: &dyn Parallel,
    out: &mut [T],
    unit: usize,
    cost: usize,
    work: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let units = out.len().checked_div(unit).unwrap_or(0);
    let worth = units.saturating_mul(cost) / ELEMENTS_A_TASK;
    if worth < 2 {
        return work(0, out);
    }
    let tasks = threads.threads().min(worth).min(units).max(1);
    let (parts, len) = (Parts(out.as_mut_ptr()), out.len());
    threads.run(tasks, &|task| {
        let (first, end) = (units * task / tasks, units * (task + 1) / tasks);
        let end = if task + 1 == tasks { len } else { end * unit };
        // SAFETY: tasks have distinct units, all within `out`.
        work(first, unsafe { parts.part(first * unit, end - first * unit) });
    });
}
