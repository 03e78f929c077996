//! Modules to prepare, their inputs, and how results are compared.

use std::path::Path;

use jitquant::ir::{IValue, Module, Node, Tensor};

/// A module of this suite that Python scripted or traced.
pub fn file(name: &str) -> Module {
    load(&format!("tests/prepare/scripted/{name}.pt"))
}

/// A module of the suite of `insert_observers`.
pub fn observers_file(name: &str) -> Module {
    load(&format!("tests/insert_observers/scripted/{name}.pt"))
}

fn load(path: &str) -> Module {
    Module::load(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Numbers from -1 to 1 that are the same everywhere.
pub fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x2545_F491_4F6C_DD1D);
    let values: Vec<f32> = (0..shape.iter().product::<i64>())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(&values, shape).unwrap()
}

pub fn input(shape: &[i64]) -> IValue {
    random(shape, 1 + shape.len() as u64).into()
}

/// Checks that both compute the same: each result within 1e-5 of the largest value in it.
pub fn assert_same(ours: &Module, theirs: &Module, inputs: &[IValue]) {
    let (ours, theirs) = (ours.forward(inputs).unwrap(), theirs.forward(inputs).unwrap());
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for (ours, theirs) in std::iter::zip(ours.tensors(), theirs.tensors()) {
        assert_eq!(ours.shape(), theirs.shape());
        let (ours, theirs) = (ours.to_f32_vec().unwrap(), theirs.to_f32_vec().unwrap());
        let largest = theirs.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert!(largest > 0.0, "an output of nothing but zeros shows nothing");
        for (a, b) in std::iter::zip(ours, theirs) {
            assert!((a - b).abs() <= 1e-5 * largest, "{a} and {b}, the largest value being {largest}");
        }
    }
}

/// How many nodes of `kind` forward has.
pub fn count(module: &Module, kind: &str) -> usize {
    module.graph("forward").unwrap().all_nodes().iter().filter(|node| node.kind() == kind).count()
}

/// The paths that nodes of `kind` come from.
pub fn scopes(module: &Module, kind: &str) -> Vec<String> {
    let graph = module.graph("forward").unwrap();
    let of_kind = |node: &Node<'_>| node.kind() == kind;
    graph.all_nodes().into_iter().filter(of_kind).map(|node| node.scope().unwrap()).collect()
}
