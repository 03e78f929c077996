//! Recurrent layers quantized dynamically: int8 weights, and activations with the range of each step's input.

use crate::error::{Context, Error, Result};
use crate::ir::{DType, GeneralPass, IValue, Module, Node, Tensor, Type, Value};
use crate::qconfig::QConfig;

/// An operator and its quantized form.
struct Form {
    float: &'static str,
    quantized: &'static str,
    shape: Shape,
}

/// How the quantized form takes states and weights.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// Layers: weights in a list, for each layer and direction `w_ih, w_hh` and, where it has biases, `b_ih, b_hh`.
    Layers,
    /// A cell, one step of a layer. (The quantized cells round activations to 7 bits, quantized layers to 8.)
    Step,
    /// A cell with a quantized form of its own: `w_ih, w_hh, b_ih, b_hh` are arguments from the third on.
    Cell,
}

const FORMS: [Form; 6] = [
    Form { float: "aten::lstm", quantized: "aten::quantized_lstm", shape: Shape::Layers },
    Form { float: "aten::gru", quantized: "aten::quantized_gru", shape: Shape::Layers },
    Form { float: "aten::lstm_cell", quantized: "aten::quantized_lstm", shape: Shape::Step },
    Form { float: "aten::gru_cell", quantized: "aten::quantized_gru", shape: Shape::Step },
    Form { float: "aten::rnn_tanh_cell", quantized: "quantized::quantized_rnn_tanh_cell_dynamic", shape: Shape::Cell },
    Form { float: "aten::rnn_relu_cell", quantized: "quantized::quantized_rnn_relu_cell_dynamic", shape: Shape::Cell },
];

/// Quantizes the recurrent layers and cells of a frozen module whose node `qconfig` has observers for, in place: their
/// weights, which have to be constants, are packed and become attributes. Layers whose weights are no constants stay.
///
/// A symmetric observer's range is taken as an affine one: the errors of weights add up from step to step, and from the
/// smallest to the largest weight of a channel is less than twice the larger one's distance from 0.
///
/// # Errors
/// Where an observer or libtorch's packing refuses a weight.
pub fn quantize_recurrent<'q>(
    module: &Module,
    method: &str,
    qconfig: impl Fn(Node<'_>) -> Option<&'q QConfig>,
) -> Result<()> {
    let mut graph = module.graph(method)?;
    let packer = Packer::new(module)?;
    for node in graph.all_nodes() {
        let form = FORMS.iter().find(|form| form.float == node.kind());
        if let (Some(form), Some(qconfig)) = (form, qconfig(node)) {
            match form.shape {
                Shape::Layers => packer.quantize_layers(node, form, &qconfig.weight),
                Shape::Step => packer.quantize_step(node, form, &qconfig.weight),
                Shape::Cell => packer.quantize_cell(node, form, &qconfig.weight),
            }
            .context(|| format!("quantizing {} of '{}'", node.kind(), node.scope().unwrap_or_default()))?;
        }
    }
    graph.run(GeneralPass::DeadCodeElimination)
}

// Numbers of `c10/core/QScheme.h`.
const PER_TENSOR_AFFINE: i64 = 0;
pub(super) const PER_CHANNEL_AFFINE: i64 = 1;
const PER_TENSOR_SYMMETRIC: i64 = 2;
pub(super) const PER_CHANNEL_SYMMETRIC: i64 = 3;

struct Packer<'m> {
    module: &'m Module,
    /// TorchScript that quantizes and packs.
    code: Module,
}

/// The weights and biases of one direction of one layer.
struct Cell {
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
}

