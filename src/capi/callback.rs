//! Calling the program's functions.
//!
//! While one runs, the library's call that it belongs to holds locks. A call from it that takes one of them would wait for
//! ever, and two threads that do so for one another as well, so that such calls are refused.

use std::cell::Cell;

use super::status::{Failure, Outcome};

thread_local! {
    /// How many functions of the program's this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Calls a function of the program's.
pub(super) fn call_program<T>(function: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _leave = Leave;
    function()
}

/// Refuses a call that takes locks where it is made from a callback.
pub(super) fn refuse_in_callback() -> Outcome<()> {
    match DEPTH.get() {
        0 => Ok(()),
        _ => Err(Failure::busy(
            "called from a callback: the call that it belongs to has to return first. Callbacks may load, look into and run \
             modules, set options and cancel; not prepare, calibrate, convert, save or change anything",
        )),
    }
}
