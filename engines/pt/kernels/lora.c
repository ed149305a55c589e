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
 * A task is up to ROWS rows with the same adapter, wherever they are: they share the reading of its matrices.
 * The sums of a row are made in the same order whatever rows are beside it.
 */
#include <stdlib.h>

#include "lanes.h"

#define ROWS 4

#define RUN(COUNT)                                                                                                    \
  static void run_##COUNT(const float **x, float **y, const float *a, const float *b, int rank, int in, int out,      \
                          float *low) {                                                                               \
    for (int r = 0; r < rank; r++) {                                                                                  \
      const float *row = a + (int64_t)r * in;                                                                         \
      lanes sum[COUNT] = {0};                                                                                         \
      int k = 0;                                                                                                      \
      for (; k + LANES <= in; k += LANES)                                                                             \
        _Pragma("GCC unroll 4") for (int i = 0; i < COUNT; i++)                                                       \
            sum[i] = multiply_add(*(const lanes *)(row + k), *(const lanes *)(x[i] + k), sum[i]);                     \
      for (int i = 0; i < COUNT; i++) low[r * COUNT + i] = total(sum[i], row + k, x[i] + k, in - k);                   \
    }                                                                                                                 \
    for (int r = 0; r < rank; r++) {                                                                                  \
      const float *row = b + (int64_t)r * out;                                                                        \
      for (int i = 0; i < COUNT; i++) add(y[i], low[r * COUNT + i], row, out);                                        \
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

/* Rows by slot, those without one left out, as tasks: `order[starts[task]]` to `order[starts[task + 1] - 1]`. Returns
 * how many; both arrays have room for rows + 1. */
static int deal_out(const int32_t *slots, int rows, int *order, int *starts) {
  int highest = -1, dealt = 0, tasks = 0;
  for (int t = 0; t < rows; t++) highest = slots[t] > highest ? slots[t] : highest;
  for (int slot = 0; slot <= highest; slot++) {
    int first = dealt;
    for (int t = 0; t < rows; t++)
      if (slots[t] == slot) order[dealt++] = t;
    for (int at = first; at < dealt; at += ROWS) starts[tasks++] = at;
  }
  starts[tasks] = dealt;
  return tasks;
}

/* Returns 1 where there is no memory. */
int lora_add(const float *x, float *y, const float *a, const float *b, const int32_t *ranks, const int32_t *slots,
             int rows, int in, int out, int max_rank) {
  int *order = malloc(2 * sizeof(int) * ((size_t)rows + 1)), failed = 0;
  if (order == NULL) return 1;
  int *starts = order + rows + 1, tasks = deal_out(slots, rows, order, starts);
#pragma omp parallel reduction(| : failed)
  {
    float *low = malloc(sizeof(float) * ROWS * (size_t)max_rank);
    failed |= low == NULL;
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < tasks; task++) {
      const int *own = order + starts[task];
      int count = starts[task + 1] - starts[task], slot = slots[own[0]], rank = ranks[slot];
      if (low == NULL || rank == 0) continue;
      const float *from[ROWS], *down = a + (int64_t)slot * max_rank * in, *up = b + (int64_t)slot * max_rank * out;
      float *to[ROWS];
      for (int i = 0; i < count; i++) from[i] = x + (int64_t)own[i] * in, to[i] = y + (int64_t)own[i] * out;
      switch (count) {
        case 1: run_1(from, to, down, up, rank, in, out, low); break;
        case 2: run_2(from, to, down, up, rank, in, out, low); break;
        case 3: run_3(from, to, down, up, rank, in, out, low); break;
        default: run_4(from, to, down, up, rank, in, out, low);
      }
    }
    free(low);
  }
  free(order);
  return failed;
}
