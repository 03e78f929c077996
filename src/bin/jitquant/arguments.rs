//! Which array or value of the command line is which argument of the model, where arguments are tuples, lists and
//! dictionaries of tensors as well: array `boxes.0` is the first element of `boxes`, `features.p3` the entry `p3` of
//! `features`, `boxes.low` the element of that name of a named tuple, `pyramid.0.scale` the entry `scale` of the first element of `pyramid`.

use anyhow::{Context, Result, bail, ensure};
use jitquant::ir::{DType, IValue, Module, Tensor, Type};

use crate::data::{Array, ArrayData, Given};

/// An argument as the model declares it.
struct Argument {
    name: String,
    ty: Type,
    /// Its value where none is given.
    default: Option<IValue>,
}

/// How an argument's value is made.
#[derive(Debug)]
enum Form {
    /// Of an array, by its place among those of a batch. Whether the argument is a tensor, also where it is one number.
    Array {
        place: usize,
        is_tensor: bool,
    },
    /// The same for every batch.
    Fixed(IValue),
    Tuple(Vec<Form>),
    List {
        element: String,
        items: Vec<Form>,
    },
    Dict {
        key: String,
        value: String,
        items: Vec<(IValue, Form)>,
    },
}

/// How the model's arguments are made of a batch.
pub struct Arguments {
    forms: Vec<Form>,
    /// The names that arrays are wanted under, in order.
    arrays: Vec<String>,
    /// How many of them, from the first, cannot be missing.
    required: usize,
}

impl Arguments {
    /// For the method `method` of `model`, from data that has arrays of these names.
    ///
    /// # Errors
    /// Where a value that was given is for no argument or of another type, or the arrays do not tell what a list or a
    /// dictionary holds.
    pub fn of(model: &Module, method: &str, names: &[String], given: &[Given]) -> Result<Self> {
        let schema = model.schema(method)?;
        let mut arguments = Vec::new();
        for (index, argument) in schema.arguments.iter().enumerate().skip(1) {
            let of_graph = || {
                let ty = model.graph(method).ok()?.inputs().get(index)?.type_of();
                (ty.kind() == "TupleType").then_some(ty)
            };
            let ty = Type::parse(&argument.type_name).ok().or_else(of_graph);
            let default = argument.has_default.then(|| model.argument_default(method, index)).transpose()?;
            arguments.push((argument, ty, default));
        }
        let mut plan = Self { forms: Vec::new(), arrays: Vec::new(), required: 0 };
        for value in given {
            let is_known = arguments.iter().any(|(argument, ..)| is_part_of(&value.name, &argument.name));
            let all: Vec<_> = arguments.iter().map(|(argument, ..)| argument.name.as_str()).collect();
            ensure!(is_known, "--input {}: the model's arguments are {}", value.name, all.join(", "));
        }
        let tensor = || Type::parse("Tensor");
        let mut open = Vec::new();
        for (argument, ty, default) in arguments {
            // A class of the model's own cannot be named; it is given as it is. Named tuples are known to the graph.
            let ty = ty.map_or_else(tensor, Ok)?;
            open.push(Argument { name: argument.name.clone(), ty, default });
        }
        // Where every array has the name of an argument, those that have a default value may be missing anywhere.
        let wanted = |name: &String| open.iter().any(|argument| is_part_of(name, &argument.name));
        let by_name = !names.is_empty() && names.iter().filter(|name| !is_label(name)).all(wanted);
        let last = open.iter().rposition(|argument| {
            argument.default.is_none()
                || names.iter().any(|name| is_part_of(name, &argument.name))
                || given.iter().any(|value| is_part_of(&value.name, &argument.name))
        });
        let kept = if by_name || !given.is_empty() { last.map_or(0, |last| last + 1) } else { open.len() };
        let is_given = |argument: &Argument| given.iter().any(|value| is_part_of(&value.name, &argument.name));
        for (index, argument) in open[..kept].iter().enumerate() {
            let is_there = names.iter().any(|name| is_part_of(name, &argument.name)) || is_given(argument);
            let is_left_out = !is_there && (by_name || open[index + 1..kept].iter().any(is_given));
            if let Some(default) = argument.default.as_ref().filter(|_| is_left_out) {
                plan.forms.push(Form::Fixed(default.clone()));
                continue;
            }
            let before = plan.arrays.len();
            let optional = argument.default.is_some() && !is_there;
            match plan.form(&argument.name, &argument.ty, names, given) {
                Ok(form) => plan.forms.push(form),
                // Nothing that follows can be given without it.
                Err(_) if optional => {
                    plan.arrays.truncate(before);
                    break;
                }
                Err(e) => return Err(e),
            }
            if !optional {
                plan.required = plan.arrays.len();
            }
        }
        Ok(plan)
    }

