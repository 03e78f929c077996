//! Models put together at random from writes in place, views, lists, dictionaries, branches, loops and state.
//!
//! `make generated` looks at 10,000 of them, in processes of a hundred; `JITQUANT_GENERATED` says how many this one does.

use jitquant::ModelForm;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::models::*;

/// Which statement, which of the values it takes, and how it is nested.
type Step = (u8, u8, u8, u8);

/// Values that statements name: `v0` to `v4`.
const VALUES: u8 = 5;

/// Statements on the values A and B, and C that is written anew. Whole numbers stay whole, and small.
const STATEMENTS: &[&str] = &[
    "C = self.layer(A)",
    "C = self.layer(A) + B",
    "C = torch.relu(A)",
    "C = A + B",
    "C = torch.clamp(A * B, -60.0, 60.0)",
    "C = A",
    "C = A[:, :]",
    "C = A.t()",
    "C = A.transpose(0, 1).transpose(0, 1)",
    "C = A.contiguous()",
    "C = A.reshape([4, 4])",
    "C = A.unsqueeze(0).squeeze(0)",
    "C = A.clone()",
    "A.add_(B)",
    "A += 1.0",
    "A.sub_(2.0)",
    "A.mul_(2.0).clamp_(-40.0, 40.0)",
    "A.clamp_(-20.0, 20.0)",
    "A.copy_(B)",
    "A.fill_(3.0)",
    "A.zero_()",
    "A.neg_()",
    "torch.relu_(A)",
    "A[:, 1:3] = B[:, 0:2].clone()",
    "A[1] = B[2].clone()",
    "A[2, 1:3] += 1.0",
    "A[::2] = B[1::2] + 0.0",
    "A.transpose(0, 1)[0:2].add_(2.0)",
    "A.select(1, 2).fill_(4.0)",
    "A.narrow(0, 1, 2).sub_(1.0)",
    "A.unsqueeze(0)[0, 3].neg_()",
    "torch.diagonal(A).fill_(1.0)",
    "A.masked_fill_(B > 2.0, 1.0)",
    "A[B > 5.0] = 0.0",
    "A[:, 2:3].expand([4, 1]).add_(1.0)",
    "torch.chunk(A, 2, 1)[0].copy_(torch.chunk(B, 2, 1)[1].clone())",
    "torch.split(A, 2, 0)[1].add_(1.0)",
    "torch.unbind(A, 1)[1].add_(torch.unbind(B, 0)[0].clone())",
    "torch.add(B, 1.0, out=A)",
    "l.append(A)",
    "l.append(self.layer(A))",
    "l.extend([A, B])",
    "l.insert(0, A)",
    "l.reverse()",
    "l[0] = A",
    "l[-1] = B + 1.0",
    "l[0].add_(1.0)",
    "C = l[0]",
    "C = l[-1]",
    "C = l.pop() if len(l) > 1 else l[0]",
    "C = torch.clamp(torch.stack(l, 0).sum(0), -60.0, 60.0)",
    "del l[0]\nl.append(B)",
    "l.clear()\nl.append(A)",
    "l = l[:] + [A]",
    "while len(l) > 2:\n    l.pop()",
    "for t in l:\n    t.add_(1.0)",
    "m = [l, [A]]\nm[1].append(B)\nC = m[1][1]\nm[0].append(A)",
    "m = [[A] * 2]\nm[0][1].add_(1.0)\nC = m[0][0]",
    "d['a'] = A",
    "d['b'] = A + B",
    "C = d['a']",
    "C = d['b']",
    "d['a'].add_(1.0)",
    "for k, t in d.items():\n    l.append(t)",
    "A, C = (B, A)",
    "self.n.add_(A).clamp_(-30.0, 30.0)",
    "self.n += 1.0",
    "C = self.n",
    "C = self.h",
    "self.h = A",
    "self.h = A.clone()",
];

/// The line of a step, indented by `depth` blocks.
fn statement(step: Step) -> String {
    let (choice, a, b, _) = step;
    let (a, b, c) = (a % VALUES, b % VALUES, (a / VALUES) % VALUES);
    let text = STATEMENTS[choice as usize % STATEMENTS.len()];
    let mut out = String::new();
    for (place, letter) in text.char_indices() {
        let beside = |at: Option<char>| at.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let is_alone = !beside(text[..place].chars().last()) && !beside(text[place + 1..].chars().next());
        match letter {
            'A' if is_alone => out.push_str(&format!("v{a}")),
            'B' if is_alone => out.push_str(&format!("v{b}")),
            'C' if is_alone => out.push_str(&format!("v{c}")),
            other => out.push(other),
        }
    }
    out
}

fn indented(text: &str, by: usize) -> String {
    let space = " ".repeat(by);
    text.lines().map(|line| format!("{space}{line}\n")).collect()
}

/// The code of a model.
pub fn forward(steps: &[Step]) -> String {
    let mut code = "def forward(self, x: Tensor, y: Tensor):
    v0 = self.layer(x)
    v1 = y
    v2 = x + y
    v3 = torch.zeros([4, 4])
    v4 = self.n
    l = [v0, v2]
    d = {'a': v1, 'b': v2}
"
    .to_owned();
    let mut rest = steps;
    while let [first, others @ ..] = rest {
        rest = others;
        let text = statement(*first);
        let value = first.1 % VALUES;
        let second = others.first().map(|step| statement(*step));
        let block = match first.3 % 10 {
            0 => format!("if bool(v{value}.sum() > 3.0):\n{}", indented(&text, 4)),
            1 => match second {
                Some(second) => {
                    rest = &others[1..];
                    format!("if bool(v{value}.sum() > 3.0):\n{}else:\n{}", indented(&text, 4), indented(&second, 4))
                }
                None => text,
            },
            2 => format!("for i in range(2):\n{}", indented(&text, 4)),
            3 => match second {
                Some(second) => {
                    rest = &others[1..];
                    format!("for i in range(x.size(0) - 2):\n{}{}", indented(&text, 4), indented(&second, 4))
                }
                None => text,
            },
            _ => text,
        };
        code.push_str(&indented(&block, 4));
    }
    code.push_str("    return [v0, v1, v2, v3, v4, l[0], l[-1], d['a'], self.n * 1.0, self.h * 1.0]\n");
    code
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), rng_seed: seed(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_models_are_quantized_as_they_are(steps in proptest::collection::vec(any::<Step>(), 1..9), native in 0..4) {
        let code = forward(&steps);
        let model = model(&code);
        if runs(&model.deep_clone().unwrap()).is_err() {
            // `self.n.add_(self.n.t())`: libtorch refuses to write where it reads.
            return Ok(());
        }
        let form = if native == 0 { ModelForm::Native } else { ModelForm::Portable };
        if let Err(why) = check(&model, &[form]) {
            return Err(TestCaseError::fail(format!("{code}\n{why}")));
        }
    }
}

fn asked() -> Option<u32> {
    std::env::var("JITQUANT_GENERATED").ok()?.parse().ok()
}

fn cases() -> u32 {
    asked().unwrap_or(300)
}

/// The same models in every run of the tests; others where a number was asked for.
fn seed() -> RngSeed {
    if asked().is_some() { RngSeed::Random } else { RngSeed::Fixed(1) }
}
