//! What operators become where they are quantized: the part of the table that fusion reads.

/// An input of a quantized operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormInput {
    /// This argument of the float operator, quantized.
    Quantized(usize),
    /// This argument of the float operator as it is.
    Same(usize),
    /// The packed weight and bias.
    Packed,
    /// The scale of the result.
    Scale,
    /// The zero point of the result.
    ZeroPoint,
}

/// Where the quantization parameters of a result come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultQParams {
    /// From its observer: the quantize behind the operator has them.
    Observed,
    /// From the first argument, or the kernel computes them from it.
    OfInput,
}

/// A quantized form of an operator: another operator that takes quantized tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The quantized operator.
    pub kind: &'static str,
    /// The quantized operator that takes in a relu behind it.
    pub with_relu: Option<&'static str>,
    /// Its inputs.
    pub inputs: &'static [FormInput],
    /// Where its result's parameters come from.
    pub qparams: ResultQParams,
    /// This argument has to be the constant 1.
    pub unit_argument: Option<usize>,
    /// This argument has to be a number.
    pub scalar_argument: Option<usize>,
}

impl Form {
    const fn new(kind: &'static str, inputs: &'static [FormInput]) -> Self {
        let qparams = ResultQParams::Observed;
        Self { kind, with_relu: None, inputs, qparams, unit_argument: None, scalar_argument: None }
    }

    const fn relu(mut self, kind: &'static str) -> Self {
        self.with_relu = Some(kind);
        self
    }

    const fn unit(mut self, argument: usize) -> Self {
        self.unit_argument = Some(argument);
        self
    }

    /// The form for a number as second argument; the result's parameters follow from the input's.
    const fn scalar(mut self) -> Self {
        self.scalar_argument = Some(1);
        self.qparams = ResultQParams::OfInput;
        self
    }
}

/// How a weight is packed for the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Packs a quantized weight.
    pub prepack: &'static str,
    /// Gives weight and bias back.
    pub unpack: &'static str,
    /// The float operator's arguments that packing takes after the weight.
    pub arguments: &'static [usize],
    /// Whether it takes weights with a scale for each channel.
    pub per_channel: bool,
    /// The same pair for weights rounded to float16.
    pub half: Option<(&'static str, &'static str)>,
}

impl Packing {
    const fn new(prepack: &'static str, unpack: &'static str, arguments: &'static [usize]) -> Self {
        Self { prepack, unpack, arguments, per_channel: true, half: None }
    }

    /// With transposed kernels' arguments, and their restriction.
    const fn transposed(prepack: &'static str, unpack: &'static str) -> Self {
        Self { per_channel: false, ..Self::new(prepack, unpack, TRANSPOSED_GEOMETRY) }
    }
}

/// The forms that quantize their first argument while they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicForm {
    /// With an INT8 weight: input, packed weight, whether to use one bit less.
    pub kind: &'static str,
    /// With a weight rounded to float16: input, packed weight.
    pub half: &'static str,
}

use FormInput::{Packed, Quantized, Same, Scale, ZeroPoint};

/// Input, packed weight, scale, zero point.
const WEIGHTED: &[FormInput] = &[Quantized(0), Packed, Scale, ZeroPoint];
const UNARY: &[FormInput] = &[Quantized(0), Scale, ZeroPoint];
const BINARY: &[FormInput] = &[Quantized(0), Quantized(1), Scale, ZeroPoint];
const WITH_NUMBER: &[FormInput] = &[Quantized(0), Same(1)];
/// The kernel writes into its input, as the float operator does.
const WITH_NUMBER_IN_PLACE: &[FormInput] = &[Quantized(0), Same(1), Quantized(0)];
/// Input, two shape arguments or parameters, weight and bias, epsilon.
const NORM: &[FormInput] = &[Quantized(0), Same(1), Same(2), Same(3), Same(4), Scale, ZeroPoint];

/// Bias, stride, padding, dilation, groups: the order of convolutions.
const CONV_GEOMETRY: &[usize] = &[2, 3, 4, 5, 6];
/// The same, and output padding: transposed convolutions have groups before dilation, their packing after it.
const TRANSPOSED_GEOMETRY: &[usize] = &[2, 3, 4, 5, 7, 6];

pub(super) const CONV1D: &[Form] = &[Form::new("quantized::conv1d", WEIGHTED).relu("quantized::conv1d_relu")];
pub(super) const CONV2D: &[Form] = &[Form::new("quantized::conv2d", WEIGHTED).relu("quantized::conv2d_relu")];
pub(super) const CONV3D: &[Form] = &[Form::new("quantized::conv3d", WEIGHTED).relu("quantized::conv3d_relu")];
pub(super) const CONV_TRANSPOSE1D: &[Form] = &[Form::new("quantized::conv_transpose1d", WEIGHTED)];
pub(super) const CONV_TRANSPOSE2D: &[Form] = &[Form::new("quantized::conv_transpose2d", WEIGHTED)];
pub(super) const CONV_TRANSPOSE3D: &[Form] = &[Form::new("quantized::conv_transpose3d", WEIGHTED)];
pub(super) const LINEAR: &[Form] = &[Form::new("quantized::linear", WEIGHTED).relu("quantized::linear_relu")];

