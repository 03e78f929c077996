//! `jitquant quantize`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use jitquant::distributed::Group;
use jitquant::ir::Module;
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::pass::QuantType;
use jitquant::qconfig::QConfigSpec;
use jitquant::{Check, Converted, ModelForm, Prepared, Quantizer, Report, Rounding, StockEngine, WeightOnly};
use serde::Serialize;

use crate::bounds;
use crate::claim::{self, Claim};
use crate::control::{self, ControlOptions, Samples};
use crate::control_report::ControlReport;
use crate::data::{DATA_HELP, DataOptions};
use crate::feed::Feed;
use crate::output;
use crate::provenance::Provenance;

// Headings of `--help`; what most need stands first, under none.
const LAYERS: &str = "How layers are quantized";
const WEIGHT_ONLY: &str = "Weight-only quantization";
const FINE_TUNING: &str = "Fine-tuning";
const FILES: &str = "Models and files";

/// Make an INT8 model that any libtorch runs.
///
/// Static quantization (the default) runs the model on sample data to find the range of every tensor, then rounds
/// weights and activations to eight bits. Dynamic quantization needs no data: it rounds the weights of linear and
/// recurrent layers (LSTM, GRU) and takes each activation's range as it comes. Weight-only quantization needs no data
/// either: activations stay in float, weights of linear layers, convolutions and embeddings are kept in 8 or 4 bits.
#[derive(clap::Args)]
#[command(
    after_long_help = DATA_HELP,
    after_help = "\
Examples:
  jitquant quantize resnet.pt -o resnet.int8.pt --calibrate photos/ --resize 256 --crop 224 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  jitquant quantize bert.pt -o bert.int8.pt --mode dynamic
  jitquant quantize big.pt -o big.4bit.pt --mode weight-only --weight-bits 4
  jitquant quantize net.pt -o net.int8.pt --calibrate data.npz --skip head --observer min-max
  jitquant quantize net.pt -o net.int8.pt --calibrate data.npz --evaluate more.npz --min-agreement 99%

