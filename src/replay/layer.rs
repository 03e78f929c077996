//! An observed layer as the replay sees it.

use super::solver::Window;
use crate::error::Result;
use crate::ir::{IValue, Module, Node, Tensor};
use crate::pass::prepare::{WeightGrid, observed_weight, rounded_by_sums};

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

    pub fn rounded_to_nearest(&self, weight: &Tensor) -> Result<Option<Tensor>> {
        let Some(grid) = self.grid(weight)? else { return Ok(None) };
        let mut values = weight.to_f32_vec()?;
        let size = (values.len() / weight.shape()[0].max(1) as usize).max(1);
        for (channel, row) in values.chunks_mut(size).enumerate() {
            let scale = grid.scale(channel);
            row.iter_mut().for_each(|w| *w = (*w / scale).round_ties_even().clamp(-128.0, 127.0) * scale);
        }
        Tensor::from_slice(&values, &weight.shape()).map(Some)
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
