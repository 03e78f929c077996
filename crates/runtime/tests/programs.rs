//! Random Programs on random sizes give what their steps give one by one, by the scalar kernels and plain loops.

use jitquant_kernels::{
    AveragePool, ConvShape, DynamicScheme, Isa, Operand, PackedConv, PackedGemm, Parallel, Pixels, QParams, Requantize,
    Residual, Serial, Table, Window,
};
use jitquant_runtime::{
    Binary, Builder, Call, Element, Format, Input, Layout, Op, Product, Size, Store, ValueId, View, Weight,
};
use proptest::prelude::*;

/// Numbers that look random.
#[derive(Clone)]
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn qparams(&mut self) -> QParams {
        QParams::new(0.02 + self.next(50) as f32 / 500.0, self.next(256) as i32)
    }
}

/// Bytes in the order of indices.
#[derive(Clone, Debug, PartialEq)]
struct Plain {
    sizes: Vec<i64>,
    bytes: Vec<u8>,
}

impl Plain {
    fn of(layout: &Layout, at: impl Fn(&[usize]) -> u8) -> Self {
        let mut bytes = Vec::new();
        for_each(&layout.sizes, &mut |index| bytes.push(at(index)));
        Self { sizes: layout.sizes.clone(), bytes }
    }

    /// What lies in `memory` in this layout.
    fn read(layout: &Layout, memory: &[u8]) -> Self {
        Self::of(layout, |index| memory[place(layout, index)])
    }

    fn at(&self, index: &[usize]) -> u8 {
        self.bytes[index.iter().zip(&self.sizes).fold(0, |at, (index, size)| at * *size as usize + index)]
    }

    /// Its memory with channels last.
    fn channels_last(&self) -> Vec<u8> {
        let layout = Layout::new(Element::U8, &self.sizes, Format::ChannelsLast);
        let mut memory = vec![0; self.bytes.len()];
        let mut bytes = self.bytes.iter();
        for_each(&self.sizes, &mut |index| memory[place(&layout, index)] = *bytes.next().unwrap());
        memory
    }
}

fn for_each(sizes: &[i64], work: &mut dyn FnMut(&[usize])) {
    let count: usize = sizes.iter().map(|size| *size as usize).product();
    let mut index = vec![0; sizes.len()];
    for _ in 0..count {
        work(&index);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < sizes[axis] as usize {
                break;
            }
            index[axis] = 0;
        }
    }
}

fn place(layout: &Layout, index: &[usize]) -> usize {
    index.iter().zip(&layout.strides).map(|(index, stride)| index * *stride as usize).sum()
}

/// An image with channels last as a value.
fn from_channels_last(sizes: &[i64], memory: &[u8]) -> Plain {
    Plain::read(&Layout::new(Element::U8, sizes, Format::ChannelsLast), memory)
}

/// A layer's weight as it was before it was packed.
struct Raw {
    shape: ConvShape,
    weight: Vec<i8>,
    scales: Vec<f32>,
    bias: Vec<f32>,
}

impl Raw {
    fn new(noise: &mut Noise, inputs: usize) -> Self {
        let kernel = [1, 2, 3][noise.next(3)];
        let stride = 1 + noise.next(2);
        let depthwise = noise.next(3) == 0;
        let outputs = if depthwise { inputs } else { 1 + noise.next(20) };
        let shape = ConvShape {
            groups: if depthwise { inputs } else { 1 },
            kernel: [1, kernel, kernel],
            stride: [1, stride, stride],
            padding: [0, kernel / 2, kernel / 2],
            ..ConvShape::new(inputs, outputs)
        };
        let weight = (0..shape.weight_len()).map(|_| noise.next(255) as i8).collect();
        let scales = (0..outputs).map(|_| 0.001 + noise.next(100) as f32 / 20000.0).collect();
        let bias = (0..outputs).map(|_| noise.next(100) as f32 / 100.0 - 0.5).collect();
        Self { shape, weight, scales, bias }
    }

