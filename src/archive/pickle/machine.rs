//! The stack machine: what each opcode does to the values.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::structure::{Containers, Id};
use super::{Root, Source};
use crate::archive::shortened;
use crate::archive::tensor::{Element, Storage};

/// What lies on the stack. Containers are kept apart: a value may stand in several places, and be filled later.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Complex,
    Str(Rc<str>),
    Device,
    /// A storage's class, which says the element type.
    StorageClass(Element),
    /// A way of quantizing, by name.
    Scheme(Scheme),
    Storage(Storage),
    /// A tensor, and its sizes.
    Tensor(Rc<[i64]>),
    /// Something to be called.
    Function(Function),
    Tuple(Id),
    List(Id),
    Dict(Id),
    Object(Id),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    PerTensor,
    PerChannel,
    Other,
}

/// What a pickle may call.
#[derive(Clone, Debug)]
pub(super) enum Function {
    /// Makes an instance of a class of the archive's code.
    Class,
    /// Gives a list the type of its elements.
    TypedList(ElementKind),
    /// Gives a list or a dictionary its type.
    TypeTag,
    Tensor,
    QuantizedTensor,
    SparseTensor,
    Complex,
    /// Stands for a tensor's hooks, of which there are none.
    OrderedDict,
    Device,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementKind {
    Int,
    Tensor,
    Float,
    Bool,
}

/// How long a text may be that says a type, and how deeply it may nest.
const TYPE_LEN: usize = 1 << 16;
const TYPE_DEPTH: usize = 64;

pub(super) struct Machine<'a> {
    record_size: &'a dyn Fn(&str) -> Option<u64>,
    containers: Containers,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    /// Where tensors were saved from.
    pub devices: BTreeSet<String>,
}

impl<'a> Machine<'a> {
    pub fn new(record_size: &'a dyn Fn(&str) -> Option<u64>) -> Self {
        Self {
            record_size,
            containers: Containers::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            devices: BTreeSet::new(),
        }
    }

