//! `jitquant convert`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::feed::FORWARD;
use crate::output;

/// Make a TorchScript file of a program of torch.export (.pt2): the same float model, which any libtorch runs.
///
/// The other commands read .pt2 files themselves; this one is for who wants the float model in C++ or Rust, without Python.
/// Parameters, buffers and constants keep their dotted names, arguments their names, and results their tuples and
/// dictionaries. Sizes that were fixed when the model was exported are checked when it runs.
#[derive(clap::Args)]
#[command(after_help = "\
In Python, once:
  exported = torch.export.export(model.eval(), (example,), dynamic_shapes={\"x\": {0: torch.export.Dim(\"batch\")}})
  torch.export.save(exported, \"model.pt2\")

Then:
  jitquant convert model.pt2 -o model.pt                               the float model as TorchScript
  jitquant quantize model.pt2 -o model.int8.pt --calibrate data.npz    INT8 at once, without this command
  jitquant compare model.pt2 model.int8.pt --data more.npz             .pt2 wherever a .pt is taken

What is read and what is refused: docs/import.md.")]
pub struct Arguments {
    /// The exported program (.pt2); a TorchScript file is read, too, and written anew.
    model: PathBuf,
    /// Where to write the TorchScript file.
    #[arg(short, long, value_name = "OUT.pt")]
    output: PathBuf,
    /// Convert weights and computations of float64, float16 or bfloat16 to float32.
    #[arg(long)]
    to_float: bool,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

/// What was written.
#[derive(Serialize)]
struct Written {
    output: PathBuf,
    file_bytes: u64,
    arguments: Vec<String>,
    returns: Vec<String>,
    modules: usize,
    operators: BTreeMap<String, usize>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    jitquant::check_writable(&arguments.output)?;
    let is_input = |path: &PathBuf| std::fs::canonicalize(path).ok();
    ensure!(
        is_input(&arguments.output).is_none() || is_input(&arguments.output) != is_input(&arguments.model),
        "-o {} is the model itself",
        arguments.output.display()
    );
    let module = crate::feed::read(&arguments.model)?;
    if arguments.to_float {
        crate::feed::convert_to_float(&module)?;
    }
    module.save_checked(&arguments.output, &[])?;
    let schema = module.schema(FORWARD)?;
    let describe = |argument: &jitquant::ir::Argument| format!("{}: {}", argument.name, argument.type_name);
    let mut operators = BTreeMap::new();
    let mut graph = module.graph(FORWARD)?.deep_clone()?;
    graph.run(jitquant::ir::GeneralPass::Inline)?;
    for node in graph.all_nodes() {
        if !node.kind().starts_with("prim::") {
            *operators.entry(node.kind().to_owned()).or_insert(0) += 1;
        }
    }
    drop(graph);
    let written = Written {
        output: arguments.output.clone(),
        file_bytes: std::fs::metadata(&arguments.output)?.len(),
        arguments: schema.arguments.iter().skip(1).map(describe).collect(),
        returns: schema.returns.iter().map(|value| value.type_name.clone()).collect(),
        modules: module.modules().len(),
        operators,
    };
    if arguments.json {
        return output::json(&written);
    }
    println!("{}  ({})", written.output.display(), output::bytes(written.file_bytes));
    println!("  forward     ({}) -> {}", written.arguments.join(", "), written.returns.join(", "));
    println!("  modules     {}", written.modules);
    println!("  operators   {}", written.operators.values().sum::<usize>());
    Ok(())
}