    /// By the definition.
    fn run(&self, x: &Plain, from: QParams, to: QParams, bounds: (u8, u8), added: Option<(&Plain, QParams)>) -> Plain {
        let shape = self.shape;
        let out = shape.output_spatial([1, x.sizes[2] as usize, x.sizes[3] as usize]).unwrap();
        let sizes = [x.sizes[0], shape.output_channels as i64, out[1] as i64, out[2] as i64];
        let scale: Vec<f32> = self.scales.iter().map(|scale| from.scale * scale / to.scale).collect();
        let bias: Vec<f32> = self.bias.iter().map(|bias| bias / to.scale).collect();
        let data: &[u8] = &[];
        let residual = added.map(|(_, q)| Residual { data, scale: q.scale / to.scale, zero_point: q.zero_point as u8 });
        let form = Requantize {
            scale: &scale,
            bias: &bias,
            zero_point: to.zero_point as u8,
            min: bounds.0,
            max: bounds.1,
            residual,
            table: None,
        };
        Plain::of(&Layout::new(Element::U8, &sizes, Format::Contiguous), |index| {
            let [n, o, i, j] = index[..] else { unreachable!() };
            let (inputs, first) = (shape.group_inputs(), o / shape.group_outputs() * shape.group_inputs());
            let mut sum = 0;
            for c in 0..inputs {
                for (u, v) in (0..shape.kernel[1]).flat_map(|u| (0..shape.kernel[2]).map(move |v| (u, v))) {
                    let (row, column) = (i * shape.stride[1] + u, j * shape.stride[2] + v);
                    let (row, column) = (row.wrapping_sub(shape.padding[1]), column.wrapping_sub(shape.padding[2]));
                    if row < x.sizes[2] as usize && column < x.sizes[3] as usize {
                        let byte = i32::from(x.at(&[n, first + c, row, column])) - from.zero_point;
                        let place = ((o * inputs + c) * shape.kernel[1] + u) * shape.kernel[2] + v;
                        sum += byte * i32::from(self.weight[place]);
                    }
                }
            }
            form.apply(sum, o, added.map_or(0, |(other, _)| other.at(index)))
        })
    }
}

/// A value of the graph: its number, its bytes, and what they stand for.
#[derive(Clone)]
struct Known {
    id: ValueId,
    value: Plain,
    q: QParams,
}

/// `x`, repeated to `sizes`.
fn repeated(x: &Plain, sizes: &[i64]) -> Plain {
    Plain::of(&Layout::new(Element::U8, sizes, Format::Contiguous), |index| {
        let own: Vec<_> = index.iter().zip(&x.sizes).map(|(at, size)| if *size == 1 { 0 } else { *at }).collect();
        x.at(&own)
    })
}

struct Graph {
    builder: Builder,
    values: Vec<Known>,
    weights: Vec<Raw>,
    noise: Noise,
}

impl Graph {
    fn pick(&mut self) -> Known {
        let index = self.noise.next(self.values.len());
        self.values[index].clone()
    }

    fn add(&mut self, op: Op, operands: &[ValueId], value: Plain, q: QParams) {
        let id = self.builder.step(op, operands).unwrap();
        self.values.push(Known { id, value, q });
    }

    fn grow(&mut self) {
        let x = self.pick();
        let to = self.noise.qparams();
        match self.noise.next(10) {
            0 => {
                let table = Table::requantize(x.q, to);
                let bytes = x.value.bytes.iter().map(|byte| table.bytes()[usize::from(*byte)]).collect();
                let value = Plain { bytes, ..x.value.clone() };
                self.add(Op::Lookup(Box::new(table)), &[x.id], value, to);
            }
            1 | 2 => self.conv(&x, to),
            3 | 4 => self.binary(&x, to),
            5 => self.cat(&x, to),
            6 => self.pool(&x),
            7 => self.view(&x),
            8 => {
                let (low, high) = (self.noise.next(100) as u8, 150 + self.noise.next(100) as u8);
                let bytes = x.value.bytes.iter().map(|byte| (*byte).clamp(low, high)).collect();
                self.add(Op::Clamp(low, high), &[x.id], Plain { bytes, ..x.value.clone() }, x.q);
            }
            _ => self.mean(&x),
        }
    }

