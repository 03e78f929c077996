//! Watching long calls: how far they are, and ending them early.
//!
//! ```
//! use std::{cell::Cell, ops::ControlFlow, rc::Rc};
//! use jitquant::{Error, Quantizer, ir::Module, watch::watched};
//! # let module = Module::new("Empty")?;
//! # module.define("def forward(self, x: int) -> int:\n    return x\n")?;
//! let stages = Rc::new(Cell::new(0));
//! let counted = stages.clone();
//! let outcome = watched(
//!     move |step| {
//!         println!("{} ({}/{})", step.stage, step.done, step.total);
//!         counted.set(counted.get() + 1);
//!         ControlFlow::Break(()) // a user pressed "cancel"
//!     },
//!     || Quantizer::static_ptq().prepare(&module),
//! );
//! assert!(matches!(outcome, Err(Error::Cancelled)));
//! assert_eq!(stages.get(), 1);
//! # Ok::<(), Error>(())
//! ```

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::Rc;

use crate::error::{Error, Result};

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step<'a> {
    /// What is about to be done, e.g. `inserting observers`.
    pub stage: &'a str,
    /// How many of the call's stages are done.
    pub done: usize,
    /// How many stages the call has; 0 where that is not known (a model that runs).
    pub total: usize,
}

type Watch = Rc<dyn Fn(Step<'_>) -> ControlFlow<()>>;

struct Watched {
    watch: Watch,
    /// Whether the watch ended the call.
    ended: Rc<Cell<bool>>,
}

thread_local! {
    static WATCHES: RefCell<Vec<Watched>> = const { RefCell::new(Vec::new()) };
}

/// Makes `call` and asks `watch` before each of its stages, and at each tensor that is observed, whether to go on.
///
/// `watch` runs on the thread that calls, and should return soon. What the call changes it changes at its end, or takes
/// back, so an ended call leaves everything as it was.
///
/// # Errors
/// [`Error::Cancelled`] where `watch` ended the call, and the call's own.
pub fn watched<T>(
    watch: impl Fn(Step<'_>) -> ControlFlow<()> + 'static,
    call: impl FnOnce() -> Result<T>,
) -> Result<T> {
    struct Unwatch;
    impl Drop for Unwatch {
        fn drop(&mut self) {
            WATCHES.try_with(|all| all.borrow_mut().pop()).ok();
        }
    }
    let ended = Rc::new(Cell::new(false));
    // A thread that is ending has no watches any more: its last calls are not watched.
    WATCHES.try_with(|all| all.borrow_mut().push(Watched { watch: Rc::new(watch), ended: ended.clone() })).ok();
    let unwatch = Unwatch;
    let outcome = call();
    drop(unwatch);
    // On its way through libtorch the error became one of libtorch's.
    outcome.map_err(|error| if ended.get() { Error::Cancelled } else { error })
}

/// Tells the innermost watch of this thread where the call is.
///
/// # Errors
/// [`Error::Cancelled`] where it ends the call.
pub(crate) fn step(stage: &str, done: usize, total: usize) -> Result<()> {
    let innermost =
        |all: &RefCell<Vec<Watched>>| Some((all.borrow().last()?.watch.clone(), all.borrow().last()?.ended.clone()));
    let Ok(Some((watch, ended))) = WATCHES.try_with(innermost) else { return Ok(()) };
    if ended.get() || watch(Step { stage, done, total }).is_break() {
        ended.set(true);
        return Err(Error::Cancelled);
    }
    Ok(())
}
