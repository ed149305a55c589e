/* What is done to one row: norms, the turn by the angles of its position, activations. */
#pragma once
#include <math.h>

#include "buffers.h"

/* Rows of a task: as few as keep all threads busy. */
static inline int portion(int rows, int threads) { return (rows + 4 * threads - 1) / (4 * threads); }
#define PORTIONS(rows, portion) (((rows) + (portion) - 1) / (portion))

/* `n` values from column `c` on, a multiple of LANES, of a row that is multiplied with weights: one of [rows][size]. */
INLINED void put_factor(const Decoder *d, void *to, lanes values, int64_t row, int size, int c, int n) {
  int64_t at = row * size + c;
  if (!d->dots)
    put_float(values, (float *)to + at, n);
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  else if (n >= LANES) /* products take what is less than normal for 0 anyway, as this does */
    _mm256_storeu_si256((__m256i *)((bf16 *)to + at), (__m256i)_mm512_cvtneps_pbh((__m512)values));
#endif
  else
    put_bf16(values, (bf16 *)to + at, n);
}

/* 1 / the root of the mean of squares ("Root Mean Square Layer Normalization", Zhang and Sennrich 2019,
 * arXiv:1910.07467). */
INLINED float inverse_norm(const float *x, int n, float epsilon) {
  lanes squares = {0};
  for (int c = 0; c < n; c += LANES) {
    lanes values = take_float(x + c, n - c);
    squares = multiply_add(values, values, squares);
  }
  return 1.0f / sqrtf(total(squares) / (float)n + epsilon);
}

/* `weight` NULL: x as it is. */
static void normalize(const Decoder *d, const float *x, const float *weight, void *normed, float *exact,
                      int64_t row) {
  int n = d->hidden;
  float inverse = weight == NULL ? 1.0f : inverse_norm(x, n, d->epsilon);
  for (int c = 0; c < n; c += LANES) {
    lanes values = take_float(x + c, n - c) * inverse;
    if (weight != NULL) values *= take_float(weight + c, n - c);
    put_factor(d, normed, values, row, n, c, n - c);
    if (exact != NULL) put_float(values, exact + row * n + c, n - c);
  }
}

/* A row's queries or keys: the norm of each head or of all of them together, and their turn by the row's angles. */
INLINED void turn(const Decoder *d, const float *norm, const float *cosines, float *row, int heads) {
  int half = d->rotary / 2, size = heads * d->dim, n = d->whole_norms ? size : d->dim;
  const float *sines = cosines + half;
  for (float *head = row; norm != NULL && head < row + size; head += n) {
    float inverse = inverse_norm(head, n, d->epsilon);
    for (int c = 0; c < n; c += LANES)
      put_float(take_float(head + c, n - c) * inverse * take_float(norm + c, n - c), head + c, n - c);
  }
  for (float *head = row; cosines != NULL && head < row + size; head += d->dim)
    for (int i = 0; i < half; i += LANES) {
      int some = half - i;
      lanes x = take_float(head + i, some), y = take_float(head + half + i, some);
      lanes cosine = take_float(cosines + i, some), sine = take_float(sines + i, some);
      put_float(x * cosine - y * sine, head + i, some);
      put_float(y * cosine + x * sine, head + half + i, some);
    }
}

/* silu(gate) * up ("GLU Variants Improve Transformer", Shazeer 2020, arXiv:2002.05202), or gelu(gate) * up in the
 * approximation by tanh ("Gaussian Error Linear Units", Hendrycks and Gimpel 2016, arXiv:1606.08415), which is
 * x (1 + tanh z) / 2 = x / (1 + e^-2z). */
INLINED lanes gated(const Decoder *d, lanes gate, lanes up) {
  lanes exponent = gate;
  if (d->gelu) exponent *= 1.5957691216f + 0.071354816f * gate * gate;
  return gate / (1.0f + exp_of(-exponent)) * up;
}

/* Logits that go no further than `cap` (Gemma 2, arXiv:2408.00118). */
INLINED lanes capped(lanes values, float cap) { return cap * tanh_of(values / cap); }
