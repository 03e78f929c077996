//! The linear algebra of the replay, by libtorch.

use crate::error::{Error, Result};
use crate::ir::{IValue, Module, Tensor};
use crate::pass::prepare::WeightGrid;

/// TorchScript functions on tensors.
pub(super) struct Solver {
    code: Module,
}

/// What quantizes an activation.
pub(super) struct Range {
    scale: Tensor,
    zero_point: Tensor,
    lowest: i64,
    highest: i64,
}

/// How a layer's window moves over its input, as `aten::im2col` takes it.
pub(super) struct Window {
    pub kernel: [i64; 2],
    pub dilation: [i64; 2],
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub groups: i64,
}

/// The matrices of a layer's least squares problem, one for each group of channels, a column of ones for the bias last.
pub(super) struct Grams {
    /// `q^T q`, `q` being what the layer takes in the quantized run: a window in each row.
    pub gram: Tensor,
    /// `q^T x`, `x` being the same in float.
    pub cross: Tensor,
}

/// What greedy rounding needs ([`super::learned_rounding`]).
pub(super) struct Factor {
    /// The order in which columns are rounded, groups x columns.
    pub order: Vec<usize>,
    /// The upper triangular factor of the inverse of `q^T q`, in that order: groups x (columns + 1) x (columns + 1).
    pub values: Vec<f32>,
}

