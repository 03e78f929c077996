//! What libtorch's engines compute, operator by operator, against exact results: to one step the same, but for what the table of
//! operators lists (`pass::op_table::LIMITS`), and that must be wrong indeed.

#![cfg(feature = "torch")]

mod support;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use jitquant::engine::{stock_engines, with_stock_engine};
use jitquant::ir::{IValue, Module, Tensor};
use jitquant::pass::op_table::{Geometry, LIMITS, Limit, MOST_OF_A_PAIR, StockEngine, When, largest_pair};
use support::noise;

/// The engine is the process's: one test at a time.
static ENGINE: Mutex<()> = Mutex::new(());

const STEP: f64 = 0.02;
const WEIGHT_STEP: f64 = 0.01;

/// The largest weight: without VNNI sums of full range saturate in nearly every layer.
fn most() -> i8 {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx512vnni") {
        eprintln!("no VNNI: weights of 7 bits");
        return 63;
    }
    127
}

/// Values at the ends of their range, or anywhere in it.
#[derive(Clone, Copy, Debug)]
enum Values {
    Highest,
    Lowest,
    Ends,
    Any,
}

impl Values {
    fn make(self, count: usize, low: i32, high: i32, seed: u64) -> Vec<i32> {
        let of = |noise: f32| match self {
            Self::Highest => high,
            Self::Lowest => low,
            Self::Ends => {
                if noise < 0.0 {
                    low
                } else {
                    high
                }
            }
            Self::Any => low + ((f64::from(noise) + 1.0) / 2.0 * f64::from(high - low)).round() as i32,
        };
        noise(count, seed).into_iter().map(of).collect()
    }
}

/// A convolution; sizes are the same in all dimensions.
#[derive(Clone, Copy, Debug)]
struct Case {
    dimensions: usize,
    transposed: bool,
    inputs: usize,
    outputs: usize,
    groups: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
}

impl Case {
    fn operator(self) -> String {
        format!("quantized::conv{}{}d", if self.transposed { "_transpose" } else { "" }, self.dimensions)
    }

    fn geometry(self) -> Geometry {
        let all = |size: usize| vec![size as i64; self.dimensions];
        Geometry {
            inputs: self.inputs as i64,
            outputs: self.outputs as i64,
            groups: self.groups as i64,
            kernel: all(self.kernel),
            stride: all(self.stride),
            padding: all(self.padding),
            dilation: all(self.dilation),
            transposed: self.transposed,
        }
    }

    fn weight_sizes(self) -> Vec<i64> {
        let [first, second] = match self.transposed {
            true => [self.inputs, self.outputs / self.groups],
            false => [self.outputs, self.inputs / self.groups],
        };
        [vec![first as i64, second as i64], vec![self.kernel as i64; self.dimensions]].concat()
    }

    fn output_size(self, size: usize) -> usize {
        let reach = self.dilation * (self.kernel - 1) + 1;
        match self.transposed {
            true => (size - 1) * self.stride + reach - 2 * self.padding,
            false => (size + 2 * self.padding - reach) / self.stride + 1,
        }
    }

    /// The exact sums `[outputs, output size…]` of an input `[inputs, size…]`, one place after another.
    fn sums(self, x: &[i32], size: usize, zero_point: i32, weight: &[i32]) -> Vec<i64> {
        let (out, taps) = (self.output_size(size), self.kernel.pow(self.dimensions as u32));
        let (places, inside) = (out.pow(self.dimensions as u32), size.pow(self.dimensions as u32));
        let (own_inputs, own_outputs) = (self.inputs / self.groups, self.outputs / self.groups);
        let mut sums = vec![0i64; self.outputs * places];
        for place in 0..places {
            for tap in 0..taps {
                let Some(from) = self.source(place, out, tap, size) else { continue };
                for output in 0..self.outputs {
                    let group = output / own_outputs;
                    for input in 0..own_inputs {
                        let channel = group * own_inputs + input;
                        let at = match self.transposed {
                            true => channel * own_outputs + output % own_outputs,
                            false => output * own_inputs + input,
                        };
                        let value = i64::from(x[channel * inside + from] - zero_point);
                        sums[output * places + place] += value * i64::from(weight[at * taps + tap]);
                    }
                }
            }
        }
        sums
    }

