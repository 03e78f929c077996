//! Files of models: what is written is read, and runs with the bits of the Program that it was made of.

#[path = "../examples/classify.rs"]
#[allow(dead_code)]
mod example;
mod networks;

use jitquant_kernels::{Isa, PackedConv, PackedGemm, Serial};
use jitquant_runtime::{
    Builder, Call, Element, Float, Input, Model, Op, OwnedValues, PlainWeight, TensorRef, ValuesMut, Weight,
    WeightForm, write_model,
};
use networks::{file, floats, network};

enum Packed {
    Conv(Box<PackedConv>),
    Linear(PackedGemm),
}

fn packed(plain: &PlainWeight) -> Packed {
    let isa = Isa::current();
    match plain.form {
        WeightForm::Conv { shape, .. } => {
            Packed::Conv(Box::new(PackedConv::new(isa, &plain.values, shape, &plain.zero_points).unwrap()))
        }
        WeightForm::Linear { n, k } => {
            Packed::Linear(PackedGemm::new(isa, &plain.values, n, k, &plain.zero_points).unwrap())
        }
    }
}

/// What the Program itself gives, in the order of the indices: bits of scores, then of features.
fn expected(values: &[f32], [n, h, w]: [i64; 3]) -> Vec<Vec<u32>> {
    let (program, plain) = network();
    let own: Vec<Packed> = plain.iter().map(packed).collect();
    let weights: Vec<Weight<'_>> = own
        .iter()
        .zip(&plain)
        .map(|(packed, plain)| match packed {
            Packed::Conv(packed) => Weight::Conv { packed, dimensions: 2, scales: &plain.scales, bias: &plain.bias },
            Packed::Linear(packed) => Weight::Linear { packed, scales: &plain.scales, bias: &plain.bias },
        })
        .collect();
    let (sizes, strides) = ([n, 3, h, w], [3 * h * w, h * w, w, 1]);
    let inputs = [Input::floats(values, &sizes, &strides)];
    let call = Call { inputs: &inputs, numbers: &[], weights: &weights };
    let plan = program.plan(&call, &Serial).unwrap();
    let layouts = plan.outputs().to_vec();
    let mut memory: Vec<Vec<f32>> = layouts.iter().map(|layout| vec![0.0; layout.span()]).collect();
    let mut lent: Vec<&mut [u8]> = memory.iter_mut().map(|values| bytemuck::cast_slice_mut(values)).collect();
    program.run(&plan, &call, &mut lent, &Serial).unwrap();
    let in_order = |(values, layout): (&Vec<f32>, &jitquant_runtime::Layout)| {
        let mut places = vec![0i64];
        for (size, stride) in layout.sizes.iter().zip(&layout.strides) {
            places = places.iter().flat_map(|place| (0..*size).map(move |at| place + at * stride)).collect();
        }
        places.into_iter().map(|place| values[place as usize].to_bits()).collect()
    };
    memory.iter().zip(&layouts).map(in_order).collect()
}

fn bits(model: &Model, values: &[f32], sizes: &[i64]) -> Vec<Vec<u32>> {
    let results = model.run(&[TensorRef::floats(values, sizes)]).unwrap();
    results.iter().map(|result| result.floats().unwrap().iter().map(|value| value.to_bits()).collect()).collect()
}

#[test]
fn a_file_runs_with_the_bits_of_its_program() {
    let model = Model::from_bytes(&file()).unwrap();
    for threads in [1, 3] {
        model.set_threads(threads).unwrap();
        for [n, h, w] in [[1, 8, 8], [5, 13, 9], [2, 8, 30]] {
            let values = floats((n * 3 * h * w) as usize, 5);
            assert_eq!(bits(&model, &values, &[n, 3, h, w]), expected(&values, [n, h, w]), "{threads} {n} {h} {w}");
        }
    }
}

#[test]
fn a_file_is_described() {
    let model = Model::from_bytes(&file()).unwrap();
    let said: Vec<_> = model.inputs().iter().chain(model.outputs()).map(ToString::to_string).collect();
    let features = "features: float32 [batch, 16, features.2, features.3]";
    assert_eq!(said, ["image: float32 [batch, 3, height, width]", "scores: float32 [batch, 5]", features]);
    let sizes = model.output_sizes(&[TensorRef::floats(&floats(3 * 64, 1), &[1, 3, 8, 8])]).unwrap();
    assert_eq!(sizes, [(Element::F32, vec![1, 5]), (Element::F32, vec![1, 16, 3, 3])]);
}

#[test]
fn a_file_is_opened_and_need_not_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.jqp");
    std::fs::write(&path, file()).unwrap();
    let model = Model::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let values = floats(3 * 64, 9);
    assert_eq!(bits(&model, &values, &[1, 3, 8, 8]), expected(&values, [1, 8, 8]));
    let why = Model::open(&path).err().unwrap().to_string();
    assert!(why.contains("model.jqp"), "{why}");
    let why = Model::open(folder.path()).err().unwrap().to_string();
    assert!(why.contains("not a file"), "{why}");
}

