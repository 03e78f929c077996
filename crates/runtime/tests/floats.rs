//! Steps on floats: what plain loops give, on random sizes and orders of memory, with the same bits for any number of threads.

use jitquant_kernels::float::Arithmetic;
use jitquant_kernels::{Activation, DynamicScheme, Isa, PackedGemm, Parallel, Serial};
use jitquant_runtime::{
    Attention, Builder, Call, Element, Float, Input, Layout, Op, Plan, Program, Result, Size, ValueId, View, Weight,
};
use proptest::prelude::*;

/// Three threads, made for each call.
struct Three;

impl Parallel for Three {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            (0..tasks).for_each(|i| drop(scope.spawn(move || task(i))));
        });
    }
}

/// Numbers that look random.
#[derive(Clone)]
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn value(&mut self) -> f32 {
        self.next(1 << 20) as f32 / (1 << 18) as f32 - 2.0
    }

    fn tensor(&mut self, sizes: &[i64]) -> Tensor {
        let len = sizes.iter().product::<i64>() as usize;
        let values = (0..len).map(|_| self.value()).collect();
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        if self.next(2) == 0 {
            (1..order.len()).for_each(|at| order.swap(at, self.next(at + 1)));
        }
        Tensor { sizes: sizes.to_vec(), values, order, gap: self.next(3) / 2 }
    }

    /// `sizes` of which some are 1, and some of the first are not there.
    fn broadcast(&mut self, sizes: &[i64]) -> Tensor {
        let from = if self.next(3) == 0 { self.next(sizes.len()) } else { 0 };
        let sizes: Vec<_> = sizes[from..].iter().map(|size| if self.next(3) == 0 { 1 } else { *size }).collect();
        self.tensor(&sizes)
    }
}

/// Values in the order of indices, and how they lie in memory: the order of dimensions, and elements that are nobody's behind the innermost one.
#[derive(Clone, Debug)]
struct Tensor {
    sizes: Vec<i64>,
    values: Vec<f32>,
    order: Vec<usize>,
    gap: usize,
}

impl Tensor {
    fn strides(&self) -> Vec<i64> {
        let mut strides = vec![1; self.sizes.len()];
        let mut stride = 1;
        for (at, axis) in self.order.iter().rev().enumerate() {
            strides[*axis] = stride;
            stride *= self.sizes[*axis] + if at == 0 { self.gap as i64 } else { 0 };
        }
        strides
    }

    fn memory(&self) -> Vec<f32> {
        let layout = Layout { element: Element::F32, sizes: self.sizes.clone(), strides: self.strides() };
        let mut memory = vec![f32::NAN; layout.span()];
        for (at, value) in self.values.iter().enumerate() {
            memory[place(&layout, &index(&self.sizes, at))] = *value;
        }
        memory
    }

    /// The value at an index of a tensor that this one is broadcast to.
    fn at(&self, index: &[usize]) -> f32 {
        let own = &index[index.len() - self.sizes.len()..];
        let at =
            own.iter().zip(&self.sizes).fold(0, |at, (i, size)| at * *size as usize + if *size == 1 { 0 } else { *i });
        self.values[at]
    }

    fn len(&self) -> usize {
        self.values.len()
    }
}

fn index(sizes: &[i64], mut at: usize) -> Vec<usize> {
    let mut index = vec![0; sizes.len()];
    for axis in (0..sizes.len()).rev() {
        (index[axis], at) = (at % sizes[axis] as usize, at / sizes[axis] as usize);
    }
    index
}

fn place(layout: &Layout, index: &[usize]) -> usize {
    index.iter().zip(&layout.strides).map(|(i, stride)| i * *stride as usize).sum()
}

