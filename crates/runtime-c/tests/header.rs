//! include/jitquant_runtime.h says what this crate does, and C and C++ compilers take it.
//!
//! After a change here, `JITQUANT_WRITE_HEADER=1 cargo test -p jitquant-runtime-c --test header` writes the header anew.

use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn generated() -> String {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut builder =
        cbindgen::Builder::new().with_config(cbindgen::Config::from_file(own.join("cbindgen.toml")).unwrap());
    for part in ["status", "tensor", "model"] {
        builder = builder.with_src(own.join(format!("src/{part}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    // What Rust says of safety is for Rust.
    let header = String::from_utf8(header).unwrap();
    let note = "//\n// # Safety\n// As the header's first lines say.\n";
    header.replace(note, "")
}

#[test]
fn the_header_is_the_one_that_the_code_gives() {
    let path = root().join("include/jitquant_runtime.h");
    let fresh = generated();
    if std::env::var_os("JITQUANT_WRITE_HEADER").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = checked_in.lines().zip(fresh.lines()).position(|(old, new)| old != new);
    assert!(
        checked_in == fresh,
        "include/jitquant_runtime.h is not what this crate gives, from line {:?} on; \
         JITQUANT_WRITE_HEADER=1 cargo test -p jitquant-runtime-c --test header writes it anew",
        differs.map(|line| line + 1)
    );
    assert!(!fresh.contains("Safety"), "{fresh}");
}

fn compiles(language: &str, standard: &str, compiler: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join(format!("includes.{language}"));
    // Twice: the guard works. A use of a structure: it is complete.
    let text = "#include <jitquant_runtime.h>\n#include <jitquant_runtime.h>\nextern int use;\n\
                jqr_status first(const jqr_tensor *t) { return t->data ? JQR_OK : JQR_ERROR; }\n";
    std::fs::write(
        &source,
        text.replace("jqr_status first", "jqr_status first(const jqr_tensor *);\njqr_status first"),
    )
    .unwrap();
    let output = Command::new(compiler)
        .arg(format!("-std={standard}"))
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(&source)
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
}
