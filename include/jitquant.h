// jitquant's C ABI: INT8 quantization of TorchScript modules in libtorch. Guide: docs/c.md
//
// Made by cbindgen from src/capi; tests/capi_header.rs compares.
// clang-format off
//
// What holds for every function:
//
// - It returns JQ_OK, or a status that says why it did nothing; jq_last_error() has the message. Out-pointers are then
//   left as they were. Nothing is thrown or aborted on bad input.
// - Pointers are not null unless the function says so; null gives JQ_ERROR_ARGUMENT. A handle that was freed, or is one
//   on something else, gives JQ_ERROR_HANDLE.
// - What comes back through a `T **` is the caller's, to be freed with the function that T's text names. A
//   `const char *` that comes back belongs to the handle that it came from, and is not freed.
// - What the caller passes (texts, arrays, buffers) is needed during the call only. Texts are UTF-8 and end with a zero
//   byte; paths may hold any other bytes.
// - Functions may be called from any thread. A handle may be used from several at once, and freed while another call
//   uses it. Calls that read or change graphs wait for each other; running models does not wait. Made from a callback,
//   such a call would wait for ever: it gives JQ_ERROR_BUSY.


#ifndef JITQUANT_H
#define JITQUANT_H

#include <stddef.h>
#include <stdint.h>

// The version of this header's functions and structures. It grows when a program compiled against an older header
// would no longer work.
#define JQ_ABI_VERSION 1

// The pass `prepack`: in every graph that libtorch executes, weights that are packed at each run are packed once
#define JQ_PASS_PREPACK 1

// The pass `observe`: in every graph that libtorch executes, what static quantization would observe is observed
#define JQ_PASS_OBSERVE 2

// The pass `accelerate`: in every graph that libtorch executes, `quantized::` operators become jitquant's own
#define JQ_PASS_ACCELERATE 4

// Bytes. They do not change. Free them with `jq_bytes_free`.
typedef struct jq_bytes jq_bytes;

// Samples, held in memory. Free it with `jq_data_free`.
typedef struct jq_data jq_data;

// A TorchScript module. Two handles may be on the same module. Free each with `jq_module_free`.
typedef struct jq_module jq_module;

// A node of a graph. It is valid while the callback that was given it runs, on that thread only; it is not freed.
typedef struct jq_node jq_node;

// A module with observers. Free it with `jq_prepared_free`.
typedef struct jq_prepared jq_prepared;

// A module that is trained for quantization. Free it with `jq_qat_free`.
typedef struct jq_qat jq_qat;

// How modules are to be quantized. Free it with `jq_quantizer_free`.
typedef struct jq_quantizer jq_quantizer;

// The ranges that the pass `observe` collected. It does not change. Free it with `jq_ranges_free`.
typedef struct jq_ranges jq_ranges;

// What becomes, or became, of a model's layers. It does not change. Free it with `jq_report_free`.
typedef struct jq_report jq_report;

// What a method takes and returns. Free it with `jq_signature_free`.
typedef struct jq_signature jq_signature;

// A list of texts. Free it with `jq_strings_free`.
typedef struct jq_strings jq_strings;

// A TorchScript value: a tensor, a number, a text, a tuple, a list, … It does not change. Free it with `jq_value_free`.
typedef struct jq_value jq_value;

// What a function returns: `JQ_OK`, or why it did nothing.
typedef int32_t jq_status;

// The type of a tensor's elements; the numbers are libtorch's `ScalarType`.
typedef int32_t jq_dtype;

// A tensor in plain memory. It owns nothing.
typedef struct jq_buffer {
  // The type of the elements.
  jq_dtype dtype;
  // How many dimensions there are; 0 for a single number.
  size_t dims;
  // The size of each dimension; may be null where `dims` is 0.
  const int64_t *shape;
  // How many elements (not bytes) to go on for one step along each dimension, 0 or more. Null: row-major, without
  // gaps.
  const int64_t *strides;
  // The first element, in the CPU's memory; may be null where a size is 0.
  const void *data;
} jq_buffer;

// What a value is.
typedef int32_t jq_kind;

// The caller's memory for a tensor: row-major, without gaps. It owns nothing.
typedef struct jq_output {
  // The type of the elements.
  jq_dtype dtype;
  // How many dimensions there are; 0 for a single number.
  size_t dims;
  // The size of each dimension; may be null where `dims` is 0.
  const int64_t *shape;
  // Where the first element goes; may be null where a size is 0.
  void *data;
} jq_output;

// An input or an output of a method. The texts belong to the `jq_signature` and go with it.
typedef struct jq_argument {
  // Its name; empty where it has none, as outputs mostly.
  const char *name;
  // Its type as TorchScript writes it, e.g. `Tensor`, `Tuple[Tensor, Tensor]` or `Dict[str, Tensor]`. The sizes of tensors are
  // not part of it: a TorchScript model takes what its operators take.
  const char *type_name;
  // Not 0 where it may be left out: it has a default value then.
  int32_t has_default;
} jq_argument;

// A layer of a model. The texts belong to the report and go with it.
typedef struct jq_layer {
  // The path of its module, e.g. `features.0.conv`; empty where it is not known.
  const char *path;
  // What it does, e.g. `conv2d`.
  const char *operation;
  // Its place in the TorchScript source, e.g. `resnet.py:231`; empty where that is not recorded.
  const char *source;
  // Why it stays in float; null where it is quantized.
  const char *reason;
} jq_layer;

// What the check at the end of a conversion measured; NaN where a figure is not known.
typedef struct jq_check {
  // How many samples both models ran on; 0 where there were none, and nothing was checked.
  size_t samples;
  // Signal to quantization noise ratio of the outputs in dB; infinite where nothing differs.
  double sqnr_db;
  // The share of samples for which both models put the same class first.
  double agreement;
  // The float model's time over the INT8 model's, for one sample on this machine.
  double speed_up;
} jq_check;