    /// What is left when the pickle stops.
    pub fn finish(&mut self) -> Result<Root, String> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err("it stops with values left over".to_owned());
        }
        self.containers.check()?;
        match root {
            Value::Object(_) => Ok(Root::Object),
            Value::Tuple(_) => Ok(Root::Tuple),
            Value::Function(_) => Err("it holds a function alone".to_owned()),
            _ => Ok(Root::Other),
        }
    }

    /// Runs one opcode, whose argument `source` has.
    pub fn run(&mut self, opcode: u8, source: &mut Source<'_>) -> Result<(), String> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'K' => Value::Int(source.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(source.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(source.array()?).into()),
            0x8a => match source.byte()? {
                8 => Value::Int(i64::from_le_bytes(source.array()?)),
                len => return Err(format!("an integer of {len} bytes")),
            },
            b'G' => {
                source.bytes(8)?;
                Value::Float
            }
            b'X' => {
                let len = u32::from_le_bytes(source.array()?) as usize;
                // libtorch's texts need not be UTF-8; names of records and types are ASCII.
                Value::Str(String::from_utf8_lossy(source.bytes(len)?).into())
            }
            b']' => Value::List(self.containers.add(Vec::new())),
            b'}' => Value::Dict(self.containers.add(Vec::new())),
            b')' => Value::Tuple(self.containers.add(Vec::new())),
            b't' => {
                let items = self.take_marked()?;
                self.tuple(items)?
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(count).ok_or("a tuple of more values than there are")?;
                self.ensure_unmarked(start)?;
                let items = self.stack.split_off(start);
                self.tuple(items)?
            }
            b'l' => {
                let items = self.take_marked()?;
                ensure_values(&items)?;
                Value::List(self.containers.add(items))
            }
            b'd' => {
                let items = self.take_marked()?;
                ensure_pairs(&items)?;
                Value::Dict(self.containers.add(items))
            }
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            b'e' => {
                let items = self.take_marked()?;
                ensure_values(&items)?;
                return match self.stack.last() {
                    Some(Value::List(list)) => self.containers.extend(*list, items),
                    _ => Err("values are appended to what is no list".to_owned()),
                };
            }
            b'u' => {
                let items = self.take_marked()?;
                return self.put_items(items);
            }
            b's' => {
                let start = self.stack.len().checked_sub(2).ok_or("an item without a dictionary")?;
                self.ensure_unmarked(start)?;
                let items = self.stack.split_off(start);
                return self.put_items(items);
            }
            b'q' => return self.remember(source.byte()?.into()),
            b'r' => return self.remember(u32::from_le_bytes(source.array()?) as usize),
            b'h' => self.remembered(source.byte()?.into())?,
            b'j' => self.remembered(u32::from_le_bytes(source.array()?) as usize)?,
            b'c' => {
                let (module, class) = (source.line()?, source.line()?);
                global(module, class)?
            }
            0x81 => {
                // An instance is made where its state is known; what stands here is always an empty tuple.
                return match (self.pop()?, self.stack.last()) {
                    (Value::Tuple(_), Some(Value::Function(Function::Class))) => Ok(()),
                    _ => Err("an instance of what is no class".to_owned()),
                };
            }
            b'b' | b'R' => {
                let argument = self.pop()?;
                match self.pop()? {
                    Value::Function(function) => self.call(&function, argument)?,
                    _ => return Err("a call of what is no function".to_owned()),
                }
            }
            b'Q' => {
                let key = self.pop()?;
                let (storage, device) = self.storage(&key)?;
                self.devices.insert(device.to_string());
                storage
            }
            other => return Err(format!("opcode {other} is none that libtorch writes")),
        };
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.ensure_unmarked(self.stack.len().saturating_sub(1))?;
        self.stack.pop().ok_or_else(|| "a value is missing on the stack".to_owned())
    }

    /// Values are not taken from behind a mark.
    fn ensure_unmarked(&self, start: usize) -> Result<(), String> {
        match self.marks.last() {
            Some(mark) if *mark > start => Err("a value is missing on the stack".to_owned()),
            _ => Ok(()),
        }
    }

    fn take_marked(&mut self) -> Result<Vec<Value>, String> {
        let start = self.marks.pop().ok_or("a mark is missing")?;
        // No opcode takes what lies below the last mark, so the stack is at least as long.
        Ok(self.stack.split_off(start))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Result<Value, String> {
        ensure_values(&items)?;
        Ok(Value::Tuple(self.containers.add(items)))
    }

    fn put_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        ensure_pairs(&items)?;
        match self.stack.last() {
            Some(Value::Dict(dict)) => self.containers.extend(*dict, items),
            _ => Err("items are put into what is no dictionary".to_owned()),
        }
    }

    /// The writer numbers what it remembers from 0; libtorch makes room up to any number.
    fn remember(&mut self, number: usize) -> Result<(), String> {
        let value = self.stack.last().ok_or("nothing is there to remember")?.clone();
        if number > self.memo.len() + 256 {
            return Err(format!("number {number} of the memo, which has {}", self.memo.len()));
        }
        if number >= self.memo.len() {
            self.memo.resize(number + 1, None);
        }
        self.memo[number] = Some(value);
        Ok(())
    }

    fn remembered(&self, number: usize) -> Result<Value, String> {
        let found = self.memo.get(number).and_then(Option::as_ref);
        found.cloned().ok_or_else(|| format!("number {number} of the memo, where nothing is"))
    }

    fn items(&self, value: &Value, what: &str) -> Result<&[Value], String> {
        match value {
            Value::Tuple(id) => Ok(self.containers.items(*id)),
            _ => Err(format!("{what} is no tuple")),
        }
    }

    fn integers(&self, value: &Value) -> Result<Rc<[i64]>, String> {
        let integer = |value: &Value| match value {
            Value::Int(value) => Ok(*value),
            _ => Err("a tensor's size or stride is no integer".to_owned()),
        };
        self.items(value, "what says a tensor's sizes")?.iter().map(integer).collect()
    }

    /// `("storage", class, record, device, elements)`
    fn storage(&self, key: &Value) -> Result<(Value, Rc<str>), String> {
        match self.items(key, "what names a storage")? {
            [
                Value::Str(kind),
                Value::StorageClass(element),
                Value::Str(record),
                Value::Str(device),
                Value::Int(len),
                ..,
            ] if kind.as_ref() == "storage" => {
                let named = |why| format!("record '{}': {why}", shortened(record));
                let is_plain = !record.contains("..") && !record.contains(':');
                if !is_plain {
                    return Err(named("no name of a record".to_owned()));
                }
                let storage = Storage::new(*element, *len, (self.record_size)(record)).map_err(named)?;
                Ok((Value::Storage(storage), Rc::clone(device)))
            }
            _ => Err("what names a storage is of another form".to_owned()),
        }
    }

    fn call(&mut self, function: &Function, argument: Value) -> Result<Value, String> {
        if matches!(argument, Value::Function(_)) {
            return Err("a function is given to a function".to_owned());
        }
        match function {
            Function::Class => return Ok(Value::Object(self.containers.add(vec![argument]))),
            Function::OrderedDict => return Ok(Value::None),
            _ => {}
        }
        let arguments = self.items(&argument, "what a function is given")?;
        match (function, arguments) {
            (Function::TypedList(kind), [Value::List(list), ..]) => {
                let items = self.containers.items(*list);
                match items.iter().all(|item| kind.takes(item)) {
                    true => Ok(Value::List(*list)),
                    false => Err("a list holds another type than it says".to_owned()),
                }
            }
            (Function::TypeTag, [container @ (Value::List(_) | Value::Dict(_)), Value::Str(tag), ..]) => {
                ensure_type_tag(tag, matches!(container, Value::List(_)))?;
                Ok(container.clone())
            }
            (Function::Complex, [Value::Float, Value::Float]) => Ok(Value::Complex),
            (Function::Device, [Value::Str(_), ..]) => Ok(Value::Device),
            (Function::Tensor, [Value::Storage(storage), Value::Int(offset), sizes, strides, Value::Bool, _, ..]) => {
                self.view(storage, *offset, sizes, strides)
            }
            (
                Function::QuantizedTensor,
                [Value::Storage(storage), Value::Int(offset), sizes, strides, scales, Value::Bool, _, ..],
            ) => {
                let scales = self.items(scales, "what says how a tensor is quantized")?;
                self.quantized(storage, *offset, (sizes, strides), scales)
            }
            (Function::SparseTensor, [Value::Int(_), sizes, Value::Bool, parts @ ..]) => {
                let sizes = self.integers(sizes)?;
                // Indices and values; behind them stand the hooks.
                let are_tensors = (2..=3).contains(&parts.iter().take_while(|part| is_tensor(part)).count());
                match are_tensors && sizes.iter().all(|size| *size >= 0) {
                    true => Ok(Value::Tensor(sizes)),
                    false => Err("a sparse tensor is of another form".to_owned()),
                }
            }
            _ => Err(format!("{function:?} is given other values than it takes")),
        }
    }

    fn view(&self, storage: &Storage, offset: i64, sizes: &Value, strides: &Value) -> Result<Value, String> {
        let (sizes, strides) = (self.integers(sizes)?, self.integers(strides)?);
        storage.check_view(offset, &sizes, &strides)?;
        Ok(Value::Tensor(sizes))
    }

    /// With one scale, or with one for each index of an axis.
    fn quantized(
        &self,
        storage: &Storage,
        offset: i64,
        (sizes, strides): (&Value, &Value),
        scales: &[Value],
    ) -> Result<Value, String> {
        let tensor = self.view(storage, offset, sizes, strides)?;
        let Value::Tensor(sizes) = &tensor else { return Ok(tensor) };
        let fits = match scales {
            [Value::Scheme(Scheme::PerTensor), Value::Float, Value::Int(_)] => true,
            [Value::Scheme(Scheme::PerChannel), Value::Tensor(scales), Value::Tensor(offsets), Value::Int(axis)] => {
                let len = usize::try_from(*axis).ok().and_then(|axis| sizes.get(axis));
                len.is_some_and(|len| **scales == [*len] && **offsets == [*len])
            }
            _ => false,
        };
        match fits {
            true => Ok(tensor),
            false => Err("a tensor's scales and offsets do not fit it".to_owned()),
        }
    }
}

