//! `jitquant quantize` with a goal: for the accuracy, for the latency, for what calibration costs.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use jitquant::control::{Budget, Data, Goal, Outcome, Progress, Ranges, Runs, only_faster, tune};
use jitquant::ir::{IValue, Module};
use jitquant::pass::QuantType;
use jitquant::{Converted, Prepared, Quantizer};

use crate::bounds;
use crate::control_report::{AccuracyReport, ControlReport};
use crate::data::{DataOptions, ImageOptions};
use crate::feed::Feed;

/// Every so manyth batch is measured on where there is no --evaluate.
const HELD_OUT: usize = 4;

#[derive(clap::Args)]
#[command(next_help_heading = "Accuracy, latency, ranges")]
pub struct ControlOptions {
    /// The least share of samples for which the INT8 model has to put the same class first, e.g. 99%. What is needed for it
    /// is tried on the worst layers, then as few layers as possible stay in float. A killed run goes on from OUT.control.
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "finetune")]
    min_agreement: Option<f64>,
    /// The least signal to quantization noise ratio of the outputs; the same for models that give no class scores.
    #[arg(long, value_name = "DB", value_parser = bounds::decibels, conflicts_with = "finetune")]
    min_sqnr: Option<f64>,
    /// How much of the accuracy on the labels (--labels) may be lost at most, e.g. 0.5%.
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "labels", conflicts_with = "finetune")]
    max_drop: Option<f64>,
    /// The samples to measure accuracy on. By default every fourth batch of --calibrate, which then calibrates no more.
    #[arg(long, value_name = "DATA", num_args = 1..)]
    evaluate: Vec<PathBuf>,
    /// How long to look for a model that reaches the goal.
    #[arg(long, value_name = "N", default_value = "10", value_parser = bounds::time)]
    control_minutes: f64,
    /// Write the best model found where none reaches the goal; otherwise nothing is written then.
    #[arg(long)]
    best_effort: bool,
    /// Leave the layers in float that INT8 would slow down on this machine: each is timed in both, with the shapes that the
    /// calibration data give, and the conversions between the two are counted.
    #[arg(long, conflicts_with = "finetune")]
    only_faster: bool,
    /// What will run a model in portable form: --only-faster measures with it.
    #[arg(long, value_enum, default_value_t = Kernels::Stock)]
    kernels: Kernels,
    /// Samples at once where --only-faster measures.
    #[arg(long, alias = "latency-batch", value_name = "N", default_value = "1", value_parser = bounds::batch)]
    latency_batch_size: NonZeroUsize,
    /// Keep the ranges that calibration finds in this file. A later run with the same model and data reads them there and
    /// runs no data, whatever its form, --skip or way of choosing ranges from histograms; without --calibrate too.
    #[arg(long, value_name = "FILE", conflicts_with = "finetune")]
    ranges: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kernels {
    /// libtorch alone.
    Stock,
    /// libtorch with jitquant's kernels (`accelerate`).
    Jitquant,
}

/// `99%` or `0.99`.
fn share(text: &str) -> Result<f64, String> {
    let number = match text.trim().strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.trim().parse(),
    };
    match number {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is written 99% or 0.99".to_owned()),
    }
}

/// The samples of --calibrate.
pub struct Samples<'a> {
    pub calibrate: &'a [PathBuf],
    pub options: &'a DataOptions,
    /// The array that holds labels.
    pub labels: Option<&'a str>,
    pub batch_size: NonZeroUsize,
    /// At most so many are used.
    pub limit: Option<NonZeroUsize>,
}

impl ControlOptions {
    /// Whether any of this is asked for.
    pub fn is_used(&self) -> bool {
        self.goal().is_some() || self.only_faster || self.ranges.is_some()
    }

    /// Whether calibration data may be missing.
    pub fn has_ranges(&self) -> bool {
        self.ranges.is_some()
    }

    /// The files that are read, or written beside the model, and what they are.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let evaluate = self.evaluate.iter().map(|path| ("data of --evaluate", path.as_path()));
        evaluate.chain(self.ranges.iter().map(|path| ("the file of --ranges", path.as_path())))
    }

    fn goal(&self) -> Option<Goal> {
        let goal = Goal { min_agreement: self.min_agreement, min_sqnr_db: self.min_sqnr, max_drop: self.max_drop };
        (goal != Goal::default()).then_some(goal)
    }
}

