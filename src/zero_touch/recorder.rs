//! Writing what observers see into the file: every minute, and when the application exits.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use super::say;
use crate::error::Result;
use crate::ir::{IValue, Module, Tensor};
use crate::ranges::{Recorded, State};

/// How often the file is written.
const EVERY: Duration = Duration::from_secs(60);

/// The models of this process.
#[derive(Default)]
struct Recorder {
    models: Vec<(u64, Vec<(String, Module)>)>,
    /// What was taken out of observers and is not in the file yet.
    pending: Recorded,
    path: PathBuf,
    failed: bool,
}

// SAFETY: the modules are observers; they are only reached through the mutex, and `take_observed` waits for the threads
// that observe meanwhile.
unsafe impl Send for Recorder {}

static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> std::ffi::c_int;
}

extern "C" fn write_at_exit() {
    // Nothing may unwind into the C library.
    let _ = std::panic::catch_unwind(write);
}

/// Records what `observers`, with the tensors they watch, see of the model, in the file at `path`.
pub(super) fn record(fingerprint: u64, observers: Vec<(String, Module)>, path: &Path) {
    {
        let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = recorder.get_or_insert_default();
        path.clone_into(&mut recorder.path);
        recorder.models.push((fingerprint, observers));
    }
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: the function may be called at exit: it needs nothing that is gone by then. Handlers run in the opposite
        // order of their registration, and libtorch was set up before this one.
        if unsafe { atexit(write_at_exit) } != 0 {
            say("what is observed in the last minute before exit will not be recorded");
        }
        let writer = std::thread::Builder::new().name("jitquant".into()).spawn(|| {
            loop {
                std::thread::sleep(EVERY);
                write();
            }
        });
        if let Err(e) = writer {
            say(&format!("ranges are recorded at exit only: {e}"));
        }
    });
}

/// Adds what was observed since the last time to the file. A failure is said once, and the values are kept for the next
/// time.
fn write() {
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(recorder) = recorder.as_mut() else { return };
    let outcome = recorder.take().and_then(|()| match recorder.pending.is_empty() {
        true => Ok(()),
        false => recorder.pending.add_to_file(&recorder.path),
    });
    match outcome {
        Ok(()) => (recorder.pending, recorder.failed) = (Recorded::default(), false),
        Err(e) if !recorder.failed => {
            recorder.failed = true;
            say(&format!("ranges are not recorded: {e}"));
        }
        Err(_) => {}
    }
}

impl Recorder {
    /// Takes what was observed out of the observers.
    fn take(&mut self) -> Result<()> {
        for (fingerprint, observers) in &self.models {
            for (tensor, observer) in observers {
                // The application may have brought them to another type, with the model.
                let values = |value: &IValue| value.as_tensor().map_or(Ok(Vec::new()), Tensor::to_f32_vec);
                let state = observer.take_observed()?.iter().map(values).collect::<Result<Vec<_>>>()?;
                let mut state = state.into_iter();
                let mut next = || state.next().unwrap_or_default();
                let state = State { min: next(), max: next(), counts: next() };
                if state.has_values() {
                    self.pending.add(*fingerprint, tensor, &state);
                }
            }
        }
        Ok(())
    }
}
