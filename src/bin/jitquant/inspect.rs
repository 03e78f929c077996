//! `jitquant inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use jitquant::Quantizer;
use jitquant::StockEngine;
use jitquant::ir::Module;
use jitquant::pass::{Coverage, Inexact, ProgramParts, QuantType, inexact};
use jitquant::qconfig::plain_class_name;
use serde::Serialize;

use crate::feed::FORWARD;
use crate::output;

/// Show what a model is: inputs, modules, operators, sizes, what can be quantized, and what not and why.
#[derive(clap::Args)]
pub struct Arguments {
    /// The model, a TorchScript file (.pt) or an exported program (.pt2).
    model: PathBuf,
    /// The way of quantization that the verdicts are for.
    #[arg(long, value_enum, default_value_t = Mode::Static)]
    mode: Mode,
    /// List every layer, not only a sum for each kind.
    #[arg(long)]
    layers: bool,
    /// Print the graph of `forward`, submodules inlined.
    #[arg(long)]
    graph: bool,
    /// Print all as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Static,
    Dynamic,
}

#[derive(Serialize)]
struct Inspection {
    model: PathBuf,
    file_bytes: u64,
    class: String,
    arguments: Vec<String>,
    returns: Vec<String>,
    methods: Vec<String>,
    modules: usize,
    parameters: usize,
    parameter_bytes: u64,
    /// How many modules of each class there are.
    classes: BTreeMap<String, usize>,
    /// How many nodes of each operator `forward` runs.
    operators: BTreeMap<String, usize>,
    /// `quantized::` operators that are there already.
    quantized: BTreeMap<String, usize>,
    /// Of a portable INT8 model: what engines of libtorch do not compute exactly of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    inexact: Option<Vec<Inexact>>,
    layers: Vec<LayerRow>,
    /// Of a native model: the parts that run as Programs, operator by operator, and how often each calls it.
    programs: Vec<BTreeMap<String, usize>>,
    /// Of a native model: operators of jitquant's that run by themselves, and why.
    alone: BTreeMap<String, (usize, String)>,
    /// Why the model as a whole cannot be quantized, where it cannot.
    refusal: Option<String>,
}

#[derive(Serialize)]
struct LayerRow {
    path: String,
    operator: String,
    source: String,
    /// `quantized`, or why not.
    verdict: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let module = crate::feed::read(&arguments.model)?;
    let inspection = inspect(arguments, &module)?;
    if arguments.json {
        return output::json(&inspection);
    }
    inspection.print(arguments.layers);
    if arguments.graph {
        println!("\n{}", inlined(&module)?);
    }
    Ok(())
}

/// The graph of `forward` with all calls inlined, as text.
fn inlined(module: &Module) -> Result<String> {
    let mut graph = module.graph(FORWARD)?.deep_clone()?;
    graph.run(jitquant::ir::GeneralPass::Inline)?;
    Ok(graph.to_string())
}

fn inspect(arguments: &Arguments, module: &Module) -> Result<Inspection> {
    let quant_type = match arguments.mode {
        Mode::Static => QuantType::Static,
        Mode::Dynamic => QuantType::Dynamic,
    };
    let schema = module.schema(FORWARD)?;
    let mut classes = BTreeMap::new();
    let (mut parameters, mut parameter_bytes) = (0, 0);
    let modules = module.modules();
    for (_, part) in &modules {
        *classes.entry(plain_class_name(&part.class_name())).or_insert(0) += 1;
        for attribute in part.attributes().iter().filter(|attribute| attribute.is_parameter) {
            if let Some(tensor) = part.attribute(&attribute.name)?.as_tensor().filter(|tensor| tensor.is_defined()) {
                parameters += tensor.shape().iter().product::<i64>() as usize;
                parameter_bytes += tensor.nbytes() as u64;
            }
        }
    }
    let mut graph = module.graph(FORWARD)?.deep_clone()?;
    graph.run(jitquant::ir::GeneralPass::Inline)?;
    let mut operators = BTreeMap::new();
    for node in graph.all_nodes() {
        if !node.kind().starts_with("prim::") || node.kind().starts_with("prim::Call") {
            *operators.entry(node.kind().to_owned()).or_insert(0) += 1;
        }
    }
    drop(graph);
    let quantized = Coverage::of(module, FORWARD)?.quantized;
    let is_int8 = quantized.keys().any(|operator| operator.starts_with("quantized::"));
    let inexact = is_int8.then(|| inexact(module, FORWARD)).transpose()?;
    let (layers, refusal) = match Quantizer::new(quant_type).verdicts(module) {
        Ok(verdicts) => {
            let row = |(layer, verdict): (jitquant::pass::Layer, Option<String>)| LayerRow {
                path: layer.path,
                operator: layer.operator.to_owned(),
                source: layer.source,
                verdict: verdict.unwrap_or_else(|| "quantized".to_owned()),
            };
            (verdicts.into_iter().map(row).collect(), None)
        }
        Err(e) => (Vec::new(), Some(format!("{:#}", anyhow::Error::from(e)))),
    };
    let ProgramParts { parts: programs, alone, .. } = jitquant::pass::program_parts(module, FORWARD)?;
    let describe = |argument: &jitquant::ir::Argument| format!("{}: {}", argument.name, argument.type_name);
    Ok(Inspection {
        model: arguments.model.clone(),
        file_bytes: std::fs::metadata(&arguments.model).context("size of the file")?.len(),
        class: plain_class_name(&module.class_name()),
        arguments: schema.arguments.iter().skip(1).map(describe).collect(),
        returns: schema.returns.iter().map(|value| value.type_name.clone()).collect(),
        methods: module.method_names(),
        modules: modules.len(),
        parameters,
        parameter_bytes,
        classes,
        operators,
        quantized,
        inexact,
        layers,
        programs,
        alone,
        refusal,
    })
}

