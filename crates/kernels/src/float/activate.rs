//! Functions of one value, with a bias for each column before them.

use super::output::{Sink, check_scratch, task_scratch};
use super::{Rows, Shared, Target, math, split};
use crate::elementwise::simd::{Kernel, Simd, dispatch_f32};
use crate::{Activation, Isa, Parallel};

/// `function(x + bias)` for each value of `rows` rows of `columns`; `bias` is one a column or empty.
///
/// The largest errors found among 2^22 numbers of all sizes, in units of the result's last place: `Exp` 1.0, `Sigmoid` 2.2,
/// `Silu` 2.7, `Tanh` 2.5, `Elu` 2.0; `Gelu` `1.5e-7 |x|` and `GeluTanh` `1.2e-7 |x|`. The others are f32 operations
/// in the order of their definition. A result of size below 1.1e-36 may be 0 instead. NaN stays NaN.
///
/// `scratch`: [`scratch_len`](super::scratch_len) values where `target` is not f32.
///
/// ```
/// use jitquant_kernels::float::{Rows, Target, activate};
/// use jitquant_kernels::{Activation, Isa, Serial};
/// let mut y = [0.0; 4];
/// let target = Target::F32 { values: &mut y, stride: 2 };
/// let x = Rows::new(&[-1.0, 0.5, 2.0, -3.0], 2);
/// activate(Isa::current(), x, 2, 2, &[1.0, 0.0], Activation::Relu, target, &mut [], &Serial);
/// assert_eq!(y, [0.0, 0.5, 3.0, 0.0]);
/// ```
///
/// # Panics
/// If a slice is too short.
#[allow(clippy::too_many_arguments)]
pub fn activate(
    isa: Isa,
    x: Rows<'_>,
    rows: usize,
    columns: usize,
    bias: &[f32],
    function: Activation,
    target: Target<'_>,
    scratch: &mut [f32],
    threads: &dyn Parallel,
) {
    x.check("input", rows, columns);
    assert!(bias.is_empty() || bias.len() == columns, "bias: {} values for {columns} columns", bias.len());
    if rows == 0 || columns == 0 {
        return;
    }
    let sink = Sink::new(target, rows, columns);
    let most = threads.threads().max(1);
    check_scratch(&sink, columns, scratch, most);
    let scratch = Shared(scratch.as_mut_ptr());
    // One long row is cut like many: only a range of its own needs a row as a whole.
    if let (1, Sink::F32(values, _)) = (rows, sink) {
        split(threads, most, columns.div_ceil(BLOCK), 4 * BLOCK, &|_, from, to| {
            let (from, to) = (from * BLOCK, (to * BLOCK).min(columns));
            // SAFETY: the range is within the row, and each task has its own.
            let out = unsafe { values.slice(from, to - from) };
            let bias = if bias.is_empty() { bias } else { &bias[from..to] };
            dispatch_f32(isa, Apply { x: Some(&x.data[from..to]), bias, function, out });
        });
        return;
    }
    split(threads, most, rows, 4 * columns, &|task, from, to| {
        // SAFETY: `check_scratch` has seen it, and `split` gives each task number once.
        let scratch = unsafe { task_scratch(&sink, columns, scratch, task) };
        dispatch_f32(isa, ActivateRows { x, rows: [from, to], columns, bias, function, sink, scratch });
    });
}

/// Values of a long row that stay together.
const BLOCK: usize = 1024;

struct ActivateRows<'a> {
    x: Rows<'a>,
    rows: [usize; 2],
    columns: usize,
    bias: &'a [f32],
    function: Activation,
    sink: Sink,
    scratch: &'a mut [f32],
}

impl Kernel for ActivateRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, rows, columns, bias, function, sink, scratch } = self;
        for row in rows[0]..rows[1] {
            // SAFETY: the row is one of this task's, and `activate` has made the sink for all rows.
            let out = unsafe { sink.row(row, columns, scratch) };
            Apply { x: Some(x.row(row, columns)), bias, function, out: &mut *out }.run(s);
            // SAFETY: as above.
            unsafe { sink.finish(s, row, out) };
        }
    }
}

