//! `jitquant`: quantize, inspect, compare and measure TorchScript models from the command line.

// Those of the standard library panic where nobody reads (`jitquant inspect model.pt | head`) or the disk is full.
macro_rules! println {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*)) };
}
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::note(format_args!($($text)*)) };
}

mod arguments;
mod bench;
mod bounds;
mod calibrate;
mod claim;
mod compare;
mod control;
mod control_report;
mod convert;
mod data;
mod dropped;
mod export;
mod feed;
#[cfg(feature = "tch")]
mod finetune;
mod inspect;
mod layers;
mod output;
mod provenance;
mod quantize;
mod report;
mod run;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tracing::Level;

/// Quantize TorchScript models to INT8, without Python.
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
A first session:
  jitquant inspect model.pt                                         what can be quantized, and what not and why
  jitquant quantize model.pt --calibrate data.npz -o model.int8.pt  an INT8 model that any libtorch runs
  jitquant compare model.pt model.int8.pt --data more.npz           how close it is, how small, how fast
  jitquant export model.pt -o model.jqp --calibrate data.npz        a file that runs without libtorch (jitquant run)

A model is a TorchScript file (.pt), or a program that torch.export.save wrote (.pt2).

Exit codes: 0 done; 1 it failed, stderr says why and nothing was written; 2 the arguments make no sense;
130 and 143 it was ended by Ctrl-C or kill, and left nothing."
)]
struct Cli {
    /// Say more of what is done, on stderr: how near each tried range comes, for one
    #[arg(short, long, global = true, display_order = 1000)]
    verbose: bool,
    /// Load this library first, for models that call operators or classes of its own (torchvision's, one's own); may be
    /// given several times. It runs with all rights of this program.
    #[arg(long, global = true, display_order = 1000, value_name = "FILE.so")]
    library: Vec<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quantize(Box<quantize::Arguments>),
    Inspect(inspect::Arguments),
    Convert(convert::Arguments),
    Compare(compare::Arguments),
    Report(report::Arguments),
    Bench(bench::Arguments),
    Export(export::Arguments),
    Run(run::Arguments),
}

fn main() -> ExitCode {
    end_on_signals();
    // Deprecation notices of libtorch's quantized types are of no use to who runs this program.
    jitquant::silence_torch_warnings();
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(if cli.verbose { Level::DEBUG } else { Level::INFO })
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .log_internal_errors(false)
        .init();
    // What is left to chance must not look like a crash of libtorch's.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&cli)));
    match outcome {
        Ok(Ok(())) => output::outcome(),
        Ok(Err(e)) => {
            eprintln!("error: {}", jitquant::brief(&format!("{e:#}")));
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("error: that was a fault of jitquant's; nothing was written after it");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    for library in &cli.library {
        jitquant::load_library(library)?;
    }
    match &cli.command {
        Command::Quantize(arguments) => quantize::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Convert(arguments) => convert::run(arguments),
        Command::Compare(arguments) => compare::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Run(arguments) => run::run(arguments),
    }
}

/// Ctrl-C ends the program with exit code 130, `kill` with 143. Files that are being written have no name until they are
/// whole, so nothing is left of them.
fn end_on_signals() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM] {
        let always = Arc::new(AtomicBool::new(true));
        // Where it cannot be set, the system ends the program all the same.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, always).ok();
    }
}
