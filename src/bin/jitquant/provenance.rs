//! How an INT8 model was made, kept in its file: a report on it can then say so.

use std::path::Path;

use anyhow::Result;
use jitquant::Report;
use jitquant::ir::{ExtraFile, Module};
use serde::{Deserialize, Serialize};

/// The name among the archive's extra files.
const FILE: &str = "jitquant.json";

/// How a model was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// jitquant's version.
    pub version: String,
    /// The command, its arguments one by one.
    pub command: Vec<String>,
    /// `static`, `dynamic` or `weight-only`.
    pub mode: String,
    /// Layers that were left in float, and why.
    pub left_in_float: Vec<Left>,
}

/// A layer left in float.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left {
    pub path: String,
    pub operator: String,
    pub reason: String,
}

impl Provenance {
    /// Of the command that runs now.
    pub fn of_this_command(mode: &str, report: &Report) -> Self {
        let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
        let left = report.float.iter().map(|layer| Left {
            path: layer.path.clone(),
            operator: layer.operator.clone(),
            reason: layer.reason.clone(),
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::iter::once("jitquant".to_owned()).chain(arguments).collect(),
            mode: mode.to_owned(),
            left_in_float: left.collect(),
        }
    }

    /// Puts it among `extra` files, in the place of an older one.
    pub fn put_into(&self, extra: &mut Vec<ExtraFile>) -> Result<()> {
        extra.retain(|file| file.name != FILE);
        extra.push(ExtraFile { name: FILE.to_owned(), content: serde_json::to_vec(self)? });
        Ok(())
    }

    /// What a model's file says; `None` where it says nothing that this version understands.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let file = Module::extra_files(path)?.into_iter().find(|file| file.name == FILE);
        Ok(file.and_then(|file| serde_json::from_slice(&file.content).ok()))
    }

    /// The command as it is typed into a shell.
    pub fn command_line(&self) -> String {
        let is_plain = |c: char| c.is_alphanumeric() || "_-./=:,%+@".contains(c);
        let quoted = |word: &String| match !word.is_empty() && word.chars().all(is_plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        };
        self.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}
