//! The C ABI from the side of a careless caller: null pointers, wrong and freed handles, many threads, panics.

#![cfg(feature = "torch")]
#![allow(unsafe_code)]

mod support;

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use jitquant::capi::*;
use jitquant::ir::{IValue, Module};
use support::{classifier, images};

fn last_error() -> String {
    // SAFETY: never null, and valid until the next failure on this thread.
    unsafe { CStr::from_ptr(jq_last_error()) }.to_str().unwrap().to_owned()
}

/// A status and what its message has to hold.
#[track_caller]
fn refused(status: jq_status, expected: jq_status, message: &str) {
    let said = last_error();
    assert_eq!(status, expected, "{said}");
    assert!(said.contains(message), "'{said}' does not say '{message}'");
}

#[track_caller]
fn ok(status: jq_status) {
    assert_eq!(status, JQ_OK, "{}", last_error());
}

fn load() -> *mut jq_module {
    let bytes = classifier().save_bytes().unwrap();
    let mut module = null_mut();
    // SAFETY: the bytes and the out-pointer are good for the call.
    ok(unsafe { jq_module_load_bytes(bytes.as_ptr(), bytes.len(), &mut module) });
    module
}

const SHAPE: [i64; 4] = [8, 1, 12, 12];

fn batch(data: &[f32]) -> jq_buffer {
    jq_buffer { dtype: JQ_F32, dims: 4, shape: SHAPE.as_ptr(), strides: null(), data: data.as_ptr().cast() }
}

fn prepare(quantizer: *mut jq_quantizer, module: *mut jq_module) -> *mut jq_prepared {
    let mut prepared = null_mut();
    // SAFETY: as above.
    ok(unsafe { jq_quantizer_prepare(quantizer, module, &mut prepared) });
    prepared
}

fn quantizer() -> *mut jq_quantizer {
    let mut quantizer = null_mut();
    // SAFETY: as above.
    ok(unsafe { jq_quantizer_new(JQ_STATIC, &mut quantizer) });
    quantizer
}

#[test]
fn null_and_wrong_handles_give_a_status() {
    let module = load();
    let mut value = null_mut();
    let mut count = 7;
    // SAFETY: handles are looked up, not read; the other pointers are good or null.
    unsafe {
        refused(jq_module_load(null(), &mut null_mut()), JQ_ERROR_ARGUMENT, "'path' is null");
        refused(jq_module_load(c"x.pt".as_ptr(), null_mut()), JQ_ERROR_ARGUMENT, "'module' is null");
        refused(jq_module_load(c"/nowhere/x.pt".as_ptr(), &mut null_mut()), JQ_ERROR_IO, "/nowhere/x.pt");
        refused(jq_module_save(null(), c"x.pt".as_ptr()), JQ_ERROR_ARGUMENT, "a jq_module is expected");
        refused(jq_module_forward(module, null(), 3, &mut value), JQ_ERROR_ARGUMENT, "3 items are announced");
        refused(jq_strings_count(module.cast(), &mut count), JQ_ERROR_HANDLE, "is a jq_module, not a jq_strings");
        let stack = 5u64;
        refused(jq_strings_count((&raw const stack).cast(), &mut count), JQ_ERROR_HANDLE, "no jq_strings of jitquant");
        refused(jq_module_free((&raw const stack).cast_mut().cast()), JQ_ERROR_HANDLE, "no jq_module");
        refused(jq_node_kind((&raw const stack).cast(), &mut null()), JQ_ERROR_HANDLE, "callback in progress");
        refused(jq_quantizer_new(5, &mut null_mut()), JQ_ERROR_ARGUMENT, "JQ_STATIC");
        let of_activations = quantizer();
        refused(jq_quantizer_set_weight_bits(of_activations, 4, 64), JQ_ERROR_ARGUMENT, "weight-only");
        ok(jq_quantizer_free(of_activations));
        refused(jq_value_text(null(), &mut null()), JQ_ERROR_ARGUMENT, "'value' is null");
        refused(jq_module_from_torch(null(), &mut null_mut()), JQ_ERROR_ARGUMENT, "torch::jit::Module");
        refused(jq_set_log(99, None, null_mut()), JQ_ERROR_ARGUMENT, "level 99");
        let wrong = [0xffu8, 0];
        let of_activations = quantizer();
        refused(jq_quantizer_skip(of_activations, wrong.as_ptr().cast()), JQ_ERROR_ARGUMENT, "not UTF-8");
        ok(jq_quantizer_free(of_activations));
        assert_eq!(count, 7, "out-pointers are left as they were");
        ok(jq_module_free(null_mut()));
        ok(jq_module_free(module));
        refused(jq_module_free(module), JQ_ERROR_HANDLE, "freed");
        refused(jq_module_forward(module, null(), 0, &mut value), JQ_ERROR_HANDLE, "freed");
    }
}

