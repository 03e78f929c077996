//! include/jitquant.h says what src/capi does, and C and C++ compilers take it.
//!
//! After a change to src/capi, `JITQUANT_WRITE_HEADER=1 cargo test --test capi_header` writes the header anew.

#![cfg(feature = "torch")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of src/capi in the order in which the header has them.
const PARTS: [&str; 18] = [
    "status",
    "buffer",
    "strings",
    "bytes",
    "value",
    "module",
    "run_into",
    "signature",
    "report",
    "quantizer",
    "qat",
    "control",
    "node",
    "passes",
    "graph_passes",
    "accelerate",
    "plugin",
    "zero_touch",
];
const LAST: &str = "log";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for part in PARTS.iter().chain([&LAST]) {
        builder = builder.with_src(root().join(format!("src/capi/{part}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_the_one_that_the_code_gives() {
    let path = root().join("include/jitquant.h");
    let fresh = generated();
    if std::env::var_os("JITQUANT_WRITE_HEADER").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = checked_in.lines().zip(fresh.lines()).position(|(old, new)| old != new);
    assert!(
        checked_in == fresh,
        "include/jitquant.h is not what src/capi gives, from line {:?} on; \
         JITQUANT_WRITE_HEADER=1 cargo test --test capi_header writes it anew",
        differs.map(|line| line + 1)
    );
}

#[test]
fn every_function_is_declared_and_described() {
    let header = generated();
    let mut functions = 0;
    for part in std::fs::read_dir(root().join("src/capi")).unwrap() {
        let source = std::fs::read_to_string(part.unwrap().path()).unwrap();
        for rest in source.split("extern \"C\" fn jq_").skip(1) {
            let name = rest.split('(').next().unwrap();
            let declared = header.find(&format!("jq_{name}(")).unwrap_or_else(|| panic!("jq_{name} is not declared"));
            let before = header[..declared].lines().rev().nth(1).unwrap_or_default();
            assert!(before.starts_with("//"), "jq_{name} has no description before it, but '{before}'");
            functions += 1;
        }
    }
    assert!(functions > 50, "{functions} functions were looked at");
}

fn compiles(language: &str, standard: &str, compiler: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join(format!("includes.{language}"));
    // Twice: the guard works. A use of a structure: it is complete.
    let text = "#include <jitquant.h>\n#include <jitquant.h>\n\
                jq_status first(const jq_buffer *b) { return b->dims ? JQ_OK : JQ_ERROR_ARGUMENT; }\n";
    std::fs::write(&source, text.replace("jq_status first", "extern int use;\njq_status first")).unwrap();
    let output = Command::new(compiler)
        .arg(format!("-std={standard}"))
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(Path::new(&source))
        .output()
        .unwrap();
    assert!(output.status.success(), "{standard}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn c_and_cpp_compilers_take_it_without_a_warning() {
    let compiler = |variable: &str, default: &str| std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    compiles("c", "c99", &compiler("CC", "cc"));
    compiles("c", "c17", &compiler("CC", "cc"));
    compiles("cpp", "c++17", &compiler("CXX", "c++"));
    compiles("cpp", "c++20", &compiler("CXX", "c++"));
}
