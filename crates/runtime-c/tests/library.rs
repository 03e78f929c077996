//! libjitquant_runtime.so as C programs have it: what it shows, its name, what it needs, and the example in C.
#![cfg(target_os = "linux")]

#[path = "../../runtime/tests/networks/mod.rs"]
mod networks;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use jitquant_runtime::{Model, TensorRef};
use jitquant_runtime_c::JQR_ABI_VERSION;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The library that cargo built with this test.
fn library() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = folder.join("libjitquant_runtime_c.so");
    assert!(library.exists(), "cargo builds {}", library.display());
    library
}

/// What a tool says of a file.
fn ask(tool: &str, options: &[&str], file: &Path) -> String {
    let output = Command::new(tool).args(options).arg(file).output().unwrap();
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_shows_what_the_header_declares_and_nothing_else() {
    let shown = ask("nm", &["-D", "--defined-only", "-P"], &library());
    let shown: BTreeSet<&str> = shown.lines().filter_map(|line| line.split(' ').next()).collect();
    let header = std::fs::read_to_string(root().join("include/jitquant_runtime.h")).unwrap();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| !line.starts_with("//"))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("jqr_"))
        .collect();
    assert_eq!(shown, declared);
    assert!(shown.len() >= 14, "{shown:?}");
}

#[test]
fn it_needs_no_libtorch_and_is_small() {
    let needed = ask("readelf", &["-dW"], &library());
    assert!(needed.contains(&format!("soname: [libjitquant_runtime.so.{JQR_ABI_VERSION}]")), "{needed}");
    let needed: Vec<&str> = needed.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(
        needed.len() >= 2 && needed.iter().all(|line| !line.contains("torch") && !line.contains("c10")),
        "{needed:?}"
    );
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("stripped.so");
    ask("strip", &["--strip-unneeded", "-o", stripped.to_str().unwrap()], &library());
    let bytes = std::fs::metadata(&stripped).unwrap().len();
    println!("stripped: {bytes} bytes");
    assert!(bytes <= 6_000_000, "{bytes} bytes");
}

/// Compiles a C program against the library, under the name that `make install` gives it.
fn build(source: &Path, folder: &Path) -> PathBuf {
    for name in ["libjitquant_runtime.so".to_owned(), format!("libjitquant_runtime.so.{JQR_ABI_VERSION}")] {
        std::os::unix::fs::symlink(library(), folder.join(name)).unwrap();
    }
    let program = folder.join("program");
    let output = Command::new(std::env::var("CC").as_deref().unwrap_or("cc"))
        .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-I"])
        .arg(root().join("include"))
        .arg(source)
        .arg("-o")
        .arg(&program)
        .arg(format!("-L{}", folder.display()))
        .arg(format!("-Wl,-rpath,{}", folder.display()))
        .arg("-ljitquant_runtime")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    program
}

fn run(program: &Path, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments reads nothing.
    child.stdin.take().unwrap().write_all(stdin).ok();
    child.wait_with_output().unwrap()
}

#[test]
fn the_c_example_gives_what_rust_does() {
    let folder = tempfile::tempdir().unwrap();
    let program = build(&root().join("examples/runtime-c/main.c"), folder.path());
    let model = folder.path().join("model.jqp");
    std::fs::write(&model, networks::file()).unwrap();
    let values = networks::floats(2 * 3 * 64, 8);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let output = run(&program, &[model.to_str().unwrap(), "2", "3", "8", "8"], &bytes);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = Model::open(&model).unwrap().run(&[TensorRef::floats(&values, &[2, 3, 8, 8])]).unwrap();
    let expected: Vec<u8> = results[0].floats().unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(output.stdout, expected);
    let refused = run(&program, &[model.to_str().unwrap(), "2", "4", "8", "6"], &bytes);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("image: float32 [batch, 3, height, width]"), "{said}");
    std::fs::write(&model, &networks::file()[..500]).unwrap();
    let refused = run(&program, &[model.to_str().unwrap(), "2", "3", "8", "8"], &bytes);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1) && said.contains("model.jqp: not a Program file, or a damaged one"),
        "{said}"
    );
}

#[test]
fn every_function_does_what_its_text_says_and_takes_null() {
    let folder = tempfile::tempdir().unwrap();
    let program = build(&root().join("crates/runtime-c/tests/all.c"), folder.path());
    let model = folder.path().join("model.jqp");
    std::fs::write(&model, networks::file()).unwrap();
    let output = run(&program, &[model.to_str().unwrap()], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
}
