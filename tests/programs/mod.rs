//! Building and running programs that use libjitquant.so, as a user would.

#![allow(dead_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the libjitquant.so that cargo built with this test, and of the link by which programs find it.
pub fn library_folder() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(folder.join("libjitquant.so").exists(), "cargo builds {}/libjitquant.so", folder.display());
    let link = folder.join(format!("libjitquant.so.{}", jitquant::capi::JQ_ABI_VERSION));
    // Another test may have made it.
    std::os::unix::fs::symlink("libjitquant.so", link).ok();
    folder
}

/// The libtorch that the library is linked with.
pub fn libtorch() -> PathBuf {
    let folder = PathBuf::from(std::env::var_os("LIBTORCH").expect("LIBTORCH is set: cargo reads .cargo/config.toml"));
    folder.canonicalize().unwrap()
}

/// Compiles `source` into `program`.
pub fn build(compiler: &str, options: &[&str], source: &Path, program: &Path, libraries: &[&str]) {
    let output = Command::new(compiler)
        .args(options)
        .arg("-I")
        .arg(root().join("include"))
        .arg(source)
        .arg("-o")
        .arg(program)
        .args(libraries)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
}

/// A command without cargo's LD_LIBRARY_PATH, which would hide a program's own way to its libraries.
pub fn alone(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// What the program says on stdout; it has to succeed.
pub fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A], environment: &[(&str, &OsStr)]) -> String {
    let output = alone(program).args(arguments).envs(environment.iter().copied()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {:?}\n{out}\n{err}", program.display(), output.status);
    out.into_owned()
}

/// Compiles a C++ program against libtorch and libjitquant.so.
pub fn build_with_torch(source: &Path, program: &Path) {
    let folder = library_folder();
    let folder = folder.display();
    build_with_libtorch(source, program, &[&format!("-L{folder}"), &format!("-Wl,-rpath,{folder}"), "-ljitquant"]);
}

/// Compiles a C++ program against libtorch, and `libraries` before it.
pub fn build_with_libtorch(source: &Path, program: &Path, libraries: &[&str]) {
    let libtorch = libtorch();
    let include = |folder: &str| format!("-isystem{}", libtorch.join(folder).display());
    build(
        &std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()),
        &["-std=c++20", "-Wall", "-Wextra", &include("include"), &include("include/torch/csrc/api/include")],
        source,
        program,
        &linked_with_libtorch(libraries).iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

/// Options of the linker: libtorch, and `libraries` before it.
pub fn linked_with_libtorch(libraries: &[&str]) -> Vec<String> {
    let lib = libtorch().join("lib");
    let (search, rpath) = (format!("-L{}", lib.display()), format!("-Wl,-rpath,{}", lib.display()));
    let torch = ["-Wl,--no-as-needed", &search, &rpath];
    [&torch, libraries, &["-ltorch_cpu", "-lc10"]].concat().into_iter().map(str::to_owned).collect()
}

/// Compiles a program in C against libjitquant.so.
pub fn build_c(options: &[&str], source: &Path, program: &Path) {
    let folder = library_folder();
    let folder = folder.display();
    let libraries = [&format!("-L{folder}"), &format!("-Wl,-rpath,{folder}"), "-ljitquant", "-lm"];
    let libraries = linked_with_libtorch(&libraries);
    let libraries: Vec<&str> = libraries.iter().map(String::as_str).collect();
    build(std::env::var("CC").as_deref().unwrap_or("cc"), options, source, program, &libraries);
}

/// All that a program said.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What `make install` puts under `prefix`.
pub fn install(prefix: &Path) {
    let output = Command::new(root().join("scripts/install.sh")).arg(prefix).arg(library_folder()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// Configures a CMake project.
pub fn configure(source: &Path, build: &Path, prefix: &Path, libtorch: &Path) -> Output {
    Command::new("cmake")
        .arg("-S")
        .arg(source)
        .arg("-B")
        .arg(build)
        .arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()))
        .arg(format!("-DLIBTORCH={}", libtorch.display()))
        .output()
        .expect("cmake is installed (make setup)")
}
