//! Builds the bridge to libtorch (feature `torch`): compiles `cpp/` and links `torch_cpu` and `c10`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "torch")]
    torch::build();
}

#[cfg(feature = "torch")]
mod torch {
    use std::path::PathBuf;

    pub fn build() {
        let libtorch = locate();
        let include = libtorch.join("include");
        let mut build = cxx_build::bridges([
            "src/ir/ffi.rs",
            "src/observer/operators.rs",
            "src/engine/bridge.rs",
            "src/engine/weight_only.rs",
            "src/qat/operators.rs",
            "src/distributed/store.rs",
        ]);
        build.file("cpp/fake_quantize.cpp").file("cpp/store.cpp");
        for file in [
            "embedding",
            "graph",
            "host",
            "module",
            "native_elements",
            "native_layers",
            "observers",
            "packed",
            "plugin",
            "weight_only",
        ] {
            build.file(format!("cpp/{file}.cpp"));
        }
        build
            .include("cpp")
            .flag("-isystem")
            .flag(include.to_str().expect("LIBTORCH is UTF-8"))
            .flag("-isystem")
            .flag(include.join("torch/csrc/api/include").to_str().expect("LIBTORCH is UTF-8"))
            .std("c++20")
            .flag_if_supported("-Wno-unused-parameter")
            // at::parallel_for is a template: without OpenMP here it would run on one thread.
            .flag("-fopenmp")
            .opt_level(1)
            .debug(false)
            .compile("jitquant_bridge");

        let lib = libtorch.join("lib");
        println!("cargo:rustc-link-search=native={}", lib.display());
        // --no-as-needed: libtorch_cpu must be loaded even where only static initialisers need it.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        for library in ["torch_cpu", "c10"] {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
        println!("cargo:rustc-link-arg={}", openmp(&libtorch));
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libjitquant.so");
        // In a libtorch of another version, functions may be missing: the library then has to load far enough to say so.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,lazy");
        println!("cargo:libtorch={}", libtorch.display());
        println!("cargo:rerun-if-changed=cpp");
        println!("cargo:rerun-if-env-changed=LIBTORCH");
    }

    /// What links the OpenMP library that libtorch brings, or the compiler's own where libtorch brings none.
    fn openmp(libtorch: &std::path::Path) -> String {
        let beside = libtorch.with_file_name("torch.libs");
        for folder in [libtorch.join("lib"), beside] {
            let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut found = files.filter(|file| file.file_name().to_string_lossy().starts_with("libgomp"));
            if let Some(file) = found.next() {
                return file.path().display().to_string();
            }
        }
        "-lgomp".to_owned()
    }

    /// The folder that `LIBTORCH` names, checked.
    fn locate() -> PathBuf {
        let folder = std::env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_else(|| {
            panic!(
                "the feature `torch` needs libtorch: run `make setup`, or set LIBTORCH to a folder that has \
                 include/ and lib/libtorch_cpu.so"
            )
        });
        for part in ["include/torch/csrc/jit/api/module.h", "lib/libtorch_cpu.so"] {
            if !folder.join(part).exists() {
                panic!(
                    "LIBTORCH={} is not a libtorch: {part} is missing. Run `make setup`, or set LIBTORCH to a \
                     libtorch 2.9 to 2.15",
                    folder.display()
                );
            }
        }
        folder.canonicalize().unwrap_or(folder)
    }
}