/// The INT8 model, how many samples calibrated it, and what was done.
pub fn convert(
    options: &ControlOptions,
    module: &Module,
    quantizer: &Quantizer,
    samples: &Samples<'_>,
    output: &Path,
) -> Result<(Converted, usize, ControlReport)> {
    let data = read(options, module, samples)?;
    let count = data.calibration.iter().map(|batch| samples_of(batch)).sum();
    let source = source(options, samples)?;
    let mut ranges = known_ranges(options, module, &source, !data.calibration.is_empty())?;
    let mut report = ControlReport::default();
    let mut quantizer = quantizer.clone();
    let bar = RefCell::new(bar());
    let mut show = |progress: &Progress<'_>| show(&bar.borrow(), progress);
    if options.only_faster {
        let kernels = match (Runs::of(quantizer.model_form()), options.kernels) {
            ([only], _) => *only,
            (_, Kernels::Stock) => Runs::Stock,
            (_, Kernels::Jitquant) => Runs::Accelerated,
        };
        let how = (options.latency_batch_size.get(), kernels);
        let latency = only_faster(&quantizer, module, &data, ranges.as_ref(), how, &mut show)?;
        quantizer = latency.apply(quantizer);
        ranges = Some(latency.ranges.clone());
        report.latency = Some(latency);
    }
    let converted = match options.goal() {
        Some(goal) => {
            let state = output.with_extension("control");
            let time = Duration::from_secs_f64(options.control_minutes.max(0.0) * 60.0);
            let budget = Budget { time, state: Some(state.clone()), ranges };
            let outcome = tune(&quantizer, module, &data, &goal, &budget, &mut show)?;
            bar.borrow().finish_and_clear();
            keep(options, module, outcome.ranges.clone(), &source)?;
            refuse_missed(options, &outcome, &goal, &state)?;
            let (accuracy, converted) = AccuracyReport::of(goal, outcome);
            report.accuracy = Some(accuracy);
            converted
        }
        None => {
            let mut prepared = quantizer.prepare(module)?;
            let found = calibrate(&mut prepared, &data, ranges, &quantizer, &mut show)?;
            keep(options, module, found, &source)?;
            prepared.convert()?
        }
    };
    bar.borrow().finish_and_clear();
    Ok((converted, count, report))
}

/// Says why nothing is written.
fn refuse_missed(options: &ControlOptions, outcome: &Outcome, goal: &Goal, state: &Path) -> Result<()> {
    if outcome.reached || options.best_effort {
        return Ok(());
    }
    let best = AccuracyReport::words(goal, &outcome.figures);
    let more = match outcome.out_of_time {
        true => format!(
            "--control-minutes {} were too few: with more of them the same command goes on where it was ({})",
            options.control_minutes,
            state.display()
        ),
        false => "no choice of layers that was tried reaches it".to_owned(),
    };
    bail!(
        "the goal is not reached: {best} at best, with {} layers left in float for it; {more}. Nothing was written; \
         --best-effort writes the best model found",
        outcome.float_layers.len()
    )
}

/// All samples that are needed, in memory.
fn read(options: &ControlOptions, module: &Module, samples: &Samples<'_>) -> Result<Data> {
    let has_goal = options.goal().is_some();
    let mut data = Data::default();
    if !options.evaluate.is_empty() {
        ensure!(has_goal, "--evaluate goes with --min-agreement, --min-sqnr or --max-drop");
        let labels = samples.labels.filter(|_| options.max_drop.is_some());
        let feed = Feed::open(module, &options.evaluate, samples.options, labels)?;
        data.evaluation = batches(&feed, samples.batch_size, feed.len())?;
        data.labels = feed.labels;
    }
    if samples.calibrate.is_empty() {
        ensure!(!has_goal || !data.evaluation.is_empty(), "a goal needs samples to measure on: --evaluate DATA");
        return Ok(data);
    }
    let feed = match Feed::open(module, samples.calibrate, samples.options, samples.labels) {
        // The labels may be in the other data.
        Err(_) if !options.evaluate.is_empty() => Feed::open(module, samples.calibrate, samples.options, None)?,
        feed => feed?,
    };
    let limit = samples.limit.map_or(feed.len(), |limit| limit.get().min(feed.len()));
    if !has_goal || !data.evaluation.is_empty() {
        data.calibration = batches(&feed, samples.batch_size, limit)?;
        return Ok(data);
    }
    // Small batches, so that a fourth of them is a fourth of few samples as well.
    let size = NonZeroUsize::new(limit.div_ceil(2 * HELD_OUT)).unwrap_or(NonZeroUsize::MIN).min(samples.batch_size);
    let all = batches(&feed, size, limit)?;
    let labels = feed.labels.as_deref().filter(|_| options.max_drop.is_some());
    Data::held_out(all, labels, HELD_OUT).context("--evaluate DATA takes other samples to measure on")
}

fn batches(feed: &Feed, size: NonZeroUsize, limit: usize) -> Result<Vec<Vec<IValue>>> {
    let mut all = Vec::new();
    let mut done = 0;
    for batch in feed.batches(size) {
        if done >= limit {
            break;
        }
        let (samples, inputs) = batch?;
        all.push(inputs);
        done += samples;
    }
    Ok(all)
}

fn samples_of(batch: &[IValue]) -> usize {
    let mut tensors = batch.iter().flat_map(IValue::tensors);
    tensors.find_map(|tensor| tensor.shape().first().copied()).map_or(1, |size| size as usize)
}

