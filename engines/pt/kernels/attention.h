/* Attention of some consecutive tokens to their sequence's cache, for the query heads of one key-value head: what those
 * know of it who call it (attention_rows.h, paged_attention.c). */
#pragma once
#include "lanes.h"

#define CHUNK 512
#define MOST_TOKENS 16 /* of a call */

typedef struct {
  const int32_t *blocks; /* of the sequence */
  int block_size;
  int64_t stride; /* values from one key to the next */
} Pages;

typedef struct {
  const float *q;         /* [group][dim] of the first token */
  float *out;             /* the same; may be q */
  int64_t stride;         /* floats from one token to the next */
  int tokens;             /* up to MOST_TOKENS */
  int first[MOST_TOKENS]; /* key that each sees first */
  int len[MOST_TOKENS];   /* and behind the last */
} Queries;

/* Tokens of a call: as many as have their weights in the second-level cache. */
static inline int tokens_at_once(int group) { return group < MOST_TOKENS ? MOST_TOKENS / group : 1; }

/* Cut rows into runs of the same sequence, up to `most` long: `starts[i]` to `starts[i + 1] - 1`. Returns how many. */
static inline int cut_rows(const int32_t *sequences, int rows, int most, int32_t *starts) {
  int runs = 0;
  for (int t = 0; t < rows; t++)
    if (t == 0 || sequences[t] != sequences[t - 1] || t - starts[runs - 1] == most) starts[runs++] = t;
  starts[runs] = rows;
  return runs;
}

static inline int padded(int dim) { return (dim + 31) / 32 * 32; }

/* Floats that `attend` needs for its own. */
static inline int64_t attention_scratch(int group, int dim) {
  int64_t heads = (int64_t)tokens_at_once(group) * group;
  return heads * (CHUNK + 3 * padded(dim) + 4) + (int64_t)LANES * padded(dim) + 2 * (CHUNK + LANES);
}

/* k and v: those of the key-value head, from the cache's first block on. `scratch`: attention_scratch floats. */
void attend_tokens_float(const Queries *queries, const float *k, const float *v, const Pages *pages, int group, int dim,
                         float scale, float softcap, float *scratch);
void attend_tokens_bf16(const Queries *queries, const bf16 *k, const bf16 *v, const Pages *pages, int group, int dim,
                        float scale, float softcap, float *scratch);