// When activations are quantized.
typedef int32_t jq_quant_type;

// Which operators an INT8 model calls: `JQ_PORTABLE` or `JQ_NATIVE`.
typedef int32_t jq_model_form;

// Told where a long call is: before each of its stages, and (with `total` 0) at each tensor that is observed while a
// model runs. `stage` is a text that stays for the call of the function. What it returns other than 0 ends the call
// with `JQ_ERROR_CANCELLED`.
//
// It runs on the thread that made the call. It may cancel, set another callback, and load, look into and run modules;
// what works on graphs or on something prepared (inspect, prepare, calibrate, convert, save, the passes) is refused there
// with `JQ_ERROR_BUSY`. It must not throw an exception or jump out.
typedef int32_t (*jq_progress)(const char *stage, size_t done, size_t total, void *user_data);

// What samples are for: `JQ_CALIBRATE` or `JQ_MEASURE`.
typedef int32_t jq_data_use;

// How accurate an INT8 model has to be; all that is asked for has to hold. A negative number asks for nothing.
typedef struct jq_goal {
  // The least share of samples for which float and INT8 model put the same class first, e.g. 0.99.
  double min_agreement;
  // The least signal to quantization noise ratio of the outputs, in dB.
  double min_sqnr_db;
  // How much of the accuracy on labels may be lost at most, as a share of the samples, e.g. 0.005.
  double max_drop;
} jq_goal;

// How close an INT8 model is to the float one, and whether that was the goal.
typedef struct jq_figures {
  // On how many samples it was measured.
  size_t samples;
  // Signal to quantization noise ratio of the outputs in dB; infinite where nothing differs.
  double sqnr_db;
  // The mean cosine between a sample's two outputs.
  double mean_cosine;
  // The share of samples for which both put the same class first; NaN where the outputs are no class scores.
  double agreement;
  // The float model's accuracy on the labels; NaN without labels.
  double float_accuracy;
  // The INT8 model's; NaN without labels.
  double int8_accuracy;
  // 1 where the goal is reached, else 0.
  int32_t reached;
  // 1 where the search ended for want of time, else 0.
  int32_t out_of_time;
} jq_figures;

// The observers of one part of a model.
typedef struct jq_qconfig {
  // The path of a submodule; an empty text for the whole model. Not null.
  const char *path;
  // Watches activations: a module whose `forward` returns its argument. Null, as `weight` then: the part stays in
  // float.
  const struct jq_module *activation;
  // Watches weights.
  const struct jq_module *weight;
} jq_qconfig;

// Whether a node is one that is asked for: 1 says yes, 0 no; a negative number ends the call with `JQ_ERROR_CANCELLED`,
// and the module stays as it was.
//
// It runs on the thread that made the call, and asks about the node through the `jq_node_…` functions; no other
// function of this library may be called from it. It must not throw an exception or jump out.
typedef int32_t (*jq_node_filter)(const struct jq_node *node, void *user_data);

// The range of a tensor in an executed graph. The text belongs to the `jq_ranges` and goes with it.
typedef struct jq_range {
  // Which graph it is in: a number that equal graphs share, in every process.
  uint64_t graph;
  // The name of the value in the graph.
  const char *value;
  // The smallest value.
  float min;
  // The largest value.
  float max;
  // How many tensors were observed.
  uint64_t count;
} jq_range;

// How much a message matters.
typedef int32_t jq_log_level;

// Takes a message. `target` is the part of the library that it is from; both texts stay for the call of the function.
//
// It may be called from any thread, from several at once. It calls no function of this library, and must not throw an
// exception or jump out.
typedef void (*jq_log_sink)(jq_log_level level, const char *target, const char *message, void *user_data);

// The call did what it should.
#define JQ_OK 0

// An argument is null where it may not be, or does not fit: the message says which and what would be accepted.
#define JQ_ERROR_ARGUMENT 1

// A handle is none of this library, is freed already, or is one on something else.
#define JQ_ERROR_HANDLE 2

// A file could not be read or written.
#define JQ_ERROR_IO 3

// A file is not what it should be.
#define JQ_ERROR_FILE 4

// libtorch refused; the message is libtorch's.
#define JQ_ERROR_TORCH 5

// The progress callback or `jq_quantizer_cancel` ended the call.
#define JQ_ERROR_CANCELLED 6

// A mistake in this library. Please report it with the message.
#define JQ_ERROR_INTERNAL 7

// The process has a libtorch of another version than the library was built for: nothing of the library works.
#define JQ_ERROR_VERSION 8

// The call was made from a callback of a call that works on graphs: it would wait for that one for ever.
#define JQ_ERROR_BUSY 9

// `uint8_t`
#define JQ_U8 0

// `int8_t`
#define JQ_I8 1

// `int16_t`
#define JQ_I16 2

// `int32_t`
#define JQ_I32 3

// `int64_t`
#define JQ_I64 4

// IEEE 754 half precision
#define JQ_F16 5

// `float`
#define JQ_F32 6

// `double`
#define JQ_F64 7

// A byte, 0 or 1
#define JQ_BOOL 11

// bfloat16
#define JQ_BF16 15

// `None`
#define JQ_NONE 0

// A tensor: `jq_value_buffer`
#define JQ_TENSOR 1

// An integer: `jq_value_int`
#define JQ_INT 2

// A floating-point number: `jq_value_double`
#define JQ_DOUBLE 3

// A truth value: `jq_value_int` gives 0 or 1
#define JQ_TRUTH 4

// A text, or a device: `jq_value_text`
#define JQ_TEXT 5

// A tuple: `jq_value_item`
#define JQ_TUPLE 6

// A list: `jq_value_item`
#define JQ_LIST 7

// A dictionary: `jq_value_item`; keys and values take turns
#define JQ_DICT 8