#[test]
fn values_go_in_and_come_out() {
    let (mut tuple, mut list, mut item) = (null_mut(), null_mut(), null_mut());
    let mut values = [null_mut(); 4];
    let (mut kind, mut count, mut number, mut double, mut text) = (0, 0, 0, 0.0, null());
    // SAFETY: all pointers are good for their calls.
    unsafe {
        let [int, dbl, txt, none] = &mut values;
        ok(jq_value_from_int(-3, int));
        ok(jq_value_from_double(0.5, dbl));
        ok(jq_value_from_text(c"seven".as_ptr(), txt));
        ok(jq_value_none(none));
        let items = values.map(|value| value.cast_const());
        ok(jq_value_tuple(items.as_ptr(), items.len(), &mut tuple));
        values.into_iter().for_each(|value| ok(jq_value_free(value)));
        ok(jq_value_item_count(tuple, &mut count));
        assert_eq!(count, 4);
        for (index, expected) in [JQ_INT, JQ_DOUBLE, JQ_TEXT, JQ_NONE].into_iter().enumerate() {
            ok(jq_value_item(tuple, index, &mut item));
            ok(jq_value_kind(item, &mut kind));
            assert_eq!(kind, expected);
            match expected {
                JQ_INT => ok(jq_value_int(item, &mut number)),
                JQ_DOUBLE => ok(jq_value_double(item, &mut double)),
                JQ_TEXT => {
                    ok(jq_value_text(item, &mut text));
                    assert_eq!(CStr::from_ptr(text), c"seven");
                }
                _ => refused(jq_value_int(item, &mut number), JQ_ERROR_ARGUMENT, "not an integer"),
            }
            ok(jq_value_free(item));
        }
        assert_eq!((number, double), (-3, 0.5));
        refused(jq_value_item(tuple, 4, &mut item), JQ_ERROR_ARGUMENT, "index 4: there are 4 items");
        let tuples = [tuple.cast_const()];
        refused(jq_value_list(c"int".as_ptr(), tuples.as_ptr(), 1, &mut list), JQ_ERROR_TORCH, "list of int");
        ok(jq_value_free(tuple));

        // A transposed view: the buffer's strides lead to the elements.
        let (data, shape, strides) = ([1i64, 2, 3, 4, 5, 6], [3i64, 2], [1i64, 3]);
        let view = jq_buffer {
            dtype: JQ_I64,
            dims: 2,
            shape: shape.as_ptr(),
            strides: strides.as_ptr(),
            data: data.as_ptr().cast(),
        };
        let mut tensor = null_mut();
        ok(jq_value_from_buffer(&view, &mut tensor));
        let mut back = jq_buffer { dtype: 0, dims: 0, shape: null(), strides: null(), data: null() };
        ok(jq_value_buffer(tensor, &mut back));
        assert_eq!((back.dtype, std::slice::from_raw_parts(back.shape, back.dims)), (JQ_I64, &shape[..]));
        assert_eq!(std::slice::from_raw_parts(back.data.cast::<i64>(), 6), [1, 4, 2, 5, 3, 6]);
        ok(jq_value_free(tensor));
    }
}

