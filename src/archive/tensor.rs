//! A tensor's sizes and strides against the record that holds its elements.

/// Element types by the name of their storage, with the bytes of one, and how many values share a byte.
const ELEMENTS: &[(&str, u64)] = &[
    ("Double", 8),
    ("Float", 4),
    ("Half", 2),
    ("BFloat16", 2),
    ("Long", 8),
    ("Int", 4),
    ("Short", 2),
    ("Char", 1),
    ("Byte", 1),
    ("Bool", 1),
    ("UInt16", 2),
    ("UInt32", 4),
    ("UInt64", 8),
    ("ComplexHalf", 4),
    ("ComplexFloat", 8),
    ("ComplexDouble", 16),
    ("QUInt8", 1),
    ("QInt8", 1),
    ("QInt32", 4),
    ("QUInt4x2", 1),
    ("QUInt2x4", 1),
    ("Bits1x8", 1),
    ("Bits2x4", 1),
    ("Bits4x2", 1),
    ("Bits8", 1),
    ("Bits16", 2),
    ("Float8_e5m2", 1),
    ("Float8_e4m3fn", 1),
    ("Float8_e5m2fnuz", 1),
    ("Float8_e4m3fnuz", 1),
    ("Float8_e8m0fnu", 1),
    ("Float4_e2m1fn_x2", 1),
];

/// The type of a storage's elements: what a pickle calls `torch.FloatStorage` is `Float`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    name: &'static str,
    bytes: u64,
}

impl Element {
    /// By the name of its storage class.
    pub fn of_storage(class: &str) -> Option<Self> {
        let name = class.strip_suffix("Storage")?;
        ELEMENTS.iter().find(|(known, _)| *known == name).map(|(name, bytes)| Self { name, bytes: *bytes })
    }

    /// How many values share an element.
    fn values(self) -> u64 {
        match self.name {
            "QUInt4x2" => 2,
            "QUInt2x4" => 4,
            _ => 1,
        }
    }
}

/// The elements that a record holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub element: Element,
    pub len: u64,
}

impl Storage {
    /// `len` elements that are said to be in a record of `bytes` bytes, `None` where there is no such record.
    pub fn new(element: Element, len: i64, bytes: Option<u64>) -> Result<Self, String> {
        let Ok(len) = u64::try_from(len) else { return Err(format!("a storage of {len} elements")) };
        let needed = len.checked_mul(element.bytes).filter(|bytes| i64::try_from(*bytes).is_ok());
        let Some(needed) = needed else { return Err(format!("a storage of {len} elements")) };
        match bytes {
            // libtorch does not look for the record of an empty storage.
            _ if len == 0 => {}
            None => return Err("the record of a tensor's elements is missing".to_owned()),
            Some(bytes) if bytes < needed => {
                return Err(format!(
                    "a tensor's elements take {needed} bytes, and the record that holds them has {bytes}"
                ));
            }
            Some(_) => {}
        }
        Ok(Self { element, len })
    }

    /// Whether a tensor of these sizes and strides lies inside.
    pub fn check_view(&self, offset: i64, sizes: &[i64], strides: &[i64]) -> Result<(), String> {
        let len = self.len.saturating_mul(self.element.values());
        match end_of_view(offset, sizes, strides)? <= len {
            true => Ok(()),
            false => {
                Err(format!("{} goes beyond the {len} elements of its storage", described(offset, sizes, strides)))
            }
        }
    }
}

/// One more than the place of a tensor's last element, 0 where it has none; sizes, strides and the offset count elements.
///
/// # Errors
/// Why no tensor can have these.
pub(crate) fn end_of_view(offset: i64, sizes: &[i64], strides: &[i64]) -> Result<u64, String> {
    let described = || described(offset, sizes, strides);
    if sizes.len() != strides.len() {
        return Err(format!("{} does not have as many of these as of those", described()));
    }
    if sizes.iter().chain(strides).chain([&offset]).any(|number| *number < 0) {
        return Err(format!("{}: none of these can be negative", described()));
    }
    let wrapped = || format!("{} is larger than any memory", described());
    let count = sizes.iter().try_fold(1i64, |count, size| count.checked_mul(*size));
    // libtorch multiplies all sizes, in whatever order, and by the bytes of an element.
    let all = sizes.iter().try_fold(16i64, |count, size| count.checked_mul((*size).max(1)));
    let (Some(count), Some(_)) = (count, all) else { return Err(wrapped()) };
    let last = sizes.iter().zip(strides).try_fold(offset, |last, (size, stride)| {
        (size - 1).max(0).checked_mul(*stride).and_then(|reach| last.checked_add(reach))
    });
    let Some(last) = last.and_then(|last| last.checked_mul(16).map(|_| last as u64)) else { return Err(wrapped()) };
    Ok(if count == 0 { 0 } else { last + 1 })
}

fn described(offset: i64, sizes: &[i64], strides: &[i64]) -> String {
    format!("a tensor of sizes {:?} and strides {:?} at {offset}", first_few(sizes), first_few(strides))
}

/// Some of many numbers, for a message.
pub(crate) fn first_few(numbers: &[i64]) -> &[i64] {
    &numbers[..numbers.len().min(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(len: i64, bytes: u64) -> Result<Storage, String> {
        Storage::new(Element::of_storage("FloatStorage").unwrap(), len, Some(bytes))
    }

    #[test]
    fn a_record_holds_all_elements() {
        assert!(floats(6, 24).is_ok() && floats(0, 0).is_ok() && floats(6, 32).is_ok());
        assert!(floats(6, 23).unwrap_err().contains("24 bytes"));
        for len in [-1, i64::MAX, i64::MAX / 4 + 1] {
            floats(len, u64::MAX).unwrap_err();
        }
    }

    #[test]
    fn a_view_lies_inside_of_its_storage() {
        let storage = floats(6, 24).unwrap();
        for (offset, sizes, strides) in
            [(0, &[2, 3][..], &[3, 1][..]), (0, &[3, 2], &[1, 3]), (5, &[], &[]), (0, &[100], &[0]), (9, &[0], &[1])]
        {
            storage.check_view(offset, sizes, strides).unwrap();
        }
        for (offset, sizes, strides) in [
            (1, &[2, 3][..], &[3, 1][..]),
            (6, &[], &[]),
            (0, &[7], &[1]),
            (0, &[2], &[6]),
            (-1, &[1], &[1]),
            (0, &[-1], &[1]),
            (2, &[2], &[-1]),
            (0, &[2], &[]),
            (0, &[i64::MAX, 2], &[0, 0]),
            (0, &[1 << 62], &[0]),
            (0, &[0, i64::MAX, 2], &[0, 0, 0]),
            (0, &[2], &[i64::MAX]),
            (i64::MAX, &[2], &[1]),
        ] {
            storage.check_view(offset, sizes, strides).unwrap_err();
        }
    }
}
