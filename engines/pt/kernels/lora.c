/* y += B A x for every row, with the low-rank matrices of the row's own adapter (batched LoRA, as Punica's SGMV:
 * Chen et al. 2023, arXiv:2310.18547).
 *
 * x      [rows, in]               float32
 * y      [rows, out]              float32, added to
 * a      [slots, max_rank, in]    float32; of a slot the first `ranks[slot]` rows are set
 * b      [slots, max_rank, out]   float32, transposed and scaled
 * ranks  [slots] int32            0: the adapter leaves this layer alone
 * slots  [rows] int32             -1: no adapter
 *
 * A task is a run of neighbouring rows with the same adapter, of up to ROWS: they share the reading of its matrices.
 * The sums of a row are made in the same order whatever rows are beside it.
 */
#include <stdlib.h>

#include "lanes.h"

#define ROWS 4

#define RUN(COUNT)                                                                                                    \
  static void run_##COUNT(const float *x, float *y, const float *a, const float *b, int rank, int in, int out,        \
                          float *low) {                                                                               \
    for (int r = 0; r < rank; r++) {                                                                                  \
      const float *row = a + (int64_t)r * in;                                                                         \
      lanes sum[COUNT] = {0};                                                                                         \
      int k = 0;                                                                                                      \
      for (; k + LANES <= in; k += LANES)                                                                             \
        _Pragma("GCC unroll 4") for (int i = 0; i < COUNT; i++)                                                       \
            sum[i] = multiply_add(*(const lanes *)(row + k), *(const lanes *)(x + (int64_t)i * in + k), sum[i]);      \
      for (int i = 0; i < COUNT; i++) low[r * COUNT + i] = total(sum[i], row + k, x + (int64_t)i * in + k, in - k);    \
    }                                                                                                                 \
    for (int r = 0; r < rank; r++) {                                                                                  \
      const float *row = b + (int64_t)r * out;                                                                        \
      for (int i = 0; i < COUNT; i++) add(y + (int64_t)i * out, low[r * COUNT + i], row, out);                        \
    }                                                                                                                 \
  }

/* The sum of the lanes and of the products that are left over. */
static __attribute__((noinline)) float total(lanes sum, const float *row, const float *x, int rest) {
  float result = 0.0f;
  for (int l = 0; l < LANES; l++) result += sum[l];
  for (int k = 0; k < rest; k++) result += row[k] * x[k];
  return result;
}

/* Not inlined, as `total`: the compiler would be free to round differently for one row than for four. */
static __attribute__((noinline)) void add(float *y, float factor, const float *row, int out) {
  for (int o = 0; o < out; o++) y[o] += factor * row[o];
}

RUN(1) RUN(2) RUN(3) RUN(4)

/* Returns 1 where there is no memory. */
int lora_add(const float *x, float *y, const float *a, const float *b, const int32_t *ranks, const int32_t *slots,
             int rows, int in, int out, int max_rank) {
  int *starts = malloc(sizeof(int) * ((size_t)rows + 1)), tasks = 0, failed = 0;
  if (starts == NULL) return 1;
  for (int t = 0; t < rows; t++)
    if (t == 0 || slots[t] != slots[t - 1] || t - starts[tasks - 1] == ROWS) starts[tasks++] = t;
  starts[tasks] = rows;
#pragma omp parallel reduction(| : failed)
  {
    float *low = malloc(sizeof(float) * ROWS * (size_t)max_rank);
    failed |= low == NULL;
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < tasks; task++) {
      int t = starts[task], count = starts[task + 1] - t, slot = slots[t];
      if (low == NULL || slot < 0 || ranks[slot] == 0) continue;
      const float *from = x + (int64_t)t * in, *down = a + (int64_t)slot * max_rank * in,
                  *up = b + (int64_t)slot * max_rank * out;
      float *to = y + (int64_t)t * out;
      switch (count) {
        case 1: run_1(from, to, down, up, ranks[slot], in, out, low); break;
        case 2: run_2(from, to, down, up, ranks[slot], in, out, low); break;
        case 3: run_3(from, to, down, up, ranks[slot], in, out, low); break;
        default: run_4(from, to, down, up, ranks[slot], in, out, low);
      }
    }
    free(low);
  }
  free(starts);
  return failed;
}
