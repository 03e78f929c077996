//! Padding folds into convolutions where both sides get the same zeros.

use jitquant::ir::Module;
use jitquant::pass::prepare::{canonicalize, flatten, fold_padding};

use crate::models::*;

fn folded(shape: &[i64], weight: &[i64], body: &str) -> usize {
    let model = Module::new("Model").unwrap();
    model.register_parameter("w", random(weight, 1)).unwrap();
    model.define(&format!("def forward(self, x: Tensor) -> Tensor:\n    return {body}\n")).unwrap();
    let flat = flatten(&model, &[]).unwrap();
    canonicalize(&mut flat.graph("forward").unwrap()).unwrap();
    let folded = fold_padding(&flat.graph("forward").unwrap()).unwrap();
    assert_same(&flat, &model, &[input(shape)]);
    folded
}

#[test]
fn zeros_on_both_sides_become_the_convolutions_own() {
    let (image, weight) = ([1, 3, 6, 6], [4, 3, 3, 3]);
    assert_eq!(folded(&image, &weight, "torch.conv2d(torch.pad(x, [1, 1, 2, 2]), self.w)"), 1);
    assert_eq!(folded(&image, &weight, "torch.conv2d(torch.pad(x, [1, 1]), self.w, None, [2, 2], [1, 0])"), 1);
    assert_eq!(folded(&[1, 3, 9], &[4, 3, 3], "torch.conv1d(torch.constant_pad_nd(x, [2, 2]), self.w)"), 1);
    let grouped = "torch.conv2d(torch.pad(x, [1, 1]), self.w, None, [1, 1], [0, 0], [1, 1], 3)";
    assert_eq!(folded(&image, &[6, 1, 3, 3], grouped), 1);
}

#[test]
fn other_paddings_stay() {
    let (image, weight) = ([1, 3, 6, 6], [4, 3, 3, 3]);
    for padded in
        ["torch.pad(x, [0, 1, 0, 1])", "torch.pad(x, [1, 1], 'constant', 0.5)", "torch.pad(x, [1, 1, 1, 1], 'reflect')"]
    {
        assert_eq!(folded(&image, &weight, &format!("torch.conv2d({padded}, self.w)")), 0, "{padded}");
    }
    assert_eq!(folded(&[1, 3, 8, 8], &weight, "torch.conv2d(torch.pad(x, [-1, -1]), self.w)"), 0);
    assert_eq!(folded(&image, &weight, "torch.conv2d(torch.pad(x[:, :1], [0, 0, 0, 0, 1, 1]), self.w)"), 0);
}
