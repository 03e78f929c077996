//! Files that are damaged, or made to do harm.

use std::io::{Cursor, Read, Write};

use jitquant::ir::Module;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::program;

type Records = Vec<(String, Vec<u8>)>;

fn records(name: &str) -> Records {
    let mut zip = ZipArchive::new(std::fs::File::open(program(name)).unwrap()).unwrap();
    (0..zip.len())
        .map(|index| {
            let mut record = zip.by_index(index).unwrap();
            let name = record.name().unwrap().into_owned();
            let mut content = Vec::new();
            record.read_to_end(&mut content).unwrap();
            (name, content)
        })
        .collect()
}

fn archive(records: &Records) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in records {
        writer.start_file(name.as_str(), options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn refusal(bytes: &[u8]) -> String {
    let refusal = Module::load_bytes(bytes).map(drop).unwrap_err().to_string();
    assert!(refusal.len() < 2000, "{refusal}");
    refusal
}

/// The program `cnn` with one thing changed in one of its texts.
fn changed(record: &str, from: &str, to: &str) -> String {
    let mut records = records("cnn");
    let content = &mut records.iter_mut().find(|(name, _)| name.ends_with(record)).unwrap().1;
    let text = String::from_utf8(content.clone()).unwrap();
    assert!(text.contains(from), "{from} in {record}");
    *content = text.replacen(from, to, 1).into_bytes();
    refusal(&archive(&records))
}

#[test]
fn the_program_itself_is_read() {
    Module::load_bytes(&archive(&records("cnn"))).unwrap();
}

#[test]
fn truncations_are_refused() {
    let whole = std::fs::read(program("cond")).unwrap();
    for len in (0..whole.len()).step_by(37) {
        refusal(&whole[..len]);
    }
}

#[test]
fn flipped_bits_never_end_the_process() {
    let whole = archive(&records("cond"));
    for at in (0..whole.len()).step_by(101) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        // What nobody reads may be anything.
        Module::load_bytes(&damaged).ok();
    }
}

#[test]
fn versions_are_told() {
    let said = changed("model.json", "\"major\": 8", "\"major\": 9");
    assert!(said.contains("export schema 9.20") && said.contains("7 to 8"), "{said}");
}

#[test]
fn records_hold_what_is_said_of_them() {
    let config = "model_weights_config.json";
    for (from, to, words) in [
        ("{\"as_int\": 8}", "{\"as_int\": 9}", "record holds"),
        ("{\"as_int\": 8}", "{\"as_int\": 9223372036854775807}", "not those of a tensor"),
        ("{\"as_int\": 8}", "{\"as_int\": -8}", "not those of a tensor"),
        ("\"storage_offset\": {\"as_int\": 0}", "\"storage_offset\": {\"as_int\": 1}", "record holds"),
        ("\"dtype\": 7", "\"dtype\": 8", "record holds"),
        ("\"dtype\": 7", "\"dtype\": 99", "element type"),
        ("\"layout\": 7", "\"layout\": 2", "sparse"),
        ("\"weight_0\"", "\"weight_99\"", "missing"),
        ("\"weight_0\"", "\"../weight_0\"", "missing"),
        ("\"weight_0\"", "\"/etc/passwd\"", "missing"),
        ("\"use_pickle\": false", "\"use_pickle\": true", "pickle"),
        ("\"config\"", "\"other\"", "not what PyTorch writes"),
    ] {
        let said = changed(config, from, to);
        assert!(said.contains(words), "{from} -> {to}: {said}");
    }
}

#[test]
fn names_are_known_before_they_are_used() {
    for (from, to, words) in [
        (
            "{\"as_tensor\": {\"name\": \"conv2d\"}}",
            "{\"as_tensor\": {\"name\": \"batch_norm\"}}",
            "before it is computed",
        ),
        ("{\"as_tensor\": {\"name\": \"relu\"}}", "{\"as_tensor\": {\"name\": \"nothing\"}}", "before it is computed"),
        ("torch.ops.aten.conv2d.default", "torch.ops.aten.conv2e.default", "run_decompositions"),
        ("torch.ops.aten.conv2d.default", "torch.ops.mine.conv2d.default", "--library"),
        ("torch.ops.aten.conv2d.default", "os.system", "is not read"),
        ("torch.ops.aten.conv2d.default", "torch.ops.higher_order.scan", "no counterpart"),
        ("{\"name\": \"stride\"", "{\"name\": \"strike\"", "'strike' is given"),
        ("\"parameter_name\": \"stem.0.weight\"", "\"parameter_name\": \"stem.0.other\"", "'stem.0.other' is missing"),
        ("\"as_ints\"", "\"as_others\"", "unknown variant"),
    ] {
        let said = changed("model.json", from, to);
        assert!(said.contains(words), "{from} -> {to}: {said}");
    }
    // The node, its line, and the name that is wrong.
    let said = changed("model.json", "torch.ops.aten.relu.default", "torch.ops.aten.rely.default");
    assert!(said.contains("node 'relu") && said.contains("model.py:"), "{said}");
}

#[test]
fn deep_nesting_is_refused() {
    let open = concat!(
        r#"{"as_graph": {"graph": {"inputs": [], "outputs": [], "#,
        r#""nodes": [{"target": "", "outputs": [], "inputs": [{"arg": "#
    );
    let deep = format!("{}null{}", open.repeat(10_000), "}]}]}}}".repeat(10_000));
    let said = changed("model.json", "{\"as_tensor\": {\"name\": \"conv2d\"}}", &deep);
    assert!(said.contains("recursion limit"), "{said}");
}

#[test]
fn archives_stay_inside() {
    for name in ["/etc/passwd", "model/../../x", "C:\\x", "other/models/model.json"] {
        let mut records = records("cnn");
        records.push((name.to_owned(), b"{}".to_vec()));
        let said = refusal(&archive(&records));
        assert!(said.contains("archive"), "{name}: {said}");
    }
    let mut several = records("cnn");
    several.push(("model/models/second.json".to_owned(), b"{}".to_vec()));
    assert!(refusal(&archive(&several)).contains("2 models"));
}

#[test]
fn pickles_hold_tensors_and_nothing_else() {
    let mut records = records("cnn_flat_archive");
    let state = &mut records.iter_mut().find(|(name, _)| name == "serialized_state_dict.pt").unwrap().1;
    let mut inner = ZipWriter::new(Cursor::new(Vec::new()));
    inner.start_file("archive/data.pkl", SimpleFileOptions::default()).unwrap();
    inner.write_all(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap();
    *state = inner.finish().unwrap().into_inner();
    let said = refusal(&archive(&records));
    assert!(said.contains("os.system") && said.contains("only tensors"), "{said}");
}
