//! The tensors of a `.pt2` file: each record is read once, into memory that its tensors then share.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use super::archive::{Archive, Layout, in_record};
use super::schema::{self, PayloadConfig, Size, TensorMeta};
use super::state_dict;
use crate::archive::{end_of_view, first_few, shortened};
use crate::error::{Error, Result};
use crate::ir::{DType, Tensor};

/// Parameters, buffers and constants, by their dotted names.
pub(super) type Tensors = BTreeMap<String, Tensor>;

/// The most dimensions that libtorch's kernels take.
const MOST_DIMENSIONS: usize = 64;

/// Reads every tensor of the model `name`.
///
/// # Errors
/// Where a record is missing or damaged, or does not hold what is said of it.
pub(super) fn read<S: Read + Seek>(archive: &mut Archive<S>, name: &str) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    match archive.layout {
        Layout::Flat => {
            for record in ["serialized_state_dict.pt", "serialized_constants.pt"] {
                read_pickle(archive, record, &mut tensors)?;
            }
        }
        Layout::Folder => {
            for (folder, kind) in [("data/weights/", "weights"), ("data/constants/", "constants")] {
                let config = format!("{folder}{name}_{kind}_config.json");
                match archive.has(&config) {
                    true => read_folder(archive, folder, &config, &mut tensors)?,
                    // torch 2.8 wrote one pickle.
                    false => read_pickle(archive, &format!("{folder}{name}.pt"), &mut tensors)?,
                }
            }
        }
    }
    Ok(tensors)
}

fn read_pickle<S: Read + Seek>(archive: &mut Archive<S>, record: &str, into: &mut Tensors) -> Result<()> {
    if !archive.has(record) {
        return Ok(());
    }
    let content = archive.read(record)?;
    // A model without constants has an empty record.
    if !content.is_empty() {
        into.extend(state_dict::read(&content).map_err(|why| in_record(record, why))?);
    }
    Ok(())
}

/// Reads a folder of records, one for each piece of memory.
fn read_folder<S: Read + Seek>(archive: &mut Archive<S>, folder: &str, config: &str, into: &mut Tensors) -> Result<()> {
    let parsed: PayloadConfig =
        serde_json::from_slice(&archive.read(config)?).map_err(|e| in_record(config, unexpected(&e)))?;
    let mut memories: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, payload) in parsed.config {
        let record = format!("{folder}{}", payload.path_name);
        let refused = |why: String| in_record(&record, format!("tensor '{}': {why}", shortened(&name)));
        let meta = match payload.tensor_meta {
            Some(meta) if !payload.use_pickle => meta,
            _ => {
                return Err(Error::invalid(format!(
                    "'{}' is kept as a pickle of a Python class (a tensor subclass or an object), which is not read: in \
                     Python, make an ordinary tensor of it before the export (torchao: unwrap_tensor_subclass(model))",
                    shortened(&name)
                )));
            }
        };
        let memory = match memories.get(&record) {
            Some(memory) => memory.clone(),
            None => {
                let size = usize::try_from(archive.size(&record)?).map_err(|e| in_record(&record, e))?;
                let memory = Tensor::filled(size, |bytes| archive.read_into(&record, bytes))?;
                memories.insert(record.clone(), memory.clone());
                memory
            }
        };
        let tensor = View::of(&meta).and_then(|view| view.on(&memory)).map_err(refused)?;
        into.insert(name, tensor);
    }
    Ok(())
}

/// What serde says, in words for a message.
pub(super) fn unexpected(e: &serde_json::Error) -> String {
    let text: String = e.to_string().chars().take(200).collect();
    format!("it is not what PyTorch writes there ({text})")
}

/// How a tensor lies in memory, in elements.
pub(super) struct View {
    pub dtype: DType,
    pub sizes: Vec<i64>,
    pub strides: Vec<i64>,
    pub offset: i64,
}

impl View {
    fn of(meta: &TensorMeta) -> Result<Self, String> {
        let code = schema::scalar_type(meta.dtype).and_then(|code| i32::try_from(code).ok());
        let dtype = code.and_then(DType::from_code).ok_or_else(|| {
            format!(
                "its element type, number {}, is not read: integers, bool and floats of 16 to 64 bits are",
                meta.dtype
            )
        })?;
        if meta.layout != schema::STRIDED {
            return Err("it is sparse, which is not read: make it dense before the export, with to_dense()".to_owned());
        }
        let known = |sizes: &[Size]| sizes.iter().map(Size::known).collect::<Option<Vec<_>>>();
        let all = (known(&meta.sizes), known(&meta.strides), meta.storage_offset.known());
        let (Some(sizes), Some(strides), Some(offset)) = all else { return Err("its size is a formula".to_owned()) };
        Ok(Self { dtype, sizes, strides, offset })
    }

    /// The tensor, on the memory of `bytes`, once it is known to lie inside.
    ///
    /// # Errors
    /// Where it does not.
    pub fn on(&self, bytes: &Tensor) -> Result<Tensor, String> {
        let element = self.dtype.size();
        let have = bytes.nbytes() / element;
        let described = || {
            format!(
                "sizes {:?}, strides {:?}, offset {}",
                first_few(&self.sizes),
                first_few(&self.strides),
                self.offset
            )
        };
        match self.end() {
            Some(end) if end <= have as u64 => {}
            Some(end) => {
                return Err(format!("{} reach to element {end}, and the record holds {have}", described()));
            }
            None => return Err(format!("{} are not those of a tensor", described())),
        }
        bytes.view_as(self.dtype, &self.sizes, &self.strides, self.offset).map_err(|e| e.to_string())
    }

    /// One more than the place of the last element; `None` where sizes or strides are none.
    fn end(&self) -> Option<u64> {
        let is_plausible = self.sizes.len() <= MOST_DIMENSIONS;
        end_of_view(self.offset, &self.sizes, &self.strides).ok().filter(|_| is_plausible)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(offset: i64, sizes: &[i64], strides: &[i64]) -> Option<u64> {
        View { dtype: DType::F32, sizes: sizes.to_vec(), strides: strides.to_vec(), offset }.end()
    }

    #[test]
    fn the_last_element_is_found() {
        assert_eq!(end(0, &[2, 3], &[3, 1]), Some(6));
        assert_eq!(end(2, &[3, 2], &[1, 3]), Some(8));
        assert_eq!(end(0, &[100], &[0]), Some(1));
        assert_eq!(end(7, &[0, 3], &[3, 1]), Some(0));
        assert_eq!(end(5, &[], &[]), Some(6));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (offset, sizes, strides) in [
            (-1, &[1][..], &[1][..]),
            (0, &[-1], &[1]),
            (0, &[2], &[-1]),
            (0, &[2], &[]),
            (0, &[i64::MAX, 2], &[0, 0]),
            (0, &[0, i64::MAX, 2], &[0, 0, 0]),
            (0, &[2], &[i64::MAX]),
            (i64::MAX, &[2], &[1]),
            (0, &[1; 65], &[1; 65]),
        ] {
            assert_eq!(end(offset, sizes, strides), None, "{offset} {sizes:?} {strides:?}");
        }
    }
}
