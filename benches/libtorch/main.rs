//! jitquant's kernels against libtorch's, on the operators of common models: `make bench`.
//!
//! Every row is one TorchScript operator, run by libtorch's interpreter in one process: packed by each of libtorch's
//! engines and by jitquant, all on the same inputs, in turns. A row's figure is the median time of the best of
//! libtorch's engines over ours, so more than 1 means that jitquant is faster. The machine's peak is that of its dot
//! product instruction, measured in the same run.

mod contest;
mod elements;
mod peak;
mod rows;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use contest::{Outcome, Settings};
use indicatif::{ProgressBar, ProgressStyle};
use jitquant::engine::stock_engines;
use jitquant::kernel::Isa;
use rows::Group;
use serde::Serialize;

/// Measures jitquant's kernels against libtorch's engines.
#[derive(Parser)]
struct Arguments {
    /// Only rows whose group or name contains this text.
    #[arg(value_name = "TEXT")]
    filter: Option<String>,
    /// Threads to measure with, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// How often each contestant has its turn.
    #[arg(long, default_value = "101")]
    turns: usize,
    /// How long a turn lasts, in milliseconds, at least. Short ones are seldom interrupted where other programs run.
    #[arg(long, default_value = "0.3")]
    milliseconds: f64,
    /// Write the figures to a file as JSON as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// cargo says that this is a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is written as JSON.
#[derive(Serialize)]
struct Report {
    libtorch: String,
    isa: &'static str,
    runs: Vec<Run>,
}

/// The rows measured with one number of threads.
#[derive(Serialize)]
struct Run {
    threads: usize,
    /// Of one core, giga-operations a second (a multiplication and an addition are two).
    peak_gops: f64,
    rows: Vec<Outcome>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    jitquant::init()?;
    jitquant::silence_torch_warnings();
    let wanted = |group: &Group, name: &str| {
        arguments.filter.as_ref().is_none_or(|text| group.name.contains(text.as_str()) || name.contains(text.as_str()))
    };
    let groups = rows::groups();
    let total: usize =
        groups.iter().map(|group| group.rows.iter().filter(|row| wanted(group, &row.name)).count()).sum();
    anyhow::ensure!(total > 0, "no row matches; the groups are {}", rows::names(&groups));
    let mut report = Report { libtorch: jitquant::torch_version(), isa: Isa::current().name(), runs: Vec::new() };
    println!("libtorch {} ({}), jitquant on {}", report.libtorch, stock_engines().join(", "), report.isa);
    for &threads in &arguments.threads {
        jitquant::set_threads(threads);
        let settings = Settings { turns: arguments.turns.max(3), turn: arguments.milliseconds / 1e3 };
        let peak = peak::gops();
        println!("\n{threads} thread(s); one core peaks at {peak:.0} GOP/s");
        let bar = ProgressBar::new(total as u64)
            .with_style(ProgressStyle::with_template("{msg:40} {bar:24} {pos}/{len}, {eta} left")?);
        let mut run = Run { threads, peak_gops: peak, rows: Vec::new() };
        for group in &groups {
            let mut outcomes = Vec::new();
            for row in group.rows.iter().filter(|row| wanted(group, &row.name)) {
                bar.set_message(format!("{} {}", group.name, row.name));
                let outcome = contest::hold(group.name, row, &settings)
                    .with_context(|| format!("{} {}", group.name, row.name))?;
                outcomes.push(outcome);
                bar.inc(1);
            }
            if !outcomes.is_empty() {
                bar.suspend(|| print(group, &outcomes, peak * threads as f64));
                run.rows.extend(outcomes);
            }
        }
        bar.finish_and_clear();
        report.runs.push(run);
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn print(group: &Group, outcomes: &[Outcome], peak: f64) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let mut header = vec![group.name.to_owned()];
    header.extend(outcomes[0].stock.keys().map(|name| format!("{name} µs")));
    header.extend(["jitquant µs", "GOP/s", "of peak", "ratio"].map(str::to_owned));
    table.set_header(header);
    for outcome in outcomes {
        let mut cells = vec![outcome.name.clone()];
        cells.extend(outcome.stock.values().map(|seconds| format!("{:.1}", seconds * 1e6)));
        let gops = outcome.operations / outcome.jitquant / 1e9;
        cells.extend([
            format!("{:.1}", outcome.jitquant * 1e6),
            if outcome.operations > 0.0 { format!("{gops:.0}") } else { String::new() },
            if outcome.operations > 0.0 { format!("{:.0} %", 100.0 * gops / peak) } else { String::new() },
            format!("{:.2}", outcome.ratio),
        ]);
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let geomean = (outcomes.iter().map(|outcome| outcome.ratio.ln()).sum::<f64>() / outcomes.len() as f64).exp();
    let least = outcomes.iter().map(|outcome| outcome.ratio).fold(f64::INFINITY, f64::min);
    println!("{table}\ngeometric mean {geomean:.2}, least {least:.2}; target: {}\n", group.target);
}