pub(super) const CONV1D_PACKING: Packing =
    Packing::new("quantized::conv1d_prepack", "quantized::conv1d_unpack", CONV_GEOMETRY);
pub(super) const CONV2D_PACKING: Packing =
    Packing::new("quantized::conv2d_prepack", "quantized::conv2d_unpack", CONV_GEOMETRY);
pub(super) const CONV3D_PACKING: Packing =
    Packing::new("quantized::conv3d_prepack", "quantized::conv3d_unpack", CONV_GEOMETRY);
pub(super) const CONV_TRANSPOSE1D_PACKING: Packing =
    Packing::transposed("quantized::conv_transpose1d_prepack", "quantized::conv_transpose1d_unpack");
pub(super) const CONV_TRANSPOSE2D_PACKING: Packing =
    Packing::transposed("quantized::conv_transpose2d_prepack", "quantized::conv_transpose2d_unpack");
pub(super) const CONV_TRANSPOSE3D_PACKING: Packing =
    Packing::transposed("quantized::conv_transpose3d_prepack", "quantized::conv_transpose3d_unpack");
pub(super) const LINEAR_PACKING: Packing = Packing {
    half: Some(("quantized::linear_prepack_fp16", "quantized::linear_unpack_fp16")),
    ..Packing::new("quantized::linear_prepack", "quantized::linear_unpack", &[2])
};
pub(super) const LINEAR_DYNAMIC: DynamicForm =
    DynamicForm { kind: "quantized::linear_dynamic", half: "quantized::linear_dynamic_fp16" };

/// `batch_norm(input, weight, bias, mean, var, training, momentum, eps, cudnn)`.
pub(super) const BATCH_NORM: &[Form] = &[Form::new(
    "quantized::batch_norm",
    &[Quantized(0), Same(1), Same(2), Same(3), Same(4), Same(7), Scale, ZeroPoint],
)
.relu("quantized::batch_norm_relu")];
pub(super) const LAYER_NORM: &[Form] = &[Form::new("quantized::layer_norm", NORM)];
pub(super) const GROUP_NORM: &[Form] = &[Form::new("quantized::group_norm", NORM)];
/// `instance_norm(input, weight, bias, mean, var, use_input_stats, momentum, eps, cudnn)`.
pub(super) const INSTANCE_NORM: &[Form] =
    &[Form::new("quantized::instance_norm", &[Quantized(0), Same(1), Same(2), Same(7), Scale, ZeroPoint])];
pub(super) const HARDSWISH: &[Form] = &[Form::new("quantized::hardswish", UNARY)];
/// `elu(input, alpha, scale, input_scale)`.
pub(super) const ELU: &[Form] =
    &[Form::new("quantized::elu", &[Quantized(0), Scale, ZeroPoint, Same(1), Same(2), Same(3)])];
pub(super) const MATMUL: &[Form] = &[Form::new("quantized::matmul", BINARY)];
/// The list of tensors, the dimension.
pub(super) const CAT: &[Form] = &[Form::new("quantized::cat", &[Quantized(0), Same(1), Scale, ZeroPoint])];

/// `add(a, b, alpha)`: there is no quantized form for an alpha other than 1.
pub(super) const ADD: &[Form] = &[
    Form::new("quantized::add", BINARY).relu("quantized::add_relu").unit(2),
    Form::new("quantized::add_scalar", WITH_NUMBER).relu("quantized::add_scalar_relu").unit(2).scalar(),
];
pub(super) const ADD_IN_PLACE: &[Form] = &[
    Form::new("quantized::add", BINARY).relu("quantized::add_relu").unit(2),
    Form::new("quantized::add_scalar_out", WITH_NUMBER_IN_PLACE)
        .relu("quantized::add_scalar_relu_out")
        .unit(2)
        .scalar(),
];
pub(super) const MUL: &[Form] = &[
    Form::new("quantized::mul", BINARY).relu("quantized::mul_relu"),
    Form::new("quantized::mul_scalar", WITH_NUMBER).relu("quantized::mul_scalar_relu").scalar(),
];
pub(super) const MUL_IN_PLACE: &[Form] = &[
    Form::new("quantized::mul", BINARY).relu("quantized::mul_relu"),
    Form::new("quantized::mul_scalar_out", WITH_NUMBER_IN_PLACE).relu("quantized::mul_scalar_relu_out").scalar(),
];
