//! examples/qat-cpp: training from C++ with torch::optim, built as a user's CMake project.

#![cfg(feature = "torch")]

mod programs;

use std::path::PathBuf;
use std::process::Command;

use programs::{configure, install, libtorch, root, run, said};

#[test]
fn training_in_cpp_restores_what_two_bits_cost() {
    let folder = tempfile::tempdir().unwrap();
    let (prefix, build) = (folder.path().join("prefix"), folder.path().join("build"));
    install(&prefix);
    let configured = configure(&root().join("examples/qat-cpp"), &build, &prefix, &libtorch());
    assert!(configured.status.success(), "{}", said(&configured));
    let built = Command::new("cmake").arg("--build").arg(&build).output().unwrap();
    assert!(built.status.success(), "{}", said(&built));

    let (model, int8) = (root().join("examples/digits/digits.pt"), folder.path().join("digits.int8.pt"));
    let (bits, epochs) = (PathBuf::from("2"), PathBuf::from("3"));
    let arguments = [&model, &build.join("calibration"), &build.join("heldout"), &int8, &bits, &epochs];
    let out = run(&build.join("qat-cpp"), &arguments, &[]);
    let figure = |line: &str| -> f64 {
        let line = out.lines().find(|found| found.starts_with(line)).unwrap_or_else(|| panic!("{line}: {out}"));
        line.trim_end_matches(" %").rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (float, trained) = (figure("float"), figure("after 3 epochs"));
    let (nearest, post_training) = (figure("each weight"), figure("post-training"));
    let (first, last) = (figure("epoch 1: loss"), figure("epoch 3: loss"));
    assert!(last < first, "{out}");
    assert!(float > 98.0 && nearest < 95.0 && trained > 96.5, "{out}");
    assert!(post_training > 96.5, "learned rounding: {out}");
    assert!(int8.metadata().unwrap().len() < 200_000);
}