/// What the calibration data is, in words that change where it does: files, their sizes and times, how they are read.
fn source(options: &ControlOptions, samples: &Samples<'_>) -> Result<String> {
    let mut words = Vec::new();
    for path in samples.calibrate {
        let file =
            path.to_str().and_then(|text| text.split_once('=')).map_or(path.as_path(), |(_, file)| Path::new(file));
        let found = std::fs::metadata(file).or_else(|_| std::fs::metadata(path));
        let found = found.with_context(|| path.display().to_string())?;
        let time = found.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let time = time.map_or(0, |time| time.as_secs());
        words.push(format!("{} ({} bytes of {time})", path.display(), found.len()));
    }
    if words.is_empty() {
        return Ok(String::new());
    }
    words.push(format!("{} at once", samples.batch_size));
    words.extend(samples.limit.map(|limit| format!("{limit} samples")));
    if options.goal().is_some() && options.evaluate.is_empty() {
        words.push("a fourth held out".to_owned());
    }
    if samples.options.images != ImageOptions::default() {
        words.push(format!("{:?}", samples.options.images));
    }
    words.extend(samples.options.given.iter().map(|given| format!("{}={}", given.name, given.value)));
    Ok(words.join(", "))
}

/// What --ranges holds, where it is of this model and these data; what it does not hold is said.
fn known_ranges(options: &ControlOptions, module: &Module, source: &str, has_data: bool) -> Result<Option<Ranges>> {
    let Some(path) = &options.ranges else { return Ok(None) };
    let again = |why: String| {
        eprintln!("note: {}: {why}; calibrating again", path.display());
        Ok(None)
    };
    match Ranges::load(path, module)? {
        None if !has_data => bail!(
            "{} has no ranges of this model (its code and weights tell): --calibrate DATA finds them",
            path.display()
        ),
        None if path.exists() => again("it has ranges of other models only".to_owned()),
        None => Ok(None),
        Some(ranges) if !has_data || ranges.source() == source => Ok(Some(ranges)),
        Some(ranges) if ranges.source().is_empty() => {
            eprintln!("note: the ranges in {} were recorded by an application; no data is run", path.display());
            Ok(Some(ranges))
        }
        Some(ranges) => again(format!("its ranges are of other data: {}", ranges.source())),
    }
}

/// Writes the ranges into the file of --ranges.
fn keep(options: &ControlOptions, module: &Module, found: Ranges, source: &str) -> Result<()> {
    let Some(path) = &options.ranges else { return Ok(()) };
    let known = Ranges::load(path, module)?;
    let source = match &known {
        Some(known) if source.is_empty() || known.source().is_empty() => known.source().to_owned(),
        _ => source.to_owned(),
    };
    let mut all = known.filter(|known| known.source() == source).unwrap_or_default();
    let before = all.clone();
    all.extend(found);
    let all = all.with_source(source);
    if all != before {
        all.save(path, module)?;
    }
    Ok(())
}

/// Gives the observers the ranges that are known, or runs the data where some are not; all that is known then.
fn calibrate(
    prepared: &mut Prepared,
    data: &Data,
    known: Option<Ranges>,
    quantizer: &Quantizer,
    show: &mut dyn FnMut(&Progress<'_>),
) -> Result<Ranges> {
    if let Some(known) = known {
        let missing = known.restore(prepared)?;
        if missing.is_empty() {
            prepared.supply(&data.calibration)?;
            ensure!(
                !prepared.requires_inputs() || !data.calibration.is_empty(),
                "learned rounding, bias correction and equalization run the model on the samples again: --calibrate DATA"
            );
            if prepared.fits_weights() && data.calibration.is_empty() {
                eprintln!(
                    "note: without samples weights are rounded by sums; with --calibrate DATA they are fitted to them"
                );
            }
            return Ok(known);
        }
        let tensors = format!("{} tensors ({}, …)", missing.len(), missing[0]);
        let kept = match known.kept() {
            kept if kept.is_empty() => "it has none".to_owned(),
            kept => format!("it was made with observers that keep {kept}"),
        };
        ensure!(
            !data.calibration.is_empty(),
            "the ranges of {tensors} are not in the file of --ranges as these options want them; {kept}: the options that it \
             was made with take them, and --calibrate DATA finds others"
        );
        eprintln!(
            "note: the ranges of {tensors} are not in the file as these options want them ({kept}); calibrating again"
        );
        prepared.forget()?;
    }
    for (done, batch) in data.calibration.iter().enumerate() {
        show(&Progress { stage: "calibrating", done, total: data.calibration.len(), found: None });
        prepared.calibrate(batch)?;
    }
    ensure!(
        !data.calibration.is_empty() || quantizer.quant_type() == QuantType::Dynamic,
        "static quantization needs samples: --calibrate DATA"
    );
    Ok(Ranges::of(prepared)?)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.enable_steady_tick(Duration::from_millis(250));
    match ProgressStyle::with_template("{msg} {bar:24} {pos}/{len}, {elapsed} so far") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, progress: &Progress<'_>) {
    bar.set_length(progress.total.max(1) as u64);
    bar.set_position(progress.done as u64);
    bar.set_message(progress.stage.to_owned());
    if let Some(found) = &progress.found {
        bar.suspend(|| eprintln!("{found}"));
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_are_percentages_or_numbers() {
        assert_eq!(share("99%"), Ok(0.99));
        assert_eq!(share("0.5 %"), Ok(0.005));
        assert_eq!(share("0.94"), Ok(0.94));
        for wrong in ["99", "", "%", "-1%", "101%", "half"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