#[test]
fn models_go_through_memory_and_through_files_of_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"m\xffdel.pt"));
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let module = load();
    let (mut bytes, mut data, mut len) = (null_mut(), null(), 0);
    let (mut from_memory, mut from_file) = (null_mut(), null_mut());
    // SAFETY: all pointers are good for their calls.
    unsafe {
        ok(jq_module_save_bytes(module, &mut bytes));
        ok(jq_bytes_get(bytes, &mut data, &mut len));
        ok(jq_module_load_bytes(data, len, &mut from_memory));
        // A damaged one has the same status, from memory and from a file.
        let mut damaged = std::slice::from_raw_parts(data, len).to_vec();
        damaged[len / 2] ^= 1;
        refused(jq_module_load_bytes(damaged.as_ptr(), len, &mut null_mut()), JQ_ERROR_FILE, "the bytes given");
        std::fs::write(&path, &damaged).unwrap();
        refused(jq_module_load(name.as_ptr(), &mut null_mut()), JQ_ERROR_FILE, "del.pt");
        ok(jq_bytes_free(bytes));
        refused(jq_bytes_get(bytes, &mut data, &mut len), JQ_ERROR_HANDLE, "freed");

        ok(jq_module_save(module, name.as_ptr()));
        ok(jq_module_load(name.as_ptr(), &mut from_file));
        let values = images(8, 3).to_vec::<f32>().unwrap();
        let outputs = [module, from_memory, from_file].map(|module| {
            let (mut output, mut buffer) = (null_mut(), batch(&values));
            ok(jq_module_forward(module, &batch(&values), 1, &mut output));
            ok(jq_value_buffer(output, &mut buffer));
            let copy = std::slice::from_raw_parts(buffer.data.cast::<f32>(), 80).to_vec();
            ok(jq_value_free(output));
            ok(jq_module_free(module));
            copy
        });
        assert!(outputs.iter().all(|output| *output == outputs[0]));
    }
}

/// A model that takes a dictionary and gives two tensors.
fn of_dictionary() -> *mut jq_module {
    let model = Module::new("Sums").unwrap();
    let code = "def forward(self, named: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:\n    \
                return named['a'] + named['b'], named['a'].sum().to(4)\n";
    model.define(code).unwrap();
    let bytes = model.save_bytes().unwrap();
    let mut module = null_mut();
    // SAFETY: the bytes and the out-pointer are good for the call.
    ok(unsafe { jq_module_load_bytes(bytes.as_ptr(), bytes.len(), &mut module) });
    module
}

