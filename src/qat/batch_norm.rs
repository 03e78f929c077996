//! Batch norm after a convolution while both are trained.
//!
//! The convolution runs with the weight that it has once batch norm is folded, `w * g / sqrt(running_var + eps)`, which is
//! what gets quantized; its result is divided by the same factor before batch norm takes it, so that in training the
//! statistics are those of the batch, as in `torch.ao.nn.intrinsic.qat.ConvBn2d`. In evaluation, and once frozen, only
//! the shift of the running statistics is added.

use crate::error::{Error, Result};
use crate::ir::{DType, Graph, IValue, Module, Node, Tensor, Type, Value};
use crate::pass::op_table::Operator;

/// A batch norm that was folded into the convolution before it, as it was before.
pub(super) struct BatchNorm {
    /// The attribute that holds the convolution's weight.
    pub weight_name: String,
    layer_weight: Tensor,
    layer_bias: Option<Tensor>,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: f64,
    momentum: f64,
}

/// A batch norm that could be trained, and the convolution before it.
pub(super) struct Candidate<'g> {
    norm: Node<'g>,
    convolution: Node<'g>,
    batch_norm: BatchNorm,
}

/// The batch norms of a flat graph that directly follow a convolution, all their numbers being constants.
pub(super) fn candidates(graph: &Graph) -> Vec<Candidate<'_>> {
    let norms = graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::batch_norm");
    norms.filter_map(Candidate::of).collect()
}

impl<'g> Candidate<'g> {
    fn of(norm: Node<'g>) -> Option<Self> {
        let convolution = norm.input(0)?.node();
        if !matches!(convolution.kind(), "aten::conv1d" | "aten::conv2d" | "aten::conv3d") {
            return None;
        }
        let constant = |node: Node<'g>, name: &str| node.named_input(name).and_then(Value::constant);
        let tensor = |value: Option<IValue>| match value {
            Some(IValue::Tensor(tensor)) if tensor.dtype() == Some(DType::F32) => Some(tensor),
            _ => None,
        };
        let mean = tensor(constant(norm, "running_mean"))?;
        let affine = |name: &str, missing: f32| match constant(norm, name)? {
            IValue::None => Tensor::from_slice(&vec![missing; mean.shape()[0] as usize], &mean.shape()).ok(),
            value => tensor(Some(value)),
        };
        let layer_bias = match constant(convolution, "bias")? {
            IValue::None => None,
            value => Some(tensor(Some(value))?),
        };
        let batch_norm = BatchNorm {
            weight_name: String::new(),
            layer_weight: tensor(constant(convolution, "weight"))?,
            layer_bias,
            scale: affine("weight", 1.0)?,
            shift: affine("bias", 0.0)?,
            variance: tensor(constant(norm, "running_var"))?,
            mean,
            eps: constant(norm, "eps")?.as_number()?,
            // `None` in Python (a cumulative average) is traced as 0: the statistics then stay.
            momentum: constant(norm, "momentum")?.as_number()?,
        };
        Some(Self { norm, convolution, batch_norm })
    }

    /// What to bring back later, where the batch norm was folded meanwhile and the weight became an attribute.
    pub fn folded(self) -> Option<BatchNorm> {
        let read = self.convolution.input(1)?.node();
        let weight_name = read.name_attribute().filter(|_| read.kind() == "prim::GetAttr")?;
        self.norm.is_destroyed().then_some(BatchNorm { weight_name, ..self.batch_norm })
    }
}

impl BatchNorm {
    fn module(&self) -> Result<Module> {
        let module = Module::new("jitquant.BatchNorm")?;
        let (float, boolean, ints) = (Type::parse("float")?, Type::parse("bool")?, Type::parse("List[int]")?);
        let dimensions = self.layer_weight.shape().len();
        let shape = |axis: usize| IValue::int_list((0..dimensions).map(|d| if d == axis { -1 } else { 1 }));
        module.register_attribute("training", &boolean, &false.into())?;
        module.register_attribute("frozen", &boolean, &false.into())?;
        module.register_attribute("eps", &float, &self.eps.into())?;
        module.register_attribute("momentum", &float, &self.momentum.into())?;
        module.register_attribute("weight_shape", &ints, &shape(0))?;
        module.register_attribute("result_shape", &ints, &shape(1))?;
        module.register_parameter("weight", self.scale.deep_clone()?)?;
        module.register_parameter("bias", self.shift.deep_clone()?)?;
        let zeros = || Tensor::from_slice(&vec![0.0f32; self.mean.shape()[0] as usize], &self.mean.shape());
        match &self.layer_bias {
            Some(bias) => module.register_parameter("layer_bias", bias.deep_clone()?)?,
            None => module.register_buffer("layer_bias", zeros()?)?,
        }
        module.register_buffer("running_mean", self.mean.deep_clone()?)?;
        module.register_buffer("running_var", self.variance.deep_clone()?)?;
        module.define(
            "def factor(self) -> Tensor:\n    \
             return self.weight * torch.rsqrt(self.running_var + self.eps)\n",
        )?;
        module.define(
            "def folded_weight(self, w: Tensor) -> Tensor:\n    \
             return w * torch.reshape(self.factor(), self.weight_shape)\n",
        )?;
        module.define(
            "def folded_bias(self) -> Tensor:\n    \
             return self.bias + (self.layer_bias - self.running_mean) * self.factor()\n",
        )?;
        module.define(
            "def normalize(self, y: Tensor) -> Tensor:\n    \
             if self.training and not self.frozen:\n        \
             factor = self.factor()\n        \
             factor = torch.where(factor == 0.0, torch.ones_like(factor), factor)\n        \
             y = y / torch.reshape(factor, self.result_shape) + torch.reshape(self.layer_bias, self.result_shape)\n        \
             return torch.batch_norm(y, self.weight, self.bias, self.running_mean, self.running_var, True, \
             self.momentum, self.eps, False)\n    \
             return y + torch.reshape(self.folded_bias(), self.result_shape)\n",
        )?;
        Ok(module)
    }

