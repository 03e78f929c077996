//! Single layers, what follows them, and operators that hand observation on.

use crate::compare::Case;
use crate::models::*;

#[test]
fn a_linear_layer() {
    Case::new(model(&[("fc", &linear(4, 3))], "return self.fc.forward(x)"), &[&[2, 4]]).check(3);
}

#[test]
fn convolutions_of_one_two_and_three_dimensions() {
    Case::new(model(&[("conv", &conv1d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 8]]).check(3);
    Case::new(model(&[("conv", &conv2d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 8, 8]]).check(3);
    Case::new(model(&[("conv", &conv3d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 4, 4, 4]]).check(3);
}

#[test]
fn a_transposed_convolution() {
    Case::new(model(&[("conv", &conv_transpose2d(2, 3))], "return self.conv.forward(x)"), &[&[1, 2, 5, 5]]).check(3);
}

#[test]
fn layers_with_a_relu_module_are_observed_after_it() {
    for (layer, input) in [
        (linear(4, 3), vec![2, 4]),
        (conv1d(2, 3), vec![1, 2, 8]),
        (conv2d(2, 3), vec![1, 2, 8, 8]),
        (conv3d(2, 3), vec![1, 2, 4, 4, 4]),
    ] {
        let body = "return self.relu.forward(self.layer.forward(x))";
        Case::new(model(&[("layer", &layer), ("relu", &relu())], body), &[&input]).check(3);
    }
}

#[test]
fn layers_with_a_relu_operator_are_observed_after_it() {
    for relu in ["torch.relu(y)", "torch.relu_(y)"] {
        for (layer, input) in [(linear(4, 3), vec![2, 4]), (conv2d(2, 3), vec![1, 2, 8, 8])] {
            let body = format!("y = self.layer.forward(x)\nreturn {relu}");
            Case::new(model(&[("layer", &layer)], &body), &[&input]).check(3);
        }
    }
}

#[test]
fn an_intermediate_that_is_used_twice_is_observed_beside_the_relu() {
    let body = "y = self.layer.forward(x)\nreturn torch.relu(y), y";
    Case::new(model(&[("layer", &conv2d(2, 3))], body), &[&[1, 2, 8, 8]]).check(3);
}
