// Quantizes a TorchScript model in C, with jitquant's C ABI alone: loads it, calibrates it from a loop of its own,
// converts, saves, and compares the INT8 model with the float one.
//
//   export PKG_CONFIG_PATH=$PREFIX/lib/pkgconfig
//   rpath=$PREFIX/lib:$(pkg-config --variable=libtorch jitquant)/lib
//   cc -std=c99 main.c -o c-app $(pkg-config --cflags --libs jitquant) -Wl,-rpath,$rpath -lm
//   ./c-app digits.pt sixteen.npy digits.int8.pt
//
// The array holds f32 samples in C order, the first dimension counting them; the first half calibrates, the second one
// compares.
#include <jitquant.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Ends the program where a call failed, with the library's message.
static void check(jq_status status, const char *what) {
  if (status == JQ_OK)
    return;
  fprintf(stderr, "%s: %s (status %d)\n", what, jq_last_error(), (int)status);
  exit(EXIT_FAILURE);
}

static void fail(const char *path, const char *what) {
  fprintf(stderr, "%s: %s\n", path, what);
  exit(EXIT_FAILURE);
}

// The samples of a .npy file.
struct samples {
  int64_t shape[8];
  size_t dims;
  size_t sample_size; // elements
  float *data;
};

static struct samples read_npy(const char *path) {
  struct samples samples = {{0}, 0, 1, NULL};
  unsigned char start[10];
  FILE *file = fopen(path, "rb");
  if (!file || fread(start, 1, sizeof start, file) != sizeof start || memcmp(start, "\x93NUMPY\x01", 7) != 0)
    fail(path, "not a .npy array");
  size_t length = (size_t)start[8] | (size_t)start[9] << 8;
  char *header = calloc(length + 1, 1);
  if (!header || fread(header, 1, length, file) != length || !strstr(header, "'<f4'") || !strstr(header, "False"))
    fail(path, "not a float32 array in C order");
  const char *sizes = strstr(header, "'shape': (");
  for (sizes = sizes ? sizes + strlen("'shape': (") : ")"; *sizes != ')' && samples.dims < 8;) {
    char *end;
    samples.shape[samples.dims++] = strtoll(sizes, &end, 10);
    for (sizes = end; *sizes == ',' || *sizes == ' ';)
      ++sizes;
  }
  for (size_t dim = 1; dim < samples.dims; ++dim)
    samples.sample_size *= (size_t)samples.shape[dim];
  size_t count = samples.dims ? (size_t)samples.shape[0] * samples.sample_size : 0;
  samples.data = malloc(count * sizeof(float));
  if (count == 0 || !samples.data || fread(samples.data, sizeof(float), count, file) != count)
    fail(path, "no samples, or shorter than its header says");
  fclose(file);
  free(header);
  return samples;
}

// `count` samples from number `first` on, as the library takes them. `shape` has room for the buffer's sizes.
static jq_buffer batch_of(const struct samples *samples, size_t first, size_t count, int64_t *shape) {
  memcpy(shape, samples->shape, sizeof samples->shape);
  shape[0] = (int64_t)count;
  jq_buffer batch = {JQ_F32, samples->dims, shape, NULL, samples->data + first * samples->sample_size};
  return batch;
}

static int32_t print_stage(const char *stage, size_t done, size_t total, void *user_data) {
  (void)user_data;
  if (total != 0)
    printf("  [%zu/%zu] %s\n", done + 1, total, stage);
  return 0;
}

static size_t largest(const float *scores, size_t classes) {
  size_t best = 0;
  for (size_t i = 1; i < classes; ++i)
    if (scores[i] > scores[best])
      best = i;
  return best;
}

int main(int argc, char **argv) {
  if (argc != 4)
    fail(argv[0], "usage: c-app MODEL.pt SAMPLES.npy OUT.pt");
  if (jq_abi_version() != JQ_ABI_VERSION)
    fail("libjitquant.so", "is of another version than this program's jitquant.h");
  printf("jitquant %s, libtorch %s\n", jq_version(), jq_torch_version());
  struct samples samples = read_npy(argv[2]);
  size_t total = (size_t)samples.shape[0], half = total / 2;
  int64_t shape[8];

  jq_module *model;
  check(jq_module_load(argv[1], &model), "loading");

  jq_quantizer *quantizer;
  check(jq_quantizer_new(JQ_STATIC, &quantizer), "making a quantizer");
  check(jq_quantizer_set_progress(quantizer, print_stage, NULL), "setting the progress callback");

  jq_prepared *prepared;
  check(jq_quantizer_prepare(quantizer, model, &prepared), "preparing");
  for (size_t first = 0; first < half; first += 4) {
    jq_buffer batch = batch_of(&samples, first, half - first < 4 ? half - first : 4, shape);
    check(jq_prepared_calibrate(prepared, &batch, 1, NULL), "calibrating");
  }
  jq_module *int8;
  jq_report *report;
  check(jq_prepared_convert(prepared, &int8, &report), "converting");

  size_t quantized, in_float;
  check(jq_report_quantized_layers(report, &quantized), "reading the report");
  check(jq_report_layer_count(report, &in_float), "reading the report");
  printf("%zu layers are INT8, %zu stay in float\n", quantized, in_float);
  for (size_t i = 0; i < in_float; ++i) {
    jq_layer layer;
    check(jq_report_layer(report, i, &layer), "reading the report");
    printf("  %s (%s): %s\n", layer.path, layer.operation, layer.reason);
  }
  check(jq_module_save(int8, argv[3]), "saving");

  // The saved file, as any program would load it.
  jq_module *saved;
  check(jq_module_load(argv[3], &saved), "loading what was saved");
  jq_buffer batch = batch_of(&samples, half, total - half, shape), ours, theirs;
  jq_value *expected, *got;
  check(jq_module_forward(model, &batch, 1, &expected), "running the float model");
  check(jq_module_forward(saved, &batch, 1, &got), "running the INT8 model");
  check(jq_value_buffer(expected, &theirs), "reading the result");
  check(jq_value_buffer(got, &ours), "reading the result");
  if (theirs.dims != 2 || ours.dims != 2 || theirs.shape[1] != ours.shape[1] || theirs.dtype != JQ_F32)
    fail(argv[1], "a classifier is expected: one row of f32 scores for each sample");
  size_t classes = (size_t)ours.shape[1], agree = 0;
  double signal = 0, noise = 0;
  for (size_t i = 0; i < total - half; ++i) {
    const float *want = (const float *)theirs.data + i * classes, *have = (const float *)ours.data + i * classes;
    agree += largest(want, classes) == largest(have, classes);
    for (size_t c = 0; c < classes; ++c) {
      signal += (double)want[c] * want[c];
      noise += ((double)want[c] - have[c]) * ((double)want[c] - have[c]);
    }
  }
  printf("same answer as float: %zu of %zu; SQNR %.1f dB\n", agree, total - half, 10 * log10(signal / noise));

  jq_value_free(expected);
  jq_value_free(got);
  jq_report_free(report);
  jq_module_free(saved);
  jq_module_free(int8);
  jq_module_free(model);
  jq_prepared_free(prepared);
  jq_quantizer_free(quantizer);
  free(samples.data);
  return EXIT_SUCCESS;
}
