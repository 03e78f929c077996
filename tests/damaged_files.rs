//! Damaged TorchScript files: an error each, and never the end of the process.
//!
//! Damage is drawn by seed: bytes of the whole file, and bytes of single records whose check sums are set right again, as
//! somebody would who means it. All of it is read in a child process, which says how far it came.

#![cfg(feature = "torch")]

mod support;

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use jitquant::Quantizer;
use jitquant::ir::Module;
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

/// Where the child finds its files.
const FOLDER: &str = "JITQUANT_DAMAGED_FILES";

/// How many damaged files there are of each kind; all of 900 with `JITQUANT_DAMAGED=900`.
fn count() -> u64 {
    std::env::var("JITQUANT_DAMAGED").ok().and_then(|text| text.parse().ok()).unwrap_or(120)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Flips a bit, sets a byte or four, takes some out, puts some in, repeats some, or cuts the end off.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    let some = at..(at + 1 + random.below(8)).min(bytes.len());
    match random.below(8) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = random.next() as u8,
        3 => bytes[some].fill(0xff),
        4 => drop(bytes.drain(some)),
        5 => drop(bytes.splice(at..at, std::iter::repeat_n(b"(.\x00"[random.below(3)], 1 + random.below(40)))),
        6 => {
            let again = bytes[some].to_vec();
            bytes.splice(at..at, again);
        }
        _ => bytes.truncate(at),
    }
}

/// The archive with the record `changed` given new content, all check sums right.
fn with_record(archive: &[u8], changed: &str, content: &[u8]) -> Vec<u8> {
    let mut old = ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut new = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..old.len() {
        let mut record = old.by_index(index).unwrap();
        let name = record.name().unwrap().into_owned();
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        new.start_file(&name, options).unwrap();
        if name == changed {
            new.write_all(content).unwrap();
        } else {
            let mut same = Vec::new();
            record.read_to_end(&mut same).unwrap();
            new.write_all(&same).unwrap();
        }
    }
    new.finish().unwrap().into_inner()
}

fn records(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).unwrap();
    let count = archive.len();
    let read = |index| {
        let mut record = archive.by_index(index).unwrap();
        let name = record.name().unwrap().into_owned();
        let mut content = Vec::new();
        record.read_to_end(&mut content).unwrap();
        (name, content)
    };
    (0..count).map(read).collect()
}

/// A model as Python saves it, with lists, a dictionary and a tuple among its attributes.
fn model() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/calls.pt")).unwrap()
}

/// The same after static quantization: packed parameters, and classes of libtorch's own.
fn quantized() -> Vec<u8> {
    let mut prepared = Quantizer::static_ptq().prepare(&support::classifier()).unwrap();
    prepared.calibrate(&[support::images(4, 1)]).unwrap();
    prepared.convert().unwrap().module.save_bytes().unwrap()
}

/// Reads all files of a folder in a child process; the number of those that could be read.
fn read_in_child(folder: &Path) -> usize {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reads_the_files_of_a_folder", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    let last = text.lines().rfind(|line| line.starts_with("reading ")).unwrap_or("none").to_owned();
    let kept = || {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ended-the-process.pt");
        std::fs::copy(last.trim_start_matches("reading "), &target).ok();
        target
    };
    assert!(
        child.status.success(),
        "{last} (kept as {}): {:?} {}",
        kept().display(),
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
    let done = text.lines().find_map(|line| line.strip_prefix("read: ")).unwrap();
    done.parse().unwrap()
}

/// The child's part: nothing without the folder.
#[test]
fn reads_the_files_of_a_folder() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut read = 0;
    for file in files {
        println!("reading {}", file.display());
        let Ok(module) = Module::load(&file) else { continue };
        read += 1;
        // What a file that passes says of itself is asked for; errors are answers.
        let _ = Quantizer::dynamic().verdicts(&module);
        let _ = module.graph("forward").map(|graph| graph.to_string());
        let _ = module.save_bytes();
    }
    println!("read: {read}");
}

#[test]
fn random_damage_ends_at_the_check_sums() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(1);
    for (name, whole) in [("float", model()), ("int8", quantized())] {
        for number in 0..count() {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut random);
            if bytes != whole {
                std::fs::write(folder.path().join(format!("{name}-{number}.pt")), bytes).unwrap();
            }
        }
    }
    let read = read_in_child(folder.path());
    // Dates and the padding between records may be anything: of both models' files a quarter at most.
    assert!(read < 2 * count() as usize / 4, "{read}");
}

#[test]
fn damage_with_check_sums_set_right_is_refused_or_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(2);
    for (name, whole) in [("float", model()), ("int8", quantized())] {
        let records = records(&whole);
        // Pickles and code are what libtorch looks into.
        let inner: Vec<_> = records.iter().filter(|(name, _)| name.ends_with("pkl") || name.ends_with(".py")).collect();
        for number in 0..count() {
            // Half of all damage where all values are.
            let (record, content) = match random.below(2) {
                0 => inner.iter().find(|(name, _)| name.ends_with("/data.pkl")).unwrap(),
                _ => inner[random.below(inner.len())],
            };
            let mut content = content.clone();
            for _ in 0..=random.below(2) {
                if !content.is_empty() {
                    damage(&mut content, &mut random);
                }
            }
            std::fs::write(folder.path().join(format!("{name}-{number}.pt")), with_record(&whole, record, &content))
                .unwrap();
        }
    }
    read_in_child(folder.path());
}

#[test]
fn what_is_whole_is_read() {
    for whole in [model(), quantized()] {
        Module::load_bytes(&whole).unwrap();
        let (record, content) = records(&whole).into_iter().find(|(name, _)| name.ends_with("/data.pkl")).unwrap();
        Module::load_bytes(&with_record(&whole, &record, &content)).unwrap();
    }
}

/// libtorch takes a record that is too short, and reads on behind it.
#[test]
fn a_record_shorter_than_its_tensor_is_refused() {
    let whole = support::classifier().save_bytes().unwrap();
    let (record, content) = records(&whole).into_iter().find(|(name, _)| name.ends_with("/data/0")).unwrap();
    let short = with_record(&whole, &record, &content[..content.len() - 4]);
    let refusal = Module::load_bytes(&short).unwrap_err().to_string();
    assert!(refusal.contains("the record that holds them has"), "{refusal}");
    let gone = with_record(&whole, &record, &[]);
    assert!(Module::load_bytes(&gone).is_err());
}
