//! Ours and libtorch's `InsertObservers` on the same file.

use jitquant::ir::{IValue, Module, Tensor, Type};
use jitquant::pass::{QuantType, finalize, insert_observers, insert_quant_dequant};
use jitquant::qconfig::{QConfig, QConfigDict};
use jitquant_oracle as oracle;

use super::canonical::Canonical;
use super::same::{assert_same, loaded, saved_and_loaded};

/// An observer in nothing but TorchScript. Its state takes part in the comparison.
pub fn observer(class: &str, dtype: i64, qscheme: i64) -> Module {
    let module = Module::new(class).unwrap();
    let int = Type::parse("int").unwrap();
    module.register_attribute("dtype", &int, &IValue::Int(dtype)).unwrap();
    module.register_attribute("qscheme", &int, &IValue::Int(qscheme)).unwrap();
    for (name, start) in [("min_val", f32::INFINITY), ("max_val", f32::NEG_INFINITY), ("calls", 0.0)] {
        module.register_buffer(name, Tensor::from_slice(&[start], &[]).unwrap()).unwrap();
    }
    let (low, high) = if dtype == QINT8 { (-128, 127) } else { (0, 255) };
    module
        .define(&format!(
            "
def forward(self, x: Tensor) -> Tensor:
    self.min_val = torch.min(self.min_val, x.detach().float().min())
    self.max_val = torch.max(self.max_val, x.detach().float().max())
    self.calls = self.calls + 1
    return x
def calculate_qparams(self) -> Tuple[Tensor, Tensor]:
    low = torch.clamp(self.min_val, max=0.0)
    high = torch.clamp(self.max_val, min=0.0)
    scale = torch.clamp((high - low) / {range}.0, min=1e-6)
    zero_point = torch.clamp({low} - torch.round(low / scale), {low}, {high})
    return scale.reshape([1]), zero_point.to(3).reshape([1])
",
            range = high - low
        ))
        .unwrap();
    module
}

pub const QINT8: i64 = 12;
pub const QUINT8: i64 = 13;
pub const HALF: i64 = 5;

pub fn static_qconfig() -> QConfig {
    QConfig {
        activation: observer("test.ActivationObserver", QUINT8, 0),
        weight: observer("test.WeightObserver", QINT8, 0),
    }
}

pub fn other_qconfig() -> QConfig {
    QConfig {
        activation: observer("test.OtherObserver", QUINT8, 0),
        weight: observer("test.OtherWeightObserver", QINT8, 0),
    }
}

pub fn dynamic_qconfig(dtype: i64) -> QConfig {
    let activation = Module::new("test.PlaceholderObserver").unwrap();
    let weight = if dtype == HALF {
        Module::new("test.PlaceholderObserver")
    } else {
        Ok(observer("test.WeightObserver", dtype, 0))
    };
    let weight = weight.unwrap();
    let int = Type::parse("int").unwrap();
    for module in [&activation, &weight].into_iter().filter(|module| !module.has_method("forward")) {
        module.register_attribute("dtype", &int, &IValue::Int(if dtype == HALF { HALF } else { QUINT8 })).unwrap();
        module.register_attribute("qscheme", &int, &IValue::Int(0)).unwrap();
        module.register_attribute("is_dynamic", &Type::parse("bool").unwrap(), &IValue::Bool(true)).unwrap();
        module.define("def forward(self, x: Tensor) -> Tensor:\n    return x\n").unwrap();
        module
            .define(
                "def calculate_qparams(self) -> Tuple[Tensor, Tensor]:\n    return torch.ones([1]), torch.zeros([1])\n",
            )
            .unwrap();
    }
    QConfig { activation, weight }
}

/// A model, how to quantize it, and data to calibrate it with.
pub struct Case {
    module: Module,
    method: String,
    qconfigs: QConfigDict,
    inplace: bool,
    quant_type: QuantType,
    inputs: Vec<IValue>,
}

/// What became of a case.
pub struct Checked {
    pub module: Module,
    pub canonical: Canonical,
}