impl Solver {
    pub fn new() -> Result<Self> {
        let code = Module::new("jitquant.Replay")?;
        code.define(
            "def quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), lowest, highest)

def quantize_weight(self, w: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    if scale.numel() == 1:
        return torch.quantize_per_tensor(w, float(scale), int(zero_point), 12).dequantize()
    return torch.quantize_per_channel(w, scale, zero_point, axis, 12).dequantize()

def mean_error(self, x: Tensor, q: Tensor, axis: int) -> Tensor:
    error = (q - x).transpose(axis, -1)
    return error.reshape([-1, error.size(-1)]).mean([0])

def channel_ranges(self, x: Tensor) -> Tuple[Tensor, Tensor]:
    by_channel = x.transpose(0, 1).reshape([x.size(1), -1])
    return by_channel.amin([1]), by_channel.amax([1])

def windows(self, x: Tensor, kernel: List[int], dilation: List[int], padding: List[int], stride: List[int], groups: int, rows: int) -> Tensor:
    found = []
    per_image = max(1, rows // x.size(0))
    for i in range(x.size(0)):
        columns = torch.im2col(x[i].unsqueeze(0), kernel, dilation, padding, stride)
        step = max(1, columns.size(2) // per_image)
        columns = torch.slice(columns, 2, (i * 7) % step, None, step)
        found.append(columns[0].reshape([groups, columns.size(1) // groups, columns.size(2)]).transpose(1, 2))
    joined = torch.cat(found, 1)
    return torch.cat([joined, torch.ones_like(torch.slice(joined, 2, 0, 1, 1))], 2)

def rows_of(self, x: Tensor, rows: int) -> Tensor:
    flat = x.reshape([1, -1, x.size(-1)])
    step = max(1, flat.size(1) // rows)
    flat = torch.slice(flat, 1, 0, None, step)
    return torch.cat([flat, torch.ones_like(torch.slice(flat, 2, 0, 1, 1))], 2)

def grams(self, x: Tensor, q: Tensor) -> Tuple[Tensor, Tensor]:
    # Each batch's sums in f32, those of all batches in f64.
    return torch.matmul(q.transpose(1, 2), q).to(7), torch.matmul(q.transpose(1, 2), x).to(7)

def half(self, x: Tensor, second: bool) -> Tensor:
    middle = (x.size(1) + 1) // 2
    return torch.slice(x, 1, middle, None, 1) if second else torch.slice(x, 1, 0, middle, 1)

def add(self, a: Tensor, b: Tensor) -> Tensor:
    return a + b

def added(self, gram: Tensor, damping: float) -> Tensor:
    inputs = torch.slice(torch.diagonal(gram, 0, 1, 2), 1, 0, -1, 1)
    diagonal = torch.ones_like(inputs) * inputs.mean([1], True) * damping
    return torch.diag_embed(torch.cat([diagonal, torch.zeros_like(torch.slice(diagonal, 1, 0, 1, 1))], 1) + 1e-8)

def target(self, gram: Tensor, cross: Tensor, weight: Tensor, damping: float) -> Tensor:
    added = self.added(gram, damping)
    right = torch.matmul(cross + added, weight.to(7).transpose(1, 2))
    return torch.cholesky_solve(right, torch.linalg_cholesky(gram + added)).transpose(1, 2).to(6).contiguous()

def factor(self, gram: Tensor, damping: float) -> Tuple[Tensor, Tensor]:
    columns = gram.size(1)
    inputs = torch.slice(torch.diagonal(gram, 0, 1, 2), 1, 0, -1, 1)
    order = torch.argsort(inputs, 1, True)
    full = torch.cat([order, torch.full_like(torch.slice(order, 1, 0, 1, 1), columns - 1)], 1)
    # The lower factor of the matrix backwards is the upper factor forwards.
    backwards = full.flip([1]).unsqueeze(2).expand([-1, -1, columns])
    gram = gram + self.added(gram, damping)
    turned = torch.gather(torch.gather(gram, 1, backwards), 2, backwards.transpose(1, 2))
    lower = torch.linalg_cholesky(turned)
    one = torch.eye(columns, dtype=7).expand_as(lower)
    inverse = torch.linalg_solve_triangular(lower, one, upper=False)
    return order, inverse.flip([1, 2]).to(6).contiguous()

def loss(self, gram: Tensor, cross: Tensor, weight: Tensor, rounded: Tensor) -> float:
    rounded = rounded.to(7)
    of_rounded = (torch.matmul(rounded, gram) * rounded).sum()
    return float(of_rounded - 2 * (torch.matmul(rounded, cross) * weight.to(7)).sum())
",
        )?;
        Ok(Self { code })
    }

    /// What quantizes what `observer` watched; `None` where it watched nothing or keeps no range.
    pub fn range_of(&self, observer: &Module) -> Result<Option<Range>> {
        let (lowest, highest) = match observer.attribute("dtype").ok().and_then(|dtype| dtype.as_int()) {
            Some(12) => (-128, 127),
            Some(13) => (0, 255),
            _ => return Ok(None),
        };
        if !observer.has_attribute("min_val") || !observer.has_method("calculate_qparams") {
            return Ok(None);
        }
        let qparams = observer.call::<IValue>("calculate_qparams", &[])?;
        let [scale, zero_point] = qparams.tensors()[..] else { return Ok(None) };
        let is_per_tensor = scale.to_f32_vec()?.len() == 1;
        Ok(is_per_tensor.then(|| Range { scale: scale.clone(), zero_point: zero_point.clone(), lowest, highest }))
    }

    pub fn quantize(&self, x: &IValue, range: &Range) -> Result<IValue> {
        let inputs = [
            x.clone(),
            (&range.scale).into(),
            (&range.zero_point).into(),
            IValue::Int(range.lowest),
            IValue::Int(range.highest),
        ];
        self.code.call("quantize", &inputs)
    }

    /// What a weight becomes. By libtorch's own operator: where the largest weight lies half a step beyond the largest integer,
    /// a different last bit would be a different integer.
    pub fn quantize_weight(&self, weight: &Tensor, grid: &WeightGrid) -> Result<Tensor> {
        let [scale, zero_point] = &grid.qparams;
        let inputs = [weight.into(), scale.into(), zero_point.into(), IValue::Int(grid.axis)];
        Tensor::try_from(self.code.call::<IValue>("quantize_weight", &inputs)?)
    }

    /// The mean of `quantized - float` for each channel.
    pub fn mean_error(&self, float: &IValue, quantized: &IValue, channel_axis: i64) -> Result<Vec<f32>> {
        let mean = self.code.call("mean_error", &[float.clone(), quantized.clone(), IValue::Int(channel_axis)])?;
        Tensor::try_from(mean)?.to_f32_vec()
    }

    /// The smallest and largest value of each channel of `x`, the channels being dimension 1.
    pub fn channel_ranges(&self, x: &IValue) -> Result<Vec<(f32, f32)>> {
        let ranges = self.code.call::<IValue>("channel_ranges", std::slice::from_ref(x))?;
        let [min, max] = ranges.tensors()[..] else { return Err(Error::invalid("channel_ranges gives two tensors")) };
        Ok(std::iter::zip(min.to_f32_vec()?, max.to_f32_vec()?).collect())
    }

    /// Some `rows` of the windows that a layer sees in `x`, groups x rows x (columns + 1); without a window, the rows of
    /// a linear layer's input.
    pub fn windows(&self, x: &IValue, window: Option<&Window>, rows: i64) -> Result<IValue> {
        match window {
            None => self.code.call("rows_of", &[x.clone(), IValue::Int(rows)]),
            Some(window) => {
                let list = IValue::int_list;
                self.code.call(
                    "windows",
                    &[
                        x.clone(),
                        list(window.kernel),
                        list(window.dilation),
                        list(window.padding),
                        list(window.stride),
                        IValue::Int(window.groups),
                        IValue::Int(rows),
                    ],
                )
            }
        }
    }

    /// The matrices of the first and of the second half of the rows.
    pub fn grams(&self, float: &IValue, quantized: &IValue) -> Result<[Grams; 2]> {
        let of = |second: bool| -> Result<Grams> {
            let half = |x: &IValue| self.code.call::<IValue>("half", &[x.clone(), IValue::Bool(second)]);
            let [gram, cross] = self.two("grams", &[half(float)?, half(quantized)?])?;
            Ok(Grams { gram, cross })
        };
        Ok([of(false)?, of(true)?])
    }

    pub fn sum(&self, one: &Grams, other: &Grams) -> Result<Grams> {
        let add = |a: &Tensor, b: &Tensor| Tensor::try_from(self.code.call::<IValue>("add", &[a.into(), b.into()])?);
        Ok(Grams { gram: add(&one.gram, &other.gram)?, cross: add(&one.cross, &other.cross)? })
    }

    /// What gives the results of `weight` (groups x outputs x (columns + 1)) best, not rounded. Each diagonal gets `damping`
    /// times the mean of the inputs' more, which draws the solution to the weights that there are; the bias is free.
    pub fn target(&self, grams: &Grams, weight: &Tensor, damping: f64) -> Result<Tensor> {
        let inputs = [(&grams.gram).into(), (&grams.cross).into(), weight.into(), IValue::Double(damping)];
        Tensor::try_from(self.code.call::<IValue>("target", &inputs)?)
    }

    /// By which a column's rounding is made good for by those after it, with the same `damping`.
    pub fn factor(&self, grams: &Grams, damping: f64) -> Result<Factor> {
        let [order, values] = self.two("factor", &[(&grams.gram).into(), IValue::Double(damping)])?;
        let order = order.to_vec::<i64>()?.into_iter().map(|column| column as usize).collect();
        Ok(Factor { order, values: values.to_vec()? })
    }

    /// The squared error that `rounded` makes of the results of `weight`, less what does not depend on `rounded`.
    pub fn loss(&self, grams: &Grams, weight: &Tensor, rounded: &Tensor) -> Result<f64> {
        let inputs = [(&grams.gram).into(), (&grams.cross).into(), weight.into(), rounded.into()];
        match self.code.call::<IValue>("loss", &inputs)? {
            IValue::Double(loss) => Ok(loss),
            _ => Err(Error::invalid("loss gives a number")),
        }
    }

    fn two(&self, function: &str, inputs: &[IValue]) -> Result<[Tensor; 2]> {
        match self.code.call::<IValue>(function, inputs)?.tensors()[..] {
            [one, other] => Ok([one.clone(), other.clone()]),
            _ => Err(Error::invalid(format!("{function} gives two tensors"))),
        }
    }
}
