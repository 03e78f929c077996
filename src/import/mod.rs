//! What `torch.export.save` writes, as a TorchScript module.
//!
//! A `.pt2` file is a graph of ATen operators and the tensors that it uses. It becomes a module with one method `forward`:
//!
//! 1. [`archive`] opens the zip file, [`schema`] says what its JSON holds, [`weights`] reads each piece of memory once;
//! 2. [`state`] gives every parameter, buffer and constant its place, under its dotted name, in a tree of modules;
//! 3. [`signature`] makes arguments and results from the trees that Python's caller sees ([`pytree`]);
//! 4. [`graph`] turns each node into its operator: [`call`] those of libtorch by their schemas, [`symbolic`] sizes and
//!    checks, [`control_flow`] branches and loops, [`quantized`] the pairs of PT2E, [`canonical`] what decompositions took
//!    apart and quantization knows as a whole;
//! 5. [`methods`] makes each layer a method of the module that it belongs to.
//!
//! What has no counterpart is refused with the node's name, its line in the model's source, and what to do in Python.

mod archive;
mod call;
mod canonical;
mod checks;
mod constants;
mod control_flow;
mod graph;
mod methods;
mod pytree;
mod quantized;
mod schema;
mod signature;
mod state;
mod state_dict;
mod symbolic;
mod weights;

use std::io::{Read, Seek};

use archive::{Archive, Layout, in_record};
use schema::{Header, Program};

use crate::error::{Error, Result};
use crate::ir::{GeneralPass, Graph, Module};

/// The schema's major versions that are read: torch 2.5 wrote 7, 2.6 and later write 8. Minor versions add fields.
const MAJOR_VERSIONS: std::ops::RangeInclusive<u64> = 7..=8;

/// Reads a program.
///
/// # Errors
/// Where the file is damaged, of a newer form, or holds something that has no counterpart in TorchScript.
pub(crate) fn load(source: &mut (impl Read + Seek)) -> Result<Module> {
    let mut archive = Archive::open(source)?;
    let name = model_name(&archive)?;
    let record = match archive.layout {
        Layout::Flat => "serialized_exported_program.json".to_owned(),
        Layout::Folder => format!("models/{name}.json"),
    };
    let program = program_of(&archive.read(&record)?, &record)?;
    let tensors = weights::read(&mut archive, &name)?;
    module_of(&program, tensors)
}

/// The model's name in the archive; `torch.export.save` writes one, which it calls `model`.
fn model_name<S: Read + Seek>(archive: &Archive<S>) -> Result<String> {
    if archive.layout == Layout::Flat {
        return Ok(String::new());
    }
    let names: Vec<_> = archive.names_in("models/").filter_map(|name| name.strip_suffix(".json")).collect();
    match names[..] {
        [name] => Ok(name.to_owned()),
        [] if archive.names_in("data/aotinductor/").next().is_some() => Err(Error::invalid(
            "a package that AOTInductor compiled for one machine, without the program that it was compiled from: save the \
             exported program with torch.export.save(exported, path)",
        )),
        [] => Err(Error::invalid("the archive has no models/model.json: torch.export.save(exported, path) writes one")),
        _ => Err(Error::invalid(format!(
            "the archive holds {} models ({}); one with a single model is expected, as torch.export.save writes it",
            names.len(),
            crate::archive::shortened(&names.join(", "))
        ))),
    }
}

fn program_of(json: &[u8], record: &str) -> Result<Program> {
    let unexpected = |e: serde_json::Error| in_record(record, weights::unexpected(&e));
    let header: Header = serde_json::from_slice(json).map_err(unexpected)?;
    let (version, torch) = (header.schema_version, crate::archive::shortened(&header.torch_version));
    if !MAJOR_VERSIONS.contains(&version.major) {
        return Err(Error::invalid(format!(
            "the program is of export schema {}.{}{}; versions {} to {} are read (torch 2.5 and later)",
            version.major,
            version.minor,
            if torch.is_empty() { String::new() } else { format!(", written by torch {torch}") },
            MAJOR_VERSIONS.start(),
            MAJOR_VERSIONS.end()
        )));
    }
    serde_json::from_slice(json).map_err(unexpected)
}

fn module_of(program: &Program, mut tensors: weights::Tensors) -> Result<Module> {
    let mut held = state::held(program);
    quantized::fold_weights(program, &mut tensors, &mut held)?;
    let module = state::module(program, &held, &tensors)?;
    let mut graph = Graph::new();
    graph::Builder::new(program, &module, &held, &graph).build()?;
    graph.run(GeneralPass::ConstantPooling)?;
    graph.run(GeneralPass::DeadCodeElimination)?;
    graph.lint()?;
    module.create_method("forward", &graph)?;
    Ok(module)
}
