//! Program files: whole models that run without libtorch, with the bits that libtorch gives.
#![cfg(feature = "torch")]

mod support;

use jitquant::Quantizer;
use jitquant::ir::{IValue, Module, Tensor, Type};
use jitquant::pass::{export_program, to_native};
use jitquant_runtime::{Model, OwnedValues, TensorRef};
use support::{classifier, conv2d, images, linear, noise};

fn native(model: &Module, batches: &[Tensor]) -> Module {
    let mut prepared = Quantizer::static_ptq().prepare(model).unwrap();
    for batch in batches {
        prepared.calibrate(std::slice::from_ref(batch)).unwrap();
    }
    to_native(&prepared.convert().unwrap().module).unwrap()
}

/// The sizes and bits of a value's tensors, in order.
fn bits(value: &IValue) -> Vec<(Vec<i64>, Vec<u32>)> {
    let floats = |tensor: &&Tensor| tensor.to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect();
    value.tensors().iter().map(|tensor| (tensor.shape(), floats(tensor))).collect()
}

fn alone(model: &Model, input: &Tensor) -> Vec<(Vec<i64>, Vec<u32>)> {
    let (values, sizes) = (input.to_vec::<f32>().unwrap(), input.shape());
    let results = model.run(&[TensorRef::floats(&values, &sizes)]).unwrap();
    let of = |values: OwnedValues| match values {
        OwnedValues::F32(values) => values.into_iter().map(f32::to_bits).collect(),
        OwnedValues::U8(values) => values.into_iter().map(|byte| f32::from(byte).to_bits()).collect(),
    };
    results.into_iter().map(|result| (result.sizes, of(result.values))).collect()
}

/// The file of a native model gives what libtorch gives, before and after libtorch has optimized the module.
fn same(native: &Module, inputs: &[Tensor]) -> Model {
    let model = Model::from_bytes(&export_program(native, None).unwrap()).unwrap();
    for input in inputs {
        for _ in 0..3 {
            let expected = bits(&native.forward(std::slice::from_ref(input)).unwrap());
            for threads in [1, 2] {
                model.set_threads(threads).unwrap();
                assert_eq!(alone(&model, input), expected);
            }
        }
    }
    model
}

/// A model of this code over convolutions `a` of 1 to 4 channels, `b` and `d` of 4 to 4 (`d` depthwise), and a linear layer.
fn model(code: &str, returns: &str) -> Module {
    let module = Module::new("Model").unwrap();
    module.register_submodule("a", &conv2d(1, 4, 3, 1, 10)).unwrap();
    module.register_submodule("b", &conv2d(4, 4, 1, 1, 20)).unwrap();
    module.register_submodule("d", &conv2d(4, 4, 3, 4, 40)).unwrap();
    module.register_submodule("fc", &linear(4, 3, 30)).unwrap();
    module.register_attribute("training", &Type::parse("bool").unwrap(), &false.into()).unwrap();
    let code: String = code.lines().map(|line| format!("    {}\n", line.trim())).collect();
    module.define(&format!("def forward(self, x: Tensor) -> {returns}:\n{code}")).unwrap();
    module
}

fn calibrated(code: &str, returns: &str) -> Module {
    native(&model(code, returns), &[images(8, 1), images(8, 2)])
}

#[test]
fn networks_give_the_bits_of_libtorch() {
    let with_training = classifier();
    with_training.register_attribute("training", &Type::parse("bool").unwrap(), &false.into()).unwrap();
    let found = same(&native(&with_training, &[images(8, 1)]), &[images(4, 9), images(1, 5)]);
    assert_eq!(found.inputs()[0].to_string(), "x: float32 [batch, 1, height, width]");
    let codes = [
        // A check that can only raise, dropout, and sizes that are a constant.
        "x = torch.relu(self.a.forward(x))
         assert len(x.size()) == 4, 'images are taken'
         x = torch.dropout(self.b.forward(x), 0.5, False)
         return self.d.forward(x.reshape([-1, 4, 12, 12]))",
        // Squeeze and excite.
        "x = self.a.forward(x)
         s = torch.sigmoid(self.b.forward(torch.adaptive_avg_pool2d(x, [1, 1])))
         return self.b.forward(x * s)",
        // Residual sums, a depthwise layer, concatenation.
        "x = torch.relu(self.a.forward(x))
         y = torch.relu(self.d.forward(x)) + x
         return torch.cat([self.b.forward(y), y, self.d.forward(y)], 1)",
        // Channel shuffle.
        "x = torch.relu(self.a.forward(x))
         n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
         x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
         p, q = torch.chunk(x, 2, 1)
         return self.b.forward(torch.cat([q, p], 1))",
        // Poolings and the head.
        "x = torch.max_pool2d(torch.relu(self.a.forward(x)), [3, 3], [2, 2], [1, 1])
         x = torch.avg_pool2d(self.b.forward(x), [2, 2])
         x = torch.adaptive_avg_pool2d(x, [1, 1])
         return self.fc.forward(torch.flatten(x, 1))",
        // A linear layer over channels that are last.
        "x = self.b.forward(torch.relu(self.a.forward(x)))
         return self.fc.forward(x.permute([0, 2, 3, 1]))",
    ];
    for code in codes {
        same(&calibrated(code, "Tensor"), &[images(3, 9), images(1, 5), images(6, 2)]);
    }
}

