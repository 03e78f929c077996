//! How qparams and tables are written with serde, and what is checked where they are read.

use crate::{Error, QParams, Table};

/// [`QParams`] as they are read: of bytes.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenQParams {
    scale: f32,
    zero_point: u8,
}

impl TryFrom<WrittenQParams> for QParams {
    type Error = Error;

    fn try_from(written: WrittenQParams) -> Result<Self, Error> {
        match written.scale > 0.0 && written.scale.is_finite() {
            true => Ok(Self::new(written.scale, i32::from(written.zero_point))),
            false => Err(Error(format!("a scale of {}; a positive number is accepted", written.scale))),
        }
    }
}

/// Two hexadecimal digits for each value.
impl From<Table> for String {
    fn from(table: Table) -> Self {
        table.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Table {
    type Error = Error;

    fn try_from(digits: String) -> Result<Self, Error> {
        let wrong = || Error("a table that is not 512 hexadecimal digits".to_owned());
        if digits.len() != 512 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 256];
        for (byte, at) in bytes.iter_mut().zip((0..512).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self::from_bytes(bytes))
    }
}
