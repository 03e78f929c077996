//! Arguments and results as Python's caller has them, and state that is written at the end.

use std::collections::BTreeMap;

use super::constants;
use super::graph::{Builder, output};
use super::pytree::{self, Tree};
use super::schema::{
    Argument, CallSignature, ConstantValue, InputSpec, OutputSpec, Program, SymBool, SymFloat, SymInt,
};
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::{IValue, Type, Value};

/// A leaf of the arguments.
#[derive(Clone, Copy)]
enum Leaf<'p> {
    /// Its name in the graph, and its type in TorchScript's syntax.
    Input(&'p str, &'static str),
    /// What the argument was when the program was exported; its value is part of the code.
    Constant(&'p ConstantValue),
}

impl Leaf<'_> {
    fn type_name(self) -> &'static str {
        match self {
            Self::Input(_, ty) => ty,
            Self::Constant(ConstantValue::AsNone(_)) => "NoneType",
            Self::Constant(ConstantValue::AsInt(_)) => "int",
            Self::Constant(ConstantValue::AsFloat(_)) => "float",
            Self::Constant(ConstantValue::AsString(_)) => "str",
            Self::Constant(ConstantValue::AsBool(_)) => "bool",
        }
    }
}

/// An argument of `forward`: its name, how it nests, and its leaves in order.
struct Parameter<'p> {
    name: String,
    tree: Tree,
    leaves: Vec<Leaf<'p>>,
}

impl<'g, 'p> Builder<'g, 'p> {
    /// Adds the arguments, and binds the graph's inputs to them and to what the module holds.
    ///
    /// # Errors
    /// Where the signature does not fit the graph.
    pub fn bind_inputs(&mut self) -> Result<()> {
        let class = self.module.type_of();
        let this = self.graph.block().add_input("self")?;
        this.set_type(&class)?;
        let mut modules = BTreeMap::from([(String::new(), this)]);
        for held in self.held {
            let value = self.read_attribute(&mut modules, &held.path)?;
            self.bind(held.input, value)?;
        }
        for parameter in self.parameters()? {
            let types: Vec<&str> = parameter.leaves.iter().map(|leaf| leaf.type_name()).collect();
            match type_of(&parameter.tree, &mut types.iter().copied()) {
                Some(ty) => self.add_parameter(&parameter, &ty)?,
                // What no type of TorchScript is becomes several arguments.
                None => {
                    for (name, leaf) in flat_names(&parameter.name, &parameter.tree).into_iter().zip(parameter.leaves) {
                        let parameter = Parameter { name, tree: Tree::Leaf, leaves: vec![leaf] };
                        self.add_parameter(&parameter, leaf.type_name())?;
                    }
                }
            }
        }
        self.check_inputs()
    }

