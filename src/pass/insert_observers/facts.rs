//! What a graph by itself says about observing its values.

use std::collections::HashSet;

use crate::ir::{Block, Graph, Module, Node, Type, Use, Value};
use crate::pass::QuantType;
use crate::pass::op_table::{Conditions, Kernel, Operator, PassThrough, Propagation, ReluFusion};
use crate::qconfig::QConfig;

/// libtorch's number of `float16`: a dynamic observer with this `dtype` converts weights and watches no activations.
const HALF: i64 = crate::ir::DType::F16 as i64;

/// Decides which values are observed, and by which of a part's two observers.
pub(super) struct Wanted {
    pub quant_type: QuantType,
    /// Nodes ([`Node::address`]) that stay in float whatever the table says: they ask for no observers.
    pub stay_float: HashSet<usize>,
    /// Whether the table's conditions are asked.
    pub conditions: Conditions,
    /// Whether rows hold that are for flat graphs alone ([`Operator::flat_only`]).
    pub flat: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Activation,
    Weight,
}

impl Wanted {
    fn row(&self, node: Node<'_>) -> Option<&'static Operator> {
        Operator::of(node).filter(|row| self.flat || !row.flat_only)
    }

    fn row_of_use(&self, place: Use<'_>) -> Option<(&'static Operator, usize)> {
        Operator::of_use(place).filter(|(row, _)| self.flat || !row.flat_only)
    }

    fn has_quantized_result(&self, node: Node<'_>) -> bool {
        self.row(node).is_some_and(is_quantized_row)
    }

    /// The observer that watches `value`, `qconfig` being the configuration of a node; `None` where it stays
    /// unobserved. What computes a value decides before what takes it.
    pub fn observer<'q>(
        &self,
        value: Value<'_>,
        qconfig: impl Fn(Node<'_>) -> Option<&'q QConfig>,
    ) -> Option<&'q Module> {
        let is_weight = self.role(value)? == Role::Weight;
        let observer = |node: Node<'_>| {
            let qconfig = qconfig(node)?;
            Some(if is_weight { &qconfig.weight } else { &qconfig.activation })
        };
        if self.quant_type == QuantType::Static
            && self.has_quantized_result(value.node())
            && let Some(observer) = observer(value.node())
        {
            return Some(observer);
        }
        let places = value.uses().into_iter().filter_map(|place| Some((place.user, self.row_of_use(place)?)));
        let mut asking = places.filter(|(_, (row, argument))| row.observes(*argument, self.quant_type));
        let found = asking.find_map(|(user, _)| observer(user))?;
        (is_weight || self.quant_type == QuantType::Static || !is_half(found)).then_some(found)
    }

    /// What kind of observer could watch `value`; `None` where none does.
    fn role(&self, value: Value<'_>) -> Option<Role> {
        if !value.type_of().is_tensor() {
            return None;
        }
        let uses: Vec<_> = self.uses(value).collect();
        if uses.iter().any(|(row, argument)| row.bias == Some(*argument) || row.unobserved.contains(argument)) {
            return None;
        }
        let is_weight = uses.iter().any(|(row, argument)| row.weight == Some(*argument));
        Some(if is_weight { Role::Weight } else { Role::Activation })
    }

    /// What may be quantized of what takes `value`, and the argument that it is.
    fn uses(&self, value: Value<'_>) -> impl Iterator<Item = (&'static Operator, usize)> {
        let uses = value.uses().into_iter().filter(|place| !self.stay_float.contains(&place.user.address().addr()));
        uses.filter_map(|place| self.row_of_use(place))
    }

    fn has_quantized_use(&self, value: Value<'_>) -> bool {
        self.uses(value).any(|(row, argument)| row.observes(argument, self.quant_type))
    }

    /// Whether the outputs of `node` are observed given what is known of its inputs: an operator that is quantized
    /// where its inputs are is observed if they are, or if something quantized takes its output.
    pub fn applies<'g>(&self, node: Node<'g>, is_observed: impl Fn(Value<'g>) -> bool) -> bool {
        node.outputs().into_iter().any(|output| self.has_quantized_use(output))
            || self.follows_inputs(node, is_observed)
    }

    /// As [`Wanted::applies`], whatever takes the outputs.
    pub fn follows_inputs<'g>(&self, node: Node<'g>, is_observed: impl Fn(Value<'g>) -> bool) -> bool {
        let argument = |index| node.input(index).is_some_and(&is_observed);
        match Operator::of(node).and_then(|row| row.propagation) {
            Some(Propagation::FirstArgument) => argument(0),
            Some(Propagation::BothArguments) => argument(0) && argument(1),
            None => true,
        }
    }
}

