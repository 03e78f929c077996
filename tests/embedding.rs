//! Quantized embeddings: libtorch's operators on jitquant's kernels, the operators of namespace `jitquant`, and models that
//! change from the one to the other.
#![cfg(feature = "torch")]

mod support;

use std::collections::BTreeMap;

use jitquant::engine::{Accelerated, accelerate};
use jitquant::ir::{IValue, Module, Tensor, Type};
use jitquant::pass::{stock_operators, to_native};
use proptest::prelude::*;
use support::{module, noise, tensor};

fn floats(x: &IValue) -> Vec<f32> {
    x.as_tensor().unwrap().to_vec().unwrap()
}

fn is(x: &IValue) -> Vec<i64> {
    x.as_tensor().unwrap().shape()
}

/// A table of 8 or 4 bits that libtorch packed, and its operators on it.
fn table(rows: i64, columns: i64, bits: i64, seed: u64) -> Module {
    let (steps, dtype, b, other) = if bits == 8 { (255, 13, "byte", "4bit") } else { (15, 16, "4bit", "byte") };
    let packer = module(&format!(
        "def pack(self, w: Tensor):\n    low, _ = torch.min(w, 1)\n    high, _ = torch.max(w, 1)\n    \
         s = (high - low) / {steps}.0 + 0.001\n    q = torch.quantize_per_channel(w, s, -low / s, 0, {dtype})\n    \
         return ops.quantized.embedding_bag_prepack(q)\n"
    ));
    let packed = packer.call("pack", &[tensor(&[rows, columns], seed)]).unwrap();
    let IValue::Other(object) = &packed else { panic!("{packed:?}") };
    let module = Module::new("Table").unwrap();
    module.register_attribute("packed", &object.type_of().unwrap(), &packed).unwrap();
    module
        .define(&format!(
            "def forward(self, i: Tensor) -> Tensor:\n    return ops.quantized.embedding_{b}(self.packed, i)\n\
             def bags(self, i: Tensor, o: Optional[Tensor], pruned: bool, w: Optional[Tensor], m: Optional[Tensor], last: bool) -> Tensor:\n    \
             return ops.quantized.embedding_bag_{b}(self.packed, i, o, False, 0, pruned, w, m, last)\n\
             def sums(self, i: Tensor, o: Tensor) -> Tensor:\n    return ops.quantized.embedding_bag_{b}(self.packed, i, o)\n\
             def pruned_rows(self, i: Tensor) -> Tensor:\n    return ops.quantized.embedding_{b}(self.packed, i, True)\n\
             def other_width(self, i: Tensor) -> Tensor:\n    return ops.quantized.embedding_{other}(self.packed, i)\n\
             def unpacked(self):\n    q = ops.quantized.embedding_bag_unpack(self.packed)\n    \
             return torch.int_repr(q), torch.q_per_channel_scales(q), torch.q_per_channel_zero_points(q)\n"
        ))
        .unwrap();
    module
}

/// A module that has the packed tables of others by these names.
fn holding(tables: &[(&str, &Module)]) -> Module {
    let module = Module::new("Model").unwrap();
    let class = Type::parse("__torch__.torch.classes.quantized.EmbeddingPackedParamsBase").unwrap();
    for (name, table) in tables {
        module.register_attribute(name, &class, &table.attribute("packed").unwrap()).unwrap();
    }
    module
}

const ONE: Accelerated = Accelerated { replaced: 1, already: 0, left: Vec::new() };

/// A tensor of `i32` or `i64`.
fn indices(values: &[i64], shape: &[i64], wide: bool) -> IValue {
    IValue::Tensor(match wide {
        true => Tensor::from_slice(values, shape).unwrap(),
        false => Tensor::from_slice(&values.iter().map(|v| *v as i32).collect::<Vec<_>>(), shape).unwrap(),
    })
}

