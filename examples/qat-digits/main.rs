//! Trains the demo's digit classifier with weights of few bits, through tch: `cargo run --example qat-digits [BITS]`.
//!
//! Post-training quantization rounds 4-bit weights to steps too coarse for the network; training finds weights that
//! do with them. Data: the 500 digits of `examples/digits/calibration.npz`, checked on the 1,000 of `heldout.npz`.

use std::path::Path;

use jitquant::Quantizer;
use jitquant::ir::{IValue, Module};
use jitquant::observer::{ObserverConfig, ObserverKind};
use jitquant::qat::prepare_qat;
use jitquant::qconfig::{Observers, QConfigSpec};
use tch::{Kind, Tensor, no_grad};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const EPOCHS: usize = 12;
const BATCH: i64 = 25;
const LEARNING_RATE: f64 = 2e-3;

/// `x` and `labels` of a file.
fn digits(path: &Path) -> Fallible<(Tensor, Tensor)> {
    let arrays = Tensor::read_npz(path)?;
    let find = |name: &str| arrays.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor.shallow_clone());
    Ok((find("x").ok_or("no array x")?, find("labels").ok_or("no array labels")?))
}

fn accuracy(module: &Module, (x, labels): &(Tensor, Tensor)) -> Fallible<f64> {
    let logits = Tensor::try_from(module.forward(&[x.shallow_clone()])?)?;
    Ok(logits.argmax(1, false).eq_tensor(labels).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]))
}

fn main() -> Fallible<()> {
    let bits: u32 = std::env::args().nth(1).map_or(Ok(4), |bits| bits.parse())?;
    if !(2..=8).contains(&bits) {
        return Err("BITS should be 2 to 8".into());
    }
    tch::manual_seed(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let (x, labels) = digits(&folder.join("calibration.npz"))?;
    let held_out = digits(&folder.join("heldout.npz"))?;
    let float = Module::load(folder.join("digits.pt"))?;

    let half = 1 << (bits - 1);
    let weight = ObserverConfig {
        quant_min: Some(-half),
        quant_max: Some(half - 1),
        ..ObserverConfig::weight(ObserverKind::PerChannelMinMax)
    };
    let activation = ObserverConfig::new(ObserverKind::MovingAverageMinMax);
    let qconfig = QConfigSpec {
        default: Observers { activation: Some(activation), weight: Some(weight) },
        ..QConfigSpec::default()
    };

    let mut ptq = Quantizer::static_ptq().qconfig(qconfig.clone()).prepare(&float)?;
    ptq.calibrate(&[x.shallow_clone()])?;
    let ptq = accuracy(&ptq.convert()?.module, &held_out)?;

    let mut qat = prepare_qat(&float, &qconfig)?;
    qat.calibrate(&[x.shallow_clone()])?;
    qat.fake_quantize(true)?;
    let untrained = accuracy(&qat.convert()?.module, &held_out)?;
    let mut parameters: Vec<Tensor> = qat.parameters()?.iter().map(|(_, tensor)| tensor.into()).collect();
    let mut velocity: Vec<Tensor> = parameters.iter().map(|tensor| tensor.detach().zeros_like()).collect();
    for epoch in 0..EPOCHS {
        qat.module().train(true)?;
        // Statistics of batch norms settle first; then they stay, as they will in the INT8 model.
        qat.freeze_batch_norms(epoch >= EPOCHS / 2)?;
        let rate = LEARNING_RATE * 0.5 * (1.0 + (std::f64::consts::PI * epoch as f64 / EPOCHS as f64).cos());
        let order = Tensor::randperm(x.size()[0], (Kind::Int64, tch::Device::Cpu));
        let mut total = 0.0;
        for batch in order.split(BATCH, 0) {
            let inputs = [IValue::from(&x.index_select(0, &batch))];
            let logits = Tensor::try_from(qat.module().call_with_gradients("forward", &inputs)?)?;
            let loss = logits.cross_entropy_for_logits(&labels.index_select(0, &batch));
            loss.backward();
            total += loss.double_value(&[]) * batch.size()[0] as f64 / x.size()[0] as f64;
            no_grad(|| {
                for (parameter, velocity) in parameters.iter_mut().zip(&mut velocity) {
                    *velocity = &*velocity * 0.9 + parameter.grad();
                    let _ = parameter.g_sub_(&(&*velocity * rate));
                    parameter.zero_grad();
                }
            });
        }
        qat.module().train(false)?;
        println!("epoch {:>2}: loss {total:.4}", epoch + 1);
    }
    qat.observe(false)?;
    let trained = accuracy(&qat.convert()?.module, &held_out)?;

    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    println!("accuracy on {} held-out digits, {bits}-bit weights and 8-bit activations", held_out.1.size()[0]);
    println!("float                              {}", percent(accuracy(&float, &held_out)?));
    println!("post-training quantization         {}", percent(ptq));
    println!("before training                    {}", percent(untrained));
    println!("after {EPOCHS} epochs                    {}", percent(trained));
    Ok(())
}