// Anything else; `jq_value_to_torch` hands it to the host
#define JQ_OTHER 9

// With the range of each input as it comes.
#define JQ_DYNAMIC 0

// With ranges that calibration found.
#define JQ_STATIC 1

// Weights alone, in 8 or 4 bits; activations stay in float. For `jq_quantizer_new` only.
#define JQ_WEIGHT_ONLY 2

// libtorch's own: the model runs in any libtorch.
#define JQ_PORTABLE 0

// jitquant's: faster; jitquant has to be loaded where the model runs.
#define JQ_NATIVE 1

// Ranges are found on them.
#define JQ_CALIBRATE 0

// Accuracy is measured on them.
#define JQ_MEASURE 1

// No messages
#define JQ_LOG_OFF 0

// Something went wrong that no status tells of
#define JQ_LOG_ERROR 1

// Something has no effect, or not the one that was probably meant
#define JQ_LOG_WARN 2

// What a user may want to know
#define JQ_LOG_INFO 3

// What helps to find a mistake
#define JQ_LOG_DEBUG 4

// Everything
#define JQ_LOG_TRACE 5

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The message of the last call on this thread that failed; an empty text where none did, and where the thread is ending
// (in destructors of its thread_local variables). Never null.
//
// The text belongs to the library and stays until the next call on this thread fails.
const char *jq_last_error(void);

// The version of the library, e.g. `0.1.0`. Never null; never freed.
const char *jq_version(void);

// The `JQ_ABI_VERSION` of the header that the library was built with. A program checks that it is its own.
uint32_t jq_abi_version(void);

// The version of the libtorch that the library was built for, e.g. `2.13.0`. Never null; never freed.
const char *jq_torch_version(void);

// Registers the library's operators with libtorch, where loading the library has not done so; later calls do nothing.
//
// Call it where the program links the library and would otherwise use none of its functions before it loads a model
// that holds `jitquant::` operators. Any thread.
jq_status jq_init(void);

// How many texts there are, into `*count`. Any thread.
jq_status jq_strings_count(const struct jq_strings *strings, size_t *count);

// Text `index`, into `*text`; it belongs to the list and goes with it. Any thread.
jq_status jq_strings_get(const struct jq_strings *strings, size_t index, const char **text);

// Frees the list and its texts. Null is allowed. Any thread.
jq_status jq_strings_free(struct jq_strings *strings);

// Where the bytes lie, into `*data`, and how many there are, into `*len`; they belong to `bytes` and go with it. Any
// thread.
jq_status jq_bytes_get(const struct jq_bytes *bytes, const uint8_t **data, size_t *len);

// Frees the bytes. Null is allowed. Any thread.
jq_status jq_bytes_free(struct jq_bytes *bytes);

// A tensor with a copy of the buffer's elements, into `*value`. `buffer` is not null. Any thread.
jq_status jq_value_from_buffer(const struct jq_buffer *buffer, struct jq_value **value);

// The tensor of the host's `at::Tensor` at `tensor`, into `*value`; the elements are shared, not copied.
//
// `tensor` is not null and the address of an `at::Tensor` of the libtorch that the library was built for; it may go
// after the call. Any thread, as long as no other one changes the host's handle.
jq_status jq_value_from_tensor(const void *tensor, struct jq_value **value);

// The value of the host's `c10::IValue` at `ivalue`, into `*value`: tensors and modules are shared, lists and
// dictionaries copied. The rest is as for `jq_value_from_tensor`.
jq_status jq_value_from_torch(const void *ivalue, struct jq_value **value);

// Sets the host's `c10::IValue` at `ivalue` to the value. `ivalue` is not null and is as for `jq_value_from_torch`.
jq_status jq_value_to_torch(const struct jq_value *value, void *ivalue);

// Makes the host's `at::Tensor` at `tensor` a handle on the tensor of a `JQ_TENSOR`; the elements are shared. `tensor`
// is not null and is as for `jq_value_from_tensor`.
jq_status jq_value_to_tensor(const struct jq_value *value, void *tensor);

// An integer, into `*value`. Any thread.
jq_status jq_value_from_int(int64_t number, struct jq_value **value);

// A floating-point number, into `*value`. Any thread.
jq_status jq_value_from_double(double number, struct jq_value **value);

// A truth value, false where `truth` is 0, into `*value`. Any thread.
jq_status jq_value_from_truth(int32_t truth, struct jq_value **value);

// A text, into `*value`. `text` is not null. Any thread.
jq_status jq_value_from_text(const char *text, struct jq_value **value);

// `None`, into `*value`. Any thread.
jq_status jq_value_none(struct jq_value **value);

// A tuple of the `count` values at `items`, into `*value`. The items keep their own handles. Any thread.
jq_status jq_value_tuple(const struct jq_value *const *items, size_t count, struct jq_value **value);

// A list of the `count` values at `items`, into `*value`. `element` is the type of its elements as TorchScript writes
// it, e.g. `Tensor` or `int`. The items keep their own handles. Any thread.
jq_status jq_value_list(const char *element,
                        const struct jq_value *const *items,
                        size_t count,
                        struct jq_value **value);

// A dictionary into `*value`: the `count` keys at `keys`, each with the value at the same place of `items`. `key` and `item`
// are their types as TorchScript writes them, e.g. `str` and `Tensor`. No key may be there twice. Keys and items keep their
// own handles. Any thread.
jq_status jq_value_dict(const char *key,
                        const char *item,
                        const struct jq_value *const *keys,
                        const struct jq_value *const *items,
                        size_t count,
                        struct jq_value **value);

// What the value is, into `*kind`. Any thread.
jq_status jq_value_kind(const struct jq_value *value, jq_kind *kind);

// A tensor's elements, into `*buffer`: row-major, without gaps; of a quantized tensor the integers. The shape and the
// elements belong to the value and go with it. Any thread.
jq_status jq_value_buffer(const struct jq_value *value, struct jq_buffer *buffer);

