//! Linear layers with a float result in a form that all of libtorch's engines have.
//!
//! `quantized::linear_with_input_q_dq_qweight_dq_output_fp32` quantizes its input to a grid that calibration found and gives
//! a float result. Only FBGEMM has it. `quantized::linear_dynamic` is there on every engine; it takes the grid from the
//! smallest and the largest value of its input. A row that holds both ends of the grid, put below the others, makes it take
//! ours:
//!
//! ```text
//! %y = quantized::linear_with_input_q_dq_qweight_dq_output_fp32(%x, scale, zero_point, %packed)
//!
//! %rows = aten::cat([aten::flatten(aten::clamp(%x, low, high), 0, -2), [[low, high, 0, …]]])
//! %y = aten::reshape(aten::slice(quantized::linear_dynamic(%rows, %packed, False), 0, 0, -1), x's sizes but the last + [outputs])
//! ```
//!
//! The integers that are multiplied are the same.

use super::float_results::parameters;
use crate::error::{Error, Result};
use crate::ir::{GeneralPass, Graph, IValue, Module, Node, Tensor, Value};

/// The operators that FBGEMM alone has, and those that every engine has.
const FORMS: [(&str, &str); 2] = [
    ("quantized::linear_with_input_q_dq_qweight_dq_output_fp32", "quantized::linear_dynamic"),
    ("quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32", "quantized::linear_relu_dynamic"),
];

/// Rewrites the layers of `module`'s graph that only FBGEMM runs; how many.
///
/// # Errors
/// Where a packed weight cannot be read, or libtorch refuses an operator.
pub(crate) fn for_any_engine(module: &Module, graph: &Graph) -> Result<usize> {
    let mut changed = 0;
    for layer in graph.all_nodes() {
        let Some((_, form)) = FORMS.iter().find(|(kind, _)| *kind == layer.kind()) else { continue };
        let &[x, scale, zero_point, packed] = &layer.inputs()[..] else { continue };
        let Some([outputs, inputs]) = sizes(module, layer, packed)? else { continue };
        // One row has room for both ends, where it has two columns.
        let ends = if inputs > 1 { 1 } else { 2 };
        let grid = Grid::of(scale, zero_point);
        let value = |value: IValue| layer.insert_constant(value);
        let x_inside = match grid {
            _ if quantized_to(x, scale, zero_point).is_some() => x,
            Some(Grid { low, high }) => {
                let (low, high) = (value(f64::from(low).into())?, value(f64::from(high).into())?);
                insert(layer, "aten::clamp", &[x, low, high])?
            }
            None => continue,
        };
        let (first, last) = (value(IValue::Int(0))?, value(IValue::Int(-2))?);
        let rows = insert(layer, "aten::flatten", &[x_inside, first, last])?;
        let row = match grid {
            Some(grid) => value(grid.row(ends, inputs)?.into())?,
            None => row_of_tensor(layer, [scale, zero_point], ends, inputs)?,
        };
        let list = graph.create("prim::ListConstruct", &[rows, row], 1)?.insert_before(layer)?;
        list.outputs()[0].set_type(&crate::ir::Type::parse("List[Tensor]")?)?;
        let all = insert(layer, "aten::cat", &[list.outputs()[0], first])?;
        let product = insert(layer, form, &[all, packed, value(false.into())?])?;
        let one = value(IValue::Int(1))?;
        let end = value(IValue::Int(-(ends as i64)))?;
        let kept = insert(layer, "aten::slice", &[product, first, first, end, one])?;
        let sizes = insert(layer, "aten::size", &[x])?;
        let none = value(IValue::None)?;
        let leading = insert(layer, "aten::slice", &[sizes, none, value(IValue::Int(-1))?, one])?;
        let outputs = value(IValue::int_list([outputs as i64]))?;
        let sizes = insert(layer, "aten::add", &[leading, outputs])?;
        let result = insert(layer, "aten::reshape", &[kept, sizes])?;
        layer.outputs()[0].replace_all_uses_with(result)?;
        layer.destroy()?;
        changed += 1;
    }
    Ok(changed)
}

