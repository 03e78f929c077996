//! Quantization-aware training: operators against libtorch's, and from a float module to an INT8 one.

#![cfg(feature = "tch")]

mod support;

use jitquant::ir::{IValue, Module, Tensor};
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::qat::{QatModule, prepare_qat};
use jitquant::qconfig::{Observers, QConfigSpec};
use jitquant::{Quantizer, init};
use support::{classifier, images, noise};
use tch::Kind;

/// `def forward(self, …)` with that body.
fn script(arguments: &str, body: &str) -> Module {
    init().unwrap();
    let module = Module::new("Script").unwrap();
    module.define(&format!("def forward(self, {arguments}):\n    return {body}\n")).unwrap();
    module
}

fn call(module: &Module, inputs: &[&tch::Tensor]) -> tch::Tensor {
    let inputs: Vec<IValue> = inputs.iter().map(|tensor| IValue::from(*tensor)).collect();
    tch::Tensor::try_from(module.call_with_gradients("forward", &inputs).unwrap()).unwrap()
}

fn random(shape: &[i64], seed: u64) -> tch::Tensor {
    let count = shape.iter().product::<i64>() as usize;
    tch::Tensor::from_slice(&noise(count, seed)).reshape(shape)
}

const PER_TENSOR: &str = "ops.jitquant.fake_quantize(x, s, z, -1, 0, 255)";

#[test]
fn forward_has_the_bits_of_libtorch_and_the_gradient_its_mask() {
    let (s, z) = (tch::Tensor::from_slice(&[0.0071f32]), tch::Tensor::from_slice(&[131i32]));
    let ours = script("x, s, z", PER_TENSOR);
    for x in [random(&[3, 17, 33, 5], 1), random(&[2, 8, 9, 7], 2).permute([0, 2, 3, 1])] {
        let (a, b) = (x.copy().set_requires_grad(true), x.copy().set_requires_grad(true));
        let y = call(&ours, &[&a, &s, &z]);
        let theirs = b.fake_quantize_per_tensor_affine_tensor_qparams(&s, &z, 0, 255);
        assert_eq!(y, theirs);
        (y * &x).sum(Kind::Float).backward();
        (theirs * &x).sum(Kind::Float).backward();
        assert_eq!(a.grad(), b.grad());
        assert!(a.grad().count_nonzero(None::<i64>).int64_value(&[]) > 0);
    }
    let (s, z) = (random(&[6], 3).abs() * 0.05 + 0.001, tch::Tensor::zeros([6], (Kind::Int, tch::Device::Cpu)));
    let ours = script("x, s, z", "ops.jitquant.fake_quantize(x, s, z, 1, -8, 7)");
    let x = random(&[4, 6, 5], 4);
    let (a, b) = (x.copy().set_requires_grad(true), x.copy().set_requires_grad(true));
    let (y, theirs) = (call(&ours, &[&a, &s, &z]), b.fake_quantize_per_channel_affine(&s, &z, 1, -8, 7));
    assert_eq!(y, theirs);
    (y * &x).sum(Kind::Float).backward();
    (theirs * &x).sum(Kind::Float).backward();
    assert_eq!(a.grad(), b.grad());
}

#[test]
fn the_learned_step_has_libtorchs_gradient() {
    let ours = script("x, s, z", "ops.jitquant.fake_quantize_learned(x, s, z, -1, -8, 7, 0.25)");
    let x = random(&[5, 7, 11], 5);
    let leaf = |value: f32| tch::Tensor::from_slice(&[value]).set_requires_grad(true);
    let (a, s, z) = (x.copy().set_requires_grad(true), leaf(0.093), leaf(1.0));
    let (b, s2, z2) = (x.copy().set_requires_grad(true), leaf(0.093), leaf(1.0));
    let y = call(&ours, &[&a, &s, &z]);
    let theirs = b.internal_fake_quantize_learnable_per_tensor_affine(&s2, &z2, -8, 7, 0.25);
    assert!(y.allclose(&theirs, 0.0, 0.0, false));
    (y * &x).sum(Kind::Float).backward();
    (theirs * &x).sum(Kind::Float).backward();
    assert_eq!(a.grad(), b.grad());
    assert!(s.grad().allclose(&s2.grad(), 1e-4, 1e-5, false), "{:?} {:?}", s.grad(), s2.grad());
    assert!(z.grad().allclose(&z2.grad(), 1e-4, 1e-5, false), "{:?} {:?}", z.grad(), z2.grad());
}

#[test]
fn the_gradient_of_the_step_is_that_of_the_clamped_part() {
    // Where everything is clamped, fake quantization is smooth in its step: finite differences apply.
    let ours = script("x, s, z", "ops.jitquant.fake_quantize_learned(x, s, z, -1, -8, 7, 1.0)");
    let x = random(&[64], 6) + 20.0;
    let z = tch::Tensor::from_slice(&[0i32]);
    let at = |step: f32| call(&ours, &[&x, &tch::Tensor::from_slice(&[step]), &z]).sum(Kind::Double).double_value(&[]);
    let s = tch::Tensor::from_slice(&[0.5f32]).set_requires_grad(true);
    call(&ours, &[&x, &s, &z]).sum(Kind::Float).backward();
    let difference = (at(0.51) - at(0.49)) / 0.02;
    assert!((s.grad().double_value(&[0]) - difference).abs() < 1e-2 * difference.abs(), "{difference}");
}