    /// The names that arrays are wanted under.
    pub fn arrays(&self) -> Vec<&str> {
        self.arrays.iter().map(String::as_str).collect()
    }

    pub fn required(&self) -> usize {
        self.required
    }

    fn form(&mut self, name: &str, ty: &Type, names: &[String], given: &[Given]) -> Result<Form> {
        let (inner, is_optional) = match ty.kind().as_str() {
            "OptionalType" => (ty.contained().into_iter().next(), true),
            _ => (None, false),
        };
        let ty = inner.as_ref().unwrap_or(ty);
        if let Some(value) = given.iter().find(|value| value.name == name) {
            let annotation = ty.annotation();
            let parsed = match value.value.to_lowercase().as_str() {
                "none" if is_optional => IValue::None,
                _ => parse(&value.value, ty)
                    .with_context(|| format!("--input {name}={}: not of type {annotation}", value.value))?,
            };
            return Ok(Form::Fixed(parsed));
        }
        match ty.kind().as_str() {
            "TupleType" => {
                let fields = ty.field_names();
                let field = |index: usize| fields.get(index).cloned().unwrap_or_else(|| index.to_string());
                let parts = ty.contained().into_iter().enumerate();
                let parts = parts.map(|(index, ty)| self.form(&format!("{name}.{}", field(index)), &ty, names, given));
                Ok(Form::Tuple(parts.collect::<Result<_>>()?))
            }
            "ListType" if has_arrays(ty) => {
                let element = ty.contained().into_iter().next().context("a list has an element type")?;
                let keys = keys(name, names, given);
                let mut indices: Vec<usize> = keys.iter().filter_map(|key| key.parse().ok()).collect();
                indices.sort_unstable();
                ensure!(
                    !indices.is_empty() && indices.len() == keys.len() && indices.iter().copied().eq(0..indices.len()),
                    "argument `{name}` is {}: name its arrays {name}.0, {name}.1 and so on",
                    ty.annotation()
                );
                let items = indices.iter().map(|index| self.form(&format!("{name}.{index}"), &element, names, given));
                Ok(Form::List { element: element.annotation(), items: items.collect::<Result<_>>()? })
            }
            "DictType" => {
                let [key, value] = &ty.contained()[..] else { bail!("argument `{name}` is {}", ty.annotation()) };
                let keys = keys(name, names, given);
                ensure!(
                    !keys.is_empty(),
                    "argument `{name}` is {}: name its arrays {name}.KEY, one for each key",
                    ty.annotation()
                );
                let mut items = Vec::new();
                for text in keys {
                    let entry = parse(&text, key).with_context(|| format!("`{text}` as a key of `{name}`"))?;
                    items.push((entry, self.form(&format!("{name}.{text}"), value, names, given)?));
                }
                Ok(Form::Dict { key: key.annotation(), value: value.annotation(), items })
            }
            "ListType" | "StringType" | "DeviceObjType" => {
                bail!("argument `{name}` is {}, which no array is: give it with --input {name}=VALUE", ty.annotation())
            }
            kind => {
                self.arrays.push(name.to_owned());
                Ok(Form::Array { place: self.arrays.len() - 1, is_tensor: kind == "TensorType" })
            }
        }
    }

    /// The model's arguments, of the arrays that were bound: those behind the last one that is there are left out.
    pub fn inputs(&self, arrays: &[Array]) -> Result<Vec<IValue>> {
        let mut inputs = Vec::new();
        for form in &self.forms {
            match form.value(arrays)? {
                Some(value) => inputs.push(value),
                None => break,
            }
        }
        Ok(inputs)
    }
}

impl Form {
    /// `None` where an array is missing: an argument with a default value, then.
    fn value(&self, arrays: &[Array]) -> Result<Option<IValue>> {
        let all = |forms: &[Form]| -> Result<Option<Vec<IValue>>> {
            forms.iter().map(|form| form.value(arrays)).collect::<Result<Option<Vec<_>>>>()
        };
        Ok(match self {
            Self::Array { place, is_tensor } => {
                arrays.get(*place).map(|array| to_input(array, *is_tensor)).transpose()?
            }
            Self::Fixed(value) => Some(value.clone()),
            Self::Tuple(items) => all(items)?.map(IValue::Tuple),
            Self::List { element, items } => all(items)?.map(|items| IValue::List { element: element.clone(), items }),
            Self::Dict { key, value, items } => {
                let mut filled = Vec::new();
                for (entry, form) in items {
                    let Some(value) = form.value(arrays)? else { return Ok(None) };
                    filled.push((entry.clone(), value));
                }
                Some(IValue::Dict { key: key.clone(), value: value.clone(), items: filled })
            }
        })
    }
}

