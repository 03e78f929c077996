//! Builds the calls to libtorch's passes, and `examples/stock/run.cpp`: a program that has libtorch and nothing else.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-check-cfg=cfg(no_libtorch)");
    let libtorch = PathBuf::from(std::env::var_os("LIBTORCH").unwrap_or_default());
    println!("cargo:rerun-if-changed={}", libtorch.join("lib/libtorch_cpu.so").display());
    // A dev-dependency cannot be optional: `cargo test --no-default-features`, which needs no libtorch, comes here too.
    let Ok(library) = libtorch.join("lib/libtorch_cpu.so").canonicalize() else {
        println!("cargo:rustc-cfg=no_libtorch");
        println!("cargo:rustc-env=STOCK_RUN=");
        return;
    };
    let libtorch = library.ancestors().nth(2).expect("a file in lib/ has a grandparent");
    let include = libtorch.join("include");
    let lib = libtorch.join("lib");
    let mut build = cxx_build::bridge("src/lib.rs");
    build
        .file("src/oracle.cpp")
        .include("src")
        .flag("-isystem")
        .flag(include.to_str().expect("LIBTORCH is UTF-8"))
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").to_str().expect("LIBTORCH is UTF-8"))
        .std("c++20")
        .flag_if_supported("-Wno-unused-parameter")
        .opt_level(1);
    build.clone().compile("jitquant_oracle");

    let program = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo")).join("stock-run");
    let status = build
        .get_compiler()
        .to_command()
        .arg("../../examples/stock/run.cpp")
        .arg("-o")
        .arg(&program)
        .arg(format!("-L{}", lib.display()))
        .arg(format!("-Wl,-rpath,{},--no-as-needed", lib.display()))
        .args(["-ltorch_cpu", "-lc10"])
        .status()
        .expect("the C++ compiler starts");
    assert!(status.success(), "examples/stock/run.cpp does not compile");
    println!("cargo:rustc-env=STOCK_RUN={}", program.display());

    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=../../examples/stock/run.cpp");
}
