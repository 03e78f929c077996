//! The pickles of a TorchScript archive, run on a stack that knows what kind of value lies where.
//!
//! libtorch writes protocol 2 with some thirty opcodes, and its reader takes a function's number for what it is only by
//! being an integer, pairs of a dictionary without counting them, and a storage's size as it is said. Here every opcode
//! finds the kinds of values that the writer puts before it, or the pickle is refused.

mod machine;
mod structure;

use std::collections::BTreeSet;

use machine::Machine;

/// What a pickle holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// An instance of a class: a module, for one.
    Object,
    /// A tuple.
    Tuple,
    /// Something else.
    Other,
}

impl Root {
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "module",
            Self::Tuple => "tuple of constants",
            Self::Other => "value",
        }
    }
}

/// Runs a pickle; `record_size` says how many bytes the record has that a tensor's elements are in. What it holds, and the
/// devices that tensors in it were saved from.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(
    content: &[u8],
    record_size: impl Fn(&str) -> Option<u64>,
) -> Result<(Root, BTreeSet<String>), String> {
    let mut machine = Machine::new(&record_size);
    let mut source = Source { content, position: 0 };
    let start = (source.byte()?, source.byte()?);
    if start != (0x80, 2) {
        return Err("it is no pickle of protocol 2".to_owned());
    }
    loop {
        let position = source.position;
        let opcode = source.byte()?;
        if opcode == b'.' {
            return Ok((machine.finish()?, machine.devices));
        }
        machine.run(opcode, &mut source).map_err(|why| format!("{why} (at byte {position})"))?;
    }
}

/// The bytes of a pickle that are left.
struct Source<'a> {
    content: &'a [u8],
    position: usize,
}

impl<'a> Source<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(count);
        let found = end.and_then(|end| self.content.get(self.position..end));
        let found = found.ok_or_else(|| "it ends in the middle".to_owned())?;
        self.position += count;
        Ok(found)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.bytes(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// Text up to a line feed, as names of classes are written.
    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.content[self.position..];
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or("a name has no end")?;
        let line = self.bytes(len + 1)?;
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.".contains(byte);
        match line[..len].iter().all(is_name) {
            true => std::str::from_utf8(&line[..len]).map_err(|_| "a name is not UTF-8".to_owned()),
            false => Err("a name holds what no name has".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
