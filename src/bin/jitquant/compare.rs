//! `jitquant compare`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jitquant::measure::{Comparison, quantile, top_classes};
use serde::Serialize;

use crate::bounds;
use crate::data::{DATA_HELP, DataOptions};
use crate::feed::{self, Feed, load, outputs};
use crate::layers::{self, Layers};
use crate::output;

/// Measure how close an INT8 model is to the float one, and how much smaller and faster.
///
/// Both models run on the same data, batch by batch in turn.
#[derive(clap::Args)]
#[command(after_long_help = DATA_HELP)]
pub struct Arguments {
    /// The float model.
    pub float: PathBuf,
    /// The quantized model.
    pub int8: PathBuf,
    /// The samples to compare on: not those used for calibration.
    #[arg(long, required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// The array in DATA that holds class labels; accuracy is reported with it.
    #[arg(long, value_name = "NAME")]
    pub labels: Option<String>,
    /// Convert the float model to float32 first, where it is of float64, float16 or bfloat16.
    #[arg(long)]
    pub to_float: bool,
    /// Samples that are run at once.
    #[arg(long, default_value = "32", value_name = "N", value_parser = bounds::batch)]
    pub batch_size: NonZeroUsize,
    /// Threads that libtorch uses; by default as many as it chooses.
    #[arg(long, value_name = "N", value_parser = bounds::threads)]
    pub threads: Option<NonZeroUsize>,
    /// Compare each layer's output as well, in the order of execution. Takes memory for all outputs of a batch: lower
    /// --batch-size where that is too much.
    #[arg(long)]
    pub layers: bool,
    /// Only the N layers with the lowest SQNR, the worst first.
    #[arg(long, value_name = "N", requires = "layers")]
    pub worst: Option<NonZeroUsize>,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
    /// Time each layer as well: only the report shows it.
    #[arg(skip)]
    pub time_layers: bool,
    #[command(flatten)]
    pub data_options: DataOptions,
}

/// The figures of one comparison.
#[derive(Serialize)]
pub struct Report {
    samples: usize,
    /// Infinite where nothing differs; JSON has no such number, so `null` there.
    sqnr_db: f64,
    mean_cosine: f64,
    largest_difference: f64,
    top1_agreement: Option<f64>,
    accuracy: Option<Pair<f64>>,
    bytes: Pair<u64>,
    /// Median time of one batch in seconds.
    seconds_per_batch: Pair<f64>,
    batch_size: usize,
    threads: i32,
    #[serde(flatten)]
    pub layers: Option<Layers>,
}

/// The same figure of both models.
#[derive(Serialize, Clone, Copy)]
pub struct Pair<T> {
    float: T,
    int8: T,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(threads) = arguments.threads {
        jitquant::set_threads(threads.get());
    }
    let report = measure(arguments)?;
    if arguments.json {
        return output::json(&report);
    }
    println!("{}", report.text());
    if let Some(layers) = &report.layers {
        layers.print();
    }
    Ok(())
}

