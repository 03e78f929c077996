//! An array as it lies in a file: element type, byte order, and where the bytes are. Samples are decoded on demand, so
//! that a file larger than memory can be read batch by batch.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use super::array::{ArrayData, ElementType};

/// Element types that files hold and that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredType {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F16,
    BF16,
    F32,
    F64,
}

/// The types above in the words of an error message.
pub(super) const SUPPORTED_TYPES: &str = "float16, bfloat16, float32, float64, int8 to int64, uint8 to uint64 or bool";

impl StoredType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The type after decoding. Half precision becomes float32, and unsigned integers that few operators take become
    /// the next wider signed type.
    pub fn element_type(self) -> ElementType {
        match self {
            Self::Bool => ElementType::Bool,
            Self::U8 => ElementType::U8,
            Self::I8 => ElementType::I8,
            Self::I16 => ElementType::I16,
            Self::U16 | Self::I32 => ElementType::I32,
            Self::U32 | Self::I64 | Self::U64 => ElementType::I64,
            Self::F16 | Self::BF16 | Self::F32 => ElementType::F32,
            Self::F64 => ElementType::F64,
        }
    }

    /// What a reader should know about the conversion, if there is one: the name of the type in the file.
    pub fn converted_from(self) -> Option<&'static str> {
        match self {
            Self::U16 => Some("uint16"),
            Self::U32 => Some("uint32"),
            Self::U64 => Some("uint64"),
            Self::F16 => Some("float16"),
            Self::BF16 => Some("bfloat16"),
            _ => None,
        }
    }

    fn decode(self, bytes: &[u8], byte_order: ByteOrder) -> Result<ArrayData> {
        macro_rules! elements {
            ($t:ty) => {
                match byte_order {
                    ByteOrder::Little => words(bytes).map(<$t>::from_le_bytes).collect::<Vec<_>>(),
                    ByteOrder::Big => words(bytes).map(<$t>::from_be_bytes).collect::<Vec<_>>(),
                }
            };
        }
        Ok(match self {
            Self::Bool => ArrayData::Bool(bytes.iter().map(|&b| b != 0).collect()),
            Self::U8 => ArrayData::U8(bytes.to_vec()),
            Self::I8 => ArrayData::I8(bytes.iter().map(|&b| b as i8).collect()),
            Self::I16 => ArrayData::I16(elements!(i16)),
            Self::U16 => ArrayData::I32(elements!(u16).into_iter().map(i32::from).collect()),
            Self::I32 => ArrayData::I32(elements!(i32)),
            Self::U32 => ArrayData::I64(elements!(u32).into_iter().map(i64::from).collect()),
            Self::I64 => ArrayData::I64(elements!(i64)),
            Self::U64 => {
                let signed: Result<Vec<_>> = elements!(u64)
                    .into_iter()
                    .map(|x| i64::try_from(x).with_context(|| format!("the uint64 value {x} does not fit into int64")))
                    .collect();
                ArrayData::I64(signed?)
            }
            Self::F16 => ArrayData::F32(elements!(half::f16).into_iter().map(f32::from).collect()),
            Self::BF16 => ArrayData::F32(elements!(half::bf16).into_iter().map(f32::from).collect()),
            Self::F32 => ArrayData::F32(elements!(f32)),
            Self::F64 => ArrayData::F64(elements!(f64)),
        })
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// The byte order of elements in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// Compressed arrays above this many bytes are unpacked into an unnamed temporary file instead of memory.
const MEMORY_LIMIT: u64 = 256 << 20;

/// Where the elements of an array are.
#[derive(Debug)]
pub(super) enum Bytes {
    /// From `offset` of a file, which other arrays may share.
    File {
        file: Arc<Mutex<File>>,
        offset: u64,
    },
    Memory(Vec<u8>),
}

impl Bytes {
    /// Takes exactly `len` bytes from `source`.
    pub fn unpack(source: &mut impl Read, len: u64) -> Result<Self> {
        let mut source = source.take(len);
        let (bytes, found) = if len <= MEMORY_LIMIT {
            let mut buffer = Vec::with_capacity(usize::try_from(len)?);
            let found = source.read_to_end(&mut buffer)? as u64;
            (Self::Memory(buffer), found)
        } else {
            let mut file = tempfile::tempfile().context("cannot create a temporary file")?;
            let found = std::io::copy(&mut source, &mut file)?;
            file.flush()?;
            (Self::File { file: Arc::new(Mutex::new(file)), offset: 0 }, found)
        };
        ensure!(found == len, "truncated: {len} bytes of elements announced, {found} found");
        Ok(bytes)
    }

    /// `len` bytes from `start`, counted from the first element.
    pub fn read(&self, start: u64, len: usize) -> Result<Vec<u8>> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(start)?;
                bytes.get(start..start + len).map(<[u8]>::to_vec).context("read past the end of the array")
            }
            Self::File { file, offset } => {
                // A reader that panicked leaves nothing half done: each read seeks first.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset + start))?;
                let mut bytes = vec![0; len];
                file.read_exact(&mut bytes).context("the file ended early: was it changed while it was read?")?;
                Ok(bytes)
            }
        }
    }
}

