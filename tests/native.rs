//! The native form: the same answers as the portable one, on bytes, with what stands around layers fused into them.
#![cfg(feature = "torch")]

mod support;

use std::collections::BTreeMap;

use jitquant::Quantizer;
use jitquant::ir::{IValue, Module, Tensor};
use jitquant::pass::{stock_operators, to_native};
use support::{classifier, images, noise};

fn portable(model: &Module, batches: &[Tensor]) -> Module {
    let mut prepared = Quantizer::static_ptq().prepare(model).unwrap();
    for batch in batches {
        prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    }
    prepared.convert().unwrap().module
}

fn answer(model: &Module, x: &Tensor) -> Vec<f32> {
    model.forward(&[x.clone()]).unwrap().as_tensor().unwrap().to_vec().unwrap()
}

/// Signal to noise, in dB.
fn sqnr(signal: &[f32], other: &[f32]) -> f64 {
    let power = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let noise = power(&mut signal.iter().zip(other).map(|(a, b)| f64::from(a - b)));
    10.0 * (power(&mut signal.iter().map(|a| f64::from(*a))) / noise.max(1e-30)).log10()
}

fn operators(model: &Module) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in model.graph("forward").unwrap().all_nodes() {
        *counts.entry(node.kind().to_owned()).or_default() += 1;
    }
    counts.retain(|kind, _| kind.starts_with("jitquant::") || kind.starts_with("aten::"));
    counts
}

#[test]
fn a_classifier_runs_on_bytes_and_is_no_worse() {
    let model = classifier();
    let batches: Vec<_> = (0..4).map(|seed| images(4, 100 + seed)).collect();
    let stock = portable(&model, &batches);
    let native = to_native(&stock).unwrap();
    assert_eq!(stock_operators(&native).unwrap(), BTreeMap::new(), "{}", native.graph("forward").unwrap());
    let x = images(16, 7);
    let float = answer(&model, &x);
    let (theirs, ours) = (sqnr(&float, &answer(&stock, &x)), sqnr(&float, &answer(&native, &x)));
    println!("portable {theirs:.1} dB, native {ours:.1} dB\n{}", native.graph("forward").unwrap());
    assert!(ours > theirs - 1.0, "{ours} dB, the portable form {theirs} dB");
    // The stock weights are gone, and the file holds ours.
    assert!(native.attributes().iter().all(|attribute| !attribute.name.contains("packed_weight")));
    let loaded = Module::load_bytes(&native.save_bytes().unwrap()).unwrap();
    assert_eq!(answer(&loaded, &x), answer(&native, &x));
    // The portable module is as it was.
    assert!(stock.attributes().iter().any(|attribute| attribute.name.contains("packed_weight")));
    answer(&stock, &x);
}
