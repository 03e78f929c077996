//! examples/qat-cpp: training from C++ with torch::optim, built as a user's CMake project.

#![cfg(feature = "torch")]

mod programs;

use std::path::PathBuf;
use std::process::Command;

use programs::{configure, install, libtorch, root, run, said};

#[test]
fn training_in_cpp_restores_what_four_bits_cost() {
    let folder = tempfile::tempdir().unwrap();
    let (prefix, build) = (folder.path().join("prefix"), folder.path().join("build"));
    install(&prefix);
    let configured = configure(&root().join("examples/qat-cpp"), &build, &prefix, &libtorch());
    assert!(configured.status.success(), "{}", said(&configured));
    let built = Command::new("cmake").arg("--build").arg(&build).output().unwrap();
    assert!(built.status.success(), "{}", said(&built));

    let (model, int8) = (root().join("examples/digits/digits.pt"), folder.path().join("digits.int8.pt"));
    let arguments = [&model, &build.join("calibration"), &build.join("heldout"), &int8, &PathBuf::from("4")];
    let out = run(&build.join("qat-cpp"), &arguments, &[]);
    let figure = |line: &str| -> f64 {
        let line = out.lines().find(|found| found.starts_with(line)).unwrap_or_else(|| panic!("{line}: {out}"));
        line.trim_end_matches(" %").rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (float, post_training, trained) = (figure("float"), figure("post-training"), figure("after 4 epochs"));
    let (first, last) = (figure("epoch 1: loss"), figure("epoch 4: loss"));
    assert!(last < first, "{out}");
    assert!(float > 98.0 && post_training < trained && trained > float - 1.5, "{out}");
    assert!(int8.metadata().unwrap().len() < 200_000);
}