impl Case {
    pub fn new(module: Module, inputs: &[&[i64]]) -> Self {
        let inputs =
            inputs.iter().enumerate().map(|(i, shape)| IValue::Tensor(random(shape, 100 + i as u64))).collect();
        Self {
            module,
            method: "forward".into(),
            qconfigs: QConfigDict::from([(String::new(), Some(static_qconfig()))]),
            inplace: false,
            quant_type: QuantType::Static,
            inputs,
        }
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    pub fn qconfig(mut self, path: &str, qconfig: Option<QConfig>) -> Self {
        self.qconfigs.insert(path.into(), qconfig);
        self
    }

    pub fn dynamic(mut self, dtype: i64) -> Self {
        self.quant_type = QuantType::Dynamic;
        self.qconfig("", Some(dynamic_qconfig(dtype)))
    }

    pub fn inplace(mut self) -> Self {
        self.inplace = true;
        self
    }

    pub fn input(mut self, value: impl Into<IValue>) -> Self {
        self.inputs.push(value.into());
        self
    }

    fn entries(&self) -> Vec<oracle::QConfigEntry> {
        let entry = |(path, qconfig): (&String, &Option<QConfig>)| oracle::QConfigEntry {
            path: path.clone(),
            activation: qconfig.as_ref().map(|q| q.activation.save_bytes().unwrap()).unwrap_or_default(),
            weight: qconfig.as_ref().map(|q| q.weight.save_bytes().unwrap()).unwrap_or_default(),
        };
        self.qconfigs.iter().map(entry).collect()
    }

    fn is_dynamic(&self) -> bool {
        self.quant_type == QuantType::Dynamic
    }

    pub fn ours(&self) -> jitquant::Result<Module> {
        let module = saved_and_loaded(&self.module);
        insert_observers(&module, &self.method, &self.qconfigs, self.inplace, self.quant_type)
    }

    pub fn theirs(&self) -> Result<Module, String> {
        let bytes = self.module.save_bytes().unwrap();
        let (entries, dynamic) = (self.entries(), self.is_dynamic());
        let observed = oracle::insert_observers(&bytes, &self.method, &entries, self.inplace, dynamic);
        Ok(Module::load_bytes(&observed.map_err(|e| e.what().to_owned())?).unwrap())
    }

    fn run(&self, module: &Module) -> Result<IValue, String> {
        module.call(&self.method, &self.inputs).map_err(|e| e.to_string())
    }

    /// Ours, run once, with as many observers as expected.
    pub fn ours_calibrated(&self, expected: usize) -> Checked {
        let module = saved_and_loaded(&self.ours().unwrap());
        let canonical = Canonical::of(&module);
        assert_eq!(canonical.observers.len(), expected, "observers in\n{}", canonical.text);
        let output = self.run(&module).unwrap();
        let float = self.run(&self.module).unwrap();
        assert_eq!(tensors(&output), tensors(&float), "observers change nothing");
        Checked { module, canonical }
    }

    /// Both give the same observers (as many as `expected`) at the same places with the same contents after
    /// calibration, and libtorch's later passes make the same quantized model of both.
    pub fn check(&self, expected: usize) -> Checked {
        let checked = self.check_any();
        assert_eq!(checked.canonical.observers.len(), expected, "observers in\n{}", checked.canonical.text);
        checked
    }

    /// As [`Case::check`], whatever the number of observers.
    pub fn check_any(&self) -> Checked {
        let theirs = self.theirs().expect("libtorch's InsertObservers");
        let their_canonical = Canonical::of(&theirs);
        let ours = saved_and_loaded(&self.ours().expect("our insert_observers"));
        let our_canonical = Canonical::of(&ours);
        assert!(
            our_canonical.text == their_canonical.text,
            "OURS\n{}\nTHEIRS\n{}",
            our_canonical.text,
            their_canonical.text
        );
        let float = self.run(&self.module).unwrap();
        for module in [&ours, &theirs] {
            assert_eq!(tensors(&self.run(module).unwrap()), tensors(&float), "observers change nothing");
        }
        for (value, observer) in &our_canonical.observers {
            assert_eq!(state(observer), state(&their_canonical.observers[value]), "the observer of {value}");
        }
        self.check_quantized(&ours, &theirs);
        self.check_stages(&theirs);
        Checked { module: ours, canonical: our_canonical }
    }

    /// Each later pass of ours makes of `observed` (once it is calibrated) what libtorch's makes of it, as far as
    /// libtorch's come.
    fn check_stages(&self, observed: &Module) {
        if self.method != "forward" {
            return; // libtorch's go on with `forward` whatever the method
        }
        let observed = observed.save_bytes().unwrap();
        let quantized = insert_quant_dequant(&loaded(&observed), &self.method, false, false, self.quant_type);
        let quantized = quantized.expect("our insert_quant_dequant");
        let int8 = finalize(&quantized, self.quant_type, &[]).expect("our finalize");
        let dynamic = self.is_dynamic();
        let theirs = oracle::insert_quant_dequant(&observed, &self.method, dynamic);
        self.check_stage("InsertQuantDeQuant", &quantized, theirs.ok());
        self.check_stage("Finalize", &int8, oracle::quantize(&observed, &self.method, dynamic).ok());
    }

    /// All our passes one after the other make the INT8 model that all of libtorch's make, where that is one that can be
    /// loaded and run; ours.
    pub fn check_end_to_end(&self) -> Module {
        let dynamic = self.is_dynamic();
        let observed = self.ours().expect("our insert_observers");
        self.run(&observed).unwrap();
        let quantized = insert_quant_dequant(&observed, &self.method, false, false, self.quant_type);
        let int8 = finalize(&quantized.expect("our insert_quant_dequant"), self.quant_type, &[]).expect("our finalize");
        let theirs = self.theirs().ok().and_then(|observed| {
            self.run(&observed).unwrap();
            oracle::quantize(&observed.save_bytes().unwrap(), &self.method, dynamic).ok()
        });
        self.check_stage("all passes", &int8, theirs);
        int8
    }

    /// Ours runs, and it is what theirs is, where theirs is a model that can be loaded and run.
    fn check_stage(&self, stage: &str, ours: &Module, theirs: Option<Vec<u8>>) {
        let ours = match Module::load_bytes(&ours.save_bytes().unwrap()) {
            // libtorch writes a whole float of 1e10 or more as an integer, which it does not read as a float.
            Err(e) if e.to_string().contains("'float' for argument 'scale' but instead found type 'int'") => return,
            ours => ours.unwrap(),
        };
        let output = self.run(&ours).unwrap_or_else(|e| panic!("ours after {stage}: {e}"));
        let Some(theirs) = theirs.and_then(|bytes| Module::load_bytes(&bytes).ok()) else { return };
        let Ok(expected) = self.run(&theirs) else { return };
        assert_same(&ours, &theirs);
        assert_eq!(tensors(&output), tensors(&expected), "after {stage}");
    }

    /// libtorch's later passes take `observed` (once it is calibrated), and the result comes within `decibels` of float.
    pub fn check_close_to_float(&self, observed: &Module, decibels: f32) -> Module {
        let bytes =
            oracle::insert_quant_dequant(&observed.save_bytes().unwrap(), &self.method, self.is_dynamic()).unwrap();
        let quantized = Module::load_bytes(&oracle::finalize(&bytes, self.is_dynamic()).unwrap()).unwrap();
        let values = |module: &Module| {
            let output = self.run(module).unwrap();
            output.tensors().iter().flat_map(|tensor| tensor.to_f32_vec().unwrap()).collect::<Vec<_>>()
        };
        let (float, quantized_values) = (values(&self.module), values(&quantized));
        let noise: f32 = std::iter::zip(&float, &quantized_values).map(|(a, b)| (a - b) * (a - b)).sum();
        let signal: f32 = float.iter().map(|a| a * a).sum();
        let sqnr = 10.0 * (signal / noise).log10();
        assert!(sqnr > decibels, "{sqnr} dB: {float:?} became {quantized_values:?}");
        quantized
    }

    /// libtorch's later passes give the same of `ours` and `theirs`: a module with the same output, or an error.
    /// (They keep no method but `forward`.)
    fn check_quantized(&self, ours: &Module, theirs: &Module) {
        let quantized = |module: &Module| {
            let bytes = module.save_bytes().unwrap();
            let bytes = oracle::insert_quant_dequant(&bytes, &self.method, self.is_dynamic())?;
            oracle::finalize(&bytes, self.is_dynamic())
        };
        match (quantized(ours), quantized(theirs)) {
            (Ok(ours), Ok(theirs)) if self.method == "forward" => {
                let output = |bytes: &[u8]| {
                    // libtorch writes a whole float of 1e10 or more as an integer, which it does not read as a float.
                    let module = Module::load_bytes(bytes).map_err(|_| "cannot be read again".to_owned())?;
                    self.run(&module)
                        .map(|output| tensors(&output))
                        .map_err(|e| e.lines().last().unwrap_or("").to_owned())
                };
                assert_eq!(output(&ours), output(&theirs), "after Finalize");
            }
            (Ok(_), Ok(_)) | (Err(_), Err(_)) => {}
            (ours, theirs) => {
                panic!("after InsertQuantDeQuant and Finalize:\nours {:?}\ntheirs {:?}", ours.err(), theirs.err())
            }
        }
    }
}

fn state(observer: &Module) -> Vec<String> {
    let tensor = |name: &str| observer.attribute(name).unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    let buffers = observer.attributes().into_iter().filter(|a| a.is_buffer);
    buffers.map(|buffer| format!("{} {:?}", buffer.name, tensor(&buffer.name))).collect()
}

/// The shapes and bits of all tensors.
pub fn tensors(value: &IValue) -> Vec<(Vec<i64>, Vec<u32>)> {
    let bits = |tensor: &Tensor| tensor.to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect();
    value.tensors().into_iter().map(|tensor| (tensor.shape(), bits(tensor))).collect()
}

/// Numbers in [-1, 1), the same for the same seed (SplitMix64).
pub fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let count = shape.iter().product::<i64>() as usize;
    let values: Vec<f32> = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
    })
    .take(count)
    .collect();
    Tensor::from_slice(&values, shape).unwrap()
}
