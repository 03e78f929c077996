//! Files that are damaged, or made to do harm: an error, or a model that runs or refuses; never a panic or a crash.

mod networks;

use jitquant_runtime::{Element, Model, TensorRef};
use networks::{file, floats};
use serde_json::Value;

/// Bytes that a run may compute in here: what a file asks for beyond that is planned, but not run.
const MOST: usize = 1 << 26;

/// Opens bytes, and runs what there is.
fn try_all(bytes: &[u8]) -> bool {
    let Ok(model) = Model::from_bytes(bytes) else { return false };
    let (values, bytes) = (floats(2 * 3 * 64, 3), networks::noise(2 * 3 * 64, 4));
    for sizes in [&[2, 3, 8, 8][..], &[384]] {
        let tensor = |element: Element| match element {
            Element::F32 => TensorRef::floats(&values, sizes),
            Element::U8 => TensorRef::bytes(&bytes, sizes),
            Element::Bool => unreachable!("files have no inputs of truth values"),
        };
        let inputs: Vec<_> = model.inputs().iter().map(|input| tensor(input.element)).collect();
        let arena = model.arena_bytes(&inputs).unwrap_or(usize::MAX);
        let results = model.output_sizes(&inputs).unwrap_or_default();
        let largest = results.iter().map(|(_, sizes)| sizes.iter().product::<i64>() as usize).max();
        if arena < MOST && largest.unwrap_or(usize::MAX) < MOST {
            model.run(&inputs).ok();
        }
    }
    true
}

struct Noise(u64);

impl Noise {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

#[test]
fn bytes_that_changed_are_no_harm() {
    let whole = file();
    assert!(try_all(&whole));
    let mut noise = Noise(7);
    let mut refused = 0;
    for round in 0..1500 {
        let mut bytes = whole.clone();
        match round % 3 {
            0 => bytes.truncate(noise.below(whole.len())),
            1 => {
                // The header is where harm can be done.
                let at = noise.below(whole.len().min(9000));
                bytes[at] = noise.below(256) as u8;
            }
            _ => (0..1 + noise.below(8)).for_each(|_| {
                let at = noise.below(bytes.len());
                bytes[at] ^= 1 << noise.below(8);
            }),
        }
        refused += usize::from(!try_all(&bytes));
    }
    assert!(refused > 500, "{refused}");
    let mut extended = whole.clone();
    extended.extend([0; 9]);
    assert!(!try_all(&extended) && !try_all(&[]) && !try_all(&whole[..7]));
}

/// The header of a file, and its tensors' bytes.
fn apart(bytes: &[u8]) -> (Value, &[u8]) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), &bytes[8 + len..])
}

fn together(header: &Value, tensors: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], tensors].concat()
}

/// The places of all values within one.
fn places(value: &Value, path: String, to: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| places(item, format!("{path}/{index}"), to));
        }
        Value::Object(entries) => entries.iter().for_each(|(key, item)| places(item, format!("{path}/{key}"), to)),
        _ => {}
    }
    to.push(path);
}

/// A file whose steps, or header, have this value in place of the one at `path`.
fn with(whole: &[u8], in_steps: bool, path: &str, value: Value) -> Vec<u8> {
    let (mut header, tensors) = apart(whole);
    if in_steps {
        let text = header["__metadata__"]["jitquant.program"].as_str().unwrap();
        let mut steps: Value = serde_json::from_str(text).unwrap();
        *steps.pointer_mut(path).unwrap() = value;
        header["__metadata__"]["jitquant.program"] = Value::String(steps.to_string());
    } else {
        *header.pointer_mut(path).unwrap() = value;
    }
    together(&header, tensors)
}

#[test]
fn values_that_were_replaced_are_no_harm() {
    let whole = file();
    let (header, _) = apart(&whole);
    let steps: Value = serde_json::from_str(header["__metadata__"]["jitquant.program"].as_str().unwrap()).unwrap();
    let odd = [
        Value::from(0),
        Value::from(-1),
        Value::from(1),
        Value::from(7),
        Value::from(255),
        Value::from(i32::MAX),
        Value::from(1u64 << 30),
        Value::from(i64::MAX),
        Value::from(i64::MIN),
        Value::from(u64::MAX),
        Value::from(1e-45),
        Value::from(1e39),
        Value::Null,
        Value::from(true),
        Value::from(""),
        Value::Array(vec![]),
        serde_json::json!([0, 1, 2, 3]),
        serde_json::json!({"known": -3}),
    ];
    let mut tried = 0;
    for (in_steps, content) in [(true, &steps), (false, &header)] {
        let mut all = Vec::new();
        places(content, String::new(), &mut all);
        for (path, value) in all.iter().flat_map(|path| odd.iter().map(move |value| (path, value))) {
            try_all(&with(&whole, in_steps, path, value.clone()));
            tried += 1;
        }
    }
    assert!(tried > 2000, "{tried}");
}

