//! Operators by name: which there are, what they take, and how they are called.

use super::ivalue::{IValue, cooked_values, raw_items};
use crate::error::Result;

#[cxx::bridge(namespace = "jitquant")]
mod bridge {
    /// An operator's name, and names and types of its arguments.
    struct OperatorSchema {
        name: String,
        overload: String,
        names: Vec<String>,
        types: Vec<String>,
        has_default: Vec<bool>,
        returns: Vec<String>,
    }

    unsafe extern "C++" {
        include!("operators.h");

        type IValue = crate::ir::ffi::bridge::IValue;
        type IValues = crate::ir::ffi::bridge::IValues;

        fn operator_schemas(prefix: &str) -> Result<Vec<OperatorSchema>>;
        fn operator_schema(name: &str, overload: &str) -> Result<OperatorSchema>;
        fn operator_default(name: &str, overload: &str, argument: usize) -> Result<UniquePtr<IValue>>;
        fn operator_call(name: &str, overload: &str, arguments: UniquePtr<IValues>) -> Result<UniquePtr<IValues>>;
    }
}

/// An operator that is registered with libtorch.
///
/// ```
/// use jitquant::ir::{IValue, Operator, Tensor};
/// jitquant::init()?;
/// let quantize = &Operator::all("jitquant::quantize")?.into_iter().find(|op| op.name == "jitquant::quantize").unwrap();
/// assert_eq!(quantize.arguments[1], ("scale".to_owned(), "float".to_owned()));
/// let x = Tensor::from_slice(&[0.0f32, 0.5], &[2])?;
/// let bytes = quantize.call(&[IValue::from(&x), IValue::Double(0.5), IValue::Int(3)])?;
/// assert_eq!(bytes[0].as_tensor().unwrap().to_vec::<u8>()?, [3, 4]);
/// # Ok::<(), jitquant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Its name with the namespace, e.g. `jitquant::conv`.
    pub name: String,
    /// Which of several operators of that name; mostly empty.
    pub overload: String,
    /// Names and types of its arguments; types in TorchScript's syntax.
    pub arguments: Vec<(String, String)>,
    /// The types of its results.
    pub returns: Vec<String>,
    /// Which arguments may be left out.
    has_default: Vec<bool>,
}

impl Operator {
    /// The operators whose names begin with `prefix`, in the order of their names.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn all(prefix: &str) -> Result<Vec<Self>> {
        let mut found: Vec<_> = bridge::operator_schemas(prefix)?.into_iter().map(Self::from_schema).collect();
        found.sort_by(|a, b| (&a.name, &a.overload).cmp(&(&b.name, &b.overload)));
        Ok(found)
    }

    fn from_schema(schema: bridge::OperatorSchema) -> Self {
        Self {
            name: schema.name,
            overload: schema.overload,
            arguments: schema.names.into_iter().zip(schema.types).collect(),
            returns: schema.returns,
            has_default: schema.has_default,
        }
    }

    /// The operator of that name and overload; the overload that Python calls `default` is the empty one.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(name: &str, overload: &str) -> Result<Self> {
        Ok(Self::from_schema(bridge::operator_schema(name, overload)?))
    }

    /// The value of argument number `index` where it is left out; `None` where it cannot be.
    pub fn default_of(&self, index: usize) -> Option<IValue> {
        match self.has_default.get(index) {
            Some(true) => IValue::from_raw(bridge::operator_default(&self.name, &self.overload, index).ok()?).ok(),
            _ => None,
        }
    }

    /// Calls it with all of its arguments, as libtorch's interpreters do; gives its results.
    ///
    /// # Errors
    /// Where there are more or fewer, and what the operator says.
    pub fn call(&self, arguments: &[IValue]) -> Result<Vec<IValue>> {
        let results = bridge::operator_call(&self.name, &self.overload, raw_items(arguments)?)?;
        cooked_values(&results)
    }
}
