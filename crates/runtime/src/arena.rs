//! The memory that runs compute in.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// What every value's place is a multiple of: a cache line, and the longest vector.
pub(crate) const ALIGNMENT: usize = 64;

/// Arenas that are kept for later runs, at most.
const KEPT: usize = 64;

/// Memory of one run.
pub(crate) struct Arena {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the arena alone.
unsafe impl Send for Arena {}

impl Arena {
    fn new(len: usize) -> Result<Self> {
        let refused = || Error(format!("no memory for the {len} bytes that a Program computes in"));
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT).map_err(|_| refused())?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        Ok(Self { start, len: layout.size() })
    }

    /// Its first byte; all of its bytes were written, by the system or a run.
    pub fn start(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it with this layout, which it checked.
        unsafe { dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.len, ALIGNMENT)) };
    }
}

/// Arenas that no run uses now.
#[derive(Default)]
pub(crate) struct Arenas(Mutex<Vec<Arena>>);

impl Arenas {
    /// Calls `work` with an arena of at least `len` bytes, which nobody else has meanwhile.
    pub fn with<R>(&self, len: usize, work: impl FnOnce(&mut Arena) -> Result<R>) -> Result<R> {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is too small is dropped: it would be again.
        let kept = free().pop().filter(|arena| arena.len >= len);
        let mut arena = match kept {
            Some(arena) => arena,
            None => Arena::new(len)?,
        };
        let result = work(&mut arena);
        let mut free = free();
        if free.len() < KEPT {
            free.push(arena);
        }
        result
    }
}
