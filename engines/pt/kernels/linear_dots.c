/* y = x W^T + b on a CPU with products of bfloat16 values (AVX512-BF16): both rounded to it, sums and y in float32.
 *
 * x       [rows, in]          bfloat16; in is even
 * w       [panels][in / 2][NR][2] bfloat16: the rows of W, NR at a time, their values in pairs (pack_dots); the last
 *                             panel is padded
 * bias    [out] float32, or NULL
 * y       [rows, out]         float32
 *
 * A task is one panel times up to MC rows of x. The innermost loop holds an MR x NR tile of y in registers, and each of
 * its instructions adds two products. A row's result does not depend on the rows beside it.
 */
#include <string.h>

#include "lanes.h"

#define NR 64
#define MR 6
#define MC 66

#if defined(__AVX512BF16__) && defined(__AVX512F__)

#define DOT(ROWS)                                                                                                     \
  static void dot_##ROWS(const uint32_t *x, int64_t pairs, const bf16 *panel, float *tile) {                          \
    __m512 sum[ROWS][4];                                                                                              \
    _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++)                                                            \
        sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = _mm512_setzero_ps();                                          \
    for (int64_t k = 0; k < pairs; k++) {                                                                             \
      __m512bh w[4];                                                                                                  \
      _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++)                                                             \
          w[j] = (__m512bh)_mm512_loadu_si512(panel + k * 2 * NR + 32 * j);                                           \
      _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++) {                                                        \
        __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[r * pairs + k]);                                           \
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], w[j], pair);      \
      }                                                                                                               \
    }                                                                                                                 \
    _Pragma("GCC unroll 6") for (int r = 0; r < ROWS; r++)                                                            \
      _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) _mm512_storeu_ps(tile + r * NR + 16 * j, sum[r][j]);        \
  }

DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6)

static void dot(int rows, const uint32_t *x, int64_t pairs, const bf16 *panel, float *tile) {
  switch (rows) {
    case 1: dot_1(x, pairs, panel, tile); break;
    case 2: dot_2(x, pairs, panel, tile); break;
    case 3: dot_3(x, pairs, panel, tile); break;
    case 4: dot_4(x, pairs, panel, tile); break;
    case 5: dot_5(x, pairs, panel, tile); break;
    default: dot_6(x, pairs, panel, tile);
  }
}

int has_dots(void) { return 1; }

void linear_dots(const bf16 *x, const bf16 *w, const float *bias, float *y, int64_t rows, int in, int out) {
  int64_t panels = (out + NR - 1) / NR, blocks = (rows + MC - 1) / MC, pairs = in / 2;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t task = 0; task < panels * blocks; task++) {
    int64_t panel = task % panels, end = (task / panels + 1) * MC;
    int columns = out - panel * NR < NR ? (int)(out - panel * NR) : NR;
    for (int64_t first = task / panels * MC; first < end && first < rows; first += MR) {
      float tile[MR * NR];
      int height = rows - first < MR ? (int)(rows - first) : MR;
      dot(height, (const uint32_t *)x + first * pairs, pairs, w + panel * in * NR, tile);
      for (int r = 0; r < height; r++)
        for (int c = 0; c < columns; c++)
          y[(first + r) * out + panel * NR + c] = tile[r * NR + c] + (bias ? bias[panel * NR + c] : 0.0f);
    }
  }
}

#else

int has_dots(void) { return 0; }

void linear_dots(const bf16 *x, const bf16 *w, const float *bias, float *y, int64_t rows, int in, int out) {}

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