--config takes a TOML file with observers by submodule and class; see docs/configuration.md."
)]
pub struct Arguments {
    /// The float model, a TorchScript file (.pt) or an exported program (.pt2).
    model: PathBuf,
    /// Where to write the INT8 model.
    #[arg(short, long, value_name = "OUT.pt")]
    output: PathBuf,
    /// Samples to calibrate with, some hundred that are like those of later use; may be given several times. Dynamic
    /// quantization can do without, and is more accurate with them where layers stand behind a layer norm.
    #[arg(long, value_name = "DATA", num_args = 1..)]
    calibrate: Vec<PathBuf>,
    /// When activations' ranges are found.
    #[arg(long, value_enum, default_value_t = Mode::Static)]
    mode: Mode,
    /// Which operators the INT8 model calls.
    #[arg(long, value_enum, default_value_t = Form::Portable)]
    form: Form,
    /// Leave the submodule at this path, and all below it, in float; may be given several times.
    #[arg(long, value_name = "PATH")]
    skip: Vec<String>,
    /// Samples that are run at once in calibration. A model that joins them (whose outputs have no dimension of samples) is
    /// calibrated with some single ones, too.
    #[arg(long, default_value = "32", value_name = "N", value_parser = bounds::batch)]
    batch_size: NonZeroUsize,
    /// Use at most so many samples for calibration.
    #[arg(long, value_name = "N", value_parser = bounds::many)]
    samples: Option<NonZeroUsize>,
    /// Do not run the INT8 model beside the float one before it is written. By default both run on up to 32 of the samples:
    /// layers that break the model stay in float, and where that does not help nothing is written.
    #[arg(long)]
    no_check: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
    /// Which engine of stock libtorch the INT8 model is for. By default it runs on all of them, on x86 and on ARM, with the same
    /// numbers.
    #[arg(long, help_heading = LAYERS, value_enum, default_value_t = Engine::Any)]
    engine: Engine,
    /// The observer of activations, where --config says nothing else.
    #[arg(long, help_heading = LAYERS, value_enum)]
    observer: Option<Observer>,
    /// Which observer for which part of the model, a TOML file.
    #[arg(long, help_heading = LAYERS, value_name = "q.toml")]
    config: Option<PathBuf>,
    /// How weights are rounded. Learned rounding, the default in static quantization, runs the
    /// model layer by layer on up to 128 samples of the calibration data, on all of them where it is asked for: some
    /// seconds to minutes. `sums` takes no time.
    #[arg(long, help_heading = LAYERS, value_enum)]
    rounding: Option<WeightRounding>,
    /// Correct biases for the mean error of each layer on the calibration data: a little more accurate, some seconds.
    #[arg(long, help_heading = LAYERS)]
    bias_correction: bool,
    /// Even out the channels between layers (convolutions), where their ranges differ much: for networks that lose much
    /// though weights have a scale for each channel.
    #[arg(long, help_heading = LAYERS)]
    equalize: bool,
    /// Linear layers behind a layer norm: how much of the outliers goes from activations into weights, 0 (off) to 1.
    #[arg(long, help_heading = LAYERS, value_name = "0..1", value_parser = bounds::part)]
    smooth: Option<f32>,
    /// Give linear layers between float operators one range a tensor, not one for each row: 3 % faster in stock
    /// libtorch, less accurate where few tokens have outliers.
    #[arg(long, help_heading = LAYERS)]
    per_tensor: bool,
    /// Quantize attention too: the products of two activations (matmul, bmm, scaled_dot_product_attention). Faster with
    /// --form native; libtorch's own operator computes in float.
    #[arg(long, help_heading = LAYERS)]
    attention: bool,
    /// Round the last linear layers' results to 8 bits too, and smooth none in static quantization, as libtorch's own passes
    /// do. Costs accuracy.
    #[arg(long, help_heading = LAYERS)]
    int8_results: bool,
    /// Use 7 bits of activations, for stock libtorch on CPUs without VNNI, whose 16-bit sums saturate.
    #[arg(long, help_heading = LAYERS)]
    reduce_range: bool,
    /// Leave this layer in float, by its number, as --min-agreement and the like report it; may be given several times.
    #[arg(long, help_heading = LAYERS, value_name = "N")]
    skip_layer: Vec<usize>,
    /// With --mode weight-only: bits of the weights. 4 is for linear layers; what else has weights keeps 8.
    #[arg(long, help_heading = WEIGHT_ONLY, default_value = "8", value_name = "8|4")]
    weight_bits: usize,
    /// With --weight-bits 4: how many inputs share a scale and an offset. Fewer are more accurate and larger.
    #[arg(long, help_heading = WEIGHT_ONLY, default_value = "64", value_name = "32|64|128")]
    group: usize,
    #[command(flatten)]
    control: ControlOptions,
    /// Train the model for at most so many steps to give the float model's outputs while it rounds, on the samples of
    /// --calibrate. A killed run goes on from OUT.checkpoint.
    #[arg(long, help_heading = FINE_TUNING, value_name = "STEPS", value_parser = bounds::batch)]
    finetune: Option<NonZeroUsize>,
    /// The array in DATA that holds class labels: --finetune trains to give these instead.
    #[arg(long, help_heading = FINE_TUNING, value_name = "NAME", requires = "finetune", conflicts_with = "labels")]
    finetune_labels: Option<String>,
    /// Train on random parts of images, mirrored or not: what a few samples lack in number. Without labels only; it takes
    /// more steps.
    #[arg(long, help_heading = FINE_TUNING, requires = "finetune", conflicts_with = "finetune_labels")]
    finetune_views: bool,
    /// What --finetune trains to give as before beside the outputs: the sums of two tensors (what the blocks of a residual
    /// network give), or the results of the submodules at these paths.
    #[arg(long, help_heading = FINE_TUNING, requires = "finetune", conflicts_with = "finetune_labels", value_name = "sums|PATH,…")]
    finetune_targets: Option<String>,
    /// Samples of a step of --finetune.
    #[arg(long, help_heading = FINE_TUNING, alias = "finetune-batch", default_value = "8", value_name = "N", value_parser = bounds::batch)]
    finetune_batch_size: NonZeroUsize,
    /// Replace a file that the command reads, where OUT.pt is one: refused otherwise.
    #[arg(long, help_heading = FILES)]
    overwrite_input: bool,
    /// Convert a model of float64, float16 or bfloat16 to float32 first, which quantization starts from.
    #[arg(long, help_heading = FILES)]
    to_float: bool,
    /// Keep this method or attribute beside `forward`; may be given several times.
    #[arg(long, help_heading = FILES, value_name = "NAME")]
    preserve: Vec<String>,
    /// An array in DATA that is not an input of the model: the class labels that --max-drop measures by, or one to leave out.
    #[arg(long, help_heading = FILES, value_name = "NAME")]
    labels: Option<String>,
    /// Do not write into the model's file how it was made (this command, what stays in float and why), which `report` shows.
    #[arg(long, help_heading = FILES)]
    no_record: bool,
    #[command(flatten)]
    data_options: DataOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Ranges are found now, with --calibrate.
    Static,
    /// Ranges are found when the model runs.
    Dynamic,
    /// Activations stay in float.
    WeightOnly,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
            Self::WeightOnly => "weight-only",
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// libtorch's own: the model runs in any libtorch.
    Portable,
    /// jitquant's: faster, and libjitquant.so has to be loaded where the model runs.
    Native,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    /// All of them.
    Any,
    /// libtorch's default on x86.
    X86,
    /// FBGEMM alone.
    Fbgemm,
    /// oneDNN.
    Onednn,
    /// libtorch's engine on ARM.
    Qnnpack,
}

