//! What a Program is made of.

use jitquant_kernels::{DynamicScheme, PackedConv, PackedGemm, QParams, Table, Window};

use crate::arena::Arenas;
use crate::float::Float;
use crate::fuse::fuse;
use crate::plan::Plans;
use crate::size::Size;
use crate::view::View;
use crate::{Result, refuse};

/// A value of a Program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ValueId(pub(crate) usize);

/// A weight that the caller gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct WeightId(pub(crate) usize);

/// An integer that the caller gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct NumberId(pub(crate) usize);

/// A layer's weight as a call gives it: packed, with a scale for all outputs or one each, and a bias (empty for none).
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// A convolution of so many spatial dimensions.
    Conv {
        /// The packed weight.
        packed: &'a PackedConv,
        /// 1, 2 or 3 as the tensors have them.
        dimensions: usize,
        /// The weight's scales.
        scales: &'a [f32],
        /// The bias.
        bias: &'a [f32],
    },
    /// A linear layer.
    Linear {
        /// The packed weight.
        packed: &'a PackedGemm,
        /// The weight's scales.
        scales: &'a [f32],
        /// The bias.
        bias: &'a [f32],
    },
}

/// What a layer's sums become.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// Bytes, as [`Requantize`](jitquant_kernels::Requantize) says.
    Bytes {
        /// What they stand for.
        to: QParams,
        /// The bounds of a clamp.
        min: u8,
        /// The upper one.
        max: u8,
        /// A second operand, which is added before rounding, stands for this.
        residual: Option<QParams>,
        /// A function of one byte, applied last.
        table: Option<Box<Table>>,
    },
    /// Floats within these bounds.
    Floats {
        /// The lower one.
        #[serde(with = "crate::bound::lower")]
        min: f32,
        /// The upper one.
        #[serde(with = "crate::bound::upper")]
        max: f32,
    },
}

/// A layer whose input are bytes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Product {
    /// Its weight.
    pub weight: WeightId,
    /// What the input stands for.
    pub x: QParams,
    /// What becomes of the sums.
    pub store: Store,
}

/// What a step computes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Floats to bytes.
    Quantize(QParams),
    /// Bytes to floats.
    Dequantize(QParams),
    /// A function of one byte.
    Lookup(Box<Table>),
    /// Bytes within bounds.
    Clamp(u8, u8),
    /// A convolution; a residual is its second operand.
    Conv(Product),
    /// A linear layer; a residual is its second operand.
    Linear(Product),
    /// A linear layer on floats that are quantized by their own range.
    LinearDynamic {
        /// Its weight.
        weight: WeightId,
        /// Whose range.
        scheme: DynamicScheme,
        /// Bounds of the result.
        #[serde(with = "crate::bound::lower")]
        min: f32,
        /// The upper one.
        #[serde(with = "crate::bound::upper")]
        max: f32,
    },
    /// The sum of two operands, broadcast.
    Add(Binary),
    /// The product of two operands, broadcast.
    Mul(Binary),
    /// Operands one behind the other along a dimension, those with a table looked up in it.
    Cat {
        /// The dimension.
        axis: i64,
        /// One for each operand.
        tables: Vec<Option<Box<Table>>>,
    },
    /// The largest of each window.
    MaxPool {
        /// The window.
        window: Window,
        /// Spatial dimensions of the input.
        dimensions: usize,
    },
    /// The mean of each window.
    AvgPool {
        /// The window and the divisor.
        pool: jitquant_kernels::AveragePool,
        /// Spatial dimensions of the input.
        dimensions: usize,
        /// What 0.0 is in bytes.
        zero_point: u8,
    },
    /// Means that give an image of these spatial sizes.
    AdaptiveAvgPool {
        /// The sizes.
        sizes: Vec<i64>,
        /// What 0.0 is in bytes.
        zero_point: u8,
    },
    /// The mean over all dimensions but the first two.
    Mean {
        /// These dimensions; with others the call is refused.
        axes: Vec<i64>,
        /// Whether they stay, with size 1.
        keep: bool,
        /// What 0.0 is in bytes.
        zero_point: u8,
    },
    /// What floats are computed from floats. Files have no form for it yet.
    #[serde(skip)]
    Float(Float),
    /// What moves or reinterprets.
    View(View),
}

/// An element-wise operator of two operands of bytes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Binary {
    /// What the first one stands for.
    pub a: QParams,
    /// What the second one stands for.
    pub b: QParams,
    /// What the result stands for.
    pub to: QParams,
    /// The bounds of a clamp.
    pub min: u8,
    /// The upper one.
    pub max: u8,
}

impl Op {
    /// How many operands it takes.
    fn operands(&self) -> usize {
        match self {
            Self::Conv(product) | Self::Linear(product) => match &product.store {
                Store::Bytes { residual: Some(_), .. } => 2,
                _ => 1,
            },
            Self::Add(_) | Self::Mul(_) => 2,
            Self::Cat { tables, .. } => tables.len(),
            Self::Float(float) => float.operands(),
            _ => 1,
        }
    }