/// The results of a Program in the order of indices, with their sizes; the same with three threads.
fn run(program: &Program, tensors: &[Tensor], weights: &[Weight<'_>]) -> Result<Vec<(Vec<i64>, Vec<f32>)>> {
    let memory: Vec<_> = tensors.iter().map(Tensor::memory).collect();
    let strides: Vec<_> = tensors.iter().map(Tensor::strides).collect();
    let inputs: Vec<_> =
        (0..tensors.len()).map(|i| Input::floats(&memory[i], &tensors[i].sizes, &strides[i])).collect();
    let call = Call { inputs: &inputs, numbers: &[], weights };
    let one = results(program, &call, &Serial)?;
    let bits = |all: &[(Vec<i64>, Vec<f32>)]| -> Vec<Vec<u32>> {
        let bits = |x: &f32| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() };
        all.iter().map(|(_, values)| values.iter().map(bits).collect()).collect()
    };
    assert_eq!(bits(&one), bits(&results(program, &call, &Three)?));
    Ok(one)
}

fn results(program: &Program, call: &Call<'_>, threads: &dyn Parallel) -> Result<Vec<(Vec<i64>, Vec<f32>)>> {
    let plan = program.plan(call, threads)?;
    let mut memory: Vec<Vec<f32>> = plan.outputs().iter().map(|layout| vec![f32::NAN; layout.span()]).collect();
    let mut outputs: Vec<&mut [u8]> = memory.iter_mut().map(|values| bytemuck::cast_slice_mut(values)).collect();
    program.run(&plan, call, &mut outputs, threads)?;
    let in_order = |(layout, memory): (&Layout, &Vec<f32>)| {
        let values = (0..layout.len()).map(|at| memory[place(layout, &index(&layout.sizes, at))]).collect();
        (layout.sizes.clone(), values)
    };
    Ok(plan.outputs().iter().zip(&memory).map(in_order).collect())
}