#[test]
fn other_steps_in_their_place_are_no_harm() {
    let whole = file();
    let (header, _) = apart(&whole);
    let steps: Value = serde_json::from_str(header["__metadata__"]["jitquant.program"].as_str().unwrap()).unwrap();
    let count = steps["steps"].as_array().unwrap().len();
    let window = serde_json::json!({
        "kernel": [1, 2, 2], "stride": [1, 1, 1], "padding": [0, 1000, 1], "dilation": [1, 1, 1], "ceil_mode": true
    });
    let views = [
        serde_json::json!({"permute": [0, 3, 1, 2]}),
        serde_json::json!({"transpose": [-1, i64::MIN]}),
        serde_json::json!({"slice": {"axis": 1, "start": {"known": i64::MIN}, "end": {"known": i64::MAX}, "step": i64::MAX}}),
        serde_json::json!({"select": [1, i64::MAX]}),
        serde_json::json!({"select": [1, i64::MIN]}),
        serde_json::json!({"unbind": {"axis": 1, "count": 8, "index": i64::MAX}}),
        serde_json::json!({"unbind": {"axis": i64::MIN, "count": i64::MIN, "index": -1}}),
        serde_json::json!({"chunk": {"axis": 1, "parts": i64::MAX, "index": 1}}),
        serde_json::json!({"split": {"axis": 1, "size": i64::MAX, "index": i64::MAX}}),
        serde_json::json!({"reshape": [{"product": [{"known": i64::MAX}, {"known": 2}]}]}),
        serde_json::json!({"reinterpret": [{"of": [0, 77]}]}),
        serde_json::json!({"reshape": [{"given": 0}]}),
        serde_json::json!({"flatten": [0, -1]}),
        serde_json::json!({"unsqueeze": i64::MIN}),
        serde_json::json!({"squeeze": i64::MAX}),
        serde_json::json!({"expand": [{"known": 1 << 30}, {"known": 1 << 30}, {"known": 1 << 30}, {"known": 1 << 30}, {"known": 1 << 30}, {"known": 1 << 30}]}),
        serde_json::json!({"contiguous": "channels_last"}),
    ];
    let others = views.into_iter().map(|view| serde_json::json!({"view": view})).chain([
        serde_json::json!({"max_pool": {"window": window, "dimensions": 3}}),
        serde_json::json!({"max_pool": {"window": window, "dimensions": 77}}),
        serde_json::json!({"adaptive_avg_pool": {"sizes": [1, 1, 1, 1, 1], "zero_point": 0}}),
        serde_json::json!({"adaptive_avg_pool": {"sizes": [-1, i64::MAX], "zero_point": 0}}),
        serde_json::json!({"adaptive_avg_pool": {"sizes": [], "zero_point": 0}}),
        serde_json::json!({"mean": {"axes": [2, 3], "keep": false, "zero_point": 117}}),
        serde_json::json!({"mean": {"axes": [-1, i64::MIN], "keep": true, "zero_point": 0}}),
        serde_json::json!({"mean": {"axes": [], "keep": false, "zero_point": 255}}),
        serde_json::json!({"linear_dynamic": {"weight": 2, "scheme": "per_row", "min": null, "max": null}}),
        serde_json::json!({"linear_dynamic": {"weight": 0, "scheme": "per_row", "min": null, "max": null}}),
        serde_json::json!({"clamp": [255, 0]}),
        serde_json::json!({"lookup": "00"}),
        serde_json::json!({"quantize": {"scale": 1.0, "zero_point": 256}}),
        serde_json::json!({"dequantize": {"scale": -1.0, "zero_point": 0}}),
    ]);
    for other in others {
        for step in 0..count {
            let path = format!("/steps/{step}/op");
            try_all(&with(&whole, true, &path, other.clone()));
        }
    }
}

/// Why a file is refused where its steps have this value.
fn why(path: &str, value: Value) -> String {
    Model::from_bytes(&with(&file(), true, path, value)).err().expect(path).to_string()
}

#[test]
fn a_refusal_says_what_does_not_fit() {
    assert!(why("/steps/3/inputs/0", 99.into()).contains("step 3, max_pool: an operand that is none"));
    assert!(why("/steps/1/op/conv/weight", 2.into()).contains("step 1, conv: a weight of another layer"));
    assert!(why("/steps/0/op/quantize/scale", 0.0.into()).contains("a scale of 0; a positive number is accepted"));
    assert!(why("/weights/0/conv/shape/input_channels", 4.into()).contains("weight 0: 216 values"));
    assert!(why("/weights/0/conv/dimensions", 9.into()).contains("9 dimensions"));
    assert!(why("/weights/0/conv/dimensions", "2d".into()).contains("invalid type"));
    assert!(why("/results", Value::Array(vec![])).contains("0 results and descriptions of 2"));
    assert!(why("/steps/0/op", serde_json::json!({"float": "softmax"})).contains("unknown variant `float`"));
    assert!(why("/inputs/0/element", "bool".into()).contains("unknown variant `bool`"));
    let said = why("/version", 2.into());
    assert!(said.contains("of version 2; this runtime reads version 1"), "{said}");
    let kind = with(&file(), false, "/__metadata__", serde_json::json!({"format": "pt"}));
    let said = Model::from_bytes(&kind).err().unwrap().to_string();
    assert!(said.contains("not a Program; `jitquant export` writes those"), "{said}");
    let said = Model::from_bytes(b"PK not a model at all").err().unwrap().to_string();
    assert!(said.contains("not a Program file, or a damaged one"), "{said}");
}