    /// Its weight.
    pub(crate) fn weight(&self) -> Option<WeightId> {
        match self {
            Self::Conv(product) | Self::Linear(product) => Some(product.weight),
            Self::LinearDynamic { weight, .. } | Self::Float(Float::StretchedLinear { weight, .. }) => Some(*weight),
            _ => None,
        }
    }

    /// A name for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Quantize(_) => "quantize",
            Self::Dequantize(_) => "dequantize",
            Self::Lookup(_) => "lookup",
            Self::Clamp(..) => "clamp",
            Self::Conv(_) => "conv",
            Self::Linear(_) => "linear",
            Self::LinearDynamic { .. } => "linear_dynamic",
            Self::Add(_) => "add",
            Self::Mul(_) => "mul",
            Self::Cat { .. } => "cat",
            Self::MaxPool { .. } => "max_pool",
            Self::AvgPool { .. } => "avg_pool",
            Self::AdaptiveAvgPool { .. } => "adaptive_avg_pool",
            Self::Mean { .. } => "mean",
            Self::Float(float) => float.name(),
            Self::View(_) => "view",
        }
    }
}

/// One step: what it computes of which values.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it computes.
    pub op: Op,
    /// Its operands.
    pub inputs: Vec<ValueId>,
    /// Its result.
    pub output: ValueId,
}

/// Steps over values whose sizes are known when it is called: see the crate's page.
pub struct Program {
    pub(crate) values: usize,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) numbers: usize,
    pub(crate) weights: usize,
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) plans: Plans,
    pub(crate) arenas: Arenas,
}

impl Program {
    /// Its steps, in their order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

/// Makes a [`Program`] step by step.
#[derive(Default)]
pub struct Builder {
    values: usize,
    inputs: Vec<ValueId>,
    numbers: usize,
    weights: usize,
    steps: Vec<Step>,
}

impl Builder {
    fn value(&mut self) -> ValueId {
        self.values += 1;
        ValueId(self.values - 1)
    }

    /// The next tensor that a call gives.
    pub fn input(&mut self) -> ValueId {
        let value = self.value();
        self.inputs.push(value);
        value
    }

    /// The next integer that a call gives.
    pub fn number(&mut self) -> NumberId {
        self.numbers += 1;
        NumberId(self.numbers - 1)
    }

    /// The next weight that a call gives.
    pub fn weight(&mut self) -> WeightId {
        self.weights += 1;
        WeightId(self.weights - 1)
    }

    /// A step behind those that there are; its result.
    ///
    /// # Errors
    /// Where operands do not fit the operator, or are none of this Program.
    pub fn step(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId> {
        if op.operands() != inputs.len() || inputs.is_empty() {
            return refuse(format!("{}: {} operands where it takes {}", op.name(), inputs.len(), op.operands()));
        }
        let mut asked: Vec<ValueId> = inputs.to_vec();
        let mut numbers = Vec::new();
        if let Op::View(view) = &op {
            view.sizes().into_iter().for_each(|size| {
                size.values(&mut asked);
                given(size, &mut numbers);
            });
        }
        let known = asked.iter().all(|value| value.0 < self.values)
            && numbers.iter().all(|number| number.0 < self.numbers)
            && op.weight().is_none_or(|weight| weight.0 < self.weights);
        if !known {
            return refuse(format!("{}: an operand that is none of this Program", op.name()));
        }
        if let Op::AvgPool { pool, .. } = &op
            && pool.window.dilation != [1; 3]
        {
            return refuse("avg_pool: a dilated window");
        }
        if let Op::AvgPool { pool, .. } = &op
            && pool.divisor_override == Some(0)
        {
            return refuse("avg_pool: a divisor of 0");
        }
        let output = self.value();
        self.steps.push(Step { op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// The Program that gives these values. Steps that a single one computes faster are fused ([`Float::Attention`],
    /// [`Float::StretchedLinear`]).
    ///
    /// # Errors
    /// Where a value is none of this Program.
    pub fn finish(self, outputs: &[ValueId]) -> Result<Program> {
        if outputs.iter().any(|value| value.0 >= self.values) {
            return refuse("an output that is none of this Program");
        }
        let Self { values, inputs, numbers, weights, mut steps } = self;
        fuse(&mut steps, outputs);
        let (plans, arenas) = (Plans::default(), Arenas::default());
        Ok(Program { values, inputs, numbers, weights, steps, outputs: outputs.to_vec(), plans, arenas })
    }
}

/// The numbers that a size is computed with.
fn given(size: &Size, into: &mut Vec<NumberId>) {
    match size {
        Size::Given(number) => into.push(*number),
        Size::Known(_) | Size::Of(..) => {}
        Size::Sum(a, b) | Size::Difference(a, b) | Size::Product(a, b) | Size::Quotient(a, b) => {
            given(a, into);
            given(b, into);
        }
    }
}
