//! `jitquant bench`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jitquant::engine;
use jitquant::ir::{IValue, Module};
use jitquant::measure::quantile;
use jitquant::pass::{stock_operators, to_native};
use serde::Serialize;

use crate::bounds;
use crate::data::{DATA_HELP, DataOptions};
use crate::feed::{Feed, load};
use crate::output;

/// Measure how fast models run: median, 95th percentile, throughput, ratio to the first model.
///
/// The models take turns on the same batch, so that what else the machine does hits all of them alike. A quantized model
/// runs as libtorch runs it, and on jitquant's kernels; --engine chooses.
#[derive(clap::Args)]
#[command(after_long_help = DATA_HELP)]
pub struct Arguments {
    /// The models; the first one is what the others are compared with.
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The samples to run on; the first batch of them is used.
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Samples that are run at once.
    #[arg(long, alias = "batch", default_value = "1", value_name = "N", value_parser = bounds::batch)]
    batch_size: NonZeroUsize,
    /// Threads that libtorch uses; by default as many as it chooses.
    #[arg(long, value_name = "N", value_parser = bounds::threads)]
    threads: Option<NonZeroUsize>,
    /// What runs quantized layers: `stock` (the engine that libtorch chooses), an engine of libtorch's by name (fbgemm, x86,
    /// onednn), `jitquant` (libtorch's operators on jitquant's kernels), or `native` (jitquant's own operators). Several
    /// make a row each.
    #[arg(long = "engine", value_name = "ENGINE", value_delimiter = ',', default_value = "stock,jitquant,native")]
    engines: Vec<String>,
    /// How long to measure, in seconds, all models together.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = bounds::time)]
    seconds: f64,
    /// Print the time of each step of native models as well: its share, and the arithmetic or the memory that it gets through.
    #[arg(long, conflicts_with = "json")]
    steps: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data_options: DataOptions,
}

#[derive(Serialize)]
struct Row {
    model: PathBuf,
    engine: String,
    runs: usize,
    median_seconds: f64,
    p95_seconds: f64,
    samples_per_second: f64,
    /// Median time of the first model over this one's.
    speed_up: f64,
}

/// A model and what runs it.
struct Contestant<'a> {
    path: &'a Path,
    engine: String,
    model: Module,
}

