//! `.safetensors`: eight bytes with the length of a JSON header, the header, then the elements, little-endian and
//! row-major (<https://huggingface.co/docs/safetensors>).

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::stored::{ByteOrder, Bytes, SUPPORTED_TYPES, StoredArray, StoredType};

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Opens a `.safetensors` file: names and arrays in the order of their place in the file. The elements stay there.
pub(super) fn open(path: &Path) -> Result<Vec<(String, StoredArray)>> {
    let mut file = File::open(path)?;
    let file_len = file.metadata()?.len();
    let mut header_len = [0; 8];
    file.read_exact(&mut header_len).context("truncated: a .safetensors file has at least 8 bytes")?;
    let header_len = u64::from_le_bytes(header_len);
    ensure!(
        header_len <= MAX_HEADER,
        "not a .safetensors file: it announces a header of {header_len} bytes, more than the format allows"
    );
    ensure!(
        header_len <= file_len - 8,
        "truncated, or not a .safetensors file: it announces a header of {header_len} bytes and has {file_len} in all"
    );
    let mut header = vec![0; usize::try_from(header_len)?];
    file.read_exact(&mut header)?;
    // Checks also that the arrays lie one behind the other and have the length that type and shape ask for.
    let metadata: Metadata = serde_json::from_slice(&header).context("damaged .safetensors header")?;
    let (announced, found) = (metadata.data_len() as u64, file_len - 8 - header_len);
    ensure!(announced == found, "truncated or damaged: the arrays take {announced} bytes, {found} are there");

    let file = Arc::new(Mutex::new(file));
    let mut arrays = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let stored_type = stored_type(info.dtype).with_context(|| format!("array `{name}`"))?;
        let offset = 8 + header_len + info.data_offsets.0 as u64;
        let bytes = Bytes::File { file: Arc::clone(&file), offset };
        let shape = info.shape.clone();
        arrays.push((name, StoredArray { stored_type, byte_order: ByteOrder::Little, shape, bytes }));
    }
    ensure!(!arrays.is_empty(), "the .safetensors file holds no array");
    Ok(arrays)
}

fn stored_type(dtype: Dtype) -> Result<StoredType> {
    Ok(match dtype {
        Dtype::BOOL => StoredType::Bool,
        Dtype::U8 => StoredType::U8,
        Dtype::I8 => StoredType::I8,
        Dtype::I16 => StoredType::I16,
        Dtype::U16 => StoredType::U16,
        Dtype::I32 => StoredType::I32,
        Dtype::U32 => StoredType::U32,
        Dtype::I64 => StoredType::I64,
        Dtype::U64 => StoredType::U64,
        Dtype::F16 => StoredType::F16,
        Dtype::BF16 => StoredType::BF16,
        Dtype::F32 => StoredType::F32,
        Dtype::F64 => StoredType::F64,
        other => bail!("element type {other:?} cannot be an input of a model: use {SUPPORTED_TYPES}"),
    })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{TensorView, serialize};
    use tempfile::TempDir;

    use super::super::array::ArrayData;
    use super::*;

    fn file_bytes() -> Vec<u8> {
        let x: Vec<u8> = (0..6).flat_map(|i| (i as f32 * 0.5).to_le_bytes()).collect();
        let half: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
        let tensors = [
            ("x", TensorView::new(Dtype::F32, vec![2, 3], &x).unwrap()),
            ("half", TensorView::new(Dtype::BF16, vec![2, 1], &half).unwrap()),
        ];
        serialize(tensors, None).unwrap()
    }

    fn open_bytes(bytes: &[u8]) -> Result<Vec<(String, StoredArray)>> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("data.safetensors");
        std::fs::write(&path, bytes).unwrap();
        open(&path)
    }

    #[test]
    fn arrays_are_read_by_sample() {
        let arrays = open_bytes(&file_bytes()).unwrap();
        let find = |wanted: &str| &arrays.iter().find(|(name, _)| name == wanted).unwrap().1;
        assert_eq!(find("x").shape, [2, 3]);
        assert_eq!(find("x").read(1..2).unwrap(), ArrayData::F32(vec![1.5, 2.0, 2.5]));
        assert_eq!(find("half").read(0..2).unwrap(), ArrayData::F32(vec![1.5, -2.0]));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = file_bytes();
        for len in 0..whole.len() {
            let message = format!("{:#}", open_bytes(&whole[..len]).unwrap_err());
            assert!(message.contains("truncated"), "{len} bytes: {message}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let message = open_bytes(b"PK\x03\x04 a zip archive, not a safetensors file").unwrap_err().to_string();
        assert!(message.starts_with("not a .safetensors file"), "{message}");
        let mut bytes = 4u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"[1] ");
        let message = open_bytes(&bytes).unwrap_err().to_string();
        assert_eq!(message, "damaged .safetensors header");
    }

    #[test]
    fn a_type_that_no_model_takes_is_named() {
        let tensors = [("codes", TensorView::new(Dtype::F8_E4M3, vec![2], &[1, 2]).unwrap())];
        let message = format!("{:#}", open_bytes(&serialize(tensors, None).unwrap()).unwrap_err());
        assert!(message.starts_with("array `codes`: element type F8_E4M3"), "{message}");
    }

    #[test]
    fn a_header_whose_offsets_lie_outside_is_refused() {
        let header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0; 4]);
        assert_eq!(open_bytes(&bytes).unwrap_err().to_string(), "damaged .safetensors header");
    }
}
