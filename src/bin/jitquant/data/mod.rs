//! The samples that a model is calibrated, compared or measured with: what the command line calls DATA.
//!
//! - `.npz`, `.npy` (NumPy) and `.safetensors`: one array for each input of the model; the first dimension counts the
//!   samples.
//!   An array without dimensions is one number for all samples, for an argument that is a number.
//! - A folder of PNG or JPEG images, or a single one.
//! - Several of these: their samples follow one another. `name=path` says which input a file is for.
//!
//! Files stay on disk and samples are decoded batch by batch, so data may be larger than memory. Two kinds of array are
//! held outside of their file while a [`Dataset`] lives: deflated ones in memory (above 256 MiB in an unnamed temporary
//! file), column-major (Fortran order) ones in memory.

mod array;
mod bind;
mod image_options;
mod images;
mod npy;
mod npz;
mod open;
mod options;
mod safetensors;
mod stored;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

pub use array::{Array, ArrayData, ElementType};
pub use bind::LABEL_NAMES;
pub use image_options::ImageOptions;
pub use options::{DataOptions, Given};

use images::ImageSet;
use stored::StoredArray;

/// What DATA may be, for the long help of a command.
pub const DATA_HELP: &str = "\
DATA is one of
  data.npz, data.safetensors   one array for each input of the model, matched by name or else by position
  x.npy                        the one input of the model
  x=a.npy                      the input called x, for models with several inputs: give one such DATA for each
  photos/                      a folder of PNG and JPEG images (see --resize, --crop, --mean, --std, --grayscale)
An argument that is a tuple, list or dictionary of tensors is put together of arrays with its name and a point before
theirs: boxes.0 and boxes.1, features.p3; of a named tuple by field: boxes.low. Numbers, truths and texts are given by --input.
The first dimension of every array counts the samples; a single number (in an .npz, beside arrays) goes to every batch.
The samples of several DATA follow one another.";

/// The samples of all inputs of a model.
///
/// # Example
/// ```ignore
/// let mut dataset = Dataset::open(&["digits.npz".into()], &DataOptions::default())?;
/// let labels = dataset.take_labels("labels")?;
/// dataset.bind(&["x"], 1)?;
/// for batch in dataset.batches(NonZeroUsize::new(32).unwrap()) {
///     let inputs: Vec<Array> = batch?; // shape [32, ...], the last batch has what is left
/// }
/// ```
#[derive(Debug)]
pub struct Dataset {
    inputs: Vec<Input>,
    len: usize,
    notes: Vec<String>,
}

/// One input: an array in one file, or the concatenation of arrays in several.
#[derive(Debug)]
struct Input {
    info: InputInfo,
    /// Whether the place of this input among those of its file was the writer's choice.
    ordered: bool,
    float64_as_float32: bool,
    parts: Vec<Part>,
}

/// The samples of an input that one file holds.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    samples: Samples,
}

#[derive(Debug)]
enum Samples {
    Stored(StoredArray),
    Images(ImageSet),
    /// One number, for every batch.
    Number(StoredArray),
}

/// What is known of an input before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct InputInfo {
    /// The name in the data, or the model's argument name after [`Dataset::bind`].
    pub name: String,
    /// The type of the elements.
    pub element_type: ElementType,
    /// The shape of one sample, without the first dimension.
    pub sample_shape: Vec<usize>,
    /// Whether it is one number for all samples.
    pub is_number: bool,
}

impl fmt::Display for InputInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_number {
            return write!(f, "{}: one {} for all samples", self.name, self.element_type);
        }
        write!(f, "{}: {} [samples", self.name, self.element_type)?;
        self.sample_shape.iter().try_for_each(|dim| write!(f, ", {dim}"))?;
        f.write_str("]")
    }
}

impl Dataset {
    /// Opens the files and folders in `paths`, each optionally as `name=path`. If no path has a name, the samples of
    /// all follow one another and each must hold the same inputs; a single `.npy` array or image folder matches any
    /// other. If one has a name, arrays of the same name follow one another.
    ///
    /// Only headers are read.
    ///
    /// # Errors
    /// With the file: missing, of a kind that is not read, damaged or truncated; empty; arrays with different numbers of
    /// samples; an element type that no model takes; files that do not go together.
    pub fn open(paths: &[PathBuf], options: &DataOptions) -> Result<Self> {
        open::open(paths, options)
    }

