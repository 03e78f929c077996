//! The host's threads and each thread's scratch memory.

use std::alloc::Layout;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use super::bridge::ffi;
use crate::error::{Error, Result};
use crate::kernel::Parallel;

/// libtorch's intra-op threads: `at::parallel_for`.
pub(crate) struct HostThreads {
    threads: usize,
}

impl HostThreads {
    /// As many as `at::get_num_threads()` says; one inside a parallel region.
    pub fn new() -> Self {
        Self { threads: usize::try_from(ffi::host_threads()).unwrap_or(1).max(1) }
    }
}

impl Parallel for HostThreads {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks < 2 || self.threads < 2 {
            return (0..tasks).for_each(task);
        }
        let shared = Tasks { task, panic: Mutex::new(None) };
        let ran = ffi::host_parallel(tasks, &shared);
        if let Some(panic) = shared.panic.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            resume_unwind(panic);
        }
        ran.expect("at::parallel_for throws only what its tasks throw");
    }
}

/// Tasks that C++ runs. A panic is kept, since it may not unwind into C++.
pub(super) struct Tasks<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

pub(super) fn run_task(tasks: &Tasks<'_>, index: usize) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (tasks.task)(index)))
        && let Ok(mut first) = tasks.panic.lock()
    {
        first.get_or_insert(panic);
    }
}

/// Scratch that a thread keeps from call to call, at most; larger ones are freed.
const KEPT: usize = 16 << 20;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// `len` zeros, straight from the system where they are many.
fn zeroed(len: usize) -> Result<Vec<u8>> {
    let refused = || Error::invalid(format!("no memory for the {len} bytes that a layer computes in"));
    let layout = Layout::array::<u8>(len).map_err(|_| refused())?;
    // SAFETY: the layout is not empty: `len` is more than the length of some vector.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(refused());
    }
    // SAFETY: the allocator gave `len` zeroed bytes in the layout of a vector of that capacity.
    Ok(unsafe { Vec::from_raw_parts(start, len, len) })
}

/// Lends the thread's scratch memory: `len` bytes of any content.
///
/// # Errors
/// Where the system does not have so much.
pub(super) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
    // A thread that is ending keeps none.
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    if scratch.len() < len {
        // Not what is there, grown: that would copy what nobody needs.
        drop(scratch);
        scratch = zeroed(len)?;
    }
    let result = work(&mut scratch[..len]);
    if scratch.len() <= KEPT {
        SCRATCH.try_with(|kept| kept.set(scratch)).ok();
    }
    Ok(result)
}

/// Has the host's threads work on `out` in parts of whole units of `unit` elements: see [`jitquant_runtime::in_parts`].
pub(crate) fn in_parts<T: Send>(out: &mut [T], unit: usize, cost: usize, work: &(dyn Fn(usize, &mut [T]) + Sync)) {
    jitquant_runtime::in_parts(&HostThreads::new(), out, unit, cost, work);
}
