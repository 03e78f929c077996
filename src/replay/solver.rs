//! The linear algebra of the replay, by libtorch.

use crate::error::{Error, Result};
use crate::ir::{DType, Graph, IValue, Module, Node, Tensor, Value};
use crate::pass::prepare::WeightGrid;

/// TorchScript functions on tensors.
pub(super) struct Solver {
    code: Module,
}

/// What quantizes an activation.
pub(super) struct Range {
    scale: f64,
    zero_point: i64,
    lowest: i64,
    highest: i64,
}

impl Range {
    /// The operator that quantizes `value` and dequantizes it, before `place`.
    pub fn quantize<'g>(&self, place: Node<'g>, value: Value<'g>) -> Result<Value<'g>> {
        let scale = place.insert_constant(self.scale)?;
        let [zero_point, lowest, highest] =
            [self.zero_point, self.lowest, self.highest].map(|n| place.insert_constant(n));
        let arguments = [value, scale, zero_point?, lowest?, highest?];
        place.insert_operator("aten::fake_quantize_per_tensor_affine", &arguments)
    }
}

/// How a layer's window moves over its input, as `aten::im2col` takes it.
pub(super) struct Window {
    pub kernel: [i64; 2],
    pub dilation: [i64; 2],
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub groups: i64,
}

/// Columns up to which matrices are in f64. Larger ones are of many columns for few windows, and strongly damped.
const MOST_COLUMNS_IN_F64: i64 = 2048;

/// The matrices of a layer's least squares problem, one for each group of channels, a column of ones for the bias last.
pub(super) struct Grams {
    /// `q^T q`, `q` being what the layer takes in the quantized run: a window in each row.
    gram: Tensor,
    /// `q^T y`, `y` being the layer's results in float.
    towards: Tensor,
}

/// A damped `q^T q` factorized, for its solutions and for greedy rounding ([`super::learned_rounding`]).
pub(super) struct Factor {
    order: Tensor,
    lower: Tensor,
    damping: f64,
}

impl Factor {
    /// The order in which columns are rounded, groups x columns.
    pub fn order(&self) -> Result<Vec<usize>> {
        Ok(self.order.to_vec::<i64>()?.into_iter().map(|column| column as usize).collect())
    }

    /// Bytes that it takes.
    pub fn nbytes(&self) -> usize {
        self.lower.nbytes()
    }
}