    /// Which place of the input a tap reads for a place of the output.
    fn source(self, place: usize, out: usize, tap: usize, size: usize) -> Option<usize> {
        let mut from = 0;
        for dimension in (0..self.dimensions as u32).rev() {
            let digit = |number: usize, base: usize| number / base.pow(dimension) % base;
            let (o, t) = (digit(place, out), digit(tap, self.kernel) * self.dilation);
            let i = match self.transposed {
                true => {
                    let moved = (o + self.padding).checked_sub(t)?;
                    (moved % self.stride == 0).then_some(moved / self.stride)?
                }
                false => (o * self.stride + t).checked_sub(self.padding)?,
            };
            from = from * size + Some(i).filter(|i| *i < size)?;
        }
        Some(from)
    }

    /// Whether the table says that `engine` does not compute it exactly; by which line.
    fn limit(self, engine: &str, weight: &[i32]) -> Option<&'static Limit> {
        let geometry = self.geometry();
        let weight: Vec<i8> = weight.iter().map(|w| *w as i8).collect();
        let taps = self.kernel.pow(self.dimensions as u32);
        let is_met = |when: When| match when {
            When::Always => true,
            When::DepthwisePairs => {
                geometry.is_fbgemm_depthwise()
                    && largest_pair(&weight, taps) > MOST_OF_A_PAIR
                    && (engine == "fbgemm" || self.groups > 100)
            }
            When::DirectTransposed => geometry.is_fbgemm_direct(),
            When::UnequalChannels => self.inputs != self.outputs,
            When::MiddleGroups => geometry.has_middle_groups(),
            When::UnevenGroups => {
                assert!(!geometry.has_uneven_groups(), "{self:?} would write past the end of memory");
                false
            }
            _ => false,
        };
        let kind = self.operator();
        let concerns = |limit: &&Limit| limit.engines.iter().any(|one| one.name() == engine) && is_met(limit.when);
        LIMITS.iter().filter(|limit| limit.kinds.contains(&&kind[..])).find(concerns)
    }
}

/// Round half to even of an exact multiple, as all engines do, between the bounds of a byte.
fn requantized(sum: i64, multiplier: f64, zero_point: i64) -> i64 {
    ((sum as f64 * multiplier).round_ties_even() as i64 + zero_point).clamp(0, 255)
}

fn convolutions() -> Vec<Case> {
    let case = |dimensions,
                transposed,
                [inputs, outputs, groups]: [usize; 3],
                [kernel, stride, padding, dilation]: [usize; 4]| Case {
        dimensions,
        transposed,
        inputs,
        outputs,
        groups,
        kernel,
        stride,
        padding,
        dilation,
    };
    let mut all = Vec::new();
    for dimensions in 1..=3 {
        for transposed in [false, true] {
            for channels in [[3, 5, 1], [16, 16, 1], [17, 17, 1], [8, 16, 2], [16, 16, 4], [7, 7, 7], [16, 16, 16]] {
                for window in [[1, 1, 0, 1], [3, 1, 1, 1], [3, 2, 1, 1], [3, 1, 0, 2], [2, 2, 0, 1]] {
                    all.push(case(dimensions, transposed, channels, window));
                }
            }
        }
        all.push(case(dimensions, false, [8, 16, 8], [3, 1, 1, 1]));
        all.push(case(dimensions, false, [16, 16, 16], [3, 1, 0, 1]));
    }
    for window in [[5, 1, 2, 1], [5, 2, 2, 1], [7, 1, 3, 1], [3, 2, 1, 2]] {
        all.push(case(2, false, [16, 16, 16], window));
    }
    for [channels, groups] in [[48, 2], [58, 2], [96, 2]] {
        all.push(case(2, false, [channels, channels, groups], [3, 1, 1, 1]));
    }
    for (channels, joined) in [(58, 58), (104, 8), (116, 116), (112, 4), (112, 16)] {
        all.push(case(2, false, [channels; 3], [3, 1, 1, 1]));
        // The form that takes the place of a saturating one.
        all.push(case(2, false, [channels, channels, channels / joined], [3, 1, 1, 1]));
    }
    all
}

