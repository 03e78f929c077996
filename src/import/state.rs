//! Parameters, buffers and constants in a tree of modules, each under its dotted name.

use std::collections::BTreeMap;

use super::constants;
use super::schema::{InputSpec, Program};
use super::weights::Tensors;
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Tensor, Type};

/// The most modules that a name may go through.
const DEEPEST: usize = 64;

/// What a tensor is to its module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Parameter,
    Buffer,
    Constant,
}

/// An input of the graph that the module holds: its name in the graph, its dotted name, its role.
pub(super) struct Held<'p> {
    pub input: &'p str,
    pub path: String,
    pub role: Role,
}

/// What the module holds, in the order of the graph's inputs.
pub(super) fn held(program: &Program) -> Vec<Held<'_>> {
    let held = program.graph_module.signature.input_specs.iter().filter_map(|spec| {
        let (input, path, role) = match spec {
            InputSpec::Parameter { arg, parameter_name } => (arg, parameter_name, Role::Parameter),
            InputSpec::Buffer { arg, buffer_name } => (arg, buffer_name, Role::Buffer),
            InputSpec::TensorConstant { arg, tensor_constant_name } => (arg, tensor_constant_name, Role::Constant),
            _ => return None,
        };
        Some(Held { input: &input.name, path: path.clone(), role })
    });
    held.collect()
}

/// A module with everything that the program holds, and no method yet.
///
/// # Errors
/// Where a tensor is missing, or two names are in each other's way.
pub(super) fn module(program: &Program, held: &[Held<'_>], tensors: &Tensors) -> Result<Module> {
    let mut tree = Tree { modules: BTreeMap::new(), classes: classes(program) };
    let root = tree.make("")?;
    for spec in &program.graph_module.signature.input_specs {
        if let InputSpec::CustomObj { custom_obj_name } = spec {
            return Err(Error::invalid(format!(
                "'{}' is an object of a C++ class (torchbind), which is not read: compute what it does with tensors",
                shortened(custom_obj_name)
            )));
        }
    }
    for held in held {
        let missing = || Error::invalid(format!("the file is damaged: tensor '{}' is missing", shortened(&held.path)));
        let tensor = tensors.get(&held.path).ok_or_else(missing)?;
        tree.add(held, tensor)?;
    }
    Ok(root)
}

struct Tree {
    /// By their dotted names; the root's is empty.
    modules: BTreeMap<String, Module>,
    /// The classes of the original modules, by their dotted names.
    classes: BTreeMap<String, String>,
}

impl Tree {
    fn make(&mut self, path: &str) -> Result<Module> {
        let class = self.classes.get(path).map_or("Exported", String::as_str);
        let module = Module::new(class).or_else(|_| Module::new("Exported"))?;
        // libtorch takes a module that does not say for one in training.
        module.register_attribute("training", &Type::parse("bool")?, &IValue::Bool(false))?;
        self.modules.insert(path.to_owned(), module.clone());
        Ok(module)
    }

    /// The module at a path, made with those above it where it is not there.
    fn at(&mut self, path: &str) -> Result<Module> {
        if let Some(module) = self.modules.get(path) {
            return Ok(module.clone());
        }
        let steps = path.split('.').count();
        if steps > DEEPEST || path.split('.').any(|step| !is_name(step)) {
            return Err(Error::invalid(format!("'{}' is no dotted name of a module", shortened(path))));
        }
        let mut parent = self.modules.get("").cloned().map_or_else(|| self.make(""), Ok)?;
        for (end, _) in path.match_indices('.').chain([(path.len(), "")]) {
            let here = &path[..end];
            let module = match self.modules.get(here) {
                Some(module) => module.clone(),
                None => {
                    let name = here.rsplit('.').next().unwrap_or(here);
                    if parent.has_attribute(name) {
                        return Err(taken(here));
                    }
                    let module = self.make(here)?;
                    parent.register_submodule(name, &module)?;
                    module
                }
            };
            parent = module;
        }
        Ok(parent)
    }

    fn add(&mut self, held: &Held<'_>, tensor: &Tensor) -> Result<()> {
        let (folder, name) = held.path.rsplit_once('.').unwrap_or(("", &held.path));
        let module = self.at(folder)?;
        if !is_name(name) {
            return Err(Error::invalid(format!("'{}' is no name of a tensor", shortened(&held.path))));
        }
        if module.has_attribute(name) {
            return Err(taken(&held.path));
        }
        match held.role {
            Role::Parameter => module.register_parameter(name, tensor),
            Role::Buffer => module.register_buffer(name, tensor),
            Role::Constant => module.register_attribute(name, &constants::tensor()?, &tensor.into()),
        }
    }
}

fn taken(path: &str) -> Error {
    Error::invalid(format!("the file is damaged: '{}' stands for two things", shortened(path)))
}

/// Whether TorchScript takes it for an attribute; `0` of a `Sequential` is one.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The classes of the modules: each node tells those that it was called in, as `key,path,class` divided by `;`.
fn classes(program: &Program) -> BTreeMap<String, String> {
    let mut classes = BTreeMap::new();
    for node in &program.graph_module.graph.nodes {
        for entry in node.metadata.get("nn_module_stack").map(String::as_str).unwrap_or_default().split(';') {
            let mut parts = entry.split(',').skip(1);
            let (Some(path), Some(class)) = (parts.next(), parts.next()) else { continue };
            let class = class.strip_prefix("__main__.").unwrap_or(class);
            let is_class =
                class.split('.').all(|part| is_name(part) && !part.starts_with(|c: char| c.is_ascii_digit()));
            if is_class && !classes.contains_key(path) {
                classes.insert(path.to_owned(), class.to_owned());
            }
        }
    }
    classes
}
