//! Programs: native models run as planned steps, with the results of their operators, bit for bit.
#![cfg(feature = "torch")]

mod support;

use jitquant::Quantizer;
use jitquant::ir::{Module, Tensor};
use jitquant::pass::{set_programs, to_native};
use support::{classifier, conv2d, images, linear, noise};

/// Whether Programs are made belongs to the process.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn native(model: &Module, batches: &[Tensor]) -> Module {
    let mut prepared = Quantizer::static_ptq().prepare(model).unwrap();
    for batch in batches {
        prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    }
    to_native(&prepared.convert().unwrap().module).unwrap()
}

/// Runs until libtorch has optimized the graph, and once more.
fn warm(model: &Module, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut last = Vec::new();
    for _ in 0..5 {
        last = model.forward(inputs).unwrap().tensors().into_iter().cloned().collect();
    }
    last
}

fn bits(tensors: &[Tensor]) -> Vec<(Vec<i64>, Vec<u32>)> {
    let floats = |tensor: &Tensor| tensor.to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect();
    tensors.iter().map(|tensor| (tensor.shape(), floats(tensor))).collect()
}

/// Two copies of a module, one that runs as a Program and one that does not, agree on these inputs; and Programs ran, and took
/// every call.
fn same(model: &Module, calls: &[Vec<Tensor>]) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = jitquant::engine::program_calls();
    for freeze in [false, true] {
        let copy = || match freeze {
            true => model.freeze(&[], false).unwrap(),
            false => model.deep_clone().unwrap(),
        };
        let (with, without) = (copy(), copy());
        set_programs(false);
        let expected: Vec<_> = calls.iter().map(|inputs| bits(&warm(&without, inputs))).collect();
        set_programs(true);
        for _ in 0..2 {
            for (inputs, expected) in calls.iter().zip(&expected) {
                assert_eq!(&bits(&warm(&with, inputs)), expected, "frozen: {freeze}");
            }
        }
    }
    let after = jitquant::engine::program_calls();
    let graph = model.graph("forward").unwrap();
    assert!(after.0 > before.0, "no Program ran: {graph}");
    assert_eq!(after.1, before.1, "a call was refused: {graph}");
}

#[test]
fn a_classifier_gives_the_bits_of_its_operators() {
    let model = classifier();
    model.register_attribute("training", &jitquant::ir::Type::parse("bool").unwrap(), &false.into()).unwrap();
    let native = native(&model, &[images(8, 1), images(8, 2)]);
    same(&native, &[vec![images(4, 9)], vec![images(1, 5)], vec![images(7, 6)]]);
}

/// A native model of this code over convolutions `a` of 1 to 4 channels, `b` and `d` of 4 to 4, and a linear layer `fc`; `>`
/// begins a line that stands deeper.
fn model(code: &str) -> Module {
    let module = Module::new("Model").unwrap();
    module.register_submodule("a", &conv2d(1, 4, 3, 1, 10)).unwrap();
    module.register_submodule("b", &conv2d(4, 4, 1, 1, 20)).unwrap();
    module.register_submodule("d", &conv2d(4, 4, 3, 4, 40)).unwrap();
    module.register_submodule("fc", &linear(4, 3, 30)).unwrap();
    module.register_attribute("training", &jitquant::ir::Type::parse("bool").unwrap(), &false.into()).unwrap();
    let line = |line: &str| match line.trim().strip_prefix(">   ") {
        Some(deeper) => format!("        {deeper}\n"),
        None => format!("    {}\n", line.trim()),
    };
    let code: String = code.lines().map(line).collect();
    module.define(&format!("def forward(self, x: Tensor) -> Tensor:\n{code}")).unwrap();
    native(&module, &[images(8, 1), images(8, 2)])
}

fn all_sizes() -> Vec<Vec<Tensor>> {
    vec![vec![images(3, 9)], vec![images(1, 5)], vec![images(3, 9)]]
}

