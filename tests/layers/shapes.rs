//! Layers without a batch dimension, paddings in words, transposed convolutions.

use jitquant::ir::Module;
use jitquant::pass::WeightOnly;
use jitquant::{Quantizer, StockEngine};

use crate::support::tensor;
use crate::{file, float, quantized, ways};

/// A module with parameters of these names and sizes, and a `forward`.
pub fn module(parameters: &[(&str, &[i64])], forward: &str) -> Module {
    jitquant::init().unwrap();
    let module = Module::new("Net").unwrap();
    for (index, (name, shape)) in parameters.iter().enumerate() {
        module.register_parameter(name, tensor(shape, 50 + index as u64)).unwrap();
    }
    module.define(forward).unwrap();
    module
}

#[test]
fn paddings_in_words() {
    for name in ["same_scripted", "same_traced"] {
        for (way, quantizer) in ways().into_iter().take(2) {
            let (_, report) = quantized(&file(name), &[&[2, 3, 12, 12]], quantizer);
            assert_eq!((float(&report), report.quantized_layers), (vec![], 3), "{name}, {way}");
        }
        let (_, report) = quantized(&file(name), &[&[2, 3, 12, 12]], Quantizer::weight_only(WeightOnly::Bits8));
        assert_eq!(report.quantized_operators["conv2d_8bit"], 3, "{name}");
    }
}

#[test]
fn paddings_in_words_of_one_and_three_dimensions() {
    let flat = module(
        &[("a", &[8, 3, 4]), ("b", &[4, 8, 3])],
        "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch._convolution_mode(x, self.a, None, [1], \"same\", [3], 1))
    return torch.conv1d(x, self.b, None, [2], \"valid\", [1])
",
    );
    let deep = module(
        &[("a", &[8, 3, 2, 3, 4]), ("b", &[4, 8, 3, 3, 3])],
        "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.conv3d(x, self.a, None, [1, 1, 1], \"same\", [1, 1, 1]))
    return torch._convolution_mode(x, self.b, None, [1, 1, 1], \"same\", [1, 2, 1], 1)
",
    );
    for (_, quantizer) in ways().into_iter().take(2) {
        let (_, report) = quantized(&flat, &[&[2, 3, 20]], quantizer.clone());
        assert_eq!((float(&report), report.quantized_layers), (vec![], 2));
        let (_, report) = quantized(&deep, &[&[2, 3, 5, 6, 7]], quantizer);
        assert_eq!((float(&report), report.quantized_layers), (vec![], 2));
    }
}

/// A transposed convolution of `dimensions` between a relu and nothing.
fn transposed(dimensions: usize, groups: i64) -> Module {
    let list = |number: i64| format!("{:?}", vec![number; dimensions]);
    let weight: Vec<i64> = [&[4, 6 / groups][..], &vec![3; dimensions]].concat();
    module(
        &[("w", &weight), ("b", &[6])],
        &format!(
            "def forward(self, x: Tensor) -> Tensor:
    return torch.conv_transpose{dimensions}d(x, self.w, self.b, {}, {}, {}, {groups}, {})
",
            list(2),
            list(1),
            list(1),
            list(1)
        ),
    )
}

/// Engine `qnnpack` has no right transposed convolution of three dimensions.
fn for_volumes(dimensions: usize, quantizer: Quantizer) -> Quantizer {
    if dimensions == 3 { quantizer.engine(StockEngine::X86) } else { quantizer }
}

#[test]
fn transposed_convolutions_alone() {
    for dimensions in 1..=3 {
        let shape: Vec<i64> = [&[2, 4][..], &vec![5; dimensions]].concat();
        for groups in [1, 2] {
            for (way, quantizer) in ways().into_iter().take(2) {
                let (_, report) =
                    quantized(&transposed(dimensions, groups), &[&shape], for_volumes(dimensions, quantizer));
                assert_eq!(
                    (float(&report), report.quantized_layers),
                    (vec![], 1),
                    "{dimensions} dimensions, {groups} groups, {way}"
                );
            }
        }
    }
}

#[test]
fn linear_layers_on_vectors() {
    let between = |activation: &str| {
        module(
            &[("a", &[32, 24]), ("b", &[16, 32]), ("bias", &[32])],
            &format!(
                "def forward(self, x: Tensor) -> Tensor:
    y = torch.{activation}(torch.linear(torch.mean(x, [0]), self.a, self.bias))
    return torch.linear(y, self.b)
"
            ),
        )
    };
    let row =
        module(&[("w", &[8, 24])], "def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x[0], self.w)\n");
    for model in [between("tanh"), between("relu"), between("gelu"), row] {
        for (way, quantizer) in ways() {
            let (_, report) = quantized(&model, &[&[3, 24]], quantizer);
            assert_eq!(float(&report), [""; 0], "{way}");
        }
    }
}

#[test]
fn a_vector_and_rows_in_one_model() {
    let model = module(
        &[("a", &[32, 24]), ("g", &[32, 32])],
        "def forward(self, x: Tensor) -> Tensor:
    y = torch.relu(torch.linear(x, self.a))
    return y * torch.sigmoid(torch.linear(torch.mean(y, [0]), self.g))
",
    );
    for (_, quantizer) in ways() {
        let (_, report) = quantized(&model, &[&[6, 24]], quantizer);
        assert_eq!((float(&report), report.quantized_layers), (vec![], 2));
    }
}

#[test]
fn convolutions_without_a_batch() {
    for dimensions in 1..=3 {
        let list = |number: i64| format!("{:?}", vec![number; dimensions]);
        let kernel = |sizes: [i64; 2], size: i64| [&sizes[..], &vec![size; dimensions]].concat();
        let (a, b, t) = (kernel([8, 3], 3), kernel([4, 8], 1), kernel([4, 2], 2));
        let model = module(
            &[("a", &a), ("b", &b), ("t", &t)],
            &format!(
                "def forward(self, x: Tensor) -> Tensor:
    x = torch.relu(torch.conv{dimensions}d(torch.squeeze(x, 0), self.a, None, {}, {}))
    x = torch.relu(torch.conv{dimensions}d(x, self.b, None, {}, {}))
    return torch.conv_transpose{dimensions}d(x, self.t, None, {})
",
                list(1),
                list(1),
                list(1),
                list(0),
                list(2)
            ),
        );
        let shape: Vec<i64> = [&[1, 3][..], &vec![if dimensions == 1 { 60 } else { 8 }; dimensions]].concat();
        for (way, quantizer) in ways().into_iter().take(2) {
            let (_, report) = quantized(&model, &[&shape], for_volumes(dimensions, quantizer));
            assert_eq!((float(&report), report.quantized_layers), (vec![], 3), "{dimensions} dimensions, {way}");
        }
    }
}
