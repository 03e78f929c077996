//! Batch norms fold by data flow, and what stays has a reason.

use jitquant::ir::{IValue, Module};
use jitquant::pass::prepare::{canonicalize, flatten, fold_batch_norm};

use crate::models::*;

/// The folded module, and the reasons of the batch norms that stay.
fn folded(model: &Module) -> (Module, Vec<String>) {
    let flat = flatten(model, &[]).unwrap();
    canonicalize(&mut flat.graph("forward").unwrap()).unwrap();
    let kept = fold_batch_norm(&flat.graph("forward").unwrap()).unwrap();
    assert_eq!(kept.len(), count(&flat, "aten::batch_norm"));
    (flat, kept.into_iter().map(|(_, reason)| reason).collect())
}

fn folds(model: &Module, inputs: &[IValue]) -> Module {
    let (folded, kept) = folded(model);
    assert!(kept.is_empty(), "{kept:?}");
    assert_same(&folded, model, inputs);
    folded
}

/// A model with the weights that `shapes` names, and constants of batch norms of 4 channels.
fn model(shapes: &[(&str, &[i64])], body: &str) -> Module {
    let module = Module::new("Model").unwrap();
    for (i, (name, shape)) in shapes.iter().enumerate() {
        module.register_parameter(name, random(shape, i as u64)).unwrap();
    }
    let positive = random(&[4], 9).to_vec::<f32>().unwrap().into_iter().map(|v| v + 1.5).collect::<Vec<_>>();
    module.register_buffer("var", jitquant::ir::Tensor::from_slice(&positive, &[4]).unwrap()).unwrap();
    for (i, name) in ["gamma", "beta", "mean"].into_iter().enumerate() {
        module.register_parameter(name, random(&[4], 20 + i as u64)).unwrap();
    }
    let constants = "self.gamma, self.beta, self.mean, self.var, False, 0.1, 1e-5, False";
    let body = body.replace("NORM(", "torch.batch_norm(").replace("...", constants);
    let lines: Vec<_> = body.trim().lines().map(|line| format!("    {line}\n")).collect();
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n{}", lines.concat())).unwrap();
    module
}

#[test]
fn layers_of_every_kind_as_torch_nn_scripts_them() {
    let inputs = [input(&[2, 4, 9]), input(&[2, 3, 6, 6]), input(&[2, 2, 4, 4, 4]), input(&[3, 5])];
    let folded = folds(&file("Norms"), &inputs);
    assert_eq!(count(&folded, "aten::conv_transpose2d"), 1);
    // The checks of the input's rank are still made, but not on what a layer gives.
    assert!(folded.forward(&[inputs[0].clone(), inputs[1].clone(), inputs[2].clone(), input(&[5])]).is_err());
}

#[test]
fn subclassed_and_traced_layers() {
    let folded = folds(&file("Padded"), &[input(&[1, 3, 8, 8])]);
    assert_eq!((count(&folded, "aten::conv2d"), count(&folded, "aten::hardtanh")), (2, 2));
}

#[test]
fn functional_layers_and_modules() {
    folds(&observers_file("FunctionalRelu"), &[input(&[1, 2, 8, 8])]);
}

#[test]
fn through_permutes() {
    let weight: [(&str, &[i64]); 1] = [("w", &[4, 3])];
    folds(&model(&weight, "return NORM(torch.linear(x, self.w).permute([0, 2, 1]), ...)"), &[input(&[2, 5, 3])]);
    folds(&model(&weight, "return NORM(torch.linear(x, self.w).transpose(1, -1), ...)"), &[input(&[2, 5, 3])]);
    folds(&model(&weight, "return NORM(torch.linear(x, self.w).permute([0, 3, -2, 1]), ...)"), &[input(&[2, 5, 2, 3])]);
    let conv: [(&str, &[i64]); 1] = [("w", &[4, 3, 1, 1])];
    let twice =
        "y = torch.conv2d(x, self.w).permute([0, 2, 3, 1])\nreturn NORM(y.contiguous().permute([0, 3, 1, 2]), ...)";
    folds(&model(&conv, twice), &[input(&[2, 3, 5, 5])]);
}

#[test]
fn through_reshapes_that_keep_the_channels() {
    let linear: [(&str, &[i64]); 1] = [("w", &[4, 3])];
    let levit = "y = torch.linear(x, self.w)\nreturn NORM(y.flatten(0, 1), ...).reshape_as(y)";
    let folded = folds(&model(&linear, levit), &[input(&[2, 5, 3])]);
    assert_eq!(count(&folded, "aten::reshape_as"), 0);
    folds(&model(&linear, "return NORM(torch.linear(x, self.w).reshape([-1, 4]), ...)"), &[input(&[2, 5, 3])]);
    let sized = "y = torch.linear(x, self.w)\nreturn NORM(y.view([-1, y.size(2)]), ...).view([y.size(0), y.size(1), y.size(2)])";
    folds(&model(&linear, sized), &[input(&[2, 5, 3])]);
    let conv: [(&str, &[i64]); 1] = [("w", &[4, 3, 1, 1])];
    for between in ["flatten(2)", "squeeze(-1)", "squeeze(3)", "unsqueeze(-1)"] {
        let size: &[i64] = if between.starts_with("squeeze") { &[2, 3, 5, 1] } else { &[2, 3, 5, 5] };
        folds(&model(&conv, &format!("return NORM(torch.conv2d(x, self.w).{between}, ...)")), &[input(size)]);
    }
}