/// Whether `name` is the argument, or a part of it.
fn is_part_of(name: &str, argument: &str) -> bool {
    name.strip_prefix(argument).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn is_label(name: &str) -> bool {
    crate::data::LABEL_NAMES.iter().any(|label| name.eq_ignore_ascii_case(label))
}

/// Whether tensors are somewhere in values of that type.
fn has_arrays(ty: &Type) -> bool {
    ty.is_tensor() || ty.contained().iter().any(has_arrays)
}

/// What stands behind `name.`, up to the next point, in names of arrays and of given values: each once, in order.
fn keys(name: &str, names: &[String], given: &[Given]) -> Vec<String> {
    let all = names.iter().chain(given.iter().map(|value| &value.name));
    let mut keys: Vec<String> = Vec::new();
    for part in all.filter_map(|known| known.strip_prefix(name)?.strip_prefix('.')) {
        let key = part.split('.').next().unwrap_or(part).to_owned();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// A value in words, as a value of that type.
fn parse(text: &str, ty: &Type) -> Result<IValue> {
    let number = || text.parse::<f64>().ok().filter(|number| number.is_finite());
    let integer = || text.parse::<i64>().ok();
    let truth = || match text.to_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    };
    let items = |types: &mut dyn Iterator<Item = Type>| -> Result<Vec<IValue>> {
        let parts =
            text.trim_matches(|c| "[]() ".contains(c)).split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| parse(part, &types.next().context("more numbers than it has")?)).collect()
    };
    let value = match ty.kind().as_str() {
        "IntType" => integer().map(IValue::Int),
        "FloatType" => number().map(IValue::Double),
        "BoolType" => truth().map(IValue::Bool),
        "NumberType" => integer().map(IValue::Int).or_else(|| number().map(IValue::Double)),
        "StringType" => Some(IValue::Str(text.to_owned())),
        "DeviceObjType" => Some(IValue::Device(text.to_owned())),
        "NoneType" => (text.eq_ignore_ascii_case("none")).then_some(IValue::None),
        "TensorType" => Some(IValue::Tensor(match (integer(), number(), truth()) {
            (Some(value), ..) => Tensor::from_slice(&[value], &[])?,
            (_, Some(value), _) => Tensor::from_slice(&[value as f32], &[])?,
            (.., Some(value)) => Tensor::from_bytes(DType::Bool, &[], &[u8::from(value)])?,
            _ => bail!("a number is expected"),
        })),
        "ListType" => {
            let element = ty.contained().into_iter().next().context("a list has an element type")?;
            let annotation = element.annotation();
            let mut types = std::iter::repeat_with(|| Type::parse(&annotation)).map_while(jitquant::Result::ok);
            Some(IValue::List { element: element.annotation(), items: items(&mut types)? })
        }
        "TupleType" => {
            let types = ty.contained();
            let count = types.len();
            let items = items(&mut types.into_iter())?;
            ensure!(items.len() == count, "{count} values are expected, {} are given", items.len());
            Some(IValue::Tuple(items))
        }
        _ => None,
    };
    value.context("it cannot be read as one")
}

/// An array as the model takes it; one number where it has no dimensions and no tensor is asked for.
fn to_input(array: &Array, is_tensor: bool) -> Result<IValue> {
    if array.shape.is_empty() && !is_tensor {
        return number(&array.data).with_context(|| format!("array `{}` is no number", array.name));
    }
    let shape: Vec<i64> = array.shape.iter().map(|&size| size as i64).collect();
    let tensor = match &array.data {
        ArrayData::F32(values) => Tensor::from_slice(values, &shape),
        ArrayData::F64(values) => Tensor::from_slice(values, &shape),
        ArrayData::I64(values) => Tensor::from_slice(values, &shape),
        ArrayData::I32(values) => Tensor::from_slice(values, &shape),
        ArrayData::I16(values) => Tensor::from_slice(values, &shape),
        ArrayData::I8(values) => Tensor::from_slice(values, &shape),
        ArrayData::U8(values) => Tensor::from_slice(values, &shape),
        ArrayData::Bool(values) => {
            let bytes: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
            Tensor::from_bytes(DType::Bool, &shape, &bytes)
        }
    };
    Ok(IValue::Tensor(tensor?))
}

fn number(data: &ArrayData) -> Option<IValue> {
    Some(match data {
        ArrayData::F32(values) => f64::from(*values.first()?).into(),
        ArrayData::F64(values) => (*values.first()?).into(),
        ArrayData::I64(values) => (*values.first()?).into(),
        ArrayData::I32(values) => i64::from(*values.first()?).into(),
        ArrayData::I16(values) => i64::from(*values.first()?).into(),
        ArrayData::I8(values) => i64::from(*values.first()?).into(),
        ArrayData::U8(values) => i64::from(*values.first()?).into(),
        ArrayData::Bool(values) => (*values.first()?).into(),
    })
}