impl Cell {
    /// From the constants `w_ih, w_hh` and, where given, `b_ih, b_hh`; `None` where one is not a constant.
    fn of(constants: &[Option<IValue>]) -> Result<Option<Self>> {
        let tensor = |index: usize| match constants.get(index) {
            Some(Some(IValue::Tensor(tensor))) => Some(tensor.clone()),
            _ => None,
        };
        let (Some(w_ih), Some(w_hh)) = (tensor(0), tensor(1)) else { return Ok(None) };
        let bias = |index: usize| match constants.get(index) {
            None | Some(Some(IValue::None)) => {
                let rows = w_ih.shape().first().copied().unwrap_or(0);
                Tensor::from_slice(&vec![0.0f32; rows as usize], &[rows]).map(Some)
            }
            Some(_) => Ok(tensor(index)),
        };
        let (Some(b_ih), Some(b_hh)) = (bias(2)?, bias(3)?) else { return Ok(None) };
        Ok(Some(Self { w_ih, w_hh, b_ih, b_hh }))
    }
}

impl<'m> Packer<'m> {
    fn new(module: &'m Module) -> Result<Self> {
        let code = Module::new("jitquant.PackRecurrent")?;
        // The types of packed weights have no name that source code can use: they are inferred.
        code.define(
            "def quantize(self, weight: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    if scale.numel() == 1:
        return torch.quantize_per_tensor(weight, float(scale), int(zero_point), 12)
    return torch.quantize_per_channel(weight, scale, zero_point, axis, 12)

def pack(self, weight: Tensor, bias: Tensor):
    return ops.quantized.linear_prepack(weight, bias)

def cells(self, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor):
    packed_ih, packed_hh = self.pack(w_ih, b_ih), self.pack(w_hh, b_hh)
    return [ops.quantized.make_quantized_cell_params_dynamic(packed_ih, packed_hh, b_ih, b_hh, False)]
",
        )?;
        Ok(Self { module, code })
    }

    /// The int8 weight, with the parameters that a copy of `observer` finds.
    fn quantized(&self, weight: &Tensor, observer: &Module) -> Result<IValue> {
        let observer = observer.copy_instance()?;
        let affine = match observer.attribute("qscheme").ok().and_then(|scheme| scheme.as_int()) {
            Some(PER_CHANNEL_SYMMETRIC) => Some(PER_CHANNEL_AFFINE),
            Some(PER_TENSOR_SYMMETRIC) => Some(PER_TENSOR_AFFINE),
            _ => None,
        };
        if let Some(affine) = affine {
            observer.set_attribute("qscheme", &IValue::Int(affine))?;
        }
        observer.forward(std::slice::from_ref(weight))?;
        let qparams = observer.call::<IValue>("calculate_qparams", &[])?;
        let [scale, zero_point] = qparams.tensors()[..] else {
            return Err(Error::invalid("a weight observer's calculate_qparams should give scale and zero point"));
        };
        let axis = observer.attribute("ch_axis").ok().and_then(|axis| axis.as_int()).unwrap_or(0);
        self.code.call("quantize", &[weight.into(), scale.into(), zero_point.into(), IValue::Int(axis)])
    }

    fn pack(&self, weight: &Tensor, bias: &Tensor, observer: &Module) -> Result<IValue> {
        self.code.call("pack", &[self.quantized(weight, observer)?, bias.into()])
    }

    fn pack_cell(&self, cell: &Cell, observer: &Module) -> Result<IValue> {
        let (w_ih, w_hh) = (self.quantized(&cell.w_ih, observer)?, self.quantized(&cell.w_hh, observer)?);
        match self.code.call("cells", &[w_ih, w_hh, (&cell.b_ih).into(), (&cell.b_hh).into()])? {
            IValue::List { mut items, .. } => items.pop(),
            _ => None,
        }
        .ok_or_else(|| Error::invalid("packing gave no cell"))
    }

