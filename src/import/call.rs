//! Calls of libtorch's operators: arguments by the operator's schema, results by their names.

use super::constants;
use super::graph::{Builder, names, output};
use super::schema::{self, Argument, Float, OptionalTensor, SymBool, SymFloat, SymInt};
use crate::archive::shortened;
use crate::error::{Error, Result};
use crate::ir::{DType, IValue, Node, Operator, Type, Value};

impl<'g, 'p> Builder<'g, 'p> {
    /// Writes the call of an operator.
    ///
    /// # Errors
    /// Where no library defines the operator, or it does not take these arguments.
    pub fn call(&mut self, node: &'p schema::Node, namespace: &str, name: &str, overload: &str) -> Result<()> {
        let kind = format!("{namespace}::{name}");
        let operator = self.operator(&kind, overload).ok_or_else(|| unknown(&node.target, namespace))?;
        let inputs = self.arguments(node, &operator)?;
        let returns: Vec<&str> = operator.returns.iter().map(String::as_str).collect();
        let call = self.emit(&kind, &inputs, &returns)?;
        self.fit(call, &operator)?;
        self.bind_results(node, call)
    }

    /// The value that argument `name` of a node has where it is left out.
    ///
    /// # Errors
    /// Where it cannot be left out.
    pub fn default_argument(&self, node: &schema::Node, name: &str) -> Result<Value<'g>> {
        let parts: Vec<&str> = node.target.split('.').collect();
        let operator = match parts[..] {
            [.., namespace, operator, overload] => self.operator(&format!("{namespace}::{operator}"), overload),
            _ => None,
        };
        let default = operator
            .and_then(|operator| operator.default_of(operator.arguments.iter().position(|(known, _)| known == name)?));
        self.constant(default.ok_or_else(|| Error::invalid(format!("the argument '{name}' is missing")))?)
    }

    /// The values of all arguments; those that are left out have their defaults.
    fn arguments(&self, node: &schema::Node, operator: &Operator) -> Result<Vec<Value<'g>>> {
        let is_known = |name: &str| operator.arguments.iter().any(|(known, _)| known == name);
        if let Some(other) = node.inputs.iter().find(|input| !is_known(&input.name)) {
            let known: Vec<_> = operator.arguments.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error::invalid(format!(
                "{} takes the arguments {}, and '{}' is given",
                operator.name,
                known.join(", "),
                shortened(&other.name)
            )));
        }
        let value = |(index, (name, ty)): (usize, &(String, String))| {
            if let Some(given) = node.inputs.iter().find(|input| input.name == *name) {
                return self.argument(&given.arg, ty).map_err(|e| Error::invalid(format!("argument '{name}': {e}")));
            }
            let missing = || Error::invalid(format!("{} needs the argument '{name}'", operator.name));
            self.constant(operator.default_of(index).ok_or_else(missing)?)
        };
        operator.arguments.iter().enumerate().map(value).collect()
    }

    /// A value for an argument of type `ty`, in TorchScript's syntax.
    ///
    /// # Errors
    /// Where it is of a kind that has no counterpart.
    pub fn argument(&self, argument: &Argument, ty: &str) -> Result<Value<'g>> {
        let ty = ty.strip_prefix("Optional[").and_then(|ty| ty.strip_suffix(']')).unwrap_or(ty);
        let element = ty.strip_prefix("List[").and_then(|ty| ty.strip_suffix(']'));
        let wanted = element.unwrap_or(ty);
        let one = |value: IValue| self.constant(value);
        let single = match argument {
            Argument::AsNone(_) | Argument::AsOptionalTensor(OptionalTensor::AsNone(_)) => return one(IValue::None),
            Argument::AsTensors(all) => {
                let items = all.iter().map(|named| self.value(&named.name)).collect::<Result<Vec<_>>>()?;
                return self.list(&items, wanted);
            }
            Argument::AsOptionalTensors(all) => {
                let item = |item: &OptionalTensor| match item {
                    OptionalTensor::AsTensor(named) => self.value(&named.name),
                    OptionalTensor::AsNone(_) => one(IValue::None),
                };
                return self.list(&all.iter().map(item).collect::<Result<Vec<_>>>()?, "Optional[Tensor]");
            }
            Argument::AsInts(items) => {
                return self.constants(constants::numbers(items, wanted == "float"), wanted, "int");
            }
            Argument::AsFloats(items) => {
                return self.constants(items.iter().map(|item| IValue::Double(item.0)), wanted, "float");
            }
            Argument::AsBools(items) => return self.constants(items.iter().map(|item| (*item).into()), wanted, "bool"),
            Argument::AsStrings(items) => {
                return self.constants(items.iter().map(|item| item.as_str().into()), wanted, "str");
            }
            Argument::AsSymInts(items) => {
                let items = items.iter().map(|item| self.symbol(item)).collect::<Result<Vec<_>>>()?;
                return self.list(&items, "int");
            }
            Argument::AsSymFloats(items) => {
                let items = items.iter().map(|item| self.sym_float(item)).collect::<Result<Vec<_>>>()?;
                return self.list(&items, "float");
            }
            Argument::AsSymBools(items) => {
                let items = items.iter().map(|item| self.sym_bool(item)).collect::<Result<Vec<_>>>()?;
                return self.list(&items, "bool");
            }
            Argument::AsTensor(named) | Argument::AsOptionalTensor(OptionalTensor::AsTensor(named)) => {
                self.value(&named.name)?
            }
            Argument::AsInt(value) if wanted == "float" => one(IValue::Double(*value as f64))?,
            Argument::AsSymInt(value) if wanted == "float" => {
                self.emit_one("aten::Float", &[self.symbol(value)?], "float")?
            }
            Argument::AsString(text) => one(text.as_str().into())?,
            Argument::AsScalarType(code) => one(known(schema::scalar_type(*code), "element type")?)?,
            Argument::AsMemoryFormat(code) => one(known(schema::memory_format(*code), "memory format")?)?,
            Argument::AsLayout(code) => one(known(schema::layout(*code), "layout")?)?,
            // Tensors go to the CPU wherever they were saved from, and what the program makes goes there too.
            Argument::AsDevice(device) if device.kind == "meta" => one(IValue::Device("meta".to_owned()))?,
            Argument::AsDevice(_) => one(IValue::Device("cpu".to_owned()))?,
            _ => self.number(argument)?,
        };
        match element {
            // Python takes one number for a list of one.
            Some(element) => self.list(&[single], element),
            None => Ok(single),
        }
    }

    /// A number or truth value, known or computed.
    ///
    /// # Errors
    /// Where it is another thing.
    pub fn number(&self, argument: &Argument) -> Result<Value<'g>> {
        match argument {
            Argument::AsInt(value) => self.constant(*value),
            Argument::AsFloat(Float(value)) => self.constant(*value),
            Argument::AsBool(value) => self.constant(*value),
            Argument::AsSymInt(value) => self.symbol(value),
            Argument::AsSymFloat(value) => self.sym_float(value),
            Argument::AsSymBool(value) => self.sym_bool(value),
            Argument::AsTensor(named) => self.value(&named.name),
            other => Err(Error::invalid(format!("{} is not read here", kind_of(other)))),
        }
    }

    /// A size, known or computed.
    ///
    /// # Errors
    /// Where it is computed by nobody.
    pub fn symbol(&self, value: &SymInt) -> Result<Value<'g>> {
        match value {
            SymInt::AsName(name) => self.value(name),
            SymInt::AsInt(value) => self.constant(*value),
        }
    }

    fn sym_float(&self, value: &SymFloat) -> Result<Value<'g>> {
        match value {
            SymFloat::AsName(name) => self.value(name),
            SymFloat::AsFloat(Float(value)) => self.constant(*value),
        }
    }

    fn sym_bool(&self, value: &SymBool) -> Result<Value<'g>> {
        match value {
            SymBool::AsName(name) => self.value(name),
            SymBool::AsBool(value) => self.constant(*value),
        }
    }

    fn constants(&self, items: impl IntoIterator<Item = IValue>, wanted: &str, own: &str) -> Result<Value<'g>> {
        let items = items.into_iter().map(|item| self.constant(item)).collect::<Result<Vec<_>>>()?;
        // An empty list has no type of its own.
        let element = if items.is_empty() || wanted == "float" { wanted } else { own };
        self.list(&items, element)
    }

    /// Where Python gives a number for a tensor and TorchScript has no overload for it, the number becomes a tensor; where
    /// it gives a truth value for a number, which TorchScript does not take for one, that becomes 0 or 1.
    fn fit(&self, call: Node<'g>, operator: &Operator) -> Result<()> {
        if call.schema().is_some() {
            return Ok(());
        }
        for (index, (input, (_, ty))) in call.inputs().into_iter().zip(&operator.arguments).enumerate() {
            let dtype = match input.type_of().kind().as_str() {
                "IntType" => DType::I64,
                "FloatType" => DType::F32,
                "BoolType" => DType::Bool,
                _ => continue,
            };
            let number = match dtype {
                DType::Bool => number_of(call, input)?,
                _ => input,
            };
            // The type of what `where` gives depends on the type of what it is given.
            if matches!(ty.as_str(), "Tensor" | "Optional[Tensor]") || operator.name == "aten::where" {
                let (dtype, none) = (call.insert_constant(dtype as i64)?, call.insert_constant(IValue::None)?);
                let inputs = [number, dtype, none, none, none];
                let tensor = self.graph.create("aten::scalar_tensor", &inputs, 1)?.insert_before(call)?;
                call.replace_input(index, output(tensor)?)?;
            } else if ty == "number" && dtype == DType::Bool {
                call.replace_input(index, number)?;
                set_truth_type(call, operator)?;
            }
        }
        match call.schema() {
            Some(_) => Ok(()),
            None => {
                let types: Vec<_> = call.inputs().into_iter().map(|input| input.type_of().annotation()).collect();
                Err(Error::invalid(format!("TorchScript has no {}({})", operator.name, types.join(", "))))
            }
        }
    }

    /// Gives the results their names.
    pub fn bind_results(&mut self, node: &'p schema::Node, call: Node<'g>) -> Result<()> {
        let mut values = call.outputs();
        if let ([list], [Argument::AsTensors(items)]) = (&values[..], &node.outputs[..]) {
            let types = vec!["Tensor"; items.len()];
            values = self.emit("prim::ListUnpack", &[*list], &types)?.outputs();
        }
        self.bind_all(node, &values)
    }

    /// Gives a node's results their names.
    ///
    /// # Errors
    /// Where there are fewer values than names.
    pub fn bind_all(&mut self, node: &'p schema::Node, values: &[Value<'g>]) -> Result<()> {
        let names = names(&node.outputs)?;
        if names.len() > values.len() {
            return Err(Error::invalid(format!("it has {} results, and {} are named", values.len(), names.len())));
        }
        let mut named = std::iter::zip(names, values).filter_map(|(name, value)| Some((name?, *value)));
        named.try_for_each(|(name, value)| self.bind(name, value))
    }

    /// The tensor that argument `name` is.
    ///
    /// # Errors
    /// Where it is missing or no tensor.
    pub fn tensor_of(&self, node: &schema::Node, name: &str) -> Result<Value<'g>> {
        match given(node, name) {
            Some(Argument::AsTensor(named)) => self.value(&named.name),
            _ => Err(Error::invalid(format!("argument '{name}' should be a tensor"))),
        }
    }
}

