//! The table of operators: how quantization treats each of them. Every pass reads it; a new operator is a new row.
//!
//! The columns are the fields of [`Operator`]. An operator without a row is float: its inputs are dequantized, its
//! outputs are not observed. Rows and meaning are those of libtorch's quantization passes (its lists are in
//! `torch/csrc/jit/passes/quantization/helper.cpp`).
//!
//! Arguments are counted from the first tensor-side argument: of a node its inputs, of a called function what follows
//! the callee, of a module's method what follows the module.

mod conditions;
mod engines;
mod forms;

use std::collections::HashMap;
use std::sync::LazyLock;

pub use conditions::{Condition, Conditions};
pub use engines::{Geometry, LIMITS, Limit, MOST_GROUPS_OF_ONEDNN, MOST_OF_A_PAIR, StockEngine, When, largest_pair};
pub use forms::{DynamicForm, Form, FormInput, Packing, ResultQParams};

use super::QuantType;
use super::prepare::PRODUCT;
use crate::ir::{Node, Use, Value};
use crate::qconfig::plain_class_name;

/// How an operator appears in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A node of this kind, e.g. `aten::conv2d`.
    Node(&'static str),
    /// `prim::CallFunction` of a TorchScript function of this name (the last part of its qualified name).
    Function(&'static str),
    /// `prim::CallMethod` on a module of this class, without `__torch__.` and mangling.
    Module(&'static str),
}

/// Whether and when an operator has a quantized kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// It has none; it may still pass observation through.
    Float,
    /// In static quantization.
    Static,
    /// In static and in dynamic quantization.
    StaticAndDynamic,
    /// In static quantization, with a quantized weight and a float result.
    WeightOnly,
}

/// How an operator hands on that its input was observed: its output then has the input's qparams and needs no observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassThrough {
    /// It does not.
    No,
    /// From argument 0 to every output. It moves or selects elements and computes nothing on them.
    Shape,
    /// From argument 0 to every output. It computes on elements and keeps within their range (or is clamped to it).
    Value,
    /// From argument 0 to output 0 only.
    FirstOutput,
    /// From a container to the tensors taken out of it.
    Unpack,
    /// From all tensors to the list that they form.
    List,
    /// From all tensors to the tuple that they form.
    Tuple,
    /// From a list and what is appended to it, to the list.
    Append,
    /// From the results of the branches, where it has one output.
    Branches,
}

impl PassThrough {
    /// Whether it is from argument 0, with the shape changed at most or the values kept within their range.
    pub fn is_of_first(self) -> bool {
        matches!(self, Self::Shape | Self::Value | Self::FirstOutput)
    }
}

/// An operator that has no range of its own: it is quantized where its inputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Where its first argument (a list of tensors) is.
    FirstArgument,
    /// Where both arguments are; a scalar second argument makes it a pass-through from the first.
    BothArguments,
}

/// Quantization parameters that follow from the operator: its results lie in a known range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedQParams {
    /// Real value of one step.
    pub scale: f32,
    /// The `quint8` that stands for 0.
    pub zero_point: i64,
}

impl FixedQParams {
    /// For results in [0, 1).
    pub const UNIT: Self = Self { scale: 1.0 / 256.0, zero_point: 0 };
    /// For results in [-1, 1).
    pub const SIGNED_UNIT: Self = Self { scale: 2.0 / 256.0, zero_point: 128 };
}