/// Runs both models and compares them.
pub fn measure(arguments: &Arguments) -> Result<Report> {
    let float = load(&arguments.float)?;
    if arguments.to_float {
        feed::convert_to_float(&float)?;
    }
    let int8 = load(&arguments.int8)?;
    let feed = Feed::open(&float, &arguments.data, &arguments.data_options, arguments.labels.as_deref())?;
    let mut comparison = Comparison::default();
    let mut times: Pair<Vec<f64>> = Pair { float: Vec::new(), int8: Vec::new() };
    let mut correct: Pair<usize> = Pair { float: 0, int8: 0 };
    let (mut done, mut compared) = (0, 0);
    let bar = output::progress(feed.len(), "comparing");
    for batch in feed.batches(arguments.batch_size) {
        let (samples, inputs) = batch?;
        if done == 0 {
            // The executor optimizes a model's code in its first runs: they are not timed. They run on copies, since a
            // model may keep a state from run to run.
            let copies = (float.copy_instance()?, int8.copy_instance()?);
            for _ in 0..2 {
                feed.run(&copies.0, &inputs)?;
                feed.run(&copies.1, &inputs).context("the second model refuses what the first one takes")?;
            }
        }
        let start = Instant::now();
        let reference = feed.run(&float, &inputs)?;
        let middle = Instant::now();
        let other = feed.run(&int8, &inputs)?;
        let end = Instant::now();
        if samples == arguments.batch_size.get() || done == 0 {
            times.float.push((middle - start).as_secs_f64());
            times.int8.push((end - middle).as_secs_f64());
        }
        let (reference, other) = (outputs(&reference, samples)?, outputs(&other, samples)?);
        let lengths = (reference.values.len(), other.values.len());
        ensure!(
            lengths.0 == lengths.1,
            "the models return {} and {} values: they are not the same model",
            lengths.0,
            lengths.1
        );
        compared += reference.values.len();
        comparison.add(&reference.values, &other.values, reference.rows);
        if let (Some(reference), Some(other)) = (&reference.scores, &other.scores) {
            comparison.add_classes(reference, other, samples);
            if let Some(labels) = &feed.labels {
                let hits = |scores: &[f32]| {
                    let classes = top_classes(scores, samples).into_iter().map(|class| class as i64);
                    classes.zip(&labels[done..]).filter(|(class, label)| class == *label).count()
                };
                correct.float += hits(reference);
                correct.int8 += hits(other);
            }
        }
        done += samples;
        bar.inc(samples as u64);
    }
    bar.finish_and_clear();
    ensure!(compared > 0, "on these samples both models return tensors without a number: there is nothing to compare");
    let accuracy = (feed.labels.is_some() && comparison.top1_agreement().is_some())
        .then(|| Pair { float: correct.float as f64 / done as f64, int8: correct.int8 as f64 / done as f64 });
    let size = |path: &PathBuf| std::fs::metadata(path).map(|m| m.len()).with_context(|| path.display().to_string());
    let compare = || layers::compare(&float, &int8, &feed, arguments.batch_size, arguments.time_layers);
    let layers = arguments.layers.then(compare).transpose()?;
    let layers = layers.map(|mut layers| {
        if let Some(worst) = arguments.worst {
            layers.keep_worst(worst.get());
        }
        layers
    });
    Ok(Report {
        samples: done,
        sqnr_db: comparison.sqnr_db(),
        mean_cosine: comparison.mean_cosine(),
        largest_difference: comparison.largest_difference(),
        top1_agreement: comparison.top1_agreement(),
        accuracy,
        bytes: Pair { float: size(&arguments.float)?, int8: size(&arguments.int8)? },
        seconds_per_batch: Pair { float: quantile(&times.float, 0.5), int8: quantile(&times.int8, 0.5) },
        batch_size: arguments.batch_size.get().min(done),
        threads: jitquant::threads(),
        layers,
    })
}

impl Report {
    /// The figures of the whole model, for people.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.table(), self.summary())
    }

    fn table(&self) -> comfy_table::Table {
        let mut table = output::table(&["", "float", "INT8", "INT8 / float"]);
        if let Some(accuracy) = self.accuracy {
            let points = (accuracy.int8 - accuracy.float) * 100.0;
            table.add_row([
                "accuracy".to_owned(),
                output::percent(accuracy.float),
                output::percent(accuracy.int8),
                format!("{points:+.1} points"),
            ]);
        }
        table.add_row([
            "file size".to_owned(),
            output::bytes(self.bytes.float),
            output::bytes(self.bytes.int8),
            format!("{:.2}", self.bytes.int8 as f64 / self.bytes.float as f64),
        ]);
        let time = self.seconds_per_batch;
        table.add_row([
            format!("time for {} samples", self.batch_size),
            output::seconds(time.float),
            output::seconds(time.int8),
            format!("{:.2}", time.int8 / time.float),
        ]);
        output::align_numbers(&mut table);
        table
    }

    fn summary(&self) -> String {
        let mut lines = Vec::new();
        if let Some(agreement) = self.top1_agreement {
            lines.push(format!("top-1 agreement      {} of {} samples", output::percent(agreement), self.samples));
        }
        lines.push(format!("SQNR of the outputs  {:.1} dB", self.sqnr_db));
        lines.push(format!("mean cosine          {:.5}", self.mean_cosine));
        lines.push(format!("largest difference   {:.4}", self.largest_difference));
        lines.join("\n")
    }
}
