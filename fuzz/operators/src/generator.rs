//! Every operator of namespace `jitquant`, called through the dispatcher's boxed entry with arguments that nobody means: types that
//! the schema does not allow, or allows and the operator does not, ranks, sizes of zero, strides, integers at the ends of i64, NaN,
//! indices out of range, meta tensors. An operator answers with a result or with an error in words; on meta tensors it gives the shapes and
//! types that it gives on the CPU.

use std::collections::BTreeMap;

use jitquant::ir::{DType, IValue, Module, Operator, Tensor};

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    /// One in `n`.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// Integers that break sums. Those between, of which an output of some gigabytes could be made, are left out.
const INTEGERS: [i64; 16] = [
    i64::MIN,
    i64::MIN + 1,
    i64::MIN / 2,
    -(1 << 32),
    -(1 << 31) - 1,
    -1,
    0,
    1,
    255,
    256,
    1 << 31,
    1 << 32,
    1 << 40,
    i64::MAX / 2,
    i64::MAX - 1,
    i64::MAX,
];

const FLOATS: [f64; 13] =
    [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, -0.0, 1e-300, 1e-45, 1e-30, 0.5, 1e18, 1e39, 1e300];

const TYPES: [DType; 7] = [DType::U8, DType::I8, DType::I32, DType::I64, DType::F32, DType::F64, DType::I16];

/// What makes tensors of other layouts, and objects of libtorch's classes.
const MAKER: &str = "\
def transposed(self, x):
    return x.transpose(0, -1)
def expanded(self, x):
    return x.unsqueeze(0).expand([3] + x.size())
def every_other(self, x):
    return x[::2]
def last(self, x):
    return x.contiguous(memory_format=2)
def overlapping(self, x):
    return x.as_strided([2, 3], [1, 1])
def meta(self, x):
    return torch.empty_like(x, device='meta')
def linear(self, w, scale: float, zero: int):
    return ops.quantized.linear_prepack(torch.quantize_per_tensor(w, scale, zero, 12), None)
def conv2d(self, w, stride: List[int], padding: List[int], dilation: List[int], groups: int):
    return ops.quantized.conv2d_prepack(torch.quantize_per_tensor(w, 0.1, 0, 12), None, stride, padding, dilation, groups)
def conv3d(self, w, stride: List[int], padding: List[int], dilation: List[int], groups: int):
    return ops.quantized.conv3d_prepack(torch.quantize_per_tensor(w, 0.1, 0, 12), None, stride, padding, dilation, groups)
def embedding(self, w, scales, zeros, bits: int):
    return ops.quantized.embedding_bag_prepack(torch.quantize_per_channel(w, scales, zeros, 0, 13 if bits == 8 else 16))
";

struct Fuzzer {
    random: Random,
    maker: Module,
    /// Scales and zero points of a case: one, or one for each channel.
    count: i64,
    /// Packed weights that operators gave, by class.
    objects: BTreeMap<String, Vec<IValue>>,
}