impl ElementKind {
    fn takes(self, value: &Value) -> bool {
        match self {
            Self::Int => matches!(value, Value::Int(_)),
            Self::Tensor => is_tensor(value),
            Self::Float => matches!(value, Value::Float),
            Self::Bool => matches!(value, Value::Bool),
        }
    }
}

fn is_tensor(value: &Value) -> bool {
    // A tensor that is a whole storage is written as one.
    matches!(value, Value::Tensor(_) | Value::Storage(_))
}

/// Functions stand where they are called, and nowhere else: libtorch has them as integers.
fn ensure_values(items: &[Value]) -> Result<(), String> {
    match items.iter().any(|item| matches!(item, Value::Function(_))) {
        true => Err("a function stands where a value is expected".to_owned()),
        false => Ok(()),
    }
}

fn ensure_pairs(items: &[Value]) -> Result<(), String> {
    match items.len() % 2 {
        0 => ensure_values(items),
        _ => Err("a dictionary has a key without a value".to_owned()),
    }
}

/// `List[…]` for a list and `Dict[…]` for a dictionary.
fn ensure_type_tag(tag: &str, is_list: bool) -> Result<(), String> {
    let mut depth = 0;
    let mut deepest = 0;
    for byte in tag.bytes() {
        depth += usize::from(b"[(".contains(&byte));
        deepest = deepest.max(depth);
        depth = depth.saturating_sub(usize::from(b"])".contains(&byte)));
    }
    let kind = if is_list { "List[" } else { "Dict[" };
    match tag.starts_with(kind) && depth == 0 && deepest <= TYPE_DEPTH && tag.len() <= TYPE_LEN {
        true => Ok(()),
        false => Err(format!("'{}' is no type of a list or dictionary", shortened(tag))),
    }
}