    fn conv(&mut self, x: &Known, to: QParams) {
        let raw = Raw::new(&mut self.noise, x.value.sizes[1] as usize);
        if raw.shape.output_spatial([1, x.value.sizes[2] as usize, x.value.sizes[3] as usize]).is_err() {
            return;
        }
        let bounds = (self.noise.next(3) as u8 * 40, 255);
        let plain = raw.run(&x.value, x.q, to, bounds, None);
        let other = self.values.iter().rev().find(|other| other.value.sizes == plain.sizes).cloned();
        let other = other.filter(|_| self.noise.next(2) == 0);
        let value = raw.run(&x.value, x.q, to, bounds, other.as_ref().map(|other| (&other.value, other.q)));
        let store =
            Store::Bytes { to, min: bounds.0, max: bounds.1, residual: other.as_ref().map(|o| o.q), table: None };
        let weight = self.builder.weight();
        self.weights.push(raw);
        let operands: Vec<_> = std::iter::once(x.id).chain(other.map(|other| other.id)).collect();
        self.add(Op::Conv(Product { weight, x: x.q, store }), &operands, value, to);
    }

    fn binary(&mut self, x: &Known, to: QParams) {
        let fits = |a: &Plain, b: &Plain| a.sizes.iter().zip(&b.sizes).all(|(a, b)| a == b || *a == 1 || *b == 1);
        let others: Vec<_> = self.values.iter().filter(|other| fits(&x.value, &other.value)).cloned().collect();
        let y = others[self.noise.next(others.len())].clone();
        let sizes: Vec<_> = x.value.sizes.iter().zip(&y.value.sizes).map(|(a, b)| *a.max(b)).collect();
        let (a, b) = (repeated(&x.value, &sizes), repeated(&y.value, &sizes));
        let (min, max) = [(0, 255), (to.zero_point as u8, 255), (20, 200)][self.noise.next(3)];
        let multiplies = self.noise.next(2) == 0;
        let kernel = if multiplies { jitquant_kernels::mul } else { jitquant_kernels::add };
        let mut bytes = vec![0; a.bytes.len()];
        let (first, second) = (Operand { data: &a.bytes, qparams: x.q }, Operand { data: &b.bytes, qparams: y.q });
        let relu = i32::from(min) == to.zero_point && max == 255;
        kernel(Isa::Scalar, first, second, to, relu, &mut bytes);
        bytes.iter_mut().for_each(|byte| *byte = (*byte).max(min).min(max));
        let form = Binary { a: x.q, b: y.q, to, min, max };
        let op = if multiplies { Op::Mul(form) } else { Op::Add(form) };
        self.add(op, &[x.id, y.id], Plain { sizes, bytes }, to);
    }

    fn cat(&mut self, x: &Known, to: QParams) {
        let axis = self.noise.next(4);
        let fits = |other: &Plain| (0..4).all(|at| at == axis || other.sizes[at] == x.value.sizes[at]);
        let others: Vec<_> = self.values.iter().filter(|other| fits(&other.value)).cloned().collect();
        let count = 1 + self.noise.next(3);
        let operands: Vec<_> = (0..count).map(|_| others[self.noise.next(others.len())].clone()).collect();
        let to = if self.noise.next(2) == 0 { operands[0].q } else { to };
        let tables: Vec<_> =
            operands.iter().map(|o| (o.q != to).then(|| Box::new(Table::requantize(o.q, to)))).collect();
        let mut sizes = x.value.sizes.clone();
        sizes[axis] = operands.iter().map(|operand| operand.value.sizes[axis]).sum();
        let value = Plain::of(&Layout::new(Element::U8, &sizes, Format::Contiguous), |index| {
            let mut index = index.to_vec();
            for (operand, table) in operands.iter().zip(&tables) {
                let size = operand.value.sizes[axis] as usize;
                if index[axis] < size {
                    let byte = operand.value.at(&index);
                    return table.as_ref().map_or(byte, |table| table.bytes()[usize::from(byte)]);
                }
                index[axis] -= size;
            }
            unreachable!()
        });
        let ids: Vec<_> = operands.iter().map(|operand| operand.id).collect();
        self.add(Op::Cat { axis: axis as i64 - 4, tables }, &ids, value, to);
    }

