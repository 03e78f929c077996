//! What all commands print alike: tables, sizes, times, progress bars, JSON.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Why stdout took no more, where it did not. What was to be written after that is dropped.
static FAILURE: Mutex<Option<ErrorKind>> = Mutex::new(None);

/// Prints a line on stdout.
pub fn say(text: fmt::Arguments<'_>) {
    let mut failure = FAILURE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if failure.is_none() {
        let mut stdout = std::io::stdout().lock();
        *failure = writeln!(stdout, "{text}").and_then(|()| stdout.flush()).err().map(|e| e.kind());
    }
}

/// Prints a line on stderr, where it can be.
pub fn note(text: fmt::Arguments<'_>) {
    writeln!(std::io::stderr(), "{text}").ok();
}

/// How the program ends that has done all it should: a failure where stdout was full, and none where its reader had enough
/// (`| head`).
pub fn outcome() -> ExitCode {
    let failure = *FAILURE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match failure {
        None | Some(ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Some(why) => {
            note(format_args!("error: stdout could not be written: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// A table with `header`; the columns after the first are numbers.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    if !std::io::stdout().is_terminal() {
        table.set_width(120);
    }
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.to_vec());
    table
}

/// Aligns all columns but the first to the right.
pub fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// A size in bytes for people.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// A time for people.
pub fn seconds(time: f64) -> String {
    match time {
        t if t < 1e-3 => format!("{:.1} µs", t * 1e6),
        t if t < 1.0 => format!("{:.2} ms", t * 1e3),
        t => format!("{t:.1} s"),
    }
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A bar on stderr for `samples` samples, with the time left; hidden where stderr is no terminal.
pub fn progress(samples: usize, doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {bar:32} {pos}/{len} samples, {eta} left");
    let bar = ProgressBar::new(samples as u64).with_message(doing);
    bar.enable_steady_tick(Duration::from_millis(250));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Prints a report for machines.
pub fn json(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(report)?);
    Ok(())
}
