//! Models put together at random from shape-preserving operators, branches, submodules that share classes, and methods.
//!
//! `make generated` looks at 10,000 of them, in processes of a hundred; `JITQUANT_GENERATED` says how many this one does.

use jitquant::ir::Module;
use proptest::prelude::*;

use crate::compare::{Case, QINT8};
use crate::models::*;

/// Which operator, and which of the values so far it takes.
type Step = (u8, u8, u8);

const SHAPE: &[i64] = &[1, 4, 4, 4];

/// What a body may call: names of methods and modules from `Tensor` to `Tensor`.
struct Callees<'a> {
    names: &'a [&'a str],
    /// Whether one operator may take the same value twice.
    may_repeat: bool,
}

impl Callees<'_> {
    /// The body of a method: each step gives a value, the last two are returned as their sum or alone.
    fn body(&self, steps: &[Step]) -> String {
        let mut lines = Vec::new();
        for (i, (operator, a, b)) in steps.iter().enumerate() {
            let (a, b) = (*a as usize % (i + 1), *b as usize % (i + 1));
            let repeats = a == b && !self.may_repeat;
            let (a, b) = (format!("v{a}"), if repeats { format!("torch.sin(v{b})") } else { format!("v{b}") });
            // libtorch moves what it fuses in a branch to where the inputs are, in front of the branch: there it may meet its
            // like, or be cut off from the relu behind it or from a clamp's bounds. What a branch takes is computed in it.
            let in_branch = operator / 16 >= 14;
            let inside = |value: &str| if in_branch { format!("torch.sin({value})") } else { value.to_owned() };
            let (first, second) = (inside(&a), inside(&b));
            let operators = operators(&first, &second);
            let choice = *operator as usize % (operators.len() + self.names.len() * 8);
            let expression = match operators.get(choice) {
                Some(expression) => expression.clone(),
                None => format!("self.{}({first})", self.names[(choice - operators.len()) % self.names.len()]),
            };
            let parts = ["clamp", "hardtanh", "self.first", "self.second", "self.part"];
            let may_clamp = parts.iter().any(|part| expression.contains(part));
            let v = i + 1;
            lines.push(match operator / 16 {
                15 if !may_clamp => {
                    format!("    if bool({a}.sum() > 0):\n        v{v} = {expression}\n    else:\n        v{v} = {b}")
                }
                14 if !may_clamp => format!("    v{v} = {b}\n    if {a}.size(0) == 1:\n        v{v} = {expression}"),
                _ => format!("    v{v} = {expression}"),
            });
        }
        let last = steps.len();
        lines.push(match steps.last().is_some_and(|(_, _, b)| b % 2 == 0) && last > 1 {
            true => format!("    return v{last} + v{}", last - 1),
            false => format!("    return v{last}"),
        });
        lines.join("\n")
    }
}

fn operators(a: &str, b: &str) -> Vec<String> {
    [
        "torch.relu(A)",
        // What a later step may read again is not changed in place: libtorch's fusion does not look at that.
        "torch.relu_(torch.max_pool2d(A, [1, 1]))",
        "torch.relu(A + B)",
        "torch.relu_(A * B)",
        "A * B",
        "A + B",
        "torch.add_(torch.sin(A), B)",
        "torch.mul_(torch.tanh(A), B)",
        "torch.sin(A)",
        "torch.sigmoid(A)",
        "torch.tanh(A)",
        "torch.hardsigmoid(A)",
        "torch.max_pool2d(A, [3, 3], [1, 1], [1, 1])",
        "torch.avg_pool2d(A, [3, 3], [1, 1], [1, 1])",
        "torch.adaptive_avg_pool2d(A, [4, 4])",
        "torch.upsample_nearest2d(A, [4, 4], None)",
        "torch.clamp(A, 0.0, 6.0)",
        "torch.clamp(A, -0.5, 0.5)",
        "torch.hardtanh(A, 0.0, 6.0)",
        "torch.leaky_relu(A, 0.1)",
        "torch.elu(A)",
        "torch.hardswish(A)",
        "A + 0.5",
        "A * 0.5",
        "torch.relu(A + 0.5)",
        "torch.relu(A * 2.0)",
        "A.transpose(2, 3)",
        "A.permute([0, 1, 3, 2])",
        "A.reshape([A.size(0), 4, -1]).view([1, 4, 4, 4])",
        "torch.flatten(A, 1).reshape([1, 4, 4, 4])",
        "torch.chunk(torch.cat([A, B], 1), 2, 1)[0]",
        "torch.cat([A, B], 1)[:, 2:6]",
        "A.unsqueeze(0).squeeze(0)",
        "torch.dropout(A, 0.5, False)",
        "torch.layer_norm(A, [4])",
        "torch.group_norm(A, 2)",
        "(A, B)[0]",
        "[A, B][1]",
    ]
    .iter()
    .map(|operator| operator.replace('A', a).replace('B', b))
    .collect()
}

fn build(block: &[Step], method: &[Step], forward: &[Step], may_repeat: bool) -> Module {
    let layers = [("conv", conv2d(4, 4)), ("bn", batch_norm2d(4)), ("relu", relu()), ("fc", linear(4, 4))];
    let layers: Vec<_> = layers.iter().map(|(name, layer)| (*name, layer)).collect();
    let inner = Callees { names: &["conv.forward", "bn.forward", "relu.forward", "fc.forward"], may_repeat };
    let first = module("Block", &layers, &format!("def forward(self, v0: Tensor):\n{}", inner.body(block)));
    let second = sibling(&first);
    let conv = conv2d(4, 4);
    let children = [("first", &first), ("second", &second), ("conv", &conv), ("relu", layers[2].1)];
    let methods = Callees { names: &["conv.forward", "relu.forward", "first.forward"], may_repeat };
    let all =
        Callees { names: &["conv.forward", "relu.forward", "first.forward", "second.forward", "part"], may_repeat };
    // Both blocks are called: an instance that is not, of a class that is observed, makes libtorch read past its end.
    let source = format!(
        "def part(self, v0: Tensor):\n{}\ndef forward(self, x: Tensor):\n    \
         v0 = self.second.forward(self.first.forward(x))\n{}",
        methods.body(method),
        all.body(forward)
    );
    module("Model", &children, &source)
}

fn steps(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any::<Step>(), count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_models_are_quantized_alike(
        block in steps(1..5),
        method in steps(1..4),
        forward in steps(2..9),
        dynamic in 0..6,
    ) {
        // Of a value that an operator takes twice libtorch keeps the dynamic quantization that nothing uses.
        let case = Case::new(build(&block, &method, &forward, dynamic != 0), &[SHAPE]);
        let case = if dynamic == 0 { case.dynamic(QINT8) } else { case };
        match case.theirs() {
            Ok(_) => drop(case.check_any()),
            // Branches that are not observed alike.
            Err(_) => drop(case.check_end_to_end()),
        }
    }
}

/// Found in the long run. In the block a sum in place is observed for the layer that it is passed to, and joined with its
/// result: when the block is called again, libtorch takes what is joined for not observed.
#[test]
fn a_block_that_is_called_again_and_again() {
    let block = [(146, 0, 0), (0, 0, 0), (38, 112, 196), (170, 77, 79)];
    let method = [(102, 203, 152), (46, 180, 68), (221, 248, 76)];
    let forward = [(218, 5, 44), (79, 209, 143), (123, 199, 210)];
    Case::new(build(&block, &method, &forward, true), &[SHAPE]).check_any();
}

fn cases() -> u32 {
    std::env::var("JITQUANT_GENERATED").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}