/// An array in a file, row-major.
#[derive(Debug)]
pub(super) struct StoredArray {
    pub stored_type: StoredType,
    pub byte_order: ByteOrder,
    /// With the first dimension, the samples.
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl StoredArray {
    /// Decodes the samples in `range` (indices into the first dimension).
    pub fn read(&self, range: Range<usize>) -> Result<ArrayData> {
        let sample_bytes = self.shape[1..].iter().product::<usize>() * self.stored_type.size();
        let bytes = self.bytes.read(range.start as u64 * sample_bytes as u64, range.len() * sample_bytes)?;
        self.stored_type.decode(&bytes, self.byte_order)
    }
}

impl StoredArray {
    /// Decodes the number that an array without dimensions is.
    pub fn read_number(&self) -> Result<ArrayData> {
        self.stored_type.decode(&self.bytes.read(0, self.stored_type.size())?, self.byte_order)
    }
}

/// The bytes of the elements of an array of this shape.
///
/// # Errors
/// If that number does not fit into 64 bits with sign, as in a damaged header.
pub(super) fn byte_len(shape: &[usize], stored_type: StoredType) -> Result<u64> {
    let len = shape.iter().try_fold(stored_type.size(), |len, &dim| len.checked_mul(dim));
    match len.and_then(|len| i64::try_from(len).ok()) {
        Some(len) => Ok(len as u64),
        None => bail!("shape {shape:?} is larger than any file: the header is damaged"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_decodes_in_both_byte_orders() {
        let le = ByteOrder::Little;
        let be = ByteOrder::Big;
        let cases: Vec<(StoredType, ByteOrder, Vec<u8>, ArrayData)> = vec![
            (StoredType::Bool, le, vec![0, 1, 2], ArrayData::Bool(vec![false, true, true])),
            (StoredType::U8, le, vec![0, 255], ArrayData::U8(vec![0, 255])),
            (StoredType::I8, be, vec![0, 255], ArrayData::I8(vec![0, -1])),
            (StoredType::I16, le, vec![0x34, 0x12], ArrayData::I16(vec![0x1234])),
            (StoredType::I16, be, vec![0x12, 0x34], ArrayData::I16(vec![0x1234])),
            (StoredType::U16, be, vec![0xff, 0xfe], ArrayData::I32(vec![0xfffe])),
            (StoredType::I32, be, vec![0, 0, 1, 0], ArrayData::I32(vec![256])),
            (StoredType::U32, le, vec![255; 4], ArrayData::I64(vec![u32::MAX.into()])),
            (StoredType::I64, be, (-2i64).to_be_bytes().to_vec(), ArrayData::I64(vec![-2])),
            (StoredType::U64, le, 7u64.to_le_bytes().to_vec(), ArrayData::I64(vec![7])),
            (StoredType::F16, le, vec![0x00, 0x3e], ArrayData::F32(vec![1.5])),
            (StoredType::F16, be, vec![0x00, 0x01], ArrayData::F32(vec![2f32.powi(-24)])),
            (StoredType::BF16, le, vec![0xc0, 0x3f], ArrayData::F32(vec![1.5])),
            (StoredType::F32, be, 1.25f32.to_be_bytes().to_vec(), ArrayData::F32(vec![1.25])),
            (StoredType::F64, be, (-0.1f64).to_be_bytes().to_vec(), ArrayData::F64(vec![-0.1])),
        ];
        for (stored_type, byte_order, bytes, expected) in cases {
            let decoded = stored_type.decode(&bytes, byte_order).unwrap();
            assert_eq!(decoded, expected, "{stored_type:?} {byte_order:?}");
            assert_eq!(decoded.element_type(), stored_type.element_type());
            assert_eq!(decoded.len() * stored_type.size(), bytes.len());
        }
    }

    #[test]
    fn a_uint64_beyond_int64_is_refused() {
        let error = StoredType::U64.decode(&u64::MAX.to_le_bytes(), ByteOrder::Little).unwrap_err();
        assert_eq!(error.to_string(), "the uint64 value 18446744073709551615 does not fit into int64");
    }

    #[test]
    fn a_shape_that_overflows_is_an_error() {
        let error = byte_len(&[usize::MAX, 2], StoredType::F32).unwrap_err().to_string();
        assert!(error.contains("the header is damaged"), "{error}");
        assert_eq!(byte_len(&[], StoredType::F64).unwrap(), 8);
    }

    #[test]
    fn unpack_counts_the_bytes() {
        let error = Bytes::unpack(&mut &[1u8, 2][..], 3).unwrap_err().to_string();
        assert_eq!(error, "truncated: 3 bytes of elements announced, 2 found");
    }
}
