//! Arguments at the limits of native operators: refused in words, on the CPU and on meta tensors, and never the end of the process.
#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{IValue, Module, Tensor};
use support::{module, noise};

fn bytes(shape: &[i64]) -> IValue {
    let count = shape.iter().product::<i64>() as usize;
    let values: Vec<u8> = noise(count, 3).into_iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
    IValue::from(&Tensor::from_slice(&values, shape).unwrap())
}

fn floats(shape: &[i64]) -> IValue {
    IValue::from(&support::tensor(shape, 9))
}

fn numbers(list: &[i64]) -> IValue {
    IValue::int_list(list.iter().copied())
}

/// What `method` refuses the arguments with.
fn refusal(ops: &Module, method: &str, arguments: &[IValue]) -> String {
    match ops.call(method, arguments) {
        Ok(result) => panic!("{method} of {arguments:?} gives {result:?}"),
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains("internal error"), "{error}");
            error
        }
    }
}

const HUGE: i64 = i64::MAX;

#[test]
fn geometry_that_wraps_is_refused_where_a_convolution_is_packed() {
    let ops = module(
        "def pack(self, w, stride: List[int], padding: List[int], dilation: List[int], added: List[int], transposed: bool):\n    \
         w = (w * 9).to(1)\n    \
         return ops.jitquant.conv_prepack(w, torch.ones([1]), torch.zeros([1]), None, stride, padding, dilation, added, 1, transposed)\n\
         def stock(self, w, padding: List[int], dilation: List[int]):\n    \
         q = torch.quantize_per_tensor(w, 0.1, 0, 12)\n    \
         return ops.quantized.conv2d_prepack(q, None, [1, 1], padding, dilation, 1)\n\
         def ours(self, w, padding: List[int], dilation: List[int]):\n    \
         q = torch.quantize_per_tensor(w, 0.1, 0, 12)\n    \
         return ops.jitquant.conv_from_packed(ops.quantized.conv2d_prepack(q, None, [1, 1], padding, dilation, 1))\n",
    );
    for dimensions in 1..=3usize {
        let mut shape = vec![4, 4];
        shape.resize(2 + dimensions, 3);
        let w = floats(&shape);
        for transposed in [false, true] {
            let pack = |stride, padding, dilation, added| {
                let all = |value| numbers(&vec![value; dimensions]);
                let arguments = [w.clone(), all(stride), all(padding), all(dilation), all(added), transposed.into()];
                refusal(&ops, "pack", &arguments)
            };
            for value in [HUGE, HUGE - 1, 1 << 62, 1 << 40, 1 << 31] {
                for refused in [pack(value, 0, 1, 0), pack(1, value, 1, 0), pack(1, 0, value, 0)] {
                    assert!(refused.contains("should be at most"), "{value}: {refused}");
                }
                pack(1, 0, 1, value);
            }
            assert!(pack(i64::MIN, 0, 1, 0).contains("below zero"));
        }
    }
    let w = floats(&[4, 4, 3, 3]);
    let refused = refusal(
        &ops,
        "pack",
        &[w.clone(), numbers(&[1, 1_000_000]), numbers(&[0, 0]), numbers(&[1, 1]), numbers(&[0, 0]), true.into()],
    );
    assert!(refused.contains("groups times strides"), "{refused}");
    for (padding, dilation) in [([HUGE, 1], [1, 1]), ([1, 1 << 62], [1, 1]), ([0, 0], [HUGE, 1])] {
        let arguments = [w.clone(), numbers(&padding), numbers(&dilation)];
        // Where libtorch packs it.
        if ops.call("stock", &arguments).is_ok() {
            let refused = refusal(&ops, "ours", &arguments);
            assert!(refused.contains("should be at most"), "{refused}");
        }
    }
}

#[test]
fn pooling_windows_are_checked_against_the_tensor_on_every_device() {
    let ops = module(
        "def most(self, x, kernel: List[int], dilation: List[int]):\n    \
         return ops.jitquant.max_pool(x, kernel, [1], [0], dilation)\n\
         def mean(self, x, kernel: List[int]):\n    return ops.jitquant.avg_pool(x, 0, kernel, [1], [0])\n\
         def box(self, x, size: List[int]):\n    return ops.jitquant.adaptive_avg_pool(x, 0, size)\n\
         def nearest(self, x, size: List[int]):\n    return ops.jitquant.upsample_nearest(x, size)\n\
         def scaled(self, x, factors: List[float]):\n    return ops.jitquant.upsample_nearest(x, None, factors)\n\
         def meta(self, x):\n    return torch.empty_like(x, device='meta')\n",
    );
    for shape in [vec![], vec![4], vec![4, 4], vec![1, 2, 4, 4], vec![1, 1, 2, 4, 4]] {
        let x = bytes(&shape);
        let meta: IValue = ops.call("meta", std::slice::from_ref(&x)).unwrap();
        for x in [x, meta] {
            for kernel in [vec![], vec![2; 7], vec![2; 1000]] {
                refusal(&ops, "mean", &[x.clone(), numbers(&kernel)]);
                refusal(&ops, "most", &[x.clone(), numbers(&kernel), numbers(&[1])]);
                refusal(&ops, "box", &[x.clone(), numbers(&kernel)]);
                refusal(&ops, "nearest", &[x.clone(), numbers(&kernel)]);
            }
            if shape.len() < 4 {
                for kernel in [vec![2; 3], vec![1; 6]] {
                    refusal(&ops, "mean", &[x.clone(), numbers(&kernel)]);
                    refusal(&ops, "most", &[x.clone(), numbers(&kernel), numbers(&[1])]);
                    refusal(&ops, "box", &[x.clone(), numbers(&kernel)]);
                }
            }
            if shape.len() == 4 {
                for dilation in [HUGE, 1 << 63 >> 1, (1 << 62) + 1, 1 << 32, 0, -1] {
                    refusal(&ops, "most", &[x.clone(), numbers(&[3, 3]), numbers(&[dilation])]);
                }
                for factor in [f64::NAN, f64::INFINITY, 1e300, -1.0, 0.0, 1e10] {
                    refusal(&ops, "scaled", &[x.clone(), IValue::double_list([factor, 1.0])]);
                }
                refusal(&ops, "box", &[x.clone(), numbers(&[HUGE, HUGE])]);
                refusal(&ops, "nearest", &[x.clone(), numbers(&[1 << 40, 2])]);
            }
        }
    }
}

