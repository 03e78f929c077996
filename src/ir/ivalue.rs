//! Values at run time: arguments, results, attributes and constants.

use std::ffi::c_void;

use cxx::UniquePtr;

use super::ffi::bridge as ffi;
use super::module::Module;
use super::tensor::Tensor;
use super::types::Type;
use crate::error::{Error, Result};

/// A TorchScript value: an argument, a result, an attribute or a constant.
///
/// Lists and dictionaries are copied when they cross the bridge; tensors and modules are handles.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum IValue {
    /// `None`.
    None,
    /// A tensor.
    Tensor(Tensor),
    /// `int`.
    Int(i64),
    /// `float`.
    Double(f64),
    /// `bool`.
    Bool(bool),
    /// `str`.
    Str(String),
    /// A device, e.g. `cpu` or `cuda:0`.
    Device(String),
    /// A tuple.
    Tuple(Vec<IValue>),
    /// A list; `element` is its elements' type in TorchScript's syntax, e.g. `int`.
    List {
        /// The elements' type.
        element: String,
        /// The elements.
        items: Vec<IValue>,
    },
    /// A dictionary in insertion order; `key` and `value` are types in TorchScript's syntax.
    Dict {
        /// The keys' type.
        key: String,
        /// The values' type.
        value: String,
        /// Keys and values.
        items: Vec<(IValue, IValue)>,
    },
    /// A module.
    Module(Module),
    /// Anything else (packed weights, enums, complex numbers, …), kept as it is.
    Other(OtherValue),
}

/// A value that Rust does not look into, kept as it is.
pub struct OtherValue(UniquePtr<ffi::IValue>);

impl Clone for OtherValue {
    fn clone(&self) -> Self {
        Self(ffi::ivalue_copy(&self.0))
    }
}

impl std::fmt::Debug for OtherValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&ffi::ivalue_tag(&self.0))
    }
}

impl OtherValue {
    /// What it is, as libtorch tags it, e.g. `Object`.
    pub fn tag(&self) -> String {
        ffi::ivalue_tag(&self.0)
    }

    /// Its TorchScript type.
    ///
    /// # Errors
    /// Where libtorch has no type for it.
    pub fn type_of(&self) -> Result<Type> {
        Ok(Type(ffi::ivalue_type(&self.0)?))
    }

    /// Tells an object from others while it lives; `None` for what is no object.
    pub(crate) fn object(&self) -> Option<usize> {
        Some(ffi::ivalue_object(&self.0)).filter(|address| *address != 0)
    }
}

impl IValue {
    /// A list of integers.
    pub fn int_list(items: impl IntoIterator<Item = i64>) -> Self {
        Self::List { element: "int".into(), items: items.into_iter().map(Self::Int).collect() }
    }

    /// A list of floats.
    pub fn double_list(items: impl IntoIterator<Item = f64>) -> Self {
        Self::List { element: "float".into(), items: items.into_iter().map(Self::Double).collect() }
    }

    /// A list of tensors.
    pub fn tensor_list(items: impl IntoIterator<Item = Tensor>) -> Self {
        Self::List { element: "Tensor".into(), items: items.into_iter().map(Self::Tensor).collect() }
    }

