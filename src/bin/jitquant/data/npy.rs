//! NumPy's `.npy` format, versions 1 to 3: a magic string, a Python dictionary literal with element type, order and
//! shape, then the elements (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};

use super::stored::{ByteOrder, Bytes, SUPPORTED_TYPES, StoredArray, StoredType, byte_len};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest header that is believed. NumPy's own reader stops at 10,000 characters.
const MAX_HEADER: usize = 1 << 16;

/// What stands before the elements.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    stored_type: StoredType,
    byte_order: ByteOrder,
    fortran_order: bool,
    shape: Vec<usize>,
    /// Bytes from the magic string to the first element.
    len: u64,
}

impl Header {
    /// Reads the header; `source` then stands at the first element.
    pub fn read(source: &mut impl Read) -> Result<Self> {
        let mut start = [0; 10];
        read_fully(source, &mut start)?;
        ensure!(start.starts_with(MAGIC), "not in NumPy's .npy format: it does not begin with \\x93NUMPY");
        let (text_len, prefix) = match start[6] {
            1 => (usize::from(u16::from_le_bytes([start[8], start[9]])), 10),
            2 | 3 => {
                let mut rest = [0; 2];
                read_fully(source, &mut rest)?;
                (u32::from_le_bytes([start[8], start[9], rest[0], rest[1]]) as usize, 12)
            }
            version => bail!("version {version}.{} of the .npy format is unknown; 1.0 to 3.0 are read", start[7]),
        };
        ensure!(text_len <= MAX_HEADER, "a header of {text_len} bytes is too long: the file is damaged");
        let mut text = vec![0; text_len];
        read_fully(source, &mut text)?;
        // Version 1 and 2 headers are Latin-1; outside of the names of structured types, which are refused, all is ASCII.
        let text = String::from_utf8_lossy(&text);
        Self::parse(&text, prefix + text_len as u64)
    }

    fn parse(text: &str, len: u64) -> Result<Self> {
        let mut literal = Literal { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let damaged = || {
            let shown: String = text.trim_end().chars().take(200).collect();
            format!("damaged .npy header {shown:?}")
        };
        literal.expect('{').with_context(damaged)?;
        while !literal.accept('}') {
            let key = literal.string().with_context(damaged)?;
            literal.expect(':').with_context(damaged)?;
            match key {
                "descr" if literal.accept('[') => bail!(
                    "a structured array (several fields in one array) cannot be read: save each field as its own array"
                ),
                "descr" => descr = Some(literal.string().with_context(damaged)?),
                "fortran_order" => fortran_order = Some(literal.boolean().with_context(damaged)?),
                "shape" => shape = Some(literal.shape().with_context(damaged)?),
                _ => bail!("{}: unknown key {key:?}", damaged()),
            }
            if !literal.accept(',') {
                literal.expect('}').with_context(damaged)?;
                break;
            }
        }
        let (stored_type, byte_order) = element_type(descr.with_context(damaged)?)?;
        let fortran_order = fortran_order.with_context(damaged)?;
        Ok(Self { stored_type, byte_order, fortran_order, shape: shape.with_context(damaged)?, len })
    }

    /// The array whose elements follow in `source`, which may be compressed.
    pub fn unpack(self, source: &mut impl Read) -> Result<StoredArray> {
        let bytes = Bytes::unpack(source, byte_len(&self.shape, self.stored_type)?)?;
        self.with_row_major(bytes)
    }

    /// The array whose file begins at `start` of `file`, which holds `available` bytes of it.
    pub fn within(self, file: &Arc<Mutex<File>>, start: u64, available: u64) -> Result<StoredArray> {
        let needed = byte_len(&self.shape, self.stored_type)?;
        let found = available.saturating_sub(self.len);
        ensure!(
            found >= needed,
            "truncated: shape {:?} takes {needed} bytes of elements, {found} are there",
            self.shape
        );
        let offset = start + self.len;
        self.with_row_major(Bytes::File { file: Arc::clone(file), offset })
    }

    /// Column-major elements are brought into row-major order, once and in memory: a sample is spread over all of them.
    fn with_row_major(self, bytes: Bytes) -> Result<StoredArray> {
        let Self { stored_type, byte_order, fortran_order, shape, .. } = self;
        let bytes = if fortran_order && shape.len() > 1 {
            let len = usize::try_from(byte_len(&shape, stored_type)?)?;
            Bytes::Memory(row_major(&bytes.read(0, len)?, &shape, stored_type.size()))
        } else {
            bytes
        };
        Ok(StoredArray { stored_type, byte_order, shape, bytes })
    }
}

/// Opens a `.npy` file. The elements stay in the file.
pub(super) fn open(path: &Path) -> Result<StoredArray> {
    let mut file = File::open(path)?;
    let available = file.metadata()?.len();
    let header = Header::read(&mut file)?;
    header.within(&Arc::new(Mutex::new(file)), 0, available)
}

fn read_fully(source: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    source.read_exact(buffer).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => anyhow::anyhow!("truncated: it ends inside the .npy header"),
        _ => error.into(),
    })
}

