// jitquant's runtime: INT8 models in Program files (.jqp), run without libtorch. Guide: docs/runtime.md
//
// Made by cbindgen from crates/runtime-c; its tests compare.
// clang-format off
//
// What holds for every function:
//
// - It returns JQR_OK, or a status that says why it did nothing; jqr_last_error() has the message. Out-pointers are then
//   left as they were. Nothing is thrown or aborted on bad input, a damaged file for one.
// - Pointers are not null unless the function says so, and lead to as much as it says; handles are open. Null gives
//   JQR_ERROR.
// - What the caller passes (texts, arrays, tensors) is needed during the call only, and not written by others meanwhile.
//   Texts end with a zero byte.
// - Functions may be called from any thread, and a model may be used from several at once.


#ifndef JITQUANT_RUNTIME_H
#define JITQUANT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

// The version of this header's functions and structures. It grows when a program compiled against an older header
// would no longer work.
#define JQR_ABI_VERSION 1

// A model that was opened. It may be used from any number of threads at once.
typedef struct jqr_model jqr_model;

// The results of a run.
typedef struct jqr_results jqr_results;

// What a function returns: `JQR_OK`, or why it did nothing.
typedef int32_t jqr_status;

// What a tensor's elements are.
typedef int32_t jqr_element;

// What a model takes or gives.
typedef struct jqr_description {
  // Its name.
  const char *name;
  // Name, type and sizes for people, e.g. `x: float32 [batch, 3, height, width]`.
  const char *text;
  // What its elements are.
  jqr_element element;
  // How many dimensions it has; 0 where that is not known before a call.
  size_t rank;
  // As many sizes, each -1 where a call decides; null where they are not known before one.
  const int64_t *sizes;
} jqr_description;

// A tensor: its values lie in the order of the indices, the last one runs fastest.
typedef struct jqr_tensor {
  // What its elements are.
  jqr_element element;
  // How many dimensions it has.
  size_t rank;
  // As many sizes, outermost first; may be null where `rank` is 0.
  const int64_t *sizes;
  // As many elements as the sizes say.
  const void *data;
} jqr_tensor;

// Memory for a result.
typedef struct jqr_memory {
  // What its elements are.
  jqr_element element;
  // How many there is room for: as many as the result has.
  size_t count;
  // The elements.
  void *data;
} jqr_memory;

// The call did what it should.
#define JQR_OK 0

// An argument is null, or the model does not take it, or a file is not what it should be: the message says which.
#define JQR_ERROR 1

// A mistake in this library. Please report it with the message.
#define JQR_ERROR_INTERNAL 2

// Bytes.
#define JQR_U8 0

// Floats of 32 bits.
#define JQR_F32 1

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The message of the last call on this thread that failed; an empty text where none did. Never null.
//
// The text belongs to the library and stays until the next call on this thread fails.
const char *jqr_last_error(void);

// The version of the library, e.g. `0.1.0`. Never null; never freed.
const char *jqr_version(void);

// The `JQR_ABI_VERSION` of the header that the library was built with. A program checks that it is its own.
uint32_t jqr_abi_version(void);

// Opens the file at `path`, which `jitquant export` wrote: checks it as a whole and packs its weights for this machine.
// The file is not needed afterwards; it must not be written into during the call. `*model` is freed by `jqr_close`.
jqr_status jqr_open(const char *path, struct jqr_model **model);

// As `jqr_open`, of the `size` bytes of a file at `bytes`, which are not needed afterwards.
jqr_status jqr_open_bytes(const void *bytes, size_t size, struct jqr_model **model);

// Frees a model, which no call uses any more; null is left alone. Results that it gave stay.
void jqr_close(struct jqr_model *model);

// How many tensors a model takes; 0 where `model` is null.
size_t jqr_inputs(const struct jqr_model *model);

// How many tensors a model gives; 0 where `model` is null.
size_t jqr_outputs(const struct jqr_model *model);

// Writes what input `index` is into `*description`, whose pointers belong to the model.
jqr_status jqr_input(const struct jqr_model *model, size_t index, struct jqr_description *description);

// Writes what output `index` is into `*description`, whose pointers belong to the model.
jqr_status jqr_output(const struct jqr_model *model, size_t index, struct jqr_description *description);

// Has a model run on `threads` threads of its own from now on; on the caller's alone until this is called. Results are the
// same bits with any number.
jqr_status jqr_set_threads(const struct jqr_model *model,
                           size_t threads);

// Runs a model on `count` tensors, in the order of its inputs. `*results` is freed by `jqr_results_free`.
jqr_status jqr_run(const struct jqr_model *model,
                   const struct jqr_tensor *inputs,
                   size_t count,
                   struct jqr_results **results);

// Writes result `index` into `*tensor`, whose pointers belong to the results.
jqr_status jqr_result(const struct jqr_results *results, size_t index, struct jqr_tensor *tensor);

// Frees results; null is left alone.
void jqr_results_free(struct jqr_results *results);

// The sizes that output `index` has for these inputs; nothing is computed. Up to `capacity` of them are written to `sizes`,
// which may be null where `capacity` is 0, and how many there are to `*rank`.
jqr_status jqr_output_sizes(const struct jqr_model *model,
                            const struct jqr_tensor *inputs,
                            size_t count,
                            size_t index,
                            int64_t *sizes,
                            size_t capacity,
                            size_t *rank);

// Runs a model on `count` tensors into the caller's memory: one for each output, as long as the output is for these inputs,
// apart from the inputs and from one another.
jqr_status jqr_run_into(const struct jqr_model *model,
                        const struct jqr_tensor *inputs,
                        size_t count,
                        const struct jqr_memory *outputs,
                        size_t output_count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* JITQUANT_RUNTIME_H */
