//! Modules: a TorchScript class instance with its methods, attributes and submodules.

use std::cell::Cell;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cxx::UniquePtr;

use super::ffi::bridge as ffi;
use super::graph::{Code, Graph};
use super::ivalue::{IValue, raw_items};
use super::node::Schema;
use super::types::Type;
use crate::archive;
use crate::error::{Error, Result};

pub use super::ffi::bridge::{AttributeInfo, ExtraFile, FloatChanges};

/// A TorchScript module.
///
/// It is a handle, as in libtorch: a clone of it is the same module. [`Module::deep_clone`] makes another one.
///
/// ```
/// use jitquant::ir::{IValue, Module, Tensor};
/// let module = Module::new("Scale")?;
/// module.define("def forward(self, x: Tensor) -> Tensor:\n    return x * 2.0\n")?;
/// let x = Tensor::from_slice(&[1.0f32, 2.0], &[2])?;
/// let y = module.forward(&[x])?;
/// assert_eq!(y.as_tensor().unwrap().to_vec::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), jitquant::Error>(())
/// ```
///
/// Modules stay in the thread that made them: graphs and classes are shared by all handles and are not safe to change
/// from two threads. Other threads run a [`Runner`](crate::Runner), or load a module of their own from
/// [`Module::save_bytes`].
pub struct Module {
    raw: UniquePtr<ffi::Module>,
    /// The value of [`CLASS_CHANGES`] for which the module is known to have a slot for each attribute of its class.
    fitted: Cell<u64>,
}

/// How often a class was given an attribute. Other modules of that class then lack the attribute's slot, and libtorch
/// reads slots without looking at how many there are.
static CLASS_CHANGES: AtomicU64 = AtomicU64::new(1);

impl Clone for Module {
    fn clone(&self) -> Self {
        Self::from_raw(ffi::module_handle(&self.raw))
    }
}

impl PartialEq for Module {
    /// Whether both are handles on the same module.
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Module({})", self.class_name())
    }
}

pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

impl Module {
    pub(crate) fn from_raw(raw: UniquePtr<ffi::Module>) -> Self {
        Self { raw, fitted: Cell::new(0) }
    }

    /// libtorch's module, with a slot for each attribute of its class, and its submodules likewise.
    pub(crate) fn raw(&self) -> &ffi::Module {
        let changes = CLASS_CHANGES.load(Ordering::Relaxed);
        if self.fitted.replace(changes) != changes {
            ffi::module_fit_slots(&self.raw);
        }
        &self.raw
    }

    /// libtorch's module, with a slot for each attribute of its class: for calls that do not look into submodules. Looking
    /// through all of them after each new attribute would take a time that grows with the square of a model's size.
    fn own(&self) -> &ffi::Module {
        ffi::module_fit_own_slots(&self.raw);
        &self.raw
    }

    /// A handle on the host's `torch::jit::Module`.
    ///
    /// # Errors
    /// Where it is a handle on nothing. No other place makes a [`Module`] of an object that may be missing.
    ///
    /// # Safety
    /// `module` points to a live `torch::jit::Module` of the libtorch that this library is loaded into.
    pub(crate) unsafe fn from_host(module: *const c_void) -> Result<Self> {
        // SAFETY: the caller's promise.
        let raw = unsafe { ffi::module_from_address(module as usize) };
        match raw.is_null() {
            true => Err(Error::invalid(
                "the torch::jit::Module is empty (default-constructed or moved from); one that was loaded or defined is \
                 expected",
            )),
            false => Ok(Self::from_raw(raw)),
        }
    }

    /// Makes the host's `torch::jit::Module` a handle on this module.
    ///
    /// # Safety
    /// As for [`Module::from_host`], and nothing else uses the host's handle meanwhile.
    pub(crate) unsafe fn store_to_host(&self, module: *mut c_void) {
        // SAFETY: the caller's promise.
        unsafe { ffi::module_store(self.raw(), module as usize) }
    }

    /// Takes what an observer has observed out of it: its buffers `min_val`, `max_val` and, where it has one, `histogram`.
    /// Threads may observe meanwhile; each observation is in one of the results.
    pub(crate) fn take_observed(&self) -> Result<Vec<IValue>> {
        super::ivalue::cooked_values(&*ffi::observer_take(self.raw())?)
    }

