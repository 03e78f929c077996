//! The file of recorded ranges.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ir::{IValue, Module};
use crate::observer::{Histogram, ObserverKind, UNSET};
use crate::pass::prepare::ROWS;

/// The version of the file's form.
const VERSION: u32 = 2;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 30;

/// What observers saw, model by model. TOML; the numbers read and write exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recorded {
    version: u32,
    /// By [`key`].
    #[serde(default)]
    models: BTreeMap<String, Model>,
}

/// What a model's observers saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    /// What data it was, where somebody said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
    /// What observers take that leave the choice, where it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<ObserverKind>,
    /// By the observed tensor ([`crate::control::Ranges`]).
    pub observers: BTreeMap<String, State>,
}

/// What an observer saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// The smallest value, of each channel or of all.
    pub min: Vec<f32>,
    /// The largest value.
    pub max: Vec<f32>,
    /// How many values fell into each bin from `min` to `max`; of an observer that counts rows, their number; else empty.
    #[serde(default)]
    pub counts: Vec<f32>,
}

/// A model's name in the file.
pub(crate) fn key(fingerprint: u64) -> String {
    format!("{fingerprint:016x}")
}

impl Default for Recorded {
    fn default() -> Self {
        Self { version: VERSION, models: BTreeMap::new() }
    }
}

impl Recorded {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read or is none of this kind.
    pub fn load(path: &Path) -> Result<Self> {
        let text = crate::file::read_text(path, LONGEST)?;
        let foreign = |why: &str| {
            let why = crate::error::brief(why.trim());
            Error::file(path, format!("no file of recorded ranges: {why}"))
        };
        if text.trim().is_empty() {
            return Err(foreign("it is empty"));
        }
        let recorded: Self = toml::from_str(&text).map_err(|e| foreign(e.message()))?;
        if recorded.version != VERSION {
            return Err(foreign(&format!("version {}; version {VERSION} is known", recorded.version)));
        }
        for (tensor, state) in recorded.models.values().flat_map(|model| &model.observers) {
            let wrong = |why: &str| {
                let tensor = crate::archive::shortened(tensor);
                Error::file(path, format!("the range of '{tensor}' is damaged: {why}"))
            };
            state.check().map_err(wrong)?;
        }
        Ok(recorded)
    }

    /// Adds what is recorded here to the file at `path`, which may not be there yet. Other processes that do the same
    /// wait.
    ///
    /// # Errors
    /// Where the file cannot be written, or there is one that is none of this kind.
    pub fn add_to_file(&self, path: &Path) -> Result<()> {
        change_file(path, |all| all.merge(self))
    }

    /// Makes `model` all that the file at `path` has of the model with that fingerprint.
    ///
    /// # Errors
    /// Those of [`Recorded::add_to_file`].
    pub fn replace_in_file(path: &Path, fingerprint: u64, model: &Model) -> Result<()> {
        change_file(path, |all| drop(all.models.insert(key(fingerprint), model.clone())))
    }

    pub fn model(&self, fingerprint: u64) -> Option<&Model> {
        self.models.get(&key(fingerprint))
    }

    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// Adds what the observer of `tensor` in a model saw.
    pub fn add(&mut self, fingerprint: u64, tensor: &str, state: &State) {
        let model = self.models.entry(key(fingerprint)).or_default();
        model.observers.entry(tensor.to_owned()).or_default().merge(state);
    }

    fn merge(&mut self, other: &Self) {
        for (key, model) in &other.models {
            let here = self.models.entry(key.clone()).or_default();
            for (path, state) in &model.observers {
                here.observers.entry(path.clone()).or_default().merge(state);
            }
        }
    }
}

/// Reads the file, where there is one, changes what it holds, and writes it. Other processes wait meanwhile.
fn change_file(path: &Path, change: impl FnOnce(&mut Recorded)) -> Result<()> {
    let _turn = crate::file::Turn::take(path)?;
    let mut all = match path.exists() {
        true => Recorded::load(path)?,
        false => Recorded::default(),
    };
    change(&mut all);
    let text = toml::to_string(&all).map_err(|e| Error::file(path, e.to_string()))?;
    crate::file::write_atomically(path, |part| crate::file::write_bytes(part, path, text.as_bytes()))
}