#[test]
fn blocks_of_networks_give_the_bits_of_their_operators() {
    let blocks = [
        // Squeeze and excite: a product that is broadcast.
        "x = self.a.forward(x)
         s = torch.sigmoid(self.b.forward(torch.adaptive_avg_pool2d(x, [1, 1])))
         return self.b.forward(x * s)",
        // Concatenation of branches, one of them depthwise.
        "x = torch.relu(self.a.forward(x))
         return torch.cat([self.b.forward(x), x, self.d.forward(x)], 1)",
        // Channel shuffle, halves of channels.
        "x = torch.relu(self.a.forward(x))
         y, z = torch.chunk(x, 2, 1)
         x = torch.cat([self.b.forward(x), self.d.forward(x)], 1)
         n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
         x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
         p, q = torch.chunk(x, 2, 1)
         return self.b.forward(p) + torch.cat([y, z], 1)",
        // Pooling and the head.
        "x = torch.max_pool2d(torch.relu(self.a.forward(x)), [3, 3], [2, 2], [1, 1])
         x = torch.avg_pool2d(self.b.forward(x), [2, 2])
         x = torch.adaptive_avg_pool2d(x, [1, 1])
         return self.fc.forward(torch.flatten(x, 1))",
        // What has no step stands between parts, and takes both an early and a late value.
        "x = self.b.forward(torch.relu(self.a.forward(x)))
         y = torch.cumsum(x, 2)
         z = self.d.forward(self.b.forward(x))
         return self.b.forward(z + y) + torch.cumsum(z, 3)",
        // A view that is a result, and one that something else reads.
        "x = self.b.forward(torch.relu(self.a.forward(x)))
         y = x.permute([0, 2, 3, 1])
         return torch.cumsum(y, 1) + self.fc.forward(y)[:, :, :, 0:1]",
        // Memory that is written into.
        "x = self.b.forward(torch.relu(self.a.forward(x)))
         y = x[:, 1]
         z = self.b.forward(x)
         y.mul_(2.0)
         return z + x + self.d.forward(x)",
        // A copy of memory that is written into afterwards.
        "x = self.b.forward(torch.relu(self.a.forward(x)))
         y = x.permute([0, 2, 3, 1]).reshape([x.size(0), 12, 12, 4])
         c = x.transpose(2, 3).contiguous()
         x.mul_(2.0)
         z = self.b.forward(self.d.forward(c))
         return z + self.b.forward(self.d.forward(y.permute([0, 3, 1, 2]))) + x",
        // A branch and a loop.
        "x = torch.relu(self.a.forward(x))
         if x.size(0) > 2:
         >   x = self.b.forward(self.d.forward(x))
         for i in range(2):
         >   x = self.b.forward(torch.relu(self.d.forward(x)))
         return x",
    ];
    for code in blocks {
        same(&model(code), &all_sizes());
    }
}

#[cfg(feature = "tch")]
#[test]
fn many_threads_run_one_module() {
    let model = model("return self.b.forward(torch.relu(self.d.forward(torch.relu(self.a.forward(x)))))");
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    model.save(&path).unwrap();
    set_programs(true);
    let module = tch::CModule::load(&path).unwrap();
    let run = |x: &tch::Tensor| tch::no_grad(|| module.forward_ts(std::slice::from_ref(x)).unwrap());
    set_programs(false);
    let plain = tch::CModule::load(&path).unwrap();
    let inputs: Vec<_> =
        (0..32).map(|at| tch::Tensor::rand([1 + at % 3, 1, 12, 12], (tch::Kind::Float, tch::Device::Cpu))).collect();
    let answer = |x: &tch::Tensor| tch::no_grad(|| plain.forward_ts(std::slice::from_ref(x)).unwrap());
    // libtorch makes code of the graph in the first calls.
    (0..3).for_each(|_| drop(answer(&inputs[0])));
    let expected: Vec<_> = inputs.iter().map(answer).collect();
    set_programs(true);
    let before = jitquant::engine::program_calls();
    std::thread::scope(|scope| {
        for (x, expected) in inputs.into_iter().zip(expected) {
            let run = &run;
            scope.spawn(move || (0..30).for_each(|_| assert!(run(&x).equal(&expected))));
        }
    });
    let after = jitquant::engine::program_calls();
    assert!(after.0 > before.0 && after.1 == before.1, "{before:?} {after:?}");
}

#[test]
fn calls_that_a_program_does_not_take_run_its_operators() {
    let model = model("return self.b.forward(torch.relu(self.a.forward(x)))");
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    set_programs(true);
    warm(&model, &[images(2, 3)]);
    let before = jitquant::engine::program_calls();
    // Two channels instead of one: the operator's own words.
    let wrong = Tensor::from_slice(&noise(2 * 144, 3), &[1, 2, 12, 12]).unwrap();
    let why = model.forward(&[wrong]).unwrap_err().to_string();
    assert!(why.contains("an input of sizes"), "{why}");
    assert!(jitquant::engine::program_calls().1 > before.1);
    // No samples at all.
    let none = Tensor::from_slice::<f32>(&[], &[0, 1, 12, 12]).unwrap();
    assert_eq!(model.forward(&[none]).unwrap().as_tensor().unwrap().shape(), [0, 4, 12, 12]);
    // And it goes on.
    let again = images(2, 3);
    assert_eq!(bits(&warm(&model, std::slice::from_ref(&again)))[0].0, [2, 4, 12, 12]);
}

#[test]
fn what_is_saved_is_the_native_graph() {
    let model = model("return self.b.forward(torch.relu(self.a.forward(x)))");
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    set_programs(true);
    warm(&model, &[images(2, 3)]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    model.save(&path).unwrap();
    let loaded = Module::load(&path).unwrap();
    let kinds: Vec<_> = loaded.graph("forward").unwrap().nodes().map(|node| node.kind().to_owned()).collect();
    assert!(kinds.iter().any(|kind| kind == "jitquant::conv"), "{kinds:?}");
    assert!(!kinds.iter().any(|kind| kind == "jitquant::run"), "{kinds:?}");
}
