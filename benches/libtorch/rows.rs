//! What is measured: the operators of common models, with what is hoped for.

use crate::elements;

/// Rows that are judged together.
pub struct Group {
    pub name: &'static str,
    /// What is aimed at, on AVX512-VNNI and one thread.
    pub target: &'static str,
    pub rows: Vec<Row>,
}

/// An operator on tensors of given sizes.
pub struct Row {
    pub name: String,
    /// The weight's sizes and the number of its outputs.
    pub weight: Vec<i64>,
    pub outputs: i64,
    /// TorchScript statements that pack weight `w` and bias `b`; `None` for an operator without a weight.
    pub pack: Option<String>,
    /// The sizes of the input `x`.
    pub input: Vec<i64>,
    /// Buffers of the module: their names, and TorchScript expressions that make them of `x`.
    pub buffers: Vec<(&'static str, String)>,
    /// What libtorch runs, and what jitquant does.
    pub stock: Side,
    pub ours: Side,
    /// Multiplications and additions.
    pub operations: f64,
}

/// A contestant's code, in TorchScript.
#[derive(Clone)]
pub struct Side {
    /// Methods that `call` uses.
    pub methods: String,
    /// An expression that makes the operator's input of `x`.
    pub prepare: String,
    /// The operator on input `x`.
    pub call: String,
}

impl Side {
    pub fn new(prepare: &str, call: &str) -> Self {
        Self { methods: String::new(), prepare: prepare.to_owned(), call: call.to_owned() }
    }
}

const QUANTIZE_WEIGHT: &str =
    "q = torch.quantize_per_channel(w, torch.abs(b) * 0.004 + 0.006, torch.zeros_like(b).to(4), 0, 12)";
const QUANTIZE_INPUT: &str = "torch.quantize_per_tensor(x, 0.008, 120, 13)";

fn linear([m, k, n]: [i64; 3]) -> Row {
    let side = Side::new(QUANTIZE_INPUT, "ops.quantized.linear(x, self.packed, 0.05, 100)");
    Row {
        name: format!("{m}x{k}x{n}"),
        weight: vec![n, k],
        outputs: n,
        pack: Some(format!("{QUANTIZE_WEIGHT}\n    return ops.quantized.linear_prepack(q, b)")),
        input: vec![m, k],
        buffers: vec![],
        stock: side.clone(),
        ours: side,
        operations: 2.0 * (m * k * n) as f64,
    }
}

/// A 2-d convolution with padding that keeps the size, of a square input.
struct Conv {
    inputs: i64,
    outputs: i64,
    kernel: i64,
    stride: i64,
    size: i64,
    groups: i64,
}

fn conv(Conv { inputs, outputs, kernel, stride, size, groups }: Conv) -> Row {
    let padding = kernel / 2;
    let output = (size + 2 * padding - kernel) / stride + 1;
    let per_group = inputs / groups;
    let step = if stride > 1 { format!("/{stride}") } else { String::new() };
    let parts = match groups {
        1 => format!("{inputs}->{outputs}"),
        groups if groups == inputs => format!("{inputs}"),
        groups => format!("{inputs}, {groups} groups"),
    };
    let pack =
        format!("ops.quantized.conv2d_prepack(q, b, [{stride}, {stride}], [{padding}, {padding}], [1, 1], {groups})");
    let side = Side::new(
        &format!("{QUANTIZE_INPUT}.contiguous(memory_format=2)"),
        "ops.quantized.conv2d_relu(x, self.packed, 0.05, 100)",
    );
    Row {
        name: format!("{parts} {kernel}x{kernel}{step} @{size}"),
        weight: vec![outputs, per_group, kernel, kernel],
        outputs,
        pack: Some(format!("{QUANTIZE_WEIGHT}\n    return {pack}")),
        input: vec![1, inputs, size, size],
        buffers: vec![],
        stock: side.clone(),
        ours: side,
        operations: 2.0 * (output * output * outputs * per_group * kernel * kernel) as f64,
    }
}

/// Inputs, outputs, kernel, stride and input size of ResNet-50's convolutions.
const RESNET50: [[i64; 5]; 23] = [
    [3, 64, 7, 2, 224],
    [64, 64, 1, 1, 56],
    [64, 64, 3, 1, 56],
    [64, 256, 1, 1, 56],
    [256, 64, 1, 1, 56],
    [256, 128, 1, 1, 56],
    [128, 128, 3, 2, 56],
    [128, 512, 1, 1, 28],
    [256, 512, 1, 2, 56],
    [512, 128, 1, 1, 28],
    [128, 128, 3, 1, 28],
    [512, 256, 1, 1, 28],
    [256, 256, 3, 2, 28],
    [256, 1024, 1, 1, 14],
    [512, 1024, 1, 2, 28],
    [1024, 256, 1, 1, 14],
    [256, 256, 3, 1, 14],
    [1024, 512, 1, 1, 14],
    [512, 512, 3, 2, 14],
    [512, 2048, 1, 1, 7],
    [1024, 2048, 1, 2, 14],
    [2048, 512, 1, 1, 7],
    [512, 512, 3, 1, 7],
];

/// Channels, input size and stride of MobileNetV2's depthwise convolutions.
const MOBILENET: [[i64; 3]; 10] = [
    [32, 112, 1],
    [96, 112, 2],
    [144, 56, 1],
    [144, 56, 2],
    [192, 28, 1],
    [192, 28, 2],
    [384, 14, 1],
    [576, 14, 1],
    [576, 14, 2],
    [960, 7, 1],
];

/// Everything that `make bench` measures.
pub fn groups() -> Vec<Group> {
    let large = [
        [128, 768, 768],
        [128, 768, 3072],
        [128, 3072, 768],
        [512, 1024, 1024],
        [1024, 1024, 1024],
        [196, 1024, 256],
        [49, 512, 2048],
    ];
    let small = [[1, 768, 768], [1, 384, 1536], [1, 1024, 4096], [16, 768, 3072], [32, 384, 384], [3136, 64, 256]];
    let grouped = [[128, 56], [256, 28], [512, 14], [1024, 7]];
    vec![
        Group {
            name: "linear, MxKxN",
            target: "each >= 1.0, geometric mean >= 1.15, the cube at >= 85 % of peak",
            rows: large.map(linear).into(),
        },
        Group { name: "small linear, MxKxN", target: "geometric mean >= 1.6", rows: small.map(linear).into() },
        Group {
            name: "conv2d of ResNet-50",
            target: "each >= 1.0, geometric mean >= 1.15",
            rows: RESNET50
                .map(|[inputs, outputs, kernel, stride, size]| {
                    conv(Conv { inputs, outputs, kernel, stride, size, groups: 1 })
                })
                .into(),
        },
        Group {
            name: "depthwise of MobileNetV2",
            target: "geometric mean >= 2.0",
            rows: MOBILENET
                .map(|[channels, size, stride]| {
                    conv(Conv { inputs: channels, outputs: channels, kernel: 3, stride, size, groups: channels })
                })
                .into(),
        },
        Group {
            name: "grouped 3x3",
            target: "geometric mean >= 1.5",
            rows: grouped
                .map(|[channels, size]| {
                    conv(Conv { inputs: channels, outputs: channels, kernel: 3, stride: 1, size, groups: 32 })
                })
                .into(),
        },
        Group { name: "call overhead, linear", target: ">= 2.0", rows: vec![linear([1, 16, 16])] },
        Group { name: "calibration of 1x256x56x56", target: "each >= 10", rows: elements::calibration() },
        Group { name: "fake quantization", target: "each >= 1.0", rows: elements::training() },
        Group { name: "element-wise and norms", target: "each >= 1.5", rows: elements::operators() },
    ]
}

/// The groups' names.
pub fn names(groups: &[Group]) -> String {
    groups.iter().map(|group| group.name).collect::<Vec<_>>().join("; ")
}