impl State {
    /// Whether an observer can have seen this.
    fn check(&self) -> Result<(), &'static str> {
        if self.min.len() != self.max.len() {
            return Err("it has not as many smallest as largest values");
        }
        let is_range =
            |(min, max): (&f32, &f32)| (min.is_finite() && max.is_finite() && min <= max) || (*min, *max) == UNSET;
        if !self.min.iter().zip(&self.max).all(is_range) {
            return Err("its smallest and largest value are no range");
        }
        match self.counts.iter().all(|count| count.is_finite() && *count >= 0.0) {
            true => Ok(()),
            false => Err("a count is negative or no number"),
        }
    }

    /// What stands in an observer's buffers.
    ///
    /// # Errors
    /// Where a buffer is no tensor of f32.
    pub fn of(observer: &Module) -> Result<Self> {
        let values = |name: &str| match observer.attribute(name) {
            Ok(IValue::Tensor(tensor)) => tensor.to_vec::<f32>(),
            _ => Ok(Vec::new()),
        };
        let counts = if observer.has_attribute(ROWS) { ROWS } else { "histogram" };
        Ok(Self { min: values("min_val")?, max: values("max_val")?, counts: values(counts)? })
    }

    /// Whether anything was observed.
    pub fn has_values(&self) -> bool {
        self.min.iter().any(|min| min.is_finite())
    }

    /// As if one observer had seen what both saw.
    pub fn merge(&mut self, other: &Self) {
        if self.min.iter().any(|min| min.is_nan()) {
            // Refused, once for all.
        } else if other.min.iter().any(|min| min.is_nan())
            || self.min.len() != other.min.len()
            || self.counts.len() != other.counts.len()
        {
            // Nothing yet, or of another version: what comes later counts.
            *self = other.clone();
        } else if let ([min], [max], true) = (&mut self.min[..], &mut self.max[..], self.counts.len() > 1) {
            let mut counts = other.counts.clone();
            let (mut low, mut high) =
                (other.min.first().copied().unwrap_or(UNSET.0), other.max.first().copied().unwrap_or(UNSET.1));
            let other = Histogram::new(&mut counts, &mut low, &mut high);
            Histogram::new(&mut self.counts, min, max).merge(&other);
        } else {
            self.min.iter_mut().zip(&other.min).for_each(|(min, other)| *min = min.min(*other));
            self.max.iter_mut().zip(&other.max).for_each(|(max, other)| *max = max.max(*other));
            self.counts.iter_mut().zip(&other.counts).for_each(|(rows, other)| *rows += other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(values: &[f32]) -> State {
        let (mut min, mut max) = UNSET;
        let mut counts = vec![0.0; 8];
        Histogram::new(&mut counts, &mut min, &mut max).observe(values).unwrap();
        State { min: vec![min], max: vec![max], counts }
    }

    #[test]
    fn runs_add_up_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calib.jq");
        let channels = |min, max| State { min, max, counts: vec![] };
        for (values, weights) in
            [([0.0, 1.0, 8.0], ([-1.0, 0.0], [1.0, 5.0])), ([0.0, 3.5, 8.0], ([-3.0, 1.0], [0.5, 6.0]))]
        {
            let mut recorded = Recorded::default();
            recorded.add(7, "a._observer_0", &state(&values));
            recorded.add(7, "a._observer_1", &channels(weights.0.to_vec(), weights.1.to_vec()));
            recorded.add_to_file(&path).unwrap();
        }
        let all = Recorded::load(&path).unwrap();
        let model = all.model(7).unwrap();
        assert_eq!(model.observers["a._observer_0"], state(&[0.0, 1.0, 8.0, 0.0, 3.5, 8.0]));
        assert_eq!(model.observers["a._observer_1"], channels(vec![-3.0, 0.0], vec![1.0, 6.0]));
        assert!(all.model(8).is_none());
    }

    #[test]
    fn damaged_numbers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calib.jq");
        for (values, why) in [
            ("min = [nan]\nmax = [1.0]", "no range"),
            ("min = [0.0]\nmax = [inf]", "no range"),
            ("min = [2.0]\nmax = [1.0]", "no range"),
            ("min = [0.0]\nmax = []", "as many"),
            ("min = [0.0]\nmax = [1.0]\ncounts = [-1.0]", "a count"),
            ("min = [0.0]\nmax = [1.0]\ncounts = [nan]", "a count"),
        ] {
            std::fs::write(&path, format!("version = 2\n[models.a.observers.x]\n{values}\n")).unwrap();
            let refusal = Recorded::load(&path).unwrap_err().to_string();
            assert!(refusal.contains("the range of 'x' is damaged") && refusal.contains(why), "{refusal}");
        }
        std::fs::write(&path, "").unwrap();
        assert!(Recorded::load(&path).unwrap_err().to_string().contains("it is empty"));
    }

    #[test]
    fn nothing_is_left_and_no_neighbour_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        // What `--ranges Cargo` took for its own.
        let neighbour = folder.path().join("Cargo.lock");
        std::fs::write(&neighbour, "mine").unwrap();
        let mut recorded = Recorded::default();
        recorded.add(7, "x", &state(&[0.0, 1.0]));
        recorded.add_to_file(&folder.path().join("Cargo")).unwrap();
        assert_eq!(std::fs::read_to_string(&neighbour).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        for text in ["my notes", "version = 1"] {
            std::fs::write(&path, text).unwrap();
            let refusal = Recorded::default().add_to_file(&path).unwrap_err().to_string();
            assert!(refusal.contains("notes.txt: no file of recorded ranges"), "{refusal}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
