//! examples/rust-app: a Rust program with tch.
//!
//! `cargo build` in the example's own folder would build torch-sys and jitquant once more (minutes), as cargo names what it
//! builds after the workspace. So its source is compiled here, as a module, and run; JITQUANT_LONG=1 builds the project.

#![cfg(feature = "tch")]

mod programs;

use std::path::{Path, PathBuf};

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

/// Whether to build whole projects; says so where not.
fn is_long() -> bool {
    let long = std::env::var_os("JITQUANT_LONG").is_some();
    if !long {
        eprintln!("skipped: JITQUANT_LONG=1 builds a project of its own");
    }
    long
}

/// What `cargo run` of the project in `folder` says.
fn run_project(folder: &Path, arguments: &[PathBuf]) -> String {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(root().join("target/rust-app"))
        .arg("--")
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_project_builds_by_itself() {
    if !is_long() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let digits = root().join("examples/digits");
    let mut arguments = ["digits.pt", "calibration.npz", "heldout.npz"].map(|file| digits.join(file)).to_vec();
    arguments.push(folder.path().join("digits.int8.pt"));
    check(&run_project(&root().join("examples/rust-app"), &arguments));
}

#[test]
fn a_project_without_tch_builds_by_itself() {
    if !is_long() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "[package]\nname = \"no-tch\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
         jitquant = {{ path = {:?}, default-features = false, features = [\"torch\"] }}\n",
        root()
    );
    std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    let main = "fn main() {
    let module = jitquant::ir::Module::load(std::env::args().nth(1).unwrap()).unwrap();
    println!(\"{} graph nodes\", module.graph(\"forward\").unwrap().all_nodes().len());
}
";
    std::fs::write(folder.path().join("src/main.rs"), main).unwrap();
    std::fs::copy(root().join("examples/rust-app/build.rs"), folder.path().join("build.rs")).unwrap();
    let said = run_project(folder.path(), &[root().join("examples/digits/digits.pt")]);
    assert!(said.ends_with(" graph nodes\n") && !said.starts_with("0 "), "{said}");
}
