//! Scripted and traced files: what Python's front end writes. scripted/generate.py made them.

use std::path::Path;

use jitquant::ir::{IValue, Module};

use crate::canonical::Canonical;
use crate::compare::{Case, QINT8, random};

pub fn file(name: &str) -> Module {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/insert_observers/scripted");
    Module::load(folder.join(format!("{name}.pt"))).unwrap()
}

const IMAGE: &[i64] = &[1, 2, 8, 8];
const ROWS: &[i64] = &[2, 4];

#[test]
fn functional_relu() {
    Case::new(file("FunctionalRelu"), &[IMAGE]).check(9);
}

#[test]
fn functional_linear() {
    Case::new(file("FunctionalLinear"), &[ROWS]).check(5);
}

#[test]
fn functional_pooling() {
    Case::new(file("FunctionalPooling"), &[IMAGE]).check(5);
}

#[test]
fn functional_norms() {
    Case::new(file("FunctionalNorms"), &[IMAGE]).check(15);
}

#[test]
fn activation_modules() {
    Case::new(file("Activations"), &[ROWS]).check(4);
}

#[test]
fn a_function_that_hands_observation_on() {
    Case::new(file("PassingFunction"), &[IMAGE]).check(5);
}

#[test]
fn a_function_that_computes_stays_in_float() {
    Case::new(file("ComputingFunction"), &[ROWS]).check(3);
}

#[test]
fn branches_that_raise() {
    Case::new(file("Raising"), &[ROWS]).check(5);
}

#[test]
fn lists_and_dictionaries_of_modules() {
    Case::new(file("Layers"), &[ROWS]).check(11);
}

#[test]
fn a_module_behind_an_interface() {
    Case::new(file("Interface"), &[ROWS]).check(5);
}

#[test]
fn forked_calls() {
    Case::new(file("Forked"), &[ROWS]).check(6);
}

#[test]
fn optional_arguments() {
    let parts = IValue::tensor_list([random(ROWS, 5)]);
    Case::new(file("OptionalSum"), &[ROWS]).input(IValue::None).input(parts).check(7);
}

#[test]
fn residual_networks() {
    Case::new(file("Residual"), &[IMAGE]).check(37);
    Case::new(file("ResidualTraced"), &[IMAGE]).check(77);
}

#[test]
fn attention() {
    Case::new(file("Attention"), &[&[1, 3, 4]]).check(14);
    Case::new(file("AttentionTraced"), &[&[1, 3, 4]]).check(14);
    Case::new(file("AttentionTraced"), &[&[1, 3, 4]]).dynamic(QINT8).check(6);
}

#[test]
fn depthwise_and_transposed_convolutions() {
    Case::new(file("DepthwiseTraced"), &[IMAGE]).check(25);
}

#[test]
fn recurrent_layers_stay_in_float() {
    Case::new(file("Recurrent"), &[&[1, 3, 4]]).check(3);
    Case::new(file("Recurrent"), &[&[1, 3, 4]]).dynamic(QINT8).check(2);
}

/// Larger models, where there are some: `JITQUANT_MODELS=FOLDER cargo test -- --ignored`, each taking an image.
#[test]
#[ignore = "needs a folder of models"]
fn models_of_a_folder() {
    let folder = std::env::var("JITQUANT_MODELS").expect("JITQUANT_MODELS names a folder of models that take an image");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let case = Case::new(Module::load(&path).unwrap(), &[&[1, 3, 96, 96]]);
        match case.theirs() {
            Ok(_) => println!("{}: {} observers", path.display(), case.check_any().canonical.observers.len()),
            Err(refusal) => {
                let refusal = refusal.lines().next().unwrap_or_default().to_owned();
                let ours = Canonical::of(&case.ours().unwrap()).observers.len();
                println!("{}: ours {ours} observers, libtorch's none: {refusal:.90}", path.display());
            }
        }
    }
}
