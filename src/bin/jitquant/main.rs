//! `jitquant`: quantize, inspect, compare and measure TorchScript models from the command line.

mod bench;
mod calibrate;
mod compare;
mod control;
mod control_report;
mod data;
mod feed;
#[cfg(feature = "tch")]
mod finetune;
mod inspect;
mod layers;
mod output;
mod provenance;
mod quantize;
mod report;

use std::io::IsTerminal;
use std::process::ExitCode;

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

Exit codes: 0 done; 1 it failed, stderr says why and nothing was written; 2 the arguments make no sense."
)]
struct Cli {
    /// Say more of what is done, on stderr: how near each tried range comes, for one
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quantize(Box<quantize::Arguments>),
    Inspect(inspect::Arguments),
    Compare(compare::Arguments),
    Report(report::Arguments),
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    // Deprecation notices of libtorch's quantized types are of no use to who runs this program.
    jitquant::silence_torch_warnings();
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(if cli.verbose { Level::DEBUG } else { Level::INFO })
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    let outcome = match cli.command {
        Command::Quantize(arguments) => quantize::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