impl Inspection {
    fn print(&self, every_layer: bool) {
        println!("{}  ({})", self.model.display(), output::bytes(self.file_bytes));
        println!("  class       {}", self.class);
        println!("  forward     ({}) -> {}", self.arguments.join(", "), self.returns.join(", "));
        if self.methods.len() > 1 {
            println!("  methods     {}", self.methods.join(", "));
        }
        println!("  modules     {}", self.modules);
        println!("  parameters  {} ({})", self.parameters, output::bytes(self.parameter_bytes));
        let mut table = output::table(&["operator", "count"]);
        let mut operators: Vec<_> = self.operators.iter().collect();
        operators.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
        for (name, count) in operators {
            table.add_row([name.clone(), count.to_string()]);
        }
        output::align_numbers(&mut table);
        println!("\n{table}\n");
        if !self.programs.is_empty() || !self.alone.is_empty() {
            self.print_programs();
        }
        if let Some(inexact) = &self.inexact {
            print_engines(inexact);
        }
        if let Some(refusal) = &self.refusal {
            println!("It cannot be quantized: {refusal}");
            return;
        }
        let quantized = self.layers.iter().filter(|layer| layer.verdict == "quantized").count();
        println!("{quantized} of {} layers can be quantized.", self.layers.len());
        if every_layer {
            let mut table = output::table(&["layer", "operator", "source", "verdict"]);
            for layer in &self.layers {
                table.add_row([&layer.path, &layer.operator, &layer.source, &layer.verdict]);
            }
            println!("{table}");
            return;
        }
        let mut sums: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for layer in &self.layers {
            *sums.entry((&layer.operator, &layer.verdict)).or_default() += 1;
        }
        let mut table = output::table(&["layers", "count", "verdict"]);
        for ((operator, verdict), count) in sums {
            table.add_row([operator.to_owned(), count.to_string(), verdict.to_owned()]);
        }
        println!("{table}\n(--layers lists each of them)");
    }

    /// The parts of a native model that run as Programs.
    fn print_programs(&self) {
        let mut table = output::table(&["runs as", "operators", "count"]);
        for (number, part) in self.programs.iter().enumerate() {
            let names: Vec<_> = part.iter().map(|(name, count)| format!("{count} {name}")).collect();
            let count: usize = part.values().sum();
            table.add_row([format!("Program {}", number + 1), names.join(", "), count.to_string()]);
        }
        for (name, (count, why)) in &self.alone {
            table.add_row([format!("operator: {why}"), name.clone(), count.to_string()]);
        }
        println!("{table}\n");
    }
}

/// On which engines of libtorch an INT8 model runs exactly, and what is wrong on the others.
fn print_engines(inexact: &[Inexact]) {
    let is_exact = |engine: &StockEngine| inexact.iter().all(|found| found.engine != *engine);
    let exact: Vec<_> = StockEngine::ALL.into_iter().filter(is_exact).map(StockEngine::name).collect();
    let named = if exact.is_empty() { "none".to_owned() } else { exact.join(", ") };
    println!("Engines of libtorch that compute it exactly (on x86: with VNNI): {named}.");
    let mut sums: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for found in inexact {
        *sums.entry((found.engine.name(), &found.operator, &found.what)).or_default() += 1;
    }
    for ((engine, operator, what), count) in sums {
        println!("  {engine}: {count} x {operator}: {what}");
    }
    println!("");
}
