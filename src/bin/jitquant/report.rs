//! `jitquant report`.

mod page;
mod picture;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result};
use jitquant::Quantizer;
use serde::Serialize;

use crate::compare::{self, Report};
use crate::data::{DATA_HELP, ImageOptions};

/// Write one page that shows where an INT8 model loses accuracy, layer by layer.
///
/// The page is a single HTML file that needs no network: figures of the whole model, a picture of all layers, and for
/// each layer the spread of its values in float and in INT8 with the chosen range, and its weight channel by channel.
#[derive(clap::Args)]
#[command(after_long_help = DATA_HELP)]
pub struct Arguments {
    /// The float model.
    float: PathBuf,
    /// The quantized model, in portable form.
    int8: PathBuf,
    /// The samples to compare on: not those used for calibration.
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Where to write the page.
    #[arg(short, long, value_name = "OUT.html", required_unless_present = "json")]
    output: Option<PathBuf>,
    /// The array in DATA that holds class labels; accuracy is reported with it.
    #[arg(long, value_name = "NAME")]
    labels: Option<String>,
    /// Samples that are run at once; all layers' outputs of a batch are in memory together.
    #[arg(long, default_value = "16", value_name = "N")]
    batch_size: NonZeroUsize,
    /// Threads that libtorch uses; by default as many as it chooses.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print the same as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    images: ImageOptions,
}

/// A layer that stays in float.
#[derive(Serialize)]
struct LeftInFloat {
    path: String,
    operator: String,
    /// Why static quantization with default options leaves it; `None` where it would not.
    reason: Option<String>,
}

/// All that the page shows.
#[derive(Serialize)]
struct Findings {
    command: String,
    float_model: PathBuf,
    int8_model: PathBuf,
    #[serde(flatten)]
    figures: Report,
    left_in_float: Vec<LeftInFloat>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(threads) = arguments.threads {
        jitquant::set_threads(threads.get());
    }
    let figures = compare::measure(&compare::Arguments {
        float: arguments.float.clone(),
        int8: arguments.int8.clone(),
        data: arguments.data.clone(),
        labels: arguments.labels.clone(),
        batch_size: arguments.batch_size,
        threads: arguments.threads,
        layers: true,
        worst: None,
        json: arguments.json,
        images: arguments.images.clone(),
    })?;
    let left_in_float = left_in_float(arguments, &figures)?;
    let findings = Findings {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        float_model: arguments.float.clone(),
        int8_model: arguments.int8.clone(),
        figures,
        left_in_float,
    };
    if let Some(path) = &arguments.output {
        write(path, &page::page(&findings)?)?;
    }
    if arguments.json {
        return crate::output::json(&findings);
    }
    if let Some(path) = &arguments.output {
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn left_in_float(arguments: &Arguments, figures: &Report) -> Result<Vec<LeftInFloat>> {
    let verdicts = Quantizer::static_ptq().verdicts(&crate::feed::load(&arguments.float)?)?;
    let reason = |path: &str, operator: &str| {
        let found = verdicts.iter().find(|(layer, _)| layer.path == path && layer.operator == operator);
        found.and_then(|(_, reason)| reason.clone())
    };
    let layers = figures.layers.iter().flat_map(|layers| &layers.layers).filter(|layer| !layer.quantized);
    let left = |layer: &crate::layers::LayerRow| LeftInFloat {
        path: layer.name(),
        operator: layer.operator.clone(),
        reason: reason(&layer.path, &layer.operator),
    };
    Ok(layers.map(left).collect())
}

/// Writes beside the target and renames: a failed run leaves an old page as it was.
fn write(path: &std::path::Path, page: &str) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(std::path::Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).with_context(|| path.display().to_string())?;
    file.write_all(page.as_bytes())?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}