/// 0 or 1.
fn number_of<'g>(call: Node<'g>, truth: Value<'g>) -> Result<Value<'g>> {
    let number = output(call.graph().create("aten::Int", &[truth], 1)?.insert_before(call)?)?;
    number.set_type(&Type::parse("int")?)?;
    Ok(number)
}

/// What is filled with a truth value holds truth values, where nothing else is said.
fn set_truth_type(call: Node<'_>, operator: &Operator) -> Result<()> {
    let dtype = operator.arguments.iter().position(|(name, _)| name == "dtype");
    match dtype.and_then(|place| Some((place, call.input(place)?))) {
        Some((place, dtype)) if operator.name == "aten::full" && matches!(dtype.constant(), Some(IValue::None)) => {
            call.replace_input(place, call.insert_constant(DType::Bool as i64)?)
        }
        _ => Ok(()),
    }
}

/// What a node is given under that name.
pub(super) fn given<'n>(node: &'n schema::Node, name: &str) -> Option<&'n Argument> {
    node.inputs.iter().find(|input| input.name == name).map(|input| &input.arg)
}

/// The name that the first result has.
///
/// # Errors
/// Where it has none.
pub(super) fn first_name(node: &schema::Node) -> Result<&str> {
    let first = names(&node.outputs)?.into_iter().next().flatten();
    first.ok_or_else(|| Error::invalid("it has no result"))
}

