//! What `make install` installs, used as a C++ project uses it: examples/cpp-app, and pkg-config.

#![cfg(feature = "torch")]

mod programs;

use std::path::Path;
use std::process::Command;

use programs::{alone, configure, install, libtorch, root, run, said};

#[test]
fn a_cmake_project_finds_builds_and_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    let (prefix, build) = (folder.path().join("prefix"), folder.path().join("build"));
    install(&prefix);
    let configured = configure(&root().join("examples/cpp-app"), &build, &prefix, &libtorch());
    assert!(configured.status.success(), "{}", said(&configured));
    let built = Command::new("cmake").arg("--build").arg(&build).output().unwrap();
    assert!(built.status.success(), "{}", said(&built));
    let digits = root().join("examples/digits");
    let int8 = folder.path().join("digits.int8.pt");
    let out = run(&build.join("cpp-app"), &[&digits.join("digits.pt"), &digits.join("sixteen.npy"), &int8], &[]);
    assert!(out.contains("9 layers are INT8, 0 stay in float"), "{out}");
    assert!(out.contains("same answer as float: 8 of 8"), "{out}");
    assert!(int8.metadata().unwrap().len() < 200_000);

    // What the program linked is what was installed.
    let linked = alone("ldd").arg(build.join("cpp-app")).output().unwrap();
    assert!(said(&linked).contains(prefix.join("lib/libjitquant.so.1").to_str().unwrap()), "{}", said(&linked));
}

#[test]
fn a_libtorch_of_another_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (prefix, other) = (folder.path().join("prefix"), folder.path().join("other"));
    install(&prefix);
    let version = other.join("include/torch/headeronly/version.h");
    std::fs::create_dir_all(version.parent().unwrap()).unwrap();
    let text = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 8\n#define TORCH_VERSION_PATCH 1\n";
    std::fs::write(version, text).unwrap();
    let configured = configure(&root().join("examples/cpp-app"), &folder.path().join("build"), &prefix, &other);
    let text = said(&configured).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(!configured.status.success(), "{text}");
    let ours = jitquant::torch_version();
    assert!(text.contains(&format!("was built for libtorch {ours}, the project's is '2.8.1'")), "{text}");
}

#[test]
fn pkg_config_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    install(folder.path());
    let ask = |what: &str| {
        let output = Command::new("pkg-config")
            .args([what, "jitquant"])
            .env("PKG_CONFIG_PATH", folder.path().join("lib/pkgconfig"))
            .output()
            .expect("pkg-config is installed (make setup)");
        assert!(output.status.success(), "{}", said(&output));
        said(&output).trim().to_owned()
    };
    assert_eq!(ask("--modversion"), env!("CARGO_PKG_VERSION"));
    assert!(ask("--libs").contains("-ljitquant") && ask("--libs").contains("-ltorch_cpu"));
    assert!(Path::new(&ask("--variable=preload")).exists());
    let includes = ask("--cflags");
    let include = includes.trim_start_matches("-I");
    assert!(Path::new(include).join("jitquant.hpp").exists(), "{includes}");
}
