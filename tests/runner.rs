//! A model that threads share.

#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::{Methods, ModelForm, Quantizer, Rounding, Runner};

use support::{classifier, images};

/// Runs a runner in several threads at once; the results of each.
fn in_threads(runner: &Runner, threads: usize, runs: usize, input: &Tensor) -> Vec<Vec<Vec<f32>>> {
    let (values, shape) = (input.to_f32_vec().unwrap(), input.shape());
    let run = || {
        let input = Tensor::from_slice(&values, &shape).unwrap();
        runner.forward(&[input]).unwrap().as_tensor().unwrap().to_f32_vec().unwrap()
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(|| (0..runs).map(|_| run()).collect())).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_runner_is_for_all_threads() {
    fn for_all_threads<T: Send + Sync>() {}
    for_all_threads::<Runner>();
    for_all_threads::<jitquant::Error>();
    for_all_threads::<Quantizer>();
    for_all_threads::<jitquant::Report>();
}

#[test]
fn threads_get_what_the_model_gives() {
    let (model, x) = (classifier(), images(4, 7));
    let methods = Methods { rounding: Rounding::Nearest, ..Methods::default() };
    let mut prepared = Quantizer::static_ptq().methods(methods).form(ModelForm::Native).prepare(&model).unwrap();
    prepared.calibrate(std::slice::from_ref(&x)).unwrap();
    for module in [model, prepared.convert().unwrap().module] {
        let expected = module.forward(std::slice::from_ref(&x)).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
        let runner = Runner::new(&module).unwrap();
        assert!(!runner.takes_turns());
        let results = in_threads(&runner, 4, 20, &x);
        assert!(results.iter().flatten().all(|result| *result == expected));
    }
}

#[test]
fn a_model_with_state_takes_turns_and_counts_every_run() {
    let model = Module::new("Counter").unwrap();
    model.register_attribute("count", &jitquant::ir::Type::parse("int").unwrap(), &IValue::Int(0)).unwrap();
    let code =
        "def forward(self, x: Tensor) -> Tensor:\n    self.count = self.count + 1\n    return x * 0.0 + self.count";
    model.define(code).unwrap();
    let runner = Runner::new(&model).unwrap();
    assert!(runner.takes_turns());
    let mut seen: Vec<f32> =
        in_threads(&runner, 4, 50, &images(1, 1)).concat().iter().map(|result| result[0]).collect();
    seen.sort_by(f32::total_cmp);
    let every: Vec<f32> = (1..=200).map(|run| run as f32).collect();
    assert_eq!(seen, every);
    assert!(matches!(model.attribute("count").unwrap(), IValue::Int(0)), "the runner has a copy of its own");
}

#[test]
fn errors_are_those_of_the_model() {
    let runner = Runner::new(&classifier()).unwrap();
    let wrong = runner.forward(&[Tensor::from_slice(&[1.0f32], &[1]).unwrap()]);
    assert!(wrong.is_err());
    let missing = runner.call("predict", &[images(1, 1)]).unwrap_err().to_string();
    assert!(missing.contains("predict") && missing.contains("forward"), "{missing}");
}