/// The part of an operator in a fusion with a relu after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReluFusion {
    /// None.
    No,
    /// Its result is observed after the relu that follows.
    Before {
        /// This argument has to be the constant 1 where the relu is a called function or module.
        unit_argument: Option<usize>,
    },
    /// It is a relu.
    Relu,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Operator {
    /// How it appears in a graph.
    pub op: Op,
    /// Whether it has a quantized kernel. Inputs and output of one that has are observed.
    pub kernel: Kernel,
    /// Where only one argument is observed, which; else every tensor that is not the bias or in `unobserved` is.
    pub only_observed: Option<usize>,
    /// The argument watched by the weight observer.
    pub weight: Option<usize>,
    /// The argument that stays in float: its scale follows from input and weight.
    pub bias: Option<usize>,
    /// Other tensor arguments that are never observed (offsets, per-sample weights).
    pub unobserved: &'static [usize],
    /// How it hands on observation.
    pub pass_through: PassThrough,
    /// For which arguments that is true. libtorch's passes do not ask ([`Conditions`]).
    pub passes_if: Option<Condition>,
    /// For which arguments it has its quantized forms; it stays in float for others. libtorch's passes do not ask.
    pub quantized_if: &'static [Condition],
    /// Whether it is quantized where its inputs are.
    pub propagation: Option<Propagation>,
    /// Its results' quantization parameters, where they are known beforehand.
    pub fixed_qparams: Option<FixedQParams>,
    /// Its part in a fusion with relu.
    pub relu: ReluFusion,
    /// Whether arguments 1 and 2 are scalar bounds.
    pub is_clamp: bool,
    /// Whether it only asks for a tensor's shape, so that it needs no dequantized input.
    pub is_tensor_info: bool,
    /// The quantized operators that it becomes.
    pub forms: &'static [Form],
    /// The operator of `aten` that takes quantized tensors as it does float ones, mostly itself; the result has the fixed
    /// parameters or those of the input.
    pub runs_quantized: Option<&'static str>,
    /// The operator of two dimensions that takes quantized tensors, where this one of one dimension does not; the result has
    /// the parameters of the input.
    pub runs_as_image: Option<&'static str>,
    /// How its weight is packed.
    pub packing: Option<Packing>,
    /// What it becomes in dynamic quantization.
    pub dynamic: Option<DynamicForm>,
    /// Whether it is observed in prepared models alone ([`crate::Quantizer`]): libtorch's passes do not know it, though there
    /// is a kernel.
    pub flat_only: bool,
}

impl Operator {
    const fn new(op: Op) -> Self {
        Self {
            op,
            kernel: Kernel::Float,
            only_observed: None,
            weight: None,
            bias: None,
            unobserved: &[],
            pass_through: PassThrough::No,
            passes_if: None,
            quantized_if: &[],
            propagation: None,
            fixed_qparams: None,
            relu: ReluFusion::No,
            is_clamp: false,
            is_tensor_info: false,
            forms: &[],
            runs_quantized: None,
            runs_as_image: None,
            packing: None,
            dynamic: None,
            flat_only: false,
        }
    }

    const fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    const fn only(mut self, argument: usize) -> Self {
        self.only_observed = Some(argument);
        self
    }

    const fn weight(mut self, argument: usize) -> Self {
        self.weight = Some(argument);
        self
    }

    const fn bias(mut self, argument: usize) -> Self {
        self.bias = Some(argument);
        self
    }

    const fn unobserved(mut self, arguments: &'static [usize]) -> Self {
        self.unobserved = arguments;
        self
    }

    const fn passes(mut self, pass_through: PassThrough) -> Self {
        self.pass_through = pass_through;
        self
    }

    const fn passes_if(mut self, condition: Condition) -> Self {
        self.passes_if = Some(condition);
        self
    }

    const fn quantized_if(mut self, conditions: &'static [Condition]) -> Self {
        self.quantized_if = conditions;
        self
    }