impl Fuzzer {
    fn tensor(&mut self, shape: &[i64], dtype: DType) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let bytes: Vec<u8> = match dtype {
            DType::F32 => {
                let odd = self.random.once_in(8);
                let mut value = |_| match odd && self.random.once_in(4) {
                    true => self.random.pick(&FLOATS) as f32,
                    false => (self.random.below(2000) as f32 - 1000.0) / 500.0,
                };
                (0..count).flat_map(|index| value(index).to_ne_bytes()).collect()
            }
            DType::I32 | DType::I64 => {
                let odd = self.random.once_in(6);
                let mut value = |_| match odd && self.random.once_in(3) {
                    true => self.random.pick(&INTEGERS),
                    false => self.random.below(4) as i64,
                };
                let wide = dtype == DType::I64;
                let bytes = |value: i64| {
                    if wide { value.to_ne_bytes().to_vec() } else { (value as i32).to_ne_bytes().to_vec() }
                };
                (0..count).flat_map(|index| bytes(value(index))).collect()
            }
            _ => (0..count * dtype.size()).map(|_| self.random.next() as u8).collect(),
        };
        Tensor::from_bytes(dtype, shape, &bytes).unwrap()
    }

    fn sizes(&mut self, rank: usize) -> Vec<i64> {
        let zero = self.random.once_in(12);
        (0..rank).map(|_| if zero && self.random.once_in(3) { 0 } else { 1 + self.random.below(7) as i64 }).collect()
    }

    /// Any tensor: rank, type, layout.
    fn any_tensor(&mut self) -> IValue {
        let rank = self.random.below(7);
        let (shape, dtype) = (self.sizes(rank), self.random.pick(&TYPES));
        let x = self.tensor(&shape, dtype);
        self.laid_out(x)
    }

    /// The tensor in some layout, or without data.
    fn laid_out(&mut self, x: Tensor) -> IValue {
        let how = match self.random.below(12) {
            0 => "transposed",
            1 => "expanded",
            2 => "every_other",
            3 => "last",
            4 if self.random.once_in(3) => "overlapping",
            5 if self.random.once_in(3) => "meta",
            _ => return IValue::from(&x),
        };
        // A layout that does not fit the rank is none.
        self.maker.call(how, std::slice::from_ref(&x)).unwrap_or_else(|_| IValue::from(&x))
    }

    fn integer(&mut self) -> i64 {
        match self.random.once_in(3) {
            true => self.random.pick(&INTEGERS),
            false => self.random.below(9) as i64 - 2,
        }
    }

    /// Anything of a type.
    fn arbitrary(&mut self, ty: &str) -> Option<IValue> {
        if let Some(inner) = ty.strip_prefix("Optional[").and_then(|ty| ty.strip_suffix(']')) {
            return if self.random.once_in(3) { Some(IValue::None) } else { self.arbitrary(inner) };
        }
        let count = self.random.below(5);
        Some(match ty {
            "Tensor" => self.any_tensor(),
            "int" => IValue::Int(self.integer()),
            "float" => IValue::Double(self.random.pick(&FLOATS)),
            "bool" => IValue::Bool(self.random.once_in(2)),
            "str" => {
                IValue::Str(self.random.pick(&["", "relu", "clamp", "gelu", "entropy", "\u{1f980}", "min-max"]).into())
            }
            "List[int]" => IValue::int_list((0..count).map(|_| self.integer())),
            "List[float]" => IValue::double_list((0..count).map(|_| self.random.pick(&FLOATS))),
            "List[Tensor]" => {
                IValue::List { element: "Tensor".into(), items: (0..count).map(|_| self.any_tensor()).collect() }
            }
            class => self.random.pick(self.objects.get(class).filter(|known| !known.is_empty())?),
        })
    }

    /// A value of a type that the schema does not ask for, mostly: the boxed entry compares no types.
    fn wrong(&mut self) -> IValue {
        let mut types: Vec<_> =
            ["Tensor", "int", "float", "bool", "str", "List[int]", "List[float]", "List[Tensor]"].into();
        types.extend(self.objects.keys().map(String::as_str));
        let ty = self.random.pick(&types).to_owned();
        match self.random.below(10) {
            0 => IValue::None,
            1 => IValue::Tuple(vec![self.any_tensor(), IValue::Int(self.integer())]),
            _ => self.arbitrary(&ty).unwrap_or(IValue::None),
        }
    }

    /// What an argument of that name usually is, for an input of rank `rank` (spatial dimensions and two more).
    fn usual(&mut self, operator: &str, name: &str, ty: &str, shape: &[i64]) -> Option<IValue> {
        let (rank, op) = (shape.len(), operator.trim_start_matches("jitquant::"));
        let spatial = rank.saturating_sub(2).max(1);
        let small = |fuzzer: &mut Self, from: i64, most: usize| from + fuzzer.random.below(most) as i64;
        let takes_floats = op.starts_with("quantize")
            || op.contains("dynamic")
            || op.starts_with("observe")
            || op.starts_with("fake")
            || op.contains("weight_only")
            || op == "product";
        if ty.starts_with("Optional[") && self.random.once_in(2) {
            return Some(IValue::None);
        }
        let channels = *shape.get(1).unwrap_or(&1);
        let scalars = |fuzzer: &mut Self, dtype| IValue::from(&fuzzer.tensor(&[1], dtype));
        Some(match (name, ty.strip_prefix("Optional[").and_then(|ty| ty.strip_suffix(']')).unwrap_or(ty)) {
            ("min_val" | "max_val", "Tensor") if op.contains("per_channel") => {
                IValue::from(&Tensor::from_slice(&vec![0.5f32; shape[0] as usize], &[shape[0]]).unwrap())
            }
            ("min_val", "Tensor") => IValue::from(&Tensor::from_slice(&[-0.5f32], &[1]).unwrap()),
            ("max_val", "Tensor") => IValue::from(&Tensor::from_slice(&[0.5f32], &[1]).unwrap()),
            ("histogram", "Tensor") => {
                let bins = self.random.pick(&[0, 1, 2, 256, 300]);
                IValue::from(&Tensor::from_slice(&vec![1.0f32; bins as usize], &[bins]).unwrap())
            }
            ("table", "Tensor") if op.starts_with("embedding") => IValue::from(&self.tensor(&[4, 12], DType::U8)),
            ("table", "Tensor") => IValue::from(&self.tensor(&[256], DType::U8)),
            ("indices" | "offsets" | "compressed_indices_mapping", "Tensor") => {
                let dtype = self.random.pick(&[DType::I32, DType::I64]);
                let shape: &[i64] = if name == "indices" && self.random.once_in(2) { &[2, 3] } else { &[3] };
                IValue::from(&self.tensor(shape, dtype))
            }
            ("per_sample_weights", "Tensor") => IValue::from(&self.tensor(&[3], DType::F32)),
            ("scales" | "scale", "Tensor") if op.contains("weight_only") => {
                IValue::from(&Tensor::from_slice(&vec![0.1f32; shape[0] as usize], &[shape[0]]).unwrap())
            }
            ("offsets", _) => scalars(self, DType::F32),
            ("scales" | "scale", "Tensor") => {
                let count = self.count;
                IValue::from(&Tensor::from_slice(&vec![0.1f32; count as usize], &[count]).unwrap())
            }
            ("zero_points" | "zero_point", "Tensor") => {
                let count = self.count;
                let dtype = self.random.pick(&[DType::I32, DType::I64, DType::F32]);
                IValue::from(&self.tensor(&[count], dtype))
            }
            ("weight", "Tensor") if op == "embedding_prepack" => IValue::from(&self.tensor(&[3, 8], DType::F32)),
            ("weight", "Tensor") if op.contains("prepack") => {
                let rank = if op.starts_with("linear") { 2 } else { rank };
                let x = self.tensor(&shape[..rank.min(shape.len())], DType::I8);
                self.laid_out(x)
            }
            ("bias", "Tensor") if op.contains("prepack") => IValue::from(&self.tensor(&[shape[0]], DType::F32)),
            ("weight" | "bias" | "mean" | "var", "Tensor") => IValue::from(&self.tensor(&[channels], DType::F32)),
            (_, "Tensor") => {
                let dtype = match (takes_floats, op) {
                    (true, _) => DType::F32,
                    (_, "dequantize_per_channel") => DType::I8,
                    _ => DType::U8,
                };
                let x = self.tensor(shape, dtype);
                self.laid_out(x)
            }
            ("tensors", _) => {
                let x = IValue::from(&self.tensor(shape, DType::U8));
                IValue::List { element: "Tensor".into(), items: vec![x.clone(), x] }
            }
            ("parameters", _) => IValue::double_list([0.5, 1.0].into_iter().take(self.random.below(3))),
            ("scales" | "factors", "List[float]") => IValue::double_list([0.1, 0.2]),
            ("scale_factors", _) => {
                IValue::double_list((0..spatial).map(|_| self.random.pick(&[1.0, 1.2, 0.5, 2.0, 2.5, 0.9])))
            }
            ("zero_points", "List[int]") => IValue::int_list([3, 4]),
            ("normalized_shape", _) => IValue::int_list(shape[rank.saturating_sub(1)..].iter().copied()),
            ("padding", _) => IValue::int_list((0..spatial).map(|_| i64::from(self.random.once_in(4)))),
            ("stride" | "dilation", _) => IValue::int_list((0..spatial).map(|_| small(self, 1, 2))),
            ("output_padding", _) => IValue::int_list((0..spatial).map(|_| 0)),
            (_, "List[int]") => IValue::int_list((0..spatial).map(|_| small(self, 1, 3))),
            ("zero_point" | "x_zero_point" | "a_zero_point" | "b_zero_point", "int") => {
                IValue::Int(small(self, 0, 256))
            }
            ("bits", _) => IValue::Int(self.random.pick(&[4, 8])),
            ("axis" | "dim", _) => IValue::Int(small(self, -1, 2)),
            ("groups", _) => IValue::Int(1),
            ("min", "int") => IValue::Int(small(self, 0, 9)),
            ("max", "int") => IValue::Int(255),
            ("quant_min", _) => IValue::Int(-8),
            ("quant_max", _) => IValue::Int(7),
            ("dtype", _) => IValue::Int(self.random.pick(&[12, 13])),
            ("qscheme", _) => IValue::Int(small(self, 0, 4)),
            (_, "int") => IValue::Int(small(self, 0, 4)),
            (_, "float") => IValue::Double(self.random.pick(&[0.01, 0.1, 1e-5, 0.5])),
            ("name", "str") if op == "activation_table" => {
                IValue::Str(self.random.pick(&["relu", "clamp", "gelu", "elu", "add", "sigmoid"]).into())
            }
            ("search", _) => IValue::Str(
                self.random.pick(&["histogram", "percentile", "squared-error", "entropy", "min-max"]).into(),
            ),
            _ => return self.arbitrary(ty),
        })
    }

    /// Arguments: mostly usual ones, some of them anything. `None` where no object of a class is there yet.
    fn arguments(&mut self, operator: &Operator) -> Option<Vec<IValue>> {
        let rank = if self.random.once_in(2) { 4 } else { 1 + self.random.below(5) };
        let mut shape = self.sizes(rank);
        // Layers have five inputs, so that inputs fit them now and then.
        if let Some(last) = shape.last_mut().filter(|_| operator.name.contains("linear")) {
            *last = 5;
        } else if let Some(channels) = shape.get_mut(1).filter(|_| operator.name.contains("conv")) {
            *channels = 5;
        }
        self.count = match self.random.below(3) {
            0 => 1,
            1 => shape[0],
            _ => shape[(shape.len() - 1).min(1)],
        };
        let mut arguments = Vec::new();
        for (name, ty) in &operator.arguments {
            arguments.push(match self.random.below(120) {
                0 => self.wrong(),
                1..13 => self.arbitrary(ty)?,
                _ => self.usual(&operator.name, name, ty, &shape)?,
            });
        }
        Some(arguments)
    }

    /// Keeps an object for operators that take one.
    fn keep(&mut self, result: &IValue) {
        if let IValue::Other(object) = result
            && let Ok(ty) = object.type_of()
        {
            let known = self.objects.entry(ty.annotation()).or_default();
            known.push(result.clone());
            if known.len() > 40 {
                let replaced = self.random.below(40);
                known.swap_remove(replaced);
            }
        }
    }

    /// Packed weights of libtorch's own classes, of odd geometry too.
    fn stock_objects(&mut self) {
        for _ in 0..30 {
            let w = IValue::from(&self.tensor(&[6, 5], DType::F32));
            let scale = IValue::Double(0.1);
            let made = [
                self.maker.call("linear", &[w, scale, IValue::Int(0)]),
                {
                    let w = IValue::from(&self.tensor(&[4, 5, 2, 2], DType::F32));
                    let padding = if self.random.once_in(2) { self.random.pick(&INTEGERS) } else { 1 };
                    let dilation = if self.random.once_in(4) { self.random.pick(&INTEGERS) } else { 1 };
                    let list = |value| IValue::int_list([value, 1]);
                    self.maker.call("conv2d", &[w, list(1), list(padding), list(dilation), IValue::Int(1)])
                },
                {
                    let w = IValue::from(&self.tensor(&[4, 5, 1, 2, 2], DType::F32));
                    let list = |value| IValue::int_list([value; 3]);
                    self.maker.call("conv3d", &[w, list(1), list(0), list(1), IValue::Int(1)])
                },
                {
                    let w = IValue::from(&self.tensor(&[4, 8], DType::F32));
                    let of = |value: f32| IValue::from(&Tensor::from_slice(&[value; 4], &[4]).unwrap());
                    self.maker.call("embedding", &[w, of(0.1), of(3.0), IValue::Int(self.random.pick(&[4, 8]))])
                },
            ];
            for object in made.into_iter().flatten() {
                self.keep(&object);
            }
        }
    }

    /// Arguments in words: tensors by type and sizes.
    fn outline(&self, arguments: &[IValue]) -> String {
        let of = |x: &Tensor| format!("{:?}{:?}", x.dtype(), x.shape());
        let in_words = |value: &IValue| match value {
            IValue::Tensor(x) => of(x),
            IValue::List { element, .. } if element == "Tensor" => {
                format!("{:?}", value.tensors().into_iter().map(of).collect::<Vec<_>>())
            }
            other => format!("{other:?}"),
        };
        arguments.iter().map(in_words).collect::<Vec<_>>().join(", ")
    }

    /// The arguments with tensors that have no data.
    fn on_meta(&self, arguments: &[IValue]) -> Option<Vec<IValue>> {
        let meta = |x: &IValue| match x {
            IValue::Tensor(_) => self.maker.call("meta", std::slice::from_ref(x)).ok(),
            IValue::List { element, items } if element == "Tensor" => {
                let items = items
                    .iter()
                    .map(|x| self.maker.call("meta", std::slice::from_ref(x)).ok())
                    .collect::<Option<_>>()?;
                Some(IValue::List { element: element.clone(), items })
            }
            other => Some(other.clone()),
        };
        arguments.iter().map(meta).collect()
    }
}

