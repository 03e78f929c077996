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

/// Columns up to which matrices are in f64. Larger ones are of many columns for few windows, and strongly damped.
const MOST_COLUMNS_IN_F64: i64 = 2048;

/// The matrices of a layer's least squares problem, one for each group of channels.
pub(super) struct Grams {
    /// `q^T q`, `q` being what the layer takes in the quantized run: a window in each row, and a one for the bias.
    gram: Tensor,
    /// `q^T y`, `y` being the layer's results in float.
    towards: Tensor,
}

/// A damped `q^T q` factorized, for its solutions and for greedy rounding ([`super::learned_rounding`]): lower triangular,
/// groups x (columns + 1) x (columns + 1).
pub(super) struct Factor {
    lower: Tensor,
    damping: f64,
}

impl Factor {
    /// Bytes that it takes.
    pub fn nbytes(&self) -> usize {
        self.lower.nbytes()
    }

    /// Calls `with` on its values as f32.
    pub fn with_values<R>(&self, with: impl FnOnce(&[f32]) -> R) -> Result<R> {
        self.lower.with_f32(with)
    }
}

/// The order in which a layer's problem is solved: the bias first, then the columns from the smallest inputs on, so that they
/// are rounded from the last one on (groups x (columns + 1)).
pub(super) struct Order(Tensor);