    fn image(x: &Plain) -> Pixels {
        Pixels::dense(x.sizes[0] as usize, [1, x.sizes[2] as usize, x.sizes[3] as usize], x.sizes[1] as usize)
    }

    fn pool(&mut self, x: &Known) {
        let window = Window::d2([2, 2], [1 + self.noise.next(2), 2], [1, 0]);
        let image = Self::image(&x.value);
        let out = image.resized(window.output(image.size));
        if out.size.contains(&0) {
            return;
        }
        let mut bytes = vec![0; out.bytes(out.rows())];
        jitquant_kernels::max_pool(
            Isa::Scalar,
            &x.value.channels_last(),
            image,
            window,
            out,
            0..out.rows(),
            &mut bytes,
        );
        let sizes = [x.value.sizes[0], x.value.sizes[1], out.size[1] as i64, out.size[2] as i64];
        self.add(Op::MaxPool { window, dimensions: 2 }, &[x.id], from_channels_last(&sizes, &bytes), x.q);
    }

    fn mean(&mut self, x: &Known) {
        let image = Self::image(&x.value);
        let out = image.resized([1, 1, 1]);
        let mut bytes = vec![0; out.bytes(out.rows())];
        let zero_point = x.q.zero_point as u8;
        let memory = x.value.channels_last();
        jitquant_kernels::adaptive_avg_pool(Isa::Scalar, &memory, image, zero_point, out, 0..out.rows(), &mut bytes);
        let value = from_channels_last(&[x.value.sizes[0], x.value.sizes[1], 1, 1], &bytes);
        self.add(Op::AdaptiveAvgPool { sizes: vec![1, 1], zero_point }, &[x.id], value, x.q);
        self.mean_of_dimensions(x, image, out);
    }

    /// The same by its dimensions, without them in the result or with.
    fn mean_of_dimensions(&mut self, x: &Known, image: Pixels, out: Pixels) {
        let mut bytes = vec![0; out.bytes(out.rows())];
        let zero_point = x.q.zero_point as u8;
        let window = Window { stride: image.size, ..Window::d2([image.size[1], image.size[2]], [1, 1], [0, 0]) };
        let pool = AveragePool { window, count_include_pad: false, divisor_override: None };
        let memory = x.value.channels_last();
        jitquant_kernels::avg_pool(Isa::Scalar, &memory, image, zero_point, pool, out, 0..out.rows(), &mut bytes);
        let value = from_channels_last(&[x.value.sizes[0], x.value.sizes[1], 1, 1], &bytes);
        let keep = self.noise.next(2) == 0;
        let axes = if self.noise.next(2) == 0 { vec![2, 3] } else { vec![-1, -2] };
        let mean = Op::Mean { axes, keep, zero_point };
        if keep {
            return self.add(mean, &[x.id], value, x.q);
        }
        let flat = self.builder.step(mean, &[x.id]).unwrap();
        let row = self.builder.step(Op::View(View::Unsqueeze(2)), &[flat]).unwrap();
        self.add(Op::View(View::Unsqueeze(3)), &[row], value, x.q);
    }