/// `function` of each of `values`, in place.
pub(super) struct InPlace<'a> {
    pub function: Activation,
    pub values: &'a mut [f32],
}

impl Kernel for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        apply(s, None, &[], self.function, self.values);
    }
}

/// The function over one row, which is in `out` if there is no `x`.
struct Apply<'a> {
    x: Option<&'a [f32]>,
    bias: &'a [f32],
    function: Activation,
    out: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, bias, function, out } = self;
        apply(s, x, bias, function, out);
    }
}

/// The loop over a row with `$y` as the value of `$x`, in blocks of four vectors.
macro_rules! each {
    ($s:ident, $from:ident, $bias:ident, $to:ident, |$x:ident| $y:expr) => {{
        let step = S::BYTES;
        let mut first = 0;
        while first < $to.len() {
            let end = $to.len().min(first + step);
            let mut block = match $from {
                Some(from) => $s.load_f32x4(&from[first..end]),
                None => $s.load_f32x4(&$to[first..end]),
            };
            if !$bias.is_empty() {
                let bias = $s.load_f32x4(&$bias[first..end]);
                for k in 0..4 {
                    block[k] = $s.add(block[k], bias[k]);
                }
            }
            for k in 0..4 {
                let $x = block[k];
                block[k] = $y;
            }
            $s.store_f32x4(block, &mut $to[first..end]);
            first = end;
        }
    }};
}

/// `function(x + bias)`, `bias` empty or as long as `x`, which is in `out` if it is None.
#[inline(always)]
fn apply<S: Simd>(s: S, x: Option<&[f32]>, bias: &[f32], function: Activation, out: &mut [f32]) {
    let zero = s.splat(0.0);
    match function {
        Activation::Relu => each!(s, x, bias, out, |x| s.max(zero, x)),
        Activation::Clamp { min, max } => {
            let (min, max) = (s.splat(min), s.splat(max));
            each!(s, x, bias, out, |x| s.min(max, s.max(min, x)));
        }
        Activation::LeakyRelu { negative_slope } => {
            let slope = s.splat(negative_slope);
            each!(s, x, bias, out, |x| s.if_less(zero, x, x, s.mul(x, slope)));
        }
        Activation::HardSwish => {
            let (three, six) = (s.splat(3.0), s.splat(6.0));
            each!(s, x, bias, out, |x| s.div(s.mul(x, s.min(six, s.max(zero, s.add(x, three)))), six));
        }
        Activation::HardSigmoid => {
            let (three, six) = (s.splat(3.0), s.splat(6.0));
            each!(s, x, bias, out, |x| s.div(s.min(six, s.max(zero, s.add(x, three))), six));
        }
        Activation::Sigmoid => each!(s, x, bias, out, |x| math::sigmoid(s, x)),
        Activation::Silu => each!(s, x, bias, out, |x| math::silu(s, x)),
        Activation::Tanh => each!(s, x, bias, out, |x| math::tanh(s, x)),
        Activation::Elu { alpha, scale, input_scale } => {
            let (above, below, inner) = (s.splat(scale), s.splat(alpha * scale), s.splat(input_scale));
            each!(s, x, bias, out, |x| {
                let negative = s.mul(s.min(zero, x), inner);
                s.if_less(zero, x, s.mul(x, above), s.mul(math::exp_m1_negative(s, negative), below))
            });
        }
        Activation::Gelu => each!(s, x, bias, out, |x| math::gelu(s, x)),
        Activation::GeluTanh => each!(s, x, bias, out, |x| math::gelu_tanh(s, x)),
        Activation::Exp => each!(s, x, bias, out, |x| math::exp(s, x)),
        Activation::AddScalar(value) => {
            let value = s.splat(value);
            each!(s, x, bias, out, |x| s.add(x, value));
        }
        Activation::MulScalar(value) => {
            let value = s.splat(value);
            each!(s, x, bias, out, |x| s.mul(x, value));
        }
    }
}
