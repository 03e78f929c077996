//! 32 threads on one INT8 model, under each of libtorch's executors: every result is that of the first call.
//!
//! A second for each way to run it; JITQUANT_LONG=1 gives a minute to the way that most applications use.

#![cfg(feature = "torch")]

mod programs;

use std::path::PathBuf;
use std::sync::LazyLock;

use jitquant::Quantizer;
use jitquant::ir::{Module, Tensor};
use programs::{build_with_torch, root, run};

/// The program, and the digits model in INT8.
static BUILT: LazyLock<(tempfile::TempDir, PathBuf, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let (program, int8) = (folder.path().join("app"), folder.path().join("digits.int8.pt"));
    build_with_torch(&root().join("tests/executors/app.cpp"), &program);
    let float = Module::load(root().join("examples/digits/digits.pt")).unwrap();
    let mut prepared = Quantizer::static_ptq().prepare(&float).unwrap();
    let values: Vec<f32> = (0..8 * 28 * 28).map(|i| ((i * 7919) % 1000) as f32 / 250.0 - 2.0).collect();
    prepared.calibrate(&[Tensor::from_slice(&values, &[8, 1, 28, 28]).unwrap()]).unwrap();
    prepared.convert().unwrap().module.save(&int8).unwrap();
    (folder, program, int8)
});

fn serve(mode: &str, seconds: &str) {
    let (_, program, int8) = &*BUILT;
    let said = run(program, &[int8.as_os_str(), mode.as_ref(), seconds.as_ref(), "32".as_ref()], &[]);
    let number = |before: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(before));
        line.unwrap_or_else(|| panic!("{said}")).parse().unwrap()
    };
    assert!(number("calls: ") >= 5 * 32, "{mode}: {said}");
    assert_eq!(number("different: "), 0, "{mode}: {said}");
}

#[test]
fn every_executor_serves_32_threads() {
    for mode in [
        "accelerated",
        "accelerated+simple",
        "accelerated+frozen+inference",
        "accelerated+frozen+simple",
        "passes",
        "passes+frozen+inference",
        "passes+frozen+simple",
        "passes+optimized",
        "passes+accelerated+frozen",
    ] {
        serve(mode, "0.5");
    }
}

#[test]
fn a_minute_of_32_threads() {
    if std::env::var_os("JITQUANT_LONG").is_none() {
        eprintln!("skipped: JITQUANT_LONG=1 runs it");
        return;
    }
    serve("passes+frozen+inference", "60");
}
