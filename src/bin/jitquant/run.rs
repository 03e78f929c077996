//! `jitquant run`.

use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jitquant_runtime::{Dim, Model, OwnedValues, Tensor, TensorRef};

use crate::bounds;
use crate::data::{Array, ArrayData, DATA_HELP, DataOptions, Dataset};
use crate::output;

/// Samples that are run at once where the model takes any number.
const BATCH: usize = 32;

/// Run a Program file (.jqp) on samples, and write its results.
///
/// libtorch has no part in it: this is what the crate jitquant-runtime and libjitquant_runtime.so do in an application.
#[derive(clap::Args)]
#[command(
    after_long_help = DATA_HELP,
    after_help = "\
Examples:
  jitquant run model.jqp                                     what it takes and gives
  jitquant run model.jqp --data x.npz -o results.npz         an array for each output, named like it
  jitquant run model.jqp --data photos/ --resize 256 --crop 224 --batch 8 -o results.npz

Program files come from `jitquant export`."
)]
pub struct Arguments {
    /// The Program file.
    model: PathBuf,
    /// The samples to run on; without them the command says what the model takes and gives.
    #[arg(long, value_name = "DATA", num_args = 1.., requires = "output")]
    data: Vec<PathBuf>,
    /// Where to write the results.
    #[arg(short, long, value_name = "OUT.npz", requires = "data")]
    output: Option<PathBuf>,
    /// Samples that are run at once; by default as many as the model takes, or 32.
    #[arg(long, value_name = "N", value_parser = bounds::batch)]
    batch: Option<NonZeroUsize>,
    /// Threads that the model uses.
    #[arg(long, default_value = "1", value_name = "N", value_parser = bounds::threads)]
    threads: NonZeroUsize,
    #[command(flatten)]
    data_options: DataOptions,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let model = Model::open(&arguments.model)?;
    let Some(out) = &arguments.output else {
        println!("{}", arguments.model.display());
        model.inputs().iter().for_each(|input| println!("  takes  {input}"));
        model.outputs().iter().for_each(|output| println!("  gives  {output}"));
        return Ok(());
    };
    jitquant::check_writable(out)?;
    model.set_threads(arguments.threads.get())?;
    let mut dataset = Dataset::open(&arguments.data, &arguments.data_options)?;
    dataset.convert_float64();
    let names: Vec<&str> = model.inputs().iter().map(|input| input.name.as_str()).collect();
    dataset.bind(&names, names.len())?;
    dataset.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let results = results(&model, &dataset, arguments.batch.unwrap_or_else(|| batch_of(&model)))?;
    let names: Vec<&str> = model.outputs().iter().map(|output| output.name.as_str()).collect();
    jitquant::write_atomically(out, |part| {
        write_npz(part, &names, &results).map_err(|cause| jitquant::Error::Io { path: out.clone(), cause })
    })?;
    println!("{}", out.display());
    for (name, result) in names.iter().zip(&results) {
        println!("  {name}  {:?}", result.sizes);
    }
    println!("  ({} samples, {})", dataset.len(), output::bytes(std::fs::metadata(out)?.len()));
    Ok(())
}

/// The samples that the model takes at once.
fn batch_of(model: &Model) -> NonZeroUsize {
    let first = model.inputs().first().and_then(|input| input.sizes.as_ref()?.first().cloned());
    let fixed = match first {
        Some(Dim::Known(size)) => usize::try_from(size).ok(),
        _ => None,
    };
    fixed.and_then(NonZeroUsize::new).or(NonZeroUsize::new(BATCH)).unwrap_or(NonZeroUsize::MIN)
}

/// The results for all samples, one behind the other.
fn results(model: &Model, dataset: &Dataset, batch: NonZeroUsize) -> Result<Vec<Tensor>> {
    let bar = output::progress(dataset.len(), "running");
    let mut all: Vec<Tensor> = Vec::new();
    for arrays in dataset.batches(batch) {
        let arrays = arrays?;
        let samples = arrays.iter().find_map(|array| array.shape.first()).copied().unwrap_or(0);
        let sizes: Vec<Vec<i64>> =
            arrays.iter().map(|array| array.shape.iter().map(|size| *size as i64).collect()).collect();
        let tensors = arrays.iter().zip(&sizes).map(|(array, sizes)| lent(array, sizes)).collect::<Result<Vec<_>>>()?;
        for (index, result) in model.run(&tensors)?.into_iter().enumerate() {
            match all.get_mut(index) {
                None => all.push(result),
                Some(before) => append(before, result)
                    .with_context(|| format!("{}: run with another --batch", model.outputs()[index]))?,
            }
        }
        bar.inc(samples as u64);
    }
    Ok(all)
}

fn lent<'a>(array: &'a Array, sizes: &'a [i64]) -> Result<TensorRef<'a>> {
    match &array.data {
        ArrayData::F32(values) => Ok(TensorRef::floats(values, sizes)),
        ArrayData::U8(values) => Ok(TensorRef::bytes(values, sizes)),
        other => bail!("array `{}` is of {}; float32 and uint8 are taken", array.name, other.element_type()),
    }
}

/// Puts the samples of `more` behind those of `all`.
fn append(all: &mut Tensor, more: Tensor) -> Result<()> {
    let (Some((samples, rest)), Some((added, other))) = (all.sizes.split_first(), more.sizes.split_first()) else {
        bail!("it has no dimension of samples");
    };
    ensure!(rest == other, "sizes {:?} after {:?}", more.sizes, all.sizes);
    let sizes = [&[samples + added], rest].concat();
    match (&mut all.values, more.values) {
        (OwnedValues::F32(all), OwnedValues::F32(more)) => all.extend(more),
        (OwnedValues::U8(all), OwnedValues::U8(more)) => all.extend(more),
        _ => bail!("it is of another type than before"),
    }
    all.sizes = sizes;
    Ok(())
}

/// Writes a NumPy archive with an array for each tensor.
fn write_npz(path: &Path, names: &[&str], tensors: &[Tensor]) -> std::io::Result<()> {
    let mut archive = zip::ZipWriter::new(BufWriter::new(std::fs::File::create(path)?));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, tensor) in names.iter().zip(tensors) {
        archive.start_file(format!("{name}.npy"), options.large_file(true))?;
        write_npy(&mut archive, tensor)?;
    }
    archive.finish()?.flush()
}

/// Writes an array in NumPy's format, version 1: a header whose length is a multiple of 64, and the values.
fn write_npy(to: &mut impl Write, tensor: &Tensor) -> std::io::Result<()> {
    let sizes: String = tensor.sizes.iter().map(|size| format!("{size}, ")).collect();
    let descr = match tensor.values {
        OwnedValues::F32(_) => "<f4",
        OwnedValues::U8(_) => "|u1",
    };
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 11;
    to.write_all(b"\x93NUMPY\x01\x00")?;
    to.write_all(&((padded + 1) as u16).to_le_bytes())?;
    to.write_all(format!("{header:padded$}\n").as_bytes())?;
    match &tensor.values {
        OwnedValues::F32(values) => values.iter().try_for_each(|value| to.write_all(&value.to_le_bytes())),
        OwnedValues::U8(values) => to.write_all(values),
    }
}
