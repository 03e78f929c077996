//! Ranges that observers found, kept in a file: converting again with other options then runs no data.
//!
//! The file is the one that `JITQUANT=observe:FILE` records (docs/zero-touch.md), TOML: for each model, by its hash, and
//! each observed tensor, what its observer saw. A tensor is named by its place in the flat float graph, which is the same
//! whatever is quantized, and by what is kept of it: `31:0 histogram-2048` is result 0 of node 31, in a histogram of 2048
//! bins. Where ranges are chosen from the same histogram (`auto`, `histogram`, `percentile`, `squared-error`,
//! `entropy`), they share it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::Result;
use crate::ir::{IValue, Module};
use crate::observer::ObserverKind;
use crate::quantizer::Prepared;
use crate::ranges::{Fnv, Model, Recorded, State, fingerprint, restore, watched};

/// What the observers of one model saw.
///
/// ```
/// use jitquant::{ModelForm, Quantizer, control::Ranges, ir::{Module, Tensor}};
/// # let module = Module::new("torch.nn.modules.linear.Linear")?;
/// # module.register_parameter("weight", Tensor::from_slice(&[0.5f32, -0.25, 0.125, 1.0], &[2, 2])?)?;
/// # module.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight)\n")?;
/// let mut prepared = Quantizer::static_ptq().prepare(&module)?;           // or Module::load("model.pt")?
/// prepared.calibrate(&[Tensor::from_slice(&[0.0f32, 1.0], &[1, 2])?])?;
/// let ranges = Ranges::of(&prepared)?;                                    // ranges.save("ranges.jq", &module)?
/// let mut other = Quantizer::static_ptq().form(ModelForm::Native).prepare(&module)?;
/// assert_eq!(ranges.restore(&mut other)?, Vec::<String>::new());          // nothing is missing: no data is run
/// assert_eq!(other.convert()?.report.quantized_layers, 1);
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges {
    model: Model,
}

impl Ranges {
    /// What the observers of `prepared` have seen so far, and what those take that leave the choice of their range
    /// ([`ObserverKind::Auto`]), where there is data to choose by.
    ///
    /// # Errors
    /// Where an observer cannot be read, or the model does not convert.
    pub fn of(prepared: &Prepared) -> Result<Self> {
        Self::seen(prepared, prepared.choose_range(prepared.module())?)
    }

    /// As [`Ranges::of`], where the choice is known.
    ///
    /// # Errors
    /// Where an observer cannot be read.
    pub(crate) fn seen(prepared: &Prepared, choice: Option<ObserverKind>) -> Result<Self> {
        let mut ranges = Self::default();
        ranges.model.range = choice;
        for (tensor, observer) in watched(prepared.module())? {
            // Those that saw nothing too: no data would reach them.
            ranges.model.observers.insert(tensor, State::of(&observer)?);
        }
        Ok(ranges)
    }

    /// What the file at `path` has of `module`, whose code and weights tell; `None` where there is no file yet, or one that
    /// has ranges of other models only.
    ///
    /// # Errors
    /// Where the file cannot be read or is none of this kind.
    pub fn load(path: impl AsRef<Path>, module: &Module) -> Result<Option<Self>> {
        let path = path.as_ref();
        if !path.exists() {
            return Ok(None);
        }
        let recorded = Recorded::load(path)?;
        Ok(recorded.model(fingerprint(module)?).map(|model| Self { model: model.clone() }))
    }

    /// Writes them into the file at `path`, in the place of what it had of `module`; other models' ranges stay.
    ///
    /// # Errors
    /// Where the file cannot be written, or there is one of another kind.
    pub fn save(&self, path: impl AsRef<Path>, module: &Module) -> Result<()> {
        Recorded::replace_in_file(path.as_ref(), fingerprint(module)?, &self.model)
    }

    /// What data they come from, in the words of who found them ([`Ranges::with_source`]); empty where nobody said.
    pub fn source(&self) -> &str {
        &self.model.data
    }

    /// Says what data they come from.
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.model.data = source.into();
        self
    }

    /// Gives the observers of `prepared` what was seen, in the place of what they have seen; the tensors that nothing is
    /// known of, which is none where the observers keep the same and no more is quantized than was observed.
    ///
    /// # Errors
    /// Where an observer does not take it.
    pub fn restore(&self, prepared: &mut Prepared) -> Result<Vec<String>> {
        let missing = restore(prepared.module(), &self.model)?;
        if missing.is_empty() {
            prepared.take_ranges_for_known();
        }
        Ok(missing)
    }

    /// What the ranges were kept of, in words: `histogram-2048, min-max`.
    pub fn kept(&self) -> String {
        let kinds = self.model.observers.keys().filter_map(|key| key.split_once(' ').map(|(_, kept)| kept));
        let kinds: BTreeSet<_> = kinds.filter(|kept| !kept.contains("channels")).collect();
        kinds.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Takes over what `other` knows, tensor by tensor.
    pub fn extend(&mut self, other: Self) {
        self.model.observers.extend(other.model.observers);
        self.model.range = self.model.range.or(other.model.range);
    }

    /// What observers take that leave the choice of their range.
    pub(super) fn choice(&self) -> Option<ObserverKind> {
        self.model.range
    }
}

/// A hash of what batches hold: equal data have equal hashes, in every process.
pub(super) fn hash_of_batches(batches: &[Vec<IValue>]) -> Result<u64> {
    let mut hash = Fnv::default();
    for value in batches.iter().flatten() {
        match value {
            IValue::Tensor(tensor) => {
                tensor.shape().iter().for_each(|size| hash.bytes(&size.to_le_bytes()));
                hash.bytes(&tensor.raw_bytes()?);
            }
            IValue::Int(number) => hash.bytes(&number.to_le_bytes()),
            IValue::Double(number) => hash.bytes(&number.to_le_bytes()),
            _ => {}
        }
    }
    Ok(hash.0)
}