#[test]
fn tensors_without_data_are_refused_where_weights_are_packed() {
    let ops = module(
        "def linear(self, w, s, z, b):\n    return ops.jitquant.linear_prepack(w, s, z, b)\n\
         def conv(self, w, s, z, b):\n    \
         return ops.jitquant.conv_prepack(w, s, z, b, [1, 1], [0, 0], [1, 1], [0, 0], 1, False)\n\
         def channels(self, w, s, b):\n    return ops.jitquant.linear_weight_only_prepack(w, s, None, b)\n\
         def groups(self, w, s, z, b):\n    return ops.jitquant.linear_weight_only_prepack(w.to(0), s, z, b)\n\
         def embed(self, t, i, o):\n    return ops.jitquant.embedding_bag(t, i, o)\n\
         def fake(self, x, s, z):\n    return ops.jitquant.fake_quantize(x, s, z, -1, 0, 255)\n\
         def learned(self, x, s, z):\n    return ops.jitquant.fake_quantize_learned(x, s, z, -1, 0, 255, 1.)\n\
         def backward(self, x, s, z):\n    return ops.jitquant.fake_quantize_backward(x, x, s, z, -1, 0, 255)\n\
         def int8(self, w):\n    return (w * 9).to(1)\n\
         def meta(self, x):\n    return torch.empty_like(x, device='meta')\n",
    );
    let meta = |x: &IValue| -> IValue { ops.call("meta", std::slice::from_ref(x)).unwrap() };
    let int8 = |shape: &[i64]| -> IValue { ops.call("int8", &[floats(shape)]).unwrap() };
    let ones = |count: i64| IValue::from(&Tensor::from_slice(&vec![1.0f32; count as usize], &[count]).unwrap());
    let zeros = |count: i64| IValue::from(&Tensor::from_slice(&vec![0i32; count as usize], &[count]).unwrap());
    let each_without_data = |method: &str, arguments: &[IValue]| {
        assert!(ops.call::<IValue>(method, arguments).is_ok(), "{method}: {:?}", ops.call::<IValue>(method, arguments));
        for index in 0..arguments.len() {
            let mut given = arguments.to_vec();
            given[index] = meta(&given[index]);
            refusal(&ops, method, &given);
        }
    };
    each_without_data("linear", &[int8(&[4, 6]), ones(4), zeros(4), ones(4)]);
    each_without_data("linear", &[int8(&[4, 6]), ones(1), zeros(1), ones(4)]);
    each_without_data("conv", &[int8(&[4, 3, 2, 2]), ones(4), zeros(4), ones(4)]);
    each_without_data("channels", &[int8(&[4, 6]), ones(4), ones(4)]);
    each_without_data("groups", &[int8(&[4, 6]), ones(4), ones(4), ones(4)]);
    // These have kernels for tensors without data: what comes out has none either.
    for method in ["fake", "learned", "backward"] {
        let arguments = [floats(&[3, 4]), ones(1), zeros(1)];
        for index in 0..3 {
            let mut given = arguments.clone();
            given[index] = meta(&given[index]);
            let result: IValue = ops.call(method, &given).unwrap();
            assert_eq!(result.as_tensor().unwrap().shape(), [3, 4]);
            assert!(!result.as_tensor().unwrap().is_cpu(), "{method}: memory that nobody wrote");
        }
    }
    let (table, indices) = (bytes(&[3, 12]), IValue::from(&Tensor::from_slice(&[0i64, 1, 2], &[3]).unwrap()));
    for given in [[meta(&table), indices.clone(), indices.clone()], [table.clone(), meta(&indices), indices.clone()]] {
        let result: IValue = ops.call("embed", &given).unwrap();
        assert!(!result.as_tensor().unwrap().is_cpu());
    }
}

