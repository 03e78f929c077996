//! What a file is: people have many that end in `.pt` and hold something else.

use std::io::{Read, Seek, SeekFrom};

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use super::shortened;

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A zip archive with code in it, as `torch.jit.save` writes.
    TorchScript,
    /// What `torch.save` writes: a pickle, and no code. What it holds, in words, and whether that is a whole model.
    Pickled { what: String, is_model: bool },
    /// What `torch.export.save` writes.
    Exported,
    /// A model for the mobile interpreter, without TorchScript code.
    Mobile,
    /// A model of another framework, data, or nothing: what, and what to do.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// What TorchScript files are, for messages.
const WANTED: &str = "a TorchScript file is what torch.jit.save(torch.jit.script(model), path), or .trace, writes";

impl Kind {
    /// What to say to who takes it for a model; `None` of the two kinds that are read.
    pub fn refusal(&self) -> Option<String> {
        Some(match self {
            Self::TorchScript | Self::Exported => return None,
            Self::Pickled { what, is_model } => format!(
                "a torch.save file that holds {what}, without the code that runs it: in Python, {}, and \
                 torch.jit.save(torch.jit.trace(model.eval(), example), path)",
                match is_model {
                    true => "read it with model = torch.load(path, weights_only=False)",
                    false => "build the model, load this into it",
                }
            ),
            Self::Mobile => {
                "a model for PyTorch's mobile interpreter (.ptl), whose bytecode cannot be quantized: save the \
                 TorchScript module that it was made from with torch.jit.save(module, path)"
                    .to_owned()
            }
            Self::Other(what) => format!("{what} ({WANTED})"),
            Self::Unknown => format!("not a TorchScript file ({WANTED})"),
        })
    }
}

/// Looks at the file's first bytes and, in a zip archive, at the names of its records.
pub(crate) fn kind_of(file: &mut (impl Read + Seek)) -> std::io::Result<Kind> {
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    file.by_ref().take(1 << 16).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(match &head[..] {
        [] => Kind::Other("an empty file"),
        [b'P', b'K', 3, 4, ..] => kind_of_zip(file),
        [0x80, 2..=5, ..] => pickled(&head),
        [_, _, _, _, b'P', b'T', b'M', b'F', ..] => Kind::Mobile,
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => Kind::Other("a TensorFlow Lite model, not TorchScript"),
        [0x89, b'H', b'D', b'F', ..] => Kind::Other("an HDF5 file (of Keras, for one), not TorchScript"),
        [b'G', b'G', b'U', b'F', ..] => Kind::Other("a GGUF file (weights for llama.cpp), not TorchScript"),
        [0x1f, 0x8b, ..] => Kind::Other("a file compressed by gzip: unpack it first"),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Kind::Other("a NumPy array, not a model"),
        _ if is_safetensors(&head, len) => Kind::Other(
            "a safetensors file: it holds weights and no code. In Python, build the model, load these into it, and save it \
             with torch.jit.save(torch.jit.trace(model.eval(), example), path)",
        ),
        _ if head.starts_with(b"version https://git-lfs") => {
            Kind::Other("a pointer of Git LFS that stands for a file: `git lfs pull` fetches the file itself")
        }
        _ if is_onnx(&head) => Kind::Other(
            "an ONNX model, not TorchScript: go back to the PyTorch model that it was exported from, and save it with \
             torch.jit.save(torch.jit.trace(model.eval(), example), path); ONNX Runtime quantizes ONNX files",
        ),
        _ => Kind::Unknown,
    })
}

/// Whether eight bytes say how long a JSON header is, and it begins.
fn is_safetensors(head: &[u8], file_len: u64) -> bool {
    let Some((len, json)) = head.split_first_chunk() else { return false };
    let len = u64::from_le_bytes(*len);
    len < file_len && json.first() == Some(&b'{') && json.windows(14).any(|part| part == b"\"data_offsets\"")
}