    /// The number of samples, at least 1.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The inputs, in the order in which a batch has them.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = &InputInfo> {
        self.inputs.iter().map(|input| &input.info)
    }

    /// Sentences about what was done to the data that the user did not ask for, such as a conversion of float16.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Reads the samples in `range`: one array for each input, without dimensions where it is one number.
    ///
    /// # Errors
    /// If a file cannot be read or an image decoded, or if there is NaN or infinity: with file, array, sample and
    /// position.
    pub fn batch(&self, range: Range<usize>) -> Result<Vec<Array>> {
        ensure!(range.start < range.end && range.end <= self.len, "samples {range:?} of {} do not exist", self.len);
        self.inputs.iter().map(|input| input.read(range.clone())).collect()
    }

    /// All samples in order, `batch_size` at a time; the last batch has what is left.
    pub fn batches(&self, batch_size: NonZeroUsize) -> Batches<'_> {
        Batches { dataset: self, batch_size: batch_size.get(), next: 0 }
    }

    /// Makes float32 of every float64 input, as nearly all models need it: float64 is what NumPy makes unless told
    /// otherwise. Leaves a note for each.
    pub fn convert_float64(&mut self) {
        for input in &mut self.inputs {
            if input.info.element_type == ElementType::F64 {
                input.float64_as_float32 = true;
                input.info.element_type = ElementType::F32;
                self.notes.push(format!("array `{}` was converted from float64 to float32", input.info.name));
            }
        }
    }

    /// Removes the array `name` from the inputs and returns it as class labels, one a sample.
    ///
    /// # Errors
    /// If there is no such array, if it is the only one, if it does not have one value a sample, or if a value is not
    /// an integer.
    pub fn take_labels(&mut self, name: &str) -> Result<Vec<i64>> {
        let Some(index) = self.inputs.iter().position(|input| input.info.name == name) else {
            bail!("no array is called `{name}`; the data has\n{}", self.describe_inputs());
        };
        let input = &self.inputs[index];
        ensure!(
            input.info.sample_shape.iter().product::<usize>() == 1 && !input.info.is_number,
            "labels are one class number a sample, but the data has {}; for one-hot labels or scores, store their argmax",
            input.info
        );
        ensure!(self.inputs.len() > 1, "the data has only the array `{name}`: inputs for the model are missing");
        let labels = integral(input.read(0..self.len)?.data)
            .map_err(|(sample, value)| anyhow::anyhow!("sample {sample} has the value {value}"))
            .with_context(|| format!("labels are class numbers, but array `{name}` holds other values"))?;
        self.inputs.remove(index);
        Ok(labels)
    }

    /// Brings the inputs into the order of the model's `arguments` (without `self`), of which the first `required` have
    /// no default value: by name where the names are those of the arguments, else by position. Renames the inputs to
    /// the arguments. Arrays named like labels that no argument wants are left out, with a note.
    ///
    /// # Errors
    /// Lists the arguments and the arrays, and says which array or argument is left over.
    pub fn bind(&mut self, arguments: &[&str], required: usize) -> Result<()> {
        self.bind_inputs(arguments, required)
    }

    fn describe_inputs(&self) -> String {
        self.inputs.iter().map(|input| format!("  {}", input.info)).collect::<Vec<_>>().join("\n")
    }
}

/// Labels as integers, or sample and value of the first that is none.
fn integral(data: ArrayData) -> std::result::Result<Vec<i64>, (usize, f64)> {
    // Floats hold every integer up to 2^53 (2^24 for float32), more than there are classes.
    let from_floats = |values: &mut dyn Iterator<Item = f64>| {
        let integer = |(i, x): (usize, f64)| if x == x.trunc() && x.abs() < 9e15 { Ok(x as i64) } else { Err((i, x)) };
        values.enumerate().map(integer).collect()
    };
    match data {
        ArrayData::I64(v) => Ok(v),
        ArrayData::I32(v) => Ok(v.into_iter().map(i64::from).collect()),
        ArrayData::I16(v) => Ok(v.into_iter().map(i64::from).collect()),
        ArrayData::I8(v) => Ok(v.into_iter().map(i64::from).collect()),
        ArrayData::U8(v) => Ok(v.into_iter().map(i64::from).collect()),
        ArrayData::Bool(v) => Ok(v.into_iter().map(i64::from).collect()),
        ArrayData::F32(v) => from_floats(&mut v.into_iter().map(f64::from)),
        ArrayData::F64(v) => from_floats(&mut v.into_iter()),
    }
}

impl Input {
    fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    fn read(&self, range: Range<usize>) -> Result<Array> {
        if let [Part { samples: Samples::Number(number), .. }, ..] = &self.parts[..] {
            return Ok(Array { name: self.info.name.clone(), shape: Vec::new(), data: number.read_number()? });
        }
        let mut data: Option<ArrayData> = None;
        let mut first = 0;
        for part in &self.parts {
            let within = range.start.max(first) - first..range.end.min(first + part.len()).max(first) - first;
            first += part.len();
            if within.is_empty() {
                continue;
            }
            let part_data = self.read_part(part, within)?;
            match &mut data {
                None => data = Some(part_data),
                Some(data) => data.append(part_data)?,
            }
        }
        let data = data.with_context(|| format!("array `{}` has no samples {range:?}", self.info.name))?;
        let mut shape = vec![range.len()];
        shape.extend_from_slice(&self.info.sample_shape);
        Ok(Array { name: self.info.name.clone(), shape, data })
    }

    /// Reads and checks samples of one file, which errors count from that file's first.
    fn read_part(&self, part: &Part, range: Range<usize>) -> Result<ArrayData> {
        let in_file = || part.path.display().to_string();
        let data = match &part.samples {
            Samples::Stored(array) => array
                .read(range.clone())
                .with_context(|| format!("array `{}`", self.info.name))
                .with_context(in_file)?,
            Samples::Images(images) => images.read(range.clone())?,
            Samples::Number(number) => number.read_number()?,
        };
        let mut shape = vec![range.len()];
        shape.extend_from_slice(&self.info.sample_shape);
        let array = Array { name: self.info.name.clone(), shape, data };
        array.check_finite(range.start).with_context(in_file)?;
        Ok(if self.float64_as_float32 { array.data.with_float64_as_float32() } else { array.data })
    }
}

impl Part {
    fn len(&self) -> usize {
        match &self.samples {
            Samples::Stored(array) => array.shape[0],
            Samples::Images(images) => images.len(),
            Samples::Number(_) => 1,
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Iterator over the batches of a [`Dataset`].
#[derive(Debug)]
pub struct Batches<'d> {
    dataset: &'d Dataset,
    batch_size: usize,
    next: usize,
}

impl Iterator for Batches<'_> {
    type Item = Result<Vec<Array>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.dataset.len {
            return None;
        }
        let end = self.next.saturating_add(self.batch_size).min(self.dataset.len);
        let batch = self.dataset.batch(self.next..end);
        self.next = end;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.dataset.len - self.next).div_ceil(self.batch_size);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}
