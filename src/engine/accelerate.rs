//! Puts our packed parameters in the place of libtorch's, throughout a module.

use super::bridge::ffi;
use crate::error::Result;
use crate::ir::ffi::bridge as ir;
use crate::ir::{Graph, IValue, Module, join_path};

/// What [`accelerate`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accelerated {
    /// Packed parameters that jitquant's kernels run from now on.
    pub replaced: usize,
    /// Those that they ran already.
    pub already: usize,
    /// Those that stay with libtorch.
    pub left: Vec<LeftOut>,
}

/// Packed parameters that stay with libtorch's kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Where they are: the path of an attribute, or a constant and the method it stands in.
    pub path: String,
    /// libtorch's class.
    pub class: String,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.path, self.class, self.reason)
    }
}

/// Operators of libtorch that look into its own packed parameters instead of calling them, and would crash on ours.
const LOOK_INSIDE: [&str; 7] = [
    "quantized::linear_leaky_relu",
    "quantized::linear_tanh",
    "quantized::conv2d_add",
    "quantized::conv2d_add_relu",
    "quantized::linear_dynamic_fp16",
    "quantized::linear_relu_dynamic_fp16",
    "quantized::conv2d_cudnn",
];

/// Makes libtorch's `quantized::` operators in `module` run on jitquant's kernels.
///
/// The weights are packed anew, one layer after the other, and libtorch's copies are released. Every method, submodule
/// and graph that shares them sees the change at once, frozen ones and optimized plans included. Results are at most
/// one quantization step from libtorch's. The module saves as before, into a file that needs no jitquant.
///
/// No thread may run the module meanwhile; afterwards as many as like.
///
/// ```no_run
/// use jitquant::{engine, ir::Module};
/// let module = Module::load("model.int8.pt")?;
/// let done = engine::accelerate(&module)?;
/// println!("{} layers accelerated", done.replaced);
/// for left in &done.left {
///     println!("left to libtorch: {left}");
/// }
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// # Errors
/// Where the module's attributes or graphs cannot be read. A layer that cannot be replaced is no error: it is in
/// [`Accelerated::left`], and runs as before.
pub fn accelerate(module: &Module) -> Result<Accelerated> {
    let mut found = Found { objects: ffi::objects_new(), paths: Vec::new(), looks_inside: None };
    for (path, part) in module.modules() {
        for attribute in part.attributes().into_iter().filter(|attribute| !attribute.is_module) {
            let value = ir::module_attribute(part.raw(), &attribute.name)?;
            found.collect(&value, || join_path(&path, &attribute.name))?;
        }
        for method in part.method_names() {
            let graph = part.graph(&method)?;
            found.visit(&graph, &join_path(&path, &method))?;
        }
    }
    let mut done = Accelerated::default();
    for (index, path) in found.paths.iter().enumerate() {
        let mut left = |reason: String| {
            let class = ffi::objects_class(&found.objects, index);
            done.left.push(LeftOut { path: path.clone(), class, reason });
        };
        if ffi::object_is_ours(&found.objects, index)? {
            done.already += 1;
        } else if let Some(operator) = found.looks_inside {
            left(format!("the model calls {operator}, which works with libtorch's packed parameters only"));
        } else if let Err(refusal) = ffi::object_replace(&found.objects, index) {
            left(refusal.what().to_owned());
        } else {
            done.replaced += 1;
        }
    }
    Ok(done)
}

struct Found {
    objects: cxx::UniquePtr<ffi::Objects>,
    /// Where each object was first seen.
    paths: Vec<String>,
    looks_inside: Option<&'static str>,
}

impl Found {
    fn collect(&mut self, value: &ir::IValue, path: impl Fn() -> String) -> Result<()> {
        let new = ffi::objects_collect(self.objects.pin_mut(), value)?;
        self.paths.extend((0..new).map(|_| path()));
        Ok(())
    }

    fn visit(&mut self, graph: &Graph, method: &str) -> Result<()> {
        for node in graph.all_nodes() {
            if let Some(operator) = LOOK_INSIDE.into_iter().find(|operator| *operator == node.kind()) {
                self.looks_inside = Some(operator);
            }
            if node.kind() == "prim::Constant"
                && let Some(output) = node.output(0)
                && let Some(value) = output.constant()
                && matches!(value, IValue::Other(_) | IValue::List { .. } | IValue::Tuple(_))
            {
                self.collect(&*value.to_raw()?, || format!("%{} in {method}", output.debug_name()))?;
            }
        }
        Ok(())
    }
}
