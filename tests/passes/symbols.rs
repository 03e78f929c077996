//! What the library takes from libtorch.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The functions that libtorch's headers of quantization passes declare.
fn quantization_passes() -> BTreeSet<String> {
    let passes =
        PathBuf::from(std::env::var_os("LIBTORCH").expect("set for cargo")).join("include/torch/csrc/jit/passes");
    let mut headers = vec![passes.join("fold_conv_bn.h"), passes.join("fuse_linear.h")];
    let folder = std::fs::read_dir(passes.join("quantization")).unwrap();
    headers.extend(folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "h")));
    let mut names = BTreeSet::new();
    for header in headers {
        let text = std::fs::read_to_string(header).unwrap();
        for declaration in text.split("TORCH_API ").skip(1) {
            let Some((before, _)) = declaration.split_once('(') else { continue };
            names.extend(before.rsplit([' ', '*', '&', '\n']).next().map(str::to_owned));
        }
    }
    names
}

/// Which of `names` the binary takes from a library in namespace `torch::jit`.
fn taken(binary: &Path, names: &BTreeSet<String>) -> BTreeSet<String> {
    let output = Command::new("nm").args(["-D", "--undefined-only", "--demangle"]).arg(binary).output().unwrap();
    assert!(output.status.success(), "nm {}: {}", binary.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("torch::jit::"), "{} uses libtorch", binary.display());
    let symbols = text.lines().filter_map(|line| line.trim().strip_prefix("U ")?.strip_prefix("torch::jit::"));
    let functions = symbols.filter_map(|symbol| symbol.split(['(', '[', '<']).next());
    functions.filter(|name| names.contains(*name)).map(str::to_owned).collect()
}

#[test]
fn no_quantization_pass_of_libtorch_is_called() {
    let names = quantization_passes();
    for name in
        ["InsertObservers", "InsertQuantDeQuant", "Finalize", "FoldConvBatchNorm", "DedupModuleUses", "cloneMethod"]
    {
        assert!(names.contains(name), "{name} is declared, among {names:?}");
    }
    // This program holds the oracle, which calls them.
    let program = std::env::current_exe().unwrap();
    assert!(taken(&program, &names).contains("DedupModuleUses"), "they are found where they are called");
    let library = program.with_file_name("libjitquant.so");
    assert_eq!(taken(&library, &names), BTreeSet::new(), "in {}", library.display());
}