#[test]
fn without_gradients_nothing_is_recorded_and_doubles_are_refused() {
    let ours = script("x, s, z", PER_TENSOR);
    let (s, z) = (tch::Tensor::from_slice(&[0.01f32]), tch::Tensor::from_slice(&[3i32]));
    let x = random(&[9], 7).set_requires_grad(true);
    let inputs = [IValue::from(&x), IValue::from(&s), IValue::from(&z)];
    let y = tch::Tensor::try_from(ours.call("forward", &inputs).unwrap()).unwrap();
    assert!(!y.requires_grad());
    assert!(call(&ours, &[&x, &s, &z]).requires_grad());
    let double = [IValue::from(&x.to_kind(Kind::Double)), IValue::from(&s), IValue::from(&z)];
    let refusal = ours.call("forward", &double).unwrap_err().to_string();
    assert!(refusal.contains("float32") && refusal.contains("Double"), "{refusal}");
}

/// `classifier()` with a batch norm behind its first convolution.
fn with_batch_norm() -> Module {
    let norm = Module::new("torch.nn.modules.batchnorm.BatchNorm2d").unwrap();
    let vector = |seed: u64, shift: f32| {
        let values: Vec<f32> = noise(8, seed).iter().map(|v| v * 0.3 + shift).collect();
        Tensor::from_slice(&values, &[8]).unwrap()
    };
    norm.register_parameter("weight", vector(1, 1.0)).unwrap();
    norm.register_parameter("bias", vector(2, 0.0)).unwrap();
    norm.register_buffer("running_mean", vector(3, 0.0)).unwrap();
    norm.register_buffer("running_var", vector(4, 1.0)).unwrap();
    norm.define(
        "def forward(self, x: Tensor) -> Tensor:\n    return torch.batch_norm(x, self.weight, self.bias, \
         self.running_mean, self.running_var, False, 0.1, 1e-05, False)\n",
    )
    .unwrap();
    let module = Module::new("Net").unwrap();
    module.register_submodule("conv", &support::conv2d(1, 8, 3, 1, 50)).unwrap();
    module.register_submodule("norm", &norm).unwrap();
    module.register_submodule("head", &support::conv2d(8, 4, 1, 1, 60)).unwrap();
    module
        .define(
            "def forward(self, x: Tensor) -> Tensor:\n    \
             return self.head.forward(torch.relu(self.norm.forward(self.conv.forward(x))))\n",
        )
        .unwrap();
    module
}

fn train(qat: &QatModule, steps: usize, target: &Module) -> (f64, f64) {
    let parameters: Vec<tch::Tensor> = qat.parameters().unwrap().iter().map(|(_, tensor)| tensor.into()).collect();
    let mut losses = Vec::new();
    for step in 0..steps {
        let x = tch::Tensor::from(&images(16, step as u64 % 4));
        let wanted = tch::Tensor::try_from(target.forward(&[IValue::from(&x)]).unwrap()).unwrap();
        let loss = (call(qat.module(), &[&x]) - wanted).square().mean(Kind::Float);
        loss.backward();
        losses.push(loss.double_value(&[]));
        tch::no_grad(|| {
            for parameter in &parameters {
                let mut parameter = parameter.shallow_clone();
                let gradient = parameter.grad();
                assert!(gradient.defined(), "every parameter has a gradient");
                let _ = parameter.g_sub_(&(gradient * 0.01));
                parameter.zero_grad();
            }
        });
    }
    // Means over the four batches, which recur.
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..4]), mean(&losses[steps - 4..]))
}

fn four_bits() -> QConfigSpec {
    let weight = ObserverConfig {
        quant_min: Some(-8),
        quant_max: Some(7),
        ..ObserverConfig::weight(ObserverKind::PerChannelMinMax)
    };
    let activation = ObserverConfig::new(ObserverKind::MovingAverageMinMax);
    QConfigSpec { default: Observers { activation: Some(activation), weight: Some(weight) }, ..QConfigSpec::default() }
}

/// The largest difference, in steps of the output's range in 8 bits, whether it is rounded to them or not.
fn steps_apart(qat: &QatModule, int8: &Module) -> f64 {
    let x = images(16, 1);
    let run = |module: &Module| {
        tch::Tensor::try_from(module.forward(std::slice::from_ref(&x)).unwrap()).unwrap().to_kind(Kind::Double)
    };
    let graph = qat.module().graph("forward").unwrap();
    let path = graph.outputs()[0].node().input(0).unwrap().attribute_path().unwrap().join(".");
    let qparams = qat.module().submodule(&path).unwrap().call::<IValue>("calculate_qparams", &[]).unwrap();
    let step = f64::from(qparams.tensors()[0].to_f32_vec().unwrap()[0]);
    (run(qat.module()) - run(int8)).abs().max().double_value(&[]) / step
}