    fn view(&mut self, x: &Known) {
        let s = &x.value.sizes;
        let of = |sizes: &[i64], from: &dyn Fn(&[usize]) -> Vec<usize>| {
            Plain::of(&Layout::new(Element::U8, sizes, Format::Contiguous), |index| x.value.at(&from(index)))
        };
        let (view, value) = match self.noise.next(4) {
            0 => (View::Permute(vec![0, 3, 1, 2]), of(&[s[0], s[3], s[1], s[2]], &|i| vec![i[0], i[2], i[3], i[1]])),
            1 => (View::Transpose(1, -1), of(&[s[0], s[3], s[2], s[1]], &|i| vec![i[0], i[3], i[2], i[1]])),
            2 if s[1] > 1 => {
                let view = View::Slice { axis: 1, start: Size::Known(1), end: Size::Known(i64::MAX), step: 1 };
                (view, of(&[s[0], s[1] - 1, s[2], s[3]], &|i| vec![i[0], i[1] + 1, i[2], i[3]]))
            }
            _ => {
                let sizes = [s[0], s[1] * s[2], 1, s[3]];
                let known = |at: i64| Box::new(Size::Of(x.id, at));
                let given = vec![Size::Of(x.id, 0), Size::Product(known(1), known(2)), Size::Known(1), Size::Known(-1)];
                (View::Reshape(given), Plain { sizes: sizes.to_vec(), bytes: x.value.bytes.clone() })
            }
        };
        self.add(Op::View(view), &[x.id], value, x.q);
    }
}

/// Tasks in another order than they were given, as on several threads.
struct Backwards(usize);

impl Parallel for Backwards {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).rev().for_each(task);
    }
}