/// `@` is the number of dimensions, `#` is `_transpose` or nothing, `~` what the order of packing's arguments is.
const CONVOLVE: &str = "
def convolve(self, x: Tensor, zero: int, w: Tensor, like: Tensor, stride: List[int], padding: List[int], dilation: List[int], none: List[int], groups: int, scale: float):
    qx = torch._make_per_tensor_quantized_tensor(x, 0.02, zero)
    qw = ~
    packed = ops.quantized.conv#@d_prepack(qw, None, stride, padding, $dilation, groups)
    return torch.int_repr(ops.quantized.conv#@d(qx, packed, scale, 128)).contiguous()
";

fn convolver(case: Case) -> Module {
    let [name, order, weight] = match case.transposed {
        true => ["_transpose", "none, ", "torch._make_per_tensor_quantized_tensor(w, 0.01, 0)"],
        false => ["", "", "torch._make_per_channel_quantized_tensor(w, like, torch.zeros_like(like).to(4), 0)"],
    };
    let code = CONVOLVE.replace('@', &case.dimensions.to_string()).replace('#', name);
    support::module(&code.replace('$', order).replace('~', weight))
}

#[test]
fn layers_are_exact_or_listed() {
    let _alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let (most, size) = (most(), 5);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for (number, case) in convolutions().into_iter().enumerate() {
        let code = convolver(case);
        let places = case.output_size(size).pow(case.dimensions as u32);
        for (x_values, w_values, zero_point) in [
            (Values::Highest, Values::Highest, 0),
            (Values::Highest, Values::Lowest, 128),
            (Values::Ends, Values::Ends, 255),
            (Values::Any, Values::Any, 3),
        ] {
            let (x_sizes, w_sizes) =
                ([vec![1, case.inputs as i64], vec![size as i64; case.dimensions]].concat(), case.weight_sizes());
            let count = |sizes: &[i64]| sizes.iter().product::<i64>() as usize;
            let x = x_values.make(count(&x_sizes), 0, 255, number as u64);
            let w = w_values.make(count(&w_sizes), -i32::from(most), i32::from(most), number as u64 + 1);
            let sums = case.sums(&x, size, zero_point, &w);
            let largest = sums.iter().map(|sum| sum.abs()).max().unwrap_or(0).max(1) as f64;
            // A scale for each channel, of seven different ones.
            let steps: Vec<f64> =
                (0..case.outputs).map(|channel| WEIGHT_STEP * (1.0 + 0.1 * (channel % 7) as f64)).collect();
            let step = |output: usize| if case.transposed { WEIGHT_STEP } else { steps[output] };
            let scale = largest * STEP * WEIGHT_STEP * 1.6 / 127.0;
            let exact: Vec<i64> =
                (0..sums.len()).map(|i| requantized(sums[i], STEP * step(i / places) / scale, 128)).collect();
            let list = |size: usize| IValue::int_list(vec![size as i64; case.dimensions]);
            let bytes: Vec<u8> = x.iter().map(|x| *x as u8).collect();
            let weight: Vec<i8> = w.iter().map(|w| *w as i8).collect();
            let arguments = [
                Tensor::from_slice(&bytes, &x_sizes).unwrap().into(),
                IValue::Int(i64::from(zero_point)),
                Tensor::from_slice(&weight, &w_sizes).unwrap().into(),
                Tensor::from_slice(&steps, &[case.outputs as i64]).unwrap().into(),
                list(case.stride),
                list(case.padding),
                list(case.dilation),
                list(0),
                IValue::Int(case.groups as i64),
                IValue::Double(scale),
            ];
            for engine in stock_engines() {
                let result = with_stock_engine(&engine, || code.call::<IValue>("convolve", &arguments)).unwrap();
                let found = result.as_tensor().unwrap().to_vec::<u8>().unwrap();
                let apart = std::iter::zip(&found, &exact).map(|(f, e)| (i64::from(*f) - e).abs()).max().unwrap_or(0);
                match case.limit(&engine, &w) {
                    Some(limit) if apart > 1 => drop(seen.insert((limit.what, engine))),
                    None if apart > 1 => {
                        wrong.push(format!("{engine}: {case:?} {x_values:?} {w_values:?} {zero_point}: {apart} steps"))
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} not exact and not listed:\n{}", wrong.len(), wrong.join("\n"));
    if most == 127 {
        let of_layers = |limit: &&Limit| limit.kinds[0].contains("conv") && limit.when != When::UnevenGroups;
        for limit in LIMITS.iter().filter(of_layers) {
            for engine in limit.engines {
                assert!(seen.contains(&(limit.what, engine.name().to_owned())), "{engine:?} is exact: {}", limit.what);
            }
        }
    }
}

/// Operators without weights: the quantized form, and the float operator that it stands for. `a`, `b`: N x 16 x 7 x 5.
#[rustfmt::skip]
const OPERATORS: &[(&str, &str)] = &[
    ("ops.quantized.add(a, b, 0.06, 100)", "a + b"),
    ("ops.quantized.add_relu(a, b, 0.06, 100)", "torch.relu(a + b)"),
    ("ops.quantized.mul(a, b, 0.3, 100)", "a * b"),
    ("ops.quantized.mul_relu(a, b, 0.3, 100)", "torch.relu(a * b)"),
    ("ops.quantized.cat([a, b], 1, 0.06, 100)", "torch.cat([a, b], 1)"),
    ("ops.quantized.add_scalar(a, 0.3)", "a + 0.3"),
    ("ops.quantized.mul_scalar(a, 0.3)", "a * 0.3"),
    ("ops.quantized.batch_norm(a, w, w, w, v, 1e-05, 0.05, 100)", "torch.batch_norm(a, w, w, w, v, False, 0.1, 1e-05, False)"),
    ("ops.quantized.batch_norm_relu(a, w, w, w, v, 1e-05, 0.05, 100)", "torch.relu(torch.batch_norm(a, w, w, w, v, False, 0.1, 1e-05, False))"),
    ("ops.quantized.layer_norm(a, [5], v[:5], w[:5], 1e-05, 0.05, 100)", "torch.layer_norm(a, [5], v[:5], w[:5], 1e-05)"),
    ("ops.quantized.group_norm(a, 4, v, w, 1e-05, 0.05, 100)", "torch.group_norm(a, 4, v, w, 1e-05)"),
    ("ops.quantized.instance_norm(a, v, w, 1e-05, 0.05, 100)", "torch.instance_norm(a, v, w, None, None, True, 0.1, 1e-05, False)"),
    ("ops.quantized.hardswish(a, 0.03, 100)", "torch.hardswish(a)"),
    ("ops.quantized.elu(a, 0.03, 100, 1.0, 1.0, 1.0)", "torch.elu(a)"),
    ("ops.quantized.matmul(a.contiguous(), torch.transpose(b, 2, 3).contiguous(), 0.5, 100)", "torch.matmul(a, torch.transpose(b, 2, 3))"),
    ("torch.sigmoid(a)", "torch.sigmoid(a)"),
    ("torch.tanh(a)", "torch.tanh(a)"),
    ("torch.hardsigmoid(a)", "torch.hardsigmoid(a)"),
    ("torch.relu(a)", "torch.relu(a)"),
    ("torch.leaky_relu(a, 0.1)", "torch.leaky_relu(a, 0.1)"),
    ("torch.clamp(a, -0.9, 0.9)", "torch.clamp(a, -0.9, 0.9)"),
    ("torch.hardtanh(a, -0.9, 0.9)", "torch.hardtanh(a, -0.9, 0.9)"),
    ("torch.max_pool1d(a[:, :, 0], [3], [2], [1])", "torch.max_pool1d(a[:, :, 0], [3], [2], [1])"),
    ("torch.max_pool2d(a, [3, 3], [2, 2], [1, 1])", "torch.max_pool2d(a, [3, 3], [2, 2], [1, 1])"),
    ("torch.max_pool3d(a[None], [2, 2, 2])", "torch.max_pool3d(a[None], [2, 2, 2])"),
    ("torch.avg_pool1d(a[:, :, 0], [3], [2], [1])", "torch.avg_pool1d(a[:, :, 0], [3], [2], [1])"),
    ("torch.avg_pool2d(a, [3, 3], [2, 2], [1, 1])", "torch.avg_pool2d(a, [3, 3], [2, 2], [1, 1])"),
    ("torch.avg_pool2d(a, [3, 3], [2, 2], [1, 1], False, False)", "torch.avg_pool2d(a, [3, 3], [2, 2], [1, 1], False, False)"),
    ("torch.avg_pool3d(a[None], [3, 3, 3], [2, 2, 2], [1, 1, 1])", "torch.avg_pool3d(a[None], [3, 3, 3], [2, 2, 2], [1, 1, 1])"),
    ("torch.adaptive_avg_pool2d(a, [1, 1])", "torch.adaptive_avg_pool2d(a, [1, 1])"),
    ("torch.adaptive_avg_pool2d(a, [3, 3])", "torch.adaptive_avg_pool2d(a, [3, 3])"),
    ("torch.adaptive_avg_pool3d(a[None], [2, 2, 2])", "torch.adaptive_avg_pool3d(a[None], [2, 2, 2])"),
    ("torch.mean(a, [2, 3])", "torch.mean(a, [2, 3])"),
    ("torch.upsample_nearest2d(a, [14, 10])", "torch.upsample_nearest2d(a, [14, 10])"),
    ("torch.upsample_nearest3d(a[None], [32, 14, 10])", "torch.upsample_nearest3d(a[None], [32, 14, 10])"),
    ("torch.upsample_bilinear2d(a, [14, 10], False)", "torch.upsample_bilinear2d(a, [14, 10], False)"),
];

/// The operators of `LIMITS` that a quantized form is.
fn limited(form: &str, engine: &str, channels_last: bool) -> bool {
    let kind =
        form.split('(').next().unwrap_or(form).replace("ops.quantized.", "quantized::").replace("torch.", "aten::");
    Limit::of(&kind).filter(|limit| limit.engines.iter().any(|one| one.name() == engine)).any(|limit| {
        match limit.when {
            When::ChannelsLast => channels_last,
            When::UncountedPadding => form.ends_with("False)"),
            _ => true,
        }
    })
}

#[test]
fn operators_without_weights_are_exact_or_listed() {
    let _alone = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut wrong = Vec::new();
    for (form, float) in OPERATORS {
        // How far a result may be from the float operator's, in steps, and its integers.
        let code = support::module(&format!(
            "def run(self, qa: Tensor, qb: Tensor, za: int, zb: int, w: Tensor, v: Tensor, last: bool):\n    \
             a = torch._make_per_tensor_quantized_tensor(qa, 0.03, za)\n    \
             b = torch._make_per_tensor_quantized_tensor(qb, 0.05, zb)\n    \
             if last:\n        a, b = a.contiguous(memory_format=2), b.contiguous(memory_format=2)\n    \
             y = {form}\n    \
             a, b = a.dequantize(), b.dequantize()\n    \
             z = {float}\n    \
             z = torch.clamp(z / torch.q_scale(y) + torch.q_zero_point(y), 0.0, 255.0)\n    \
             return float(torch.max(torch.abs(torch.int_repr(y) - z)))\n"
        ));
        for (values, zeros) in [
            (Values::Highest, (0, 255)),
            (Values::Lowest, (255, 0)),
            (Values::Ends, (128, 128)),
            (Values::Any, (90, 140)),
        ] {
            for channels_last in [false, true] {
                let bytes = |seed: u64| {
                    let all: Vec<u8> =
                        values.make(16 * 35, 0, 255, seed).into_iter().map(|value| value as u8).collect();
                    IValue::from(Tensor::from_slice(&all, &[1, 16, 7, 5]).unwrap())
                };
                let w = noise(16, 3);
                let v: Vec<f32> = w.iter().map(|w| w.abs() + 0.1).collect();
                let arguments = [
                    bytes(1),
                    bytes(2),
                    IValue::Int(zeros.0),
                    IValue::Int(zeros.1),
                    Tensor::from_slice(&w, &[16]).unwrap().into(),
                    Tensor::from_slice(&v, &[16]).unwrap().into(),
                    IValue::Bool(channels_last),
                ];
                for engine in stock_engines() {
                    if limited(form, &engine, channels_last) {
                        continue;
                    }
                    let run = || code.call::<IValue>("run", &arguments);
                    let apart = with_stock_engine(&engine, run).unwrap_or_else(|e| panic!("{engine}: {form}: {e}"));
                    // One step, and half of one that rounding may take.
                    if apart.as_number().unwrap() > 1.51 {
                        wrong.push(format!("{engine}: {form}, {values:?}, {zeros:?}, {channels_last}: {apart:?}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_names_engines_of_libtorch() {
    let known = stock_engines();
    for engine in StockEngine::ALL {
        assert!(known.contains(&engine.name().to_owned()), "{engine:?}");
    }
}