/// Whether it begins like ONNX's protocol buffer: field 1, the version of the form, then a text or the graph.
fn is_onnx(head: &[u8]) -> bool {
    let has_words = |word: &[u8]| head.windows(word.len()).any(|part| part == word);
    matches!(head, [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x2a | 0x32 | 0x3a | 0x42, ..])
        || (matches!(head, [0x3a | 0x42 | 0x12, ..]) && has_words(b"onnx"))
}

fn kind_of_zip(file: &mut (impl Read + Seek)) -> Kind {
    // It begins where the file does. One that is damaged is told what is damaged.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let Ok(mut archive) = ZipArchive::with_config(config, file) else { return Kind::TorchScript };
    let names: Vec<String> = archive.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let has = |part: &str| names.iter().any(|name| name.split_once('/').is_some_and(|(_, name)| name == part));
    let has_folder =
        |folder: &str| names.iter().any(|name| name.split_once('/').is_some_and(|(_, name)| name.starts_with(folder)));
    let ends = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    let is_exported = names.iter().any(|name| {
        let inner = name.split_once('/').map_or(name.as_str(), |(_, inner)| inner);
        inner == "archive_format" || inner.starts_with("serialized_exported_program") || name == "archive_format"
    });
    if is_exported || ends("serialized_exported_program.json") {
        return Kind::Exported;
    }
    if has_folder("code/") || has("constants.pkl") || has("model.json") {
        return Kind::TorchScript;
    }
    if has("bytecode.pkl") {
        return Kind::Mobile;
    }
    if has("data.pkl") {
        let name = names.iter().position(|name| name.ends_with("/data.pkl"));
        let content = name.and_then(|index| {
            let mut content = Vec::new();
            archive.by_index(index).ok()?.take(1 << 20).read_to_end(&mut content).ok()?;
            Some(content)
        });
        return pickled(&content.unwrap_or_default());
    }
    if names.iter().any(|name| name.starts_with("MAR-INF/")) {
        return Kind::Other("a TorchServe archive (.mar): unpack it, and give the TorchScript file in it");
    }
    if !names.is_empty() && names.iter().all(|name| name.ends_with(".npy")) {
        return Kind::Other("NumPy arrays (.npz), not a model");
    }
    if ends("model.weights.h5") {
        return Kind::Other("a Keras model, not TorchScript");
    }
    if ends(".pt") || ends(".pth") || ends(".ts") {
        return Kind::Other("a zip archive of files: unpack it, and give the TorchScript file in it");
    }
    Kind::Other("a zip archive, but not of TorchScript")
}

/// What a pickle holds, told by the classes that it names.
fn pickled(content: &[u8]) -> Kind {
    let mut classes = Vec::new();
    let mut rest = content;
    // Opcode `c`, then module and class on a line each.
    while let Some(at) = rest.iter().position(|byte| *byte == b'c') {
        rest = &rest[at + 1..];
        let mut lines = rest.splitn(3, |byte| *byte == b'\n');
        let is_name = |line: &&[u8]| {
            !line.is_empty() && line.len() < 200 && line.iter().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(b))
        };
        if let (Some(module), Some(class)) = (lines.next().filter(is_name), lines.next().filter(is_name))
            && let Some(behind) = lines.next()
        {
            rest = behind;
            classes.push((String::from_utf8_lossy(module).into_owned(), String::from_utf8_lossy(class).into_owned()));
        }
    }
    let is_plain = |module: &str| {
        matches!(module, "collections" | "torch" | "torch._utils" | "torch.storage" | "builtins" | "numpy" | "_codecs")
            || module.starts_with("numpy.")
    };
    let whole = classes.iter().find(|(module, _)| !is_plain(module));
    let what = match whole {
        Some((module, class)) => {
            format!("a pickled model or other objects ({})", shortened(&format!("{module}.{class}")))
        }
        None if classes.iter().any(|(module, _)| module == "torch._utils") => "tensors (a state_dict)".to_owned(),
        None => "a Python pickle".to_owned(),
    };
    Kind::Pickled { what, is_model: whole.is_some() }
}