#[test]
fn dictionaries_go_in_and_results_come_into_memory_of_the_callers() {
    let module = of_dictionary();
    let (one, two, shape) = ([1.0f32, 2.0, 3.0, 4.0], [10.0f32, 20.0, 30.0, 40.0], [2i64, 2]);
    let tensor = |data: &[f32; 4]| {
        let mut value = null_mut();
        let buffer =
            jq_buffer { dtype: JQ_F32, dims: 2, shape: shape.as_ptr(), strides: null(), data: data.as_ptr().cast() };
        // SAFETY: the buffer and the out-pointer are good for the call.
        ok(unsafe { jq_value_from_buffer(&buffer, &mut value) });
        value.cast_const()
    };
    let items = [tensor(&one), tensor(&two)];
    let name = |name: &CStr| {
        let mut value = null_mut();
        // SAFETY: as above.
        ok(unsafe { jq_value_from_text(name.as_ptr(), &mut value) });
        value.cast_const()
    };
    let (keys, twice) = ([name(c"a"), name(c"b")], [name(c"a"), name(c"a")]);
    let (mut dict, mut kind) = (null_mut(), 0);
    let (mut sums, mut total) = ([0.0f32; 5], -1i64);
    let place = |data: *mut c_void| jq_output { dtype: JQ_F32, dims: 2, shape: shape.as_ptr(), data };
    let (text, of_tensors) = (c"str".as_ptr(), c"Tensor".as_ptr());
    // SAFETY: all pointers are good for their calls.
    unsafe {
        let make = |keys: &[*const jq_value; 2], value: *mut *mut jq_value| {
            jq_value_dict(text, of_tensors, keys.as_ptr(), items.as_ptr(), 2, value)
        };
        refused(make(&twice, &mut dict), JQ_ERROR_ARGUMENT, "2 keys, of which 1 are different");
        refused(make(&items, &mut dict), JQ_ERROR_TORCH, "dictionary from str to Tensor");
        assert!(dict.is_null());
        ok(make(&keys, &mut dict));
        ok(jq_value_kind(dict, &mut kind));
        assert_eq!(kind, JQ_DICT);

        let dict_only = [dict.cast_const()];
        let run = |outputs: &[jq_output]| {
            let (inputs, method) = (dict_only.as_ptr(), c"forward".as_ptr());
            jq_module_run_into(module, method, inputs, 1, outputs.as_ptr(), outputs.len())
        };
        let first = || place((&raw const sums).cast_mut().cast());
        let second = |dtype| jq_output { dtype, dims: 0, shape: null(), data: (&raw const total).cast_mut().cast() };
        refused(run(&[first()]), JQ_ERROR_ARGUMENT, "1 places; the result, a tuple, holds 2 tensors");
        refused(run(&[first(), second(JQ_F32)]), JQ_ERROR_ARGUMENT, "'outputs[1]' is for a tensor of F32 []");
        refused(run(&[place(null_mut()), second(JQ_I64)]), JQ_ERROR_ARGUMENT, "'outputs[0]': data is null");
        refused(run(&[jq_output { dims: 65, ..first() }, second(JQ_I64)]), JQ_ERROR_ARGUMENT, "65 dimensions");
        let huge = [i64::MAX, 2];
        let too_large = jq_output { shape: huge.as_ptr(), ..first() };
        refused(run(&[too_large, second(JQ_I64)]), JQ_ERROR_ARGUMENT, "more than fits into memory");
        refused(run(&[jq_output { dtype: 99, ..first() }, second(JQ_I64)]), JQ_ERROR_ARGUMENT, "99 is no element type");
        assert_eq!(
            ((&raw const sums).read_volatile(), (&raw const total).read_volatile()),
            ([0.0; 5], -1),
            "nothing was written"
        );
        let number = jq_output { dtype: JQ_I64, dims: 0, shape: null(), data: (&raw mut total).cast() };
        let outputs = [place((&raw mut sums).cast()), number];
        ok(run(&outputs));
        assert_eq!(
            ((&raw const sums).read_volatile(), (&raw const total).read_volatile()),
            ([11.0, 22.0, 33.0, 44.0, 0.0], 10)
        );
        items.into_iter().chain(keys).chain(twice).for_each(|value| ok(jq_value_free(value.cast_mut())));
        ok(jq_value_free(dict));
        ok(jq_module_free(module));
    }
}