    /// Puts the batch norm back behind its convolution, as submodule `name` of the observed flat module.
    ///
    /// # Errors
    /// Where the convolution is not there any more.
    pub fn restore(&self, flat: &Module, graph: &Graph, name: &str) -> Result<()> {
        let convolution = convolution_of(graph, &self.weight_name)
            .ok_or_else(|| Error::invalid(format!("the convolution of '{}' is gone", self.weight_name)))?;
        flat.register_submodule(name, &self.module()?)?;
        flat.set_attribute(&self.weight_name, &self.layer_weight.deep_clone()?.into())?;
        let this = graph.inputs()[0];
        // Where the weight is observed, its observer sees the folded one.
        let weight = convolution.inputs()[1].node();
        let (user, index) = if weight.kind() == "prim::CallMethod" { (weight, 1) } else { (convolution, 1) };
        let batch_norm = user.insert_get_attribute(this, name)?;
        let folded = user.insert_method_call(batch_norm, "folded_weight", &[user.inputs()[index]])?;
        user.replace_input(index, folded)?;
        convolution.replace_input(2, convolution.insert_constant(IValue::None)?)?;
        let result = convolution.outputs()[0];
        let next = convolution.next();
        let normalized = next.insert_method_call(next.insert_get_attribute(this, name)?, "normalize", &[result])?;
        normalized.set_type(&result.type_of())?;
        normalized.node().copy_metadata(convolution)?;
        result.replace_all_uses_with(normalized)?;
        normalized.node().replace_input(1, result)
    }
}

/// The convolution whose weight is attribute `name`, through an observer and a batch norm or not.
fn convolution_of<'g>(graph: &'g Graph, name: &str) -> Option<Node<'g>> {
    graph.all_nodes().into_iter().find(|node| {
        let index = Operator::of(*node).and_then(|row| row.weight);
        let mut weight = index.and_then(|index| Operator::argument(*node, index));
        while let Some(call) = weight.map(Value::node).filter(|node| node.kind() == "prim::CallMethod") {
            weight = call.input(1);
        }
        let read = weight.map(Value::node).filter(|read| read.kind() == "prim::GetAttr");
        read.and_then(|read| read.name_attribute()).as_deref() == Some(name)
    })
}

/// Folds each trained batch norm of the flat module into its convolution for good.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn fold_trained(flat: &Module, graph: &Graph) -> Result<()> {
    let calls = |method: &'static str| {
        let is_call = move |node: &Node<'_>| {
            node.kind() == "prim::CallMethod" && node.name_attribute().as_deref() == Some(method)
        };
        graph.all_nodes().into_iter().filter(is_call)
    };
    let owner = |call: Node<'_>| {
        let path = call.input(0).and_then(Value::attribute_path);
        let path = path.ok_or_else(|| Error::invalid("a batch norm is not reached through attributes of self"))?;
        flat.submodule(&path.join("."))
    };
    for call in calls("folded_weight") {
        let batch_norm = owner(call)?;
        let read = call.inputs()[1].node();
        let name = read.name_attribute().ok_or_else(|| Error::invalid("a trained weight is no attribute"))?;
        let folded = batch_norm.call("folded_weight", &[flat.attribute(&name)?])?;
        flat.set_attribute(&name, &folded)?;
        call.outputs()[0].replace_all_uses_with(call.inputs()[1])?;
        call.destroy()?;
    }
    for call in calls("normalize") {
        let bias = owner(call)?.call::<IValue>("folded_bias", &[])?;
        let convolution = call.inputs()[1].node();
        convolution.replace_input(2, convolution.insert_constant(bias)?)?;
        call.outputs()[0].replace_all_uses_with(call.inputs()[1])?;
        call.destroy()?;
    }
    Ok(())
}
