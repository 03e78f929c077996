//! Telling models apart by their content.

use crate::error::Result;
use crate::ir::{IValue, Module};

/// A number that models of the same code and the same weights share, however and from where they were loaded, in every
/// process: FNV-1a over modules, attributes, tensors and graphs.
pub(crate) fn fingerprint(module: &Module) -> Result<u64> {
    fingerprint_of(module, |_| true)
}

/// The same of the modules in it whose paths `counts` takes.
pub(crate) fn fingerprint_of(module: &Module, counts: impl Fn(&str) -> bool) -> Result<u64> {
    let mut hash = Fnv::default();
    for (path, part) in module.modules().into_iter().filter(|(path, _)| counts(path)) {
        hash.text(&path);
        for attribute in part.attributes() {
            hash.text(&attribute.name);
            match part.attribute(&attribute.name)? {
                IValue::Tensor(tensor) if tensor.is_defined() && tensor.nbytes() > 0 => {
                    hash.bytes(&tensor.raw_bytes()?)
                }
                IValue::Int(number) => hash.bytes(&number.to_le_bytes()),
                IValue::Double(number) => hash.bytes(&number.to_le_bytes()),
                IValue::Bool(truth) => hash.bytes(&[truth.into()]),
                IValue::Str(text) => hash.text(&text),
                _ => {}
            }
        }
        for method in part.method_names() {
            hash.text(&unmangled(&part.graph(&method)?.to_string()));
        }
    }
    Ok(hash.0)
}

/// A printed graph without the numbers that tell classes of one name apart: they depend on what was loaded before.
pub(crate) fn unmangled(text: &str) -> String {
    let mut parts = text.split("___torch_mangle_");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('.'));
    }
    plain
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
pub(crate) struct Fnv(pub u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A text and its end.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        let mut hash = Fnv::default();
        hash.bytes(b"foobar");
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
    }

    #[test]
    fn class_numbers_do_not_count() {
        let text = "graph(%self : __torch__.___torch_mangle_7.Net, %x : Tensor):";
        assert_eq!(unmangled(text), "graph(%self : __torch__.Net, %x : Tensor):");
        assert_eq!(unmangled("nothing"), "nothing");
    }
}