impl Order {
    /// The columns in this order, for one group after the other; the bias is the last column.
    pub fn columns(&self) -> Result<Vec<usize>> {
        Ok(self.0.to_vec::<i64>()?.into_iter().map(|column| column as usize).collect())
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

def joined(self, parts: List[Tensor]) -> Tensor:
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

def grams(self, x: List[Tensor], q: List[Tensor], weight: Tensor, dtype: int) -> Tuple[Tensor, Tensor]:
    # Sums in f32.
    some_x, some_q = self.joined(x), self.joined(q)
    wanted, taken = weight.transpose(1, 2), some_q.transpose(1, 2)
    if 2 * weight.size(1) < weight.size(2):
        towards = torch.matmul(taken, torch.matmul(some_x, wanted)).to(dtype)
    else:
        towards = torch.matmul(torch.matmul(taken, some_x).to(dtype), wanted.to(dtype))
    return self.squares(some_q).to(dtype), towards

def add(self, a: Tensor, b: Tensor) -> Tensor:
    return a.add_(b)

def order(self, one: Tensor, other: Tensor) -> Tensor:
    # The bias first, then the columns from the smallest inputs on.
    inputs = torch.diagonal(one, 0, 1, 2) + torch.diagonal(other, 0, 1, 2)
    order = torch.argsort(torch.slice(inputs, 1, 0, -1, 1), 1, True)
    last = torch.full_like(torch.slice(order, 1, 0, 1, 1), order.size(1))
    return torch.cat([order, last], 1).flip([1])

def in_order(self, x: Tensor, order: Tensor) -> Tensor:
    if x.size(0) == 1:
        return torch.index_select(x, 1, order.squeeze(0))
    return torch.gather(x, 1, order.unsqueeze(2).expand_as(x))

def turned(self, gram: Tensor, order: Tensor) -> Tensor:
    # The matrix is symmetric, so its rows are its columns.
    return self.in_order(self.in_order(gram, order).transpose(1, 2).contiguous(), order)

def transposed(self, x: Tensor) -> Tensor:
    return x.transpose(1, 2)

def some(self, x: Tensor, every: int) -> Tensor:
    return torch.slice(x, 2, 0, None, every).contiguous()

def added(self, gram: Tensor, damping: float) -> Tensor:
    inputs = torch.slice(torch.diagonal(gram, 0, 1, 2), 1, 1, None, 1)
    added = torch.ones_like(inputs) * inputs.mean([1], True) * damping
    return torch.cat([torch.zeros_like(torch.slice(added, 1, 0, 1, 1)), added], 1) + 1e-8

def factor(self, gram: Tensor, damping: float) -> Tensor:
    damped = gram.clone()
    torch.diagonal(damped, 0, 1, 2).add_(self.added(gram, damping))
    return self.factor_(damped)

def factor_(self, a: Tensor) -> Tensor:
    # In place, a block of columns at a time; what lies above the diagonal stays as it was. libtorch's own turns a large matrix
    # over and sets one half to zero, which takes as long as the factorization.
    size, block = a.size(1), 256
    if size <= block:
        return torch.linalg_cholesky(a)
    for first in range(0, size, block):
        end = min(first + block, size)
        columns = torch.slice(torch.slice(a, 1, first, None, 1), 2, first, end, 1)
        corner = torch.linalg_cholesky(torch.slice(columns, 1, 0, end - first, 1))
        torch.slice(columns, 1, 0, end - first, 1).copy_(corner)
        if end < size:
            below = torch.slice(columns, 1, end - first, None, 1)
            solved = torch.linalg_solve_triangular(corner, below.transpose(1, 2), upper=False)
            below.copy_(solved.transpose(1, 2))
            # What is left less what these columns explain of it, on and below the diagonal.
            for at in range(end, size, 1024):
                until = min(at + 1024, size)
                left = torch.slice(torch.slice(a, 1, at, None, 1), 2, at, until, 1)
                rows = torch.slice(solved, 2, at - end, None, 1)
                left.baddbmm_(rows.transpose(1, 2), torch.slice(rows, 2, 0, until - at, 1), beta=1, alpha=-1)
    return a

def target(self, gram: Tensor, towards: Tensor, weight: Tensor, lower: Tensor, damping: float) -> Tensor:
    right = towards + self.added(gram, damping).unsqueeze(2) * weight.to(gram.dtype)
    half = torch.linalg_solve_triangular(lower, right, upper=False)
    whole = torch.linalg_solve_triangular(lower.transpose(1, 2), half, upper=True)
    return whole.transpose(1, 2).to(6).contiguous()

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

    /// The matrices of some windows ([`super::windows`]) in both runs, for a layer with the weights `weight` (groups x outputs x
    /// (columns + 1)).
    pub fn grams(&self, float: &[Tensor], quantized: &[Tensor], weight: &Tensor) -> Result<Grams> {
        let is_small = weight.shape()[2] <= MOST_COLUMNS_IN_F64;
        let dtype = if is_small { DType::F64 } else { DType::F32 } as i64;
        let list = |parts: &[Tensor]| IValue::tensor_list(parts.iter().cloned());
        let inputs = [list(float), list(quantized), weight.into(), IValue::Int(dtype)];
        match self.code.call::<IValue>("grams", &inputs)?.tensors()[..] {
            [gram, towards] => Ok(Grams { gram: gram.clone(), towards: towards.clone() }),
            _ => Err(Error::invalid("grams gives two tensors")),
        }
    }

    /// Adds `other` to `sum`, in place.
    pub fn add(&self, sum: &Grams, other: &Grams) -> Result<()> {
        self.tensor("add", &[(&sum.gram).into(), (&other.gram).into()])?;
        self.tensor("add", &[(&sum.towards).into(), (&other.towards).into()]).map(drop)
    }

    /// The order that the inputs of both halves ask for.
    pub fn order(&self, halves: &[Grams; 2]) -> Result<Order> {
        Ok(Order(self.tensor("order", &[(&halves[0].gram).into(), (&halves[1].gram).into()])?))
    }

    /// The matrices with their rows and columns in this order.
    pub fn turned(&self, grams: &Grams, order: &Order) -> Result<Grams> {
        Ok(Grams {
            gram: self.tensor("turned", &[(&grams.gram).into(), (&order.0).into()])?,
            towards: self.in_order(&grams.towards, order)?,
        })
    }

    /// A tensor groups x (columns + 1) x outputs with its rows in this order.
    pub fn in_order(&self, rows: &Tensor, order: &Order) -> Result<Tensor> {
        self.tensor("in_order", &[rows.into(), (&order.0).into()])
    }

    /// A tensor groups x outputs x (columns + 1) as groups x (columns + 1) x outputs.
    pub fn transposed(&self, rows: &Tensor) -> Result<Tensor> {
        self.tensor("transposed", &[rows.into()])
    }

    /// Every so many-th output of a tensor groups x (columns + 1) x outputs.
    pub fn some(&self, of: &Tensor, every: usize) -> Result<Tensor> {
        self.tensor("some", &[of.into(), IValue::Int(every as i64)])
    }

    /// The matrices of every so many-th output.
    pub fn of_some(&self, grams: &Grams, every: usize) -> Result<Grams> {
        Ok(Grams { gram: grams.gram.clone(), towards: self.some(&grams.towards, every)? })
    }

    /// Factorizes `q^T q`. Each diagonal gets `damping` times the mean of the inputs' more, which draws the solution to the
    /// weights that there are; the bias is free.
    pub fn factor(&self, grams: &Grams, damping: f64) -> Result<Factor> {
        let lower = self.tensor("factor", &[(&grams.gram).into(), IValue::Double(damping)])?;
        Ok(Factor { lower, damping })
    }

    /// What gives the results of `weight` (groups x (columns + 1) x outputs, in order) best, not rounded: groups x outputs x
    /// (columns + 1).
    pub fn target(&self, grams: &Grams, weight: &Tensor, factor: &Factor) -> Result<Tensor> {
        let tensors = [&grams.gram, &grams.towards, weight, &factor.lower];
        let damping = IValue::Double(factor.damping);
        let inputs: Vec<IValue> = tensors.into_iter().map(IValue::from).chain([damping]).collect();
        self.tensor("target", &inputs)
    }

    /// The squared error that `rounded` makes of the float results, less what does not depend on it.
    pub fn loss(&self, grams: &Grams, rounded: &Tensor) -> Result<f64> {
        let inputs = [(&grams.gram).into(), (&grams.towards).into(), rounded.into()];
        match self.code.call::<IValue>("loss", &inputs)? {
            IValue::Double(loss) => Ok(loss),
            _ => Err(Error::invalid("loss gives a number")),
        }
    }

    fn tensor(&self, function: &str, inputs: &[IValue]) -> Result<Tensor> {
        Tensor::try_from(self.code.call::<IValue>(function, inputs)?)
    }
}
