//! Whole archives, by what is wrong with them.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// An archive of these records in the folder `net`.
fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in records {
        writer.start_file(format!("net/{name}"), options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

const CLASS: &[u8] = b"\x80\x02c__torch__\nA\n)\x81}b.";
const NO_CONSTANTS: &[u8] = b"\x80\x02).";
const CODE: &[u8] = b"class A(Module):\n  def forward(self):\n    return 1\n";

fn net() -> Vec<u8> {
    archive(&[("data.pkl", CLASS), ("code/__torch__.py", CODE), ("constants.pkl", NO_CONSTANTS), ("version", b"3\n")])
}

fn refusal(bytes: &[u8]) -> String {
    check(Cursor::new(bytes)).unwrap_err().to_string()
}

#[test]
fn a_whole_archive_passes() {
    check(Cursor::new(net())).unwrap();
}

#[test]
fn every_truncation_is_refused() {
    let whole = net();
    for len in 0..whole.len() {
        refusal(&whole[..len]);
    }
}

#[test]
fn a_flipped_bit_of_a_record_is_seen() {
    let whole = net();
    let at = whole.windows(CODE.len()).position(|part| part == CODE).unwrap();
    for bit in [0, 9, 8 * CODE.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at + bit / 8] ^= 1 << (bit % 8);
        let refusal = refusal(&damaged);
        assert!(refusal.contains("code/__torch__.py") && refusal.contains("hecksum"), "{refusal}");
    }
}

#[test]
fn something_behind_the_end_is_refused() {
    let mut longer = net();
    longer.extend(b"more");
    assert!(refusal(&longer).contains("added behind"), "{}", refusal(&longer));
}

#[test]
fn names_and_folders_are_those_that_libtorch_finds() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for name in ["net/data.pkl", "other/version"] {
        writer.start_file(name, SimpleFileOptions::default()).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    assert!(refusal(&bytes).contains("outside of the archive's folder"));
    assert!(refusal(&archive(&[("data.pkl", CLASS), ("DATA.PKL", CLASS)])).contains("upper and lower case"));
}

#[test]
fn what_stands_in_a_message_is_short() {
    let name = "x".repeat(5000);
    let refusal = refusal(&archive(&[("data.pkl", CLASS), (&name, b""), (&name.to_uppercase(), b"")]));
    assert!(refusal.len() < 300, "{refusal}");
}

#[test]
fn devices_are_told() {
    let tensor =
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x06\x00\x00\x00cuda:0K\x02tQ\x85.";
    let bytes = archive(&[("data.pkl", CLASS), ("constants.pkl", tensor), ("constants/0", &[0; 8])]);
    let notes = check(Cursor::new(bytes)).unwrap().notes();
    assert_eq!(notes, ["the model was saved on cuda:0; its tensors are read onto the CPU"]);
    assert!(check(Cursor::new(net())).unwrap().notes().is_empty());
    let short = archive(&[("data.pkl", CLASS), ("constants.pkl", tensor), ("constants/0", &[0; 7])]);
    assert!(refusal(&short).contains("8 bytes, and the record that holds them has 7"), "{}", refusal(&short));
}

#[test]
fn files_of_other_kinds_are_named() {
    let said = |bytes: &[u8]| kind_of(&mut Cursor::new(bytes)).unwrap().refusal().unwrap_or_default();
    let state = b"\x80\x02ccollections\nOrderedDict\n)Rctorch._utils\n_rebuild_tensor_v2\n.";
    let eager = b"\x80\x02cmodels.resnet\nResNet\n)\x81}b.";
    let mut safetensors = 60u64.to_le_bytes().to_vec();
    safetensors.extend(format!("{:60}", r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#).bytes());
    safetensors.extend([0; 4]);
    for (bytes, words) in [
        (&b""[..], "an empty file"),
        (&archive(&[("data.pkl", state), ("version", b"3")]), "tensors (a state_dict)"),
        (&archive(&[("data.pkl", eager), ("version", b"3")]), "models.resnet.ResNet"),
        (state, "torch.save file"),
        (&archive(&[("bytecode.pkl", b""), ("data.pkl", b"")]), "mobile interpreter"),
        (&safetensors, "safetensors"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "ONNX"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", "not a TorchScript file"),
    ] {
        let said = said(bytes);
        assert!(said.contains(words), "{words}: {said}");
        assert!(said.contains("torch.jit.") || said.contains("gzip") || said.contains("lfs"), "{said}");
    }
    assert_eq!(said(&net()), "");
    let exported = archive(&[("archive_format", b"pt2"), ("models/model.json", b"{}")]);
    assert_eq!(kind_of(&mut Cursor::new(exported)).unwrap(), Kind::Exported);
}