/// Shapes and types of results.
fn outline(results: &[IValue]) -> Vec<(Vec<i64>, Option<DType>)> {
    results.iter().flat_map(IValue::tensors).map(|x| (x.shape(), x.dtype())).collect()
}

/// Calls operators in `cases` ways that follow from `seed`; says how many had results. With `trace`, each case is printed before it
/// is tried.
///
/// # Panics
/// Where an operator panics inside, or its shapes on meta tensors are others than on the CPU. Where it ends the process, the last
/// case printed is the one.
pub fn run(cases: u64, seed: u64, trace: bool) {
    jitquant::init().unwrap();
    let maker = Module::new("Maker").unwrap();
    maker.define(MAKER).unwrap();
    let random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut fuzzer = Fuzzer { random, maker, count: 1, objects: BTreeMap::new() };
    fuzzer.stock_objects();
    let operators: Vec<_> =
        Operator::all("jitquant::").unwrap().into_iter().filter(|op| op.name != "jitquant::registered").collect();
    assert!(operators.len() > 40, "{} operators", operators.len());
    let (mut done, mut turn, mut compared) = (0, 0, 0);
    let mut succeeded = BTreeMap::<String, u64>::new();
    while done < cases {
        let operator = &operators[turn % operators.len()];
        turn += 1;
        // Some take weights that others have to make first.
        let Some(arguments) = fuzzer.arguments(operator) else { continue };
        done += 1;
        let case = || format!("case {done} (seed {seed}): {} of {}", operator.name, fuzzer.outline(&arguments));
        if trace {
            eprintln!("{}", case());
        }
        let called = |arguments: &[IValue], how: &str| {
            operator.call(arguments).inspect_err(|error| {
                assert!(!error.to_string().contains("internal error"), "{}{how}: {error}", case());
            })
        };
        let result = called(&arguments, "");
        let Some(without_data) = fuzzer.on_meta(&arguments) else { continue };
        let meta = called(&without_data, ", on meta tensors");
        let Ok(result) = result else { continue };
        *succeeded.entry(operator.name.clone()).or_default() += 1;
        if let Ok(meta) = meta {
            compared += 1;
            assert_eq!(outline(&meta), outline(&result), "{}: shapes and types on meta tensors", case());
        }
        result.iter().for_each(|value| fuzzer.keep(value));
    }
    println!("{cases} cases of {} operators; results of {succeeded:?}", operators.len());
    println!("{compared} results compared with those on meta tensors");
    let silent: Vec<_> = operators.iter().map(|op| &op.name).filter(|name| !succeeded.contains_key(*name)).collect();
    assert!(silent.is_empty() || cases < 3000, "never a result from {silent:?}");
}