// The number of a `JQ_INT`, or 0 or 1 for a `JQ_TRUTH`, into `*number`. Any thread.
jq_status jq_value_int(const struct jq_value *value, int64_t *number);

// The number of a `JQ_DOUBLE` or a `JQ_INT`, into `*number`. Any thread.
jq_status jq_value_double(const struct jq_value *value, double *number);

// The text of a `JQ_TEXT`, into `*text`; it belongs to the value and goes with it. Any thread.
jq_status jq_value_text(const struct jq_value *value, const char **text);

// How many items a tuple, a list or a dictionary has, into `*count`; a dictionary has two for each entry. Any thread.
jq_status jq_value_item_count(const struct jq_value *value, size_t *count);

// Item `index`, into `*item`, a value of its own, to be freed with `jq_value_free`. Any thread.
jq_status jq_value_item(const struct jq_value *value, size_t index, struct jq_value **item);

// Frees the value, and what its buffer and its text point to. Null is allowed. Any thread.
jq_status jq_value_free(struct jq_value *value);

// Loads a shared library that defines operators or classes of its own (torchvision's, for one), for models that use them.
// It stays until the process ends. Any thread.
jq_status jq_load_library(const char *path);

// Loads a TorchScript file, or a program that `torch.export.save` wrote (`.pt2`), into `*module`; its tensors go to the
// CPU. The file is checked before libtorch reads it: a damaged one gives JQ_ERROR_FILE. Any thread.
jq_status jq_module_load(const char *path, struct jq_module **module);

// Loads the `len` bytes at `bytes`, the content of a TorchScript file, into `*module`. The bytes are not needed after
// the call. Any thread.
jq_status jq_module_load_bytes(const uint8_t *bytes, size_t len, struct jq_module **module);

// Saves the module as a TorchScript file. It is written beside `path` and renamed: a failed call leaves the old file as
// it was. Any thread, as long as no other one changes the module.
jq_status jq_module_save(const struct jq_module *module, const char *path);

// The content of a TorchScript file that holds the module, into `*bytes`, to be freed with `jq_bytes_free`; what
// `jq_module_load_bytes` takes. Any thread, as long as no other one changes the module.
jq_status jq_module_save_bytes(const struct jq_module *module, struct jq_bytes **bytes);

// Frees the handle; the module goes with its last handle (the host's own included). Null is allowed. Any thread.
jq_status jq_module_free(struct jq_module *module);

// A handle, into `*module`, on the module of the host's `torch::jit::Module` at `torch_module`. Both share the module,
// and either may go first.
//
// `torch_module` is not null and the address of a `torch::jit::Module` of the libtorch, and the compiler's ABI, that the
// library was built for. Any thread, as long as no other one changes the host's handle.
jq_status jq_module_from_torch(const void *torch_module,
                               struct jq_module **module);

// Makes the host's `torch::jit::Module` at `torch_module` a handle on the module; what it was a handle on before loses
// one. The rest is as for `jq_module_from_torch`.
jq_status jq_module_to_torch(const struct jq_module *module, void *torch_module);

// The names of its methods, into `*names`, to be freed with `jq_strings_free`. Any thread.
jq_status jq_module_methods(const struct jq_module *module, struct jq_strings **names);

// The paths of its submodules (`features.0.conv`), each before those below it, into `*paths`, to be freed with
// `jq_strings_free`. Any thread.
jq_status jq_module_submodules(const struct jq_module *module, struct jq_strings **paths);

// The graph of method `method` as libtorch prints it, the only text of `*graph`, to be freed with `jq_strings_free`.
// Any thread, as long as no other one changes the module.
jq_status jq_module_graph(const struct jq_module *module, const char *method, struct jq_strings **graph);

// Runs method `method` on the `count` values at `inputs`, without gradients; the result goes into `*output`, to be
// freed with `jq_value_free`.
//
// Many threads may run one module at once, where the model's own code allows it (one that keeps state in its attributes
// does not); none while a call changes the module.
jq_status jq_module_run(const struct jq_module *module,
                        const char *method,
                        const struct jq_value *const *inputs,
                        size_t count,
                        struct jq_value **output);

// Runs `forward` on copies of the `count` buffers at `inputs`; the rest is as for `jq_module_run`.
jq_status jq_module_forward(const struct jq_module *module,
                            const struct jq_buffer *inputs,
                            size_t count,
                            struct jq_value **output);

// Runs method `method` on the `count` values at `inputs`, as `jq_module_run` does, and writes the tensors of its result, in
// order, through tuples, lists and the values of dictionaries, into the `output_count` places at `outputs`. Types and sizes
// have to be those of the results (of quantized tensors the integers are written); where one is not, or their number is
// another, nothing is written. The places do not overlap, and nothing else uses them during the call. Threads are as for
// `jq_module_run`.
jq_status jq_module_run_into(const struct jq_module *module,
                             const char *method,
                             const struct jq_value *const *inputs,
                             size_t count,
                             const struct jq_output *outputs,
                             size_t output_count);

// The inputs of method `method` behind the module itself, and its outputs (mostly one, which may be a tuple), into
// `*signature`, to be freed with `jq_signature_free`. Any thread, as long as no other one changes the module.
jq_status jq_module_signature(const struct jq_module *module, const char *method, struct jq_signature **signature);

// How many inputs and outputs there are, into `*inputs` and `*outputs`. Any thread.
jq_status jq_signature_count(const struct jq_signature *signature, size_t *inputs, size_t *outputs);

// Input `index`, into `*input`. Any thread.
jq_status jq_signature_input(const struct jq_signature *signature, size_t index, struct jq_argument *input);

// Output `index`, into `*output`. Any thread.
jq_status jq_signature_output(const struct jq_signature *signature, size_t index, struct jq_argument *output);

