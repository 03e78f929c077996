//! `einsum` with a constant that is a linear layer: `"btd,dhe->bhte"` is a linear layer between two permutations.

use crate::error::Result;
use crate::ir::{Graph, IValue, Node, Tensor, Type, Value};

/// Writes each `aten::einsum` of an activation and a constant that sums over dimensions of both, and repeats none in the
/// result, as `aten::linear`; how many.
///
/// # Errors
/// Where libtorch refuses to change the graph.
pub(super) fn linear_of_einsum(graph: &Graph) -> Result<usize> {
    let mut written = 0;
    for node in graph.all_nodes().into_iter().filter(|node| node.kind() == "aten::einsum") {
        if let Some(product) = Product::of(node) {
            product.write(node)?;
            written += 1;
        }
    }
    Ok(written)
}

/// `x` and the constant `weight`, and where their dimensions go.
struct Product<'g> {
    x: Value<'g>,
    weight: Tensor,
    /// The dimensions of `x` that stay, and then those that are summed over, in the order in which `x` is permuted.
    kept: Vec<usize>,
    summed: Vec<usize>,
    /// The dimensions of the weight in the order `free`, `summed`.
    free: Vec<usize>,
    summed_weight: Vec<usize>,
    /// The dimensions of the result, of `kept` and `free` one after the other.
    result: Vec<usize>,
}

impl<'g> Product<'g> {
    fn of(node: Node<'g>) -> Option<Self> {
        let equation = node.input(0)?.constant()?;
        let equation: String = equation.as_str()?.chars().filter(|c| !c.is_whitespace()).collect();
        let tensors = node.input(1)?.node();
        let [first, second] = tensors.inputs()[..] else { return None };
        if tensors.kind() != "prim::ListConstruct" {
            return None;
        }
        let (left, result) = equation.split_once("->")?;
        let (a, b) = left.split_once(',')?;
        let all_letters = [a, b, result].iter().all(|part| part.chars().all(|c| c.is_ascii_alphabetic()));
        let (x, x_letters, weight, letters) = match (first.constant(), second.constant()) {
            (None, Some(IValue::Tensor(weight))) => (first, a, weight, b),
            (Some(IValue::Tensor(weight)), None) => (second, b, weight, a),
            _ => return None,
        };
        let unique = |part: &str| part.chars().enumerate().all(|(i, c)| !part[..i].contains(c));
        if !all_letters || ![a, b, result].into_iter().all(unique) || weight.shape().len() != letters.len() {
            return None;
        }
        let place = |part: &str, letter: char| part.chars().position(|c| c == letter);
        let (mut kept, mut summed, mut summed_weight, mut free) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut kept_letters, mut free_letters) = (String::new(), String::new());
        for (index, letter) in x_letters.chars().enumerate() {
            match (place(letters, letter), result.contains(letter)) {
                (None, true) => {
                    kept.push(index);
                    kept_letters.push(letter);
                }
                (Some(at), false) => {
                    summed.push(index);
                    summed_weight.push(at);
                }
                // Summed over alone, or a product for each of a batch.
                _ => return None,
            }
        }
        for (index, letter) in letters.chars().enumerate().filter(|(_, letter)| !x_letters.contains(*letter)) {
            if !result.contains(letter) {
                return None;
            }
            free.push(index);
            free_letters.push(letter);
        }
        let order = kept_letters + &free_letters;
        let result: Vec<usize> = result.chars().map(|letter| place(&order, letter)).collect::<Option<_>>()?;
        let fits = !summed.is_empty() && !free.is_empty() && !kept.is_empty() && result.len() == order.len();
        fits.then_some(Self { x, weight, kept, summed, free, summed_weight, result })
    }

    /// The weight as outputs x inputs.
    fn matrix(&self) -> Result<Tensor> {
        let sizes: Vec<usize> = self.weight.shape().iter().map(|size| *size as usize).collect();
        let values = self.weight.to_f32_vec()?;
        let order: Vec<usize> = self.free.iter().chain(&self.summed_weight).copied().collect();
        let stride = |dimension: usize| sizes[dimension + 1..].iter().product::<usize>();
        let mut moved = Vec::with_capacity(values.len());
        for index in 0..values.len() {
            let (mut rest, mut from) = (index, 0);
            for dimension in order.iter().rev() {
                from += rest % sizes[*dimension] * stride(*dimension);
                rest /= sizes[*dimension];
            }
            moved.push(values[from]);
        }
        let outputs: usize = self.free.iter().map(|dimension| sizes[*dimension]).product();
        let inputs = values.len() / outputs.max(1);
        Tensor::from_slice(&moved, &[outputs as i64, inputs as i64])
    }

    fn write(&self, node: Node<'g>) -> Result<()> {
        let operator = |kind: &str, inputs: &[Value<'g>]| -> Result<Value<'g>> {
            let value = node.insert_operator(kind, inputs)?;
            value.node().copy_metadata(node)?;
            Ok(value)
        };
        let list = |items: &[usize]| node.insert_constant(IValue::int_list(items.iter().map(|item| *item as i64)));
        let is_sorted = |items: &[usize]| items.iter().enumerate().all(|(index, item)| index == *item);
        let last = node.insert_constant(IValue::Int(-1))?;
        let order: Vec<usize> = self.kept.iter().chain(&self.summed).copied().collect();
        let mut x = self.x;
        if !is_sorted(&order) {
            x = operator("aten::permute", &[x, list(&order)?])?;
        }
        if self.summed.len() > 1 {
            x = operator("aten::flatten", &[x, node.insert_constant(IValue::Int(self.kept.len() as i64))?, last])?;
        }
        let weight = node.insert_constant(self.matrix()?)?;
        let bias = node.insert_constant(IValue::None)?;
        bias.set_type(&Type::parse("Optional[Tensor]")?)?;
        let mut y = operator("aten::linear", &[x, weight, bias])?;
        if self.free.len() > 1 {
            let sizes = self.weight.shape();
            let sizes: Vec<usize> = self.free.iter().map(|dimension| sizes[*dimension] as usize).collect();
            y = operator("aten::unflatten", &[y, last, list(&sizes)?])?;
        }
        if !is_sorted(&self.result) {
            y = operator("aten::permute", &[y, list(&self.result)?])?;
        }
        let output = node.outputs()[0];
        y.set_type(&output.type_of())?;
        output.replace_all_uses_with(y)?;
        node.destroy()
    }
}
