// Runs a Program file without libtorch: ./app model.jqp BATCH CHANNELS HEIGHT WIDTH <floats >floats
#include <jitquant_runtime.h>
#include <stdio.h>
#include <stdlib.h>

static void check(jqr_status status) {
  if (status != JQR_OK) {
    fprintf(stderr, "error: %s\n", jqr_last_error());
    exit(1);
  }
}

int main(int argc, char **argv) {
  int64_t sizes[8];
  size_t rank = 0, count = 1;
  for (; (int)rank + 2 < argc && rank < 8; rank++)
    count *= (size_t)(sizes[rank] = atoll(argv[rank + 2]));
  float *values = calloc(count, sizeof *values);
  if (argc < 3 || !values || fread(values, sizeof *values, count, stdin) != count)
    return fprintf(stderr, "usage: %s model.jqp SIZE... <floats >floats\n", argv[0]), 2;
  jqr_model *model = NULL;
  check(jqr_open(argv[1], &model));
  jqr_tensor input = {JQR_F32, rank, sizes, values}, output;
  jqr_results *results = NULL;
  check(jqr_run(model, &input, 1, &results));
  check(jqr_result(results, 0, &output));
  for (size_t axis = count = 1; axis <= output.rank; axis++)
    count *= (size_t)output.sizes[axis - 1];
  fwrite(output.data, output.element == JQR_F32 ? sizeof(float) : 1, count, stdout);
  jqr_results_free(results), jqr_close(model), free(values);
  return 0;
}