    /// The tensor, where it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The integer, where it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The number, where it is an integer or a float.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Double(value) => Some(*value),
            _ => None,
        }
    }

    /// The text, where it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(value) => Some(value),
            _ => None,
        }
    }

    /// What it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Tensor(_) => "Tensor",
            Self::Int(_) => "int",
            Self::Double(_) => "float",
            Self::Bool(_) => "bool",
            Self::Str(_) => "str",
            Self::Device(_) => "Device",
            Self::Tuple(_) => "tuple",
            Self::List { .. } => "list",
            Self::Dict { .. } => "dict",
            Self::Module(_) => "module",
            Self::Other(_) => "object",
        }
    }

    /// Every tensor in it, in order, through tuples, lists and dictionaries' values.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Tensor(tensor) => vec![tensor],
            Self::Tuple(items) | Self::List { items, .. } => items.iter().flat_map(Self::tensors).collect(),
            Self::Dict { items, .. } => items.iter().flat_map(|(_, value)| value.tensors()).collect(),
            _ => Vec::new(),
        }
    }

    /// The same with tensors of its own, through tuples, lists, dictionaries and objects of script classes: a model that writes
    /// into its arguments leaves the original alone.
    ///
    /// # Errors
    /// Where memory is short.
    pub fn deep_clone(&self) -> Result<Self> {
        if let Self::Other(object) = self {
            return Ok(Self::Other(OtherValue(ffi::ivalue_deepcopy(&object.0)?)));
        }
        self.map_tensors(&|tensor| {
            Ok(Self::Tensor(if tensor.is_defined() { tensor.deep_clone()? } else { tensor.clone() }))
        })
    }

    /// The same with what `change` makes of each tensor in it, through tuples, lists and dictionaries' values.
    pub(crate) fn map_tensors(&self, change: &dyn Fn(&Tensor) -> Result<IValue>) -> Result<Self> {
        let all = |items: &[IValue]| items.iter().map(|item| item.map_tensors(change)).collect::<Result<Vec<_>>>();
        Ok(match self {
            Self::Tensor(tensor) => change(tensor)?,
            Self::Tuple(items) => Self::Tuple(all(items)?),
            Self::List { element, items } => Self::List { element: element.clone(), items: all(items)? },
            Self::Dict { key, value, items } => {
                let pair = |(key, value): &(IValue, IValue)| Ok((key.clone(), value.map_tensors(change)?));
                let items = items.iter().map(pair).collect::<Result<_>>()?;
                Self::Dict { key: key.clone(), value: value.clone(), items }
            }
            other => other.clone(),
        })
    }

    /// The value of the host's `c10::IValue`.
    ///
    /// # Safety
    /// `value` points to a live `c10::IValue` of the libtorch that this library is loaded into.
    pub(crate) unsafe fn from_host(value: *const c_void) -> Result<Self> {
        // SAFETY: the caller's promise.
        Self::from_raw(unsafe { ffi::ivalue_from_address(value as usize) })
    }

    /// Sets the host's `c10::IValue`.
    ///
    /// # Safety
    /// As for [`IValue::from_host`], and nothing else uses the host's value meanwhile.
    pub(crate) unsafe fn store_to_host(&self, value: *mut c_void) -> Result<()> {
        let raw = self.to_raw()?;
        // SAFETY: the caller's promise.
        unsafe { ffi::ivalue_store(&raw, value as usize) };
        Ok(())
    }

    pub(crate) fn to_raw(&self) -> Result<UniquePtr<ffi::IValue>> {
        Ok(match self {
            Self::None => ffi::ivalue_none(),
            Self::Tensor(tensor) => ffi::ivalue_from_tensor(&tensor.0),
            Self::Int(value) => ffi::ivalue_from_int(*value),
            Self::Double(value) => ffi::ivalue_from_double(*value),
            Self::Bool(value) => ffi::ivalue_from_bool(*value),
            Self::Str(value) => ffi::ivalue_from_string(value),
            Self::Device(value) => ffi::ivalue_from_device(value)?,
            Self::Tuple(items) => ffi::ivalue_tuple(raw_items(items)?)?,
            Self::List { element, items } => ffi::ivalue_list(&Type::parse(element)?.0, raw_items(items)?)?,
            Self::Dict { key, value, items } => ffi::ivalue_dict(
                &Type::parse(key)?.0,
                &Type::parse(value)?.0,
                raw_items(items.iter().map(|(key, _)| key))?,
                raw_items(items.iter().map(|(_, value)| value))?,
            )?,
            Self::Module(module) => ffi::ivalue_from_module(module.raw()),
            Self::Other(other) => ffi::ivalue_copy(&other.0),
        })
    }

    pub(crate) fn from_raw(raw: UniquePtr<ffi::IValue>) -> Result<Self> {
        Ok(match ffi::ivalue_tag(&raw).as_str() {
            "None" => Self::None,
            "Tensor" => Self::Tensor(Tensor(ffi::ivalue_to_tensor(&raw)?)),
            "Int" => Self::Int(ffi::ivalue_to_int(&raw)?),
            "Double" => Self::Double(ffi::ivalue_to_double(&raw)?),
            "Bool" => Self::Bool(ffi::ivalue_to_bool(&raw)?),
            "String" => Self::Str(ffi::ivalue_to_string(&raw)?),
            "Device" => Self::Device(ffi::ivalue_to_string(&raw)?),
            "Tuple" => Self::Tuple(cooked_items(&raw)?),
            "GenericList" => Self::List { element: contained_type(&raw, 0)?, items: cooked_items(&raw)? },
            "GenericDict" => {
                let mut flat = cooked_items(&raw)?.into_iter();
                let mut items = Vec::new();
                while let (Some(key), Some(value)) = (flat.next(), flat.next()) {
                    items.push((key, value));
                }
                Self::Dict { key: contained_type(&raw, 0)?, value: contained_type(&raw, 1)?, items }
            }
            "Module" => Self::Module(Module::from_raw(ffi::ivalue_to_module(&raw)?)),
            _ => Self::Other(OtherValue(raw)),
        })
    }
}

fn contained_type(raw: &ffi::IValue, index: usize) -> Result<String> {
    let ty = Type(ffi::ivalue_type(raw)?);
    ty.contained().get(index).map(Type::annotation).ok_or_else(|| Error::invalid(format!("{ty} has no element type")))
}

pub(crate) fn raw_items<'a>(items: impl IntoIterator<Item = &'a IValue>) -> Result<UniquePtr<ffi::IValues>> {
    let mut raw = ffi::ivalues_new();
    for item in items {
        ffi::ivalues_push(raw.pin_mut(), &*item.to_raw()?);
    }
    Ok(raw)
}

fn cooked_items(raw: &ffi::IValue) -> Result<Vec<IValue>> {
    cooked_values(&*ffi::ivalue_items(raw)?)
}

pub(crate) fn cooked_values(items: &ffi::IValues) -> Result<Vec<IValue>> {
    (0..ffi::ivalues_len(items)).map(|i| IValue::from_raw(ffi::ivalues_get(items, i)?)).collect()
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for IValue {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}
from!(Tensor => Tensor, i64 => Int, f64 => Double, bool => Bool, String => Str, Module => Module);

impl From<&str> for IValue {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<&Tensor> for IValue {
    fn from(value: &Tensor) -> Self {
        Self::Tensor(value.clone())
    }
}

impl From<&IValue> for IValue {
    fn from(value: &IValue) -> Self {
        value.clone()
    }
}

impl TryFrom<IValue> for Tensor {
    type Error = Error;

    fn try_from(value: IValue) -> Result<Self> {
        match value {
            IValue::Tensor(tensor) => Ok(tensor),
            other => Err(Error::invalid(format!("expected a tensor, got {}", other.kind()))),
        }
    }
}

#[cfg(feature = "tch")]
impl From<&tch::Tensor> for IValue {
    fn from(value: &tch::Tensor) -> Self {
        Self::Tensor(value.into())
    }
}

#[cfg(feature = "tch")]
impl TryFrom<IValue> for tch::Tensor {
    type Error = Error;

    fn try_from(value: IValue) -> Result<Self> {
        Tensor::try_from(value).map(|tensor| (&tensor).into())
    }
}
