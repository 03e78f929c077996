//! `InsertObserversForOnDevicePTQ`, `InsertQuantDeQuantOnDevicePTQ` and `FinalizeOnDevicePTQ`.

use jitquant::ir::{GeneralPass, IValue, Module, Tensor};
use jitquant::pass::{
    QuantType, finalize_on_device_ptq, insert_observers_for_on_device_ptq, insert_quant_dequant_on_device_ptq,
};
use jitquant::qconfig::{QConfig, QConfigDict};
use jitquant_oracle as oracle;

use crate::compare::{QINT8, QUINT8, observer, random, tensors};
use crate::models::*;
use crate::same::*;

/// An observer that can be reset.
fn resettable(class: &str, dtype: i64) -> Module {
    let observer = observer(class, dtype, 0);
    observer
        .define(
            "def reset_min_max_vals(self) -> None:\n    self.min_val = torch.full_like(self.min_val, 1e30)\n    \
             self.max_val = torch.full_like(self.max_val, -1e30)\n",
        )
        .unwrap();
    observer
}

fn qconfigs() -> QConfigDict {
    let qconfig = QConfig { activation: resettable("Activations", QUINT8), weight: resettable("Weights", QINT8) };
    QConfigDict::from([(String::new(), Some(qconfig))])
}

fn entries() -> Vec<oracle::QConfigEntry> {
    let all = qconfigs();
    let bytes = |module: &Module| module.save_bytes().unwrap();
    let entry = |(path, qconfig): (&String, &Option<QConfig>)| {
        let qconfig = qconfig.as_ref().unwrap();
        oracle::QConfigEntry {
            path: path.clone(),
            activation: bytes(&qconfig.activation),
            weight: bytes(&qconfig.weight),
        }
    };
    all.iter().map(entry).collect()
}

fn inlined(module: Module) -> Module {
    module.graph("forward").unwrap().run(GeneralPass::Inline).unwrap();
    saved_and_loaded(&module)
}

/// Runs all three steps, ours and libtorch's on the same input each; the module with the INT8 method.
fn check(model: Module, shape: &[i64], quant_type: QuantType) -> Module {
    let (bytes, dynamic) = (inlined(model).save_bytes().unwrap(), quant_type == QuantType::Dynamic);
    let x = [random(shape, 11)];
    let run = |module: &Module, method: &str| tensors(&module.call(method, &x).unwrap());

    let ours = insert_observers_for_on_device_ptq(&loaded(&bytes), "forward", &qconfigs(), false, quant_type).unwrap();
    let ours = saved_and_loaded(&ours);
    let theirs = loaded(&oracle::insert_observers_on_device(&bytes, "forward", &entries(), dynamic).unwrap());
    assert_same(&ours, &theirs);
    for module in [&ours, &theirs] {
        module.call("reset_observers_forward", &[] as &[Tensor]).unwrap();
        assert_eq!(run(module, "observe_forward"), run(module, "forward"));
    }

    let observed = theirs.save_bytes().unwrap();
    let ours = insert_quant_dequant_on_device_ptq(&loaded(&observed), "observe_forward", false, false, quant_type);
    let ours = saved_and_loaded(&ours.unwrap());
    let theirs = loaded(&oracle::insert_quant_dequant_on_device(&observed, "observe_forward", dynamic).unwrap());
    if dynamic {
        assert_same(&ours, &theirs);
    }
    assert_eq!(run(&ours, "quantize_forward"), run(&theirs, "quantize_forward"));

    let quantized = if dynamic { theirs } else { ours }.save_bytes().unwrap();
    let ours = saved_and_loaded(&finalize_on_device_ptq(&loaded(&quantized), quant_type, "quantize_forward").unwrap());
    let theirs = oracle::finalize_on_device(&quantized, "quantize_forward", dynamic);
    if quant_type == QuantType::Static {
        assert!(theirs.is_err(), "libtorch gives its operators tensors as scales");
        assert!(matches!(ours.call("quantize_forward", &x).unwrap(), IValue::None));
        let values = |method: &str| ours.call(method, &x).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
        // `forward` has lost its float weights.
        let float = loaded(&quantized).forward(&x).unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap();
        let largest = float.iter().fold(0f32, |a, b| a.max(b.abs()));
        let close = |(a, b): (f32, &f32)| (a - b).abs() < 0.05 * largest;
        assert!(values("quantized_forward").into_iter().zip(&float).all(close));
        return ours;
    }
    let theirs = loaded(&theirs.unwrap());
    assert_same(&ours, &theirs);
    for module in [&ours, &theirs] {
        assert!(matches!(module.call("quantize_forward", &x).unwrap(), IValue::None));
    }
    assert_eq!(run(&ours, "quantized_forward"), run(&theirs, "quantized_forward"));
    let reloaded = saved_and_loaded(&ours);
    assert_eq!(run(&reloaded, "quantized_forward"), run(&theirs, "quantized_forward"), "packed weights are saved");
    ours
}

fn kinds(module: &Module, method: &str) -> Vec<String> {
    let graph = module.graph(method).unwrap();
    graph.all_nodes().into_iter().map(|node| node.kind().to_owned()).collect()
}

#[test]
fn dynamic_layers() {
    let children = [("a", &linear(4, 4)), ("b", &linear(4, 3)), ("relu", &relu())];
    let body = "return self.b.forward(self.relu.forward(self.a.forward(x)))";
    let module = check(model(&children, body), &[2, 4], QuantType::Dynamic);
    let running = kinds(&module, "quantized_forward");
    assert_eq!(running.iter().filter(|kind| *kind == "quantized::linear_dynamic").count(), 2, "{running:?}");
    assert!(!running.iter().any(|kind| kind == "prim::SetAttr" || kind == "prim::CallMethod"), "{running:?}");
    assert!(kinds(&module, "quantize_forward").iter().any(|kind| kind == "prim::SetAttr"));
    let weight = module.submodule("a").unwrap().attribute("weight").unwrap();
    assert_eq!(weight.as_tensor().unwrap().shape(), [0], "the float weight is released");
}

#[test]
fn dynamic_layers_beside_a_convolution() {
    let children = [("conv", &conv2d(2, 3)), ("fc", &linear(4, 3))];
    check(model(&children, "return self.fc.forward(self.conv.forward(x))"), &[1, 2, 4, 4], QuantType::Dynamic);
}

#[test]
fn static_layers() {
    let children = [("conv", &conv2d(2, 3)), ("fc", &linear(4, 3))];
    let body = "return self.fc.forward(torch.relu(self.conv.forward(x)))";
    let module = check(model(&children, body), &[1, 2, 4, 4], QuantType::Static);
    let running = kinds(&module, "quantized_forward");
    for kind in ["quantized::conv2d", "quantized::linear"] {
        assert!(running.iter().any(|found| found == kind), "{running:?}");
    }
}

#[test]
fn steps_are_refused_out_of_order() {
    let module = model(&[("fc", &linear(4, 3))], "return self.fc.forward(x)");
    let error = insert_quant_dequant_on_device_ptq(&module, "forward", false, false, QuantType::Dynamic).unwrap_err();
    assert!(error.to_string().contains("'observe_…'") && error.to_string().contains("'forward'"), "{error}");
    let error = finalize_on_device_ptq(&module, QuantType::Dynamic, "forward").unwrap_err();
    assert!(error.to_string().contains("'quantize_…'"), "{error}");
    let missing = insert_observers_for_on_device_ptq(&module, "other", &qconfigs(), false, QuantType::Dynamic);
    assert!(missing.unwrap_err().to_string().contains("other"));
}