#[test]
fn results_of_all_forms_have_names() {
    let returns = "Tuple[Tensor, Dict[str, Tensor]]";
    let code = "x = torch.relu(self.a.forward(x))
                y = self.b.forward(x)
                return self.d.forward(y), {\"coarse\": self.b.forward(torch.relu(y)), \"fine\": self.d.forward(y)}";
    let model = same(&calibrated(code, returns), &[images(2, 3)]);
    let names: Vec<_> = model.outputs().iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["output.0", "output.1.coarse", "output.1.fine"]);
}

#[test]
fn a_portable_model_is_exported_as_its_native_form() {
    let mut prepared = Quantizer::static_ptq()
        .prepare(&model("return self.b.forward(torch.relu(self.a.forward(x)))", "Tensor"))
        .unwrap();
    prepared.calibrate(&[images(8, 1)]).unwrap();
    let portable = prepared.convert().unwrap().module;
    let bytes = export_program(&portable, None).unwrap();
    let native = to_native(&portable).unwrap();
    assert_eq!(bytes, export_program(&native, None).unwrap());
    let model = Model::from_bytes(&bytes).unwrap();
    assert_eq!(alone(&model, &images(2, 4)), bits(&native.forward(&[images(2, 4)]).unwrap()));
}

#[test]
fn operators_without_a_step_are_listed() {
    let code = "x = torch.relu(self.a.forward(x))
                y = torch.cumsum(x, 2) + torch.cumsum(x, 3)
                return self.b.forward(y)";
    let why = export_program(&calibrated(code, "Tensor"), None).unwrap_err().to_string();
    assert!(why.contains("the model needs libtorch") && why.contains("2 x aten::cumsum, first at "), "{why}");
    assert!(!why.contains("jitquant::conv"), "what has a step is not listed: {why}");
    let float = model("return self.b.forward(torch.relu(self.a.forward(x)))", "Tensor");
    let why = export_program(&float, None).unwrap_err().to_string();
    assert!(why.contains("aten::conv2d") || why.contains("aten::_convolution"), "{why}");
    let module = Module::new("Counted").unwrap();
    module.register_attribute("training", &Type::parse("bool").unwrap(), &false.into()).unwrap();
    module.define("def forward(self, x: Tensor, n: int) -> Tensor:\n    return x * n\n").unwrap();
    let why = export_program(&module, None).unwrap_err().to_string();
    assert!(why.contains("argument 'n' is of type int; a Program without libtorch takes tensors alone"), "{why}");
}

#[test]
fn sizes_that_are_given_are_described() {
    let code = "x = torch.relu(self.a.forward(x))
                return self.b.forward(x.reshape([-1, 4, 6, 24]))";
    let native = calibrated(code, "Tensor");
    let bytes = export_program(&native, Some(&[vec![5, 1, 12, 12]])).unwrap();
    let model = Model::from_bytes(&bytes).unwrap();
    assert_eq!(model.inputs()[0].to_string(), "x: float32 [batch, 1, 12, 12]");
    assert_eq!(model.outputs()[0].to_string(), "output: float32 [batch, 4, 6, 24]");
    let values = noise(144, 3);
    let result = &model.run(&[TensorRef::floats(&values, &[1, 1, 12, 12])]).unwrap()[0];
    assert_eq!(result.sizes, [1, 4, 6, 24]);
}
