//! include/jitquant.hpp in a C++ program: signatures, results, exceptions.

#![cfg(feature = "torch")]

mod programs;

use programs::{build_with_torch, root, run};

#[test]
fn the_header_keeps_libtorchs_signatures_and_throws_its_errors() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("header");
    build_with_torch(&root().join("tests/programs/header.cpp"), &program);
    assert_eq!(run::<&str>(&program, &[], &[]), "ok\n");
}