// Frees the signature. Null is allowed. Any thread.
jq_status jq_signature_free(struct jq_signature *signature);

// How many layers are quantized, or would be, into `*count`. Any thread.
jq_status jq_report_quantized_layers(const struct jq_report *report, size_t *count);

// How many layers the report lists, into `*count`: of `jq_quantizer_inspect` all layers, of `jq_prepared_convert` those
// that stayed in float. Any thread.
jq_status jq_report_layer_count(const struct jq_report *report, size_t *count);

// Layer `index` of the list, into `*layer`. Any thread.
jq_status jq_report_layer(const struct jq_report *report, size_t index, struct jq_layer *layer);

// How many kinds of `quantized::` operators a converted module has, into `*count`; 0 for `jq_quantizer_inspect`. Any
// thread.
jq_status jq_report_operator_count(const struct jq_report *report, size_t *count);

// The name of operator kind `index` without `quantized::`, into `*name`, and how many nodes there are, into `*nodes`.
// The name belongs to the report and goes with it. Any thread.
jq_status jq_report_operator(const struct jq_report *report, size_t index, const char **name, size_t *nodes);

// What the check at the end of `jq_prepared_convert` measured, into `*check`: `samples` is 0 where nothing was checked (no
// samples, a check that was switched off, `jq_quantizer_inspect`). Any thread.
jq_status jq_report_check(const struct jq_report *report,
                          struct jq_check *check);

// Frees the report and its texts. Null is allowed. Any thread.
jq_status jq_report_free(struct jq_report *report);

// A quantizer with the defaults of `quant_type` (`JQ_STATIC`, `JQ_DYNAMIC` or `JQ_WEIGHT_ONLY`), into `*quantizer`. Any
// thread.
jq_status jq_quantizer_new(jq_quant_type quant_type, struct jq_quantizer **quantizer);

// Takes the observers that the TOML text `qconfig` gives for the parts of a model; `docs/configuration.md` describes
// it. Any thread.
jq_status jq_quantizer_set_qconfig(struct jq_quantizer *quantizer, const char *qconfig);

// Leaves the submodule at `path`, and all below it, in float. May be called several times. Any thread.
jq_status jq_quantizer_skip(struct jq_quantizer *quantizer, const char *path);

// Keeps the method or attribute `name` beside `forward` in converted modules. May be called several times. Any thread.
jq_status jq_quantizer_preserve(struct jq_quantizer *quantizer, const char *name);

// Makes models of this form: `JQ_PORTABLE`, the default, or `JQ_NATIVE`. Any thread.
jq_status jq_quantizer_set_form(struct jq_quantizer *quantizer, jq_model_form form);

// Whether `jq_prepared_convert` ends with a check, which it does by default (`on` is not 0): the float model and the INT8
// one, read back as a file, run on up to 32 of the samples that calibrated. Layers that break the model stay in float; where
// that does not help, the conversion fails. `jq_report_check` has what was measured. Any thread.
jq_status jq_quantizer_set_check(struct jq_quantizer *quantizer,
                                 int32_t on);

// For a quantizer made with `JQ_WEIGHT_ONLY`: weights of `bits` bits, 8 (the default) or 4. With 4, linear layers have a
// scale and an offset for each `group` of inputs, 32, 64 or 128; what else has weights keeps 8. Any thread.
jq_status jq_quantizer_set_weight_bits(struct jq_quantizer *quantizer,
                                       size_t bits,
                                       size_t group);

// Has `progress` told of the stages of every call that takes the quantizer or what it prepared; null: nobody.
//
// `progress` and `user_data` stay usable, from any thread that makes such a call, until they are replaced and no call
// is in progress, or the quantizer and all it prepared are freed.
jq_status jq_quantizer_set_progress(struct jq_quantizer *quantizer, jq_progress progress, void *user_data);

// Ends the call in progress that takes the quantizer or what it prepared, at its next stage or observed tensor, with
// `JQ_ERROR_CANCELLED`; where none is in progress, the next one. Any thread.
jq_status jq_quantizer_cancel(struct jq_quantizer *quantizer);

// The layers of `module`, each with why it would stay in float, into `*report`, to be freed with `jq_report_free`.
// Nothing is changed. Any thread.
jq_status jq_quantizer_inspect(const struct jq_quantizer *quantizer,
                               const struct jq_module *module,
                               struct jq_report **report);

// Puts observers into a copy of `module`, into `*prepared`, to be freed with `jq_prepared_free`. `module` stays as it
// is. Any thread; calls that work on graphs wait for each other.
jq_status jq_quantizer_prepare(const struct jq_quantizer *quantizer,
                               const struct jq_module *module,
                               struct jq_prepared **prepared);

// Goes on with an observed module that `jq_prepared_module` gave and that was saved and loaded since, into `*prepared`,
// to be freed with `jq_prepared_free`; it shares `observed`. Any thread.
jq_status jq_quantizer_resume(const struct jq_quantizer *quantizer,
                              const struct jq_module *observed,
                              struct jq_prepared **prepared);

// Frees the quantizer; what it prepared stays. Null is allowed. Any thread.
jq_status jq_quantizer_free(struct jq_quantizer *quantizer);

// Runs the model on copies of the `count` buffers at `inputs`, the arguments of `forward`, and lets the observers watch.
//
// The model's result goes into `*output`, to be freed with `jq_value_free`; `output` may be null. Any thread; calls with
// the same `prepared` wait for each other.
jq_status jq_prepared_calibrate(struct jq_prepared *prepared,
                                const struct jq_buffer *inputs,
                                size_t count,
                                struct jq_value **output);

// As `jq_prepared_calibrate`, on the `count` values at `inputs`: for inputs that are no plain buffers, and tensors of
// the host's (`jq_value_from_tensor`), which are not copied.
jq_status jq_prepared_calibrate_values(struct jq_prepared *prepared,
                                       const struct jq_value *const *inputs,
                                       size_t count,
                                       struct jq_value **output);

