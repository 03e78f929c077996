//! TorchScript types.

use cxx::UniquePtr;

use super::ffi::bridge as ffi;
use super::graph::{Code, Graph};
use super::tensor::DType;
use crate::error::Result;

/// A TorchScript type, e.g. `Tensor`, `List[int]` or a module's class.
pub struct Type(pub(crate) UniquePtr<ffi::Type>);

impl Type {
    /// The type that `text` names in TorchScript's syntax: `Tensor`, `int`, `List[Tensor]`, `Optional[float]`, …
    ///
    /// # Errors
    /// Where `text` is no type of that syntax. Classes are not found by name.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(ffi::type_parse(text)?))
    }

    /// The type as graphs print it.
    pub fn text(&self) -> String {
        ffi::type_text(&self.0)
    }

    /// The tuple of these types.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn tuple(items: &[Type]) -> Result<Self> {
        let items: Vec<_> = items.iter().map(Type::annotation).collect();
        let items = if items.is_empty() { "()".to_owned() } else { items.join(", ") };
        Self::parse(&format!("Tuple[{items}]"))
    }

    /// The type in the syntax that [`Type::parse`] reads, e.g. `List[int]`, `Optional[Tensor]`.
    pub fn annotation(&self) -> String {
        ffi::type_annotation(&self.0)
    }

    /// The kind, e.g. `TensorType`, `ListType`, `ClassType`.
    pub fn kind(&self) -> String {
        ffi::type_kind(&self.0)
    }

    /// The qualified name of a class, e.g. `__torch__.torch.nn.modules.conv.Conv2d`, with its mangling.
    pub fn class_name(&self) -> Option<String> {
        ffi::type_class_name(&self.0).ok()
    }

    /// The qualified name of a class as Python has it, without `__torch__.` and mangling, e.g.
    /// `torch.nn.modules.conv.Conv2d`.
    pub fn unmangled_class_name(&self) -> Option<String> {
        let name = self.class_name()?;
        let parts = name.split('.').filter(|part| *part != "__torch__" && !part.starts_with("___torch_mangle_"));
        Some(parts.collect::<Vec<_>>().join("."))
    }

    /// Whether it is the class of a module.
    pub fn is_module(&self) -> bool {
        ffi::type_is_module(&self.0)
    }

    /// Whether it is a tensor, whatever is known of its shape.
    pub fn is_tensor(&self) -> bool {
        self.kind() == "TensorType"
    }

    /// The element type of a tensor, where the type records one.
    pub fn tensor_dtype(&self) -> Option<DType> {
        DType::from_code(ffi::type_tensor_dtype(&self.0))
    }

    /// The types that it is made of: a list's element, a tuple's elements, a dictionary's key and value.
    pub fn contained(&self) -> Vec<Type> {
        (0..ffi::type_contained_len(&self.0)).filter_map(|i| ffi::type_contained(&self.0, i).ok().map(Type)).collect()
    }

    /// The names of a named tuple's elements; none of another type.
    pub fn field_names(&self) -> Vec<String> {
        ffi::type_field_names(&self.0)
    }

    /// Whether a value of this type can stand where `other` is asked for.
    pub fn is_subtype_of(&self, other: &Type) -> bool {
        ffi::type_is_subtype_of(&self.0, &other.0)
    }

    /// The type of a class's attribute.
    ///
    /// # Errors
    /// Where it is not a class or has no such attribute.
    pub fn attribute(&self, name: &str) -> Result<Type> {
        Ok(Self(ffi::type_attribute(&self.0, name)?))
    }

    /// The names of a class's methods; none where no module of the class is left.
    pub fn method_names(&self) -> Vec<String> {
        ffi::type_method_names(&self.0)
    }

    /// The graph of a class's method.
    ///
    /// # Errors
    /// Where it is not a class, has no such method, or no module of the class is left.
    pub fn method_graph(&self, method: &str) -> Result<Graph> {
        Ok(Graph::lease(ffi::type_method_graph(&self.0, method)?, Code::of_type(self)))
    }

    /// What tells one class from another while both live: modules with the same value share their code.
    pub fn id(&self) -> usize {
        ffi::type_address(&self.0)
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        ffi::type_equals(&self.0, &other.0)
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl std::fmt::Debug for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Type({})", self.text())
    }
}