fn check(seed: u64, sizes: [i64; 4], steps: usize, last: bool) {
    let mut noise = Noise(seed);
    let q = noise.qparams();
    let format = if last { Format::ChannelsLast } else { Format::Contiguous };
    let layout = Layout::new(Element::U8, &sizes, format);
    let memory: Vec<u8> = (0..layout.span()).map(|_| noise.next(256) as u8).collect();
    let mut builder = Builder::default();
    let id = builder.input();
    let value = Plain::read(&layout, &memory);
    let mut graph = Graph { builder, values: vec![Known { id, value, q }], weights: Vec::new(), noise };
    (0..steps).for_each(|_| graph.grow());
    let Graph { builder, values, weights, mut noise } = graph;
    // Some of them, the last one among them.
    let asked: Vec<_> = (0..values.len()).filter(|at| at + 1 == values.len() || noise.next(4) == 0).collect();
    let program = builder.finish(&asked.iter().map(|at| values[*at].id).collect::<Vec<_>>()).unwrap();
    let pack = |raw: &Raw| PackedConv::new(Isa::current(), &raw.weight, raw.shape, &[]).unwrap();
    let packed: Vec<_> = weights.iter().map(pack).collect();
    let given: Vec<_> = weights
        .iter()
        .zip(&packed)
        .map(|(raw, packed)| Weight::Conv { packed, dimensions: 2, scales: &raw.scales, bias: &raw.bias })
        .collect();
    let inputs = [Input::bytes(&memory, &layout.sizes, &layout.strides)];
    let call = Call { inputs: &inputs, numbers: &[], weights: &given };
    let (one, many): (&dyn Parallel, &dyn Parallel) = (&Serial, &Backwards(3));
    for threads in [one, many, one] {
        let plan = program.plan(&call, threads).unwrap();
        let mut outputs: Vec<Vec<u8>> = plan.outputs().iter().map(|layout| vec![0xAA; layout.span()]).collect();
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        program.run(&plan, &call, &mut slices, threads).unwrap();
        for ((at, layout), memory) in asked.iter().zip(plan.outputs()).zip(&outputs) {
            assert_eq!(Plain::read(layout, memory), values[*at].value, "value {at} of {:?}", program.steps());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn steps_together_give_what_they_give_one_by_one(
        seed in any::<u64>(), n in 1i64..3, c in 1i64..9, h in 1i64..9, w in 1i64..9, steps in 1usize..14, last in any::<bool>(),
    ) {
        check(seed, [n, c, h, w], steps, last);
    }
}

#[test]
fn large_tensors_are_split_between_threads() {
    (0..6).for_each(|seed| check(seed, [1, 24, 90, 90], 5, seed % 2 == 0));
}

#[test]
fn linear_layers_take_rows_and_ranges_of_their_own() {
    let (n, k, rows) = (5usize, 7usize, 3usize);
    let weight: Vec<i8> = (0..n * k).map(|at| (at * 37 % 200) as i8).collect();
    let packed = PackedGemm::new(Isa::current(), &weight, n, k, &[]).unwrap();
    let (scales, bias) = ([0.01f32], vec![0.5f32; n]);
    let weights = [Weight::Linear { packed: &packed, scales: &scales, bias: &bias }];
    let x: Vec<f32> = (0..rows * k).map(|at| (at as f32 * 0.7).sin()).collect();

    let mut builder = Builder::default();
    let (input, slot) = (builder.input(), builder.weight());
    let (scheme, min, max) = (DynamicScheme::PerRow, 0.0, f32::INFINITY);
    let y = builder.step(Op::LinearDynamic { weight: slot, scheme, min, max }, &[input]).unwrap();
    let program = builder.finish(&[y]).unwrap();
    // Columns are rows: the input is copied first.
    let (sizes, strides) = ([rows as i64, k as i64], [1, rows as i64]);
    let inputs = [Input::floats(&x, &sizes, &strides)];
    let call = Call { inputs: &inputs, numbers: &[], weights: &weights };
    let plan = program.plan(&call, &Serial).unwrap();
    let mut out = vec![0f32; rows * n];
    program.run(&plan, &call, &mut [bytes_of(&mut out)], &Serial).unwrap();

    let copied: Vec<f32> = (0..rows * k).map(|at| x[at % k * rows + at / k]).collect();
    let mut expected = vec![0f32; rows * n];
    let mut scratch = vec![0; packed.dynamic_scratch_len(rows)];
    let form = jitquant_kernels::Dequantize { scale: &scales, bias: &bias, min, max };
    packed.run_dynamic(&copied, rows, scheme, &mut expected, form, &mut scratch, &Serial).unwrap();
    assert_eq!(out, expected);
}

fn bytes_of(floats: &mut [f32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(floats)
}

#[test]
fn what_does_not_fit_is_refused_and_plans_are_bounded() {
    let mut builder = Builder::default();
    let x = builder.input();
    let y = builder.step(Op::Clamp(1, 9), &[x]).unwrap();
    assert!(builder.step(Op::Clamp(1, 9), &[x, y]).is_err(), "an operand too many");
    let program = builder.finish(&[y]).unwrap();
    let memory = [5u8; 100];
    for size in 1..=100i64 {
        let (sizes, strides) = ([size], [1]);
        let inputs = [Input::bytes(&memory[..size as usize], &sizes, &strides)];
        let call = Call { inputs: &inputs, numbers: &[], weights: &[] };
        let plan = program.plan(&call, &Serial).unwrap();
        let mut out = vec![0; size as usize];
        program.run(&plan, &call, &mut [&mut out], &Serial).unwrap();
        let mut short = vec![0; size as usize - 1];
        assert!(program.run(&plan, &call, &mut [&mut short], &Serial).is_err());
        assert!(program.run(&plan, &call, &mut [], &Serial).is_err());
    }
    assert!(program.plans() <= 32);
    let floats = [1.0f32];
    for (sizes, strides) in [(vec![0], vec![1]), (vec![-1], vec![1]), (vec![1, 1], vec![1]), (vec![i64::MAX], vec![9])]
    {
        let inputs = [Input { element: Element::U8, sizes: &sizes, strides: &strides, memory: &[] }];
        assert!(program.plan(&Call { inputs: &inputs, numbers: &[], weights: &[] }, &Serial).is_err());
    }
    let inputs = [Input::floats(&floats, &[1], &[1])];
    assert!(program.plan(&Call { inputs: &inputs, numbers: &[], weights: &[] }, &Serial).is_err());
}