#[test]
fn results_go_into_the_callers_memory() {
    let model = Model::from_bytes(&file()).unwrap();
    let values = floats(2 * 3 * 64, 2);
    let input = [TensorRef::floats(&values, &[2, 3, 8, 8])];
    let (mut scores, mut features) = (vec![0.0; 10], vec![0.0; 2 * 16 * 9]);
    model.run_into(&input, &mut [ValuesMut::F32(&mut scores), ValuesMut::F32(&mut features)]).unwrap();
    let results = model.run_named(&[("image", input[0])]).unwrap();
    assert_eq!((results[0].floats().unwrap(), results[1].floats().unwrap()), (&scores[..], &features[..]));
    let mut short = vec![0.0; 9];
    let before = features.clone();
    features.fill(7.0);
    let why = model.run_into(&input, &mut [ValuesMut::F32(&mut short), ValuesMut::F32(&mut features)]).unwrap_err();
    assert!(why.to_string().contains("9 F32 for scores: float32 [batch, 5], which is [2, 5] here"), "{why}");
    assert!(features.iter().all(|value| *value == 7.0) && before.iter().any(|value| *value != 7.0));
    let mut bytes = vec![0; 10];
    model.run_into(&input, &mut [ValuesMut::U8(&mut bytes), ValuesMut::F32(&mut features)]).unwrap_err();
    model.run_into(&input, &mut [ValuesMut::F32(&mut scores)]).unwrap_err();
}

#[test]
fn what_a_model_does_not_take_is_said() {
    let model = Model::from_bytes(&file()).unwrap();
    let values = floats(4 * 64, 1);
    let why = |given: &[TensorRef<'_>]| model.run(given).unwrap_err().to_string();
    let said = why(&[TensorRef::floats(&values, &[1, 4, 8, 8])]);
    assert!(said.contains("image: float32 [batch, 3, height, width]") && said.contains("3 channels"), "{said}");
    assert!(why(&[TensorRef::floats(&values, &[1, 3, 8, 8])]).contains("256 values for sizes [1, 3, 8, 8]"));
    assert!(why(&[TensorRef::floats(&values, &[-1, -4, 8, 8])]).contains("256 values for sizes"));
    assert!(why(&[TensorRef::floats(&values, &[i64::MAX, i64::MAX, 8, 8])]).contains("256 values for sizes"));
    assert!(why(&[TensorRef::floats(&[], &[0, 3, 8, 8])]).contains("[0, 3, 8, 8]"));
    assert!(why(&[TensorRef::bytes(&networks::noise(192, 1), &[1, 3, 8, 8])]).contains("U8 given for image"));
    assert!(why(&[]).contains("0 tensors given; the model takes image"));
    let named = model.run_named(&[("picture", TensorRef::floats(&values, &[1, 4, 8, 8]))]).unwrap_err();
    assert!(named.to_string().contains("[\"picture\"] given; the model takes image"), "{named}");
    assert!(model.set_threads(0).unwrap_err().to_string().contains("1 to 1024"));
}

#[test]
fn steps_without_a_form_in_files_are_refused() {
    let mut builder = Builder::default();
    let x = builder.input();
    let y = builder.step(Op::Float(Float::Softmax), &[x]).unwrap();
    let program = builder.finish(&[y]).unwrap();
    let name = ["x".to_owned()];
    let why = write_model(&program, &[], &name, &name, None).unwrap_err().to_string();
    assert!(why.contains("softmax: steps on floats have no form in a file"), "{why}");
}

#[test]
fn many_threads_run_one_model() {
    let model = Model::from_bytes(&file()).unwrap();
    model.set_threads(2).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let model = &model;
            scope.spawn(move || {
                let values = floats(3 * 64, seed);
                let expected = expected(&values, [1, 8, 8]);
                (0..10).for_each(|_| assert_eq!(bits(model, &values, &[1, 3, 8, 8]), expected));
            });
        }
    });
}

#[test]
fn the_example_classifies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.jqp");
    std::fs::write(&path, file()).unwrap();
    let values = floats(2 * 3 * 64, 4);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let said = example::classify(path.to_str().unwrap(), &bytes, &[2, 3, 8, 8]).unwrap();
    let scores = Model::open(&path).unwrap().run(&[TensorRef::floats(&values, &[2, 3, 8, 8])]).unwrap();
    let OwnedValues::F32(scores) = &scores[0].values else { panic!("scores are floats") };
    let best = |scores: &[f32]| scores.iter().position(|score| scores.iter().all(|other| other <= score)).unwrap();
    assert_eq!(said, format!("0: class {}\n1: class {}", best(&scores[..5]), best(&scores[5..])));
}
