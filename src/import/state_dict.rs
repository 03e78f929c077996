//! Tensors that `torch.save` wrote: a zip archive inside the record, with a pickle that names them.
//!
//! The pickle is run on a stack that knows the few things a dictionary of tensors is made of. Anything else, a class of
//! Python's above all, is refused: nothing that a file names is ever looked up or called.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek};
use std::rc::Rc;

use zip::ZipArchive;

use super::weights::{Tensors, View};
use crate::archive::shortened;
use crate::ir::{DType, Tensor};

/// The longest pickle: names and sizes take some hundred bytes a tensor.
const LARGEST_PICKLE: u64 = 1 << 28;

/// Reads a dictionary of tensors.
///
/// # Errors
/// What is wrong with it, or what else it holds.
pub(super) fn read(content: &[u8]) -> Result<Tensors, String> {
    let mut zip = ZipArchive::new(Cursor::new(content)).map_err(|e| format!("it is no file of torch.save ({e})"))?;
    let name = zip.file_names().flatten().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let name = name.ok_or("it is no file of torch.save (it has no data.pkl)")?;
    let name = name.into_owned();
    let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    let pickle = content_of(&mut zip, &name, LARGEST_PICKLE)?;
    let mut storages: BTreeMap<Rc<str>, Tensor> = BTreeMap::new();
    let mut tensors = Tensors::new();
    for (name, stored) in run(&pickle)? {
        let memory = match storages.get(&stored.key) {
            Some(memory) => memory.clone(),
            None => {
                let bytes = content_of(&mut zip, &format!("{folder}data/{}", stored.key), content.len() as u64)?;
                let memory = Tensor::from_slice(&bytes, &[bytes.len() as i64]).map_err(|e| e.to_string())?;
                storages.insert(stored.key.clone(), memory.clone());
                memory
            }
        };
        let tensor = stored.view.on(&memory).map_err(|why| format!("tensor '{}': {why}", shortened(&name)))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

fn content_of(zip: &mut ZipArchive<impl Read + Seek>, name: &str, most: u64) -> Result<Vec<u8>, String> {
    let record = zip.by_name(name).map_err(|e| format!("'{}': {e}", shortened(name)))?;
    if record.size() > most {
        return Err(format!("'{}' is longer than it can need", shortened(name)));
    }
    let (size, mut content) = (record.size(), Vec::new());
    record.take(most + 1).read_to_end(&mut content).map_err(|e| format!("'{}': {e}", shortened(name)))?;
    match content.len() as u64 == size {
        true => Ok(content),
        false => Err(format!("'{}' is shorter than it says", shortened(name))),
    }
}

/// A tensor, and the record of its elements.
#[derive(Clone)]
struct Stored {
    key: Rc<str>,
    view: Rc<View>,
}

/// What lies on the stack.
#[derive(Clone)]
enum Item {
    Mark,
    None,
    Bool,
    Int(i64),
    Str(Rc<str>),
    /// A class or function by its name.
    Global(Rc<str>),
    Tuple(Rc<[Item]>),
    /// An empty dictionary that is not the outermost one: hooks, of which there are none.
    Empty,
    /// The dictionary that is read.
    Root,
    Storage(DType, Rc<str>),
    Tensor(Stored),
}

/// Runs a pickle of protocol 2; names and tensors in the order in which they stand there.
fn run(pickle: &[u8]) -> Result<Vec<(Rc<str>, Stored)>, String> {
    let mut machine =
        Machine { source: pickle, stack: Vec::new(), memo: BTreeMap::new(), entries: Vec::new(), has_root: false };
    while !machine.step()? {}
    Ok(machine.entries)
}

struct Machine<'a> {
    source: &'a [u8],
    stack: Vec<Item>,
    memo: BTreeMap<u32, Item>,
    entries: Vec<(Rc<str>, Stored)>,
    has_root: bool,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.source.split_at_checked(count).ok_or("its pickle ends in the middle")?;
        self.source = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| "its pickle ends in the middle".to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let len = self.source.iter().position(|byte| *byte == b'\n').ok_or("its pickle ends in the middle")?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(&line[..len]).map_err(|_| "a name in its pickle is not UTF-8".to_owned())
    }

    fn text(&mut self, len: usize) -> Result<Item, String> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "a text in its pickle is not UTF-8")?;
        Ok(Item::Str(text.into()))
    }

    fn pop(&mut self) -> Result<Item, String> {
        self.stack.pop().ok_or_else(|| "its pickle takes more than there is".to_owned())
    }

    /// What lies above the last mark.
    fn marked(&mut self) -> Result<Vec<Item>, String> {
        let mark = self.stack.iter().rposition(|item| matches!(item, Item::Mark));
        let items = self.stack.split_off(mark.ok_or("its pickle has no mark")? + 1);
        self.stack.pop();
        Ok(items)
    }

    /// Runs one opcode; whether it was the last.
    fn step(&mut self) -> Result<bool, String> {
        let opcode = self.take(1)?[0];
        let item = match opcode {
            0x80 => {
                self.take(1)?;
                return Ok(false);
            }
            b'.' => return Ok(true),
            b'(' => Item::Mark,
            b'N' => Item::None,
            0x88 | 0x89 => Item::Bool,
            b'K' => Item::Int(i64::from(self.array::<1>()?[0])),
            b'M' => Item::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Item::Int(i64::from(i32::from_le_bytes(self.array()?))),
            0x8a => {
                let len = usize::from(self.array::<1>()?[0]);
                Item::Int(long(self.take(len)?)?)
            }
            b'X' => {
                let len = u32::from_le_bytes(self.array()?);
                self.text(len as usize)?
            }
            b'}' => self.dictionary(),
            b')' => Item::Tuple(Rc::new([])),
            b't' => Item::Tuple(self.marked()?.into()),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(count).ok_or("its pickle takes more than there is")?;
                Item::Tuple(self.stack.split_off(start).into())
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Item::Global(format!("{module}.{name}").into())
            }
            b'q' => {
                let place = u32::from(self.array::<1>()?[0]);
                return self.remember(place);
            }
            b'r' => {
                let place = u32::from_le_bytes(self.array()?);
                return self.remember(place);
            }
            b'h' => {
                let place = u32::from(self.array::<1>()?[0]);
                self.recall(place)?
            }
            b'j' => {
                let place = u32::from_le_bytes(self.array()?);
                self.recall(place)?
            }
            b'Q' => storage(&self.pop()?)?,
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(&function, &arguments)?
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.put(vec![key, value]);
            }
            b'u' => {
                let items = self.marked()?;
                return self.put(items);
            }
            // The attributes of an ordered dictionary (`_metadata` of a state_dict) are of no use here.
            b'b' => {
                self.pop()?;
                return Ok(false);
            }
            _ => {
                return Err(format!(
                    "its pickle has the opcode {opcode:#04x}, which a dictionary of tensors does not need"
                ));
            }
        };
        self.stack.push(item);
        Ok(false)
    }

    /// The first dictionary is the one that is read.
    fn dictionary(&mut self) -> Item {
        match std::mem::replace(&mut self.has_root, true) {
            false => Item::Root,
            true => Item::Empty,
        }
    }

    fn remember(&mut self, place: u32) -> Result<bool, String> {
        let item = self.stack.last().cloned().ok_or("its pickle remembers what is not there")?;
        self.memo.insert(place, item);
        Ok(false)
    }

    fn recall(&self, place: u32) -> Result<Item, String> {
        self.memo.get(&place).cloned().ok_or_else(|| "its pickle recalls what it did not remember".to_owned())
    }

    fn call(&mut self, function: &Item, arguments: &Item) -> Result<Item, String> {
        let Item::Global(name) = function else { return Err("its pickle calls what is no function".to_owned()) };
        let Item::Tuple(arguments) = arguments else { return Err("its pickle calls without arguments".to_owned()) };
        match (&**name, &arguments[..]) {
            ("collections.OrderedDict", []) => Ok(self.dictionary()),
            ("torch._utils._rebuild_tensor_v2", [Item::Storage(dtype, key), Item::Int(offset), sizes, strides, ..]) => {
                let view =
                    View { dtype: *dtype, sizes: integers(sizes)?, strides: integers(strides)?, offset: *offset };
                Ok(Item::Tensor(Stored { key: key.clone(), view: Rc::new(view) }))
            }
            ("torch._utils._rebuild_parameter", [tensor @ Item::Tensor(_), ..]) => Ok(tensor.clone()),
            _ => Err(format!("it holds a '{}', and only tensors are read", shortened(name))),
        }
    }

    fn put(&mut self, items: Vec<Item>) -> Result<bool, String> {
        match self.stack.last() {
            Some(Item::Root) => {}
            Some(Item::Empty) => return Ok(false),
            _ => return Err("its pickle fills what is no dictionary".to_owned()),
        }
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            match (key, items.next()) {
                (Item::Str(name), Some(Item::Tensor(tensor))) => self.entries.push((name, tensor)),
                // Constants may be absent.
                (Item::Str(_), Some(Item::None)) => {}
                (Item::Str(name), _) => return Err(format!("'{}' is no tensor", shortened(&name))),
                _ => return Err("its names are no texts".to_owned()),
            }
        }
        Ok(false)
    }
}

