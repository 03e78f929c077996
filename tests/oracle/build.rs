fn main() {
    let libtorch = std::path::PathBuf::from(std::env::var_os("LIBTORCH").expect("LIBTORCH: run `make setup`"));
    let include = libtorch.join("include");
    cxx_build::bridge("src/lib.rs")
        .file("src/oracle.cpp")
        .include("src")
        .flag("-isystem")
        .flag(include.to_str().expect("LIBTORCH is UTF-8"))
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").to_str().expect("LIBTORCH is UTF-8"))
        .std("c++20")
        .flag_if_supported("-Wno-unused-parameter")
        .opt_level(1)
        .compile("jitquant_oracle");
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    println!("cargo:rerun-if-changed=src");
}
