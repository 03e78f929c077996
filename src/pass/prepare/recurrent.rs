//! Recurrent layers quantized dynamically: int8 weights, and activations with the range of each step's input.

use crate::error::{Context, Error, Result};
use crate::ir::{GeneralPass, IValue, Module, Node, Tensor, Type, Value};
use crate::qconfig::QConfig;

/// A layer and its quantized form.
struct Form {
    float: &'static str,
    quantized: &'static str,
    weights: Weights,
}

/// Where an operator has its weights.
#[derive(Clone, Copy)]
enum Weights {
    /// As arguments from this one on: `w_ih, w_hh, b_ih, b_hh`.
    Arguments(usize),
    /// In a list: for each layer and direction `w_ih, w_hh` and, where it has biases, `b_ih, b_hh`.
    List {
        /// Whether the quantized form takes `dtype` and `use_dynamic` besides.
        has_dtype: bool,
    },
}

const FORMS: [Form; 6] = [
    Form {
        float: "aten::lstm_cell",
        quantized: "quantized::quantized_lstm_cell_dynamic",
        weights: Weights::Arguments(2),
    },
    Form {
        float: "aten::gru_cell",
        quantized: "quantized::quantized_gru_cell_dynamic",
        weights: Weights::Arguments(2),
    },
    Form {
        float: "aten::rnn_tanh_cell",
        quantized: "quantized::quantized_rnn_tanh_cell_dynamic",
        weights: Weights::Arguments(2),
    },
    Form {
        float: "aten::rnn_relu_cell",
        quantized: "quantized::quantized_rnn_relu_cell_dynamic",
        weights: Weights::Arguments(2),
    },
    Form { float: "aten::lstm", quantized: "aten::quantized_lstm", weights: Weights::List { has_dtype: true } },
    Form { float: "aten::gru", quantized: "aten::quantized_gru", weights: Weights::List { has_dtype: false } },
];

/// Quantizes the recurrent layers and cells of a frozen module whose node `qconfig` has observers for, in place: their
/// weights, which have to be constants, are packed and become attributes. Layers whose weights are no constants stay.
///
/// # Errors
/// Where an observer or libtorch's packing refuses a weight.
pub(crate) fn quantize_recurrent<'q>(
    module: &Module,
    method: &str,
    qconfig: impl Fn(Node<'_>) -> Option<&'q QConfig>,
) -> Result<()> {
    let mut graph = module.graph(method)?;
    let packer = Packer::new(module)?;
    for node in graph.all_nodes() {
        let form = FORMS.iter().find(|form| form.float == node.kind());
        if let (Some(form), Some(qconfig)) = (form, qconfig(node)) {
            match form.weights {
                Weights::Arguments(first) => packer.quantize_cell(node, form, first, &qconfig.weight),
                Weights::List { has_dtype } => packer.quantize_layers(node, form, has_dtype, &qconfig.weight),
            }
            .context(|| format!("quantizing {} of '{}'", node.kind(), node.scope().unwrap_or_default()))?;
        }
    }
    graph.run(GeneralPass::DeadCodeElimination)
}

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
    return [ops.quantized.make_quantized_cell_params_dynamic(packed_ih, packed_hh, b_ih, b_hh, True)]
",
        )?;
        Ok(Self { module, code })
    }

    /// The int8 weight, with the parameters that a copy of `observer` finds.
    fn quantized(&self, weight: &Tensor, observer: &Module) -> Result<IValue> {
        let observer = observer.copy_instance()?;
        observer.forward(&[weight.clone()])?;
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

    fn quantize_cell(&self, node: Node<'_>, form: &Form, first: usize, observer: &Module) -> Result<()> {
        let mut inputs = node.inputs();
        let constants: Vec<_> = inputs[first..].iter().map(|weight| weight.constant()).collect();
        let Some(cell) = Cell::of(&constants)? else { return Ok(()) };
        let w_ih = self.pack(&cell.w_ih, &cell.b_ih, observer)?;
        let w_hh = self.pack(&cell.w_hh, &cell.b_hh, observer)?;
        inputs.truncate(first);
        inputs.push(self.keep(node, "_packed_w_ih", &w_ih)?);
        inputs.push(self.keep(node, "_packed_w_hh", &w_hh)?);
        inputs.push(node.insert_constant(cell.b_ih)?);
        inputs.push(node.insert_constant(cell.b_hh)?);
        replace(node, form.quantized, &inputs)
    }

    fn quantize_layers(&self, node: Node<'_>, form: &Form, has_dtype: bool, observer: &Module) -> Result<()> {
        let schema = node.schema().ok_or_else(|| Error::invalid("the operator has no schema"))?;
        let position = |name: &str| {
            let found = schema.arguments.iter().position(|argument| argument.name == name);
            found.ok_or_else(|| Error::invalid(format!("the operator has no argument '{name}'")))
        };
        let mut inputs = node.inputs();
        let (params, has_biases) = (position("params")?, position("has_biases")?);
        let Some(weights) = elements(inputs[params]) else { return Ok(()) };
        let Some(IValue::Bool(biases)) = inputs[has_biases].constant() else { return Ok(()) };
        let mut cells = Vec::new();
        for constants in weights.chunks(if biases { 4 } else { 2 }) {
            let Some(cell) = Cell::of(constants)? else { return Ok(()) };
            cells.push(cell);
        }
        let list = node.graph().create("prim::ListConstruct", &[], 1)?.insert_before(node)?;
        for cell in &cells {
            let packed = self.pack_cell(cell, observer)?;
            list.add_input(self.keep(list, "_packed_cell", &packed)?)?;
        }
        let list_type: Type = self.code.graph("cells")?.outputs()[0].type_of();
        list.outputs()[0].set_type(&list_type)?;
        inputs[params] = list.outputs()[0];
        // The quantized operators always have biases: zeros where the layer has none.
        inputs[has_biases] = node.insert_constant(true)?;
        if has_dtype {
            inputs.push(node.insert_constant(IValue::Int(crate::ir::DType::QI8 as i64))?);
            inputs.push(node.insert_constant(true)?);
        }
        replace(node, form.quantized, &inputs)
    }
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

fn replace<'g>(old: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<()> {
    let new = old.graph().create(kind, inputs, old.outputs().len())?.insert_before(old)?;
    new.copy_metadata(old)?;
    for (from, to) in std::iter::zip(old.outputs(), new.outputs()) {
        to.set_type(&from.type_of())?;
        from.replace_all_uses_with(to)?;
    }
    old.destroy()
}
