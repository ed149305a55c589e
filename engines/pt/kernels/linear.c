/* y = x W^T + b on a CPU: float32 activations, bfloat16 weights, float32 sums.
 *
 * A bfloat16 value widens to float32 exactly, so the result is the float32 one, while the weights take half of the
 * memory and, in a small batch, half of the time, which goes into reading them.
 *
 * x       [rows, in]      float32
 * w       [panels][in][NR] bfloat16: the rows of W, NR at a time, transposed (pack_weights); the last panel is padded
 * bias    [out] float32, or NULL
 * y       [rows, out]     float32
 *
 * A task is one panel times up to MC rows of x, which stay in the second-level cache from panel to panel. For more than
 * MR rows a block of the panel is widened once, into the first-level cache, and used for all rows. The innermost loop
 * holds an MR x NR tile of y in registers (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication").
 */
#include "panels.h"

#define NR WIDENING_COLUMNS
#define MR 6
#define KC 256

/* Add x[0..rows) * panel to the tile; `FROM(k, half)` is the k-th row of the panel, its first or second half. */
#define MULTIPLY(NAME, ROWS, TYPE, FROM)                                                                              \
  static void NAME##_##ROWS(const float *x, int64_t stride, const TYPE *panel, int depth, float *tile) {              \
    lanes sum[ROWS][2];                                                                                               \
    _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++)                                                            \
        sum[r][0] = *(lanes *)(tile + r * NR), sum[r][1] = *(lanes *)(tile + r * NR + LANES);                         \
    for (int k = 0; k < depth; k++) {                                                                                 \
      lanes first = FROM(panel + (int64_t)k * NR), second = FROM(panel + (int64_t)k * NR + LANES);                    \
      _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++) {                                                        \
        lanes value = x[r * stride + k] - (lanes){0};                                                                 \
        sum[r][0] = multiply_add(value, first, sum[r][0]);                                                            \
        sum[r][1] = multiply_add(value, second, sum[r][1]);                                                           \
      }                                                                                                               \
    }                                                                                                                 \
    _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++)                                                            \
        *(lanes *)(tile + r * NR) = sum[r][0], *(lanes *)(tile + r * NR + LANES) = sum[r][1];                         \
  }

#define EVERY_HEIGHT(NAME, TYPE, FROM)                                                                                \
  MULTIPLY(NAME, 1, TYPE, FROM) MULTIPLY(NAME, 2, TYPE, FROM) MULTIPLY(NAME, 3, TYPE, FROM)                           \
  MULTIPLY(NAME, 4, TYPE, FROM) MULTIPLY(NAME, 5, TYPE, FROM) MULTIPLY(NAME, 6, TYPE, FROM)                           \
  static void NAME(int rows, const float *x, int64_t stride, const TYPE *panel, int depth, float *tile) {             \
    switch (rows) {                                                                                                   \
      case 1: NAME##_1(x, stride, panel, depth, tile); break;                                                         \
      case 2: NAME##_2(x, stride, panel, depth, tile); break;                                                         \
      case 3: NAME##_3(x, stride, panel, depth, tile); break;                                                         \
      case 4: NAME##_4(x, stride, panel, depth, tile); break;                                                         \
      case 5: NAME##_5(x, stride, panel, depth, tile); break;                                                         \
      default: NAME##_6(x, stride, panel, depth, tile);                                                               \
    }                                                                                                                 \
  }

EVERY_HEIGHT(multiply_packed, bf16, load_bf16)
EVERY_HEIGHT(multiply_widened, float, load_float)

void widening_product(const float *x, const bf16 *panel, int rows, int in, float *tile) {
  float widened[KC * NR] __attribute__((aligned(64)));
  memset(tile, 0, sizeof(float) * (size_t)rows * NR);
  int tiles = (rows + MR - 1) / MR;
  for (int k = 0; k < in; k += KC) {
    int depth = in - k < KC ? in - k : KC;
    const bf16 *block = panel + (int64_t)k * NR;
    if (tiles > 2)
      for (int i = 0; i < depth * NR; i += LANES) *(lanes *)(widened + i) = load_bf16(block + i);
    /* Rows are dealt out evenly: 8 are 4 and 4, not 6 and 2. */
    for (int t = 0, r = 0; t < tiles; t++) {
      int height = (rows - r + tiles - t - 1) / (tiles - t);
      if (tiles > 2)
        multiply_widened(height, x + (int64_t)r * in + k, in, widened, depth, tile + r * NR);
      else
        multiply_packed(height, x + (int64_t)r * in + k, in, block, depth, tile + r * NR);
      r += height;
    }
  }
}

/* Values that `pack_weights` writes. */
int64_t packed_size(int in, int out) { return (int64_t)((out + NR - 1) / NR) * in * NR; }

/* w [out, in] bfloat16 -> packed [panels][in][NR]. */
void pack_weights(const bf16 *w, bf16 *packed, int in, int out) {
#pragma omp parallel for
  for (int n = 0; n < (out + NR - 1) / NR * NR; n++) {
    bf16 *to = packed + (int64_t)(n / NR) * in * NR + n % NR;
    for (int k = 0; k < in; k++) to[(int64_t)k * NR] = n < out ? w[(int64_t)n * in + k] : 0;
  }
}
