//! `InsertObservers`.
use super::QuantType;
use crate::error::{Error, Result};
use crate::ir::Module;
use crate::qconfig::QConfigDict;
/// stub
pub fn insert_observers(_m: &Module, _: &str, _: &QConfigDict, _: bool, _: QuantType) -> Result<Module> {
    Err(Error::invalid("stub"))
}
