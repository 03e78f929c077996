//! Trains the demo's digit classifier with weights of few bits, through tch:
//! `cargo run --example qat-digits [BITS]… [--curves FILE.svg]`.
//!
//! Post-training quantization rounds 4-bit weights to steps too coarse for the network; training finds weights that
//! do with them. Data: the 500 digits of `examples/digits/calibration.npz`, checked on the 1,000 of `heldout.npz`.

mod curves;

use std::path::{Path, PathBuf};

use jitquant::ir::{IValue, Module};
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::qat::{QatModule, prepare_qat};
use jitquant::qconfig::{Observers, QConfigSpec};
use jitquant::{Methods, Quantizer};
use tch::{Kind, Tensor, no_grad};

use curves::Curve;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const EPOCHS: usize = 12;
const BATCH: i64 = 25;
const LEARNING_RATE: f64 = 2e-3;

/// Digits and what they are.
struct Digits {
    x: Tensor,
    labels: Tensor,
}

impl Digits {
    fn read(path: &Path) -> Fallible<Self> {
        let arrays = Tensor::read_npz(path)?;
        let find =
            |name: &str| arrays.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor.shallow_clone());
        Ok(Self { x: find("x").ok_or("no array x")?, labels: find("labels").ok_or("no array labels")? })
    }

    /// The share, in percent, that `module` reads rightly.
    fn accuracy(&self, module: &Module) -> Fallible<f64> {
        let logits = Tensor::try_from(module.forward(&[self.x.shallow_clone()])?)?;
        let right = logits.argmax(1, false).eq_tensor(&self.labels).to_kind(Kind::Float);
        Ok(100.0 * right.mean(Kind::Float).double_value(&[]))
    }
}

/// Observers for weights of `bits` bits and activations of eight.
fn observers(bits: u32) -> QConfigSpec {
    let half = 1 << (bits - 1);
    let weight = ObserverConfig {
        quant_min: Some(-half),
        quant_max: Some(half - 1),
        ..ObserverConfig::weight(ObserverKind::PerChannelMinMax)
    };
    let activation = ObserverConfig::new(ObserverKind::MovingAverageMinMax);
    QConfigSpec { default: Observers { activation: Some(activation), weight: Some(weight) }, ..QConfigSpec::default() }
}

/// One pass over the digits by momentum descent; the mean loss.
fn train(qat: &QatModule, digits: &Digits, rate: f64, velocity: &mut [Tensor]) -> Fallible<f64> {
    let mut parameters: Vec<Tensor> = qat.parameters()?.iter().map(|(_, tensor)| tensor.into()).collect();
    let count = digits.x.size()[0];
    let mut total = 0.0;
    for batch in Tensor::randperm(count, (Kind::Int64, tch::Device::Cpu)).split(BATCH, 0) {
        let inputs = [IValue::from(&digits.x.index_select(0, &batch))];
        let logits = Tensor::try_from(qat.module().call_with_gradients("forward", &inputs)?)?;
        let loss = logits.cross_entropy_for_logits(&digits.labels.index_select(0, &batch));
        loss.backward();
        total += loss.double_value(&[]) * batch.size()[0] as f64 / count as f64;
        no_grad(|| {
            for (parameter, velocity) in parameters.iter_mut().zip(velocity.iter_mut()) {
                *velocity = &*velocity * 0.9 + parameter.grad();
                let _ = parameter.g_sub_(&(&*velocity * rate));
                parameter.zero_grad();
            }
        });
    }
    Ok(total)
}

fn run(bits: u32, float: &Module, digits: &Digits, held_out: &Digits) -> Fallible<Curve> {
    tch::manual_seed(1);
    let qconfig = observers(bits);
    // Each weight rounded to the nearest step, and as jitquant does unless told otherwise.
    let post_training = |methods: Methods| -> Fallible<f64> {
        let mut ptq = Quantizer::static_ptq().qconfig(qconfig.clone()).methods(methods).prepare(float)?;
        ptq.calibrate(&[digits.x.shallow_clone()])?;
        held_out.accuracy(&ptq.convert()?.module)
    };
    let (nearest, post_training) = (post_training(Methods::none())?, post_training(Methods::default())?);

    let mut qat = prepare_qat(float, &qconfig)?;
    qat.calibrate(&[digits.x.shallow_clone()])?;
    qat.fake_quantize(true)?;
    let mut velocity: Vec<Tensor> =
        qat.parameters()?.iter().map(|(_, tensor)| Tensor::from(tensor).detach().zeros_like()).collect();
    let mut curve = Curve {
        bits,
        nearest,
        post_training,
        accuracy: vec![held_out.accuracy(&qat.convert()?.module)?],
        loss: Vec::new(),
    };
    for epoch in 0..EPOCHS {
        qat.module().train(true)?;
        qat.observe(true)?;
        // Statistics of batch norms settle first; then they stay, as they will in the INT8 model.
        qat.freeze_batch_norms(epoch >= EPOCHS / 2)?;
        let rate = LEARNING_RATE * 0.5 * (1.0 + (std::f64::consts::PI * epoch as f64 / EPOCHS as f64).cos());
        curve.loss.push(train(&qat, digits, rate, &mut velocity)?);
        qat.module().train(false)?;
        // Held-out digits must leave no trace in the ranges.
        qat.observe(false)?;
        curve.accuracy.push(held_out.accuracy(&qat.convert()?.module)?);
        println!(
            "{bits} bits, epoch {:>2}: loss {:.4}, INT8 on held-out digits {:.1} %",
            epoch + 1,
            curve.loss[epoch],
            curve.accuracy[epoch + 1]
        );
    }
    Ok(curve)
}

fn main() -> Fallible<()> {
    let (mut bits, mut picture) = (Vec::new(), None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--curves" => picture = Some(PathBuf::from(arguments.next().ok_or("--curves FILE.svg")?)),
            number => bits.push(number.parse().ok().filter(|bits| (2..=8).contains(bits)).ok_or("BITS: 2 to 8")?),
        }
    }
    if bits.is_empty() {
        bits.push(4);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let digits = Digits::read(&folder.join("calibration.npz"))?;
    let held_out = Digits::read(&folder.join("heldout.npz"))?;
    let float = Module::load(folder.join("digits.pt"))?;
    let accuracy = held_out.accuracy(&float)?;
    let curves = bits.iter().map(|bits| run(*bits, &float, &digits, &held_out)).collect::<Fallible<Vec<_>>>()?;

    println!("\naccuracy on {} held-out digits, activations of 8 bits", held_out.x.size()[0]);
    println!("weights  float    rounded to nearest  post-training  after {EPOCHS} epochs");
    for curve in &curves {
        let trained = curve.accuracy[EPOCHS];
        let Curve { bits, nearest, post_training, .. } = curve;
        println!("{bits} bits   {accuracy:>5.1} %  {nearest:>16.1} %  {post_training:>11.1} %  {trained:>13.1} %");
    }
    if let Some(path) = picture {
        std::fs::write(&path, curves::draw(&curves, accuracy)?)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