// A handle on the module with the observers, into `*module`, to be freed with `jq_module_free`: to save it and go on
// later with `jq_quantizer_resume`, or to run it from the program's own loop. Any thread.
jq_status jq_prepared_module(const struct jq_prepared *prepared, struct jq_module **module);

// Makes the INT8 module, into `*module`, to be freed with `jq_module_free`; `prepared` stays as it is. What became of
// the layers goes into `*report`, to be freed with `jq_report_free`; `report` may be null. Any thread.
jq_status jq_prepared_convert(const struct jq_prepared *prepared, struct jq_module **module, struct jq_report **report);

// Frees what was prepared. Null is allowed. Any thread.
jq_status jq_prepared_free(struct jq_prepared *prepared);

// Sets how many threads libtorch uses inside an operator, for the whole process: from 1 to 64, or to four for each
// processor where that is more.
jq_status jq_set_threads(size_t threads);

// Makes a copy of `module` for quantization-aware training, into `*qat`, to be freed with `jq_qat_free`. It rounds
// nothing yet: ranges come first (`jq_qat_calibrate_values`), then `jq_qat_fake_quantize`. The quantizer is a static one;
// weights may have fewer than eight bits. Any thread.
jq_status jq_quantizer_prepare_qat(const struct jq_quantizer *quantizer,
                                   const struct jq_module *module,
                                   struct jq_qat **qat);

// Goes on with a module that `jq_qat_module` gave and that was saved and loaded since, into `*qat`, to be freed with
// `jq_qat_free`; it shares `module`. Any thread.
jq_status jq_quantizer_resume_qat(const struct jq_quantizer *quantizer,
                                  const struct jq_module *module,
                                  struct jq_qat **qat);

// Runs the model on the `count` values at `inputs`, the arguments of `forward`, for the ranges of activations. Any thread;
// calls with the same `qat` wait for each other.
jq_status jq_qat_calibrate_values(struct jq_qat *qat,
                                  const struct jq_value *const *inputs,
                                  size_t count);

// Has the observers of activations that leave the choice (`auto`, the default) take what loses less at the outputs on the
// samples to calibrate with of `data`: all that calibration saw, or the part of it with the least error. After
// calibration and before `jq_qat_fake_quantize`; without it they take all. Any thread.
jq_status jq_qat_choose_ranges(struct jq_qat *qat,
                               const struct jq_data *data);

// A handle on the module that is trained, into `*module`, to be freed with `jq_module_free`; it is the same module, with
// the same parameters. In C++, `jq_module_to_torch` makes a `torch::jit::Module` of it. Any thread.
jq_status jq_qat_module(const struct jq_qat *qat,
                        struct jq_module **module);

// The names of what an optimizer trains (weights, biases, batch norms, and steps where they are learned), into
// `*names`, to be freed with `jq_strings_free`. Any thread.
jq_status jq_qat_parameter_names(const struct jq_qat *qat, struct jq_strings **names);

// The parameter of that name, into `*value`, to be freed with `jq_value_free`; its tensor is the module's own. Any
// thread.
jq_status jq_qat_parameter(const struct jq_qat *qat, const char *name, struct jq_value **value);

// Whether activations' ranges follow the data (`on` is not 0). Weights' always follow the weights. Any thread.
jq_status jq_qat_observe(struct jq_qat *qat, int32_t on);

// Whether tensors are rounded (`on` is not 0). Switching it on takes the ranges observed so far. Any thread.
jq_status jq_qat_fake_quantize(struct jq_qat *qat, int32_t on);

// Whether batch norms go on with the running statistics that they have, in training too (`on` is not 0). Any thread.
jq_status jq_qat_freeze_batch_norms(struct jq_qat *qat, int32_t on);

// Makes the steps of activations trained parameters (learned step size), from what they are now: to be called after
// calibration. Any thread.
jq_status jq_qat_learn_steps(struct jq_qat *qat);

// Makes the INT8 module of what was trained, into `*module`, to be freed with `jq_module_free`; `qat` stays as it is.
// What became of the layers goes into `*report`, to be freed with `jq_report_free`; `report` may be null. Any thread.
jq_status jq_qat_convert(const struct jq_qat *qat, struct jq_module **module, struct jq_report **report);

// Frees what is trained. Null is allowed. Any thread.
jq_status jq_qat_free(struct jq_qat *qat);

// No samples, into `*data`. Any thread.
jq_status jq_data_new(struct jq_data **data);

// Adds a batch: the `count` values at `inputs`, the arguments of `forward`, with the samples along their first
// dimension. `purpose` is `JQ_CALIBRATE` or `JQ_MEASURE`. Tensors are shared, not copied. Any thread.
jq_status jq_data_add(struct jq_data *data, jq_data_use purpose, const struct jq_value *const *inputs, size_t count);

// The classes of the samples to measure on, in their order: `count` numbers at `labels`, which are copied. Where no batch
// was added to measure on, those of all samples. Any thread.
jq_status jq_data_set_labels(struct jq_data *data,
                             const int64_t *labels,
                             size_t count);

// Frees the samples. Null is allowed. Any thread.
jq_status jq_data_free(struct jq_data *data);

// Makes an INT8 module of `module` that reaches `goal`, with as few layers in float as can be found in `minutes`; into
// `*converted`, to be freed with `jq_module_free`. docs/accuracy.md says how it looks for them.
//
// A goal out of reach is no error: `*figures` tells, and the module is the nearest one. Where `data` has no batch to
// measure on, every fourth one is held out for it. With `state`, a path, what was measured is kept in that file, and a
// later call with the same model, data and options goes on from there; null: it is not. `*report`, to be freed with
// `jq_report_free`, lists the layers left in float, each with its share of the loss; `report` and `figures` may be null.
// Any thread; other calls that work on graphs wait until it has ended.
jq_status jq_quantizer_tune(const struct jq_quantizer *quantizer,
                            const struct jq_module *module,
                            const struct jq_data *data,
                            const struct jq_goal *goal,
                            double minutes,
                            const char *state,
                            struct jq_module **converted,
                            struct jq_report **report,
                            struct jq_figures *figures);

