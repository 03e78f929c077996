//! INT8 models in a program that only opens the library: the pass `accelerate` under each of libtorch's ways to run a model,
//! and from many threads at once.

#![cfg(feature = "torch")]

mod programs;

use std::path::PathBuf;
use std::sync::LazyLock;

use jitquant::Quantizer;
use jitquant::ir::{Module, Tensor};
use programs::{alone, build_with_libtorch, library_folder, root};

/// The program, and an INT8 model in portable and in native form.
static DESK: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("executor");
    build_with_libtorch(&root().join("tests/programs/executor.cpp"), &program, &["-ldl", "-pthread"]);
    let float = Module::load(root().join("examples/digits/digits.pt")).unwrap();
    let mut prepared = Quantizer::static_ptq().prepare(&float).unwrap();
    let pixels: Vec<f32> = (0..16 * 784).map(|i| (i * 7919 % 1000) as f32 / 1000.0).collect();
    prepared.calibrate(&[Tensor::from_slice(&pixels, &[16, 1, 28, 28]).unwrap()]).unwrap();
    let portable = prepared.convert().unwrap().module;
    portable.save(folder.path().join("portable.pt")).unwrap();
    jitquant::pass::to_native(&portable).unwrap().save(folder.path().join("native.pt")).unwrap();
    (folder, program)
});

/// Runs the program: the largest difference between two runs relative to the largest answer, native and stock operators.
fn run(model: &str, flavour: &str, threads: usize, rounds: usize, passes: Option<&str>) -> (f64, usize, usize) {
    let mut command = alone(&DESK.1);
    command.arg(library_folder().join("libjitquant.so")).arg(DESK.0.path().join(model)).arg(flavour);
    command.arg(threads.to_string()).arg(rounds.to_string());
    if let Some(passes) = passes {
        command.env("JITQUANT_PASSES", passes);
    }
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{flavour}: {:?}\n{out}\n{err}", output.status);
    assert!(!err.contains("jitquant:"), "{err}");
    let numbers: Vec<f64> = out.split([' ', ',', '\n']).filter_map(|word| word.parse().ok()).collect();
    (numbers[0] / numbers[1], numbers[2] as usize, numbers[3] as usize)
}

#[test]
fn graphs_become_native_under_every_executor() {
    for flavour in ["plain", "frozen", "optimized", "inference"] {
        let (_, native, stock) = run("portable.pt", flavour, 1, 4, None);
        assert!(native == 0 && stock > 5, "off unless asked for: {flavour}, native {native}, stock {stock}");
        let (difference, native, stock) = run("portable.pt", flavour, 1, 4, Some("accelerate"));
        assert!(native > 5 && stock == 0, "{flavour}: native {native}, stock {stock}");
        // Native layers round less often: the answers move by some steps.
        assert!(difference < 0.1, "{flavour}: {difference}");
    }
    // The simple executor optimizes nothing, so that no pass is asked.
    let (difference, native, _) = run("portable.pt", "simple", 1, 4, Some("accelerate"));
    assert!(difference == 0.0 || native > 5, "{difference}");
    // A model in native form needs no pass.
    for flavour in ["plain", "frozen", "simple"] {
        let (difference, native, stock) = run("native.pt", flavour, 1, 4, None);
        assert!(
            difference == 0.0 && native > 5 && stock == 0,
            "{flavour}: {difference}, native {native}, stock {stock}"
        );
    }
}

#[test]
fn many_threads_run_one_model() {
    // A minute with JITQUANT_LONG=1.
    let rounds = if std::env::var_os("JITQUANT_LONG").is_some() { 3000 } else { 20 };
    for (model, passes) in [("native.pt", None), ("portable.pt", Some("accelerate,prepack"))] {
        let (difference, native, _) = run(model, "plain", 32, rounds, passes);
        assert!(native > 5 && difference < 0.1, "{model}: {difference}, native {native}");
    }
}
