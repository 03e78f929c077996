//! examples/c-app: a C program that quantizes with libjitquant.so alone.

#![cfg(feature = "torch")]

mod programs;

use programs::{build_c, root, run};

#[test]
fn the_c_example_quantizes_and_compares() {
    let folder = tempfile::tempdir().unwrap();
    let (app, int8) = (folder.path().join("c-app"), folder.path().join("digits.int8.pt"));
    let options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"];
    build_c(&options, &root().join("examples/c-app/main.c"), &app);
    let digits = root().join("examples/digits");
    let said = run(&app, &[&digits.join("digits.pt"), &digits.join("sixteen.npy"), &int8], &[]);
    assert!(said.contains("[4/4] inserting observers"), "{said}");
    assert!(said.contains("9 layers are INT8, 0 stay in float"), "{said}");
    assert!(said.contains("same answer as float: 8 of 8"), "{said}");
    let sqnr = said.split("SQNR ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(sqnr.is_some_and(|sqnr| sqnr > 20.0), "{said}");
    assert!(int8.metadata().unwrap().len() < 200_000);
}

#[test]
fn the_c_example_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("c-app");
    build_c(&["-std=c99"], &root().join("examples/c-app/main.c"), &app);
    let samples = root().join("examples/digits/sixteen.npy");
    let output =
        std::process::Command::new(&app).args([&samples, &samples, &folder.path().join("out.pt")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("loading: ") && said.contains("sixteen.npy: a NumPy array, not a model"), "{said}");
}