#[derive(Clone, Debug)]
struct Case {
    rows: i64,
    columns: i64,
    bits: i64,
    /// How many indices each bag has.
    lengths: Vec<usize>,
    weighted: bool,
    pruned: bool,
    wide: [bool; 2],
    include_last_offset: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let table = (1..40i64, 1..70i64, prop::sample::select(vec![8, 4]));
    let flags = (any::<bool>(), any::<bool>(), any::<[bool; 2]>(), any::<bool>());
    (table, prop::collection::vec(0..9usize, 1..12), flags, any::<u64>()).prop_map(
        |((rows, columns, bits), lengths, (weighted, pruned, wide, include_last_offset), seed)| {
            let columns = if bits == 4 { 2 * columns } else { columns };
            Case { rows, columns, bits, lengths, weighted, pruned, wide, include_last_offset, seed }
        },
    )
}

/// The same to what f32 sums of some values of up to a few units lose.
fn close(ours: &[f32], theirs: &[f32]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= 2e-6 * (4.0 + b.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_and_bags_are_libtorchs(case in case()) {
        let Case { rows, columns, bits, lengths, weighted, pruned, wide, include_last_offset, seed } = case;
        let count: usize = lengths.iter().sum();
        // Every third row of a pruned table is gone.
        let known = if pruned { rows * 3 / 2 } else { rows };
        let map: Vec<i32> = (0..known as i32).map(|k| if k % 3 == 2 { -1 } else { k / 3 * 2 + k % 3 }).collect();
        let random = |range: i64| noise(count, seed).into_iter().map(move |v| ((v + 1.0) / 2.0 * range as f32) as i64 % range);
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, length| { *end += *length as i64; Some(*end) }));
        if !include_last_offset {
            offsets.pop();
        }
        let places: Vec<i64> = random(known).collect();
        let weights = Tensor::from_slice(&noise(count, seed ^ 1), &[count as i64]).unwrap();
        let bag = [
            indices(&places, &[count as i64], wide[0]),
            indices(&offsets, &[offsets.len() as i64], wide[1]),
            IValue::Bool(pruned),
            if weighted { IValue::Tensor(weights) } else { IValue::None },
            if pruned { IValue::Tensor(Tensor::from_slice(&map, &[known]).unwrap()) } else { IValue::None },
            IValue::Bool(include_last_offset),
        ];
        let flat = indices(&random(rows).collect::<Vec<_>>(), &[count as i64], wide[0]);
        // Two rows of indices: with as many in each.
        let half = count as i64 / 2;
        let both = indices(&random(rows).take(2 * half as usize).collect::<Vec<_>>(), &[2, half], wide[0]);
        let two = [both.clone(), IValue::None, IValue::Bool(false), IValue::None, IValue::None, IValue::Bool(false)];
        let model = table(rows, columns, bits, seed);
        let answers = || {
            let mut answers = vec![model.call("bags", &bag).unwrap(), model.forward(std::slice::from_ref(&flat)).unwrap()];
            answers.push(model.forward(std::slice::from_ref(&both)).unwrap());
            // libtorch refuses bags without indices that are given as rows.
            answers.extend((half > 0).then(|| model.call("bags", &two).unwrap()));
            answers
        };
        let theirs = answers();
        prop_assert_eq!(accelerate(&model).unwrap(), ONE);
        let ours = answers();
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(is(ours), is(theirs));
            prop_assert!(close(&floats(ours), &floats(theirs)), "{:?}\n{:?}", floats(ours), floats(theirs));
        }
        // One row for each index: the same bits.
        prop_assert_eq!(floats(&ours[1]), floats(&theirs[1]));
    }
}

/// The table as libtorch's tensor has it: bytes, scales and zero points.
fn parts(model: &Module) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let IValue::Tuple(parts) = model.call::<Tensor>("unpacked", &[]).unwrap() else { panic!("three tensors") };
    (parts[0].as_tensor().unwrap().to_vec().unwrap(), floats(&parts[1]), floats(&parts[2]))
}

#[test]
fn accelerated_tables_are_the_same_tables_frozen_ones_too() {
    for bits in [8, 4] {
        let model = table(11, 14, bits, 5);
        let i = [indices(&[0, 10, 3, 3], &[2, 2], true)];
        let (expected, whole) = (floats(&model.forward(&i).unwrap()), parts(&model));
        let frozen = table(11, 14, bits, 5).freeze(&[], true).unwrap();
        assert_eq!(accelerate(&model).unwrap(), ONE);
        assert_eq!(accelerate(&model).unwrap(), Accelerated { already: 1, ..Accelerated::default() });
        assert_eq!(parts(&model), whole);
        assert_eq!(floats(&model.forward(&i).unwrap()), expected);
        assert_eq!(accelerate(&frozen).unwrap(), ONE);
        assert_eq!(floats(&frozen.forward(&i).unwrap()), expected);
    }
}

