//! The cxx bridge to libtorch's graphs and modules: what `cpp/graph.h` and `cpp/module.h` offer, declared once.
//!
//! C++ objects are seen as opaque references. Functions that change an object take `&T` as well: the object lives in
//! C++, Rust never reads its memory, and who may change what is decided by the safe types above this file.

#[cxx::bridge(namespace = "jitquant")]
// Only the conversions to and from tch use addresses.
#[cfg_attr(not(feature = "tch"), allow(dead_code))]
#[allow(missing_docs, clippy::missing_safety_doc, clippy::needless_lifetimes)]
pub(crate) mod bridge {
    /// A node in a list of nodes.
    #[derive(Clone, Copy)]
    struct NodeRef<'a> {
        node: &'a Node,
    }

    /// A value in a list of values.
    #[derive(Clone, Copy)]
    struct ValueRef<'a> {
        value: &'a Value,
    }

    /// An argument or a result in a schema.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Argument {
        name: String,
        type_name: String,
        has_default: bool,
        kwarg_only: bool,
        /// The alias sets of the schema's annotation (`a` of `Tensor(a!)` and `Tensor(a)[]`, `*` for any), divided by
        /// `|`; empty where what it is shares memory with nothing.
        alias: String,
        /// Whether the operator writes into it (`Tensor(a!)`).
        is_write: bool,
    }

    /// A function's or an operator's schema.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Schema {
        name: String,
        overload: String,
        arguments: Vec<Argument>,
        returns: Vec<Argument>,
    }

    /// Where in the TorchScript source something came from.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct SourceRange {
        file: String,
        line: usize,
        column: usize,
        text: String,
    }

    /// An attribute as a module's class declares it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct AttributeInfo {
        name: String,
        type_name: String,
        is_parameter: bool,
        is_buffer: bool,
        is_module: bool,
    }

    /// A file stored beside the code in a TorchScript archive.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct ExtraFile {
        name: String,
        content: Vec<u8>,
    }

    /// What was brought to float32.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct FloatChanges {
        /// Parameters, buffers and other tensors among the attributes.
        tensors: usize,
        /// Tensors in the code.
        constants: usize,
        /// Casts in the code, and results of operators that are asked for in another type.
        casts: usize,
    }

    unsafe extern "C++" {
        include!("module.h");
        include!("graph.h");
        include!("host.h");
        include!("observers.h");

        type Graph;
        type Block;
        type Node;
        type Value;
        type Type;
        type Module;
        type IValue;
        type IValues;
        type Tensor;
        type CopyMemo;
        type CompilationUnit;
        type Code;

        // Graphs
        fn graph_new() -> SharedPtr<Graph>;
        unsafe fn graph_from_address(address: usize) -> SharedPtr<Graph>;
        fn graph_parse(text: &str) -> Result<SharedPtr<Graph>>;
        fn graph_copy(graph: &Graph) -> Result<SharedPtr<Graph>>;
        fn graph_to_string(graph: &Graph, source_locations: bool) -> Result<String>;
        fn graph_block(graph: &Graph) -> &Block;
        fn graph_create<'a>(graph: &'a Graph, kind: &str, outputs: usize) -> Result<&'a Node>;
        fn graph_copy_node<'a>(graph: &'a Graph, node: &Node) -> Result<&'a Node>;
        fn graph_insert_constant<'a>(graph: &'a Graph, before: &Node, value: &IValue) -> Result<&'a Value>;
        fn graph_insert_operator<'a>(
            graph: &'a Graph,
            before: &Node,
            name: &str,
            inputs: &[ValueRef<'a>],
        ) -> Result<&'a Value>;
        fn graph_insert_method_call<'a>(
            graph: &'a Graph,
            before: &Node,
            object: &Value,
            method: &str,
            inputs: &[ValueRef<'a>],
        ) -> Result<&'a Value>;
        fn graph_insert_graph<'a>(
            graph: &'a Graph,
            before: &Node,
            callee: &Graph,
            inputs: &[ValueRef<'a>],
        ) -> Result<Vec<ValueRef<'a>>>;
        fn graph_lint(graph: &Graph) -> Result<()>;
        fn graph_run_pass(graph: &Graph, name: &str) -> Result<()>;
        fn graph_of_nodes(nodes: &[NodeRef], inputs: &[ValueRef], outputs: &[ValueRef]) -> Result<SharedPtr<Graph>>;
        fn code_of_graph(graph: &Graph) -> Result<UniquePtr<Code>>;
        fn code_run(code: &Code, stack: Pin<&mut IValues>) -> Result<()>;

        // Blocks
        fn block_inputs_len(block: &Block) -> usize;
        fn block_input(block: &Block, index: usize) -> &Value;
        fn block_add_input<'a>(block: &'a Block, name: &str) -> Result<&'a Value>;
        fn block_register_output(block: &Block, value: &Value) -> Result<usize>;
        fn block_erase_output(block: &Block, index: usize) -> Result<()>;
        fn block_return_node(block: &Block) -> &Node;
        fn block_param_node(block: &Block) -> &Node;
        fn block_has_owner(block: &Block) -> bool;
        fn block_owner(block: &Block) -> Result<&Node>;
        fn block_append(block: &Block, node: &Node) -> Result<()>;
        fn block_prepend(block: &Block, node: &Node) -> Result<()>;
        fn block_copy_from(block: &Block, source: &Block) -> Result<()>;

        // Nodes
        fn node_kind(node: &Node) -> &str;
        fn node_next(node: &Node) -> &Node;
        fn node_prev(node: &Node) -> &Node;
        fn node_has_owning_block(node: &Node) -> bool;
        fn node_owning_block(node: &Node) -> Result<&Block>;
        fn node_inputs_len(node: &Node) -> usize;
        fn node_input(node: &Node, index: usize) -> Result<&Value>;
        fn node_outputs_len(node: &Node) -> usize;
        fn node_output(node: &Node, index: usize) -> Result<&Value>;
        fn node_add_output(node: &Node) -> Result<&Value>;
        fn node_blocks_len(node: &Node) -> usize;
        fn node_block(node: &Node, index: usize) -> Result<&Block>;
        fn node_add_block(node: &Node) -> Result<&Block>;
        fn node_add_input(node: &Node, value: &Value) -> Result<()>;
        fn node_insert_input(node: &Node, index: usize, value: &Value) -> Result<()>;
        fn node_replace_input(node: &Node, index: usize, value: &Value) -> Result<()>;
        fn node_replace_input_with(node: &Node, from: &Value, to: &Value) -> Result<()>;
        fn node_remove_input(node: &Node, index: usize) -> Result<()>;
        fn node_remove_all_inputs(node: &Node) -> Result<()>;
        fn node_insert_before(node: &Node, other: &Node) -> Result<()>;
        fn node_insert_after(node: &Node, other: &Node) -> Result<()>;
        fn node_move_before(node: &Node, other: &Node) -> Result<()>;
        fn node_move_after(node: &Node, other: &Node) -> Result<()>;
        fn node_is_before(node: &Node, other: &Node) -> Result<bool>;
        fn node_is_dominated_by(node: &Node, other: &Node) -> Result<bool>;
        fn node_has_side_effects(node: &Node) -> Result<bool>;
        fn node_is_nondeterministic(node: &Node) -> Result<bool>;
        fn node_copy_metadata(node: &Node, from: &Node) -> Result<()>;
        fn node_source_range(node: &Node) -> Result<SourceRange>;
        fn node_set_source(node: &Node, file: &str, line: usize, code: &str) -> Result<()>;
        fn node_scope(node: &Node) -> Result<String>;
        fn node_set_scope(node: &Node, path: &str) -> Result<()>;
        fn node_has_schema(node: &Node) -> bool;
        fn node_schema(node: &Node) -> Result<Schema>;
        fn node_to_string(node: &Node) -> Result<String>;
        fn node_attribute_names(node: &Node) -> Vec<String>;
        fn node_has_attribute(node: &Node, name: &str) -> bool;
        fn node_attribute(node: &Node, name: &str) -> Result<UniquePtr<IValue>>;
        fn node_set_attribute(node: &Node, name: &str, value: &IValue) -> Result<()>;
        fn node_remove_attribute(node: &Node, name: &str) -> Result<()>;
        fn node_has_subgraph(node: &Node, name: &str) -> bool;
        fn node_subgraph(node: &Node, name: &str) -> Result<SharedPtr<Graph>>;
        fn node_set_subgraph(node: &Node, name: &str, graph: SharedPtr<Graph>) -> Result<()>;
        fn node_retire(node: &Node, graveyard: &Block) -> Result<()>;
        fn node_destroy(node: &Node) -> Result<()>;
        fn node_run(node: &Node, inputs: UniquePtr<IValues>) -> Result<UniquePtr<IValues>>;

        // Values
        fn value_debug_name(value: &Value) -> String;
        fn value_set_debug_name(value: &Value, name: &str) -> Result<()>;
        fn value_unique(value: &Value) -> usize;
        fn value_node(value: &Value) -> &Node;
        fn value_offset(value: &Value) -> usize;
        fn value_type(value: &Value) -> UniquePtr<Type>;
        fn value_set_type(value: &Value, ty: &Type) -> Result<()>;
        fn value_uses_len(value: &Value) -> usize;
        fn value_use_node(value: &Value, index: usize) -> Result<&Node>;
        fn value_use_offset(value: &Value, index: usize) -> Result<usize>;
        fn value_replace_all_uses_with(value: &Value, other: &Value) -> Result<()>;
        fn value_is_constant(value: &Value) -> bool;
        fn value_constant(value: &Value) -> Result<UniquePtr<IValue>>;
        fn value_has_function(value: &Value) -> bool;
        fn value_function_name(value: &Value) -> Result<String>;
        fn value_function_graph(value: &Value) -> Result<SharedPtr<Graph>>;

        // Types
        fn type_parse(text: &str) -> Result<UniquePtr<Type>>;
        fn type_text(ty: &Type) -> String;
        fn type_annotation(ty: &Type) -> String;
        fn type_kind(ty: &Type) -> String;
        fn type_class_name(ty: &Type) -> Result<String>;
        fn type_is_module(ty: &Type) -> bool;
        fn type_contained_len(ty: &Type) -> usize;
        fn type_contained(ty: &Type, index: usize) -> Result<UniquePtr<Type>>;
        fn type_field_names(ty: &Type) -> Vec<String>;
        fn type_is_subtype_of(ty: &Type, other: &Type) -> bool;
        fn type_equals(ty: &Type, other: &Type) -> bool;
        fn type_tensor_dtype(ty: &Type) -> i32;
        fn type_attribute(ty: &Type, name: &str) -> Result<UniquePtr<Type>>;
        fn type_method_graph(ty: &Type, method: &str) -> Result<SharedPtr<Graph>>;
        fn type_method_names(ty: &Type) -> Vec<String>;
        fn type_remove_attribute(ty: &Type, name: &str) -> Result<()>;
        fn type_address(ty: &Type) -> usize;
        fn type_unit(ty: &Type) -> SharedPtr<CompilationUnit>;

        // Modules
        fn module_new(name: &str) -> Result<UniquePtr<Module>>;
        fn module_load_file(path: &str) -> Result<UniquePtr<Module>>;
        fn module_load_bytes(bytes: &[u8]) -> Result<UniquePtr<Module>>;
        fn module_extra_files(path: &str) -> Result<Vec<ExtraFile>>;
        fn module_save_file(module: &Module, path: &str, extra: &[ExtraFile]) -> Result<()>;
        fn module_save_bytes(module: &Module) -> Result<Vec<u8>>;
        fn module_handle(module: &Module) -> UniquePtr<Module>;
        /// Null where the host's module is empty.
        unsafe fn module_from_address(address: usize) -> UniquePtr<Module>;
        unsafe fn module_store(module: &Module, address: usize);
        fn module_deepcopy(module: &Module) -> Result<UniquePtr<Module>>;
        fn module_shallow_copy(module: &Module) -> Result<UniquePtr<Module>>;
        fn module_default_argument(module: &Module, method: &str, index: usize) -> Result<UniquePtr<IValue>>;
        fn module_of_new_class_like(module: &Module) -> Result<UniquePtr<Module>>;
        fn unit_new(source: &Module, keeps_source: bool) -> Result<SharedPtr<CompilationUnit>>;
        fn module_of_new_class_in(module: &Module, unit: &SharedPtr<CompilationUnit>) -> Result<UniquePtr<Module>>;
        fn module_of_class(module: &Module) -> Result<UniquePtr<Module>>;
        fn copy_memo_new() -> UniquePtr<CopyMemo>;
        fn module_copy_attribute(source: &Module, name: &str, target: &Module) -> Result<()>;
        fn module_deepcopy_attribute(
            source: &Module,
            name: &str,
            target: &Module,
            memo: Pin<&mut CopyMemo>,
        ) -> Result<()>;
        fn module_set_submodule(module: &Module, name: &str, ty: &Type, submodule: &Module) -> Result<()>;
        fn module_copy_constant(source: &Module, name: &str, target: &Module) -> Result<()>;
        fn module_copy_method(source: &Module, method: &str, target: &Module, name: &str, graph: &Graph) -> Result<()>;
        fn module_address(module: &Module) -> usize;
        fn module_fit_slots(module: &Module);
        fn module_fit_own_slots(module: &Module);
        fn module_type(module: &Module) -> UniquePtr<Type>;
        fn module_method_names(module: &Module) -> Vec<String>;
        fn module_method_graph(module: &Module, method: &str) -> Result<SharedPtr<Graph>>;
        fn module_method_schema(module: &Module, method: &str) -> Result<Schema>;
        fn module_method_default(module: &Module, method: &str, argument: usize) -> Result<UniquePtr<IValue>>;
        fn module_define(module: &Module, source: &str) -> Result<()>;
        fn module_return_none(module: &Module, method: &str) -> Result<()>;
        fn module_remove_method(module: &Module, method: &str) -> Result<()>;
        fn module_create_method(module: &Module, name: &str, graph: &Graph) -> Result<()>;
        /// The submodule in an attribute, by the attribute's place among [`module_attributes`]; null of another value.
        fn module_in_slot(module: &Module, slot: usize) -> UniquePtr<Module>;
        fn module_attributes(module: &Module) -> Vec<AttributeInfo>;
        fn module_constants(module: &Module) -> Vec<String>;
        fn module_has_attribute(module: &Module, name: &str) -> bool;
        fn module_attribute(module: &Module, name: &str) -> Result<UniquePtr<IValue>>;
        fn module_set_attribute(module: &Module, name: &str, value: &IValue) -> Result<()>;
        fn module_register_attribute(
            module: &Module,
            name: &str,
            ty: &Type,
            value: &IValue,
            is_parameter: bool,
            is_buffer: bool,
        ) -> Result<()>;
        fn module_register_submodule(module: &Module, name: &str, submodule: &Module) -> Result<()>;
        fn module_remove_slot(module: &Module, name: &str) -> Result<()>;
        fn module_to_float(module: &Module) -> Result<FloatChanges>;
        fn module_train(module: &Module, on: bool) -> Result<()>;
        fn module_is_training(module: &Module) -> bool;
        fn module_run(
            module: &Module,
            method: &str,
            args: UniquePtr<IValues>,
            gradients: bool,
        ) -> Result<UniquePtr<IValue>>;
        fn module_run_once(module: &Module, method: &str, args: UniquePtr<IValues>) -> Result<UniquePtr<IValue>>;
        fn module_fold_attributes(module: &Module, preserved: &[String]) -> Result<UniquePtr<Module>>;
        fn module_freeze(module: &Module, preserved: &[String], optimize_numerics: bool) -> Result<UniquePtr<Module>>;

        // Values at run time
        fn ivalue_none() -> UniquePtr<IValue>;
        fn ivalue_from_tensor(tensor: &Tensor) -> UniquePtr<IValue>;
        fn ivalue_from_int(value: i64) -> UniquePtr<IValue>;
        fn ivalue_from_double(value: f64) -> UniquePtr<IValue>;
        fn ivalue_from_bool(value: bool) -> UniquePtr<IValue>;
        fn ivalue_from_string(value: &str) -> UniquePtr<IValue>;
        fn ivalue_from_device(value: &str) -> Result<UniquePtr<IValue>>;
        fn ivalue_from_module(module: &Module) -> UniquePtr<IValue>;
        fn ivalue_tuple(items: UniquePtr<IValues>) -> Result<UniquePtr<IValue>>;
        fn ivalue_list(element: &Type, items: UniquePtr<IValues>) -> Result<UniquePtr<IValue>>;
        fn ivalue_dict(
            key: &Type,
            value: &Type,
            keys: UniquePtr<IValues>,
            values: UniquePtr<IValues>,
        ) -> Result<UniquePtr<IValue>>;
        fn ivalue_copy(value: &IValue) -> UniquePtr<IValue>;
        fn ivalue_deepcopy(value: &IValue) -> Result<UniquePtr<IValue>>;
        unsafe fn ivalue_from_address(address: usize) -> UniquePtr<IValue>;
        unsafe fn ivalue_store(value: &IValue, address: usize);
        fn ivalue_object(value: &IValue) -> usize;
        fn ivalue_tag(value: &IValue) -> String;
        fn ivalue_type(value: &IValue) -> Result<UniquePtr<Type>>;
        fn ivalue_to_tensor(value: &IValue) -> Result<UniquePtr<Tensor>>;
        fn ivalue_to_int(value: &IValue) -> Result<i64>;
        fn ivalue_to_double(value: &IValue) -> Result<f64>;
        fn ivalue_to_bool(value: &IValue) -> Result<bool>;
        fn ivalue_to_string(value: &IValue) -> Result<String>;
        fn ivalue_to_module(value: &IValue) -> Result<UniquePtr<Module>>;
        fn ivalue_items(value: &IValue) -> Result<UniquePtr<IValues>>;
        fn ivalues_new() -> UniquePtr<IValues>;
        fn ivalues_push(items: Pin<&mut IValues>, value: &IValue);
        fn ivalues_len(items: &IValues) -> usize;
        fn ivalues_get(items: &IValues, index: usize) -> Result<UniquePtr<IValue>>;

        // Tensors
        fn tensor_from_bytes(dtype: i32, shape: &[i64], bytes: &[u8]) -> Result<UniquePtr<Tensor>>;
        fn tensor_zeros(bytes: usize) -> Result<UniquePtr<Tensor>>;
        fn tensor_on_memory(
            memory: &Tensor,
            dtype: i32,
            sizes: &[i64],
            strides: &[i64],
            offset: i64,
        ) -> Result<UniquePtr<Tensor>>;
        fn tensor_handle(tensor: &Tensor) -> UniquePtr<Tensor>;
        unsafe fn tensor_from_address(address: usize) -> UniquePtr<Tensor>;
        fn tensor_address(tensor: &Tensor) -> usize;
        unsafe fn tensor_store(tensor: &Tensor, address: usize);
        fn tensor_plain(tensor: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn tensor_data(tensor: &Tensor) -> usize;
        fn tensor_defined(tensor: &Tensor) -> bool;
        fn tensor_dtype(tensor: &Tensor) -> i32;
        fn tensor_shape(tensor: &Tensor) -> Vec<i64>;
        fn tensor_bytes_len(tensor: &Tensor) -> usize;
        fn tensor_read(tensor: &Tensor, into: &mut [u8]) -> Result<()>;
        fn tensor_floats(tensor: &Tensor) -> Result<&[f32]>;
        fn tensor_to_f32(tensor: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn tensor_is_quantized(tensor: &Tensor) -> bool;
        fn tensor_is_cpu(tensor: &Tensor) -> bool;
        fn tensor_equal(tensor: &Tensor, other: &Tensor) -> Result<bool>;
        /// The address of its storage; 0 where it has none.
        fn tensor_storage(tensor: &Tensor) -> usize;
        fn tensor_copy(tensor: &Tensor) -> Result<UniquePtr<Tensor>>;

        // Observers
        type NormalMode;
        fn leave_inference_mode() -> UniquePtr<NormalMode>;
        fn observer_take(observer: &Module) -> Result<UniquePtr<IValues>>;

        // The host
        fn host_refusal() -> &'static str;
        /// Whether this process is a child that was forked off the one which loaded the library.
        fn host_is_forked() -> bool;
        fn library_open(path: &str) -> Result<()>;
        fn torch_version() -> String;
        fn torch_set_threads(threads: i32);
        fn torch_threads() -> i32;
        fn torch_silence_warnings();
    }
}