/// Both ends of a grid of 256 steps, as the engines compute them, so that they find the same scale.
#[derive(Clone, Copy, PartialEq)]
struct Grid {
    low: f32,
    high: f32,
}

impl Grid {
    /// Of a scale and a zero point that are constants.
    fn of(scale: Value<'_>, zero_point: Value<'_>) -> Option<Self> {
        let number = |value: Value<'_>| value.constant()?.as_number();
        let (scale, zero_point) = (number(scale)?, number(zero_point)?);
        Some(Self { low: (-zero_point * scale) as f32, high: ((255.0 - zero_point) * scale) as f32 })
    }

    /// Rows that hold both ends.
    fn row(self, rows: usize, inputs: usize) -> Result<Tensor> {
        let mut values = vec![0.0; rows * inputs];
        (values[0], values[1]) = (self.low, self.high);
        Tensor::from_slice(&values, &[rows as i64, inputs as i64])
    }
}

/// [`Grid::row`] where the scale and the zero point are known when the model runs.
fn row_of_tensor<'g>(
    layer: Node<'g>,
    [scale, zero_point]: [Value<'g>; 2],
    rows: usize,
    inputs: usize,
) -> Result<Value<'g>> {
    let end = |distance: Value<'g>, grid: Grid| {
        let place = layer.insert_constant(grid.row(rows, inputs)?)?;
        insert(layer, "aten::mul", &[place, insert(layer, "aten::mul", &[distance, scale])?])
    };
    let highest = layer.insert_constant(IValue::Int(255))?;
    let below = end(insert(layer, "aten::neg", &[zero_point])?, Grid { low: 1.0, high: 0.0 })?;
    let above = end(insert(layer, "aten::sub", &[highest, zero_point])?, Grid { low: 0.0, high: 1.0 })?;
    insert(layer, "aten::add", &[below, above])
}

/// The opposite of [`for_any_engine`]: for the native form, which has the layer as one operator, and for whoever reads it.
///
/// # Errors
/// Where libtorch refuses an operator.
pub(crate) fn for_fbgemm(graph: &mut Graph) -> Result<usize> {
    let mut changed = 0;
    for layer in graph.all_nodes() {
        let Some((form, _)) = FORMS.iter().find(|(_, kind)| *kind == layer.kind()) else { continue };
        let Some(found) = Rewritten::at(layer) else { continue };
        let quantized = (found.x.node().kind() == "aten::dequantize").then(|| found.x.node().input(0)).flatten();
        let known = quantized.and_then(parameters);
        let is_known = known.is_some_and(|[scale, zero_point]| Grid::of(scale, zero_point) == found.grid);
        let [scale, zero_point] = match (known.filter(|_| is_known), found.grid, quantized) {
            // What was on the grid has its numbers, exactly.
            (Some(known), ..) => known,
            (None, Some(Grid { low, high }), _) => {
                let scale = (f64::from(high) - f64::from(low)) / 255.0;
                let zero_point = (-f64::from(low) / scale).round() as i64;
                [layer.insert_constant(scale)?, layer.insert_constant(IValue::Int(zero_point))?]
            }
            (None, None, Some(quantized)) => {
                let of_tensor = |kind: &str| insert(layer, kind, &[quantized]);
                [of_tensor("aten::q_scale")?, of_tensor("aten::q_zero_point")?]
            }
            (None, None, None) => continue,
        };
        let float = insert(layer, form, &[found.x, scale, zero_point, layer.inputs()[1]])?;
        found.result.replace_all_uses_with(float)?;
        changed += 1;
    }
    if changed > 0 {
        graph.run(GeneralPass::DeadCodeElimination)?;
    }
    Ok(changed)
}