    const fn propagates(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    const fn fixed(mut self, qparams: FixedQParams) -> Self {
        self.fixed_qparams = Some(qparams);
        self.passes(PassThrough::Value)
    }

    const fn before_relu(mut self, unit_argument: Option<usize>) -> Self {
        self.relu = ReluFusion::Before { unit_argument };
        self
    }

    const fn relu(mut self) -> Self {
        self.relu = ReluFusion::Relu;
        self
    }

    const fn clamp(mut self) -> Self {
        self.is_clamp = true;
        self.passes(PassThrough::Value)
    }

    const fn becomes(mut self, forms: &'static [Form]) -> Self {
        self.forms = forms;
        self
    }

    const fn runs_quantized(self) -> Self {
        match self.op {
            Op::Node(kind) => self.runs_quantized_as(kind),
            _ => self,
        }
    }

    /// For operators in place, where only the other ones have a kernel.
    const fn runs_quantized_as(mut self, kind: &'static str) -> Self {
        self.runs_quantized = Some(kind);
        self
    }

    const fn runs_quantized_as_image(mut self, kind: &'static str) -> Self {
        self.runs_as_image = Some(kind);
        self
    }

    const fn packed(mut self, packing: Packing) -> Self {
        self.packing = Some(packing);
        self
    }

    const fn dynamic(mut self, form: DynamicForm) -> Self {
        self.dynamic = Some(form);
        self
    }

    const fn flat_only(mut self) -> Self {
        self.flat_only = true;
        self
    }

    const fn tensor_info(mut self) -> Self {
        self.is_tensor_info = true;
        self
    }
}

const fn node(kind: &'static str) -> Operator {
    Operator::new(Op::Node(kind))
}

const fn function(name: &'static str) -> Operator {
    Operator::new(Op::Function(name))
}

const fn module(class: &'static str) -> Operator {
    Operator::new(Op::Module(class))
}

use Condition::{False, FirstOfReduction, IsList, Never, NumberBounds, OneTensor, True, Within};
use FixedQParams as Fixed;
use Kernel::{Static, StaticAndDynamic, WeightOnly};
use PassThrough::{Append, Branches, FirstOutput, List, Shape, Tuple, Unpack, Value as InRange};
use Propagation::{BothArguments, FirstArgument};

/// The table.
#[rustfmt::skip]
pub static OPERATORS: &[Operator] = &[
    // A quantized kernel with a weight.
    node("aten::conv1d").kernel(Static).weight(1).bias(2).packed(forms::CONV1D_PACKING).becomes(forms::CONV1D),
    node("aten::conv2d").kernel(Static).weight(1).bias(2).packed(forms::CONV2D_PACKING).becomes(forms::CONV2D),
    node("aten::conv3d").kernel(Static).weight(1).bias(2).packed(forms::CONV3D_PACKING).becomes(forms::CONV3D),
    node("aten::conv_transpose1d").kernel(Static).weight(1).bias(2).packed(forms::CONV_TRANSPOSE1D_PACKING).becomes(forms::CONV_TRANSPOSE1D),
    node("aten::conv_transpose2d").kernel(Static).weight(1).bias(2).packed(forms::CONV_TRANSPOSE2D_PACKING).becomes(forms::CONV_TRANSPOSE2D),
    node("aten::conv_transpose3d").kernel(Static).weight(1).bias(2).packed(forms::CONV_TRANSPOSE3D_PACKING).becomes(forms::CONV_TRANSPOSE3D).flat_only(),
    node("aten::linear").kernel(StaticAndDynamic).weight(1).bias(2).before_relu(None)
        .packed(forms::LINEAR_PACKING).becomes(forms::LINEAR).dynamic(forms::LINEAR_DYNAMIC),
    function("linear").kernel(StaticAndDynamic).weight(1).bias(2),
    function("conv2d").kernel(Static),
    node("aten::embedding_bag").kernel(WeightOnly).weight(0).unobserved(&[2, 6]),
    function("embedding_bag").kernel(WeightOnly).weight(1),

    // A quantized kernel without one.
    node("aten::batch_norm").kernel(Static).quantized_if(&[False(5), Condition::Tensor(3), Condition::Tensor(4)])
        .becomes(forms::BATCH_NORM),
    function("batch_norm").kernel(Static).only(0),
    node("aten::layer_norm").kernel(Static).becomes(forms::LAYER_NORM),
    function("layer_norm").kernel(Static),
    node("aten::group_norm").kernel(Static).becomes(forms::GROUP_NORM),
    function("group_norm").kernel(Static),
    node("aten::instance_norm").kernel(Static).quantized_if(&[True(5), Condition::None(3)])
        .becomes(forms::INSTANCE_NORM),
    function("instance_norm").kernel(Static),
    node("aten::hardswish").kernel(Static).becomes(forms::HARDSWISH),
    node("aten::hardswish_").kernel(Static).becomes(forms::HARDSWISH),
    function("hardswish").kernel(Static),
    node("aten::elu").kernel(Static).becomes(forms::ELU),
    node("aten::elu_").kernel(Static).becomes(forms::ELU),
    function("elu").kernel(Static),
    node("aten::celu").kernel(Static),
    node("aten::celu_").kernel(Static),
    function("celu").kernel(Static),
    // `aten::matmul` has no row: libtorch's passes leave it in float. This is one of which quantization was asked for.
    node(PRODUCT).kernel(Static).becomes(forms::MATMUL),

    // Quantized where their inputs are.
    node("aten::cat").propagates(FirstArgument).becomes(forms::CAT),
    node("aten::add").propagates(BothArguments).passes_if(Condition::One(2)).before_relu(Some(2)).becomes(forms::ADD),
    node("aten::add_").propagates(BothArguments).passes_if(Condition::One(2)).before_relu(Some(2)).becomes(forms::ADD_IN_PLACE),
    node("aten::mul").propagates(BothArguments).before_relu(None).becomes(forms::MUL),
    node("aten::mul_").propagates(BothArguments).before_relu(None).becomes(forms::MUL_IN_PLACE),

    // Results in a known range.
    node("aten::sigmoid").fixed(Fixed::UNIT).runs_quantized(),
    node("aten::sigmoid_").fixed(Fixed::UNIT).runs_quantized_as("aten::sigmoid"),
    node("aten::hardsigmoid").fixed(Fixed::UNIT).runs_quantized(),
    node("aten::hardsigmoid_").fixed(Fixed::UNIT).runs_quantized(),
    node("aten::tanh").fixed(Fixed::SIGNED_UNIT).runs_quantized(),
    node("aten::tanh_").fixed(Fixed::SIGNED_UNIT).runs_quantized_as("aten::tanh"),

    // Elements are moved or selected.
    node("aten::relu").passes(Shape).relu(),
    node("aten::relu_").passes(Shape).relu(),
    function("relu").passes(Shape).relu(),
    node("aten::max_pool1d").passes(Shape),
    node("aten::max_pool2d").passes(Shape),
    node("aten::max_pool3d").passes(Shape),
    function("_max_pool1d").passes(Shape),
    function("_max_pool2d").passes(Shape),
    function("_max_pool3d").passes(Shape),
    node("aten::dropout").passes(Shape).passes_if(False(2)),
    function("dropout").passes(Shape),
    node("aten::flatten").passes(Shape),
    node("aten::reshape").passes(Shape),
    node("aten::view").passes(Shape).passes_if(IsList(1)),
    node("aten::transpose").passes(Shape),
    node("aten::permute").passes(Shape),
    node("aten::contiguous").passes(Shape),
    node("aten::squeeze").passes(Shape),
    node("aten::squeeze_").passes(Shape),
    node("aten::unsqueeze").passes(Shape),
    node("aten::unsqueeze_").passes(Shape),
    node("aten::resize_").passes(Shape).passes_if(Never),
    node("aten::repeat").passes(Shape),
    node("aten::repeat_interleave").passes(Shape),
    node("aten::detach").passes(Shape),
    node("aten::detach_").passes(Shape),
    node("aten::max").passes(Shape).passes_if(FirstOfReduction),
    node("aten::min").passes(Shape).passes_if(FirstOfReduction),
    node("aten::chunk").passes(Shape),
    node("aten::stack").passes(Shape).passes_if(OneTensor),
    node("aten::__getitem__").passes(Shape),
    node("aten::sort").passes(FirstOutput),

    // Elements are computed on, within their range.
    node("aten::avg_pool1d").passes(InRange).runs_quantized(),
    node("aten::avg_pool2d").passes(InRange).passes_if(Condition::None(6)).runs_quantized(),
    node("aten::avg_pool3d").passes(InRange).passes_if(Condition::None(6)).runs_quantized(),
    function("avg_pool1d").passes(InRange),
    function("avg_pool2d").passes(InRange),
    function("avg_pool3d").passes(InRange),
    node("aten::adaptive_avg_pool1d").passes(InRange).runs_quantized(),
    node("aten::adaptive_avg_pool2d").passes(InRange).runs_quantized(),
    node("aten::adaptive_avg_pool3d").passes(InRange).runs_quantized(),
    function("adaptive_avg_pool1d").passes(InRange),
    function("adaptive_avg_pool2d").passes(InRange),
    function("adaptive_avg_pool3d").passes(InRange),
    node("aten::mean").passes(InRange).passes_if(Condition::NoDtype).runs_quantized(),
    node("aten::upsample_nearest1d").passes(InRange).runs_quantized_as_image("aten::upsample_nearest2d"),
    node("aten::upsample_nearest2d").passes(InRange).runs_quantized(),
    node("aten::upsample_nearest3d").passes(InRange).runs_quantized(),
    node("aten::upsample_linear1d").passes(InRange).runs_quantized_as_image("aten::upsample_bilinear2d"),
    node("aten::upsample_bilinear2d").passes(InRange).runs_quantized(),
    node("aten::upsample_trilinear3d").passes(InRange),
    node("aten::upsample_bicubic2d").passes(InRange).passes_if(Never),
    function("interpolate").passes(InRange),
    function("upsample").passes(InRange),
    function("upsample_bilinear").passes(InRange),
    function("upsample_nearest").passes(InRange),
    node("aten::leaky_relu").passes(InRange).passes_if(Within(1, 0.0, 1.0)).runs_quantized(),
    node("aten::leaky_relu_").passes(InRange).passes_if(Within(1, 0.0, 1.0)).runs_quantized(),
    function("leaky_relu").passes(InRange),
    node("aten::clamp").clamp().passes_if(NumberBounds).runs_quantized(),
    node("aten::hardtanh").clamp().passes_if(NumberBounds).runs_quantized(),
    node("aten::hardtanh_").clamp().passes_if(NumberBounds).runs_quantized(),
    function("hardtanh").passes(InRange),

    // Containers and branches.
    node("prim::ListConstruct").passes(List),
    node("prim::TupleConstruct").passes(Tuple),
    node("prim::ListUnpack").passes(Unpack),
    node("prim::TupleUnpack").passes(Unpack),
    node("aten::append").passes(Append),
    node("prim::If").passes(Branches),

    // Questions about a tensor's shape.
    node("aten::size").tensor_info(),
    node("aten::len").tensor_info(),
    node("aten::dim").tensor_info(),
    node("aten::numel").tensor_info(),

    // Modules that fuse with a relu after them, and the relu.
    module("torch.nn.modules.linear.Linear").before_relu(None),
    module("torch.nn.modules.conv.Conv1d").before_relu(None),
    module("torch.nn.modules.conv.Conv2d").before_relu(None),
    module("torch.nn.modules.conv.Conv3d").before_relu(None),
    module("torch.nn.modules.batchnorm.BatchNorm2d").before_relu(None),
    module("torch.nn.modules.batchnorm.BatchNorm3d").before_relu(None),
    module("torch.nn.modules.activation.ReLU").relu(),
];

static ROWS: LazyLock<HashMap<Op, &'static Operator>> =
    LazyLock::new(|| OPERATORS.iter().map(|row| (row.op, row)).collect());

/// The arguments before the ones that the table counts: a called function, a called module.
fn skipped_inputs(kind: &str) -> usize {
    usize::from(matches!(kind, "prim::CallFunction" | "prim::CallMethod"))
}

impl Operator {
    /// The row of `node`: of a called function that of the function, of a called method that of the module's class.
    pub fn of(node: Node<'_>) -> Option<&'static Self> {
        match node.kind() {
            "prim::CallFunction" => Self::named(Op::Function, &node.input(0)?.function_name()?),
            "prim::CallMethod" => Self::named(Op::Module, &plain_class_name(&node.input(0)?.type_of().class_name()?)),
            kind => Self::named(Op::Node, kind),
        }
    }

    fn named(op: fn(&'static str) -> Op, name: &str) -> Option<&'static Self> {
        // The table's names live for ever, the asked one does not: find the table's own spelling of it.
        static NAMES: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
            let name = |row: &Operator| match row.op {
                Op::Node(name) | Op::Function(name) | Op::Module(name) => name,
            };
            OPERATORS.iter().map(|row| (name(row), name(row))).collect()
        });
        ROWS.get(&op(NAMES.get(name)?)).copied()
    }

    /// Argument `index` of `node` as the table counts.
    pub fn argument<'g>(node: Node<'g>, index: usize) -> Option<Value<'g>> {
        node.input(index + skipped_inputs(node.kind()))
    }