    /// The value of the attribute at a dotted path; modules on the way are read once.
    fn read_attribute(&self, modules: &mut BTreeMap<String, Value<'g>>, path: &str) -> Result<Value<'g>> {
        let (folder, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut parent = modules.get("").copied().ok_or_else(|| Error::invalid("the graph has no self"))?;
        for (end, _) in folder.match_indices('.').chain([(folder.len(), "")]).filter(|(end, _)| *end > 0) {
            let here = &folder[..end];
            parent = match modules.get(here) {
                Some(module) => *module,
                None => {
                    let module = self.at.insert_get_attribute(parent, here.rsplit('.').next().unwrap_or(here))?;
                    modules.insert(here.to_owned(), module);
                    module
                }
            };
        }
        self.at.insert_get_attribute(parent, name)
    }

    /// The arguments; those that are constants through and through are left out.
    fn parameters(&self) -> Result<Vec<Parameter<'p>>> {
        let mut leaves = Vec::new();
        for spec in &self.program.graph_module.signature.input_specs {
            match spec {
                InputSpec::UserInput { arg } => leaves.push(input_leaf(arg)?),
                InputSpec::ConstantInput { value } => leaves.push(Leaf::Constant(value)),
                InputSpec::Token {} => return Err(tokens()),
                _ => {}
            }
        }
        let mut leaves = leaves.into_iter();
        let mut parameters = Vec::new();
        for (name, tree) in argument_trees(self.program)? {
            let own: Vec<_> = leaves.by_ref().take(tree.leaves()).collect();
            if own.len() != tree.leaves() {
                return Err(Error::invalid("the file is damaged: it has fewer inputs than its arguments need"));
            }
            if own.iter().any(|leaf| matches!(leaf, Leaf::Input(..))) {
                let only_leaf = match own[..] {
                    [Leaf::Input(name, _)] => Some(name),
                    _ => None,
                };
                let place = parameters.len();
                let name = name.or(only_leaf.map(str::to_owned)).unwrap_or_else(|| format!("argument_{place}"));
                parameters.push(Parameter { name, tree, leaves: own });
            }
        }
        match leaves.next() {
            None => Ok(parameters),
            Some(_) => Err(Error::invalid("the file is damaged: it has more inputs than its arguments need")),
        }
    }

    fn add_parameter(&mut self, parameter: &Parameter<'p>, ty: &str) -> Result<()> {
        let name = identifier(&parameter.name);
        let mut known = self.graph.inputs().into_iter().skip(1).map(Value::debug_name);
        if known.any(|known| known == name) {
            return Err(Error::invalid(format!("two arguments are called '{}'", shortened(&name))));
        }
        let value = self.graph.block().add_input(&name)?;
        value.set_type(&Type::parse(ty)?)?;
        self.take_apart(&parameter.tree, value, &mut parameter.leaves.iter().copied(), &name)
    }

    /// Binds the leaves of an argument.
    fn take_apart(
        &mut self,
        tree: &Tree,
        value: Value<'g>,
        leaves: &mut impl Iterator<Item = Leaf<'p>>,
        name: &str,
    ) -> Result<()> {
        let types: Vec<String> = value.type_of().contained().iter().map(Type::annotation).collect();
        match tree {
            Tree::Leaf => match leaves.next() {
                Some(Leaf::Input(input, _)) => self.bind(input, value),
                Some(Leaf::Constant(constant)) => self.require_constant(value, constant, name),
                None => Err(Error::invalid("the file is damaged: an argument has fewer leaves than it says")),
            },
            Tree::Tuple(items) => {
                let types: Vec<&str> = types.iter().map(String::as_str).collect();
                let parts = self.emit("prim::TupleUnpack", &[value], &types)?.outputs();
                self.take_all_apart(items, parts, leaves, name)
            }
            Tree::List(items) => {
                let element = types.first().map_or("Tensor", String::as_str);
                let parts = self.emit("prim::ListUnpack", &[value], &vec![element; items.len()])?.outputs();
                self.take_all_apart(items, parts, leaves, name)
            }
            Tree::Named(items) => {
                let element = types.get(1).map_or("Tensor", String::as_str);
                for (key, item) in items {
                    let entry = self.constant(key.as_str())?;
                    let part = self.emit_one("aten::__getitem__", &[value, entry], element)?;
                    self.take_apart(item, part, leaves, &format!("{name}.{key}"))?;
                }
                Ok(())
            }
        }
    }

    fn take_all_apart(
        &mut self,
        items: &[Tree],
        parts: Vec<Value<'g>>,
        leaves: &mut impl Iterator<Item = Leaf<'p>>,
        name: &str,
    ) -> Result<()> {
        let mut numbered = items.iter().zip(parts).enumerate();
        numbered.try_for_each(|(index, (item, part))| self.take_apart(item, part, leaves, &format!("{name}.{index}")))
    }

    /// Writes that an argument is what the code takes it for.
    fn require_constant(&self, value: Value<'g>, constant: &ConstantValue, name: &str) -> Result<()> {
        let constant = constants::value(constant);
        if matches!(constant, IValue::None) {
            return Ok(());
        }
        let words = match &constant {
            IValue::Str(text) => format!("'{}'", shortened(text)),
            IValue::Double(number) => number.to_string(),
            IValue::Int(number) => number.to_string(),
            IValue::Bool(truth) => if *truth { "True" } else { "False" }.to_owned(),
            _ => String::new(),
        };
        let same = self.emit_one("aten::eq", &[value, self.constant(constant)?], "bool")?;
        self.require(same, &format!("input '{name}' should be {words}, as when the model was exported"))
    }

    /// Writes the checks of the inputs' sizes.
    fn check_inputs(&self) -> Result<()> {
        for spec in &self.program.graph_module.signature.input_specs {
            let InputSpec::UserInput { arg: Argument::AsTensor(named) } = spec else { continue };
            if let Some(meta) = self.program.graph_module.graph.tensor_values.get(&named.name) {
                self.require_shape(self.value(&named.name)?, &named.name, meta)?;
            }
        }
        Ok(())
    }

    /// Writes what the program says has changed into the buffers and arguments that have.
    ///
    /// # Errors
    /// Where one of them is not there.
    pub fn write_state(&mut self) -> Result<()> {
        for spec in &self.program.graph_module.signature.output_specs {
            let (value, target) = match spec {
                OutputSpec::BufferMutation { arg, buffer_name: path }
                | OutputSpec::ParameterMutation { arg, parameter_name: path } => {
                    let held = self.held.iter().find(|held| held.path == *path);
                    let held = held.ok_or_else(|| {
                        Error::invalid(format!("the file is damaged: there is no buffer '{}'", shortened(path)))
                    })?;
                    (&arg.name, held.input)
                }
                OutputSpec::UserInputMutation { arg, user_input_name } => (&arg.name, user_input_name.as_str()),
                OutputSpec::Token {} => return Err(tokens()),
                OutputSpec::LossOutput {} | OutputSpec::GradientToParameter {} | OutputSpec::GradientToUserInput {} => {
                    return Err(Error::invalid(
                        "the program is a step of training, with gradients among its results: export the model with \
                         torch.export.export(model.eval(), args)",
                    ));
                }
                OutputSpec::UserOutput { .. } => continue,
            };
            let (target, value) = (self.value(target)?, self.value(value)?);
            let blocking = self.constant(false)?;
            self.emit_one("aten::copy_", &[target, value, blocking], "Tensor")?;
        }
        Ok(())
    }

    /// Makes the result that Python's caller has.
    ///
    /// # Errors
    /// Where the signature does not fit the graph.
    pub fn return_outputs(&mut self) -> Result<()> {
        let mut leaves = Vec::new();
        for spec in &self.program.graph_module.signature.output_specs {
            if let OutputSpec::UserOutput { arg } = spec {
                leaves.push(match arg {
                    Argument::AsString(text) => self.constant(text.as_str())?,
                    Argument::AsNone(_) => self.constant(IValue::None)?,
                    other => self.number(other)?,
                });
            }
        }
        let tree = match call_signature(self.program) {
            Some(signature) => {
                pytree::parse(&signature.out_spec, &self.program.graph_module.treespec_namedtuple_fields)?
            }
            None => Tree::Tuple(vec![Tree::Leaf; leaves.len()]),
        };
        if tree.leaves() != leaves.len() {
            return Err(Error::invalid("the file is damaged: its results are not as many as it says"));
        }
        let result = self.put_together(&tree, &mut leaves.into_iter())?;
        self.graph.block().register_output(result)?;
        Ok(())
    }

    fn put_together(&self, tree: &Tree, leaves: &mut impl Iterator<Item = Value<'g>>) -> Result<Value<'g>> {
        let (items, names): (Vec<&Tree>, Option<Vec<&String>>) = match tree {
            Tree::Leaf => {
                return leaves.next().ok_or_else(|| Error::invalid("the file is damaged: a result is missing"));
            }
            Tree::Tuple(items) | Tree::List(items) => (items.iter().collect(), None),
            Tree::Named(items) => {
                (items.iter().map(|(_, item)| item).collect(), Some(items.iter().map(|(key, _)| key).collect()))
            }
        };
        let values = items.into_iter().map(|item| self.put_together(item, leaves)).collect::<Result<Vec<_>>>()?;
        let types: Vec<Type> = values.iter().map(|value| value.type_of()).collect();
        let names_of_types: Vec<String> = types.iter().map(Type::annotation).collect();
        let common = names_of_types.first().filter(|first| names_of_types.iter().all(|ty| ty == *first));
        match (tree, names, common) {
            (Tree::List(_), _, Some(element)) => self.list(&values, element),
            (_, Some(names), Some(element)) => {
                let mut entries = Vec::new();
                for (name, value) in names.into_iter().zip(values) {
                    entries.extend([self.constant(name.as_str())?, value]);
                }
                self.emit_one("prim::DictConstruct", &entries, &format!("Dict[str, {element}]"))
            }
            // Lists and dictionaries of TorchScript hold one type.
            _ => {
                let tuple = self.emit("prim::TupleConstruct", &values, &[])?;
                tuple.add_output()?.set_type(&Type::tuple(&types)?)?;
                output(tuple)
            }
        }
    }
}

fn tokens() -> Error {
    Error::invalid(
        "the program orders effects (printing, objects of C++ classes), which are not read: export the model without them",
    )
}

fn input_leaf(argument: &Argument) -> Result<Leaf<'_>> {
    match argument {
        Argument::AsTensor(named) => Ok(Leaf::Input(&named.name, "Tensor")),
        Argument::AsSymInt(SymInt::AsName(name)) => Ok(Leaf::Input(name, "int")),
        Argument::AsSymFloat(SymFloat::AsName(name)) => Ok(Leaf::Input(name, "float")),
        Argument::AsSymBool(SymBool::AsName(name)) => Ok(Leaf::Input(name, "bool")),
        _ => Err(Error::invalid("an input is neither a tensor nor a number: objects and lists are not read as inputs")),
    }
}

fn call_signature(program: &Program) -> Option<&CallSignature> {
    program.graph_module.module_call_graph.iter().find(|entry| entry.fqn.is_empty())?.signature.as_ref()
}

/// The trees of the positional and named arguments, with their names where they are known.
fn argument_trees(program: &Program) -> Result<Vec<(Option<String>, Tree)>> {
    let Some(signature) = call_signature(program) else {
        let user = |spec: &&InputSpec| matches!(spec, InputSpec::UserInput { .. } | InputSpec::ConstantInput { .. });
        let count = program.graph_module.signature.input_specs.iter().filter(user).count();
        return Ok(vec![(None, Tree::Leaf); count]);
    };
    let tree = pytree::parse(&signature.in_spec, &program.graph_module.treespec_namedtuple_fields)?;
    let Tree::Tuple(mut both) = tree else { return Err(arguments_damaged()) };
    let (named, positional) = match (both.pop(), both.pop()) {
        (Some(named), Some(Tree::Tuple(positional))) => (named, positional),
        _ => return Err(arguments_damaged()),
    };
    let named = match named {
        Tree::Named(named) => named,
        Tree::Tuple(items) if items.is_empty() => Vec::new(),
        _ => return Err(arguments_damaged()),
    };
    let known = signature.forward_arg_names.as_deref().unwrap_or_default();
    let count = positional.len();
    // What a `*args` takes has one name for all of them.
    let is_told = known.len() == count + named.len();
    let positional =
        positional.into_iter().enumerate().map(|(index, tree)| (known.get(index).filter(|_| is_told).cloned(), tree));
    Ok(positional.chain(named.into_iter().map(|(name, tree)| (Some(name), tree))).collect())
}

fn arguments_damaged() -> Error {
    Error::invalid("the file is damaged: its arguments are not a tuple and a dictionary")
}

/// A tree's type in TorchScript's syntax, its leaves' types in order; `None` where TorchScript has none.
fn type_of<'a>(tree: &Tree, leaves: &mut impl Iterator<Item = &'a str>) -> Option<String> {
    match tree {
        Tree::Leaf => leaves.next().map(str::to_owned),
        Tree::Tuple(items) => {
            let types = items.iter().map(|item| type_of(item, leaves)).collect::<Option<Vec<_>>>()?;
            (!types.is_empty()).then(|| format!("Tuple[{}]", types.join(", ")))
        }
        Tree::List(items) => {
            let types = items.iter().map(|item| type_of(item, leaves)).collect::<Option<Vec<_>>>()?;
            let first = types.first().filter(|first| types.iter().all(|ty| ty == *first))?;
            Some(format!("List[{first}]"))
        }
        Tree::Named(items) => {
            let types = items.iter().map(|(_, item)| type_of(item, leaves)).collect::<Option<Vec<_>>>()?;
            let first = types.first().filter(|first| types.iter().all(|ty| ty == *first))?;
            Some(format!("Dict[str, {first}]"))
        }
    }
}

/// A name for each leaf: `x_0`, `x_key`.
fn flat_names(name: &str, tree: &Tree) -> Vec<String> {
    match tree {
        Tree::Leaf => vec![name.to_owned()],
        Tree::Tuple(items) | Tree::List(items) => {
            items.iter().enumerate().flat_map(|(index, item)| flat_names(&format!("{name}_{index}"), item)).collect()
        }
        Tree::Named(items) => items.iter().flat_map(|(key, item)| flat_names(&format!("{name}_{key}"), item)).collect(),
    }
}

/// A name as TorchScript takes it.
fn identifier(name: &str) -> String {
    let mut name: String =
        name.chars().take(200).map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || name == "self" {
        name.insert(0, '_');
    }
    name
}
