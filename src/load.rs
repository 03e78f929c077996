//! Reading files of models: TorchScript, and programs of `torch.export`.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::Path;

use crate::archive::{self, Facts};
use crate::error::{Error, Result};
use crate::import;
use crate::ir::ffi::bridge as ffi;
use crate::ir::{Module, first_line};

/// The longest part of a message of libtorch's that is passed on.
const LONGEST: usize = 2000;

impl Module {
    /// Loads a TorchScript file, or a program of `torch.export` (`.pt2`), which becomes a TorchScript module; tensors go to
    /// the CPU wherever they were saved from.
    ///
    /// The file is looked at before libtorch reads it: sizes and check sums of its records, its pickles, and how deeply its
    /// code nests. It is a program all the same: load files of those whom you trust.
    ///
    /// # Errors
    /// Where the file cannot be read, is damaged or is not TorchScript, or calls an operator that no library defines which
    /// is loaded ([`load_library`](crate::load_library)); the message says which.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::load_with_notes(path)?.0)
    }

    /// As [`Module::load`], and what its user may want to know of the file, sentence by sentence: that its tensors were
    /// saved on a GPU, for one.
    ///
    /// # Errors
    /// Those of [`Module::load`].
    pub fn load_with_notes(path: impl AsRef<Path>) -> Result<(Self, Vec<String>)> {
        crate::init()?;
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !metadata.is_file() {
            return Err(Error::file(
                path,
                "not a file; a TorchScript file (.pt) or an exported program (.pt2) is expected",
            ));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut file = BufReader::with_capacity(1 << 18, file);
        let facts = match content_of(&mut file).map_err(|why| Error::file(path, why))? {
            Content::Exported(module) => return Ok((module, Vec::new())),
            Content::TorchScript(facts) => facts,
        };
        let loaded = match path.to_str() {
            Some(text) => ffi::module_load_file(text),
            // libtorch opens files by names that are text.
            None => ffi::module_load_bytes(&std::fs::read(path).map_err(|e| Error::io(path, e))?),
        };
        let module = loaded.map(Self::from_raw).map_err(|e| Error::file(path, why_not_loaded(e.what())))?;
        Ok((module, facts.notes()))
    }

    /// Loads the content of a TorchScript file; it is looked at as [`Module::load`] looks at a file.
    ///
    /// # Errors
    /// Where the bytes are not a TorchScript archive, or one that [`Module::load`] refuses.
    pub fn load_bytes(bytes: &[u8]) -> Result<Self> {
        crate::init()?;
        let refused = |why: String| Error::file(Path::new("the bytes given"), why);
        match content_of(&mut Cursor::new(bytes)).map_err(refused)? {
            Content::Exported(module) => Ok(module),
            Content::TorchScript(_) => {
                ffi::module_load_bytes(bytes).map(Self::from_raw).map_err(|e| refused(why_not_loaded(e.what())))
            }
        }
    }
}

/// What a file holds.
enum Content {
    /// A TorchScript archive that libtorch can read.
    TorchScript(Facts),
    /// A program of `torch.export`, as a module.
    Exported(Module),
}

/// Looks at a file; why it is refused, where it is.
fn content_of(file: &mut (impl Read + Seek)) -> Result<Content, String> {
    let kind = archive::kind_of(file).map_err(|e| e.to_string())?;
    if kind == archive::Kind::Exported {
        return import::load(file).map(Content::Exported).map_err(|e| e.to_string());
    }
    match kind.refusal() {
        Some(why) => Err(why),
        None => archive::check(file).map(Content::TorchScript).map_err(|refusal| refusal.to_string()),
    }
}

/// What libtorch says of a file that is whole.
fn why_not_loaded(refusal: &str) -> String {
    const OPERATOR: &str = "Unknown builtin op: ";
    const CLASS: &str = "__torch__.torch.classes.";
    let is_unknown_class = refusal.contains("Unknown type name") || refusal.contains("Can't find");
    let missing = if let Some((_, rest)) = refusal.split_once(OPERATOR) {
        Some(("operator", first_line(rest).trim().trim_end_matches('.')))
    } else if let Some((_, rest)) = refusal.split_once(CLASS).filter(|_| is_unknown_class) {
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        Some(("class", rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())].trim_end_matches('.')))
    } else {
        None
    };
    match missing {
        Some((what, name)) => {
            let place = refusal.lines().map(str::trim).find(|line| line.starts_with("File \""));
            let place = place.map_or(String::new(), |place| format!(" ({})", archive::shortened(place)));
            format!(
                "the model's code uses the {what} '{}'{place}, which libtorch itself does not have: load the library that \
                 defines it first, with --library FILE.so on the command line, or load_library of the C, C++ and Rust API",
                archive::shortened(name)
            )
        }
        None => match refusal.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{} …", &refusal[..end]),
            None => refusal.to_owned(),
        },
    }
}