/// Loads each model once for each engine. A model without quantized layers runs on none of them: it has one row.
fn contestants(arguments: &Arguments) -> Result<Vec<Contestant<'_>>> {
    let mut all = Vec::new();
    for path in &arguments.models {
        for (index, engine) in arguments.engines.iter().enumerate() {
            let model = match engine.as_str() {
                "stock" | "jitquant" | "native" => load(path)?,
                name => {
                    let known = engine::stock_engines();
                    if !known.iter().any(|engine| engine == name) {
                        bail!("--engine {name}: jitquant, native, stock, {} are accepted", known.join(", "));
                    }
                    let mut loaded = None;
                    engine::with_stock_engine(name, || {
                        loaded = Some(load(path));
                        Ok(())
                    })?;
                    loaded.context("the model was not loaded")??
                }
            };
            let mut engine = engine.clone();
            let mut model = model;
            let is_quantized = !stock_operators(&model)?.is_empty();
            if engine == "native" && is_quantized {
                model = to_native(&model)?;
                for (operator, count) in stock_operators(&model)? {
                    tracing::warn!("{}: {count} x {operator} has no native form and stays", path.display());
                }
            } else if engine == "native" && index > 0 {
                continue;
            }
            if engine == "jitquant" {
                let done = engine::accelerate(&model)?;
                for left in &done.left {
                    tracing::warn!("{}: left to libtorch: {left}", path.display());
                }
                if done.replaced + done.already == 0 {
                    if index > 0 {
                        continue;
                    }
                    engine = "stock".to_owned();
                }
            }
            all.push(Contestant { path, engine, model });
        }
    }
    Ok(all)
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(threads) = arguments.threads {
        jitquant::set_threads(threads.get());
    }
    let contestants = contestants(arguments)?;
    let feed = Feed::open(&contestants[0].model, &arguments.data, &arguments.data_options, None)?;
    let (samples, inputs): (usize, Vec<IValue>) =
        feed.batches(arguments.batch_size).next().context("there is no sample")??;
    let mut times = vec![Vec::new(); contestants.len()];
    // The executor optimizes a model in its first runs: they are not counted.
    for round in 0..3 {
        for Contestant { model, path, .. } in &contestants {
            feed.run(model, &inputs).with_context(|| format!("{} (warm-up {round})", path.display()))?;
        }
    }
    let limit = Duration::from_secs_f64(arguments.seconds.max(0.0));
    let bar = indicatif::ProgressBar::new(limit.as_millis() as u64)
        .with_style(indicatif::ProgressStyle::with_template("measuring {bar:32} {percent} %")?);
    let start = Instant::now();
    while start.elapsed() < limit || times[0].len() < 5 {
        for (Contestant { model, .. }, times) in contestants.iter().zip(&mut times) {
            let begin = Instant::now();
            model.forward(&inputs)?;
            times.push(begin.elapsed().as_secs_f64());
        }
        bar.set_position((start.elapsed().as_millis() as u64).min(limit.as_millis() as u64));
    }
    bar.finish_and_clear();
    let first = quantile(&times[0], 0.5);
    let rows: Vec<Row> = contestants
        .iter()
        .zip(&times)
        .map(|(Contestant { path, engine, .. }, times)| {
            let median = quantile(times, 0.5);
            Row {
                model: path.to_path_buf(),
                engine: engine.clone(),
                runs: times.len(),
                median_seconds: median,
                p95_seconds: quantile(times, 0.95),
                samples_per_second: samples as f64 / median,
                speed_up: first / median,
            }
        })
        .collect();
    if arguments.json {
        return output::json(&rows);
    }
    let mut table = output::table(&["model", "engine", "runs", "median", "p95", "samples/s", "speed-up"]);
    for row in &rows {
        table.add_row([
            row.model.display().to_string(),
            row.engine.clone(),
            row.runs.to_string(),
            output::seconds(row.median_seconds),
            output::seconds(row.p95_seconds),
            format!("{:.0}", row.samples_per_second),
            format!("{:.2}x", row.speed_up),
        ]);
    }
    output::align_numbers(&mut table);
    println!("{table}\n{samples} samples at once, {} threads", jitquant::threads());
    if arguments.steps {
        for Contestant { path, engine, model } in contestants.iter().filter(|contestant| contestant.engine == "native")
        {
            println!("\n{} ({engine})", path.display());
            print_steps(model, &inputs)?;
        }
    }
    Ok(())
}

/// Runs that the times of steps are taken of.
const STEP_RUNS: usize = 20;

/// Prints the steps of a native model with their times.
fn print_steps(model: &Module, inputs: &[IValue]) -> Result<()> {
    engine::watch_steps(true);
    let begin = Instant::now();
    let ran = (0..STEP_RUNS).try_for_each(|_| model.forward(inputs).map(drop));
    let whole = begin.elapsed().as_secs_f64();
    let steps = engine::step_times();
    engine::watch_steps(false);
    ran?;
    let mut table = output::table(&["step", "what", "time", "share", "GOP/s", "GB/s"]);
    let rate = |count: u64, seconds: f64| match count {
        0 => String::new(),
        count => format!("{:.1}", count as f64 / seconds.max(1e-9) / 1e9),
    };
    for (number, step) in steps.iter().enumerate() {
        let each = step.total.as_secs_f64() / f64::from(step.runs.max(1));
        table.add_row([
            (number + 1).to_string(),
            step.name.to_owned(),
            output::seconds(each),
            format!("{:.1} %", 100.0 * step.total.as_secs_f64() / whole),
            // A multiplication and an addition are two operations.
            rate(2 * step.products, each),
            rate(step.bytes, each),
        ]);
    }
    let within: f64 = steps.iter().map(|step| step.total.as_secs_f64()).sum();
    output::align_numbers(&mut table);
    println!("{table}\n{:.1} % of the time is in no step", 100.0 * (1.0 - within / whole));
    Ok(())
}