#[test]
fn an_accelerated_table_saves_a_file_for_stock_libtorch() {
    let model = table(11, 14, 8, 5);
    let i = [indices(&[0, 10, 3, 3], &[2, 2], true)];
    let (expected, whole) = (floats(&model.forward(&i).unwrap()), parts(&model));
    assert_eq!(accelerate(&model).unwrap(), ONE);
    let saved = Module::load_bytes(&model.save_bytes().unwrap()).unwrap();
    assert_eq!(parts(&saved), whole);
    assert_eq!(floats(&saved.forward(&i).unwrap()), expected);
    // The file holds libtorch's class: it can be replaced again.
    assert_eq!(accelerate(&saved).unwrap(), ONE);
}

#[test]
fn a_table_of_4_bits_saves_the_file_that_libtorch_saves_and_cannot_load() {
    let model = table(11, 14, 4, 5);
    let load = |model: &Module| Module::load_bytes(&model.save_bytes().unwrap()).map(|_| ()).unwrap_err().to_string();
    let theirs = load(&model);
    assert!(theirs.contains("require a storage of at least 154 bytes, but storage only has 77 bytes"), "{theirs}");
    accelerate(&model).unwrap();
    assert_eq!(load(&model), theirs);
    // As plain bytes it can be loaded.
    let lone = holding(&[("packed", &model)]);
    lone.define("def forward(self, i: Tensor) -> Tensor:\n    return ops.quantized.embedding_4bit(self.packed, i)\n")
        .unwrap();
    let native = to_native(&lone).unwrap();
    let i = [indices(&[0, 10, 3, 3], &[2, 2], true)];
    let loaded = Module::load_bytes(&native.save_bytes().unwrap()).unwrap();
    assert_eq!(floats(&loaded.forward(&i).unwrap()), floats(&model.forward(&i).unwrap()));
}

#[test]
fn bags_of_4_bits_begin_where_they_say() {
    let model = table(6, 4, 4, 3);
    let i = indices(&[0, 1, 2], &[3], true);
    let sums = || floats(&model.call("sums", &[i.clone(), indices(&[1], &[1], true)]).unwrap());
    let rows = floats(&model.forward(std::slice::from_ref(&i)).unwrap());
    let sum = |first: usize| (0..4).map(|c| rows[4 * first + c] + rows[4 * first + 4 + c]).collect::<Vec<_>>();
    assert!(close(&sums(), &sum(0)), "libtorch reads offsets now: docs/differences.md has a line too many");
    accelerate(&model).unwrap();
    assert!(close(&sums(), &sum(1)));
}

#[test]
fn an_odd_number_of_4_bit_columns_is_one_more_as_in_libtorch() {
    let odd = table(3, 5, 4, 1);
    let row = [indices(&[1, 2, 0], &[3], true)];
    let theirs = odd.forward(&row).unwrap();
    assert_eq!(is(&theirs), [3, 6]);
    assert_eq!(accelerate(&odd).unwrap(), ONE);
    assert_eq!(floats(&odd.forward(&row).unwrap()), floats(&theirs));
}

#[test]
fn accelerated_tables_refuse_in_words_what_does_not_fit() {
    let model = table(6, 4, 8, 2);
    accelerate(&model).unwrap();
    let i = |values: &[i64]| indices(values, &[values.len() as i64], true);
    let refuses = |call: jitquant::Result<IValue>, words: &str| {
        let refusal = call.unwrap_err().to_string();
        assert!(refusal.contains(words), "{refusal}");
    };
    refuses(model.forward(&[i(&[1, 6])]), "index 6 at position 1 is not a row of a table of 6");
    refuses(model.call("sums", &[i(&[0, -1]), i(&[0])]), "index -1 at position 1 is not a row of a table of 6");
    refuses(model.call("sums", &[i(&[0, 1]), i(&[0, 2, 1])]), "offset 1 at position 2: offsets must not decrease");
    refuses(model.call("pruned_rows", &[i(&[1])]), "pruned weights without compressed_indices_mapping");
    refuses(
        model.forward(&[tensor(&[2], 1)]),
        "quantized::embedding_byte: the indices are CPUFloatType; int32 or int64",
    );
    let few = IValue::Tensor(tensor(&[1], 1));
    let bag = [i(&[0, 1]), i(&[0]), IValue::Bool(false), few, IValue::None, IValue::Bool(false)];
    refuses(model.call("bags", &bag), "quantized::embedding_bag_byte: 1 weights of CPUFloatType for 2 indices");
}