impl Engine {
    fn stock(self) -> StockEngine {
        match self {
            Self::Any => StockEngine::Any,
            Self::X86 => StockEngine::X86,
            Self::Fbgemm => StockEngine::Fbgemm,
            Self::Onednn => StockEngine::Onednn,
            Self::Qnnpack => StockEngine::Qnnpack,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Observer {
    /// min-max, histogram or squared-error, whichever loses least at the model's outputs on the calibration data (the
    /// default).
    Auto,
    /// A histogram: the range with the least quantization error.
    Histogram,
    /// Smallest and largest value.
    MinMax,
    /// Moving averages of each batch's smallest and largest value.
    MovingAverageMinMax,
    /// A histogram: the range with 99.99 % of the values.
    Percentile,
    /// A histogram: the range with the least mean squared error, by a full search.
    SquaredError,
    /// A histogram: the range whose quantized distribution is most like that of the values.
    Entropy,
}

impl Observer {
    fn kind(self) -> ObserverKind {
        match self {
            Self::Auto => ObserverKind::Auto,
            Self::Histogram => ObserverKind::Histogram,
            Self::MinMax => ObserverKind::MinMax,
            Self::MovingAverageMinMax => ObserverKind::MovingAverageMinMax,
            Self::Percentile => ObserverKind::Percentile,
            Self::SquaredError => ObserverKind::SquaredError,
            Self::Entropy => ObserverKind::Entropy,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum WeightRounding {
    /// Learned where it goes, else sums (the default).
    Auto,
    /// Each to the nearest.
    Nearest,
    /// So that the errors of a channel cancel.
    Sums,
    /// So that each layer's results change least.
    Learned,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome {
    model: PathBuf,
    output: PathBuf,
    bytes_before: u64,
    bytes_after: u64,
    calibration_samples: usize,
    seconds: f64,
    #[serde(flatten)]
    report: Report,
    #[serde(flatten)]
    control: ControlReport,
    #[serde(skip)]
    no_check: bool,
    #[serde(skip)]
    native: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let group = Group::from_environment()?;
    let outcome = quantize(arguments, group.as_ref());
    if let (Some(group), Err(e)) = (&group, &outcome) {
        group.abandon(&format!("{e:#}"));
    }
    outcome
}

fn quantize(arguments: &Arguments, group: Option<&Group>) -> Result<()> {
    let start = Instant::now();
    let _claim = arguments.claim_output(group)?;
    let module = arguments.read()?;
    let mut extra = Module::extra_files(&arguments.model)?;
    let quantizer = arguments.quantizer()?;
    let needs_data = matches!(arguments.mode, Mode::Static);
    ensure!(
        !needs_data || !arguments.calibrate.is_empty() || arguments.control.has_ranges(),
        "static quantization needs samples: --calibrate DATA (or --mode dynamic, which needs none)"
    );
    let Some((Converted { module: converted, report }, samples, control)) =
        arguments.convert(&module, &quantizer, group)?
    else {
        return Ok(());
    };
    if !arguments.no_record {
        Provenance::of_this_command(arguments.mode.name(), &report).put_into(&mut extra)?;
    }
    converted.save_checked(&arguments.output, &extra)?;
    if arguments.finetune.is_some() {
        std::fs::remove_file(arguments.checkpoint()).ok();
    }
    let size = |path: &PathBuf| std::fs::metadata(path).map(|m| m.len()).with_context(|| path.display().to_string());
    let outcome = Outcome {
        model: arguments.model.clone(),
        output: arguments.output.clone(),
        bytes_before: size(&arguments.model)?,
        bytes_after: size(&arguments.output)?,
        calibration_samples: samples,
        seconds: start.elapsed().as_secs_f64(),
        report,
        control,
        no_check: arguments.no_check,
        native: matches!(arguments.form, Form::Native),
    };
    if arguments.json {
        return output::json(&outcome);
    }
    outcome.print();
    Ok(())
}

impl Arguments {
    fn quantizer(&self) -> Result<Quantizer> {
        let quant_type = match self.mode {
            Mode::Static | Mode::WeightOnly => QuantType::Static,
            Mode::Dynamic => QuantType::Dynamic,
        };
        let mut spec = match &self.config {
            Some(path) => QConfigSpec::load(path)?,
            None => QConfigSpec::default(),
        };
        let methods = &mut spec.methods;
        if let Some(rounding) = self.rounding {
            methods.rounding = match rounding {
                WeightRounding::Auto => Rounding::Auto,
                WeightRounding::Nearest => Rounding::Nearest,
                WeightRounding::Sums => Rounding::Sums,
                WeightRounding::Learned => Rounding::Learned,
            };
        }
        methods.bias_correction |= self.bias_correction;
        methods.equalize |= self.equalize;
        methods.smooth = self.smooth.unwrap_or(methods.smooth);
        methods.per_row &= !self.per_tensor;
        methods.float_results &= !self.int8_results;
        methods.attention |= self.attention;
        let is_dynamic = quant_type == QuantType::Dynamic;
        if matches!(self.mode, Mode::WeightOnly) {
            ensure!(self.calibrate.is_empty(), "weight-only quantization uses no data: leave --calibrate out");
            ensure!(self.observer.is_none(), "weight-only quantization observes nothing: leave --observer out");
        }
        if is_dynamic && self.observer.is_some() {
            bail!("--observer is for static quantization: dynamic ranges are found at run time");
        }
        if !is_dynamic && (self.observer.is_some() || self.reduce_range) {
            let kind = self.observer.map_or(ObserverKind::Auto, Observer::kind);
            let chosen = ObserverConfig { reduce_range: self.reduce_range, ..ObserverConfig::new(kind) };
            spec.default.activation.get_or_insert(chosen);
        }
        let form = match self.form {
            Form::Portable => ModelForm::Portable,
            Form::Native => ModelForm::Native,
        };
        let quantizer = match self.mode {
            Mode::WeightOnly => Quantizer::weight_only(WeightOnly::new(self.weight_bits, self.group)?),
            _ => Quantizer::new(quant_type),
        };
        let quantizer = quantizer
            .qconfig(spec)
            .form(form)
            .engine(self.engine.stock())
            .reduce_range(is_dynamic && self.reduce_range);
        let quantizer = if self.no_check { quantizer.check(false) } else { quantizer };
        let quantizer = self.skip.iter().fold(quantizer, |quantizer, path| quantizer.skip(path));
        let by_user = "left in float by the configuration";
        let quantizer =
            self.skip_layer.iter().fold(quantizer, |quantizer, number| quantizer.skip_layer(*number, by_user));
        Ok(self.preserve.iter().fold(quantizer, |quantizer, name| quantizer.preserve(name)))
    }

    /// Looks at what will be written before work begins, and holds it against other runs.
    fn claim_output(&self, group: Option<&Group>) -> Result<Option<Claim>> {
        if group.is_some_and(|group| group.rank() > 0) {
            return Ok(None);
        }
        let mut reads = vec![("the float model", self.model.as_path())];
        reads.extend(self.calibrate.iter().map(|path| ("data of --calibrate", path.as_path())));
        reads.extend(self.config.iter().map(|path| ("the file of --config", path.as_path())));
        reads.extend(self.control.files());
        claim::check_output(&self.output, &reads, Some(self.overwrite_input))?;
        Claim::take(&self.output).map(Some)
    }

    /// Reads the float model, and says what will be left of it.
    fn read(&self) -> Result<Module> {
        let module = crate::feed::read(&self.model)?;
        if self.to_float {
            crate::feed::convert_to_float(&module)?;
        }
        for note in crate::dropped::notes(&module, &self.preserve)? {
            eprintln!("note: {note}");
        }
        Ok(module)
    }

    fn checkpoint(&self) -> PathBuf {
        self.output.with_extension("checkpoint")
    }

    /// The INT8 model, how many samples went into it, and what was done to control it; `None` where another process makes it.
    fn convert(
        &self,
        module: &Module,
        quantizer: &Quantizer,
        group: Option<&Group>,
    ) -> Result<Option<(Converted, usize, ControlReport)>> {
        let refused = || format!("{} cannot be quantized", self.model.display());
        if let Some(steps) = self.finetune {
            ensure!(matches!(self.mode, Mode::Static), "--finetune is for static quantization");
            let made = self.finetune(module, quantizer, steps, group).with_context(refused)?;
            return Ok(made.map(|(converted, samples)| (converted, samples, ControlReport::default())));
        }
        if self.control.is_used() {
            ensure!(
                group.is_none(),
                "--min-agreement, --min-sqnr, --max-drop, --only-faster and --ranges work in one process: unset WORLD_SIZE"
            );
            let samples = Samples {
                calibrate: &self.calibrate,
                options: &self.data_options,
                labels: self.labels.as_deref(),
                batch_size: self.batch_size,
                limit: self.samples,
            };
            let made = control::convert(&self.control, module, quantizer, &samples, &self.output);
            return made.map(Some).with_context(|| self.model.display().to_string());
        }
        let mut prepared = quantizer.prepare(module).with_context(refused)?;
        let samples = if !self.calibrate.is_empty() { self.run_calibration(module, &mut prepared, group)? } else { 0 };
        if group.is_some_and(|group| group.rank() > 0) {
            return Ok(None);
        }
        Ok(Some((prepared.convert().with_context(refused)?, samples, ControlReport::default())))
    }

    #[cfg(feature = "tch")]
    fn finetune(
        &self,
        module: &Module,
        quantizer: &Quantizer,
        steps: NonZeroUsize,
        group: Option<&Group>,
    ) -> Result<Option<(Converted, usize)>> {
        let labels = self.finetune_labels.as_deref().or(self.labels.as_deref());
        let mut feed = Feed::open(module, &self.calibrate, &self.data_options, labels)?;
        if self.finetune_labels.is_none() {
            feed.labels = None;
        }
        let options = crate::finetune::Options {
            steps: steps.get(),
            batch_size: self.finetune_batch_size,
            samples: self.samples,
            plain: !self.finetune_views,
            targets: self.finetune_targets.as_deref().map_or(Ok(Default::default()), str::parse)?,
            checkpoint: self.checkpoint(),
        };
        crate::finetune::run(module, quantizer, &feed, &options, group)
    }

    #[cfg(not(feature = "tch"))]
    fn finetune(
        &self,
        _: &Module,
        _: &Quantizer,
        _: NonZeroUsize,
        _: Option<&Group>,
    ) -> Result<Option<(Converted, usize)>> {
        bail!("--finetune needs a build with the feature `tch`")
    }

    fn run_calibration(&self, module: &Module, prepared: &mut Prepared, group: Option<&Group>) -> Result<usize> {
        let feed = Feed::open(module, &self.calibrate, &self.data_options, self.labels.as_deref())?;
        crate::calibrate::run(&feed, prepared, self.batch_size, self.samples, group)
    }
}

impl Outcome {
    fn print(&self) {
        let report = &self.report;
        let mut table = output::table(&["", ""]);
        table.add_row(["layers in INT8".to_owned(), report.quantized_layers.to_string()]);
        table.add_row(["layers left in float".to_owned(), report.float.len().to_string()]);
        let ratio = self.bytes_after as f64 / self.bytes_before as f64;
        table.add_row([
            "file size".to_owned(),
            format!("{} -> {} ({ratio:.2}x)", output::bytes(self.bytes_before), output::bytes(self.bytes_after)),
        ]);
        if self.calibration_samples > 0 {
            table.add_row(["calibrated with".to_owned(), format!("{} samples", self.calibration_samples)]);
        }
        if let Some(range) = report.chosen_range {
            table.add_row(["ranges".to_owned(), format!("{} (lost least at the outputs)", range.name())]);
        }
        table.add_row(["time".to_owned(), output::seconds(self.seconds)]);
        for (name, value) in check_rows(report.check.as_ref(), self.no_check || self.control.is_measured()) {
            table.add_row([name.to_owned(), value]);
        }
        println!("{table}");
        self.control.print();
        if let Some(check) = &report.check {
            print_slower(check, self.native);
            check.notes.iter().for_each(|note| println!("note: not compared: {note}"));
        }
        if !report.float.is_empty() {
            println!("{}", float_table(report));
        }
        println!("wrote {}", self.output.display());
    }
}

/// What the check found, as rows of the table.
fn check_rows(check: Option<&Check>, is_known: bool) -> Vec<(&'static str, String)> {
    let Some(check) = check else {
        let nothing = "nothing was checked: there are no samples (--calibrate DATA)".to_owned();
        return if is_known { Vec::new() } else { vec![("check", nothing)] };
    };
    let mut rows = Vec::new();
    if let Some(sqnr) = check.sqnr_db {
        rows.push(("SQNR of the outputs", format!("{sqnr:.1} dB on {} samples", check.samples)));
    } else {
        let words = match check.samples {
            0 => "it runs; its outputs were not compared".to_owned(),
            samples => format!("it runs on {samples} samples; no output is a floating-point tensor"),
        };
        rows.push(("check", words));
    }
    if let Some(agreement) = check.agreement {
        rows.push(("top-1 agreement", output::percent(agreement)));
    }
    if let Some(speed_up) = check.speed_up {
        let words = if speed_up < 1.0 { "slower than float here" } else { "as fast as float here" };
        rows.push(("speed, one sample", format!("{speed_up:.2} times, {words}").replace("times, as", "times as")));
    }
    rows
}

/// Where the INT8 model is slower than the float one: the layers that make it so, and what to do.
fn print_slower(check: &Check, native: bool) {
    if check.speed_up.is_none_or(|speed_up| speed_up >= 1.0) {
        return;
    }
    if !check.slower.is_empty() {
        let mut table = output::table(&["slower in INT8", "", "float", "INT8"]);
        for layer in &check.slower {
            let (float, int8) = (output::seconds(layer.float_seconds), output::seconds(layer.int8_seconds));
            table.add_row([layer.path.clone(), layer.operator.clone(), float, int8]);
        }
        println!("{table}");
    }
    let form = if native { "" } else { "--form native runs on jitquant's kernels; " };
    println!("note: INT8 is slower than float on this machine. {form}--only-faster leaves such layers in float");
}

/// The layers left in float, those alike in one row.
fn float_table(report: &Report) -> comfy_table::Table {
    let mut groups: Vec<((&str, &str), Vec<String>)> = Vec::new();
    for layer in &report.float {
        let key = (layer.operator.as_str(), layer.reason.as_str());
        let place = if layer.path.is_empty() { layer.source.clone() } else { layer.path.clone() };
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, places)) => places.push(place),
            None => groups.push((key, vec![place])),
        }
    }
    let mut table = output::table(&["left in float", "count", "where", "why"]);
    for ((operator, reason), mut places) in groups {
        let count = places.len();
        places.retain(|place| !place.is_empty());
        places.dedup();
        let shown = places.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        let more = if places.len() > 4 { ", …" } else { "" };
        table.add_row([operator.to_owned(), count.to_string(), format!("{shown}{more}"), reason.to_owned()]);
    }
    table
}
