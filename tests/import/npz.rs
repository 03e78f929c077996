//! Arrays of a `.npz`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use jitquant::ir::{DType, Tensor};

/// Every array by its name; booleans and integers keep their type.
pub fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    (0..zip.len())
        .map(|index| {
            let mut record = zip.by_index(index).unwrap();
            let name = record.name().unwrap().trim_end_matches(".npy").to_owned();
            let mut bytes = Vec::new();
            record.read_to_end(&mut bytes).unwrap();
            (name, array(&bytes))
        })
        .collect()
}

/// Version 1 of the format: a header in Python's syntax, and the elements in C's order.
fn array(bytes: &[u8]) -> Tensor {
    let len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + len]).unwrap();
    let after = |word: &str| header.split_once(word).unwrap().1;
    let dtype = match after("'descr': '").split('\'').next().unwrap() {
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "|b1" => DType::Bool,
        other => panic!("arrays of {other}"),
    };
    let shape = after("'shape': (").split(')').next().unwrap();
    let shape: Vec<i64> = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    assert!(header.contains("'fortran_order': False"), "{header}");
    Tensor::from_bytes(dtype, &shape, &bytes[10 + len..]).unwrap()
}

/// Writes a float32 `.npy`.
pub fn write_npy(path: &Path, tensor: &Tensor) {
    let shape: Vec<String> = tensor.shape().iter().map(|size| format!("{size},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.concat());
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(tensor.to_vec::<f32>().unwrap().iter().flat_map(|value| value.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}