/// The values of one graph, all calls inlined, that static quantization observes, in order: what holds without modules and
/// their configuration.
pub(crate) fn observed_in_graph(graph: &Graph) -> Vec<Value<'_>> {
    let conditions = Conditions::Ignored;
    let wanted = Wanted { quant_type: QuantType::Static, stay_float: HashSet::new(), conditions, flat: false };
    let nodes = graph.all_nodes();
    let after_relu: HashSet<_> = nodes.iter().filter_map(|node| Some(observed_after_relu(*node)?.0)).collect();
    let mut counts_as_observed = HashSet::new();
    let mut observed = Vec::new();
    for value in graph.inputs().into_iter().chain(nodes.iter().flat_map(|node| node.outputs())) {
        let sources = passes_from(value, conditions);
        if !sources.is_empty() && sources.iter().all(|source| counts_as_observed.contains(source)) {
            counts_as_observed.insert(value);
        }
        let is_quantized = wanted.has_quantized_use(value)
            || (wanted.has_quantized_result(value.node())
                && wanted.applies(value.node(), |input| counts_as_observed.contains(&input)));
        let is_left_out = wanted.role(value).is_none() || after_relu.contains(&value);
        if is_quantized && !is_left_out && counts_as_observed.insert(value) {
            observed.push(value);
        }
    }
    observed
}

fn is_quantized_row(row: &Operator) -> bool {
    matches!(row.kernel, Kernel::Static | Kernel::StaticAndDynamic) || row.propagation.is_some()
}

fn is_half(observer: &Module) -> bool {
    observer.attribute("dtype").ok().and_then(|dtype| dtype.as_int()) == Some(HALF)
}

/// A number, or a constant tensor without dimensions.
pub(in crate::pass) fn is_scalar(value: Value<'_>) -> bool {
    let constant = value.constant();
    matches!(value.type_of().kind().as_str(), "IntType" | "FloatType" | "ComplexType" | "NumberType")
        || constant.is_some_and(|constant| constant.as_tensor().is_some_and(|tensor| tensor.shape().is_empty()))
}

/// The values that have to be observed for `output` to count as observed too; empty where it needs its own observer.
pub(in crate::pass) fn passes_from<'g>(output: Value<'g>, conditions: Conditions) -> Vec<Value<'g>> {
    let node = output.node();
    let Some(row) = Operator::of(node).filter(|row| row.passes_on(output, conditions)) else { return Vec::new() };
    let first = || Operator::argument(node, 0).into_iter().collect();
    if row.propagation == Some(Propagation::BothArguments) && node.input(1).is_some_and(is_scalar) {
        return first();
    }
    let is_tensor = |value: &Value<'_>| value.type_of().is_tensor();
    match row.pass_through {
        PassThrough::No => Vec::new(),
        PassThrough::Shape | PassThrough::Value => first(),
        PassThrough::FirstOutput if output.offset() == 0 => first(),
        PassThrough::FirstOutput => Vec::new(),
        PassThrough::Unpack if is_tensor(&output) => first(),
        PassThrough::Unpack => Vec::new(),
        PassThrough::List if conditions == Conditions::Asked && !is_only_read(output) => Vec::new(),
        PassThrough::List if output.type_of().contained().iter().all(Type::is_tensor) => node.inputs(),
        PassThrough::List => Vec::new(),
        PassThrough::Tuple => node.inputs().into_iter().filter(is_tensor).collect(),
        // In a flat graph lists that grow where it can be told are written out; what is left is not.
        PassThrough::Append if conditions == Conditions::Asked => Vec::new(),
        PassThrough::Append => node.inputs(),
        PassThrough::Branches if node.outputs().len() == 1 => {
            node.blocks().into_iter().filter(|block| !always_raises(*block)).flat_map(Block::outputs).collect()
        }
        PassThrough::Branches => Vec::new(),
    }
}