/// What [`for_any_engine`] made of a layer.
struct Rewritten<'g> {
    x: Value<'g>,
    /// Where it is constant.
    grid: Option<Grid>,
    result: Value<'g>,
}

impl<'g> Rewritten<'g> {
    fn at(layer: Node<'g>) -> Option<Self> {
        let cat = layer.input(0)?.node();
        let list = (cat.kind() == "aten::cat").then(|| cat.input(0))??.node();
        let &[rows, row] = &list.inputs()[..] else { return None };
        let flatten =
            (list.kind() == "prim::ListConstruct" && rows.node().kind() == "aten::flatten").then(|| rows.node())?;
        let grid = match row.constant() {
            Some(IValue::Tensor(row)) => {
                let values = row.to_vec::<f32>().ok()?;
                let (&[low, high], rest) = values.split_first_chunk::<2>()?;
                let is_ours = low <= 0.0 && high > low && rest.iter().all(|value| *value == 0.0);
                is_ours.then_some(Some(Grid { low, high }))?
            }
            _ if row.node().kind() == "aten::add" => None,
            _ => return None,
        };
        let inside = flatten.input(0)?;
        let x = match inside.node().kind() {
            "aten::clamp" => inside.node().input(0)?,
            _ => inside,
        };
        let &[slice] = &layer.output(0)?.uses()[..] else { return None };
        let &[reshape] = &slice.user.output(0)?.uses()[..] else { return None };
        let is_ours = slice.user.kind() == "aten::slice" && reshape.user.kind() == "aten::reshape";
        let result = reshape.user.output(0).filter(|_| is_ours)?;
        Some(Self { x, grid, result })
    }
}

/// The quantized tensor that `x` was dequantized from, where it has this scale and zero point: `x` lies on their grid.
fn quantized_to<'g>(x: Value<'g>, scale: Value<'g>, zero_point: Value<'g>) -> Option<Value<'g>> {
    let quantized = (x.node().kind() == "aten::dequantize").then(|| x.node().input(0))??;
    let is_of = |value: Value<'g>, kind: &str| value.node().kind() == kind && value.node().input(0) == Some(quantized);
    let is_asked = is_of(scale, "aten::q_scale") && is_of(zero_point, "aten::q_zero_point");
    let is_known = || {
        let [known_scale, known_zero_point] = parameters(quantized)?;
        Some(Grid::of(known_scale, known_zero_point)? == Grid::of(scale, zero_point)?)
    };
    (is_asked || is_known() == Some(true)).then_some(quantized)
}

/// How many outputs and inputs a packed linear layer has, where its weight is known now.
fn sizes(module: &Module, layer: Node<'_>, packed: Value<'_>) -> Result<Option<[usize; 2]>> {
    let content = match (packed.constant(), packed.attribute_path().as_deref()) {
        (Some(content), _) => Some(content),
        (None, Some([path @ .., name])) => module.submodule(&path.join("."))?.attribute(name).ok(),
        _ => None,
    };
    let Some(content) = content else { return Ok(None) };
    let unpack = layer.graph().create("quantized::linear_unpack", &[packed], 2)?.insert_before(layer)?;
    let parts = unpack.run(&[content]);
    unpack.destroy()?;
    match parts?.first() {
        Some(IValue::Tensor(weight)) => match weight.shape()[..] {
            [outputs, inputs] => Ok(Some([outputs.unsigned_abs() as usize, inputs.unsigned_abs() as usize])),
            _ => Ok(None),
        },
        _ => Err(Error::invalid("a packed linear layer without a weight")),
    }
}

/// An operator before `layer` that belongs to it.
fn insert<'g>(layer: Node<'g>, kind: &str, inputs: &[Value<'g>]) -> Result<Value<'g>> {
    let value = layer.insert_operator(kind, inputs)?;
    value.node().copy_metadata(layer)?;
    Ok(value)
}