impl Solver {
    pub fn new() -> Result<Self> {
        let code = Module::new("jitquant.Replay")?;
        code.define(
            "def quantize_weight(self, w: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
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
    # Of all windows only those that are taken are copied.
    x = torch.constant_pad_nd(x, [padding[1], padding[1], padding[0], padding[0]])
    height = (x.size(2) - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (x.size(3) - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    of_image = x.stride()
    down, right = of_image[2], of_image[3]
    strides = [stride[0] * down, stride[1] * right, of_image[1], dilation[0] * down, dilation[1] * right]
    found = []
    per_image = max(1, rows // x.size(0))
    step = max(1, height * width // per_image)
    for i in range(x.size(0)):
        views = torch.as_strided(x[i], [height, width, x.size(1), kernel[0], kernel[1]], strides)
        place = torch.arange((i * 7) % step, height * width, step)
        some = views[torch.floor_divide(place, width), torch.remainder(place, width)]
        found.append(some.reshape([some.size(0), groups, -1]).transpose(0, 1))
    joined = torch.cat(found, 1)
    return torch.cat([joined, torch.ones_like(torch.slice(joined, 2, 0, 1, 1))], 2)

def rows_of(self, x: Tensor, rows: int) -> Tensor:
    flat = x.reshape([1, -1, x.size(-1)])
    step = max(1, flat.size(1) // rows)
    flat = torch.slice(flat, 1, 0, None, step)
    return torch.cat([flat, torch.ones_like(torch.slice(flat, 2, 0, 1, 1))], 2)

def half(self, x: Tensor, second: bool) -> Tensor:
    middle = (x.size(1) + 1) // 2
    return torch.slice(x, 1, middle, None, 1) if second else torch.slice(x, 1, 0, middle, 1)

def squares(self, q: Tensor) -> Tensor:
    # The matrix is symmetric: of its blocks those on and above the diagonal are computed.
    size = q.size(2)
    if size < 256:
        return torch.matmul(q.transpose(1, 2), q)
    whole = torch.zeros([q.size(0), size, size])
    block = (size + 7) // 8
    for first in range(0, size, block):
        these = torch.slice(q, 2, first, first + block, 1).transpose(1, 2)
        part = torch.slice(torch.slice(whole, 1, first, first + block, 1), 2, first, None, 1)
        part.copy_(torch.matmul(these, torch.slice(q, 2, first, None, 1)))
        torch.slice(torch.slice(whole, 2, first, first + block, 1), 1, first, None, 1).copy_(part.transpose(1, 2))
    return whole

def grams(self, x: List[Tensor], q: List[Tensor], weight: Tensor, second: bool, dtype: int) -> Tuple[Tensor, Tensor]:
    # Sums in f32.
    some_x = torch.cat([self.half(part, second) for part in x], 1)
    some_q = torch.cat([self.half(part, second) for part in q], 1)
    wanted, taken = weight.transpose(1, 2), some_q.transpose(1, 2)
    if 2 * weight.size(1) < weight.size(2):
        towards = torch.matmul(taken, torch.matmul(some_x, wanted)).to(dtype)
    else:
        towards = torch.matmul(torch.matmul(taken, some_x).to(dtype), wanted.to(dtype))
    return self.squares(some_q).to(dtype), towards

def add(self, a: Tensor, b: Tensor) -> Tensor:
    return a + b

def added(self, gram: Tensor, damping: float) -> Tensor:
    inputs = torch.slice(torch.diagonal(gram, 0, 1, 2), 1, 0, -1, 1)
    added = torch.ones_like(inputs) * inputs.mean([1], True) * damping
    return torch.cat([added, torch.zeros_like(torch.slice(added, 1, 0, 1, 1))], 1) + 1e-8

def backwards(self, order: Tensor) -> Tensor:
    # The bias first, then the columns from the last one on.
    last = torch.full_like(torch.slice(order, 1, 0, 1, 1), order.size(1))
    return torch.cat([order, last], 1).flip([1])

def factor(self, gram: Tensor, damping: float) -> Tuple[Tensor, Tensor]:
    inputs = torch.slice(torch.diagonal(gram, 0, 1, 2), 1, 0, -1, 1)
    order = torch.argsort(inputs, 1, True)
    places = self.backwards(order)
    wide = places.unsqueeze(2).expand([-1, -1, gram.size(1)])
    turned = torch.gather(torch.gather(gram, 1, wide), 2, wide.transpose(1, 2))
    torch.diagonal(turned, 0, 1, 2).add_(torch.gather(self.added(gram, damping), 1, places))
    return order, torch.linalg_cholesky(turned)

def target(self, gram: Tensor, towards: Tensor, weight: Tensor, order: Tensor, lower: Tensor, damping: float) -> Tensor:
    right = towards + self.added(gram, damping).unsqueeze(2) * weight.to(gram.dtype).transpose(1, 2)
    wide = self.backwards(order).unsqueeze(2).expand_as(right)
    solved = torch.cholesky_solve(torch.gather(right, 1, wide), lower)
    return torch.scatter(torch.zeros_like(right), 1, wide, solved).transpose(1, 2).to(6).contiguous()

def plain(self, lower: Tensor) -> Tensor:
    return lower.to(6).contiguous()

def loss(self, gram: Tensor, towards: Tensor, rounded: Tensor) -> float:
    rounded = rounded.to(gram.dtype)
    of_rounded = (torch.matmul(rounded, gram) * rounded).sum(dtype=7)
    return float(of_rounded - 2 * (rounded.transpose(1, 2) * towards).sum(dtype=7))
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
        let (scales, zero_points) = (scale.to_f32_vec()?, zero_point.to_f32_vec()?);
        let ([scale], [zero_point]) = (&scales[..], &zero_points[..]) else { return Ok(None) };
        Ok(Some(Range { scale: f64::from(*scale), zero_point: *zero_point as i64, lowest, highest }))
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

    /// The graph of a method that takes the solver's module and a tensor, and gives what [`Solver::channel_ranges`] reads.
    pub fn channel_ranges_graph(&self) -> Result<Graph> {
        self.code.graph("channel_ranges")
    }

    /// The smallest and largest value of each channel of a tensor, the channels being dimension 1.
    pub fn channel_ranges(found: &IValue) -> Result<Vec<(f32, f32)>> {
        let [min, max] = found.tensors()[..] else { return Err(Error::invalid("channel_ranges gives two tensors")) };
        Ok(std::iter::zip(min.to_f32_vec()?, max.to_f32_vec()?).collect())
    }

    /// Some `rows` of the windows that a layer sees in `x`, groups x rows x (columns + 1); without a window, the rows of
    /// a linear layer's input.
    pub fn windows(&self, x: &IValue, window: Option<&Window>, rows: i64) -> Result<Tensor> {
        Tensor::try_from(match window {
            None => self.code.call::<IValue>("rows_of", &[x.clone(), IValue::Int(rows)])?,
            Some(window) => {
                let list = IValue::int_list;
                self.code.call::<IValue>(
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
                )?
            }
        })
    }

    /// The matrices of the first and of the second half of each batch's rows, for a layer with the weights `weight` (groups x
    /// outputs x (columns + 1)).
    pub fn grams(&self, float: &[Tensor], quantized: &[Tensor], weight: &Tensor) -> Result<[Grams; 2]> {
        let is_small = weight.shape()[2] <= MOST_COLUMNS_IN_F64;
        let dtype = if is_small { DType::F64 } else { DType::F32 } as i64;
        let list = |parts: &[Tensor]| IValue::tensor_list(parts.iter().cloned());
        let of = |second: bool| -> Result<Grams> {
            let inputs = [list(float), list(quantized), weight.into(), IValue::Bool(second), IValue::Int(dtype)];
            let [gram, towards] = self.two("grams", &inputs)?;
            Ok(Grams { gram, towards })
        };
        Ok([of(false)?, of(true)?])
    }

    pub fn sum(&self, one: &Grams, other: &Grams) -> Result<Grams> {
        let add = |a: &Tensor, b: &Tensor| Tensor::try_from(self.code.call::<IValue>("add", &[a.into(), b.into()])?);
        Ok(Grams { gram: add(&one.gram, &other.gram)?, towards: add(&one.towards, &other.towards)? })
    }

    /// Factorizes `q^T q`. Each diagonal gets `damping` times the mean of the inputs' more, which draws the solution to the
    /// weights that there are; the bias is free.
    pub fn factor(&self, grams: &Grams, damping: f64) -> Result<Factor> {
        let [order, lower] = self.two("factor", &[(&grams.gram).into(), IValue::Double(damping)])?;
        Ok(Factor { order, lower, damping })
    }

    /// What gives the results of `weight` (groups x outputs x (columns + 1)) best, not rounded.
    pub fn target(&self, grams: &Grams, weight: &Tensor, factor: &Factor) -> Result<Tensor> {
        let tensors = [&grams.gram, &grams.towards, weight, &factor.order, &factor.lower];
        let damping = IValue::Double(factor.damping);
        let inputs: Vec<IValue> = tensors.into_iter().map(IValue::from).chain([damping]).collect();
        Tensor::try_from(self.code.call::<IValue>("target", &inputs)?)
    }

    /// The lower triangular factors: groups x (columns + 1) x (columns + 1), the bias first, then the columns from the last in
    /// the order on.
    pub fn values(&self, factor: &Factor) -> Result<Tensor> {
        Tensor::try_from(self.code.call::<IValue>("plain", &[(&factor.lower).into()])?)
    }

    /// The squared error that `rounded` makes of the float results, less what does not depend on it.
    pub fn loss(&self, grams: &Grams, rounded: &Tensor) -> Result<f64> {
        let inputs = [(&grams.gram).into(), (&grams.towards).into(), rounded.into()];
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