/// Whether a list holds from its making to its last reader what it was made of: nobody changes it, or hands it on to code that
/// might.
fn is_only_read(list: Value<'_>) -> bool {
    list.uses().into_iter().all(|place| {
        let schema = place.user.schema();
        let argument = schema.as_ref().and_then(|schema| schema.arguments.get(place.offset));
        place.user.kind() == "prim::ListUnpack"
            || argument.is_some_and(|argument| !argument.is_write && argument.alias.is_empty())
    })
}

/// Whether a value may be missing when the model runs: what an early return leaves out.
pub(super) fn may_be_missing<'g>(value: Value<'g>) -> bool {
    fn search<'g>(value: Value<'g>, seen: &mut HashSet<Value<'g>>) -> bool {
        if !seen.insert(value) {
            return false;
        }
        value.node().kind() == "prim::Uninitialized" || value.joined().into_iter().any(|source| search(source, seen))
    }
    search(value, &mut HashSet::new())
}

/// Whether running `block` always ends in an exception, so that its results do not matter.
pub(super) fn always_raises(block: Block<'_>) -> bool {
    block.nodes().any(|node| match node.kind() {
        "prim::RaiseException" => true,
        "prim::If" => node.blocks().into_iter().all(always_raises),
        _ => false,
    })
}

/// The clamp's output, where `clamp` bounds by constants what a quantized operator computes, and that input: the range
/// that counts is the one after the clamp ([`crate::pass::prepare::settle_clamps`]).
pub(super) fn observed_after_clamp<'g>(clamp: Node<'g>) -> Option<(Value<'g>, Value<'g>)> {
    let input = clamp.input(0)?;
    let row = Operator::of(clamp)?;
    let fits = row.is_clamp
        && clamp.inputs()[1..].iter().all(|bound| bound.is_constant())
        && row.passes_on(clamp.output(0)?, Conditions::Asked)
        && Operator::of(input.node()).is_some_and(is_quantized_row)
        && input.uses().len() == 1
        && input.node().owning_block() == clamp.owning_block();
    fits.then_some((input, clamp.output(0)?))
}

/// The relu's output, where `relu` is one that a quantized form of what computes its input takes in, and that input. In a
/// flat graph this holds for all of them; libtorch's passes ([`observed_after_relu`]) know a convolution with a relu by
/// its module only, and quantize the negative half of the others' results for nothing.
pub(super) fn observed_after_fused_relu<'g>(relu: Node<'g>) -> Option<(Value<'g>, Value<'g>)> {
    let input = relu.input(0)?;
    let fits = relu.kind().starts_with("aten::")
        && Operator::of(relu)?.relu == ReluFusion::Relu
        && Operator::of(input.node())?.forms.iter().any(|form| form.with_relu.is_some())
        && input.uses().len() == 1
        && input.node().owning_block() == relu.owning_block();
    fits.then_some((input, relu.output(0)?))
}

/// The relu's output, where `relu` is one that fuses with what computes its input, and that input: it is observed
/// after the relu only.
pub(super) fn observed_after_relu<'g>(relu: Node<'g>) -> Option<(Value<'g>, Value<'g>)> {
    if Operator::of(relu)?.relu != ReluFusion::Relu {
        return None;
    }
    let input = Operator::argument(relu, 0)?;
    let first = input.node();
    let ReluFusion::Before { unit_argument } = Operator::of(first)?.relu else { return None };
    let is_alone = input.uses().len() == 1 && first.owning_block() == relu.owning_block();
    let has_unit = || {
        unit_argument.is_none_or(|index| {
            first.input(index).and_then(Value::constant).and_then(|constant| constant.as_int()) == Some(1)
        })
    };
    let is_operator = relu.kind().starts_with("aten::");
    let fits = is_alone && calls_forward(first) && calls_forward(relu) && (is_operator || has_unit());
    fits.then_some((input, relu.output(0)?))
}

/// Whether a method call is one of `forward` (or `forward1`, … as modules used several times have them) with one
/// argument; other operators always fit.
fn calls_forward(node: Node<'_>) -> bool {
    if node.kind() != "prim::CallMethod" {
        return true;
    }
    let name = node.name_attribute().unwrap_or_default();
    let number = name.strip_prefix("forward");
    node.inputs().len() == 2 && number.is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
}
