//! Passes in libtorch's pass manager: they see every graph that libtorch executes, whoever loaded the model.
//!
//! libtorch runs them when its profiling executor optimizes a graph, on the third run of a model by default. They are off
//! unless asked for: by [`register`], or by the environment variable `JITQUANT_PASSES` (names with commas between them) when
//! the library is loaded.

mod bridge;
mod observe;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use cxx::SharedPtr;

use self::bridge::ffi;
use self::observe::record_range;
pub use self::observe::{ObservedRange, forget_ranges, observed_ranges, save_ranges};
use crate::error::{Error, Result};
use crate::ir::Graph;
use crate::pass::{fold_constant_prepacks, make_programs, rewrite_executed, set_programs};

/// A pass over the graphs that libtorch executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum GraphPass {
    /// Weights that are packed at each run are packed once: [`fold_constant_prepacks`]. After fusion.
    Prepack = 1,
    /// What static quantization would observe is observed, graph by graph: [`observed_ranges`]. Before fusion.
    Observe = 2,
    /// Operators on libtorch's quantized tensors become jitquant's own, which take in what stands around them. Weights are
    /// repacked once and shared by all graphs that use them. After fusion.
    Accelerate = 4,
    /// Parts of native models run as Programs. After fusion, and after the other passes. On unless the environment says
    /// `JITQUANT_PROGRAM=0`: [`set_programs`].
    Program = 8,
}

impl GraphPass {
    /// In the order in which they run.
    const ALL: [Self; 4] = [Self::Prepack, Self::Observe, Self::Accelerate, Self::Program];

    /// Its name in `JITQUANT_PASSES`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepack => "prepack",
            Self::Observe => "observe",
            Self::Accelerate => "accelerate",
            Self::Program => "program",
        }
    }

    fn before_fusion(self) -> bool {
        self == Self::Observe
    }

    fn run(self, graph: &mut Graph) -> Result<()> {
        match self {
            Self::Prepack => fold_constant_prepacks(graph).map(drop),
            Self::Observe => observe::observe(graph),
            Self::Accelerate => rewrite_executed(graph).map(drop),
            Self::Program => make_programs(graph).map(drop),
        }
    }
}

/// The passes that are registered, and libtorch's numbers for them.
static REGISTERED: Mutex<Vec<(GraphPass, u32)>> = Mutex::new(Vec::new());

/// Registers passes; those that are registered already stay so. Graphs that libtorch has optimized before stay as they
/// are.
///
/// libtorch's list of passes has no lock: register before other threads run models.
///
/// # Errors
/// Where the process has a libtorch of another version.
///
/// ```
/// use jitquant::plugin::{GraphPass, clear, register};
/// register(&[GraphPass::Prepack])?;
/// // … models run …
/// clear()?;
/// # Ok::<(), jitquant::Error>(())
/// ```
pub fn register(passes: &[GraphPass]) -> Result<()> {
    crate::init()?;
    register_now(passes)
}

fn register_now(passes: &[GraphPass]) -> Result<()> {
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    for pass in passes.iter().filter(|pass| **pass != GraphPass::Program) {
        if registered.iter().all(|(known, _)| known != pass) {
            registered.push((*pass, ffi::pass_register(pass.before_fusion(), *pass as u32)?));
        }
    }
    register_programs()
}

/// libtorch's number of the pass that makes Programs.
static PROGRAMS: Mutex<Option<u32>> = Mutex::new(None);

/// Registers the pass that makes Programs behind all others: it takes what they leave.
fn register_programs() -> Result<()> {
    crate::engine::compile_parts_by(crate::pass::compile_part);
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let pass = GraphPass::Program;
    if let Some(number) = programs.take() {
        ffi::pass_clear(pass.before_fusion(), number)?;
    }
    *programs = Some(ffi::pass_register(pass.before_fusion(), pass as u32)?);
    Ok(())
}

/// Takes the passes away from libtorch, all but [`GraphPass::Program`]. What they did to graphs stays.
///
/// # Errors
/// Where libtorch refuses.
pub fn clear() -> Result<()> {
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((pass, number)) = registered.pop() {
        ffi::pass_clear(pass.before_fusion(), number)?;
    }
    Ok(())
}

/// The passes of a bit mask.
///
/// # Errors
/// Where a bit is none of a pass.
pub fn from_mask(mask: u32) -> Result<Vec<GraphPass>> {
    let known: u32 = GraphPass::ALL.iter().map(|pass| *pass as u32).sum();
    match mask & !known {
        0 => Ok(GraphPass::ALL.into_iter().filter(|pass| mask & *pass as u32 != 0).collect()),
        other => Err(Error::invalid(format!("passes {other:#x}: there are none of these numbers"))),
    }
}

/// The passes that a text names.
fn from_names(names: &str) -> Result<Vec<GraphPass>> {
    let pass = |name: &str| {
        GraphPass::ALL.into_iter().find(|pass| pass.name() == name).ok_or_else(|| {
            let known: Vec<_> = GraphPass::ALL.iter().map(|pass| pass.name()).collect();
            Error::invalid(format!("JITQUANT_PASSES: '{name}' is no pass; there are {}", known.join(", ")))
        })
    };
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(pass).collect()
}

/// Registers what the environment asks for; a mistake in it is said on stderr.
fn register_passes_from_environment() {
    let names = std::env::var("JITQUANT_PASSES").unwrap_or_default();
    set_programs(std::env::var("JITQUANT_PROGRAM").map_or(true, |value| value != "0"));
    let register = || from_names(&names).and_then(|passes| register_now(&passes));
    // Nothing may unwind into the loader.
    if let Ok(Err(e)) = catch_unwind(register) {
        eprintln!("jitquant: {e}");
    }
}

/// What libtorch calls with each graph that it optimizes. A pass that fails leaves a message.
fn run_graph_pass(graph: SharedPtr<ffi::Graph>, pass: u32) {
    let run = || {
        let mut graph = Graph::of_host(graph);
        from_mask(pass)?.into_iter().try_for_each(|pass| pass.run(&mut graph))
    };
    // Nothing may unwind into libtorch.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::error!("a pass over an executed graph: {e}"),
        Err(_) => tracing::error!("a pass over an executed graph panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_have_names_and_bits() {
        assert_eq!(from_names("observe, prepack").unwrap(), [GraphPass::Observe, GraphPass::Prepack]);
        assert_eq!(from_names("").unwrap(), []);
        assert!(from_names("accelerator").unwrap_err().to_string().contains("prepack, observe, accelerate, program"));
        assert_eq!(from_mask(15).unwrap(), GraphPass::ALL);
        assert!(from_mask(64).is_err());
    }
}