/// The kernels that a call takes.
fn kernels(program: &Program, tensors: &[Tensor], weights: &[Weight<'_>]) -> Vec<&'static str> {
    let memory: Vec<_> = tensors.iter().map(Tensor::memory).collect();
    let strides: Vec<_> = tensors.iter().map(Tensor::strides).collect();
    let inputs: Vec<_> =
        (0..tensors.len()).map(|i| Input::floats(&memory[i], &tensors[i].sizes, &strides[i])).collect();
    let plan = program.plan(&Call { inputs: &inputs, numbers: &[], weights }, &Serial).unwrap();
    Plan::tasks(&plan).into_iter().map(|task| task.kernel).collect()
}

/// A Program of one step on tensors, run.
fn step(op: Float, tensors: &[Tensor]) -> Result<(Vec<i64>, Vec<f32>)> {
    let mut builder = Builder::default();
    let inputs: Vec<_> = tensors.iter().map(|_| builder.input()).collect();
    let output = builder.step(Op::Float(op), &inputs)?;
    Ok(run(&builder.finish(&[output])?, tensors, &[])?.remove(0))
}

fn sizes(rank: std::ops::Range<usize>, most: i64) -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(1..=most, rank)
}

fn compute(op: Arithmetic, a: f32, b: f32) -> f32 {
    match op {
        Arithmetic::Add => a + b,
        Arithmetic::Sub => a - b,
        Arithmetic::Mul => a * b,
        Arithmetic::Div => a / b,
    }
}

const OPERATIONS: [Arithmetic; 4] = [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div];

/// The sizes of tensors together, where they fit.
fn together(tensors: &[&Tensor]) -> Vec<i64> {
    let rank = tensors.iter().map(|x| x.sizes.len()).max().unwrap();
    let size = |x: &Tensor, axis: usize| (axis + x.sizes.len()).checked_sub(rank).map_or(1, |axis| x.sizes[axis]);
    (0..rank).map(|axis| tensors.iter().map(|x| size(x, axis)).max().unwrap()).collect()
}

proptest! {
    #[test]
    fn arithmetic_is_rounded_once(all in sizes(1..5, 6), op in prop::sample::select(OPERATIONS.to_vec()), seed in any::<u64>()) {
        let mut noise = Noise(seed);
        let (a, b, c) = (noise.broadcast(&all), noise.broadcast(&all), noise.broadcast(&all));
        let (found, values) = step(Float::Arithmetic { op, in_place: false }, &[a.clone(), b.clone()])?;
        prop_assert_eq!(&found, &together(&[&a, &b]));
        for (at, value) in values.iter().enumerate() {
            let index = index(&found, at);
            prop_assert_eq!(value.to_bits(), compute(op, a.at(&index), b.at(&index)).to_bits());
        }
        let in_place = step(Float::Arithmetic { op, in_place: true }, &[a.clone(), b.clone()]);
        prop_assert_eq!(in_place.is_ok(), found == a.sizes);
        let (found, values) = step(Float::MultiplyAdd { in_place: false }, &[a.clone(), b.clone(), c.clone()])?;
        prop_assert_eq!(&found, &together(&[&a, &b, &c]));
        for (at, value) in values.iter().enumerate() {
            let index = index(&found, at);
            prop_assert_eq!(value.to_bits(), (a.at(&index) + b.at(&index) * c.at(&index)).to_bits());
        }
        let (number, is_left) = (noise.value(), noise.next(2) == 0);
        let (found, values) = step(Float::Number { op, number, is_left }, &[a.clone()])?;
        prop_assert_eq!(&found, &a.sizes);
        for (value, x) in values.iter().zip(&a.values) {
            let expected = if is_left { compute(op, number, *x) } else { compute(op, *x, number) };
            prop_assert_eq!(value.to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn functions_are_near_their_definition(all in sizes(1..4, 9), seed in any::<u64>()) {
        let x = Noise(seed).tensor(&all);
        for function in [Activation::Gelu, Activation::Silu, Activation::Tanh, Activation::Sigmoid, Activation::Relu] {
            let (found, values) = step(Float::Function(function), &[x.clone()])?;
            prop_assert_eq!(&found, &x.sizes);
            for (value, x) in values.iter().zip(&x.values) {
                let bound = 4e-7 * (1.0 + x.abs());
                prop_assert!((value - function.eval(*x)).abs() <= bound, "{function:?} of {x}: {value}");
            }
        }
    }

    #[test]
    fn rows_are_normed(all in sizes(1..4, 40), parameters in any::<[bool; 2]>(), last in 1..3usize, seed in any::<u64>()) {
        let mut noise = Noise(seed);
        let x = noise.tensor(&all);
        let own = all[all.len().saturating_sub(last)..].to_vec();
        let columns = own.iter().product::<i64>() as usize;
        let [weight, bias] = parameters;
        let (factors, offsets) = (noise.tensor(&own), noise.tensor(&own));
        let given = [(&x, true), (&factors, weight), (&offsets, bias)];
        let tensors: Vec<_> = given.into_iter().filter(|(_, is)| *is).map(|(x, _)| x.clone()).collect();
        let (found, values) = step(Float::LayerNorm { sizes: own, eps: 1e-5, weight, bias }, &tensors)?;
        prop_assert_eq!(&found, &x.sizes);
        for (values, row) in values.chunks(columns).zip(x.values.chunks(columns)) {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / columns as f64;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / columns as f64;
            for c in 0..columns {
                let factor = if weight { f64::from(factors.values[c]) } else { 1.0 } / (variance + 1e-5).sqrt();
                let offset = if bias { f64::from(offsets.values[c]) } else { 0.0 };
                let exact = (f64::from(row[c]) - mean) * factor + offset;
                let unit = (4.0 + columns as f64 / 32.0) * f64::from(f32::EPSILON) / 2.0;
                let bound = unit * (2.0 * factor.abs() + offset.abs() + exact.abs()) + 1e-37;
                prop_assert!((f64::from(values[c]) - exact).abs() <= bound, "{}, not {exact}", values[c]);
            }
        }
    }

    #[test]
    fn softmax_and_extremes_of_rows(all in sizes(1..4, 40), keeps in any::<bool>(), seed in any::<u64>()) {
        let mut noise = Noise(seed);
        let mut x = noise.tensor(&all);
        let columns = all[all.len() - 1] as usize;
        let (_, values) = step(Float::Softmax, &[x.clone()])?;
        for (values, row) in values.chunks(columns).zip(x.values.chunks(columns)) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            for (value, x) in values.iter().zip(row) {
                let exact = f64::from(x - most).exp() / sum;
                let bound = exact * (4.0 + columns as f64 / 32.0) * 6e-8;
                prop_assert!((f64::from(*value) - exact).abs() <= bound, "{value}, not {exact}");
            }
        }
        if noise.next(2) == 0 {
            let at = noise.next(x.len());
            x.values[at] = f32::NAN;
        }
        for is_most in [false, true] {
            let (found, values) = step(Float::Extreme { is_most, keeps }, &[x.clone()])?;
            prop_assert_eq!(found.len(), all.len() - usize::from(!keeps));
            for (value, row) in values.iter().zip(x.values.chunks(columns)) {
                let pick = |a: f32, b: f32| if is_most { a.max(b) } else { a.min(b) };
                let expected = row.iter().copied().reduce(pick).filter(|_| row.iter().all(|x| !x.is_nan()));
                prop_assert!(expected.map_or(value.is_nan(), |expected| expected == *value));
            }
        }
    }

    #[test]
    fn matrices_are_multiplied_in_order(outer in sizes(0..3, 4), [m, k, n] in [1..20i64, 1..40, 1..20], seed in any::<u64>()) {
        let mut noise = Noise(seed);
        let some = |noise: &mut Noise, matrix: [i64; 2]| {
            let from = if outer.is_empty() { 0 } else { noise.next(outer.len() + 1) };
            let outer = outer[from..].iter().map(|size| if noise.next(4) == 0 { 1 } else { *size });
            let sizes: Vec<_> = outer.chain(matrix).collect();
            noise.tensor(&sizes)
        };
        let (a, b) = (some(&mut noise, [m, k]), some(&mut noise, [k, n]));
        let (found, values) = step(Float::Matmul, &[a.clone(), b.clone()])?;
        prop_assert_eq!(&found[found.len() - 2..], &[m, n]);
        for (at, value) in values.iter().enumerate() {
            let index = index(&found, at);
            let (outer, [row, column]) = (&index[..index.len() - 2], [index[index.len() - 2], index[index.len() - 1]]);
            let a_at = |i: usize| a.at(&[outer, &[row, i]].concat());
            let b_at = |i: usize| b.at(&[outer, &[i, column]].concat());
            let expected = (0..k as usize).fold(0.0f32, |sum, i| a_at(i).mul_add(b_at(i), sum));
            prop_assert!(*value == expected, "{value}, not {expected}");
        }
    }

    #[test]
    fn attention_is_near_its_definition(
        [batch, heads, rows, columns, dim, values] in [1..4i64, 1..4, 1..20, 1..20, 1..20, 1..20],
        [causal, masked, is_bool, keys_are_columns, heads_inside, has_batch] in any::<[bool; 6]>(),
        seed in any::<u64>(),
    ) {
        let mut noise = Noise(seed);
        let outer = if has_batch { vec![batch, heads] } else { vec![heads] };
        let sizes = |matrix: [i64; 2]| [&outer[..], &matrix].concat();
        let q = noise.tensor(&sizes([rows, dim]));
        let k = noise.tensor(&sizes(if keys_are_columns { [dim, columns] } else { [columns, dim] }));
        let v = noise.tensor(&sizes([columns, values]));
        let mut mask = noise.broadcast(&sizes([rows, columns]));
        if is_bool {
            mask.values.iter_mut().for_each(|x| *x = f32::from(u8::from(*x > -1.0)));
        }
        let scale = 0.3;
        let form = Attention { scale: Some(scale), causal, mask: masked, blind_is_zero: true, keys_are_columns, heads_inside };
        let mut builder = Builder::default();
        let inputs: Vec<_> = (0..3 + usize::from(masked)).map(|_| builder.input()).collect();
        let output = builder.step(Op::Float(Float::Attention(form)), &inputs)?;
        let program = builder.finish(&[output])?;
        let tensors = [&q, &k, &v];
        let memory: Vec<_> = tensors.iter().map(|x| x.memory()).collect();
        let strides: Vec<_> = tensors.iter().chain([&&mask]).map(|x| x.strides()).collect();
        let mask_memory = mask.memory();
        let truth: Vec<u8> = mask_memory.iter().map(|x| u8::from(*x == 1.0)).collect();
        let mut given: Vec<_> = (0..3).map(|i| Input::floats(&memory[i], &tensors[i].sizes, &strides[i])).collect();
        if masked {
            given.push(match is_bool {
                true => Input { element: Element::Bool, sizes: &mask.sizes, strides: &strides[3], memory: &truth },
                false => Input::floats(&mask_memory, &mask.sizes, &strides[3]),
            });
        }
        let call = Call { inputs: &given, numbers: &[], weights: &[] };
        let (found, results) = results(&program, &call, &Serial)?.remove(0);
        prop_assert_eq!(&found, &sizes([rows, values]));
        for (at, value) in results.iter().enumerate() {
            let index = index(&found, at);
            let (outer, row, to) = (&index[..index.len() - 2], index[index.len() - 2], index[index.len() - 1]);
            let score = |column: usize| {
                let key = |i: usize| if keys_are_columns { [i, column] } else { [column, i] };
                let product = |i: usize| f64::from(q.at(&[outer, &[row, i]].concat())) * f64::from(k.at(&[outer, &key(i)].concat()));
                let added = match (masked, f64::from(mask.at(&[outer, &[row, column]].concat()))) {
                    (false, _) => 0.0,
                    (true, seen) if is_bool => if seen == 0.0 { f64::NEG_INFINITY } else { 0.0 },
                    (true, added) => added,
                };
                let score = (0..dim as usize).map(product).sum::<f64>() * f64::from(scale) + added;
                if causal && column > row { f64::NEG_INFINITY } else { score }
            };
            let scores: Vec<_> = (0..columns as usize).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<_> = scores.iter().map(|x| if *x == f64::NEG_INFINITY { 0.0 } else { (x - most).exp() }).collect();
            let sum: f64 = weights.iter().sum();
            let value_at = |column: usize| f64::from(v.at(&[outer, &[column, to]].concat()));
            let exact: f64 = weights.iter().enumerate().map(|(c, w)| w * value_at(c)).sum::<f64>();
            let exact = if sum == 0.0 { 0.0 } else { exact / sum };
            prop_assert!((f64::from(*value) - exact).abs() < 1e-4, "{value}, not {exact}");
        }
    }
}

/// Softmax attention of its parts, the results between as results too where `shows` says so: then nothing is fused.
fn decomposed(shows: bool, divides: bool, masked: bool) -> Program {
    let mut builder = Builder::default();
    let [q, k, v, mask] = [(); 4].map(|()| builder.input());
    let keys = builder.step(Op::View(View::Transpose(-1, -2)), &[k]).unwrap();
    let mut float = |op: Float, inputs: &[ValueId]| builder.step(Op::Float(op), inputs).unwrap();
    let scores = float(Float::Matmul, &[q, keys]);
    let op = if divides { Arithmetic::Div } else { Arithmetic::Mul };
    let scaled = float(Float::Number { op, number: 3.0, is_left: false }, &[scores]);
    let added = match masked {
        true => float(Float::Arithmetic { op: Arithmetic::Add, in_place: false }, &[scaled, mask]),
        false => scaled,
    };
    let weights = float(Float::Softmax, &[added]);
    let out = float(Float::Matmul, &[weights, v]);
    let turned = builder.step(Op::View(View::Transpose(1, 2)), &[out]).unwrap();
    let sizes = vec![Size::Of(turned, 0), Size::Of(turned, 1), Size::Known(-1)];
    let joined = builder.step(Op::View(View::Reshape(sizes)), &[turned]).unwrap();
    let outputs = if shows { vec![joined, scores, scaled, added, weights] } else { vec![joined] };
    builder.finish(&outputs).unwrap()
}

#[test]
fn attention_of_parts_is_one_step_without_copies() {
    let mut noise = Noise(5);
    for (divides, masked) in [(false, false), (true, true), (true, false), (false, true)] {
        let contiguous = |sizes: &[i64]| Tensor { order: (0..sizes.len()).collect(), gap: 0, ..Noise(9).tensor(sizes) };
        let tensors = [
            noise.tensor(&[2, 3, 7, 5]),
            noise.tensor(&[2, 3, 9, 5]),
            noise.tensor(&[2, 3, 9, 4]),
            contiguous(&[2, 1, 1, 9]),
        ];
        let (one, parts) = (decomposed(false, divides, masked), decomposed(true, divides, masked));
        assert_eq!(kernels(&one, &tensors, &[]), ["attention", "copy"]);
        assert!(kernels(&parts, &tensors, &[]).contains(&"softmax"));
        let (found, expected) = (run(&one, &tensors, &[]).unwrap(), run(&parts, &tensors, &[]).unwrap());
        assert_eq!(found[0].0, [2, 7, 12]);
        for (x, y) in found[0].1.iter().zip(&expected[0].1) {
            assert!((x - y).abs() < 2e-6, "{x} and {y}");
        }
    }
}

/// A dynamic layer on rows stretched to 0 to 1, as `pass/prepare` writes it, after gelu and before a residual sum; the results between as
/// results too where `shows` says so: then nothing is fused.
fn stretched(shows: bool, with_function: bool, with_residual: bool) -> Program {
    let mut builder = Builder::default();
    let [x, factors, bias, residual] = [(); 4].map(|()| builder.input());
    let weight = builder.weight();
    let float = |builder: &mut Builder, op: Float, inputs: &[ValueId]| builder.step(Op::Float(op), inputs).unwrap();
    let arithmetic = |op: Arithmetic, in_place: bool| Float::Arithmetic { op, in_place };
    let y = if with_function { float(&mut builder, Float::Function(Activation::Gelu), &[x]) } else { x };
    let low = float(&mut builder, Float::Extreme { is_most: false, keeps: true }, &[y]);
    let high = float(&mut builder, Float::Extreme { is_most: true, keeps: true }, &[y]);
    let range = float(&mut builder, arithmetic(Arithmetic::Sub, false), &[high, low]);
    let clamp = Activation::Clamp { min: 1e-12, max: f32::INFINITY };
    let span = float(&mut builder, Float::Function(clamp), &[range]);
    let above = float(&mut builder, arithmetic(Arithmetic::Sub, false), &[y, low]);
    let t = float(&mut builder, arithmetic(Arithmetic::Div, true), &[above, span]);
    let scheme = DynamicScheme::PerTensor { reduce_range: false };
    let layer = Op::LinearDynamic { weight, scheme, min: f32::NEG_INFINITY, max: f32::INFINITY };
    let layer = builder.step(layer, &[t]).unwrap();
    let scaled = float(&mut builder, arithmetic(Arithmetic::Mul, true), &[layer, span]);
    let added = float(&mut builder, Float::MultiplyAdd { in_place: true }, &[scaled, low, factors]);
    let mut out = float(&mut builder, arithmetic(Arithmetic::Add, true), &[added, bias]);
    if with_residual {
        out = float(&mut builder, arithmetic(Arithmetic::Add, false), &[residual, out]);
    }
    let outputs = if shows { vec![out, y, low, high, span, t, layer, scaled, added] } else { vec![out] };
    builder.finish(&outputs).unwrap()
}

proptest! {
    #[test]
    fn layers_on_stretched_rows_are_one_step(
        [rows, inputs, outputs] in [1..9i64, 1..70, 1..40],
        [with_function, with_residual] in any::<[bool; 2]>(),
        seed in any::<u64>(),
    ) {
        let mut noise = Noise(seed);
        let contiguous = |x: Tensor| Tensor { order: (0..x.sizes.len()).collect(), gap: 0, ..x };
        let mut x = noise.tensor(&[2, rows, inputs]);
        if noise.next(4) == 0 {
            // A row of equal values.
            x.values[..inputs as usize].fill(0.75);
        }
        let residual = noise.tensor(&[2, rows, outputs]);
        let tensors = [x, contiguous(noise.tensor(&[outputs])), contiguous(noise.tensor(&[outputs])), residual];
        let (n, k) = (outputs as usize, inputs as usize);
        let bytes: Vec<i8> = (0..n * k).map(|_| noise.next(255) as i8).collect();
        let scales: Vec<f32> = (0..n).map(|_| 0.001 + noise.next(100) as f32 / 20000.0).collect();
        let packed = PackedGemm::new(Isa::current(), &bytes, n, k, &[]).unwrap();
        let weights = [Weight::Linear { packed: &packed, scales: &scales, bias: &[] }];
        let one = stretched(false, with_function, with_residual);
        let copies_left_out: Vec<_> = kernels(&one, &tensors, &weights).into_iter().filter(|name| *name != "copy").collect();
        prop_assert_eq!(copies_left_out, ["linear_stretched"]);
        let parts = stretched(true, with_function, with_residual);
        let (found, expected) = (run(&one, &tensors, &weights)?.remove(0), run(&parts, &tensors, &weights)?);
        prop_assert_eq!(&found.0, &expected[0].0);
        let (low, span, t) = (&expected[2].1, &expected[4].1, &expected[5].1);
        for (at, (value, other)) in found.1.iter().zip(&expected[0].1).enumerate() {
            let (row, column) = (at / n, at % n);
            let weight = |i: usize| f32::from(bytes[column * k + i]) * scales[column];
            let product: f32 = (0..k).map(|i| (t[row * k + i] * weight(i)).abs()).sum();
            let added = (low[row] * tensors[1].values[column]).abs() + tensors[2].values[column].abs();
            let residual = if with_residual { tensors[3].values[at].abs() } else { 0.0 };
            let bound = 2f32.powi(-21) * (span[row] * product * 1.01 + added + residual) + 1e-30;
            prop_assert!((value - other).abs() <= bound, "{value} and {other}, {bound} apart");
        }
        let biased = [Weight::Linear { packed: &packed, scales: &scales, bias: &vec![1.0; n] }];
        prop_assert!(run(&one, &tensors, &biased).is_err());
    }
}

#[test]
fn a_dimension_is_unbound_into_as_many_tensors_as_it_has() {
    let mut noise = Noise(8);
    let x = noise.tensor(&[4, 3, 5]);
    let unbound = |count: i64| {
        let mut builder = Builder::default();
        let x = builder.input();
        let view = |index: i64| Op::View(View::Unbind { axis: 1, count, index });
        let parts: Vec<_> = (0..count).map(|index| builder.step(view(index), &[x]).unwrap()).collect();
        builder.finish(&parts).unwrap()
    };
    for (index, (sizes, values)) in run(&unbound(3), &[x.clone()], &[]).unwrap().into_iter().enumerate() {
        assert_eq!(sizes, [4, 5]);
        let expected: Vec<_> = (0..20).map(|at| x.at(&[at / 5, index, at % 5])).collect();
        assert_eq!(values, expected);
    }
    assert!(run(&unbound(2), &[x.clone()], &[]).is_err() && run(&unbound(4), &[x], &[]).is_err());
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mut noise = Noise(3);
    let wrong: [(Float, Vec<&[i64]>); 8] = [
        (Float::Arithmetic { op: Arithmetic::Add, in_place: false }, vec![&[2, 3], &[2, 4]]),
        (Float::MultiplyAdd { in_place: true }, vec![&[1, 3], &[2, 1], &[3]]),
        (Float::Matmul, vec![&[2, 3], &[4, 2]]),
        (Float::Matmul, vec![&[3], &[3, 2]]),
        (Float::Softmax, vec![&[]]),
        (Float::LayerNorm { sizes: vec![4], eps: 1e-5, weight: true, bias: false }, vec![&[2, 4], &[3]]),
        (Float::LayerNorm { sizes: vec![3], eps: 1e-5, weight: false, bias: false }, vec![&[2, 4]]),
        (Float::Extreme { is_most: true, keeps: true }, vec![&[]]),
    ];
    for (op, sizes) in wrong {
        let tensors: Vec<_> = sizes.iter().map(|sizes| noise.tensor(sizes)).collect();
        assert!(step(op.clone(), &tensors).is_err(), "{op:?}");
    }
    let truth = [1u8, 0];
    let mut builder = Builder::default();
    let x = builder.input();
    let y = builder.step(Op::Float(Float::Softmax), &[x]).unwrap();
    let program = builder.finish(&[y]).unwrap();
    let inputs = [Input { element: Element::Bool, sizes: &[2], strides: &[1], memory: &truth }];
    assert!(program.plan(&Call { inputs: &inputs, numbers: &[], weights: &[] }, &Serial).is_err());
}
