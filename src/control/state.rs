//! What was measured so far, in a file: a run that was killed goes on where it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::evaluation::Figures;
use crate::error::{Error, Result, brief};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 28;

/// The figures of each model that was tried. Which one is tried next follows from them, so that they are all that has to
/// be kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// What model, data and options they are of.
    of: String,
    figures: BTreeMap<String, Figures>,
    /// What could not be tried, and why.
    failed: BTreeMap<String, String>,
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl State {
    /// What the file at `path` keeps, where it is of the same model, data and options; and how many figures that are.
    ///
    /// # Errors
    /// Where there is a file that is none of this kind.
    pub fn open(path: Option<&Path>, of: String) -> Result<(Self, usize)> {
        let fresh = |of| Self { of, figures: BTreeMap::new(), failed: BTreeMap::new(), path: path.map(Path::to_owned) };
        let Some(file) = path.filter(|path| path.exists()) else { return Ok((fresh(of), 0)) };
        let text = crate::file::read_text(file, LONGEST)?;
        let kept: Self = toml::from_str(&text).map_err(|e| {
            let why = brief(e.message().trim());
            Error::file(file, format!("keeps no state of an accuracy control ({why}): delete it"))
        })?;
        match kept.of == of {
            true => {
                let count = kept.figures.len();
                Ok((Self { path: path.map(Path::to_owned), ..kept }, count))
            }
            false => Ok((fresh(of), 0)),
        }
    }

    pub fn figures(&self, what: &str) -> Option<Figures> {
        self.figures.get(what).copied()
    }

    pub fn failure(&self, what: &str) -> Option<&str> {
        self.failed.get(what).map(String::as_str)
    }

    pub fn keep(&mut self, what: &str, figures: Figures) -> Result<()> {
        self.figures.insert(what.to_owned(), figures);
        self.write()
    }

    pub fn keep_failure(&mut self, what: &str, why: String) -> Result<()> {
        self.failed.insert(what.to_owned(), why);
        self.write()
    }

    fn write(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let text = toml::to_string(self).map_err(|e| Error::file(path, e.to_string()))?;
        crate::file::write_atomically(path, |part| crate::file::write_bytes(part, path, text.as_bytes()))
    }

    /// Deletes the file: all is done.
    pub fn delete(&self) -> Result<()> {
        match &self.path {
            Some(path) if path.exists() => std::fs::remove_file(path).map_err(|e| Error::io(path, e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_there_again_for_the_same_model_and_options_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.control");
        let figures = Figures {
            samples: 3,
            sqnr_db: f64::INFINITY,
            mean_cosine: 0.1 + 0.2,
            agreement: Some(1.0 / 3.0),
            float_accuracy: None,
            int8_accuracy: None,
        };
        let (mut state, known) = State::open(Some(&path), "a".into()).unwrap();
        assert_eq!(known, 0);
        state.keep("all in INT8", figures).unwrap();
        state.keep_failure("learned", "it has branches".into()).unwrap();
        let (again, known) = State::open(Some(&path), "a".into()).unwrap();
        assert_eq!((known, again.figures("all in INT8")), (1, Some(figures)));
        assert_eq!(again.failure("learned"), Some("it has branches"));
        assert_eq!(State::open(Some(&path), "b".into()).unwrap().1, 0);
        again.delete().unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "my notes").unwrap();
        let refusal = State::open(Some(&path), "a".into()).unwrap_err().to_string();
        assert!(refusal.contains("out.control") && refusal.contains("delete it"), "{refusal}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes");
    }
}
