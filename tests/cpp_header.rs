//! include/jitquant.hpp in a C++ program: signatures, results, exceptions.

#![cfg(feature = "torch")]

mod programs;

use std::process::Command;

use programs::{build_with_torch, libtorch, root, run};

#[test]
fn the_header_keeps_libtorchs_signatures_and_throws_its_errors() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("header");
    build_with_torch(&root().join("tests/programs/header.cpp"), &program);
    assert_eq!(run::<&str>(&program, &[], &[]), "ok\n");
}

/// Checks the syntax of a program that includes libtorch's quantization headers and ours, with all warnings that careful
/// programs turn on.
fn check_beside_libtorch(compiler: &str, standard: &str) {
    let include = |folder: &str| format!("-isystem{}", libtorch().join(folder).display());
    let output = Command::new(compiler)
        .args([standard, "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"])
        .args([&include("include"), &include("include/torch/csrc/api/include")])
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join("tests/programs/beside_libtorch.cpp"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler} {standard}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_header_compiles_beside_libtorchs_own() {
    check_beside_libtorch("c++", "-std=c++17");
    check_beside_libtorch("c++", "-std=c++20");
}

#[test]
fn the_header_compiles_with_clang() {
    match Command::new("clang++").arg("--version").output() {
        Ok(_) => {
            ["-std=c++17", "-std=c++20"].into_iter().for_each(|standard| check_beside_libtorch("clang++", standard))
        }
        Err(_) => eprintln!("skipped: clang++ is not installed"),
    }
}
