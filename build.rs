//! Builds the bridge to libtorch (feature `torch`): compiles `cpp/` and links `torch_cpu` and `c10`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "torch")]
    torch::build();
}

#[cfg(feature = "torch")]
mod torch {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    const LIBRARIES: [&str; 2] = ["torch_cpu", "c10"];

    /// `JQ_ABI_VERSION` (src/capi/status.rs).
    const ABI_VERSION: u32 = 1;

    pub fn build() {
        let libtorch = locate();
        let include = libtorch.join("include");
        let mut build = cxx_build::bridges([
            "src/ir/ffi.rs",
            "src/ir/operators.rs",
            "src/observer/operators.rs",
            "src/engine/bridge.rs",
            "src/engine/weight_only.rs",
            "src/plugin/bridge.rs",
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
            "operators",
            "packed",
            "plugin",
            "program",
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
        if let Err(why) = weaken(&lib) {
            println!(
                "cargo:warning=a libtorch of another version will refuse the library with the loader's message: {why}"
            );
        }
        println!("cargo:rustc-link-search=native={}", lib.display());
        // --no-as-needed: libtorch_cpu must be loaded even where only static initialisers need it.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        for library in LIBRARIES {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
        link_openmp(&libtorch);
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libjitquant.so.{ABI_VERSION}");
        // A libtorch beside it is found. One of the program's own is there already.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-rpath,$ORIGIN");
        // libtorch keeps pointers to the operators: dlclose must not take them away.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        println!("cargo:libtorch={}", libtorch.display());
        println!("cargo:rerun-if-changed=cpp");
        println!("cargo:rerun-if-env-changed=LIBTORCH");
    }

    /// Makes the bridge's references to libtorch weak. A libtorch of another version lacks some of them, and the loader
    /// would stop there, before the library can say which version it was built for (`cpp/host.cpp`).
    ///
    /// Names that libtorch does not export stay as they are, so that the linker still reports them.
    fn weaken(lib: &Path) -> Result<(), String> {
        // One from each library, in every version: a library of which all is weak can be left out by the linker.
        const KEPT: [&str; 2] = ["_ZN2at15get_num_threadsEv", "_ZN3c108GradMode10is_enabledEv"];
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let archive = out.join("libjitquant_bridge.a");
        let mut exported = BTreeSet::new();
        for library in LIBRARIES {
            exported.extend(names(&["-D", "--defined-only"], &lib.join(format!("lib{library}.so")))?);
        }
        let wanted = names(&["--undefined-only"], &archive)?;
        let weak: Vec<_> =
            wanted.intersection(&exported).filter(|name| !KEPT.contains(&name.as_str())).cloned().collect();
        let list = out.join("weak.txt");
        std::fs::write(&list, weak.join("\n")).map_err(|error| format!("{}: {error}", list.display()))?;
        run(Command::new("objcopy").arg(format!("--weaken-symbols={}", list.display())).arg(&archive)).map(drop)
    }

    fn names(options: &[&str], file: &Path) -> Result<BTreeSet<String>, String> {
        let lines = run(Command::new("nm").arg("-P").args(options).arg(file))?;
        Ok(lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    fn run(command: &mut Command) -> Result<String, String> {
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Links the OpenMP library that libtorch brings, or the compiler's own where libtorch brings none.
    fn link_openmp(libtorch: &Path) {
        for folder in [libtorch.join("lib"), libtorch.with_file_name("torch.libs")] {
            let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut names = files.map(|file| file.file_name().to_string_lossy().into_owned());
            if let Some(name) = names.find(|name| name.starts_with("libgomp")) {
                println!("cargo:rustc-link-search=native={}", folder.display());
                println!("cargo:rustc-link-lib=dylib:+verbatim={name}");
                return;
            }
        }
        println!("cargo:rustc-link-lib=dylib=gomp");
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
