/* y = x W^T + b on a CPU with products of bfloat16 values (AVX512-BF16): both rounded to it, sums and y in float32.
 *
 * x       [rows, in]          bfloat16; in is even
 * w       [panels][in / 2][NR][2] bfloat16: the rows of W, NR at a time, their values in pairs (pack_dots); the last
 *                             panel is padded
 * bias    [out] float32, or NULL
 * y       [rows, out]         float32
 *
 * A task is one panel times up to PRODUCT_ROWS rows of x. The innermost loop holds an MR x NR tile of y in registers,
 * and each of its instructions adds two products. Every sum is made in the order of k, so that a row's result does not
 * depend on the rows beside it.
 */
#include "panels.h"
#include "tiles.h"

#define NR DOTS_COLUMNS
#define MR 12

#if defined(__AVX512BF16__) && defined(__AVX512F__)

#define DOT(ROWS)                                                                                                     \
  static void dot_##ROWS(const uint32_t *x, int64_t stride, int64_t pairs, const bf16 *panel, float *tile) {          \
    __m512 sum[ROWS][2];                                                                                              \
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();              \
    for (int64_t k = 0; k < pairs; k++) {                                                                             \
      const bf16 *row = panel + k * 2 * NR;                                                                           \
      __m512bh first = (__m512bh)_mm512_loadu_si512(row), second = (__m512bh)_mm512_loadu_si512(row + 32);            \
      _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++) {                                                       \
        __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[r * stride + k]);                                          \
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], first, pair);                                                         \
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], second, pair);                                                        \
      }                                                                                                               \
    }                                                                                                                 \
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++) {                                                         \
      _mm512_storeu_ps(tile + r * NR, sum[r][0]);                                                                     \
      _mm512_storeu_ps(tile + r * NR + 16, sum[r][1]);                                                                \
    }                                                                                                                 \
  }

DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12)

void dots_product(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, float *tile) {
  static void (*const dot[])(const uint32_t *, int64_t, int64_t, const bf16 *, float *) = {
      dot_1, dot_2, dot_3, dot_4, dot_5, dot_6, dot_7, dot_8, dot_9, dot_10, dot_11, dot_12};
  if (in % TILE_INPUTS == 0 && has_tiles()) {
    dots_by_tiles(x, stride, panel, rows, in, far, NULL, tile);
    return;
  }
  int tiles = (rows + MR - 1) / MR;
  /* Rows are dealt out evenly: 16 are 8 and 8, not 12 and 4. */
  for (int t = 0, r = 0; t < tiles; t++) {
    int height = (rows - r + tiles - t - 1) / (tiles - t);
    dot[height - 1]((const uint32_t *)(x + (int64_t)r * stride), stride / 2, in / 2, panel, tile + r * NR);
    r += height;
  }
}

void dots_add(const bf16 *x, int stride, const bf16 *panel, int rows, int in, float *sums, int width) {
  if (in % TILE_INPUTS == 0 && has_tiles()) {
    add_dots_by_tiles(x, stride, panel, rows, in, sums, width);
    return;
  }
  float tile[ADDED_ROWS * NR] __attribute__((aligned(64)));
  dots_product(x, stride, panel, rows, in, 0, tile);
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < NR; c += LANES) {
      float *to = sums + (int64_t)r * width + c;
      store_float(load_float(to) + load_float(tile + r * NR + c), to);
    }
}

int has_dots(void) { return 1; }

#else

void dots_product(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, float *tile) {}
void dots_add(const bf16 *x, int stride, const bf16 *panel, int rows, int in, float *sums, int width) {}

int has_dots(void) { return 0; }

#endif

/* Values that `pack_dots` writes. */
int64_t dot_packed_size(int in, int out) { return (int64_t)((out + NR - 1) / NR) * in * NR; }

/* w [out, in] bfloat16 -> packed [panels][in / 2][NR][2]. */
void pack_dots(const bf16 *w, bf16 *packed, int in, int out) {
#pragma omp parallel for
  for (int n = 0; n < (out + NR - 1) / NR * NR; n++) {
    bf16 *to = packed + (int64_t)(n / NR) * in * NR + n % NR * 2;
    for (int k = 0; k < in; k++) to[(int64_t)(k / 2) * 2 * NR + k % 2] = n < out ? w[(int64_t)n * in + k] : 0;
  }
}
