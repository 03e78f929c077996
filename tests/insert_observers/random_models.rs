//! Models put together at random from shape-preserving operators, submodules that share classes, and methods.

use jitquant::ir::Module;
use proptest::prelude::*;

use crate::compare::Case;
use crate::models::*;

/// Which operator, and which of the values so far it takes.
type Step = (u8, u8, u8);

const SHAPE: &[i64] = &[1, 4, 4, 4];

/// What a body may call: names of methods and modules from `Tensor` to `Tensor`.
struct Callees<'a>(&'a [&'a str]);

impl Callees<'_> {
    /// The body of a method: each step gives a value, the last two are returned as their sum or alone.
    fn body(&self, steps: &[Step]) -> String {
        let mut lines = Vec::new();
        for (i, (operator, a, b)) in steps.iter().enumerate() {
            let (a, b) = (*a as usize % (i + 1), *b as usize % (i + 1));
            let (a, b) = (format!("v{a}"), format!("v{b}"));
            let operators = [
                format!("torch.relu({a})"),
                format!("torch.relu({a} + {b})"),
                format!("{a} * {b}"),
                format!("{a} + {b}"),
                format!("torch.sin({a})"),
                format!("torch.sigmoid({a})"),
                format!("torch.max_pool2d({a}, [3, 3], [1, 1], [1, 1])"),
                format!("torch.clamp({a}, 0.0, 6.0)"),
                format!("{a} + 0.5"),
                format!("{a}.transpose(2, 3)"),
                format!("torch.chunk(torch.cat([{a}, {b}], 1), 2, 1)[0]"),
                format!("torch.hardswish({a})"),
                format!("({a}, {b})[0]"),
            ];
            let choice = *operator as usize % (operators.len() + self.0.len() * 3);
            let expression = match operators.get(choice) {
                Some(expression) => expression.clone(),
                None => format!("self.{}({a})", self.0[(choice - operators.len()) % self.0.len()]),
            };
            lines.push(format!("    v{} = {expression}", i + 1));
        }
        let last = steps.len();
        lines.push(match steps.last().is_some_and(|(_, _, b)| b % 2 == 0) && last > 1 {
            true => format!("    return v{last} + v{}", last - 1),
            false => format!("    return v{last}"),
        });
        lines.join("\n")
    }
}

fn build(block: &[Step], method: &[Step], forward: &[Step]) -> Module {
    let layers = [("conv", conv2d(4, 4)), ("bn", batch_norm2d(4)), ("relu", relu())];
    let layers: Vec<_> = layers.iter().map(|(name, layer)| (*name, layer)).collect();
    let inner = Callees(&["conv.forward", "bn.forward", "relu.forward"]);
    let first = module("Block", &layers, &format!("def forward(self, v0: Tensor):\n{}", inner.body(block)));
    let second = sibling(&first);
    let conv = conv2d(4, 4);
    let children = [("first", &first), ("second", &second), ("conv", &conv), ("relu", layers[2].1)];
    let methods = Callees(&["conv.forward", "relu.forward", "first.forward"]);
    let all = Callees(&["conv.forward", "relu.forward", "first.forward", "second.forward", "part"]);
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
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_models_are_observed_alike(block in steps(1..5), method in steps(1..4), forward in steps(2..9)) {
        let model = build(&block, &method, &forward);
        Case::new(model, &[SHAPE]).check_any();
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}
