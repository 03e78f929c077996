//! `jitquant export`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use jitquant::ir::Module;
use jitquant::pass::export_program;
use jitquant::{Quantizer, check_writable, write_atomically, write_bytes};
use jitquant_runtime::Model;
use serde::Serialize;

use crate::bounds;
use crate::data::{DATA_HELP, DataOptions};
use crate::feed::{Feed, load};
use crate::output;

/// Samples that are run at once in calibration.
const BATCH: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Write a model as a Program file (.jqp), which runs without libtorch.
///
/// The file holds the INT8 weights and the steps of the model. `jitquant run`, the crate jitquant-runtime and
/// libjitquant_runtime.so run it: some megabytes in place of libtorch, and the same bits. Every operator of the model needs a
/// step; where some have none, the message lists them, and nothing is written.
#[derive(clap::Args)]
#[command(
    after_long_help = DATA_HELP,
    after_help = "\
Examples:
  jitquant quantize model.pt -o int8.pt --form native --calibrate data.npz    quantize, with all options
  jitquant export int8.pt -o model.jqp                                        then export
  jitquant export model.pt2 -o model.jqp --calibrate data.npz                 or both at once, with the defaults
  jitquant run model.jqp --data more.npz -o results.npz                       run it

How to run it from C and Rust: docs/runtime.md."
)]
pub struct Arguments {
    /// The INT8 model, native or portable; with --calibrate the float model (.pt or .pt2).
    model: PathBuf,
    /// Where to write the Program file.
    #[arg(short, long, value_name = "OUT.jqp")]
    output: PathBuf,
    /// Quantize the float model first, with these samples.
    #[arg(long, value_name = "DATA", num_args = 1..)]
    calibrate: Vec<PathBuf>,
    /// Use at most so many samples for calibration.
    #[arg(long, value_name = "N", value_parser = bounds::many, requires = "calibrate")]
    samples: Option<NonZeroUsize>,
    /// The sizes of the first input, of the second, …, for a model that takes none of those that are tried: 1x3x224x224. They
    /// are described in the file; a model may take others.
    #[arg(long, value_name = "NxCxHxW", value_parser = sizes)]
    sizes: Vec<Sizes>,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data_options: DataOptions,
}

/// Sizes of an input.
#[derive(Clone)]
struct Sizes(Vec<i64>);

fn sizes(text: &str) -> Result<Sizes, String> {
    let size = |size: &str| size.parse().ok().filter(|size| *size > 0);
    let all: Option<Vec<i64>> = text.split('x').map(size).collect();
    all.map(Sizes).ok_or_else(|| format!("{text}: positive numbers with an x between them are accepted, 1x3x224x224"))
}

/// What was written.
#[derive(Serialize)]
struct Written {
    output: PathBuf,
    file_bytes: u64,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    check_writable(&arguments.output)?;
    let is_same = |path: &PathBuf| std::fs::canonicalize(path).ok();
    ensure!(
        is_same(&arguments.output).is_none() || is_same(&arguments.output) != is_same(&arguments.model),
        "-o {} is the model itself",
        arguments.output.display()
    );
    let (module, like) = match arguments.calibrate.is_empty() {
        true => (load(&arguments.model)?, None),
        false => calibrated(arguments)?,
    };
    let given: Vec<Vec<i64>> = arguments.sizes.iter().map(|sizes| sizes.0.clone()).collect();
    let like = if given.is_empty() { like } else { Some(given) };
    let bytes = export_program(&module, like.as_deref())?;
    write_atomically(&arguments.output, |part| write_bytes(part, &arguments.output, &bytes))?;
    let model = Model::from_bytes(&bytes)?;
    let written = Written {
        output: arguments.output.clone(),
        file_bytes: bytes.len() as u64,
        inputs: model.inputs().iter().map(ToString::to_string).collect(),
        outputs: model.outputs().iter().map(ToString::to_string).collect(),
    };
    if arguments.json {
        return output::json(&written);
    }
    println!("{}  ({})", written.output.display(), output::bytes(written.file_bytes));
    println!("  takes  {}", written.inputs.join("; "));
    println!("  gives  {}", written.outputs.join("; "));
    Ok(())
}

/// The float model, quantized with its samples, and the sizes of its inputs.
fn calibrated(arguments: &Arguments) -> Result<(Module, Option<Vec<Vec<i64>>>)> {
    let float = load(&arguments.model)?;
    let feed = Feed::open(&float, &arguments.calibrate, &arguments.data_options, None)?;
    let mut prepared = Quantizer::static_ptq().prepare(&float)?;
    crate::calibrate::run(&feed, &mut prepared, BATCH, arguments.samples, None)?;
    let converted = prepared.convert()?;
    let first = feed.batches(NonZeroUsize::MIN).next().transpose()?;
    let like = first.map(|(_, inputs)| {
        inputs.iter().flat_map(|value| value.tensors()).map(|tensor| tensor.shape()).collect::<Vec<_>>()
    });
    Ok((converted.module, like))
}