    /// Keeps `packed` in an attribute and reads it before `node`.
    fn keep<'g>(&self, node: Node<'g>, name: &str, packed: &IValue) -> Result<Value<'g>> {
        let IValue::Other(object) = packed else { return Err(Error::invalid("a packed weight should be an object")) };
        let number = (0..).find(|number| !self.module.has_attribute(&format!("{name}_{number}"))).unwrap_or(0);
        let name = format!("{name}_{number}");
        self.module.register_attribute(&name, &object.type_of()?, packed)?;
        node.insert_get_attribute(node.graph().inputs()[0], &name)
    }

    fn quantize_cell(&self, node: Node<'_>, form: &Form, observer: &Module) -> Result<()> {
        let Some(cell) = Cell::of(&constants(node))? else { return Ok(()) };
        let w_ih = self.pack(&cell.w_ih, &cell.b_ih, observer)?;
        let w_hh = self.pack(&cell.w_hh, &cell.b_hh, observer)?;
        let mut inputs = node.inputs();
        inputs.truncate(WEIGHTS);
        inputs.push(self.keep(node, "_packed_w_ih", &w_ih)?);
        inputs.push(self.keep(node, "_packed_w_hh", &w_hh)?);
        inputs.push(node.insert_constant(cell.b_ih)?);
        inputs.push(node.insert_constant(cell.b_hh)?);
        let quantized = create(node, form.quantized, &inputs, node.outputs().len())?;
        replace(node, &quantized.outputs())
    }

    /// `h, c = lstm_cell(x, [h, c])` is one step of a layer: inputs and states get a dimension of time, of size 1, in
    /// front; `h = gru_cell(x, h)` likewise.
    fn quantize_step(&self, node: Node<'_>, form: &Form, observer: &Module) -> Result<()> {
        let Some(cell) = Cell::of(&constants(node))? else { return Ok(()) };
        let is_lstm = node.kind() == "aten::lstm_cell";
        let zero = node.insert_constant(IValue::Int(0))?;
        let with_time = |value| node.insert_operator("aten::unsqueeze", &[value, zero]);
        let states = match (is_lstm, node.inputs()[1]) {
            (false, state) => with_time(state)?,
            (true, states) if states.node().kind() == "prim::ListConstruct" => {
                let states: Vec<_> = states.node().inputs().into_iter().map(with_time).collect::<Result<_>>()?;
                list(node, &states, &Type::parse("List[Tensor]")?)?
            }
            (true, _) => return Ok(()),
        };
        let cells = self.cells(node, &[cell], observer)?;
        let inputs = [with_time(node.inputs()[0])?, states, cells];
        let quantized =
            create(node, form.quantized, &self.layer_inputs(node, is_lstm, &inputs)?, 2 + usize::from(is_lstm))?;
        let without_time = |state| node.insert_operator("aten::squeeze", &[state, zero]);
        let states: Vec<_> = quantized.outputs().into_iter().skip(1).map(without_time).collect::<Result<_>>()?;
        replace(node, &states)
    }

    /// The inputs of a layer of one step and one direction, from the first three.
    fn layer_inputs<'g>(&self, node: Node<'g>, is_lstm: bool, first: &[Value<'g>]) -> Result<Vec<Value<'g>>> {
        let mut inputs = first.to_vec();
        // has_biases, num_layers, dropout, train, bidirectional, batch_first
        let rest = [true.into(), IValue::Int(1), 0.0.into(), false.into(), false.into(), false.into()];
        for value in rest {
            inputs.push(node.insert_constant(value)?);
        }
        if is_lstm {
            inputs.extend(lstm_options(node)?);
        }
        Ok(inputs)
    }

    fn quantize_layers(&self, node: Node<'_>, form: &Form, observer: &Module) -> Result<()> {
        let schema = node.schema().ok_or_else(|| Error::invalid("the operator has no schema"))?;
        let position = |name: &str| {
            let found = schema.arguments.iter().position(|argument| argument.name == name);
            found.ok_or_else(|| Error::invalid(format!("the operator has no argument '{name}'")))
        };
        if projects(node) {
            return Ok(());
        }
        let mut inputs = node.inputs();
        let (params, has_biases) = (position("params")?, position("has_biases")?);
        let Some(weights) = elements(inputs[params]) else { return Ok(()) };
        let Some(IValue::Bool(biases)) = inputs[has_biases].constant() else { return Ok(()) };
        let mut cells = Vec::new();
        for constants in weights.chunks(if biases { 4 } else { 2 }) {
            let Some(cell) = Cell::of(constants)? else { return Ok(()) };
            cells.push(cell);
        }
        inputs[params] = self.cells(node, &cells, observer)?;
        // The quantized operators always have biases: zeros where the layer has none.
        inputs[has_biases] = node.insert_constant(true)?;
        if node.kind() == "aten::lstm" {
            inputs.extend(lstm_options(node)?);
        }
        let quantized = create(node, form.quantized, &inputs, node.outputs().len())?;
        replace(node, &quantized.outputs())
    }

    /// The list of packed cells, before `node`.
    fn cells<'g>(&self, node: Node<'g>, cells: &[Cell], observer: &Module) -> Result<Value<'g>> {
        let mut kept = Vec::new();
        for cell in cells {
            kept.push(self.keep(node, "_packed_cell", &self.pack_cell(cell, observer)?)?);
        }
        list(node, &kept, &self.code.graph("cells")?.outputs()[0].type_of())
    }
}