#[test]
fn a_module_tells_what_it_takes_and_returns() {
    let model = Module::new("Two").unwrap();
    model
        .define(
            "def forward(self, image: Tensor, names: Dict[str, Tensor], scale: float = 2.0) -> Tuple[Tensor, int]:\n    \
             return image * scale, len(names)\n",
        )
        .unwrap();
    let bytes = model.save_bytes().unwrap();
    let (mut module, mut signature, mut inputs, mut outputs) = (null_mut(), null_mut(), 0, 0);
    // SAFETY: all pointers are good for their calls.
    unsafe {
        ok(jq_module_load_bytes(bytes.as_ptr(), bytes.len(), &mut module));
        refused(jq_module_signature(module, c"run".as_ptr(), &mut signature), JQ_ERROR_ARGUMENT, "it has forward");
        ok(jq_module_signature(module, c"forward".as_ptr(), &mut signature));
        ok(jq_signature_count(signature, &mut inputs, &mut outputs));
        assert_eq!((inputs, outputs), (3, 1));
        let mut seen = Vec::new();
        for (of, index) in [(0, 0), (0, 1), (0, 2), (1, 0)] {
            let mut found = jq_argument { name: null(), type_name: null(), has_default: 0 };
            ok([jq_signature_input, jq_signature_output][of](signature, index, &mut found));
            let text = |text| CStr::from_ptr(text).to_str().unwrap().to_owned();
            seen.push((text(found.name), text(found.type_name), found.has_default != 0));
        }
        let expected = [
            ("image", "Tensor", false),
            ("names", "Dict[str, Tensor]", false),
            ("scale", "float", true),
            ("", "Tuple[Tensor, int]", false),
        ];
        assert_eq!(seen, expected.map(|(name, type_name, default)| (name.to_owned(), type_name.to_owned(), default)));
        let mut none = jq_argument { name: null(), type_name: null(), has_default: 0 };
        refused(jq_signature_input(signature, 3, &mut none), JQ_ERROR_ARGUMENT, "there are 3 inputs");
        ok(jq_signature_free(signature));
        ok(jq_module_free(module));
    }
}

#[test]
fn a_model_is_quantized_inspected_and_cancelled() {
    let (module, quantizer) = (load(), quantizer());
    let data = images(8, 1).to_vec::<f32>().unwrap();
    let mut stages: Vec<String> = Vec::new();
    unsafe extern "C" fn note(stage: *const c_char, _: usize, total: usize, stages: *mut c_void) -> i32 {
        // SAFETY: the test hands over this Vec, and only this thread calls.
        let stages = unsafe { &mut *stages.cast::<Vec<String>>() };
        // SAFETY: a text, for the call.
        stages.push(unsafe { CStr::from_ptr(stage) }.to_str().unwrap().to_owned());
        // Ends the calibration at its third observed tensor.
        (total == 0 && stages.len() > 7).into()
    }
    // SAFETY: all pointers are good for their calls.
    unsafe {
        let (mut report, mut count) = (null_mut(), 0);
        ok(jq_quantizer_skip(quantizer, c"fc".as_ptr()));
        ok(jq_quantizer_inspect(quantizer, module, &mut report));
        ok(jq_report_layer_count(report, &mut count));
        assert_eq!(count, 4);
        let mut layer = jq_layer { path: null(), operation: null(), source: null(), reason: null() };
        ok(jq_report_layer(report, 3, &mut layer));
        assert_eq!((CStr::from_ptr(layer.path), CStr::from_ptr(layer.operation)), (c"fc", c"linear"));
        assert!(CStr::from_ptr(layer.reason).to_str().unwrap().contains("configuration"));
        ok(jq_report_free(report));
        refused(jq_quantizer_set_qconfig(quantizer, c"[nonsense".as_ptr()), JQ_ERROR_ARGUMENT, "nonsense");

        ok(jq_quantizer_set_progress(quantizer, Some(note), (&raw mut stages).cast()));
        let prepared = prepare(quantizer, module);
        assert_eq!(stages.len(), 4, "{stages:?}");
        let input = batch(&data);
        refused(jq_prepared_calibrate(prepared, &input, 1, null_mut()), JQ_ERROR_CANCELLED, "cancelled");
        assert_eq!(stages[4..], ["running the model", "observing", "observing", "observing"]);
        ok(jq_quantizer_set_progress(quantizer, None, null_mut()));
        ok(jq_quantizer_cancel(quantizer));
        refused(jq_prepared_calibrate(prepared, &input, 1, null_mut()), JQ_ERROR_CANCELLED, "cancelled");
        let mut output = null_mut();
        ok(jq_prepared_calibrate(prepared, &input, 1, &mut output));
        ok(jq_value_free(output));
        let mut int8 = null_mut();
        ok(jq_prepared_convert(prepared, &mut int8, &mut report));
        ok(jq_report_quantized_layers(report, &mut count));
        assert_eq!(count, 3);
        ok(jq_report_operator_count(report, &mut count));
        assert!(count >= 2);
        ok(jq_report_free(report));
        ok(jq_module_free(int8));
        ok(jq_prepared_free(prepared));
        ok(jq_module_free(module));
        ok(jq_quantizer_free(quantizer));
    }
}