// Times each layer of `module` in INT8 and in float on this machine, and has the quantizer leave in float what INT8 would
// slow down, conversions between the two counted in. `samples` of the data's first batch are run at once; `accelerated`
// other than 0 times portable models on jitquant's kernels (`jq_accelerate`). How many layers stay in float goes into
// `*left`, which may be null. Layers in branches and loops stay in INT8. Any thread, as `jq_quantizer_tune`.
jq_status jq_quantizer_only_faster(struct jq_quantizer *quantizer,
                                   const struct jq_module *module,
                                   const struct jq_data *data,
                                   size_t samples,
                                   int32_t accelerated,
                                   size_t *left);

// What the node does, e.g. `quantized::conv2d_prepack`, into `*text`, which stays as long as the node.
jq_status jq_node_kind(const struct jq_node *node, const char **text);

// The node as libtorch prints it, into `*text`, which stays as long as the node.
jq_status jq_node_text(const struct jq_node *node, const char **text);

// Its place in the TorchScript source, e.g. `resnet.py:231`, empty where that is not recorded, into `*text`, which stays
// as long as the node.
jq_status jq_node_source(const struct jq_node *node,
                         const char **text);

// The name of the attribute that a `prim::GetAttr` reads or of the method that a `prim::CallMethod` calls, into
// `*text`, which stays as long as the node.
jq_status jq_node_name(const struct jq_node *node, const char **text);

// How many inputs the node has, into `*count`.
jq_status jq_node_input_count(const struct jq_node *node, size_t *count);

// The node that computes input `index`, into `*producer`; it is valid as long as `node`.
jq_status jq_node_input(const struct jq_node *node, size_t index, const struct jq_node **producer);

// libtorch's `torch::jit::Node*`, into `*torch_node`: for C++ programs. It must not be changed.
jq_status jq_node_to_torch(const struct jq_node *node, void **torch_node);

// `InsertObservers`: a copy of `module` whose method `method` is watched by the observers of the `count` entries at
// `qconfigs`, into `*observed`, to be freed with `jq_module_free`.
//
// The observers are copied. Tensors are copied too, or shared with `module` where `inplace` is not 0. `module` stays as
// it is. Any thread; calls that work on graphs wait for each other.
jq_status jq_insert_observers(const struct jq_module *module,
                              const char *method,
                              const struct jq_qconfig *qconfigs,
                              size_t count,
                              int32_t inplace,
                              jq_quant_type quant_type,
                              struct jq_module **observed);

// `InsertObserversForOnDevicePTQ`: as `jq_insert_observers`, in a method `observe_{method}` that is added, for models that are
// quantized where they run.
jq_status jq_insert_observers_for_on_device_ptq(const struct jq_module *module,
                                                const char *method,
                                                const struct jq_qconfig *qconfigs,
                                                size_t count,
                                                int32_t inplace,
                                                jq_quant_type quant_type,
                                                struct jq_module **observed);

// `InsertQuantDeQuant`: a copy of `observed`, whose method `method` was watched by observers, that rounds what they
// watched as INT8 does, into `*quantized`, to be freed with `jq_module_free`.
//
// Tensors are copied, or shared with `observed` where `inplace` is not 0. With `debug` not 0, operators whose float form
// computes something else are named in the log. `observed` stays as it is. Any thread.
jq_status jq_insert_quant_dequant(const struct jq_module *observed,
                                  const char *method,
                                  int32_t inplace,
                                  int32_t debug,
                                  jq_quant_type quant_type,
                                  struct jq_module **quantized);

// `InsertQuantDeQuantOnDevicePTQ`: as `jq_insert_quant_dequant`, for the method `observe_…` that
// `jq_insert_observers_for_on_device_ptq` made; the result is in a method `quantize_…`.
jq_status jq_insert_quant_dequant_on_device_ptq(const struct jq_module *observed,
                                                const char *method,
                                                int32_t inplace,
                                                int32_t debug,
                                                jq_quant_type quant_type,
                                                struct jq_module **quantized);

// `Finalize`: a copy of `quantized`, which `jq_insert_quant_dequant` gave, with `quantized::` operators and packed
// weights, frozen, into `*finalized`, to be freed with `jq_module_free`.
//
// The `count` texts at `preserved` name methods and attributes that stay beside `forward`; may be null where there are
// none. `quantized` stays as it is. Any thread.
jq_status jq_finalize(const struct jq_module *quantized,
                      jq_quant_type quant_type,
                      const char *const *preserved,
                      size_t count,
                      struct jq_module **finalized);

// `FinalizeOnDevicePTQ`: a copy of `quantized` with methods that pack weights and that run in INT8 beside the method
// `quantize_…` that `method` names, into `*finalized`, to be freed with `jq_module_free`. Any thread.
jq_status jq_finalize_on_device_ptq(const struct jq_module *quantized,
                                    jq_quant_type quant_type,
                                    const char *method,
                                    struct jq_module **finalized);

// `FoldConvBatchNorm`: a copy of `module` whose convolutions have taken over the batch norms behind them, into
// `*folded`, to be freed with `jq_module_free`. `module` stays as it is. Any thread.
jq_status jq_fold_conv_batch_norm(const struct jq_module *module, struct jq_module **folded);

// `DedupModuleUses`: gives each use of a submodule of `module` that is used more than once a submodule of its own. Any
// thread, as long as no other one uses the module.
jq_status jq_dedup_module_uses(struct jq_module *module);