/// Whether a recurrent layer projects what it hands on (`proj_size`): the weight of its states has fewer columns than rows by
/// another factor than its gates.
pub(crate) fn projects(layer: Node<'_>) -> bool {
    let weights = layer.named_input("params").and_then(elements);
    let state = weights.as_ref().and_then(|weights| weights.get(1)?.as_ref()?.as_tensor());
    let Some(sizes) = state.map(Tensor::shape) else { return false };
    layer.kind() == "aten::lstm" && sizes.len() == 2 && sizes[0] != 4 * sizes[1]
}

/// Whether all weights of a recurrent layer or cell are constants.
pub(crate) fn has_constant_weights(layer: Node<'_>) -> bool {
    let weights = match layer.named_input("params") {
        Some(list) => elements(list),
        None => Some(constants(layer)),
    };
    weights.is_some_and(|weights| weights.iter().all(Option::is_some))
}

/// Where the weights of a cell begin among its inputs.
const WEIGHTS: usize = 2;

/// The weights and biases of a cell.
fn constants(cell: Node<'_>) -> Vec<Option<IValue>> {
    cell.inputs()[WEIGHTS..].iter().map(|weight| weight.constant()).collect()
}

/// What a quantized LSTM takes besides: `dtype`, `use_dynamic`.
fn lstm_options(node: Node<'_>) -> Result<[Value<'_>; 2]> {
    Ok([node.insert_constant(IValue::Int(DType::QI8 as i64))?, node.insert_constant(true)?])
}

fn list<'g>(before: Node<'g>, items: &[Value<'g>], ty: &Type) -> Result<Value<'g>> {
    let list = before.graph().create("prim::ListConstruct", items, 1)?.insert_before(before)?;
    list.outputs()[0].set_type(ty)?;
    Ok(list.outputs()[0])
}

/// The constants in a list, each `None` where it is not one; `None` where it is no list of known length.
fn elements(list: Value<'_>) -> Option<Vec<Option<IValue>>> {
    match list.constant() {
        Some(IValue::List { items, .. }) => Some(items.into_iter().map(Some).collect()),
        Some(_) => None,
        None => {
            let made = list.node();
            (made.kind() == "prim::ListConstruct")
                .then(|| made.inputs().into_iter().map(|item| item.constant()).collect())
        }
    }
}

/// A node before `old`, which it is to replace, with `outputs` tensors.
fn create<'g>(old: Node<'g>, kind: &str, inputs: &[Value<'g>], outputs: usize) -> Result<Node<'g>> {
    let new = old.graph().create(kind, inputs, outputs)?.insert_before(old)?;
    new.copy_metadata(old)?;
    Ok(new)
}

fn replace<'g>(old: Node<'g>, results: &[Value<'g>]) -> Result<()> {
    for (from, to) in std::iter::zip(old.outputs(), results) {
        from.replace_all_uses_with(*to)?;
    }
    old.destroy()
}
