/* Causal attention over a paged key-value cache on a CPU, grouped-query heads: decodes and prefill chunks alike.
 *
 * q, out  [tokens, heads, dim]           float32 or bfloat16 (contiguous)
 * k, v    [blocks, block_size, kv_heads, dim], the same type; the tokens' own keys and values are in it already
 * kept    AS_IS; or k and v are in 8 bits, of scales k_scales, v_scales [blocks, kv_heads, block_size] float32
 * table   [sequences, max_blocks] int32  blocks of each sequence, in order
 * row     [tokens] int32                 the sequence (row of `table`) each token belongs to
 * lens    [tokens] int32                 keys each token sees, its own included
 * window  0: all keys; w: only the last w
 * softcap 0: none; c: scores become c * tanh(score / c)
 *
 * Sums are float32. A cache in bfloat16 is multiplied with queries in bfloat16 where the machine has an instruction for
 * it, and is widened elsewhere.
 */
#include <omp.h>
#include <stdlib.h>

#include "attention.h"
#include "tiles.h"
#include "typed.h"

#define NARROW_float 0
#define NARROW_bf16 1

#define PAGED_ATTENTION(T)                                                                                            \
  static void some_##T(const T *q, T *out, const int32_t *lens, int tokens, int heads,                                \
                       const Head *head, int window, float *scratch) {                                                \
    int size = head->group * head->dim;                                                                               \
    float *query = scratch + attention_scratch(head->group, head->dim, head->narrow);                                 \
    Queries queries = {query, query, size, tokens};                                                                   \
    for (int t = 0; t < tokens; t++) {                                                                                \
      queries.len[t] = lens[t], queries.first[t] = window > 0 && lens[t] > window ? lens[t] - window : 0;             \
      const T *from = q + (int64_t)t * heads * head->dim;                                                             \
      for (int i = 0; i < size; i += LANES) put_float(take_##T(from + i, size - i), query + t * size + i, size - i);  \
    }                                                                                                                 \
    attend_tokens(head, &queries, scratch);                                                                           \
    for (int t = 0; t < tokens; t++) {                                                                                \
      T *to = out + (int64_t)t * heads * head->dim;                                                                   \
      for (int i = 0; i < size; i += LANES) put_##T(take_float(query + t * size + i, size - i), to + i, size - i);    \
    }                                                                                                                 \
  }                                                                                                                   \
  int paged_attention_##T(const T *q, const char *k, const char *v, T *out, const int32_t *table, const int32_t *row, \
                          const int32_t *lens, const float *k_scales, const float *v_scales, int kept, int tokens,    \
                          int heads, int kv_heads, int dim, int block_size, int max_blocks, float scale, int window,  \
                          float softcap) {                                                                            \
    int narrow = is_narrow(NARROW_##T, kept), width = width_of(kept, NARROW_##T);                                     \
    int group = heads / kv_heads, failed = 0;                                                                         \
    int most = tokens_of_run(group, narrow, tokens, kv_heads, omp_get_max_threads());                                 \
    int32_t *starts = malloc(sizeof(int32_t) * ((size_t)tokens + 1));                                                 \
    if (starts == NULL) return 1;                                                                                     \
    int runs = cut_rows(row, tokens, most, starts);                                                                   \
    _Pragma("omp parallel reduction(| : failed)") {                                                                   \
      float *scratch = malloc(sizeof(float) * (size_t)(attention_scratch(group, dim, narrow) + most * group * dim));  \
      failed |= scratch == NULL;                                                                                      \
      _Pragma("omp for collapse(2) schedule(dynamic, 1)") for (int i = 0; i < runs; i++) {                            \
        for (int h = 0; h < kv_heads; h++) {                                                                          \
          if (scratch == NULL) continue;                                                                              \
          int64_t t = starts[i], at = (t * heads + (int64_t)h * group) * dim, own = (int64_t)h * dim * width;         \
          int64_t scales = kept == AS_IS ? 0 : h * block_size;                                                        \
          Pages pages = {table + (int64_t)row[t] * max_blocks, block_size, (int64_t)kv_heads * dim};                  \
          Head head = {k + own, v + own, narrow, kept, k_scales + scales, v_scales + scales,                          \
                       (int64_t)kv_heads * block_size, pages, group, dim, scale, softcap};                            \
          some_##T(q + at, out + at, lens + t, starts[i + 1] - starts[i], heads, &head, window, scratch);             \
        }                                                                                                             \
      }                                                                                                               \
      leave_tiles();                                                                                                  \
      free(scratch);                                                                                                  \
    }                                                                                                                 \
    free(starts);                                                                                                     \
    return failed;                                                                                                    \
  }

PAGED_ATTENTION(float)
PAGED_ATTENTION(bf16)
