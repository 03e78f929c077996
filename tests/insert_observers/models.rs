//! Layers as `torch.nn` scripts them, built from Rust.

use jitquant::ir::Module;

use super::compare::random;

/// A module with submodules and code; the `x: Tensor` of one-line bodies is added.
pub fn module(class: &str, children: &[(&str, &Module)], body: &str) -> Module {
    let module = Module::new(class).unwrap();
    for (name, child) in children {
        module.register_submodule(name, child).unwrap();
    }
    define(&module, body);
    module
}

/// A model with submodules; `body` is the method, or the body of `forward(self, x)`.
pub fn model(children: &[(&str, &Module)], body: &str) -> Module {
    module("Model", children, body)
}

fn define(module: &Module, body: &str) {
    let body = body.trim_matches('\n');
    let source = match body.starts_with("def ") {
        true => format!("{body}\n"),
        false => {
            let lines: Vec<_> = body.lines().map(|line| format!("    {line}")).collect();
            format!("def forward(self, x: Tensor):\n{}\n", lines.join("\n"))
        }
    };
    module.define(&source).unwrap();
}

fn layer(class: &str, weight: &[i64], bias: i64, body: &str) -> Module {
    let module = Module::new(&format!("torch.nn.modules.{class}")).unwrap();
    module.register_parameter("weight", random(weight, weight.iter().sum::<i64>() as u64)).unwrap();
    module.register_parameter("bias", random(&[bias], 7)).unwrap();
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    return {body}\n")).unwrap();
    module
}

pub fn linear(inputs: i64, outputs: i64) -> Module {
    layer("linear.Linear", &[outputs, inputs], outputs, "torch.linear(x, self.weight, self.bias)")
}

pub fn conv1d(inputs: i64, outputs: i64) -> Module {
    layer("conv.Conv1d", &[outputs, inputs, 3], outputs, "torch.conv1d(x, self.weight, self.bias, [1], [1], [1], 1)")
}

pub fn conv2d(inputs: i64, outputs: i64) -> Module {
    let body = "torch.conv2d(x, self.weight, self.bias, [1, 1], [1, 1], [1, 1], 1)";
    layer("conv.Conv2d", &[outputs, inputs, 3, 3], outputs, body)
}

pub fn conv3d(inputs: i64, outputs: i64) -> Module {
    let body = "torch.conv3d(x, self.weight, self.bias, [1, 1, 1], [1, 1, 1], [1, 1, 1], 1)";
    layer("conv.Conv3d", &[outputs, inputs, 3, 3, 3], outputs, body)
}

pub fn conv_transpose2d(inputs: i64, outputs: i64) -> Module {
    let body = "torch.conv_transpose2d(x, self.weight, self.bias, [1, 1], [1, 1], [0, 0], 1, [1, 1])";
    layer("conv.ConvTranspose2d", &[inputs, outputs, 3, 3], outputs, body)
}

pub fn batch_norm2d(channels: i64) -> Module {
    let module = Module::new("torch.nn.modules.batchnorm.BatchNorm2d").unwrap();
    module.register_parameter("weight", random(&[channels], 1)).unwrap();
    module.register_parameter("bias", random(&[channels], 2)).unwrap();
    module.register_buffer("running_mean", random(&[channels], 3)).unwrap();
    let ones = jitquant::ir::Tensor::from_slice(&vec![1.0f32; channels as usize], &[channels]).unwrap();
    module.register_buffer("running_var", ones).unwrap();
    module
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    return torch.batch_norm(x, self.weight, self.bias, \
             self.running_mean, self.running_var, False, 0.1, 1e-05, False)\n",
        )
        .unwrap();
    module
}

pub fn layer_norm(size: i64) -> Module {
    layer("normalization.LayerNorm", &[size], size, &format!("torch.layer_norm(x, [{size}], self.weight, self.bias)"))
}

pub fn relu() -> Module {
    module("torch.nn.modules.activation.ReLU", &[], "return torch.relu(x)")
}

pub fn max_pool2d() -> Module {
    module("torch.nn.modules.pooling.MaxPool2d", &[], "return torch.max_pool2d(x, [2, 2])")
}

/// The modules one after the other, named `0`, `1`, …
pub fn sequential(children: &[&Module]) -> Module {
    let module = Module::new("torch.nn.modules.container.Sequential").unwrap();
    let mut value = "x".to_owned();
    for (i, child) in children.iter().enumerate() {
        module.register_submodule(&format!("m{i}"), child).unwrap();
        value = format!("self.m{i}.forward({value})");
    }
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    return {value}\n")).unwrap();
    module
}

/// Another instance of the same class, with numbers of its own.
pub fn sibling(module: &Module) -> Module {
    let copy = module.copy_instance().unwrap();
    for attribute in copy.attributes() {
        if attribute.name == "weight" {
            let shape = copy.attribute("weight").unwrap().as_tensor().unwrap().shape();
            copy.set_attribute("weight", &random(&shape, 55).into()).unwrap();
        }
    }
    copy
}