/// NumPy's type strings: byte order, kind, bytes of an element, as in `<f4`.
fn element_type(descr: &str) -> Result<(StoredType, ByteOrder)> {
    let byte_order = match descr.as_bytes().first() {
        Some(b'>') => ByteOrder::Big,
        Some(b'<' | b'|' | b'=') => ByteOrder::Little,
        _ => bail!("damaged .npy header: {descr:?} is not an element type"),
    };
    let stored_type = match &descr[1..] {
        "b1" => StoredType::Bool,
        "u1" => StoredType::U8,
        "i1" => StoredType::I8,
        "i2" => StoredType::I16,
        "u2" => StoredType::U16,
        "i4" => StoredType::I32,
        "u4" => StoredType::U32,
        "i8" => StoredType::I64,
        "u8" => StoredType::U64,
        "f2" => StoredType::F16,
        "f4" => StoredType::F32,
        "f8" => StoredType::F64,
        other => {
            let meaning = match other.as_bytes().first() {
                Some(b'O') => "Python objects",
                Some(b'S' | b'U' | b'a') => "strings",
                Some(b'c') => "complex numbers",
                Some(b'm' | b'M') => "dates or times",
                Some(b'f') => "a float type of the machine that wrote it",
                _ => "raw bytes",
            };
            bail!("element type {descr:?} ({meaning}) cannot be an input of a model: use {SUPPORTED_TYPES}")
        }
    };
    Ok((stored_type, byte_order))
}

