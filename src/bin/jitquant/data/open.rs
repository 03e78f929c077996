//! From the paths of the command line to a [`Dataset`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::images::{self, ImageSet};
use super::stored::StoredArray;
use super::{DataOptions, Dataset, ElementType, ImageOptions, Input, InputInfo, Part, Samples, npy, npz, safetensors};

/// The name of the input that images are, where nobody gave one.
const IMAGES: &str = "images";

/// One DATA of the command line.
struct Source {
    path: PathBuf,
    naming: Naming,
    arrays: Vec<(String, Samples)>,
    /// Whether the order of the arrays was the writer's choice.
    ordered: bool,
}

/// Where the names of a source's arrays come from.
#[derive(Clone, Copy, PartialEq)]
enum Naming {
    /// `name=path`.
    Given,
    /// Stored with the arrays.
    Stored,
    /// From the file name, which need not mean anything to the model.
    Implied,
}

pub(super) fn open(paths: &[PathBuf], options: &DataOptions) -> Result<Dataset> {
    ensure!(!paths.is_empty(), "no data given");
    let mut notes = Vec::new();
    let sources: Vec<Source> = paths.iter().map(|path| Source::open(path, options)).collect::<Result<_>>()?;
    sources.iter().for_each(|source| source.note_conversions(&mut notes));
    let has_images = |source: &Source| source.arrays.iter().any(|(_, samples)| matches!(samples, Samples::Images(_)));
    if options.images != ImageOptions::default() && !sources.iter().any(has_images) {
        notes
            .push("--resize, --crop, --mean, --std and --grayscale are for images and do not change arrays".to_owned());
    }
    let inputs = if sources.iter().any(|source| source.naming == Naming::Given) {
        by_name(sources)?
    } else {
        one_after_another(sources)?
    };
    let counted: Vec<&Input> = inputs.iter().filter(|input| !input.info.is_number).collect();
    let len = counted.first().map_or(0, |input| input.len());
    ensure!(
        len > 0,
        "array `{}` is a single number; the first dimension of an array counts the samples",
        inputs[0].info.name
    );
    if counted.iter().any(|input| input.len() != len) {
        let counts: Vec<String> =
            counted.iter().map(|input| format!("`{}` has {}", input.info.name, input.len())).collect();
        bail!("every input needs the same number of samples, but {}", counts.join(", "));
    }
    Ok(Dataset { inputs, len, notes })
}

impl Source {
    fn open(argument: &Path, options: &DataOptions) -> Result<Self> {
        let (name, path) = split_name(argument);
        let mut source = Self::open_path(path, options).with_context(|| path.display().to_string())?;
        if let Some(name) = name {
            let count = source.arrays.len();
            let [(array_name, _)] = source.arrays.as_mut_slice() else {
                bail!("{name}={} names one input, but the file holds {count} arrays", path.display());
            };
            *array_name = name.to_owned();
            source.naming = Naming::Given;
        }
        Ok(source)
    }

