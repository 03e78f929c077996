// Calls every function of jitquant_runtime.h, with what it takes and with null: all MODEL.jqp
#include <jitquant_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                                                                    \
  do {                                                                                                                 \
    if (!(what)) {                                                                                                     \
      fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, jqr_last_error());                                         \
      return 1;                                                                                                        \
    }                                                                                                                  \
  } while (0)

static int said(const char *text) { return strstr(jqr_last_error(), text) != NULL; }

int main(int argc, char **argv) {
  CHECK(argc == 2 && strlen(jqr_last_error()) == 0);
  CHECK(jqr_abi_version() == JQR_ABI_VERSION && strlen(jqr_version()) >= 5);
  jqr_model *model = NULL;
  CHECK(jqr_open(NULL, &model) == JQR_ERROR && said("null"));
  CHECK(jqr_open(argv[1], NULL) == JQR_ERROR && jqr_open("/nowhere", &model) == JQR_ERROR && said("/nowhere"));
  CHECK(jqr_open_bytes("PK", 2, &model) == JQR_ERROR && jqr_open_bytes(NULL, 5, &model) == JQR_ERROR && !model);
  CHECK(jqr_open_bytes("PK", 2, NULL) == JQR_ERROR);

  static unsigned char bytes[1 << 20];
  FILE *file = fopen(argv[1], "rb");
  size_t size = fread(bytes, 1, sizeof bytes, file);
  fclose(file);
  CHECK(jqr_open_bytes(bytes, size, &model) == JQR_OK);
  jqr_close(model);
  CHECK(jqr_open(argv[1], &model) == JQR_OK);

  CHECK(jqr_inputs(model) == 1 && jqr_outputs(model) == 2 && jqr_inputs(NULL) == 0 && jqr_outputs(NULL) == 0);
  jqr_description what;
  CHECK(jqr_input(model, 0, &what) == JQR_OK && strcmp(what.name, "image") == 0 && what.element == JQR_F32);
  CHECK(what.rank == 4 && what.sizes[0] == -1 && what.sizes[1] == 3);
  CHECK(strcmp(what.text, "image: float32 [batch, 3, height, width]") == 0);
  CHECK(jqr_output(model, 1, &what) == JQR_OK && strcmp(what.name, "features") == 0);
  CHECK(jqr_input(model, 1, &what) == JQR_ERROR && jqr_output(model, 2, &what) == JQR_ERROR && said("no output 2"));
  CHECK(jqr_input(NULL, 0, &what) == JQR_ERROR && jqr_output(model, 0, NULL) == JQR_ERROR);

  int64_t sizes[4] = {2, 3, 8, 8}, found[2] = {0, 0};
  static float values[2 * 3 * 64];
  for (size_t i = 0; i < 2 * 3 * 64; i++)
    values[i] = (float)(i % 17) / 8.0f - 1.0f;
  jqr_tensor input = {JQR_F32, 4, sizes, values}, scores, features;
  size_t rank = 0;
  CHECK(jqr_output_sizes(model, &input, 1, 0, found, 2, &rank) == JQR_OK && rank == 2);
  CHECK(found[0] == 2 && found[1] == 5);
  CHECK(jqr_output_sizes(model, &input, 1, 1, NULL, 0, &rank) == JQR_OK && rank == 4);
  CHECK(jqr_output_sizes(model, &input, 1, 2, found, 2, &rank) == JQR_ERROR);
  CHECK(jqr_output_sizes(model, &input, 1, 0, NULL, 2, &rank) == JQR_ERROR);
  CHECK(jqr_output_sizes(model, &input, 1, 0, found, 2, NULL) == JQR_ERROR);

  jqr_results *results = NULL;
  CHECK(jqr_run(model, &input, 1, &results) == JQR_OK);
  CHECK(jqr_result(results, 0, &scores) == JQR_OK && scores.rank == 2 && scores.sizes[1] == 5);
  CHECK(jqr_result(results, 1, &features) == JQR_OK && features.rank == 4 && features.element == JQR_F32);
  CHECK(jqr_result(results, 2, &scores) == JQR_ERROR && jqr_result(NULL, 0, &scores) == JQR_ERROR);
  CHECK(jqr_result(results, 0, NULL) == JQR_ERROR);
  CHECK(jqr_run(NULL, &input, 1, &results) == JQR_ERROR && jqr_run(model, NULL, 1, &results) == JQR_ERROR);
  CHECK(jqr_run(model, &input, 0, &results) == JQR_ERROR && jqr_run(model, &input, 1, NULL) == JQR_ERROR);
  jqr_tensor bad = input;
  bad.element = 9;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR && said("elements of type 9"));
  bad = input, bad.data = NULL;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR && said("input 0 is null"));
  bad = input, bad.data = (const char *)values + 1;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR && said("aligned"));
  bad = input, bad.sizes = NULL;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR && said("sizes is null"));
  bad = input, bad.rank = 1000;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR && said("1000 dimensions"));
  int64_t negative[4] = {-2, 3, 8, 8}, huge[4] = {INT64_MAX, 3, 8, 8};
  bad = input, bad.sizes = negative;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR && said("-2"));
  bad.sizes = huge;
  CHECK(jqr_run(model, &bad, 1, &results) == JQR_ERROR);

  static float first[10], second[2 * 16 * 9];
  jqr_memory into[2] = {{JQR_F32, 10, first}, {JQR_F32, 2 * 16 * 9, second}};
  CHECK(jqr_set_threads(model, 2) == JQR_OK && jqr_run_into(model, &input, 1, into, 2) == JQR_OK);
  CHECK(jqr_result(results, 0, &scores) == JQR_OK && memcmp(first, scores.data, sizeof first) == 0);
  CHECK(memcmp(second, features.data, sizeof second) == 0);
  CHECK(jqr_set_threads(model, 0) == JQR_ERROR && jqr_set_threads(NULL, 1) == JQR_ERROR);
  CHECK(jqr_run_into(model, &input, 1, into, 1) == JQR_ERROR && jqr_run_into(model, &input, 1, NULL, 2) == JQR_ERROR);
  into[0].count = 9;
  CHECK(jqr_run_into(model, &input, 1, into, 2) == JQR_ERROR && said("9 F32 for scores"));
  into[0].count = 10, into[0].data = NULL;
  CHECK(jqr_run_into(model, &input, 1, into, 2) == JQR_ERROR && said("output 0 is null"));

  // Results stay when their model is gone.
  jqr_close(model);
  CHECK(memcmp(first, scores.data, sizeof first) == 0);
  jqr_results_free(results);
  jqr_close(NULL);
  jqr_results_free(NULL);
  puts("ok");
  return 0;
}