    /// A module with nothing in it, of a class of its own called `name`.
    ///
    /// # Errors
    /// Where `name` is not a qualified name.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self::from_raw(ffi::module_new(&format!("__torch__.{name}"))?))
    }

    /// The files that a TorchScript archive carries beside the code (`_extra_files` in Python).
    ///
    /// # Errors
    /// Where the file is no such archive.
    pub fn extra_files(path: impl AsRef<Path>) -> Result<Vec<ExtraFile>> {
        let path = path.as_ref();
        let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        // An exported program becomes a module of its own, which has none.
        if archive::kind_of(&mut file).is_ok_and(|kind| kind == archive::Kind::Exported) {
            return Ok(Vec::new());
        }
        // libtorch opens files by names that are text.
        let descriptor = || format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let text = path.to_str().map_or_else(descriptor, str::to_owned);
        ffi::module_extra_files(&text).map_err(|e| Error::file(path, first_line(e.what())))
    }

    /// Saves it: written beside `path` first and then renamed, so that a failed save leaves the old file as it was.
    ///
    /// # Errors
    /// Where the folder cannot be written, or the disk is full.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &[])
    }

    /// Saves it with files of the caller's beside the code; see [`Module::save`].
    ///
    /// # Errors
    /// Where the folder cannot be written, or the disk is full.
    pub fn save_with(&self, path: impl AsRef<Path>, extra: &[ExtraFile]) -> Result<()> {
        let path = path.as_ref();
        crate::file::write_atomically(path, |temporary| self.write(temporary, path, extra))
    }

    /// As [`Module::save_with`], and reads the file before it takes the place of an older one.
    ///
    /// # Errors
    /// Those of [`Module::save_with`], and where the file cannot be loaded; the old file is as it was then.
    pub fn save_checked(&self, path: impl AsRef<Path>, extra: &[ExtraFile]) -> Result<()> {
        let path = path.as_ref();
        crate::file::write_atomically(path, |temporary| {
            self.write(temporary, path, extra)?;
            let text = temporary.to_str().ok_or_else(|| Error::file(temporary, "the path is not UTF-8"))?;
            let fault = |e: cxx::Exception| {
                Error::file(path, format!("what was written cannot be loaded: {}", first_line(e.what())))
            };
            ffi::module_load_file(text).map(drop).map_err(fault)
        })
    }

    fn write(&self, temporary: &Path, path: &Path, extra: &[ExtraFile]) -> Result<()> {
        let text = temporary.to_str().ok_or_else(|| Error::file(temporary, "the path is not UTF-8"))?;
        ffi::module_save_file(self.raw(), text, extra)
            .map_err(|e| Error::file(path, format!("could not be written: {}", first_line(e.what()))))
    }

    /// The content of a TorchScript file that holds it.
    ///
    /// # Errors
    /// Where it holds something that cannot be saved.
    pub fn save_bytes(&self) -> Result<Vec<u8>> {
        Ok(ffi::module_save_bytes(self.raw())?)
    }

    /// A module of the same class with copies of all attributes, tensors included.
    ///
    /// # Errors
    /// Where an attribute cannot be copied.
    pub fn copy_instance(&self) -> Result<Self> {
        Ok(Self::from_raw(ffi::module_deepcopy(self.raw())?))
    }

    /// A module of the same class with the same attributes, each of which can be set for itself.
    pub(crate) fn shallow_copy(&self) -> Result<Self> {
        Ok(Self::from_raw(ffi::module_shallow_copy(self.raw())?))
    }

    /// Tells one module from another while both live.
    pub fn id(&self) -> usize {
        ffi::module_address(self.own())
    }

    /// Its class.
    pub fn type_of(&self) -> Type {
        Type(ffi::module_type(self.own()))
    }

    /// The qualified name of its class as libtorch keeps it, e.g.
    /// `__torch__.torch.nn.modules.conv.___torch_mangle_3.Conv2d`.
    pub fn class_name(&self) -> String {
        self.type_of().class_name().unwrap_or_default()
    }

    /// The names of its methods.
    pub fn method_names(&self) -> Vec<String> {
        ffi::module_method_names(self.own())
    }

    /// Whether it has a method `name`.
    pub fn has_method(&self, name: &str) -> bool {
        self.method_names().iter().any(|method| method == name)
    }

    fn method(&self, name: &str) -> Result<()> {
        match self.has_method(name) {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "module {} has no method '{name}'; it has {}",
                self.class_name(),
                self.method_names().join(", ")
            ))),
        }
    }

    /// What keeps the code of its methods alive.
    fn code(&self) -> Code {
        Code { module: Some(self.clone()), ..Code::of_type(&self.type_of()) }
    }

    /// The graph of method `name`: the code that every module of the class runs.
    ///
    /// # Errors
    /// Where it has no such method; the message lists those it has.
    pub fn graph(&self, name: &str) -> Result<Graph> {
        self.method(name)?;
        Ok(Graph::lease(ffi::module_method_graph(self.own(), name)?, self.code()))
    }

    /// The schema of method `name`, `self` included.
    ///
    /// # Errors
    /// Where it has no such method.
    pub fn schema(&self, name: &str) -> Result<Schema> {
        self.method(name)?;
        Ok(ffi::module_method_schema(self.own(), name)?)
    }

    /// The value that argument number `argument` of method `name` has where none is given; `self` is number 0.
    ///
    /// # Errors
    /// Where there is no such method or argument, or it has no default value.
    pub fn argument_default(&self, name: &str, argument: usize) -> Result<IValue> {
        self.method(name)?;
        IValue::from_raw(ffi::module_method_default(self.own(), name, argument)?)
    }

    /// Compiles methods from TorchScript source. `torch.…` names operators of `aten`, `ops.namespace.…` of any other
    /// namespace.
    ///
    /// # Errors
    /// What the compiler says, with the place in the source.
    pub fn define(&self, source: &str) -> Result<()> {
        // The compiler wants a line feed after the last statement.
        Ok(ffi::module_define(self.raw(), &format!("{source}\n"))?)
    }

    /// Gives it a method `name` that runs a copy of `graph`, whose first argument is the module.
    ///
    /// # Errors
    /// Where a method of that name exists, or the graph calls functions of another module.
    pub fn create_method(&self, name: &str, graph: &Graph) -> Result<()> {
        graph.ensure_portable_to(&self.code())?;
        Ok(ffi::module_create_method(self.raw(), name, graph.raw())?)
    }

    /// Copies method `from` to `to`. Both call the same methods of submodules.
    ///
    /// # Errors
    /// Where `from` does not exist or `to` does.
    pub fn clone_method(&self, from: &str, to: &str) -> Result<()> {
        let graph = self.graph(from)?.deep_clone()?;
        Ok(ffi::module_copy_method(self.raw(), from, self.raw(), to, graph.raw())?)
    }

    /// Declares that method `name` returns `None`, once its graph does.
    pub(crate) fn declare_returns_none(&self, name: &str) -> Result<()> {
        self.method(name)?;
        Ok(ffi::module_return_none(self.raw(), name)?)
    }

    /// Takes a method away from its class.
    ///
    /// # Errors
    /// Where it has no such method.
    pub fn remove_method(&self, name: &str) -> Result<()> {
        self.method(name)?;
        Ok(ffi::module_remove_method(self.raw(), name)?)
    }

    /// What its class declares, in order: parameters, buffers, submodules and plain attributes.
    pub fn attributes(&self) -> Vec<AttributeInfo> {
        ffi::module_attributes(self.own())
    }

    /// The names of its constants.
    pub fn constants(&self) -> Vec<String> {
        ffi::module_constants(self.own())
    }

    /// Whether it has an attribute or a constant `name`.
    pub fn has_attribute(&self, name: &str) -> bool {
        ffi::module_has_attribute(self.own(), name)
    }

    /// The value of attribute or constant `name`.
    ///
    /// # Errors
    /// Where it has none of that name.
    pub fn attribute(&self, name: &str) -> Result<IValue> {
        if !self.has_attribute(name) {
            return Err(Error::invalid(format!("module {} has no attribute '{name}'", self.class_name())));
        }
        IValue::from_raw(ffi::module_attribute(self.own(), name)?)
    }

    /// Sets attribute `name`.
    ///
    /// # Errors
    /// Where it has none of that name, or it is declared of another type.
    pub fn set_attribute(&self, name: &str, value: &IValue) -> Result<()> {
        Ok(ffi::module_set_attribute(self.own(), name, &*value.to_raw()?)?)
    }

    /// Gives its class an attribute `name` of type `ty`, and it the value; `None` where the model's code sets it later.
    ///
    /// # Errors
    /// Where the value is not of that type, or an attribute of that name and another type exists.
    pub fn register_attribute(&self, name: &str, ty: &Type, value: &IValue) -> Result<()> {
        self.register(name, ty, value, false, false)
    }

    /// Gives it a buffer: a tensor that is part of its state and not trained.
    ///
    /// # Errors
    /// Where an attribute of that name and another type exists.
    pub fn register_buffer(&self, name: &str, value: impl Into<IValue>) -> Result<()> {
        self.register(name, &Type::parse("Tensor")?, &value.into(), false, true)
    }

    /// Gives it a parameter: a tensor that is trained.
    ///
    /// # Errors
    /// Where an attribute of that name and another type exists.
    pub fn register_parameter(&self, name: &str, value: impl Into<IValue>) -> Result<()> {
        self.register(name, &Type::parse("Tensor")?, &value.into(), true, false)
    }

    pub(crate) fn register(
        &self,
        name: &str,
        ty: &Type,
        value: &IValue,
        is_parameter: bool,
        is_buffer: bool,
    ) -> Result<()> {
        let value = value.to_raw()?;
        ffi::module_register_attribute(self.own(), name, &ty.0, &value, is_parameter, is_buffer)?;
        CLASS_CHANGES.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives it a submodule.
    ///
    /// # Errors
    /// Where an attribute of that name and another type exists.
    pub fn register_submodule(&self, name: &str, submodule: &Module) -> Result<()> {
        ffi::module_register_submodule(self.own(), name, submodule.raw())?;
        CLASS_CHANGES.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes attribute `name` away from it and from its class.
    ///
    /// Other modules of the same class keep a slot too many: use it on a module whose class nobody shares.
    ///
    /// # Errors
    /// Where it has none of that name.
    pub fn remove_attribute(&self, name: &str) -> Result<()> {
        Self::remove_attribute_of_class(std::slice::from_ref(self), name)
    }

    /// Takes attribute `name` away from all modules of a class, which `instances` lists, and from the class.
    ///
    /// # Errors
    /// Where there is none of that name; nothing has changed then.
    pub(crate) fn remove_attribute_of_class(instances: &[Module], name: &str) -> Result<()> {
        let Some(class) = instances.first().map(Module::type_of) else { return Ok(()) };
        class.attribute(name)?;
        for instance in instances {
            ffi::module_remove_slot(instance.raw(), name)?;
        }
        Ok(ffi::type_remove_attribute(&class.0, name)?)
    }

    /// Its direct submodules and their names.
    pub fn children(&self) -> Vec<(String, Module)> {
        // By place: a flat module has thousands of attributes, and libtorch looks for a name among all of them.
        let modules = self.attributes().into_iter().enumerate().filter(|(_, attribute)| attribute.is_module);
        modules
            .filter_map(|(slot, attribute)| {
                let module = ffi::module_in_slot(self.own(), slot);
                (!module.is_null()).then(|| (attribute.name, Self::from_raw(module)))
            })
            .collect()
    }

    /// Itself (path `""`) and all modules below it with their paths (`features.0.conv`), each before its children.
    /// A module that stands in two places is listed twice.
    pub fn modules(&self) -> Vec<(String, Module)> {
        let mut all = vec![(String::new(), self.clone())];
        for (name, child) in self.children() {
            for (path, module) in child.modules() {
                all.push((join_path(&name, &path), module));
            }
        }
        all
    }

    /// The submodule at `path`, e.g. `features.0.conv`; `""` is the module itself.
    ///
    /// # Errors
    /// Where there is none; the message says up to where the path leads and what is there.
    pub fn submodule(&self, path: &str) -> Result<Module> {
        let mut module = self.clone();
        for name in path.split('.').filter(|name| !name.is_empty()) {
            let found = if module.has_attribute(name) { module.attribute(name) } else { Ok(IValue::None) };
            let Ok(IValue::Module(child)) = found else {
                let names: Vec<_> = module.children().into_iter().map(|(child, _)| child).collect();
                return Err(Error::invalid(format!(
                    "there is no submodule '{path}': {} has no '{name}', only [{}]",
                    module.class_name(),
                    names.join(", ")
                )));
            };
            module = child;
        }
        Ok(module)
    }

    /// Switches it and its submodules to training (`true`) or evaluation; modules without a `training` attribute stay as
    /// they are.
    ///
    /// # Errors
    /// Where a `training` attribute is not of type `bool`; nothing has changed then.
    pub fn train(&self, on: bool) -> Result<()> {
        for (path, module) in self.modules() {
            let declared = module.attributes().into_iter().find(|attribute| attribute.name == "training");
            if let Some(other) = declared.filter(|attribute| attribute.type_name != "bool") {
                let what = other.type_name;
                return Err(Error::invalid(format!("attribute 'training' of module '{path}' is of type {what}")));
            }
        }
        Ok(ffi::module_train(self.raw(), on)?)
    }

    /// Brings a model of float64, float16 or bfloat16 to float32, which quantization starts from: parameters, buffers and
    /// other tensors among its attributes, tensors in its code, and what casts to one of these types. It is for a module
    /// that was just loaded and has not run: its code, and what shares it, changes.
    ///
    /// # Errors
    /// Where a tensor cannot be changed.
    pub fn to_float(&self) -> Result<FloatChanges> {
        Ok(ffi::module_to_float(self.raw())?)
    }

    /// Whether it is in training mode; a module that has no `training` attribute counts as being so, as in libtorch.
    pub fn is_training(&self) -> bool {
        ffi::module_is_training(self.own())
    }

    /// Runs `forward` on `inputs` (tensors, tch tensors or [`IValue`]s), without recording gradients.
    ///
    /// # Errors
    /// What libtorch says, with the place in the model's source.
    pub fn forward<'a, T>(&self, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        self.call("forward", inputs)
    }

    /// Runs a method on `inputs` (tensors, tch tensors or [`IValue`]s), without recording gradients.
    ///
    /// # Errors
    /// Where it has no such method, and what libtorch says, with the place in the model's source.
    pub fn call<'a, T>(&self, method: &str, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        self.method(method)?;
        let inputs: Vec<IValue> = inputs.iter().map(IValue::from).collect();
        IValue::from_raw(ffi::module_run(self.raw(), method, raw_items(&inputs)?, false)?)
    }

    /// Runs a method on copies of `inputs`: a model may write into what it is given, and these are needed again.
    ///
    /// # Errors
    /// As [`Module::call`].
    pub fn call_on_copies(&self, method: &str, inputs: &[IValue]) -> Result<IValue> {
        let copies = inputs.iter().map(IValue::deep_clone).collect::<Result<Vec<_>>>()?;
        self.call(method, &copies)
    }

    /// As [`Module::call_on_copies`], for code that runs once: libtorch optimizes nothing before. Its executor compares each
    /// constant tensor with all others.
    ///
    /// # Errors
    /// As [`Module::call`].
    pub(crate) fn call_once_on_copies(&self, method: &str, inputs: &[IValue]) -> Result<IValue> {
        self.method(method)?;
        let copies = inputs.iter().map(IValue::deep_clone).collect::<Result<Vec<_>>>()?;
        IValue::from_raw(ffi::module_run_once(self.raw(), method, raw_items(&copies)?)?)
    }

    /// Runs a method and records gradients.
    ///
    /// # Errors
    /// Where it has no such method, and what libtorch says, with the place in the model's source.
    pub fn call_with_gradients<'a, T>(&self, method: &str, inputs: &'a [T]) -> Result<IValue>
    where
        IValue: From<&'a T>,
    {
        self.method(method)?;
        let inputs: Vec<IValue> = inputs.iter().map(IValue::from).collect();
        IValue::from_raw(ffi::module_run(self.raw(), method, raw_items(&inputs)?, true)?)
    }

    /// A frozen copy: methods inlined, attributes folded into constants, except those named in `preserved` (attributes
    /// and methods beside `forward`).
    ///
    /// # Errors
    /// Where it is in training mode or libtorch cannot freeze it.
    pub fn freeze(&self, preserved: &[String], optimize_numerics: bool) -> Result<Module> {
        Ok(Self::from_raw(ffi::module_freeze(self.raw(), preserved, optimize_numerics)?))
    }

    /// A copy with methods inlined and attributes folded into constants, as [`Module::freeze`] makes it, with nothing
    /// else optimized.
    pub(crate) fn fold_attributes(&self, preserved: &[String]) -> Result<Module> {
        Ok(Self::from_raw(ffi::module_fold_attributes(self.raw(), preserved)?))
    }
}

/// `a.b`, or `a` or `b` alone where the other one is empty.
pub fn join_path(parent: &str, name: &str) -> String {
    match (parent, name) {
        ("", name) => name.to_owned(),
        (parent, "") => parent.to_owned(),
        (parent, name) => format!("{parent}.{name}"),
    }
}

#[cfg(feature = "tch")]
impl TryFrom<&tch::CModule> for Module {
    type Error = Error;

    /// A copy of tch's module, through the bytes of a TorchScript file: tch keeps its pointer private.
    fn try_from(module: &tch::CModule) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), e))?;
        let path = folder.path().join("module.pt");
        module.save(&path).map_err(|e| Error::file(&path, e.to_string()))?;
        Self::load(&path)
    }
}

#[cfg(feature = "tch")]
impl TryFrom<&Module> for tch::CModule {
    type Error = Error;

    /// A copy for tch, through the bytes of a TorchScript file.
    fn try_from(module: &Module) -> Result<Self> {
        tch::CModule::load_data(&mut module.save_bytes()?.as_slice()).map_err(|e| Error::Torch(e.to_string()))
    }
}
