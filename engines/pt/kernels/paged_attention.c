/* Causal attention over a paged key-value cache on a CPU, grouped-query heads: decodes and prefill chunks alike.
 *
 * q, out  [tokens, heads, dim]           float32 or bfloat16 (contiguous)
 * k, v    [blocks, block_size, kv_heads, dim], the same type; the tokens' own keys and values are in it already
 * table   [sequences, max_blocks] int32  blocks of each sequence, in order
 * row     [tokens] int32                 the sequence (row of `table`) each token belongs to
 * lens    [tokens] int32                 keys each token sees, its own included
 * window  0: all keys; w: only the last w
 * softcap 0: none; c: scores become c * tanh(score / c)
 *
 * Plain loops that the compiler vectorises for the machine it runs on; built by build.py, once. Sums are float32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint16_t bf16;

static inline float from_bf16(bf16 x) {
  union { uint32_t u; float f; } c = {(uint32_t)x << 16};
  return c.f;
}

static inline bf16 to_bf16(float x) { /* round to nearest even */
  union { float f; uint32_t u; } c = {x};
  return (bf16)((c.u + 0x7FFF + ((c.u >> 16) & 1)) >> 16);
}

#define LOAD_float(x) (x)
#define LOAD_bf16(x) from_bf16(x)
#define STORE_float(x) (x)
#define STORE_bf16(x) to_bf16(x)

/* One token, one key-value head, its `group` query heads. DIM is a constant where it is inlined with one. */
#define ATTEND(T)                                                                                                     \
  static inline __attribute__((always_inline)) void attend_##T(                                                       \
      const T *q, const T *k, const T *v, T *out, const int32_t *blocks, int len, int first, int group, int dim,      \
      int block_size, int64_t token_stride, float scale, float softcap, float *scratch) {                             \
    int n = len - first;                                                                                              \
    float *query = scratch, *acc = query + group * dim, *scores = acc + group * dim;                                  \
    for (int i = 0; i < group * dim; i++) query[i] = LOAD_##T(q[i]) * scale, acc[i] = 0.0f;                           \
    for (int j = 0; j < n; j++) {                                                                                     \
      int at = first + j;                                                                                             \
      const T *key = k + ((int64_t)blocks[at / block_size] * block_size + at % block_size) * token_stride;            \
      for (int g = 0; g < group; g++) {                                                                               \
        float sum = 0.0f;                                                                                             \
        for (int d = 0; d < dim; d++) sum += query[g * dim + d] * LOAD_##T(key[d]);                                   \
        scores[(int64_t)g * n + j] = sum;                                                                             \
      }                                                                                                               \
    }                                                                                                                 \
    for (int g = 0; g < group; g++) {                                                                                 \
      float *s = scores + (int64_t)g * n, top = -3.0e38f, total = 0.0f;                                               \
      if (softcap > 0.0f)                                                                                             \
        for (int j = 0; j < n; j++) s[j] = softcap * tanhf(s[j] / softcap);                                           \
      for (int j = 0; j < n; j++) top = s[j] > top ? s[j] : top;                                                      \
      for (int j = 0; j < n; j++) s[j] = expf(s[j] - top), total += s[j];                                             \
      float inverse = 1.0f / total;                                                                                   \
      for (int j = 0; j < n; j++) s[j] *= inverse;                                                                    \
    }                                                                                                                 \
    for (int j = 0; j < n; j++) {                                                                                     \
      int at = first + j;                                                                                             \
      const T *value = v + ((int64_t)blocks[at / block_size] * block_size + at % block_size) * token_stride;          \
      for (int g = 0; g < group; g++) {                                                                               \
        float p = scores[(int64_t)g * n + j];                                                                         \
        for (int d = 0; d < dim; d++) acc[g * dim + d] += p * LOAD_##T(value[d]);                                     \
      }                                                                                                               \
    }                                                                                                                 \
    for (int i = 0; i < group * dim; i++) out[i] = STORE_##T(acc[i]);                                                 \
  }

#define PAGED_ATTENTION(T)                                                                                            \
  ATTEND(T)                                                                                                           \
  int paged_attention_##T(const T *q, const T *k, const T *v, T *out, const int32_t *table, const int32_t *row,       \
                         const int32_t *lens, int tokens, int heads, int kv_heads, int dim, int block_size,           \
                         int max_blocks, float scale, int window, float softcap) {                                    \
    int group = heads / kv_heads, longest = 0, failed = 0;                                                            \
    int64_t token_stride = (int64_t)kv_heads * dim;                                                                   \
    for (int t = 0; t < tokens; t++) longest = lens[t] > longest ? lens[t] : longest;                                 \
    _Pragma("omp parallel reduction(| : failed)") {                                                                   \
      float *scratch = malloc(sizeof(float) * (size_t)group * (2 * (size_t)dim + (size_t)longest));                   \
      failed |= scratch == NULL;                                                                                      \
      _Pragma("omp for collapse(2) schedule(dynamic, 1)") for (int t = 0; t < tokens; t++) {                          \
        for (int h = 0; h < kv_heads; h++) {                                                                          \
          if (scratch == NULL) continue;                                                                              \
          int first = window > 0 && lens[t] > window ? lens[t] - window : 0;                                          \
          const T *query = q + ((int64_t)t * heads + (int64_t)h * group) * dim;                                       \
          T *o = out + ((int64_t)t * heads + (int64_t)h * group) * dim;                                               \
          const int32_t *blocks = table + (int64_t)row[t] * max_blocks;                                               \
          const T *key = k + (int64_t)h * dim, *value = v + (int64_t)h * dim;                                         \
          switch (dim) {                                                                                              \
            case 64: attend_##T(query, key, value, o, blocks, lens[t], first, group, 64, block_size, token_stride,    \
                                scale, softcap, scratch); break;                                                      \
            case 128: attend_##T(query, key, value, o, blocks, lens[t], first, group, 128, block_size, token_stride,  \
                                 scale, softcap, scratch); break;                                                     \
            default: attend_##T(query, key, value, o, blocks, lens[t], first, group, dim, block_size, token_stride,   \
                                scale, softcap, scratch);                                                             \
          }                                                                                                           \
        }                                                                                                             \
      }                                                                                                               \
      free(scratch);                                                                                                  \
    }                                                                                                                 \
    return failed;                                                                                                    \
  }

PAGED_ATTENTION(float)
PAGED_ATTENTION(bf16)
