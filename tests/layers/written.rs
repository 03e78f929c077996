//! Products with weights as people write them.

use jitquant::ir::{IValue, Module};
use jitquant::pass;

use crate::shapes::module;
use crate::support::tensor;
use crate::{float, listed, quantized, ways};

/// `torch.einsum(equation, [x, w])` and a linear layer behind it.
fn einsum(equation: &str, weight: &[i64], swapped: bool) -> Module {
    let tensors = if swapped { "[self.w, x]" } else { "[x, self.w]" };
    module(
        &[("w", weight)],
        &format!("def forward(self, x: Tensor) -> Tensor:\n    return torch.einsum(\"{equation}\", {tensors})\n"),
    )
}

#[test]
fn einsum_with_a_weight_is_a_linear_layer() {
    let cases: &[(&str, &[i64], bool)] = &[
        ("tbi,ij->tbj", &[16, 24], false),
        ("bij,kj->bik", &[24, 16], false),
        ("kj,bij->bik", &[24, 16], true),
        ("btd,dhe->bhte", &[16, 4, 6], false),
        ("bth, the -> be", &[7, 16, 5], false),
        ("abc,bd->adc", &[7, 9], false),
    ];
    for (equation, weight, swapped) in cases {
        let model = einsum(equation, weight, *swapped);
        for (way, quantizer) in ways() {
            let (_, report) = quantized(&model, &[&[4, 7, 16]], quantizer);
            assert_eq!((float(&report), report.quantized_layers), (vec![], 1), "{equation}, {way}");
        }
    }
}

#[test]
fn products_that_are_no_linear_layer_are_listed() {
    let cases: &[(&str, &[i64], &str)] = &[
        ("torch.einsum(\"bij,bjk->bik\", [x, self.w])", &[4, 16, 8], "einsum"),
        ("torch.bmm(x, self.w)", &[4, 16, 8], "linear"),
        ("torch.matmul(self.w, x)", &[4, 5, 7], "matmul"),
        ("torch.bilinear(x, x, self.w, None)", &[8, 16, 16], "bilinear"),
    ];
    for (expression, weight, operator) in cases {
        let model = module(
            &[("u", &[16, 16]), ("w", weight)],
            &format!(
                "def forward(self, x: Tensor) -> Tensor:\n    x = torch.linear(x, self.u)\n    return {expression}\n"
            ),
        );
        for (way, quantizer) in ways() {
            let inspected = listed(&model, &quantizer);
            let (_, report) = quantized(&model, &[&[4, 7, 16]], quantizer);
            assert_eq!(float(&report), [*operator], "{expression}, {way}");
            assert_eq!(inspected.len(), 1, "{inspected:?}");
            assert_eq!(inspected[0].1, report.float[0].reason);
        }
    }
}

#[test]
fn pieces_of_a_constant_are_weights() {
    let model = module(
        &[("w", &[48, 16]), ("b", &[48])],
        "def forward(self, x: Tensor) -> Tensor:
    size = x.size(-1)
    a, rest = torch.split_with_sizes(self.w, [size, 2 * size], 0)
    b, c = torch.chunk(rest, 2)
    y = torch.relu(torch.linear(x, a, self.b[0:16]))
    y = torch.relu(torch.linear(y, b.t(), torch.narrow(self.b, 0, 16, 16)))
    return torch.linear(y, torch.transpose(c, 0, 1), torch.select(torch.view(self.b, [3, 16]), 0, 2))
",
    );
    for (way, quantizer) in ways() {
        let (_, report) = quantized(&model, &[&[200, 16]], quantizer);
        assert_eq!((float(&report), report.quantized_layers), (vec![], 3), "{way}");
    }
}

#[test]
fn a_bias_that_is_computed_is_added_in_float() {
    let model = module(
        &[("w", &[16, 16]), ("b", &[16]), ("k", &[4, 16, 3])],
        "def forward(self, x: Tensor) -> Tensor:
    y = torch.linear(x, self.w, self.b * torch.mean(x))
    return torch.conv1d(torch.transpose(y, 1, 2), self.k, torch.mean(self.b[0:4]) + torch.mean(x, [0, 1])[0:4])
",
    );
    for (way, quantizer) in ways().into_iter().take(2) {
        let (_, report) = quantized(&model, &[&[4, 7, 16]], quantizer);
        assert_eq!((float(&report), report.quantized_layers), (vec![], 2), "{way}");
    }
}

#[test]
fn an_unknown_operator_with_a_weight_is_a_layer() {
    jitquant::init().unwrap();
    let graph = jitquant::ir::Graph::parse(
        "graph(%x : Tensor):
  %y : Tensor = vision::deformed(%x, %x)
  return (%y)",
    )
    .unwrap();
    let node = graph.nodes().next().unwrap();
    assert_eq!(pass::layer_operator(node), None);
    let weight = node.insert_constant(IValue::Tensor(tensor(&[4, 3], 1))).unwrap();
    node.replace_input(1, weight).unwrap();
    assert_eq!(pass::layer_operator(node), Some("deformed"));
    // A vector multiplies no matrix.
    let vector = node.insert_constant(IValue::Tensor(tensor(&[4], 1))).unwrap();
    node.replace_input(1, vector).unwrap();
    assert_eq!(pass::layer_operator(node), None);
}
