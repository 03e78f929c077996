//! Who runs the parts of a kernel: the caller's threads, never ours.

/// Runs independent tasks. libtorch's `at::parallel_for` implements it in the engine; without libtorch, rayon can.
pub trait Parallel: Sync {
    /// How many tasks can run at once; at least 1. A kernel makes about as many tasks, and needs scratch for each.
    fn threads(&self) -> usize;

    /// Calls `task(i)` once for every `i` in `0..tasks`, in any order and on any thread, and returns when all are done.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}
