//! What `model.json` holds: PyTorch's export schema (`torch/_export/serde/schema.py`), as far as a graph needs it.
//!
//! A choice is an object with one key (`{"as_tensor": {"name": "x"}}`), which is how serde writes an enum. Fields that are
//! not named here are passed over: later minor versions add some.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The whole file.
#[derive(Debug, Deserialize)]
pub(super) struct Program {
    pub graph_module: GraphModule,
    #[serde(default)]
    pub range_constraints: BTreeMap<String, Range>,
}

/// The part that tells the version, read before the rest.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub schema_version: Version,
    #[serde(default)]
    pub torch_version: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Version {
    pub major: u64,
    #[serde(default)]
    pub minor: u64,
}

/// What a size may be; `None` where it is not limited.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Range {
    #[serde(default, deserialize_with = "limit")]
    pub min_val: Option<i64>,
    #[serde(default, deserialize_with = "limit")]
    pub max_val: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct GraphModule {
    pub graph: Graph,
    pub signature: Signature,
    #[serde(default)]
    pub module_call_graph: Vec<CallEntry>,
    #[serde(default)]
    pub treespec_namedtuple_fields: BTreeMap<String, NamedTuple>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedTuple {
    pub field_names: Vec<String>,
}

/// A module of the original model; the first is the whole, with how it is called.
#[derive(Debug, Deserialize)]
pub(super) struct CallEntry {
    pub fqn: String,
    pub signature: Option<CallSignature>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CallSignature {
    pub in_spec: String,
    pub out_spec: String,
    #[serde(default)]
    pub forward_arg_names: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Graph {
    pub inputs: Vec<Argument>,
    pub outputs: Vec<Argument>,
    pub nodes: Vec<Node>,
    #[serde(default)]
    pub tensor_values: BTreeMap<String, TensorMeta>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub target: String,
    pub inputs: Vec<NamedArgument>,
    pub outputs: Vec<Argument>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub name: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedArgument {
    #[serde(default)]
    pub name: String,
    pub arg: Argument,
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct GraphArgument {
    pub graph: Box<Graph>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Device {
    #[serde(rename = "type")]
    pub kind: String,
}

/// An argument or a result of a node, or an input or output of a graph.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names)]
pub(super) enum Argument {
    AsNone(serde::de::IgnoredAny),
    AsTensor(Named),
    AsTensors(Vec<Named>),
    AsInt(i64),
    AsInts(Vec<i64>),
    AsFloat(Float),
    AsFloats(Vec<Float>),
    AsString(String),
    AsStrings(Vec<String>),
    AsSymInt(SymInt),
    AsSymInts(Vec<SymInt>),
    AsScalarType(i64),
    AsMemoryFormat(i64),
    AsLayout(i64),
    AsDevice(Device),
    AsBool(bool),
    AsBools(Vec<bool>),
    AsSymBool(SymBool),
    AsSymBools(Vec<SymBool>),
    AsGraph(GraphArgument),
    AsOptionalTensors(Vec<OptionalTensor>),
    AsCustomObj(serde::de::IgnoredAny),
    AsOperator(serde::de::IgnoredAny),
    AsSymFloat(SymFloat),
    AsSymFloats(Vec<SymFloat>),
    AsOptionalTensor(OptionalTensor),
    AsComplex(serde::de::IgnoredAny),
    AsNestedTensors(serde::de::IgnoredAny),
    AsIntLists(serde::de::IgnoredAny),
    AsStringToArgument(serde::de::IgnoredAny),
    AsFloatLists(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SymInt {
    AsName(String),
    AsInt(i64),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SymFloat {
    AsName(String),
    AsFloat(Float),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SymBool {
    AsName(String),
    AsBool(bool),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OptionalTensor {
    AsTensor(Named),
    AsNone(serde::de::IgnoredAny),
}

/// The name, where it is computed.
macro_rules! named {
    ($($choice:ident::$variant:ident),*) => {$(
        impl $choice {
            pub fn name(&self) -> Option<&str> {
                match self {
                    Self::AsName(name) => Some(name),
                    Self::$variant(_) => None,
                }
            }
        }
    )*};
}
named!(SymInt::AsInt, SymFloat::AsFloat, SymBool::AsBool);

impl OptionalTensor {
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::AsTensor(named) => Some(&named.name),
            Self::AsNone(_) => None,
        }
    }
}

/// Type, shape and place of a tensor's elements.
#[derive(Debug, Deserialize)]
pub(super) struct TensorMeta {
    pub dtype: i64,
    pub sizes: Vec<Size>,
    pub strides: Vec<Size>,
    pub storage_offset: Size,
    #[serde(default = "strided")]
    pub layout: i64,
}

/// The schema's number of the ordinary layout.
pub(super) const STRIDED: i64 = 7;

fn strided() -> i64 {
    STRIDED
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Size {
    AsExpr(Expression),
    AsInt(i64),
}

impl Size {
    /// The number, where it is one.
    pub fn known(&self) -> Option<i64> {
        match self {
            Self::AsInt(size) => Some(*size),
            Self::AsExpr(_) => None,
        }
    }
}

/// A size as a formula, in the text of sympy's `srepr`.
#[derive(Debug, Deserialize)]
pub(super) struct Expression {
    pub expr_str: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Signature {
    pub input_specs: Vec<InputSpec>,
    pub output_specs: Vec<OutputSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InputSpec {
    UserInput { arg: Argument },
    Parameter { arg: Named, parameter_name: String },
    Buffer { arg: Named, buffer_name: String },
    TensorConstant { arg: Named, tensor_constant_name: String },
    ConstantInput { value: ConstantValue },
    CustomObj { custom_obj_name: String },
    Token {},
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names)]
pub(super) enum ConstantValue {
    AsNone(serde::de::IgnoredAny),
    AsInt(i64),
    AsFloat(Float),
    AsString(String),
    AsBool(bool),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutputSpec {
    UserOutput { arg: Argument },
    LossOutput {},
    BufferMutation { arg: Named, buffer_name: String },
    ParameterMutation { arg: Named, parameter_name: String },
    UserInputMutation { arg: Named, user_input_name: String },
    GradientToParameter {},
    GradientToUserInput {},
    Token {},
}

/// The records of weights or constants, by the tensors' dotted names.
#[derive(Debug, Deserialize)]
pub(super) struct PayloadConfig {
    pub config: BTreeMap<String, Payload>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Payload {
    pub path_name: String,
    #[serde(default)]
    pub use_pickle: bool,
    pub tensor_meta: Option<TensorMeta>,
}

/// A number that JSON may not have: infinities and NaN are texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Float(pub f64);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => match text.as_str() {
                "Infinity" | "inf" => Ok(Self(f64::INFINITY)),
                "-Infinity" | "-inf" => Ok(Self(f64::NEG_INFINITY)),
                "NaN" | "nan" => Ok(Self(f64::NAN)),
                _ => Err(D::Error::custom("a number is expected")),
            },
        }
    }
}

/// A limit is a number, or nothing where there is none.
fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let number = Option::<Float>::deserialize(deserializer)?;
    // Beyond 2^53 it means "as large as can be".
    Ok(number.filter(|number| number.0.abs() < 9e15).map(|number| number.0 as i64))
}

/// libtorch's number of an element type; the schema counts from one, and not all.
pub(super) fn scalar_type(code: i64) -> Option<i64> {
    Some(match code {
        1..=12 => code - 1,
        13 => 15,
        // float8: e4m3fn, e5m2, e4m3fnuz, e5m2fnuz.
        29 => 24,
        30 => 23,
        31 => 26,
        32 => 25,
        28 => 27,
        34 => 28,
        35 => 29,
        _ => return None,
    })
}

/// libtorch's number of a layout.
pub(super) fn layout(code: i64) -> Option<i64> {
    // Sparse, SparseCsr, SparseCsc, SparseBsr, SparseBsc, Mkldnn, Strided.
    usize::try_from(code).ok().and_then(|code| [-1, 1, 2, 4, 5, 6, 3, 0].get(code).copied()).filter(|code| *code >= 0)
}

/// libtorch's number of a memory format.
pub(super) fn memory_format(code: i64) -> Option<i64> {
    // Contiguous, ChannelsLast, ChannelsLast3d, Preserve.
    usize::try_from(code).ok().and_then(|code| [-1, 0, 2, 3, 1].get(code).copied()).filter(|code| *code >= 0)
}