#[test]
fn bounds_that_are_no_numbers_and_histograms_without_bins_are_named() {
    let ops = module(
        "def clamped(self, x, w, low: float, high: float):\n    \
         w = ops.jitquant.linear_prepack((w * 9).to(1), torch.ones([1]), torch.zeros([1]))\n    \
         return ops.jitquant.linear_float(x, w, 0.1, 3, low, high)\n\
         def table(self, low: float, high: float):\n    \
         return ops.jitquant.activation_table('clamp', [low, high], 0.1, 0, 0.1, 0)\n\
         def observe(self, x, bins: int):\n    \
         counts = torch.zeros([bins])\n    \
         ops.jitquant.observe_histogram(x, counts, torch.zeros([1]), torch.ones([1]), 'layer.x')\n    return counts\n\
         def range(self, bins: int):\n    \
         return ops.jitquant.histogram_range(torch.zeros([bins]), torch.zeros([1]), torch.ones([1]))\n\
         def qparams(self, low: int, high: int):\n    return ops.jitquant.qparams(torch.zeros([low]), torch.ones([high]), 13, 0)\n",
    );
    let (x, w) = (bytes(&[2, 6]), floats(&[4, 6]));
    let nan = f64::NAN;
    for (low, high) in [(nan, 1.0), (0.0, nan), (nan, nan)] {
        assert!(refusal(&ops, "clamped", &[x.clone(), w.clone(), low.into(), high.into()]).contains("NaN is none"));
        assert!(refusal(&ops, "table", &[low.into(), high.into()]).contains("NaN is none"));
    }
    let refused = refusal(&ops, "observe", &[floats(&[4]), IValue::Int(0)]);
    assert!(refused.contains("layer.x: a histogram of 0 bins; 1 to 16777216 are accepted"), "{refused}");
    assert!(refusal(&ops, "range", &[IValue::Int(0)]).contains("a histogram of 0 bins"));
    assert!(refusal(&ops, "qparams", &[IValue::Int(3), IValue::Int(2)]).contains("3 minima and 2 maxima"));
}

/// Native upsampling and libtorch's of floats, for many sizes and factors: a dimension that keeps its size, whatever the factor, is
/// copied there.
#[test]
fn upsampling_is_libtorchs_for_any_sizes_and_factors() {
    let ops = module(
        "def near(self, x, size: Optional[List[int]], factors: Optional[List[float]]):\n    \
         y = torch.upsample_nearest2d(x.to(6), size, factors)\n    \
         return (ops.jitquant.upsample_nearest(x, size, factors), y)\n\
         def linear(self, x, size: Optional[List[int]], align: bool, factors: Optional[List[float]]):\n    \
         y = torch.upsample_bilinear2d(x.to(6), size, align, factors)\n    \
         return (ops.jitquant.upsample_bilinear(x, size, align, factors), y)\n",
    );
    let mut random = noise(4000, 11).into_iter().map(|x| (x + 1.0) / 2.0);
    let mut below = |end: usize| ((random.next().unwrap() * end as f32) as usize).min(end - 1);
    let mut farthest = 0.0f32;
    let cases = (0..250).map(|case| {
        let size = [1 + below(9) as i64, 1 + below(9) as i64];
        let channels = [1, 3, 17][below(3)];
        let factor = |n: usize| [1.0, 1.2, 1.05, 0.9, 0.5, 2.0, 2.5, 0.4 + n as f64 / 8.0][n % 8];
        let factors = [factor(below(20)), factor(below(20))];
        (case, size, channels, factors, [1 + below(20) as i64, 1 + below(20) as i64], below(2) == 0)
    });
    // The one that was 90 steps off.
    let known = [(0, [4, 4], 1, [1.2, 1.2], [4, 4], true)];
    for (case, size, channels, factors, sizes, by_factor) in known.into_iter().chain(cases) {
        if by_factor && (0..2).any(|d| ((size[d] as f64) * factors[d]) < 1.0) {
            continue;
        }
        let x = bytes(&[2, channels, size[0], size[1]]);
        let given = match by_factor {
            true => (IValue::None, IValue::double_list(factors)),
            false => (numbers(&sizes), IValue::None),
        };
        for align in [None, Some(false), Some(true)] {
            let result = match align {
                None => ops.call("near", &[x.clone(), given.0.clone(), given.1.clone()]),
                Some(align) => ops.call("linear", &[x.clone(), given.0.clone(), align.into(), given.1.clone()]),
            };
            let Ok(IValue::Tuple(both)) = &result else { panic!("case {case}: {result:?}") };
            let (ours, theirs) = (both[0].as_tensor().unwrap(), both[1].as_tensor().unwrap());
            assert_eq!(ours.shape(), theirs.shape());
            for (ours, theirs) in ours.to_vec::<u8>().unwrap().iter().zip(theirs.to_vec::<f32>().unwrap()) {
                farthest = farthest.max((f32::from(*ours) - theirs).abs());
            }
            let most = if align.is_some() { 0.502 } else { 0.0 };
            assert!(
                farthest <= most,
                "case {case}: {size:?} by {factors:?} or to {sizes:?}, {align:?}: {farthest} off"
            );
            farthest = 0.0;
        }
    }
}