fn known(code: Option<i64>, what: &str) -> Result<IValue> {
    code.map(IValue::Int).ok_or_else(|| Error::invalid(format!("its {what} is not known")))
}

/// What an argument is, for a message.
fn kind_of(argument: &Argument) -> &'static str {
    match argument {
        Argument::AsGraph(_) => "a graph",
        Argument::AsCustomObj(_) => "an object of a C++ class",
        Argument::AsComplex(_) => "a complex number",
        Argument::AsOperator(_) => "an operator",
        Argument::AsNestedTensors(_) | Argument::AsIntLists(_) | Argument::AsFloatLists(_) => "a list of lists",
        Argument::AsStringToArgument(_) => "a dictionary",
        _ => "a list",
    }
}

fn unknown(target: &str, namespace: &str) -> Error {
    let target = shortened(target);
    Error::invalid(match namespace {
        "aten" | "prims" | "prim" => format!(
            "the operator {target} is not in libtorch {}: in Python, exported.run_decompositions() before the file is saved \
             replaces it by others",
            crate::torch_version()
        ),
        _ => format!(
            "the operator {target} is not in libtorch itself: load the library that defines it first, with --library FILE.so \
             on the command line, or load_library of the C, C++ and Rust API; one that is defined in Python has to be written \
             with torch's own operators"
        ),
    })
}