/// Any address may be handed from thread to thread; what it leads to is the library's concern.
struct Anywhere<T>(*mut T);
// SAFETY: handles may be used from any thread: that is what the test is about.
unsafe impl<T> Send for Anywhere<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Anywhere<T> {}

#[test]
fn threads_share_handles() {
    let (module, quantizer) = (load(), quantizer());
    let prepared = Anywhere(prepare(quantizer, module));
    let (module, quantizer) = (Anywhere(module), Anywhere(quantizer));
    let runs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (runs, module, quantizer, prepared) = (&runs, &module, &quantizer, &prepared);
            scope.spawn(move || {
                let data = images(8, thread).to_vec::<f32>().unwrap();
                let input = batch(&data);
                let mut output = null_mut();
                for _ in 0..10 {
                    // SAFETY: all pointers are good for their calls.
                    unsafe {
                        ok(jq_module_forward(module.0, &input, 1, &mut output));
                        ok(jq_value_free(output));
                        ok(jq_prepared_calibrate(prepared.0, &input, 1, null_mut()));
                        if thread == 0 {
                            ok(jq_prepared_free(prepare(quantizer.0, module.0)));
                        }
                    }
                    runs.fetch_add(1, Ordering::Relaxed);
                }
                // SAFETY: as above. A failure on this thread does not touch the messages of others.
                unsafe { refused(jq_module_free(input.data.cast_mut().cast()), JQ_ERROR_HANDLE, "no jq_module") };
            });
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), 80);
    let mut int8 = null_mut();
    // SAFETY: as above.
    unsafe {
        ok(jq_prepared_convert(prepared.0, &mut int8, null_mut()));
        ok(jq_module_free(int8));
        ok(jq_prepared_free(prepared.0));
        ok(jq_module_free(module.0));
        ok(jq_quantizer_free(quantizer.0));
    }
}

