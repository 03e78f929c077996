//! An observed layer as the replay sees it.

use super::windows::Window;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor, Value};
use crate::pass::prepare::{WeightGrid, observed_weight, rounded_by_sums};

/// The place of the bias among the arguments of the layers of [`observed_weight`].
const BIAS: usize = 2;

/// A convolution or a linear layer whose weight is observed.
#[derive(Clone)]
pub(super) struct Layer<'g> {
    pub node: Node<'g>,
    /// The attribute that its weight is.
    pub weight_name: String,
    observer: Module,
}

impl<'g> Layer<'g> {
    pub fn of(module: &Module, node: Node<'g>) -> Option<Self> {
        let (observer, weight_name) = observed_weight(module, node)?;
        Some(Self { node, weight_name, observer })
    }

    /// The attribute of the module that its bias is, where it is one and no constant.
    pub fn bias_name(&self) -> Option<String> {
        let read = self.node.input(BIAS)?.node();
        let is_own = read.kind() == "prim::GetAttr" && read.input(0) == self.node.graph().inputs().first().copied();
        read.name_attribute().filter(|_| is_own)
    }

    /// Its bias, where it has one that is known.
    pub fn bias(&self, module: &Module) -> Result<Option<Vec<f32>>> {
        let value = match self.bias_name() {
            Some(name) => Some(module.attribute(&name)?),
            None => self.node.input(BIAS).and_then(Value::constant),
        };
        match value {
            Some(IValue::Tensor(bias)) => bias.to_f32_vec().map(Some),
            _ => Ok(None),
        }
    }

    pub fn set_bias(&self, module: &Module, bias: &[f32]) -> Result<()> {
        let bias: IValue = Tensor::from_slice(bias, &[bias.len() as i64])?.into();
        match self.bias_name() {
            Some(name) => module.set_attribute(&name, &bias),
            None => self.node.replace_input(BIAS, self.node.insert_constant(bias)?),
        }
    }

    /// Adds to the bias of each output channel.
    pub fn add_to_bias(&self, module: &Module, what: impl Fn(usize) -> f32) -> Result<()> {
        let outputs = Tensor::try_from(module.attribute(&self.weight_name)?)?.shape()[0] as usize;
        let bias = self.bias(module)?.unwrap_or_else(|| vec![0.0; outputs]);
        let sums: Vec<f32> = bias.into_iter().enumerate().map(|(channel, bias)| bias + what(channel)).collect();
        self.set_bias(module, &sums)
    }

    /// What its output channels get from an input that is `input[c]` all over channel `c`, without the bias.
    pub fn response(&self, module: &Module, input: &[f32]) -> Result<Vec<f32>> {
        let weight = Tensor::try_from(module.attribute(&self.weight_name)?)?;
        let (values, shape) = (weight.to_f32_vec()?, weight.shape());
        let (outputs, of_group) = (shape[0] as usize, shape[1] as usize);
        let window = shape[2..].iter().product::<i64>() as usize;
        let per_group = outputs * of_group / input.len().max(1);
        let of_output = |(output, row): (usize, &[f32])| {
            let first = output / per_group.max(1) * of_group;
            let inputs = &input[first..first + of_group];
            std::iter::zip(row.chunks(window), inputs).map(|(w, x)| w.iter().sum::<f32>() * x).sum()
        };
        Ok(values.chunks(of_group * window).enumerate().map(of_output).collect())
    }

    /// Whether it pads with nothing: a linear layer, or a convolution with paddings of 0.
    pub fn has_no_padding(&self) -> bool {
        match self.node.kind() {
            "aten::linear" => true,
            _ => self.node.named_input("padding").and_then(Value::constant).is_some_and(|padding| match padding {
                IValue::Int(padding) => padding == 0,
                IValue::List { items, .. } => items.iter().all(|item| matches!(item, IValue::Int(0))),
                _ => false,
            }),
        }
    }

    /// Where its results have their channels.
    pub fn channel_axis(&self) -> i64 {
        if self.node.kind() == "aten::linear" { -1 } else { 1 }
    }

    /// The int8 values of its weight, where they are symmetric.
    pub fn grid(&self, weight: &Tensor) -> Result<Option<WeightGrid>> {
        let grid = WeightGrid::of(weight, &self.observer)?;
        Ok(grid.is_symmetric.then_some(grid))
    }

    pub fn rounded_by_sums(&self, weight: &Tensor) -> Result<Option<Tensor>> {
        rounded_by_sums(weight, &self.observer)
    }

    /// The window of a two-dimensional convolution, `Some(None)` of a linear layer; `None` of other layers.
    pub fn window(&self, weight: &Tensor) -> Option<Option<Window>> {
        let pair = |index: usize| match self.node.input(index)?.constant()? {
            IValue::List { items, .. } => match items[..] {
                [IValue::Int(both)] => Some([both, both]),
                [IValue::Int(first), IValue::Int(second)] => Some([first, second]),
                _ => None,
            },
            IValue::Int(both) => Some([both, both]),
            _ => None,
        };
        match (self.node.kind(), &weight.shape()[..]) {
            ("aten::linear", _) => Some(None),
            ("aten::conv2d", [_, _, height, width]) => Some(Some(Window {
                kernel: [*height, *width],
                stride: pair(3)?,
                padding: pair(4)?,
                dilation: pair(5)?,
                groups: self.node.input(6)?.constant()?.as_int()?,
            })),
            _ => None,
        }
    }
}