/// What a pickle names.
fn global(module: &str, class: &str) -> Result<Value, String> {
    let function = match (module, class) {
        ("torch.jit._pickle", "build_intlist") => Function::TypedList(ElementKind::Int),
        ("torch.jit._pickle", "build_tensorlist") => Function::TypedList(ElementKind::Tensor),
        ("torch.jit._pickle", "build_doublelist") => Function::TypedList(ElementKind::Float),
        ("torch.jit._pickle", "build_boollist") => Function::TypedList(ElementKind::Bool),
        ("torch.jit._pickle", "restore_type_tag") => Function::TypeTag,
        ("torch._utils", "_rebuild_tensor_v2") => Function::Tensor,
        ("torch._utils", "_rebuild_qtensor") => Function::QuantizedTensor,
        ("torch._utils", "_rebuild_sparse_tensor") => Function::SparseTensor,
        ("builtins", "complex") => Function::Complex,
        ("collections", "OrderedDict") => Function::OrderedDict,
        ("torch", "device") => Function::Device,
        ("torch", "per_tensor_affine") => return Ok(Value::Scheme(Scheme::PerTensor)),
        ("torch", "per_channel_affine" | "per_channel_affine_float_qparams") => {
            return Ok(Value::Scheme(Scheme::PerChannel));
        }
        ("torch", "per_tensor_symmetric" | "per_channel_symmetric") => return Ok(Value::Scheme(Scheme::Other)),
        ("torch", class) => match Element::of_storage(class) {
            Some(element) => return Ok(Value::StorageClass(element)),
            None => return Err(format!("'torch.{}' is nothing that a model holds", shortened(class))),
        },
        (module, _) if module == "__torch__" || module.starts_with("__torch__.") => Function::Class,
        _ => {
            let name = shortened(&format!("{module}.{class}"));
            return Err(format!("'{name}' is no class of the model's code"));
        }
    };
    Ok(Value::Function(function))
}