/// What a module's tensors hold, in the order of its attributes.
fn values(module: &Module) -> Vec<Vec<f32>> {
    let attributes = |(_, part): (String, Module)| {
        part.attributes()
            .into_iter()
            .filter_map(move |attribute| part.attribute(&attribute.name).unwrap().as_tensor().cloned())
    };
    module.modules().into_iter().flat_map(attributes).map(|tensor| tensor.to_f32_vec().unwrap()).collect()
}

#[test]
fn a_trained_model_converts_to_what_it_was_trained_as() {
    for (float, frozen) in [(classifier(), false), (with_batch_norm(), false), (with_batch_norm(), true)] {
        let before = float.save_bytes().unwrap();
        let mut qat = prepare_qat(&float, &four_bits()).unwrap();
        let x = images(16, 0);
        // Neither rounded nor trained it computes what the float model computes.
        let run = |module: &Module| tch::Tensor::try_from(module.forward(std::slice::from_ref(&x)).unwrap()).unwrap();
        assert!(run(qat.module()).allclose(&run(&float), 1e-4, 1e-4, false));
        for seed in 0..4 {
            qat.calibrate(&[images(16, seed)]).unwrap();
        }
        qat.fake_quantize(true).unwrap();
        qat.freeze_batch_norms(frozen).unwrap();
        qat.module().train(true).unwrap();
        // Away from the float model, so that there is something to learn beyond what rounding leaves.
        for (_, parameter) in qat.parameters().unwrap() {
            tch::no_grad(|| {
                let _ = tch::Tensor::from(&parameter).g_add_scalar_(0.03);
            });
        }
        let (first, last) = train(&qat, 120, &float);
        assert!(last < 0.7 * first, "{first} to {last}");
        qat.observe(false).unwrap();
        qat.module().train(false).unwrap();
        let converted = qat.convert().unwrap();
        assert!(converted.report.float.is_empty(), "{:?}", converted.report);
        let apart = steps_apart(&qat, &converted.module);
        assert!(apart <= 1.01, "{apart} steps");
        assert_eq!(values(&float), values(&Module::load_bytes(&before).unwrap()), "the float module stays as it was");
    }
}

#[test]
fn it_is_saved_loaded_and_trained_further() {
    let float = with_batch_norm();
    let mut qat = prepare_qat(&float, &four_bits()).unwrap();
    qat.calibrate(&[images(16, 0)]).unwrap();
    qat.fake_quantize(true).unwrap();
    let loaded = Module::load_bytes(&qat.module().save_bytes().unwrap()).unwrap();
    let again = QatModule::resume(&loaded, &Quantizer::static_ptq()).unwrap();
    let x = images(4, 9);
    let run = |module: &Module| tch::Tensor::try_from(module.forward(std::slice::from_ref(&x)).unwrap()).unwrap();
    assert_eq!(run(qat.module()), run(again.module()));
    again.module().train(true).unwrap();
    let (first, last) = train(&again, 40, &float);
    assert!(last < first, "{first} to {last}");
}

#[test]
fn learned_steps_are_trained() {
    let float = classifier();
    let mut qat = prepare_qat(&float, &four_bits()).unwrap();
    qat.calibrate(&[images(16, 0)]).unwrap();
    qat.fake_quantize(true).unwrap();
    let fixed = qat.parameters().unwrap().len();
    qat.learn_steps().unwrap();
    let learned = qat.parameters().unwrap();
    let steps: Vec<_> = learned.iter().filter(|(name, _)| name.ends_with(".scale")).collect();
    assert!(!steps.is_empty() && learned.len() == fixed + steps.len());
    let before: Vec<f32> = steps.iter().map(|(_, step)| step.to_f32_vec().unwrap()[0]).collect();
    train(&qat, 20, &float);
    let after: Vec<f32> = steps.iter().map(|(_, step)| step.to_f32_vec().unwrap()[0]).collect();
    assert_ne!(before, after);
    qat.module().train(false).unwrap();
    let apart = steps_apart(&qat, &qat.convert().unwrap().module);
    assert!(apart <= 1.01, "{apart} steps");
}

#[test]
fn fewer_bits_for_activations_are_refused() {
    let narrow =
        ObserverConfig { quant_min: Some(0), quant_max: Some(15), ..ObserverConfig::new(ObserverKind::MinMax) };
    let spec = QConfigSpec { default: Observers { activation: Some(narrow), weight: None }, ..QConfigSpec::default() };
    let refusal = prepare_qat(&classifier(), &spec).unwrap_err().to_string();
    assert!(refusal.contains("saturate"), "{refusal}");
}
