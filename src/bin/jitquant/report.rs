//! `jitquant report`.

mod graph;
mod page;
mod picture;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use jitquant::{Quantizer, WeightOnly};
use serde::Serialize;

use crate::bounds;
use crate::compare::{self, Report};
use crate::data::{DATA_HELP, DataOptions};
use crate::provenance::Provenance;

/// Write one page that shows where an INT8 model loses accuracy, layer by layer.
///
/// The page is a single HTML file that needs no network: figures of the whole model, a picture of all layers, and for
/// each layer the spread of its values in float and in INT8 with the chosen range, and its weight channel by channel.
#[derive(clap::Args)]
#[command(after_long_help = DATA_HELP)]
pub struct Arguments {
    /// The float model.
    float: PathBuf,
    /// The quantized model, in any form.
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
    /// Convert the float model to float32 first, where it is of float64, float16 or bfloat16.
    #[arg(long)]
    to_float: bool,
    /// Samples that are run at once; all layers' outputs of a batch are in memory together.
    #[arg(long, default_value = "16", value_name = "N", value_parser = bounds::batch)]
    batch_size: NonZeroUsize,
    /// Threads that libtorch uses; by default as many as it chooses.
    #[arg(long, value_name = "N", value_parser = bounds::threads)]
    threads: Option<NonZeroUsize>,
    /// Print the same as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data_options: DataOptions,
}

/// What stays in float.
#[derive(Serialize)]
struct LeftInFloat {
    path: String,
    operator: String,
    /// Why; `None` where neither the file tells nor the model.
    reason: Option<String>,
}

/// All that the page shows.
#[derive(Serialize)]
struct Findings {
    /// The command that wrote the report.
    command: String,
    /// How the INT8 model was made, where its file says it.
    made_by: Option<Provenance>,
    /// How its activations are quantized: `static`, `dynamic` or `weight-only`.
    mode: String,
    float_model: PathBuf,
    int8_model: PathBuf,
    #[serde(flatten)]
    figures: Report,
    left_in_float: Vec<LeftInFloat>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(output) = &arguments.output {
        let mut reads =
            vec![("the float model", arguments.float.as_path()), ("the INT8 model", arguments.int8.as_path())];
        reads.extend(arguments.data.iter().map(|path| ("data", path.as_path())));
        crate::claim::check_output(output, &reads, None)?;
    }
    if let Some(threads) = arguments.threads {
        jitquant::set_threads(threads.get());
    }
    let figures = compare::measure(&compare::Arguments {
        float: arguments.float.clone(),
        int8: arguments.int8.clone(),
        data: arguments.data.clone(),
        labels: arguments.labels.clone(),
        to_float: arguments.to_float,
        batch_size: arguments.batch_size,
        threads: arguments.threads,
        layers: true,
        worst: None,
        json: arguments.json,
        time_layers: true,
        data_options: arguments.data_options.clone(),
    })?;
    let made_by = Provenance::read(&arguments.int8)?;
    let mode = made_by.as_ref().map_or_else(|| mode_of(&figures).to_owned(), |made_by| made_by.mode.clone());
    let left_in_float = left_in_float(arguments, &figures, made_by.as_ref(), &mode)?;
    let findings = Findings {
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "),
        made_by,
        mode,
        float_model: arguments.float.clone(),
        int8_model: arguments.int8.clone(),
        figures,
        left_in_float,
    };
    if let Some(path) = &arguments.output {
        let page = page::page(&findings)?;
        jitquant::write_atomically(path, |part| jitquant::write_bytes(part, path, page.as_bytes()))?;
    }
    if arguments.json {
        return crate::output::json(&findings);
    }
    if let Some(path) = &arguments.output {
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// How a model was quantized, told by the operators that it calls.
fn mode_of(figures: &Report) -> &'static str {
    let layers = figures.layers.iter().flat_map(|layers| &layers.layers).filter(|layer| layer.quantized);
    let (mut dynamic, mut weight_only) = (false, false);
    for layer in layers {
        let operator = &layer.int8_operator;
        if layer.range.is_some() || operator.contains("input_q_dq") || operator.ends_with("_float") {
            return "static";
        }
        dynamic |= operator.contains("dynamic");
        weight_only |= operator.contains("weight)") || operator.contains("weight_only");
    }
    match (dynamic, weight_only) {
        (false, true) => "weight-only",
        (true, _) => "dynamic",
        _ => "static",
    }
}

fn left_in_float(
    arguments: &Arguments,
    figures: &Report,
    made_by: Option<&Provenance>,
    mode: &str,
) -> Result<Vec<LeftInFloat>> {
    let Some(layers) = &figures.layers else { return Ok(Vec::new()) };
    // What the file says was true when it was made. Without it, what this version would do in that mode.
    let mut known: Vec<(String, String, String)> = match made_by {
        Some(made_by) => {
            let left = made_by.left_in_float.iter();
            left.map(|left| (left.path.clone(), left.operator.clone(), left.reason.clone())).collect()
        }
        None => {
            let quantizer = match mode {
                "dynamic" => Quantizer::dynamic(),
                "weight-only" => Quantizer::weight_only(WeightOnly::Bits8),
                _ => Quantizer::static_ptq(),
            };
            let float = crate::feed::load(&arguments.float)?;
            if arguments.to_float {
                float.to_float()?;
            }
            let verdicts = quantizer.verdicts(&float)?.into_iter();
            verdicts.filter_map(|(layer, why)| Some((layer.path, layer.operator.to_owned(), why?))).collect()
        }
    };
    // Each is used once: a module may have several layers of a kind.
    let mut reason = |path: &str, operator: &str| {
        let found = known.iter().position(|(known, kind, _)| known == path && kind == operator)?;
        Some(known.remove(found).2)
    };
    let mut left: Vec<LeftInFloat> = Vec::new();
    for layer in layers.layers.iter().filter(|layer| !layer.quantized) {
        let reason = reason(&layer.path, &layer.operator);
        left.push(LeftInFloat { path: layer.name(), operator: layer.operator.clone(), reason });
    }
    let why_norm = |operator: &str| match mode {
        "weight-only" => "only weights are quantized",
        "dynamic" => "norms have no dynamic INT8 form",
        _ if operator == "layer_norm" => {
            "its channels differ too much for one scale a tensor, and the layers behind it quantize their input themselves"
        }
        _ => "what surrounds it is in float",
    };
    for norm in &layers.float_norms {
        // What the file says comes first, here too (a batch norm that was not folded, say).
        let reason = reason(&norm.path, &norm.operator).unwrap_or_else(|| why_norm(&norm.operator).to_owned());
        let path = if norm.path.is_empty() { norm.source.clone() } else { norm.path.clone() };
        left.push(LeftInFloat { path, operator: norm.operator.clone(), reason: Some(reason) });
    }
    // Layers that were not compared (in branches, say) are left as well.
    left.extend(known.into_iter().map(|(path, operator, reason)| LeftInFloat { path, operator, reason: Some(reason) }));
    Ok(left)
}