#[test]
fn passes_are_driven_one_by_one() {
    unsafe extern "C" fn packs(node: *const jq_node, kept: *mut c_void) -> i32 {
        let (mut kind, mut producer, mut inputs) = (null(), null(), 0);
        // SAFETY: the node is the callback's; the rest is good for the calls.
        unsafe {
            *kept.cast::<*const jq_node>() = node;
            ok(jq_node_kind(node, &mut kind));
            if CStr::from_ptr(kind) != c"quantized::linear_prepack" {
                return 0;
            }
            ok(jq_node_input_count(node, &mut inputs));
            assert_eq!(inputs, 2);
            ok(jq_node_input(node, 0, &mut producer));
            ok(jq_node_kind(producer, &mut kind));
            assert_eq!(CStr::from_ptr(kind), c"aten::quantize_per_tensor");
            refused(jq_node_input(node, 2, &mut producer), JQ_ERROR_ARGUMENT, "there are 2 inputs");
        }
        1
    }
    let linear = jitquant::ir::Module::new("Linear").unwrap();
    linear.register_parameter("weight", jitquant::ir::Tensor::from_slice(&[1.0f32, 2.0], &[1, 2]).unwrap()).unwrap();
    linear
        .define(
            "def quantize_forward(self, x: Tensor) -> Tensor:\n    \
             weight = torch.quantize_per_tensor(self.weight, 0.1, 0, 12)\n    \
             packed = ops.quantized.linear_prepack(weight, None)\n    \
             return ops.quantized.linear_dynamic(x, packed, False)\n",
        )
        .unwrap();
    let bytes = linear.save_bytes().unwrap();
    let (mut module, mut names, mut count) = (null_mut(), null_mut(), 0);
    let mut kept: *const jq_node = null();
    let kept_at: *mut c_void = (&raw mut kept).cast();
    let (method, prefix) = (c"quantize_forward".as_ptr(), c"_jit".as_ptr());
    // SAFETY: all pointers are good for their calls.
    unsafe {
        ok(jq_module_load_bytes(bytes.as_ptr(), bytes.len(), &mut module));
        refused(
            jq_register_prepack_params(module, method, None, null_mut(), prefix, &mut names),
            JQ_ERROR_ARGUMENT,
            "'is_packed_param' is null",
        );
        ok(jq_register_prepack_params(module, method, Some(packs), kept_at, prefix, &mut names));
        refused(jq_node_kind(kept, &mut null()), JQ_ERROR_HANDLE, "callback in progress");
        ok(jq_strings_count(names, &mut count));
        let mut text = null();
        ok(jq_strings_get(names, 1, &mut text));
        assert_eq!((count, CStr::from_ptr(text)), (2, c"_jit_quantize_forward_ondevice_ptq_packed_weight_0"));
        ok(jq_strings_free(names));
        ok(jq_module_free(module));

        // InsertObservers with observers of the caller's, on every part but one.
        let observer = jitquant::observer::ObserverConfig::new(jitquant::observer::ObserverKind::MinMax);
        let observer = observer.module().unwrap().save_bytes().unwrap();
        let (mut own, mut observed, module) = (null_mut(), null_mut(), load());
        ok(jq_module_load_bytes(observer.as_ptr(), observer.len(), &mut own));
        let entries = [
            jq_qconfig { path: c"".as_ptr(), activation: own, weight: own },
            jq_qconfig { path: c"fc".as_ptr(), activation: null(), weight: null() },
        ];
        let forward = c"forward".as_ptr();
        ok(jq_insert_observers(module, forward, entries.as_ptr(), 2, 0, JQ_STATIC, &mut observed));
        let mut paths = null_mut();
        ok(jq_module_submodules(observed, &mut paths));
        let (mut count, mut all) = (0, Vec::new());
        ok(jq_strings_count(paths, &mut count));
        for i in 0..count {
            ok(jq_strings_get(paths, i, &mut text));
            all.push(CString::from(CStr::from_ptr(text)).into_string().unwrap());
        }
        assert!(all.iter().any(|path| path.starts_with("conv1._observer_")), "{all:?}");
        assert!(!all.iter().any(|path| path.starts_with("fc._observer_")), "{all:?}");
        [own, observed, module].into_iter().for_each(|module| ok(jq_module_free(module)));
        ok(jq_strings_free(paths));
    }
}

#[test]
fn messages_go_to_the_sink() {
    unsafe extern "C" fn sink(level: jq_log_level, _: *const c_char, message: *const c_char, seen: *mut c_void) {
        // SAFETY: the test hands over this Mutex; the message is a text, for the call.
        let (seen, message) = unsafe { (&*seen.cast::<std::sync::Mutex<Vec<String>>>(), CStr::from_ptr(message)) };
        seen.lock().unwrap().push(format!("{level} {}", message.to_str().unwrap()));
    }
    let seen = std::sync::Mutex::new(Vec::<String>::new());
    let module = load();
    let observe_nothing = |path: &CStr| {
        let entry = jq_qconfig { path: path.as_ptr(), activation: null(), weight: null() };
        let mut observed = null_mut();
        // SAFETY: all pointers are good for the call.
        unsafe {
            ok(jq_insert_observers(module, c"forward".as_ptr(), &entry, 1, 0, JQ_STATIC, &mut observed));
            ok(jq_module_free(observed));
        }
    };
    // SAFETY: the sink takes the Mutex, which outlives its use.
    ok(unsafe { jq_set_log(JQ_LOG_WARN, Some(sink), (&raw const seen).cast_mut().cast()) });
    observe_nothing(c"no.such.part");
    // SAFETY: as above.
    ok(unsafe { jq_set_log(JQ_LOG_OFF, None, null_mut()) });
    observe_nothing(c"no.such.part.either");
    let seen: Vec<_> = seen.lock().unwrap().iter().filter(|text| text.contains("no.such.part")).cloned().collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].starts_with("2 ") && seen[0].contains("'no.such.part'"), "{seen:?}");
    // SAFETY: a handle.
    ok(unsafe { jq_module_free(module) });
}

