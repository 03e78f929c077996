//! Rows without a weight: what calibration runs, and the operators between the layers.
//!
//! libtorch's observers are Python classes. Their arithmetic on a tensor whose range they know already, which is what most
//! calls of a calibration are, is written here with the same `aten` operators in the same order as torch.ao 2.13 has them.

use crate::rows::{Row, Side};

fn row(name: &str, input: &[i64], buffers: &[(&'static str, &str)], stock: Side, ours: Side) -> Row {
    Row {
        name: name.to_owned(),
        weight: vec![],
        outputs: 0,
        pack: None,
        input: input.to_vec(),
        buffers: buffers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        stock,
        ours,
        operations: 0.0,
    }
}

/// A side whose operator is a method `step(self, x) -> Tensor` with these statements.
fn step(body: &str) -> Side {
    let methods = format!("def step(self, x: Tensor) -> Tensor:\n    {}\n", body.replace('\n', "\n    "));
    Side { methods, ..Side::new("x", "self.step(x)") }
}

/// Quantization of a weight-like tensor and observers, on an activation of ResNet-50.
pub fn calibration() -> Vec<Row> {
    let input = [1, 256, 56, 56];
    let channels = [("low", "torch.amin(x, [0, 2, 3])"), ("high", "torch.amax(x, [0, 2, 3])")];
    vec![
        row(
            "quantize per channel, axis 1",
            &input,
            &[
                ("scales", "torch.amax(torch.abs(x), [0, 2, 3]) / 127.0 + 0.001"),
                ("zeros", "torch.zeros([256], dtype=4)"),
            ],
            Side::new("x", "torch.quantize_per_channel(x, self.scales, self.zeros, 1, 12)"),
            Side::new("x", "ops.jitquant.quantize_per_channel(x, self.scales, self.zeros, 1)"),
        ),
        row(
            "per-channel min-max, axis 1",
            &input,
            &channels,
            step(
                "y = torch.flatten(x.detach().permute([1, 0, 2, 3]).to(self.low.dtype), 1)\n\
                 low, high = torch.aminmax(y, dim=1)\n\
                 low = torch.min(low, self.low)\n\
                 high = torch.max(high, self.high)\n\
                 self.low.resize_(low.shape)\n\
                 self.high.resize_(high.shape)\n\
                 self.low.copy_(low)\n\
                 self.high.copy_(high)\n\
                 return x",
            ),
            step("ops.jitquant.observe_min_max_per_channel(x, self.low, self.high, 1)\nreturn x"),
        ),
        row(
            "histogram, 2048 bins",
            &input,
            &[("low", "torch.min(x)"), ("high", "torch.max(x)"), ("counts", "torch.zeros([2048])")],
            step(
                "y = x.detach()\n\
                 low, high = torch.aminmax(y)\n\
                 low = torch.min(self.low, low)\n\
                 high = torch.max(self.high, high)\n\
                 counts = torch.histc(y, 2048, float(low), float(high))\n\
                 counts = self.counts + counts\n\
                 self.counts.detach_().resize_(counts.shape)\n\
                 self.counts.copy_(counts)\n\
                 return x",
            ),
            step("ops.jitquant.observe_histogram(x, self.counts, self.low, self.high)\nreturn x"),
        ),
    ]
}

/// Fake quantization, forward and backward, as quantization-aware training runs it.
pub fn training() -> Vec<Row> {
    let activation = [1, 256, 56, 56];
    let qparams =
        [("scale", "torch.amax(torch.abs(x)).reshape([1]) / 140.0"), ("zero", "torch.full([1], 120, dtype=3)")];
    let channels =
        [("scale", "torch.amax(torch.abs(x), [1, 2, 3]) / 140.0"), ("zero", "torch.zeros([x.size(0)], dtype=3)")];
    let range = [
        ("on", "torch.ones([1], dtype=4)"),
        ("low", "torch.amin(x)"),
        ("high", "torch.amax(x)"),
        ("scale", "torch.ones([1])"),
        ("zero", "torch.zeros([1], dtype=3)"),
    ];
    vec![
        row(
            "per tensor, both ways, 1x256x56x56",
            &activation,
            &qparams,
            step(
                "y, mask = torch._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(x, self.scale, self.zero, \
                 torch.ones([1], dtype=4), 0, 255)\n\
                 return torch.fake_quantize_per_tensor_affine_cachemask_backward(y, mask)",
            ),
            step(
                "y = ops.jitquant.fake_quantize(x, self.scale, self.zero, -1, 0, 255)\n\
                 return ops.jitquant.fake_quantize_backward(y, x, self.scale, self.zero, -1, 0, 255)",
            ),
        ),
        row(
            "per channel, both ways, 512x512x3x3",
            &[512, 512, 3, 3],
            &channels,
            step(
                "y, mask = torch.fake_quantize_per_channel_affine_cachemask(x, self.scale, self.zero, 0, -128, 127)\n\
                 return torch.fake_quantize_per_channel_affine_cachemask_backward(y, mask)",
            ),
            step(
                "y = ops.jitquant.fake_quantize(x, self.scale, self.zero, 0, -128, 127)\n\
                 return ops.jitquant.fake_quantize_backward(y, x, self.scale, self.zero, 0, -128, 127)",
            ),
        ),
        row(
            "observe and round, forward, 1x256x56x56",
            &activation,
            &range,
            Side::new(
                "x",
                "torch.fused_moving_avg_obs_fake_quant(x, self.on, self.on, self.low, self.high, self.scale, self.zero, \
                 0.01, 0, 255, -1, False, False)",
            ),
            step(
                "ops.jitquant.observe_moving_average(x, self.low, self.high, 0.01)\n\
                 scale, zero = ops.jitquant.qparams(self.low, self.high, 13, 0, 0, 255)\n\
                 return ops.jitquant.fake_quantize(x, scale, zero, -1, 0, 255)",
            ),
        ),
    ]
}

const STOCK_INPUT: &str = "torch.quantize_per_tensor(x, 0.008, 120, 13)";
const OUR_INPUT: &str = "ops.jitquant.quantize(x, 0.008, 120)";

/// Operators on bytes: stock ones on `quint8`, ours on plain bytes.
pub fn operators() -> Vec<Row> {
    let last = |input: &str| format!("{input}.contiguous(memory_format=2)");
    let (stock_last, our_last) = (last(STOCK_INPUT), last(OUR_INPUT));
    vec![
        row(
            "add + relu, 1x256x56x56",
            &[1, 256, 56, 56],
            &[],
            Side::new(&stock_last, "ops.quantized.add_relu(x, x, 0.02, 100)"),
            Side::new(&our_last, "ops.jitquant.add(x, 0.008, 120, x, 0.008, 120, 0.02, 100, 100, 255)"),
        ),
        row(
            "max_pool 3x3/2, 1x64x112x112",
            &[1, 64, 112, 112],
            &[],
            Side::new(&stock_last, "torch.max_pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1], False)"),
            Side::new(&our_last, "ops.jitquant.max_pool(x, [3, 3], [2, 2], [1, 1], [1, 1])"),
        ),
        row(
            "layer_norm, 128x768",
            &[128, 768],
            &[("gain", "x[0] + 2.0"), ("shift", "x[1]")],
            Side::new(STOCK_INPUT, "ops.quantized.layer_norm(x, [768], self.gain, self.shift, 1e-5, 0.03, 110)"),
            Side::new(
                OUR_INPUT,
                "ops.jitquant.layer_norm(x, 0.008, 120, [768], self.gain, self.shift, 1e-5, 0.03, 110)",
            ),
        ),
        row(
            "softmax, 12x128x128",
            &[12, 128, 128],
            &[],
            Side::new(STOCK_INPUT, "ops.quantized.softmax(x, -1, 0.00390625, 0)"),
            Side::new(OUR_INPUT, "ops.jitquant.softmax(x, 0.008, 120, -1, 0.00390625, 0)"),
        ),
        row(
            "gelu, 128x3072",
            &[128, 3072],
            &[("table", "ops.jitquant.activation_table(\"gelu\", [], 0.008, 120, 0.008, 120)")],
            Side::new(STOCK_INPUT, "torch.gelu(x)"),
            Side::new(OUR_INPUT, "ops.jitquant.lookup(x, self.table)"),
        ),
    ]
}
