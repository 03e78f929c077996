//! A small classifier, its inputs, and files for both.

#![allow(dead_code)]

use jitquant::ir::{Module, Tensor};

/// Numbers that look random and are the same everywhere: -1 to 1.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x2545_F491_4F6C_DD1D);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// `samples` images of 1 x 12 x 12.
pub fn images(samples: i64, seed: u64) -> Tensor {
    Tensor::from_slice(&noise(samples as usize * 144, seed + 1), &[samples, 1, 12, 12]).unwrap()
}

fn parameter(module: &Module, name: &str, shape: &[i64], scale: f32, seed: u64) {
    let count = shape.iter().product::<i64>() as usize;
    let values: Vec<f32> = noise(count, seed).into_iter().map(|v| v * scale).collect();
    module.register_parameter(name, Tensor::from_slice(&values, shape).unwrap()).unwrap();
}

/// A convolution as `torch.nn.Conv2d` is scripted.
pub fn conv2d(inputs: i64, outputs: i64, kernel: i64, groups: i64, seed: u64) -> Module {
    let module = Module::new("torch.nn.modules.conv.Conv2d").unwrap();
    parameter(&module, "weight", &[outputs, inputs / groups, kernel, kernel], 0.5, seed);
    parameter(&module, "bias", &[outputs], 0.1, seed + 1);
    let padding = kernel / 2;
    module
        .define(&format!(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             return torch.conv2d(x, self.weight, self.bias, [1, 1], [{padding}, {padding}], [1, 1], {groups})\n"
        ))
        .unwrap();
    module
}

fn relu() -> Module {
    let module = Module::new("torch.nn.modules.activation.ReLU").unwrap();
    module.define("def forward(self, x: Tensor) -> Tensor:\n    return torch.relu(x)\n").unwrap();
    module
}

pub fn linear(inputs: i64, outputs: i64, seed: u64) -> Module {
    let module = Module::new("torch.nn.modules.linear.Linear").unwrap();
    parameter(&module, "weight", &[outputs, inputs], 0.3, seed);
    parameter(&module, "bias", &[outputs], 0.1, seed + 1);
    module
        .define("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.weight, self.bias)\n")
        .unwrap();
    module
}

/// Three convolutions (one depthwise, one in a residual), two relus, a pool and a linear layer: 1 x 12 x 12 to 10 scores.
pub fn classifier() -> Module {
    let module = Module::new("Classifier").unwrap();
    module.register_submodule("conv1", &conv2d(1, 8, 3, 1, 10)).unwrap();
    module.register_submodule("relu1", &relu()).unwrap();
    module.register_submodule("conv2", &conv2d(8, 8, 3, 8, 20)).unwrap();
    module.register_submodule("conv3", &conv2d(8, 8, 1, 1, 30)).unwrap();
    module.register_submodule("fc", &linear(8 * 36, 10, 40)).unwrap();
    module
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             x = self.relu1.forward(self.conv1.forward(x))\n    \
             y = self.conv3.forward(self.conv2.forward(x))\n    \
             x = torch.relu(x + y)\n    \
             x = torch.max_pool2d(x, [2, 2])\n    \
             return self.fc.forward(torch.flatten(x, 1))\n",
        )
        .unwrap();
    module
}

/// Writes a float32 `.npy`.
pub fn write_npy(path: &std::path::Path, tensor: &Tensor) {
    let shape: Vec<String> = tensor.shape().iter().map(|size| format!("{size},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.concat());
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    tensor.to_vec::<f32>().unwrap().iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

/// Compiles `source`, TorchScript functions of a module without attributes.
pub fn module(source: &str) -> Module {
    jitquant::init().unwrap();
    let module = Module::new("Ops").unwrap();
    module.define(source).unwrap();
    module
}

/// Noise of that shape.
pub fn tensor(shape: &[i64], seed: u64) -> Tensor {
    Tensor::from_slice(&noise(shape.iter().product::<i64>() as usize, seed), shape).unwrap()
}