#[test]
fn reshapes_that_mix_channels_are_not_passed_through() {
    let linear: [(&str, &[i64]); 1] = [("w", &[4, 3])];
    let conv: [(&str, &[i64]); 1] = [("w", &[4, 3, 1, 1])];
    // The channels of the batch norm are places of the convolution, or a mixture.
    for (weight, body, size) in [
        (&conv[..], "return NORM(torch.conv2d(x, self.w).view([-1, 4]), ...)", &[2i64, 3, 4, 4][..]),
        (&conv, "return NORM(torch.conv2d(x, self.w).flatten(0, 1), ...)", &[2, 3, 4, 5]),
        (&linear, "return NORM(torch.linear(x, self.w).transpose(1, 2).reshape([-1, 4]), ...)", &[2, 4, 3]),
        (
            &linear,
            "y = torch.linear(x, self.w).view([2, 4, 2, 2]).transpose(1, 2)\nreturn NORM(y.reshape([-1, 4]), ...)",
            &[2, 4, 3],
        ),
    ] {
        let (folded, kept) = folded(&model(weight, body));
        assert_eq!(kept.len(), 1, "{body}");
        assert_same(&folded, &model(weight, body), &[input(size)]);
    }
}

#[test]
fn through_padding_that_stays_a_constant() {
    let weight: [(&str, &[i64]); 1] = [("w", &[4, 3, 3, 3])];
    let body = "y = torch.constant_pad_nd(torch.conv2d(x, self.w), [1, 1, 2, 0], 2.0)
return torch.batch_norm(y, None, None, self.same_mean, self.same_var, False, 0.1, 1e-5, False)";
    let module = Module::new("Model").unwrap();
    module.register_parameter("w", random(weight[0].1, 1)).unwrap();
    for (name, value) in [("same_mean", 0.5f32), ("same_var", 3.0)] {
        module.register_buffer(name, jitquant::ir::Tensor::from_slice(&[value; 4], &[4]).unwrap()).unwrap();
    }
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    {}\n", body.replace('\n', "\n    "))).unwrap();
    folds(&module, &[input(&[2, 3, 6, 6])]);

    let differs = model(&weight, "return NORM(torch.constant_pad_nd(torch.conv2d(x, self.w), [1, 1], 0.0), ...)");
    assert!(folded(&differs).1[0].contains("padding"));
}

#[test]
fn one_after_the_other() {
    let weight: [(&str, &[i64]); 2] = [("w", &[4, 3]), ("b", &[4])];
    folds(&model(&weight, "return NORM(NORM(torch.linear(x, self.w, self.b), ...), ...)"), &[input(&[6, 3])]);
    folds(&model(&weight, "return NORM(torch.addmm(self.b, x, self.w.t()), ...)"), &[input(&[6, 3])]);
    folds(&model(&[("w", &[3, 4])], "return NORM(torch.matmul(x, self.w), ...)"), &[input(&[6, 3])]);
}

#[test]
fn shared_weights_fold_where_they_are_used() {
    let body = "y = torch.conv1d(x, self.w)\nreturn torch.relu(NORM(torch.conv1d(x, self.w), ...)) + y.sin()";
    let (module, kept) = folded(&model(&[("w", &[4, 3, 1])], body));
    // Both convolutions are one and the same, and its result is seen by more than the batch norm.
    assert!(kept[0].contains("aten::sin"), "{kept:?}");
    assert_eq!(count(&module, "aten::conv1d"), 1);
    let body = "y = torch.conv1d(x, self.w)\nreturn torch.relu(NORM(torch.conv1d(-x, self.w), ...)) + y.sin()";
    folds(&model(&[("w", &[4, 3, 1])], body), &[input(&[2, 3, 5])]);
}

#[test]
fn what_stays_says_why() {
    let weight: [(&str, &[i64]); 1] = [("w", &[4, 3, 1])];
    let reason = |body: &str| folded(&model(&weight, body)).1.join("; ");
    assert!(reason("return NORM(x, ...)").contains("an input of the model"));
    assert!(reason("return NORM(torch.relu(torch.conv1d(x, self.w)), ...)").contains("aten::relu"));
    let training = "return torch.batch_norm(torch.conv1d(x, self.w), None, None, None, None, True, 0.1, 1e-5, False)";
    assert!(reason(training).contains("statistics of each batch"));
    assert!(reason("return NORM(torch.conv1d(x, x[:, :, :1]), ...)").contains("not a constant"));
    assert!(reason("return NORM(torch.conv1d(x, self.w).transpose(1, 2), ...)").contains("channels"));
    let rows = model(&[("w", &[4, 3])], "return NORM(torch.linear(x.view([2, 4, 3]), self.w), ...)");
    assert!(folded(&rows).1[0].contains("channels"), "it normalizes the rows");
}
