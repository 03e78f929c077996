//! A model's own threads.

use jitquant_kernels::Parallel;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::{Error, Result, refuse};

/// Threads that a model may have, at most.
const MOST: usize = 1024;

/// Threads that work on a call's steps.
pub(super) struct Pool(rayon::ThreadPool);

impl Pool {
    /// A pool of `threads`; `None` for one, which is the caller's.
    pub fn new(threads: usize) -> Result<Option<Self>> {
        match threads {
            1 => Ok(None),
            2..=MOST => {
                let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let builder = builder.thread_name(|index| format!("jitquant-{index}"));
                let pool = builder.build().map_err(|why| Error(format!("{threads} threads: {why}")))?;
                Ok(Some(Self(pool)))
            }
            _ => refuse(format!("{threads} threads; 1 to {MOST} are accepted")),
        }
    }
}

impl Parallel for Pool {
    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match tasks {
            0 | 1 => (0..tasks).for_each(task),
            _ => self.0.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task)),
        }
    }
}
