//! The options of every command that reads DATA.

use std::str::FromStr;

use super::ImageOptions;

const HEADING: &str = "Samples (DATA)";

/// Memory that compressed arrays may take where nothing is said, in GB: more only where the file itself is large.
const UNPACKED_GB: u64 = 2;
/// How many times the file's size they may take then.
const UNPACKED_RATIO: u64 = 20;

// Not a doc comment: clap would put it in the place of the description of each command that has these options.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct DataOptions {
    /// The value of an argument of the model that no array is for: a number, `true`, `false`, `none`, a text, or numbers
    /// with commas between for a list or tuple of them; may be given several times
    #[arg(long = "input", help_heading = HEADING, value_name = "NAME=VALUE")]
    pub given: Vec<Given>,

    /// How many GB the compressed arrays of one .npz may take when unpacked [default: 2, or 20 times the file]
    #[arg(long, help_heading = HEADING, value_name = "GB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub max_unpacked: Option<u64>,

    #[command(flatten)]
    pub images: ImageOptions,
}

impl DataOptions {
    /// How many bytes the compressed arrays of a file of that size may take.
    pub(super) fn unpacked_limit(&self, file: u64) -> u64 {
        match self.max_unpacked {
            Some(gigabytes) => gigabytes << 30,
            None => (UNPACKED_GB << 30).max(file.saturating_mul(UNPACKED_RATIO)),
        }
    }
}

/// `NAME=VALUE`
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub name: String,
    pub value: String,
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self { name: name.to_owned(), value: value.to_owned() }),
            _ => Err("write NAME=VALUE, as in threshold=0.5".to_owned()),
        }
    }
}