fn observers_leave_the_choice(qat: *const jq_qat) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trained.pt");
    let text = CString::new(path.to_str().unwrap()).unwrap();
    let mut module = null_mut();
    // SAFETY: handles are looked up, not read; the other pointers are good for the calls.
    unsafe {
        ok(jq_qat_module(qat, &mut module));
        ok(jq_module_save(module, text.as_ptr()));
        ok(jq_module_free(module));
    }
    let is_open = |module: &Module| matches!(module.attribute("search"), Ok(IValue::Str(name)) if name == "auto");
    Module::load(&path).unwrap().modules().iter().any(|(_, module)| is_open(module))
}

#[test]
fn training_from_c() {
    let (module, quantizer) = (load(), quantizer());
    let data = images(8, 1).to_vec::<f32>().unwrap();
    let (mut qat, mut names, mut parameter, mut x, mut int8) =
        (null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
    let (mut count, mut quantized) = (0, 0);
    let (mut report, mut samples) = (null_mut(), null_mut());
    // SAFETY: handles are looked up, not read; the other pointers are good for the calls.
    unsafe {
        refused(jq_quantizer_resume_qat(quantizer, module, &mut qat), JQ_ERROR_ARGUMENT, "no observers");
        ok(jq_quantizer_prepare_qat(quantizer, module, &mut qat));
        ok(jq_value_from_buffer(&batch(&data), &mut x));
        ok(jq_qat_calibrate_values(qat, [x.cast_const()].as_ptr(), 1));
        ok(jq_data_new(&mut samples));
        ok(jq_data_add(samples, JQ_CALIBRATE, [x.cast_const()].as_ptr(), 1));
        assert!(observers_leave_the_choice(qat));
        ok(jq_qat_choose_ranges(qat, samples));
        assert!(!observers_leave_the_choice(qat));
        ok(jq_data_free(samples));
        refused(jq_qat_choose_ranges(qat, samples), JQ_ERROR_HANDLE, "data");
        ok(jq_qat_fake_quantize(qat, 1));
        ok(jq_qat_freeze_batch_norms(qat, 1));
        ok(jq_qat_observe(qat, 0));
        ok(jq_qat_parameter_names(qat, &mut names));
        ok(jq_strings_count(names, &mut count));
        assert_eq!(count, 8, "weights and biases of four layers");
        let mut name = null();
        ok(jq_strings_get(names, 0, &mut name));
        ok(jq_qat_parameter(qat, name, &mut parameter));
        let refusal = jq_qat_parameter(qat, c"nothing".as_ptr(), &mut null_mut());
        refused(refusal, JQ_ERROR_ARGUMENT, "no parameter is called 'nothing'");
        ok(jq_qat_convert(qat, &mut int8, &mut report));
        ok(jq_report_quantized_layers(report, &mut quantized));
        assert_eq!(quantized, 4);
        ok(jq_qat_free(qat));
        refused(jq_qat_observe(qat, 1), JQ_ERROR_HANDLE, "qat");
        ok(jq_qat_free(null_mut()));
        for free in [jq_value_free(x), jq_value_free(parameter), jq_strings_free(names), jq_report_free(report)] {
            ok(free);
        }
        for free in [jq_module_free(int8), jq_module_free(module), jq_quantizer_free(quantizer)] {
            ok(free);
        }
    }
}