#[test]
fn tables_are_packed_as_libtorch_packs_them() {
    let ops = module(
        "def stock(self, w: Tensor):\n    return ops.quantized.embedding_bag_byte_prepack(w), ops.quantized.embedding_bag_4bit_prepack(w)\n\
         def native(self, w: Tensor):\n    return ops.jitquant.embedding_prepack(w), ops.jitquant.embedding_prepack(w, 4)\n\
         def sizes(self, w: Tensor):\n    w = torch.empty_like(w, device='meta')\n    return ops.jitquant.embedding_prepack(w), ops.jitquant.embedding_prepack(w, 4)\n",
    );
    // The second is large enough for several threads.
    for shape in [[7, 6], [4000, 130]] {
        let parts = |method: &str| {
            let IValue::Tuple(parts) = ops.call(method, &[tensor(&shape, 9)]).unwrap() else { panic!("two tensors") };
            parts
        };
        let bytes = |x: &IValue| x.as_tensor().unwrap().to_vec::<u8>().unwrap();
        for ((stock, native), sizes) in parts("stock").iter().zip(&parts("native")).zip(&parts("sizes")) {
            assert_eq!(is(stock), is(native));
            assert_eq!(is(sizes), is(native));
            assert_eq!(bytes(stock), bytes(native));
        }
    }
}

#[test]
fn native_operators_give_rows_sums_and_means() {
    // Against libtorch's operators in float on the table as libtorch unpacks it.
    for (bits, b) in [(8, "byte"), (4, "4bit")] {
        let compare = |name: &str, theirs: &str, ours: &str| {
            let ops = module(&format!(
                "def stock(self, w: Tensor, i: Tensor, o: Tensor, s: Tensor) -> Tensor:\n    \
                 t = ops.jitquant.embedding_prepack(w, {bits})\n    f = ops.quantized.embedding_bag_{b}_unpack(t)\n    return {theirs}\n\
                 def native(self, w: Tensor, i: Tensor, o: Tensor, s: Tensor) -> Tensor:\n    \
                 t = ops.jitquant.embedding_prepack(w, {bits})\n    return {ours}\n\
                 def sizes(self, w: Tensor, i: Tensor, o: Tensor, s: Tensor) -> Tensor:\n    \
                 i, o, s = torch.empty_like(i, device='meta'), torch.empty_like(o, device='meta'), torch.empty_like(s, device='meta')\n    \
                 t = ops.jitquant.embedding_prepack(torch.empty_like(w, device='meta'), {bits})\n    return {ours}\n"
            ));
            let arguments = [
                IValue::Tensor(tensor(&[50, 38], 3)),
                indices(&[4, 0, 49, 7, 7, 21, 3, 1], &[8], true),
                indices(&[0, 3, 3], &[3], true),
                IValue::Tensor(tensor(&[8], 4)),
            ];
            let (stock, native) = (ops.call("stock", &arguments).unwrap(), ops.call("native", &arguments).unwrap());
            assert_eq!(is(&stock), is(&native), "{name}");
            assert!(close(&floats(&native), &floats(&stock)), "{name}, {bits} bits: {native:?} {stock:?}");
            assert_eq!(is(&ops.call("sizes", &arguments).unwrap()), is(&native), "{name}: shape on meta tensors");
        };
        compare("rows", "torch.embedding(f, i)", &format!("ops.jitquant.embedding(t, i, {bits})"));
        compare(
            "a cube of rows, int32",
            "torch.embedding(f, i.view([2, 2, 2]))",
            &format!("ops.jitquant.embedding(t, i.view([2, 2, 2]).to(3), {bits})"),
        );
        for (mode, mean) in [(0, "False"), (1, "True")] {
            compare(
                "bags",
                &format!("torch.embedding_bag(f, i, o, False, {mode})[0]"),
                &format!("ops.jitquant.embedding_bag(t, i, o, {bits}, {mean})"),
            );
            compare(
                "bags with an end",
                &format!("torch.embedding_bag(f, i, o, False, {mode}, False, None, True)[0]"),
                &format!("ops.jitquant.embedding_bag(t, i, o.to(3), {bits}, {mean}, None, None, True)"),
            );
        }
        compare(
            "weighted bags",
            "torch.embedding_bag(f, i, o, False, 0, False, s)[0]",
            &format!("ops.jitquant.embedding_bag(t, i, o, {bits}, False, s)"),
        );
        compare(
            "rows of a matrix, columns last",
            "torch.sum(torch.embedding(f, i.view([4, 2]).t()), [1])",
            &format!("ops.jitquant.embedding_bag(t, i.view([4, 2]).t(), None, {bits})"),
        );
    }
}

