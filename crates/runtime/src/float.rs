//! Operators on floats.

use jitquant_kernels::Activation;
use jitquant_kernels::float::Arithmetic;

use crate::program::WeightId;

/// What a step computes of floats. Operands come in the order in which a variant names them.
///
/// Errors are those of [`jitquant_kernels::float`]: sums, differences, products and quotients are rounded once, all else is
/// within the bound that its kernel states.
#[derive(Clone, Debug, PartialEq)]
pub enum Float {
    /// A function of each value.
    Function(Activation),
    /// `a op b`, broadcast.
    Arithmetic {
        /// The operation.
        op: Arithmetic,
        /// Whether the result must have the sizes of `a`, as operators in place have it.
        in_place: bool,
    },
    /// `x op number`, or `number op x`.
    Number {
        /// The operation.
        op: Arithmetic,
        /// The number.
        number: f32,
        /// Whether the number is the left operand.
        is_left: bool,
    },
    /// `a + b * c`, broadcast: the product is rounded, then the sum.
    MultiplyAdd {
        /// Whether the result must have the sizes of `a`.
        in_place: bool,
    },
    /// The mean of the last dimensions taken off and their deviation divided out: `x`, then weight and bias where there are
    /// such.
    LayerNorm {
        /// The sizes of these dimensions.
        sizes: Vec<i64>,
        /// Added to the variance.
        eps: f64,
        /// Whether there is a factor for each element.
        weight: bool,
        /// Whether something is added to each.
        bias: bool,
    },
    /// Softmax along the last dimension.
    Softmax,
    /// The least or the largest value along the last dimension.
    Extreme {
        /// The largest one.
        is_most: bool,
        /// Whether the dimension stays, with size 1.
        keeps: bool,
    },
    /// Products of the matrices in the last two dimensions, broadcast over the others.
    Matmul,
    /// `softmax(q * transpose(k) * scale + mask) * v` of the matrices in the last two dimensions: `q`, `k`, `v`, then a mask
    /// where there is one. A mask of truth values leaves out where it is false.
    Attention(Attention),
    /// A linear layer on rows that are stretched to 0 to 1 first: `span * linear((function(x) - low) / span) + low * factors +
    /// bias`, with `low` the least of a row and `span` the difference from the largest to it (at least 1e-12). `x`, `factors`,
    /// `bias`, then a residual that is added last, where there is one.
    ///
    /// Where it stands for steps that are [`fused`](crate::Builder::finish), results differ from theirs by the rounding of these
    /// operations: by at most `2^-21 * (span * sum |t w| + |low * factor| + |bias| + |residual|)`.
    StretchedLinear {
        /// The layer's weight, which has no bias of its own.
        weight: WeightId,
        /// A function of `x` before all else.
        function: Option<Activation>,
        /// Whether there is a residual.
        residual: bool,
    },
}

/// The options of [`Float::Attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// The factor of the scores; `1 / sqrt` of a query's length where there is none.
    pub scale: Option<f32>,
    /// Row `i` sees the keys up to `i` only.
    pub causal: bool,
    /// Whether there is a mask.
    pub mask: bool,
    /// A query that sees nothing gives zeros, not NaN.
    pub blind_is_zero: bool,
    /// Keys are columns of `k` (`[..., dim, columns]`), not rows.
    pub keys_are_columns: bool,
    /// Whether the result's memory has the heads of a query together, `[batch, rows, heads, dim]`, whatever becomes of it.
    pub heads_inside: bool,
}

impl Float {
    /// How many operands it takes.
    pub(crate) fn operands(&self) -> usize {
        match self {
            Self::Function(_) | Self::Number { .. } | Self::Softmax | Self::Extreme { .. } => 1,
            Self::Arithmetic { .. } | Self::Matmul => 2,
            Self::MultiplyAdd { .. } => 3,
            Self::LayerNorm { weight, bias, .. } => 1 + usize::from(*weight) + usize::from(*bias),
            Self::Attention(form) => 3 + usize::from(form.mask),
            Self::StretchedLinear { residual, .. } => 3 + usize::from(*residual),
        }
    }

    /// A name for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Function(_) => "function",
            Self::Arithmetic { op, .. } | Self::Number { op, .. } => name(*op),
            Self::MultiplyAdd { .. } => "multiply_add",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Softmax => "softmax",
            Self::Extreme { is_most: true, .. } => "amax",
            Self::Extreme { is_most: false, .. } => "amin",
            Self::Matmul => "matmul",
            Self::Attention(_) => "attention",
            Self::StretchedLinear { .. } => "linear_stretched",
        }
    }
}

/// The name of an operation.
pub(crate) fn name(op: Arithmetic) -> &'static str {
    match op {
        Arithmetic::Add => "add",
        Arithmetic::Sub => "sub",
        Arithmetic::Mul => "mul",
        Arithmetic::Div => "div",
    }
}
