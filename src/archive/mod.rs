//! TorchScript files are looked at before libtorch sees them.
//!
//! libtorch's reader believes what a file says of itself: a weight whose record is shorter than its tensor is read beyond
//! the record's end, a damaged pickle or deeply nested code ends the process. What is checked here, in the order in which
//! it is read:
//!
//! - the zip archive: its directory, names, sizes, and the check sum of every record (`records`);
//! - every pickle: each opcode on a stack of its own, with the kinds of values that the opcode is for (`pickle`), and each
//!   tensor against the record that holds its elements (`tensor`);
//! - the code: how deeply it nests, since libtorch's compiler calls itself at each level (`code`).
//!
//! A file that passes is still a program, which may compute what it wants: SECURITY.md says what is trusted.

mod code;
mod kind;
mod pickle;
mod records;
mod tensor;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Seek};

pub(crate) use kind::{Kind, kind_of};
use records::Records;
pub(crate) use records::ensure_ends_at_its_end;
pub(crate) use tensor::{end_of_view, first_few};

/// Why a file is refused, and the record that shows it, where it is one.
#[derive(Debug)]
pub(crate) struct Refusal {
    record: Option<String>,
    why: String,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Self {
        Self { record: None, why: why.into() }
    }

    fn in_record(record: &str, why: impl Into<String>) -> Self {
        Self { record: Some(record.to_owned()), why: why.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the file is truncated or damaged: ")?;
        match &self.record {
            // A name may be 64 kB of anything.
            Some(record) => write!(f, "record '{}': {}", shortened(record), self.why),
            None => f.write_str(&self.why),
        }
    }
}

/// The first 80 characters of a text that a file holds, without control characters.
pub(crate) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

/// What is known of a file that was looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The devices that tensors were saved from.
    devices: BTreeSet<String>,
    /// Whether bytecode for the mobile interpreter is in it as well.
    is_mobile: bool,
}

impl Facts {
    /// What its user may want to know.
    pub fn notes(&self) -> Vec<String> {
        let others: Vec<_> = self.devices.iter().filter(|device| *device != "cpu").map(|d| shortened(d)).collect();
        let devices = format!("the model was saved on {}; its tensors are read onto the CPU", others.join(", "));
        let mobile = "the file was saved for the mobile interpreter (.ptl): its TorchScript code is read, and what is written \
                      has no bytecode";
        let notes = [(!others.is_empty()).then_some(devices), self.is_mobile.then(|| mobile.to_owned())];
        notes.into_iter().flatten().collect()
    }
}

/// Looks at all of a TorchScript archive.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(source: impl Read + Seek) -> Result<Facts, Refusal> {
    let records = Records::read(source)?;
    if records.size("model.json").is_some() {
        return Err(Refusal::new(
            "it is of the form that PyTorch wrote before version 1.2: load it in a PyTorch of then and save it again",
        ));
    }
    let mut facts = Facts { is_mobile: records.size("bytecode.pkl").is_some(), ..Facts::default() };
    for (name, content) in records.pickles() {
        // Tensors of `data.pkl` are in the folder `data`.
        let folder = name.strip_suffix(".pkl").unwrap_or(name);
        let (root, devices) = pickle::check(content, |key| records.size(&format!("{folder}/{key}")))
            .map_err(|why| Refusal::in_record(name, why))?;
        facts.devices.extend(devices);
        let expected = match name {
            "data.pkl" => pickle::Root::Object,
            "constants.pkl" => pickle::Root::Tuple,
            _ => continue,
        };
        if root != expected {
            return Err(Refusal::in_record(name, format!("it holds no {}", expected.name())));
        }
    }
    for (name, content) in records.sources() {
        code::check(content).map_err(|why| Refusal::in_record(name, why))?;
    }
    Ok(facts)
}

#[cfg(test)]
mod tests;
