//! NumPy's `.npz`: a ZIP archive of `.npy` files, stored (`savez`) or deflated (`savez_compressed`).

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use zip::{CompressionMethod, ZipArchive};

use super::npy::Header;
use super::stored::StoredArray;

/// Opens a `.npz` file: names and arrays in the order in which they were saved. Stored arrays stay in the file,
/// deflated ones are unpacked, because a deflated stream can only be read from its beginning.
///
/// Every array's check sum is compared first, as NumPy does. Deflated arrays may take `limit` bytes together.
pub(super) fn open(path: &Path, limit: u64) -> Result<Vec<(String, StoredArray)>> {
    let mut left = limit;
    let file = Arc::new(Mutex::new(File::open(path)?));
    let mut archive =
        ZipArchive::new(BufReader::new(File::open(path)?)).context("not a .npz archive, or a truncated one")?;
    let mut arrays = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).context("damaged .npz archive")?;
        let file_name = entry.name().context("damaged .npz archive")?.into_owned();
        let Some(name) = file_name.strip_suffix(".npy") else { continue };
        let in_array = || format!("array `{name}`");
        let header = Header::read(&mut entry).with_context(in_array)?;
        let array = match (entry.compression(), entry.data_start()) {
            (CompressionMethod::Stored, Some(start)) => header.within(&file, start, entry.size()),
            _ => {
                left = left.checked_sub(entry.size()).with_context(|| {
                    format!(
                        "unpacked, the arrays take more than {} GB: that is refused, unless --max-unpacked GB allows more",
                        limit >> 30
                    )
                })?;
                header.unpack(&mut entry)
            }
        };
        let array = array.with_context(in_array)?;
        // The sum is known, and compared, where the entry ends.
        std::io::copy(&mut entry, &mut std::io::sink()).with_context(|| format!("array `{name}` is damaged"))?;
        arrays.push((name.to_owned(), array));
    }
    ensure!(!arrays.is_empty(), "the .npz archive holds no array");
    Ok(arrays)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use tempfile::TempDir;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::super::array::ArrayData;
    use super::super::npy::tests::npy_counting;
    use super::*;

    fn npz_bytes(entries: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in entries {
            writer.start_file(*name, SimpleFileOptions::default().compression_method(compression)).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn open_bytes(bytes: &[u8]) -> Result<Vec<(String, StoredArray)>> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("data.npz");
        std::fs::write(&path, bytes).unwrap();
        open(&path, 1 << 30)
    }

    #[test]
    fn archives_written_by_numpy_hold_the_values_that_numpy_put_there() {
        for name in ["stored.npz", "compressed.npz"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats").join(name);
            let arrays = open(&path, 1 << 30).unwrap();
            let names: Vec<&str> = arrays.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["x", "mask", "arr_0"], "{name}");
            let x: Vec<f32> = (0..24).map(|i| i as f32 - 5.0).collect();
            assert_eq!(arrays[0].1.shape, [3, 2, 4]);
            assert_eq!(arrays[0].1.read(0..3).unwrap(), ArrayData::F32(x.clone()), "{name}");
            assert_eq!(arrays[1].1.read(1..2).unwrap(), ArrayData::Bool(vec![false, false, true, false]), "{name}");
            assert_eq!(arrays[2].1.read(2..3).unwrap(), ArrayData::I64(vec![-3]), "{name}");
        }
    }

    #[test]
    fn stored_and_deflated_arrays_are_read_alike() {
        let (x, y) = (npy_counting(&[3, 5]), npy_counting(&[3]));
        for compression in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let arrays = open_bytes(&npz_bytes(&[("x.npy", &x), ("y.npy", &y)], compression)).unwrap();
            assert_eq!(arrays[0].1.read(1..2).unwrap(), ArrayData::F32((5..10).map(|i| i as f32).collect()));
            assert_eq!(arrays[1].1.read(0..3).unwrap(), ArrayData::F32(vec![0.0, 1.0, 2.0]));
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let x = npy_counting(&[3, 5]);
        let whole = npz_bytes(&[("x.npy", &x)], CompressionMethod::Stored);
        for len in 0..whole.len() {
            assert!(open_bytes(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
        }
        let message = format!("{:#}", open_bytes(&whole[..whole.len() / 2]).unwrap_err());
        assert!(message.starts_with("not a .npz archive, or a truncated one"), "{message}");
    }

    #[test]
    fn an_array_cut_short_inside_a_whole_archive_is_named() {
        let x = npy_counting(&[3, 5]);
        for compression in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let bytes = npz_bytes(&[("x.npy", &x[..x.len() - 4])], compression);
            let message = format!("{:#}", open_bytes(&bytes).unwrap_err());
            assert!(message.starts_with("array `x`: truncated"), "{message}");
        }
    }

    #[test]
    fn damaged_deflated_data_is_an_error() {
        let x = npy_counting(&[30, 5]);
        let mut bytes = npz_bytes(&[("x.npy", &x)], CompressionMethod::Deflated);
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8].fill(0xff);
        assert!(open_bytes(&bytes).is_err());
    }

    #[test]
    fn a_flipped_bit_of_a_stored_array_is_an_error() {
        let mut bytes = npz_bytes(&[("x.npy", &npy_counting(&[3, 5]))], CompressionMethod::Stored);
        let at = bytes.windows(4).position(|part| part == 3f32.to_le_bytes()).unwrap();
        bytes[at + 2] ^= 1;
        let message = format!("{:#}", open_bytes(&bytes).unwrap_err());
        assert!(message.starts_with("array `x` is damaged"), "{message}");
    }

    #[test]
    fn what_unpacks_to_more_than_the_limit_is_refused() {
        let zeros = npy_counting(&[1]).iter().copied().chain(std::iter::repeat_n(0, 100_000)).collect::<Vec<u8>>();
        let bytes = npz_bytes(&[("x.npy", &zeros)], CompressionMethod::Deflated);
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("data.npz");
        std::fs::write(&path, bytes).unwrap();
        let message = format!("{:#}", open(&path, 50_000).unwrap_err());
        assert!(message.contains("--max-unpacked"), "{message}");
    }

    #[test]
    fn an_archive_without_arrays_is_an_error() {
        let bytes = npz_bytes(&[("readme.txt", b"hello")], CompressionMethod::Stored);
        assert_eq!(open_bytes(&bytes).unwrap_err().to_string(), "the .npz archive holds no array");
    }
}