/// A reader of the few forms of Python literals that a `.npy` header has.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn accept(&mut self, c: char) -> bool {
        let rest = self.rest.trim_start();
        self.rest = rest.strip_prefix(c).unwrap_or(rest);
        self.rest.len() < rest.len()
    }

    fn expect(&mut self, c: char) -> Result<()> {
        ensure!(self.accept(c), "{c:?} is missing before {:?}", self.rest.trim_end());
        Ok(())
    }

    fn string(&mut self) -> Result<&'a str> {
        let quote = if self.accept('"') { '"' } else { '\'' };
        if quote == '\'' {
            self.expect(quote)?;
        }
        let (text, rest) = self.rest.split_once(quote).context("a string has no end")?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool> {
        let rest = self.rest.trim_start();
        let (value, rest) = match (rest.strip_prefix("True"), rest.strip_prefix("False")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => bail!("True or False is missing before {:?}", rest.trim_end()),
        };
        self.rest = rest;
        Ok(value)
    }

    fn shape(&mut self) -> Result<Vec<usize>> {
        self.expect('(')?;
        let mut shape = Vec::new();
        while !self.accept(')') {
            let rest = self.rest.trim_start();
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            shape.push(rest[..digits].parse().context("a dimension is not a number of 64 bits")?);
            // Python 2 wrote long integers as `3L`.
            self.rest = rest[digits..].trim_start_matches('L');
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}

/// Column-major `bytes` in row-major order.
fn row_major(bytes: &[u8], shape: &[usize], element_size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = element_size;
    for &dim in shape {
        strides.push(stride);
        stride *= dim;
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0; shape.len()];
    let mut from = 0;
    while out.len() < bytes.len() {
        out.extend_from_slice(&bytes[from..from + element_size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            from += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            from -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::super::array::ArrayData;
    use super::*;

    /// The bytes of a version 1.0 file with this header text and these elements.
    pub(in super::super) fn npy_bytes(header: &str, elements: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(elements);
        bytes
    }

    /// A file of float32 elements 0, 1, 2, … in row-major order.
    pub(in super::super) fn npy_counting(shape: &[usize]) -> Vec<u8> {
        let dims: String = shape.iter().map(|d| format!("{d},")).collect();
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}\n");
        let elements: Vec<u8> = (0..shape.iter().product()).flat_map(|i: usize| (i as f32).to_le_bytes()).collect();
        npy_bytes(&header, &elements)
    }

    fn formats(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats").join(name)
    }

    fn read(bytes: &[u8]) -> Result<StoredArray> {
        let mut source = bytes;
        Header::read(&mut source)?.unpack(&mut source)
    }

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", read(bytes).unwrap_err())
    }

    #[test]
    fn files_written_by_numpy_hold_the_values_that_numpy_put_there() {
        // tests/data/formats/make.py: element i of the row-major order is i - 5, or i % 3 == 0 for booleans.
        let counting = |n: usize| (0..n).map(|i| i as f32 - 5.0);
        let cases: Vec<(&str, Vec<usize>, ArrayData)> = vec![
            ("f32.npy", vec![3, 4], ArrayData::F32(counting(12).collect())),
            ("f32_fortran.npy", vec![3, 2, 4], ArrayData::F32(counting(24).collect())),
            ("f32_big_endian.npy", vec![3, 4], ArrayData::F32(counting(12).collect())),
            ("f64_big_endian_fortran.npy", vec![3, 4], ArrayData::F64(counting(12).map(f64::from).collect())),
            ("f16.npy", vec![3, 4], ArrayData::F32(counting(12).collect())),
            ("i64_version2.npy", vec![3, 4], ArrayData::I64(counting(12).map(|x| x as i64).collect())),
            ("i16_big_endian.npy", vec![12], ArrayData::I16(counting(12).map(|x| x as i16).collect())),
            ("bool.npy", vec![3, 4], ArrayData::Bool((0..12).map(|i| i % 3 == 0).collect())),
        ];
        for (name, shape, data) in cases {
            let array = open(&formats(name)).unwrap();
            assert_eq!(array.shape, shape, "{name}");
            assert_eq!(array.read(0..shape[0]).unwrap(), data, "{name}");
        }
    }

    #[test]
    fn a_range_of_samples_is_read_alone() {
        let array = read(&npy_counting(&[4, 2])).unwrap();
        assert_eq!(array.read(1..3).unwrap(), ArrayData::F32(vec![2.0, 3.0, 4.0, 5.0]));
        let array = open(&formats("f32_fortran.npy")).unwrap();
        assert_eq!(array.read(2..3).unwrap(), ArrayData::F32((11..19).map(|i| i as f32).collect()));
    }

    #[test]
    fn headers_of_old_and_unusual_writers_are_read() {
        let text = r#"{"shape":(3L,4L),"fortran_order":False,"descr":"|u1"}"#;
        let header = Header::parse(text, 0).unwrap();
        assert_eq!((header.stored_type, header.shape), (StoredType::U8, vec![3, 4]));
        let scalar = Header::parse("{'descr': '<f8', 'fortran_order': False, 'shape': (), }", 0).unwrap();
        assert!(scalar.shape.is_empty());
    }

    #[test]
    fn types_that_no_model_takes_are_named() {
        for (descr, meaning) in
            [("|O", "Python objects"), ("<U5", "strings"), ("|S3", "strings"), ("<c8", "complex"), ("<M8[ns]", "dates")]
        {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}");
            let message = error(&npy_bytes(&header, &[0; 64]));
            assert!(message.contains(meaning) && message.contains("use float16"), "{descr}: {message}");
        }
        let record = "{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (1,), }";
        assert!(error(&npy_bytes(record, &[0; 8])).contains("structured array"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = npy_counting(&[2, 3]);
        for len in 0..whole.len() {
            let message = error(&whole[..len]);
            assert!(message.contains("truncated"), "{len} bytes: {message}");
        }
        read(&whole).unwrap();
    }

    #[test]
    fn no_damaged_byte_makes_the_reader_panic() {
        let whole = npy_counting(&[2, 3]);
        let mut read_anyway = 0;
        for position in 0..whole.len() - 24 {
            for byte in 0..=255 {
                let mut damaged = whole.clone();
                damaged[position] = byte;
                if let Ok(array) = read(&damaged)
                    && array.shape.first().is_some_and(|&samples| samples > 0)
                {
                    array.read(0..1).unwrap();
                    read_anyway += 1;
                }
            }
        }
        // Other types, orders and smaller dimensions are no damage that a reader could see.
        assert!(read_anyway > whole.len() - 24, "{read_anyway}");
    }

    #[test]
    fn damaged_headers_are_errors() {
        let cases = [
            ("{'descr': '<f4', 'fortran_order': False}", "damaged .npy header"),
            ("{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1,)}", "True or False is missing"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "not a number"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "not a number of 64 bits"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,9999999999999)}", "header is damaged"),
            ("{'descr': '<f4', 'extra': 1}", "unknown key \"extra\""),
            ("{'descr': '', 'fortran_order': False, 'shape': (1,)}", "is not an element type"),
            ("{'descr': 'é', 'fortran_order': False, 'shape': (1,)}", "is not an element type"),
            ("{'descr", "a string has no end"),
            ("", "'{' is missing"),
        ];
        for (header, expected) in cases {
            let message = error(&npy_bytes(header, &[0; 16]));
            assert!(message.contains(expected), "{header}: {message}");
        }
        assert!(error(b"PK\x03\x04 something else").contains("not in NumPy's .npy format"));
        assert!(error(b"\x93NUMPY\x09\x00\x00\x00").contains("version 9.0"));
        assert!(error(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").contains("too long"));
    }
}
