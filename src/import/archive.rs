//! The zip archive of a `.pt2` file, and where in it things lie.
//!
//! Since torch 2.8 everything lies in one folder: `models/model.json`, `data/weights/`, `data/constants/`. Before, the
//! records lay beside each other: `serialized_exported_program.json`, and two pickles with the tensors.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use crate::archive::{ensure_ends_at_its_end, shortened};
use crate::error::{Error, Result};

/// The longest `model.json` that is taken into memory; what PyTorch writes for large models has some dozens of MB.
const LARGEST_TEXT: u64 = 1 << 30;

/// How many bytes one byte of the file may stand for, all records together, beyond [`FREE_UNPACKED`]: more than any texts and
/// weights need, and less than makes a small file fill the memory.
const UNPACKED_RATIO: u64 = 64;
const FREE_UNPACKED: u64 = 1 << 28;

/// Where the records of a file lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Records side by side, tensors in pickles (torch 2.5 to 2.7).
    Flat,
    /// `models/` and `data/` in one folder (torch 2.8 and later).
    Folder,
}

/// An open archive.
pub(super) struct Archive<S> {
    zip: ZipArchive<S>,
    /// The records' places, by their names without the archive's folder.
    places: BTreeMap<String, usize>,
    pub layout: Layout,
    /// How many bytes may still be read.
    left: u64,
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the file is truncated or damaged: {why}"))
}

/// What is wrong with a record.
pub(super) fn in_record(name: &str, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the file is damaged: record '{}': {why}", shortened(name)))
}

impl<S: Read + Seek> Archive<S> {
    /// Reads the directory; records are read when they are asked for.
    ///
    /// # Errors
    /// Where it is no zip archive, or two records have one name.
    pub fn open(mut source: S) -> Result<Self> {
        ensure_ends_at_its_end(&mut source).map_err(|refusal| Error::invalid(refusal.to_string()))?;
        let len = source.seek(SeekFrom::End(0)).map_err(|e| damaged(format!("it cannot be read: {e}")))?;
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let zip = ZipArchive::with_config(config, source)
            .map_err(|e| damaged(format!("its directory of records is not readable ({e})")))?;
        if zip.has_duplicate_names() {
            return Err(damaged("two records have the same name"));
        }
        let mut names = Vec::new();
        for name in zip.file_names_raw() {
            let name = std::str::from_utf8(name).map_err(|_| damaged("the name of a record is not UTF-8"))?;
            let leaves = name.split(['/', '\\']).any(|part| part == "..");
            if name.starts_with(['/', '\\']) || leaves || name.contains(':') {
                return Err(in_record(name, "its name leads out of the archive"));
            }
            names.push(name.to_owned());
        }
        let is_flat = names.iter().any(|name| name == "serialized_exported_program.json");
        let layout = if is_flat { Layout::Flat } else { Layout::Folder };
        let mut places = BTreeMap::new();
        for (place, name) in names.iter().enumerate() {
            let inner = match layout {
                Layout::Flat => name.as_str(),
                Layout::Folder => inner(name, &names[0])?,
            };
            places.insert(inner.to_owned(), place);
        }
        let left = len.saturating_mul(UNPACKED_RATIO).saturating_add(FREE_UNPACKED);
        Ok(Self { zip, places, layout, left })
    }

    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The names of the records in a folder, without the folder's name.
    pub fn names_in<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.places.keys().filter_map(move |name| name.strip_prefix(folder))
    }

    /// How many bytes a record has.
    ///
    /// # Errors
    /// Where there is none of that name, or it is stored in a way that is not read.
    pub fn size(&mut self, name: &str) -> Result<u64> {
        self.record(name).map(|record| record.size())
    }

    /// A text, or a pickle.
    ///
    /// # Errors
    /// Where there is no such record, it is too long, or its check sum is wrong.
    pub fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let mut record = self.record(name)?;
        let size = record.size();
        if size > LARGEST_TEXT {
            return Err(in_record(name, format!("its {size} bytes are more than it can need")));
        }
        let mut content = Vec::new();
        record.read_to_end(&mut content).map_err(|e| in_record(name, e))?;
        drop(record);
        self.left = self.left.saturating_sub(size);
        match content.len() as u64 == size {
            true => Ok(content),
            false => Err(in_record(name, format!("it has {} bytes of {size}", content.len()))),
        }
    }

    /// Fills `bytes`, which have the record's size, and sees to it that its check sum is right.
    ///
    /// # Errors
    /// As for [`Archive::read`].
    pub fn read_into(&mut self, name: &str, bytes: &mut [u8]) -> Result<()> {
        let mut record = self.record(name)?;
        record.read_exact(bytes).map_err(|e| in_record(name, e))?;
        // The check sum is compared where the record ends.
        let behind = record.read(&mut [0]).map_err(|e| in_record(name, e))?;
        drop(record);
        self.left = self.left.saturating_sub(bytes.len() as u64);
        match behind {
            0 => Ok(()),
            _ => Err(in_record(name, "it is longer than its tensors")),
        }
    }

    fn record(&mut self, name: &str) -> Result<zip::read::ZipFile<'_, S>> {
        let place = self.places.get(name).ok_or_else(|| damaged(format!("record '{}' is missing", shortened(name))))?;
        let record = self.zip.by_index(*place).map_err(|e| in_record(name, e))?;
        if record.encrypted() {
            return Err(in_record(name, "it is encrypted"));
        }
        let size = record.size();
        let fits = match record.compression() {
            CompressionMethod::Stored => size == record.compressed_size() && size <= self.left,
            CompressionMethod::Deflated => size <= self.left,
            _ => return Err(in_record(name, "it is compressed in a way that is not read (stored or deflated is)")),
        };
        match fits {
            true => Ok(record),
            false => Err(in_record(name, format!("its size, {size} bytes, cannot be right"))),
        }
    }
}

/// A record's name without the folder that all of them lie in.
fn inner<'a>(name: &'a str, first: &str) -> Result<&'a str> {
    let folder = first.split('/').next().unwrap_or_default();
    let rest = name.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    rest.ok_or_else(|| in_record(name, "it lies outside of the archive's folder"))
}
