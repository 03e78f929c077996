//! examples/rust-app: a Rust program with tch.
//!
//! `cargo build` in the example's own folder would build torch-sys and jitquant once more (minutes), as cargo names what it
//! builds after the workspace. So its source is compiled here, as a module, and run; JITQUANT_LONG=1 builds the project.

#![cfg(feature = "tch")]

mod programs;

// Its main is not called here.
#[allow(dead_code)]
#[path = "../examples/rust-app/src/main.rs"]
mod app;

use programs::root;

fn check(said: &str) {
    assert!(said.contains("9 layers are INT8, 0 stay in float"), "{said}");
    let number = |before: &str| -> f64 {
        let rest = said.split(before).nth(1).unwrap_or_else(|| panic!("{said}"));
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(number("same answer as float: ") >= 98.0, "{said}");
    assert!(number("SQNR ") > 20.0, "{said}");
}

#[test]
fn the_rust_example_quantizes_and_compares() {
    let folder = tempfile::tempdir().unwrap();
    let digits = root().join("examples/digits");
    let int8 = folder.path().join("digits.int8.pt");
    let said =
        app::quantize(&digits.join("digits.pt"), &digits.join("calibration.npz"), &digits.join("heldout.npz"), &int8)
            .unwrap();
    check(&said);
    assert!(int8.metadata().unwrap().len() < 200_000);

    let wrong = app::quantize(&int8, &digits.join("digits.pt"), &digits.join("heldout.npz"), &int8);
    assert!(wrong.is_err());
}

#[test]
fn the_project_builds_by_itself() {
    if std::env::var_os("JITQUANT_LONG").is_none() {
        eprintln!("skipped: JITQUANT_LONG=1 builds examples/rust-app");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let digits = root().join("examples/digits");
    let output = std::process::Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--manifest-path"])
        .arg(root().join("examples/rust-app/Cargo.toml"))
        .arg("--target-dir")
        .arg(root().join("target/rust-app"))
        .arg("--")
        .args(["digits.pt", "calibration.npz", "heldout.npz"].map(|file| digits.join(file)))
        .arg(folder.path().join("digits.int8.pt"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check(&String::from_utf8_lossy(&output.stdout));
}