    /// The row of the operator that uses a value, and the argument that the value is.
    pub fn of_use(place: Use<'_>) -> Option<(&'static Self, usize)> {
        let argument = place.offset.checked_sub(skipped_inputs(place.user.kind()))?;
        Some((Self::of(place.user)?, argument))
    }

    /// Whether it hands on to `output`, a result of an operator of this row, that its input was observed, as
    /// [`Operator::pass_through`] and [`Operator::propagation`] say.
    pub fn passes_on(&self, output: Value<'_>, conditions: Conditions) -> bool {
        conditions == Conditions::Ignored || self.passes_if.is_none_or(|condition| condition.holds_for(output))
    }

    /// Whether `node`, an operator of this row, has the quantized forms of the table.
    pub fn has_forms(&self, node: Node<'_>, conditions: Conditions) -> bool {
        conditions == Conditions::Ignored || self.quantized_if.iter().all(|condition| condition.holds(node))
    }

    /// Whether it has a quantized kernel that `quant_type` uses.
    pub fn is_quantized(&self, quant_type: QuantType) -> bool {
        match quant_type {
            QuantType::Static => self.kernel != Kernel::Float,
            QuantType::Dynamic => self.kernel == Kernel::StaticAndDynamic,
        }
    }

    /// Whether a value that is its argument `argument` is observed for its sake.
    pub fn observes(&self, argument: usize, quant_type: QuantType) -> bool {
        self.is_quantized(quant_type) && self.only_observed.is_none_or(|only| only == argument)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_has_one_row() {
        assert_eq!(ROWS.len(), OPERATORS.len());
    }

    #[test]
    fn rows_do_not_contradict_themselves() {
        for row in OPERATORS {
            let roles = usize::from(row.kernel != Kernel::Float)
                + usize::from(row.pass_through != PassThrough::No)
                + usize::from(row.propagation.is_some())
                + usize::from(row.is_tensor_info)
                + usize::from(matches!(row.op, Op::Module(_)));
            assert_eq!(roles, 1, "{row:?} has one role");
            assert!(row.weight.is_none() || row.kernel != Kernel::Float, "{row:?}: a weight belongs to a kernel");
            assert!(row.bias.is_none() || row.bias > row.weight, "{row:?}: the bias follows the weight");
        }
    }

    #[test]
    fn a_node_finds_its_row() {
        let text =
            "graph(%x : Tensor):\n  %y : Tensor = aten::sigmoid(%x)\n  %z : Tensor = aten::sin(%y)\n  return (%z)";
        let graph = crate::ir::Graph::parse(text).unwrap();
        let rows: Vec<_> = graph.nodes().map(Operator::of).collect();
        assert_eq!(rows[0].unwrap().fixed_qparams, Some(FixedQParams::UNIT));
        assert!(rows[1].is_none());
    }
}