    fn open_path(path: &Path, options: &DataOptions) -> Result<Self> {
        let metadata = path.metadata().context("cannot open")?;
        let stored = |arrays: Vec<(String, StoredArray)>| {
            let samples = |array: StoredArray| match array.shape.is_empty() {
                true => Samples::Number(array),
                false => Samples::Stored(array),
            };
            arrays.into_iter().map(|(name, array)| (name, samples(array))).collect::<Vec<_>>()
        };
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        // A pipe or a device may have no end.
        ensure!(metadata.is_dir() || metadata.is_file(), "neither a regular file nor a folder");
        let (naming, ordered, arrays) = match extension.as_str() {
            _ if metadata.is_dir() => {
                let images = ImageSet::in_folder(path, &options.images)?;
                (Naming::Implied, true, vec![(IMAGES.to_owned(), Samples::Images(images))])
            }
            "npy" => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (Naming::Implied, true, vec![(stem, Samples::Stored(npy::open(path)?))])
            }
            "npz" => (Naming::Stored, true, stored(npz::open(path, options.unpacked_limit(metadata.len()))?)),
            // The writer of this format sorts arrays by type and name, whatever order it was given.
            "safetensors" => (Naming::Stored, false, stored(safetensors::open(path)?)),
            _ if images::is_image(path) => {
                let images = ImageSet::of_file(path, &options.images)?;
                (Naming::Implied, true, vec![(IMAGES.to_owned(), Samples::Images(images))])
            }
            _ => bail!("{}", unknown_kind(&extension)),
        };
        check_samples(&arrays)?;
        Ok(Self { path: path.to_owned(), naming, arrays, ordered })
    }

    fn note_conversions(&self, notes: &mut Vec<String>) {
        for (name, samples) in &self.arrays {
            if let Samples::Stored(array) = samples
                && let Some(from) = array.stored_type.converted_from()
            {
                let to = array.stored_type.element_type();
                notes.push(format!("{}: array `{name}` is read as {to} ({from} in the file)", self.path.display()));
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.arrays.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn into_inputs(self) -> impl Iterator<Item = Input> {
        let Self { path, ordered, arrays, .. } = self;
        arrays.into_iter().map(move |(name, samples)| Input {
            info: samples.info(name),
            ordered,
            float64_as_float32: false,
            parts: vec![Part { path: path.clone(), samples }],
        })
    }
}

impl Samples {
    fn info(&self, name: String) -> InputInfo {
        let (element_type, sample_shape) = match self {
            Self::Stored(array) => (array.stored_type.element_type(), array.shape[1..].to_vec()),
            Self::Images(images) => (ElementType::F32, images.sample_shape()),
            Self::Number(number) => (number.stored_type.element_type(), Vec::new()),
        };
        InputInfo { name, element_type, sample_shape, is_number: matches!(self, Self::Number(_)) }
    }
}

/// `name=path`, unless there is a file whose name has the equals sign.
fn split_name(argument: &Path) -> (Option<&str>, &Path) {
    match argument.to_str().and_then(|text| text.split_once('=')) {
        Some((name, path)) if !name.is_empty() && !name.contains(['/', '\\']) && !argument.exists() => {
            (Some(name), Path::new(path))
        }
        _ => (None, argument),
    }
}

fn unknown_kind(extension: &str) -> String {
    let found = match extension {
        "" => "a file without extension is not read as data".to_owned(),
        "pt" | "pth" | "pkl" | "pickle" => format!(
            "a .{extension} file is a Python pickle and not read as data; in Python, \
             numpy.savez('data.npz', x=tensor.numpy()) writes one that is"
        ),
        _ => format!("a .{extension} file is not read as data"),
    };
    format!("{found}. DATA is .npz, .npy, .safetensors, a PNG or JPEG image, or a folder of such images")
}

/// Every array has samples, and as many as the others.
fn check_samples(arrays: &[(String, Samples)]) -> Result<()> {
    for (name, samples) in arrays {
        let Samples::Stored(array) = samples else { continue };
        match array.shape.as_slice() {
            [] => bail!("array `{name}` is a single number; the first dimension of an array counts the samples"),
            [0, ..] => bail!("array `{name}` has no samples: its shape is {:?}", array.shape),
            shape if shape.contains(&0) => bail!("array `{name}` is empty: its shape is {shape:?}"),
            _ => {}
        }
    }
    let count = |(name, samples): &(String, Samples)| match samples {
        Samples::Stored(array) => Some((name.clone(), array.shape[0])),
        Samples::Images(images) => Some((name.clone(), images.len())),
        Samples::Number(_) => None,
    };
    let counts: Vec<_> = arrays.iter().filter_map(count).collect();
    if counts.iter().any(|(_, count)| *count != counts[0].1) {
        let counts: Vec<String> = counts.iter().map(|(name, count)| format!("`{name}` has {count}")).collect();
        bail!("the first dimension counts the samples and must be the same everywhere, but {}", counts.join(", "));
    }
    Ok(())
}

/// The samples of each source follow those of the source before; all have the same inputs.
fn one_after_another(sources: Vec<Source>) -> Result<Vec<Input>> {
    let mut sources = sources.into_iter();
    let first = sources.next().context("no data given")?;
    let implied = first.naming == Naming::Implied;
    let mut inputs: Vec<Input> = first.into_inputs().collect();
    for source in sources {
        if inputs.len() == 1 && source.arrays.len() == 1 && (implied || source.naming == Naming::Implied) {
            for next in source.into_inputs() {
                extend(&mut inputs[0], next)?;
            }
            continue;
        }
        let expected: Vec<&str> = inputs.iter().map(|input| input.info.name.as_str()).collect();
        let found = source.names();
        if found.len() != expected.len() || found.iter().any(|name| !expected.contains(name)) {
            bail!(
                "the samples of several DATA follow one another, so each must hold the same inputs, but {} has {} and {} \
                 has {}; where each file is one input, say which: name=path",
                inputs[0].parts[0].path().display(),
                quoted(&expected),
                source.path.display(),
                quoted(&found)
            );
        }
        for next in source.into_inputs() {
            if let Some(input) = inputs.iter_mut().find(|input| input.info.name == next.info.name) {
                extend(input, next)?;
            }
        }
    }
    Ok(inputs)
}

/// Arrays of the same name follow one another.
fn by_name(sources: Vec<Source>) -> Result<Vec<Input>> {
    let mut inputs: Vec<Input> = Vec::new();
    for next in sources.into_iter().flat_map(Source::into_inputs) {
        match inputs.iter_mut().find(|input| input.info.name == next.info.name) {
            Some(input) => extend(input, next)?,
            None => inputs.push(next),
        }
    }
    Ok(inputs)
}

fn extend(input: &mut Input, next: Input) -> Result<()> {
    let (a, b) = (&input.info, &next.info);
    ensure!(
        a.element_type == b.element_type && a.sample_shape == b.sample_shape,
        "samples of different kinds cannot follow one another: {} has {a}, {} has {b}",
        input.parts[0].path().display(),
        next.parts[0].path().display()
    );
    if let (Some(Samples::Number(one)), Some(Samples::Number(other))) =
        (input.parts.first().map(|part| &part.samples), next.parts.first().map(|part| &part.samples))
    {
        ensure!(
            one.read_number()? == other.read_number()?,
            "`{}` is one number for all samples, but {} and {} hold different ones",
            a.name,
            input.parts[0].path().display(),
            next.parts[0].path().display()
        );
    }
    input.parts.extend(next.parts);
    Ok(())
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