/// `("storage", torch.FloatStorage, key, device, count)`.
fn storage(item: &Item) -> Result<Item, String> {
    let Item::Tuple(parts) = item else { return Err("what names a storage is of another form".to_owned()) };
    let [Item::Str(_), Item::Global(class), Item::Str(key), ..] = &parts[..] else {
        return Err("what names a storage is of another form".to_owned());
    };
    use DType::*;
    let dtype = match class.strip_prefix("torch.").and_then(|class| class.strip_suffix("Storage")) {
        Some("Float") => F32,
        Some("Double") => F64,
        Some("Half") => F16,
        Some("BFloat16") => BF16,
        Some("Long") => I64,
        Some("Int") => I32,
        Some("Short") => I16,
        Some("Char") => I8,
        Some("Byte") => U8,
        Some("Bool") => Bool,
        _ => return Err(format!("elements of '{}' are not read", shortened(class))),
    };
    Ok(Item::Storage(dtype, key.clone()))
}

fn integers(item: &Item) -> Result<Vec<i64>, String> {
    let Item::Tuple(items) = item else { return Err("a size is no tuple".to_owned()) };
    let number = |item: &Item| match item {
        Item::Int(number) => Ok(*number),
        _ => Err("a size is no number".to_owned()),
    };
    items.iter().map(number).collect()
}

/// An integer of up to eight bytes, in two's complement.
fn long(bytes: &[u8]) -> Result<i64, String> {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut all = if negative { [0xff; 8] } else { [0; 8] };
    all.get_mut(..bytes.len()).ok_or("an integer in its pickle is too long")?.copy_from_slice(bytes);
    Ok(i64::from_le_bytes(all))
}