#[test]
fn native_operators_refuse_in_words() {
    let refuses = |call: &str, words: &str| {
        let ops = module(&format!(
            "def run(self, w: Tensor) -> Tensor:\n    t = ops.jitquant.embedding_prepack(w)\n    i = torch.zeros([2], dtype=4)\n    return {call}\n"
        ));
        let refusal = ops.call("run", &[tensor(&[3, 4], 1)]).unwrap_err().to_string();
        assert!(refusal.contains(words), "{call}: {refusal}");
    };
    refuses("ops.jitquant.embedding_prepack(t)", "the weight is CPUByteType of sizes [3, 12]; float32 [rows, columns]");
    refuses("ops.jitquant.embedding_prepack(w, 2)", "an embedding table of 2 bits; 8 and 4 are accepted");
    refuses("ops.jitquant.embedding_prepack(w[:, :3], 4)", "an embedding table of 3 columns");
    refuses("ops.jitquant.embedding(w, i)", "the table is CPUFloatType of sizes [3, 4]; uint8 [rows, bytes of a row]");
    refuses("ops.jitquant.embedding(t[:, :8], i)", "rows of 8 bytes; 8 for scale and bias, and more");
    refuses("ops.jitquant.embedding(t, i + 3)", "index 3 at position 0 is not a row of a table of 3");
    refuses("ops.jitquant.embedding_bag(t, i)", "indices of sizes [2] without offsets");
    refuses("ops.jitquant.embedding_bag(t, i.view([1, 2]), i)", "indices of sizes [1, 2] with offsets");
    refuses("ops.jitquant.embedding_bag(t, i, w)", "the offsets are CPUFloatType; int32 or int64 is accepted");
    refuses("ops.jitquant.embedding_bag(t, i, i + 5)", "offset 5 at position 0: offsets must not decrease");
    refuses("ops.jitquant.embedding_bag(t, i, i[:1], 8, False, w)", "12 weights of CPUFloatType for 2 indices");
    refuses(
        "ops.jitquant.embedding_bag(t, i, i[:1], 8, False, None, i)",
        "the mapping is CPULongType of 2 elements; int32",
    );
}

/// How often `model` calls each operator of jitquant.
fn native_operators(model: &Module) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in model.graph("forward").unwrap().all_nodes() {
        *counts.entry(node.kind().to_owned()).or_default() += 1;
    }
    counts.retain(|kind, _| kind.starts_with("jitquant::"));
    counts
}

