//! Our passes in libtorch's pass manager: what they do to the graphs of models that run.

#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{Module, Tensor};
use jitquant::plugin::{GraphPass, clear, forget_ranges, observed_ranges, register, save_ranges};
use support::{classifier, images};

/// The passes belong to the process.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn run(module: &Module, x: &Tensor) -> Vec<f32> {
    module.forward(std::slice::from_ref(x)).unwrap().as_tensor().unwrap().to_vec().unwrap()
}

#[test]
fn what_would_be_quantized_is_observed_in_executed_graphs() {
    let _turn = TURN.lock().unwrap();
    let x = images(4, 3);
    let expected = run(&classifier(), &x);
    for freeze in [false, true] {
        let float = classifier();
        float.register_attribute("training", &jitquant::ir::Type::parse("bool").unwrap(), &false.into()).unwrap();
        let model = if freeze { float.freeze(&[], false).unwrap() } else { float };
        forget_ranges();
        register(&[GraphPass::Observe]).unwrap();
        register(&[GraphPass::Observe]).unwrap();
        for _ in 0..6 {
            let difference = std::iter::zip(run(&model, &x), &expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-4, "{difference}");
        }
        clear().unwrap();
        let ranges = observed_ranges();
        assert!(!ranges.is_empty(), "frozen: {freeze}");
        let values = x.to_vec::<f32>().unwrap();
        let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
        let is_input = |range: &&jitquant::plugin::ObservedRange| (range.min, range.max) == (min, max);
        let input = ranges.iter().find(is_input).unwrap_or_else(|| panic!("the input is not in {ranges:?}"));
        assert!((1..=6).contains(&input.count), "observed once a run: {input:?}");
        // The residual's relu.
        assert!(ranges.iter().any(|range| range.min == 0.0), "{ranges:?}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranges.toml");
        save_ranges(&path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(&format!("[{:016x}]", input.graph)), "{text}");
    }
    // A model that is optimized from now on is not observed.
    forget_ranges();
    let later = classifier();
    (0..6).for_each(|_| drop(run(&later, &x)));
    assert_eq!(observed_ranges(), []);
}

#[test]
fn a_model_that_packs_its_weights_at_each_run_gives_the_same() {
    let _turn = TURN.lock().unwrap();
    let build = || {
        let module = Module::new("Linear").unwrap();
        module.register_parameter("weight", Tensor::from_slice(&[1.0f32, -2.0], &[1, 2]).unwrap()).unwrap();
        module.register_attribute("training", &jitquant::ir::Type::parse("bool").unwrap(), &false.into()).unwrap();
        module
            .define(
                "def forward(self, x: Tensor) -> Tensor:\n    \
                 weight = torch.quantize_per_tensor(self.weight, 0.5, 0, 12)\n    \
                 packed = ops.quantized.linear_prepack(weight, None)\n    \
                 return ops.quantized.linear_dynamic(x, packed, False)\n",
            )
            .unwrap();
        module.freeze(&[], false).unwrap()
    };
    let x = Tensor::from_slice(&[0.5f32, 0.25, 1.0, 2.0], &[2, 2]).unwrap();
    let expected = run(&build(), &x);
    register(&[GraphPass::Prepack]).unwrap();
    let model = build();
    for _ in 0..6 {
        assert_eq!(run(&model, &x), expected);
    }
    clear().unwrap();
}
