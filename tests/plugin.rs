//! libjitquant.so in a program that only opens it: operators, copies of the library, libtorch of another version.

#![cfg(feature = "torch")]

mod programs;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use programs::{alone, build_with_libtorch, library_folder, root};

static PROGRAM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("plugin");
    build_with_libtorch(&root().join("tests/programs/plugin.cpp"), &program, &["-ldl"]);
    (folder, program)
});

fn open(libraries: &[&Path]) -> (String, String, Output) {
    let output = alone(&PROGRAM.1).args(libraries).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output)
}

fn library() -> PathBuf {
    library_folder().join("libjitquant.so")
}

const WORKS: &str = "before: 0\nafter: 1\nCPU 1, Meta 1\nscale 4, zero point 64\njq_init 0: \n";

#[test]
fn opening_it_registers_its_operators() {
    let (out, err, _) = open(&[&library()]);
    assert_eq!((out.as_str(), err.as_str()), (WORKS, ""));
}

#[test]
fn opening_it_twice_or_a_second_copy_is_harmless() {
    let copy = PROGRAM.0.path().join("libjitquant-copy.so");
    std::fs::copy(library(), &copy).unwrap();
    let (out, err, _) = open(&[&library(), &library(), &copy, &library()]);
    assert_eq!((out.as_str(), err.as_str()), (WORKS, ""));
}

/// `JITQUANT_OTHER_LIBRARY` names a libjitquant.so that was really built for another version (`make matrix` sets it).
#[test]
fn a_library_built_for_another_version_is_refused() {
    let Some(other) = std::env::var_os("JITQUANT_OTHER_LIBRARY") else {
        return;
    };
    let (out, err, output) = open(&[Path::new(&other)]);
    assert!(output.status.success(), "no crash: {output:?}");
    assert!(err.starts_with("jitquant: this jitquant library was built for libtorch 2."), "{err}");
    assert!(out.starts_with("before: 0\nafter: 0\njq_init 8: this jitquant library was built for"), "{out}");
}

#[test]
fn a_libtorch_of_another_version_is_refused_with_a_message() {
    // The same library, told that it was built for another version, with functions that this libtorch lacks.
    let mut bytes = std::fs::read(library()).unwrap();
    let ours = jitquant::torch_version();
    let ours = ours.rsplit_once('.').unwrap().0;
    let text = format!("jitquant is built for libtorch {ours}");
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).expect("the library says it");
    bytes[at + text.len() - 1] = b'0' + (bytes[at + text.len() - 1] - b'0' + 1) % 10;
    for function in ["_ZN5torch3jit15registerPrePass", "_ZN5torch3jit16registerPostPass"] {
        let at = bytes.windows(function.len()).position(|window| window == function.as_bytes()).expect("it is called");
        bytes[at + function.len() - 1] = b'S';
    }
    let other = PROGRAM.0.path().join("libjitquant-other.so");
    std::fs::write(&other, bytes).unwrap();
    let (out, err, output) = open(&[&other]);
    assert!(output.status.success(), "no crash: {output:?}");
    let refusal = format!("but the process has libtorch {ours};");
    assert!(
        err.starts_with("jitquant: this jitquant library was built for libtorch 2.") && err.contains(&refusal),
        "{err}"
    );
    assert!(out.starts_with("before: 0\nafter: 0\njq_init 8: this jitquant library was built for"), "{out}");
}
