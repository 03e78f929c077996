//! The records of a zip archive, read whole once.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use zip::read::{ArchiveOffset, Config, ZipFile};
use zip::{CompressionMethod, ZipArchive};

use super::Refusal;

/// Bytes of the structure that ends a zip archive without a comment.
const END_LEN: u64 = 22;
const END_MAGIC: &[u8] = b"PK\x05\x06";

/// The longest pickle, and the longest file of code, that is taken into memory.
const LARGEST_TEXT: u64 = 1 << 30;

/// How much more all records together may take than the file, beyond [`FREE_UNPACKED`].
const UNPACKED_RATIO: u64 = 64;
const FREE_UNPACKED: u64 = 1 << 28;

/// What an archive holds, its top folder taken off.
pub(super) struct Records {
    sizes: BTreeMap<String, u64>,
    pickles: Vec<(String, Vec<u8>)>,
    sources: Vec<(String, Vec<u8>)>,
}

impl Records {
    /// Reads every record to its end, so that its check sum is known to be right.
    pub fn read(mut source: impl Read + Seek) -> Result<Self, Refusal> {
        let unreadable = |e: std::io::Error| Refusal::new(format!("it cannot be read: {e}"));
        let len = source.seek(SeekFrom::End(0)).map_err(unreadable)?;
        ensure_ends_at_its_end(&mut source)?;
        // Without a guess where it begins: libtorch's reader makes none.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut archive = ZipArchive::with_config(config, source)
            .map_err(|e| Refusal::new(format!("its directory of records is not readable ({e})")))?;
        if archive.has_duplicate_names() {
            return Err(Refusal::new("two records have the same name"));
        }
        let mut left = len.saturating_mul(UNPACKED_RATIO).saturating_add(FREE_UNPACKED);
        let mut records = Self { sizes: BTreeMap::new(), pickles: Vec::new(), sources: Vec::new() };
        let mut folder: Option<String> = None;
        let mut folded_names = std::collections::BTreeSet::new();
        for index in 0..archive.len() {
            let damaged = |e: zip::result::ZipError| Refusal::new(format!("record {index} is not readable ({e})"));
            let mut record = archive.by_index(index).map_err(damaged)?;
            let full_name = std::str::from_utf8(record.name_raw())
                .map_err(|_| Refusal::new(format!("the name of record {index} is not UTF-8")))?
                .to_owned();
            // libtorch takes the first record's folder for that of all.
            let (top, name) = full_name
                .split_once('/')
                .ok_or_else(|| Refusal::in_record(&full_name, "it lies outside of the archive's folder"))?;
            if folder.get_or_insert_with(|| top.to_owned()) != top {
                return Err(Refusal::in_record(&full_name, "it lies outside of the archive's folder"));
            }
            // It finds records whatever their case.
            if !name.starts_with("code/") && !folded_names.insert(name.to_ascii_lowercase()) {
                return Err(Refusal::in_record(name, "two records differ in upper and lower case only"));
            }
            let refused = |why: &str| Refusal::in_record(name, why);
            if record.encrypted() {
                return Err(refused("it is encrypted"));
            }
            let size = record.size();
            match record.compression() {
                CompressionMethod::Stored if record.compressed_size() == size => {}
                CompressionMethod::Stored => return Err(refused("its two sizes differ, though it is not compressed")),
                CompressionMethod::Deflated => {}
                _ => return Err(refused("it is compressed in a way that libtorch does not read")),
            }
            left = left
                .checked_sub(size)
                .ok_or_else(|| refused("unpacked, the records take more memory than a file of this size can need"))?;
            let content = content_of(name, &mut record)?;
            records.sizes.insert(name.to_owned(), size);
            match content {
                Some(content) if is_pickle(name) => records.pickles.push((name.to_owned(), content)),
                Some(content) => records.sources.push((name.to_owned(), content)),
                None => {}
            }
        }
        Ok(records)
    }

    /// The size of a record in bytes, where there is one of that name.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.sizes.get(name).copied()
    }

    pub fn pickles(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.pickles.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }

    pub fn sources(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.sources.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }
}

/// A zip archive is found from its end. Where something follows it, readers differ in what they find.
pub(crate) fn ensure_ends_at_its_end(source: &mut (impl Read + Seek)) -> Result<(), Refusal> {
    let unreadable = |e: std::io::Error| Refusal::new(format!("it cannot be read: {e}"));
    let len = source.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let mut end = [0; END_LEN as usize];
    let start = len.checked_sub(END_LEN).ok_or_else(|| Refusal::new(format!("it has {len} bytes")))?;
    let read = source.seek(SeekFrom::Start(start)).and_then(|_| source.read_exact(&mut end));
    read.map_err(unreadable)?;
    match end.starts_with(END_MAGIC) && end.ends_with(&[0, 0]) {
        true => Ok(()),
        false => Err(Refusal::new(
            "it does not end like a zip archive (the central directory is missing, or something was added behind it)",
        )),
    }
}

/// Whether libtorch reads a record as a pickle when it loads a module: the others (the inputs of a trace, bytecode) it does
/// not look at.
fn is_pickle(name: &str) -> bool {
    matches!(name, "data.pkl" | "constants.pkl") || (name.starts_with("code/") && name.ends_with(".debug_pkl"))
}

fn is_source(name: &str) -> bool {
    name.starts_with("code/") && name.ends_with(".py")
}

/// Reads a record to its end; what it holds, where that is looked into.
fn content_of(name: &str, record: &mut ZipFile<'_, impl Read + Seek>) -> Result<Option<Vec<u8>>, Refusal> {
    let size = record.size();
    let damaged = |e: std::io::Error| Refusal::in_record(name, format!("{e}"));
    if !(is_pickle(name) || is_source(name)) {
        let found = std::io::copy(record, &mut std::io::sink()).map_err(damaged)?;
        return match found == size {
            true => Ok(None),
            false => Err(Refusal::in_record(name, format!("it has {found} bytes of {size}"))),
        };
    }
    if size > LARGEST_TEXT {
        return Err(Refusal::in_record(name, format!("its {size} bytes are more than a pickle or code can have")));
    }
    let mut content = Vec::new();
    record.read_to_end(&mut content).map_err(damaged)?;
    match content.len() as u64 == size {
        true => Ok(Some(content)),
        false => Err(Refusal::in_record(name, format!("it has {} bytes of {size}", content.len()))),
    }
}
