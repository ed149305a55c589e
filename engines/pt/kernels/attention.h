/* Attention of some consecutive tokens to their sequence's cache, for the query heads of one key-value head.
 *
 * Keys are taken CHUNK at a time, from a multiple of it on: their scores, the largest of them, the weights, the weighted
 * sum of the values (attend_chunk, in attention_rows.h for any machine and in attention_dots.c). The chunks' sums are
 * joined in their order ("Online normalizer calculation for softmax", Milakov and Gimelshein 2018, arXiv:1805.02867), at
 * once or, where several threads share a long row, later on ("Flash-Decoding", Dao et al. 2023). So a token's result
 * depends on its own keys and their places alone.
 */
#pragma once
#include <math.h>

#include "eight_bits.h"

#define CHUNK 512
#define MOST_TOKENS 192 /* of a call */

#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define HAS_DOTS 1
#else
#define HAS_DOTS 0
#endif

typedef struct {
  const int32_t *blocks; /* of the sequence */
  int block_size;
  int64_t stride; /* values from one key to the next */
} Pages;

typedef struct {
  const void *k, *v; /* those of the key-value head, from the cache's first block on */
  int narrow;        /* bfloat16, else float32; where they are kept in 8 bits, what they are multiplied as */
  int kept;          /* AS_IS, or how in 8 bits; then */
  const float *k_scales, *v_scales; /* of the head's first token in the first block, */
  int64_t scale_stride;             /* floats from there to the next block */
  Pages pages;
  int group, dim;
  float scale, softcap;
} Head;

typedef struct {
  const float *q;         /* [group][dim] of the first token */
  float *out;             /* the same; may be q */
  int64_t stride;         /* floats from one token to the next */
  int tokens;             /* up to MOST_TOKENS */
  int first[MOST_TOKENS]; /* key that each sees first; never less than that of the one before */
  int len[MOST_TOKENS];   /* and behind the last; the same */
} Queries;

/* What rows (tokens times heads) have seen of some keys. */
typedef struct {
  float *sums;   /* [rows][padded(dim)] values times weights */
  float *tops;   /* [rows] largest score */
  float *totals; /* [rows] of the weights, which are 1 at the largest score; 0: nothing seen */
} Seen;

static inline int padded(int dim) { return (dim + 31) / 32 * 32; }

/* Rows of a call: the more, the less often keys are laid out; the fewer, the more evenly threads get them. */
static inline int rows_at_once(int narrow) { return HAS_DOTS && narrow ? 384 : 16; }

/* What 8 bits are multiplied as, where the model is `narrow`: only products of bfloat16 values need them rounded. */
static inline int is_narrow(int narrow, int kept) { return narrow && (HAS_DOTS || kept == AS_IS); }

/* Tokens of a call, at most. */
static inline int tokens_at_once(int group, int narrow) {
  int rows = rows_at_once(narrow), tokens = group < rows ? rows / group : 1;
  return tokens < MOST_TOKENS ? tokens : MOST_TOKENS;
}

/* And so few that each thread gets some calls: half of them, where `rows` of `kv_heads` heads are not enough. */
static inline int tokens_of_run(int group, int narrow, int64_t rows, int kv_heads, int threads) {
  int most = tokens_at_once(group, narrow);
  return most > 1 && rows * kv_heads < 2 * threads * (int64_t)most ? most / 2 : most;
}

/* Cut rows into runs of the same sequence, up to `most` long: `starts[i]` to `starts[i + 1] - 1`, where `starts` is not
 * NULL. Returns how many. */
static inline int cut_rows(const int32_t *sequences, int rows, int most, int32_t *starts) {
  int runs = 0;
  for (int t = 0, start = 0; t <= rows; t++)
    if (t == 0 || t == rows || sequences[t] != sequences[t - 1] || t - start == most) {
      if (starts != NULL) starts[runs] = t;
      start = t, runs += t < rows;
    }
  return runs;
}

static inline int first_chunk(const Queries *queries) { return queries->first[0] / CHUNK; }
static inline int end_chunk(const Queries *queries) { return (queries->len[queries->tokens - 1] + CHUNK - 1) / CHUNK; }

/* Floats of what `rows` have seen; and its parts, in memory of as many. */
static inline int64_t seen_size(int64_t rows, int dim) { return rows * (padded(dim) + 2); }
static inline Seen seen_at(float *memory, int64_t rows, int dim) {
  float *tops = memory + rows * padded(dim);
  return (Seen){memory, tops, tops + rows};
}

/* Floats that `attend_chunk` needs for its own; and `attend_tokens`. */
int64_t chunk_scratch(int group, int dim, int narrow);
int64_t attention_scratch(int group, int dim, int narrow);

/* What the queries see of the keys from chunk * CHUNK on. `scratch`: chunk_scratch floats. */
void attend_chunk(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch);
/* Join what is seen of the next chunk with what was seen before it. */
void join_seen(const Seen *whole, const Seen *next, int rows, int dim);
/* Nothing; and the results of all that was seen. */
void see_nothing(const Seen *whole, int rows, int dim);
void finish(const Head *head, const Queries *queries, const Seen *whole);

/* All of it. `scratch`: attention_scratch floats. */
void attend_tokens(const Head *head, const Queries *queries, float *scratch);

/* attend_chunk, for each type of the cache. */
int64_t chunk_scratch_float(int group, int dim);
int64_t chunk_scratch_bf16(int group, int dim);
void attend_chunk_float(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch);
void attend_chunk_bf16(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch);

/* Where keys `begin` to `end` - 1 are, and the last of them again until `most` are full, a power of 2. */
static inline void find_places(const Pages *pages, int begin, int end, int most, int64_t *places_of_keys) {
  int block = begin / pages->block_size, offset = begin % pages->block_size;
  for (int token = begin; token < end; token++) {
    *places_of_keys++ = ((int64_t)pages->blocks[block] * pages->block_size + offset) * pages->stride;
    if (++offset == pages->block_size) block++, offset = 0;
  }
  for (int64_t last = places_of_keys[-1], more = -end & (most - 1); more; more--) *places_of_keys++ = last;
}

/* The scales of the same keys. */
static inline void find_scales(const Head *head, const float *scales, int begin, int end, int most, float *to) {
  const Pages *pages = &head->pages;
  int block = begin / pages->block_size, offset = begin % pages->block_size;
  for (int token = begin; token < end; token++) {
    *to++ = scales[pages->blocks[block] * head->scale_stride + offset];
    if (++offset == pages->block_size) block++, offset = 0;
  }
  for (int more = -end & (most - 1); more; more--, to++) to[0] = to[-1];
}