#[test]
fn the_native_form_looks_up_plain_tables() {
    let (byte, four) = (table(20, 12, 8, 6), table(20, 12, 4, 7));
    let model = holding(&[("byte", &byte), ("four", &four)]);
    model
        .define(
            "def forward(self, i: Tensor, o: Tensor, m: Tensor, t: Tensor) -> Tensor:\n    \
             x = ops.quantized.embedding_bag_byte(self.byte, i, o)\n    \
             x = x + ops.quantized.embedding_bag_4bit(self.four, i, o, False, 0, True, None, m)\n    \
             x = x + ops.quantized.embedding_bag_byte_rowwise_offsets(t, i, o, False, 1)\n    \
             y = ops.quantized.embedding_byte(self.byte, i) + ops.quantized.embedding_4bit(self.four, i)\n    \
             return torch.cat([x, y])\n",
        )
        .unwrap();
    let map: Vec<i32> = (0..20).map(|k| if k % 2 == 0 { -1 } else { k / 2 }).collect();
    let plain = module("def pack(self, w: Tensor):\n    return ops.jitquant.embedding_prepack(w)\n")
        .call("pack", &[tensor(&[20, 12], 8)])
        .unwrap();
    let arguments = [
        indices(&[1, 19, 4, 4, 7], &[5], true),
        indices(&[0, 2], &[2], true),
        IValue::Tensor(Tensor::from_slice(&map, &[20]).unwrap()),
        plain,
    ];
    let expected = floats(&model.forward(&arguments).unwrap());
    let native = to_native(&model).unwrap();
    let counts = BTreeMap::from([("jitquant::embedding".to_owned(), 2), ("jitquant::embedding_bag".to_owned(), 3)]);
    assert_eq!(native_operators(&native), counts);
    assert_eq!(stock_operators(&native).unwrap(), BTreeMap::new());
    assert!(close(&floats(&native.forward(&arguments).unwrap()), &expected));
    // Each table is kept once, as plain bytes, also where ours was packed already.
    let tables = |model: &Module| model.attributes().into_iter().map(|kept| kept.name).collect::<Vec<_>>();
    assert_eq!(tables(&native), ["jitquant_weight_0", "jitquant_weight_1"]);
    let loaded = Module::load_bytes(&native.save_bytes().unwrap()).unwrap();
    assert!(close(&floats(&loaded.forward(&arguments).unwrap()), &expected));
    assert_eq!(accelerate(&model).unwrap().replaced, 2);
    let native = to_native(&model).unwrap();
    assert_eq!(native_operators(&native), counts);
    assert!(close(&floats(&native.forward(&arguments).unwrap()), &expected));
}

/// Handles on one module and its inputs, for another thread.
struct Shared<T>(T);

// SAFETY: libtorch counts references atomically and lets many threads run a module that nobody changes; each thread has
// handles of its own.
unsafe impl<T> Send for Shared<T> {}

#[test]
fn many_threads_look_up_in_one_table() {
    for bits in [8, 4] {
        let model = table(300, 128, bits, 12);
        // Enough for libtorch's own threads as well.
        let count = 3000;
        let places: Vec<i64> = noise(count, 13).iter().map(|v| ((v + 1.0) * 149.0) as i64).collect();
        let starts: Vec<i64> = (0..count as i64 / 5).map(|bag| bag * 5 - bag % 3).map(|start| start.max(0)).collect();
        let arguments = [indices(&places, &[count as i64], false), indices(&starts, &[starts.len() as i64], false)];
        let answers = |model: &Module, arguments: &[IValue]| {
            [model.forward(&arguments[..1]).unwrap(), model.call("sums", arguments).unwrap()].map(|x| floats(&x))
        };
        let theirs = answers(&model, &arguments);
        accelerate(&model).unwrap();
        let ours = answers(&model, &arguments);
        assert_eq!(ours[0], theirs[0]);
        assert!(close(&ours[1], &theirs[1]));
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let work = Shared((model.clone(), arguments.clone(), ours.clone()));
                std::thread::spawn(move || {
                    let Shared((model, arguments, ours)) = { work };
                    for round in 0..20 {
                        assert_eq!(answers(&model, &arguments), ours, "round {round}");
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // What is wrong is found in whichever part it is.
        let mut bad = starts.clone();
        bad[400] = 1 + bad[401];
        let refused = [arguments[0].clone(), indices(&bad, &[bad.len() as i64], false)];
        let refusal = model.call("sums", &refused).unwrap_err().to_string();
        assert!(refusal.contains(&format!("offset {} at position 401", bad[401])), "{refusal}");
        let mut bad = places.clone();
        bad[2999] = 300;
        let refusal = model.forward(&[indices(&bad, &[count as i64], false)]).unwrap_err().to_string();
        assert!(refusal.contains("index 300 at position 2999 is not a row of a table of 300"), "{refusal}");
    }
}