// `RegisterPrePackParams`: each packed weight that `method` of `module` computes in a node that `is_packed_param` takes
// is kept in an attribute of `module` whose name begins with `attr_prefix`, and the float weight is released when the
// method runs.
//
// The names of the attributes and the paths of the modules whose weights are packed go into `*names`, to be freed with
// `jq_strings_free`. `is_packed_param` is not null; `user_data` is handed to it. A failed call leaves `module` as it
// was. Any thread, as long as no other one uses the module.
jq_status jq_register_prepack_params(struct jq_module *module,
                                     const char *method,
                                     jq_node_filter is_packed_param,
                                     void *user_data,
                                     const char *attr_prefix,
                                     struct jq_strings **names);

// `FuseLinear`: products with a transposed weight, `addmm` and the function `linear` become `aten::linear`.
//
// `torch_graph` is not null and the address of the host's `std::shared_ptr<torch::jit::Graph>`. A failed call leaves the
// graph as it was. Any thread, as long as no other one uses the graph.
jq_status jq_fuse_linear(void *torch_graph);

// `SwapFunctionalLinear`: calls of the function `linear` become `aten::linear`. The rest is as for `jq_fuse_linear`.
jq_status jq_swap_functional_linear(void *torch_graph);

// `ReplicateQuant`: what joins branches and is quantized then is quantized in each branch. The rest is as for
// `jq_fuse_linear`.
jq_status jq_replicate_quant(void *torch_graph);

// `ReplicateDeQuant`: each use of a dequantized value gets a dequantize of its own. The rest is as for `jq_fuse_linear`.
jq_status jq_replicate_dequant(void *torch_graph);

// `FuseQuantizedAddRelu`: `quantized::add` and its kin take in the relu behind them. The rest is as for `jq_fuse_linear`.
jq_status jq_fuse_quantized_add_relu(void *torch_graph);

// `InsertPrepackUnpack`: quantized weights are packed and unpacked again before their operators. The rest is as for
// `jq_fuse_linear`.
jq_status jq_insert_prepack_unpack(void *torch_graph);

// `QuantFusion`: float operators between dequantize and quantize become quantized ones. The rest is as for
// `jq_fuse_linear`.
jq_status jq_quant_fusion(void *torch_graph, jq_quant_type quant_type);

// `FoldQuantizedPrepackingOps`: weights that `forward` of `module` packs at each run are packed now and kept in attributes.
// Any thread, as long as no other one uses the module.
jq_status jq_fold_quantized_prepacking_ops(struct jq_module *module);

// Makes libtorch's `quantized::` operators in `module` run on jitquant's kernels: packed weights are replaced one after the
// other, libtorch's copies are released, and every graph that shares them sees the change at once. Results are at most one
// quantization step from libtorch's; the module saves as before, into a file that needs no jitquant.
//
// How many weights run on jitquant's kernels from now on goes into `*accelerated`; a line for each that stays with libtorch
// (where it is, its class, why) into `*left`, to be freed with `jq_strings_free`. Either may be null. Any thread, as long as
// no other one uses the module meanwhile; afterwards as many as like.
jq_status jq_accelerate(struct jq_module *module,
                        size_t *accelerated,
                        struct jq_strings **left);

// `module`, an INT8 one, in native form, into `*native`, to be freed with `jq_module_free`: jitquant's own operators on plain
// bytes take the place of libtorch's `quantized::` ones. It runs and loads where jitquant is loaded. `module` stays as it is.
// Any thread; calls that work on graphs wait for each other.
jq_status jq_to_native(const struct jq_module *module,
                       struct jq_module **native);

// Registers the passes of `mask` (a sum of `JQ_PASS_…`) with libtorch's pass manager; those that are registered already
// stay so. The environment variable `JITQUANT_PASSES` (`prepack,observe,accelerate`) does the same when the library is loaded.
//
// libtorch runs a pass when it optimizes a graph, on the third run of a model by default. Its list of passes has no lock:
// no other thread may run models during the call.
jq_status jq_register_passes(uint32_t mask);

// Takes the passes away from libtorch. What they did to graphs stays. No other thread may run models during the call.
jq_status jq_clear_passes(void);

// The ranges that the pass `observe` has collected in this process until now, into `*ranges`, to be freed with
// `jq_ranges_free`. Any thread.
jq_status jq_ranges_collect(struct jq_ranges **ranges);

// How many ranges there are, into `*count`. Any thread.
jq_status jq_ranges_count(const struct jq_ranges *ranges, size_t *count);

// Range `index`, into `*range`; they are ordered by graph and value. Any thread.
jq_status jq_ranges_get(const struct jq_ranges *ranges, size_t index, struct jq_range *range);

// Frees the ranges. Null is allowed. Any thread.
jq_status jq_ranges_free(struct jq_ranges *ranges);

// Writes what the pass `observe` has collected in this process until now to `path`, as TOML: a table for each graph, and in
// it `value = [min, max, count]`. Any thread.
jq_status jq_ranges_save(const char *path);

// Replaces the host's `torch::jit::Module` at `torch_module`, which it has just loaded, by what the environment variable
// `JITQUANT` asks for: `observe:FILE` by a module that records its ranges, `quantize:FILE` by an INT8 one that was made
// with the ranges recorded there. What cannot be replaced stays as it is, and stderr says why, once for each model.
//
// libjitquant_preload.so calls it for every model that a program loads; see docs/zero-touch.md. Any thread.
jq_status jq_zero_touch(void *torch_module);

// Hands messages of `level` and above to `sink`, with `user_data`; null: to nobody, which is how the library starts.
//
// `sink` and `user_data` stay usable until the call that replaces them has returned. Any thread; not from a callback.
jq_status jq_set_log(jq_log_level level, jq_log_sink sink, void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* JITQUANT_H */
