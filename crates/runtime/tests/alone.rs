//! What the runtime depends on: no libtorch.

use std::process::Command;

#[test]
fn no_libtorch_is_in_the_tree() {
    let arguments =
        ["tree", "--offline", "--locked", "-p", "jitquant-runtime", "-e", "normal,build", "--prefix", "none"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"jitquant-kernels") && names.contains(&"safetensors"), "{tree}");
    let forbidden: Vec<_> =
        names.iter().filter(|name| name.contains("torch") || ["tch", "cxx", "cc", "jitquant"].contains(name)).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}
