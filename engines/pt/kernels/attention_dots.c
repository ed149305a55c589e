/* attend_chunk over a cache in bfloat16 or 8 bits, with products of bfloat16 values (AVX512-BF16).
 *
 * Scores and weighted sums are products of matrices as linear_dots.c makes them. Keys are laid out as its weights are,
 * PANEL of them for all rows; so are the values, PANEL columns of a chunk of them. Then some rows at a time are taken
 * through both, SPAN keys after SPAN keys, so that scores and weights stay in the first-level cache; what was seen before
 * is scaled where a span has a larger score ("FlashAttention", Dao et al. 2022, arXiv:2205.14135). Spans begin at
 * multiples of SPAN, and one that a row sees nothing of changes nothing for it. Queries and weights are rounded to
 * bfloat16, as a model in bfloat16 has them; so are values of 8 bits times their scale. Sums are float32, the one of the
 * rounded weights too.
 */
#include "attention.h"
#include "panels.h"

#if HAS_DOTS

#define PANEL DOTS_COLUMNS

/* 16 rows of 16 values of 32 bits become columns. */
INLINED void transpose(__m512i r[16]) {
  __m512i t[16];
  _Pragma("GCC unroll 8") for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  _Pragma("GCC unroll 2") for (int i = 0; i < 16; i += 8)
      _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
    t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
    t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
  }
  _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88), r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
  }
}

/* Keys or values of the chunk: those of a head, from the cache's first block on. */
typedef struct {
  const int64_t *places_of_keys;
  const char *from;
  const float *scales; /* of the keys in 8 bits */
} Kept;

/* 32 values of key `j` from `d` on, `n` of them and then zeros. E4M3 has three bits less of an exponent that is
 * binary16's but for its bias. */
INLINED __m512i take_32(int kept, const Kept *all, int j, int d, int n) {
  const char *p = all->from + (all->places_of_keys[j] + d) * width_of(kept, 1);
  __mmask32 some = n >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << n) - 1;
  if (kept == AS_IS) return _mm512_maskz_loadu_epi16(some, p);
  __m256i eights = _mm256_maskz_loadu_epi8(some, p);
  __m512 low, high, scale = _mm512_set1_ps(all->scales[j]);
  if (kept == INT8) {
    low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(eights)));
    high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(eights, 1)));
  } else {
    __m512i wide = _mm512_slli_epi16(_mm512_cvtepi8_epi16(eights), 7); /* the sign twice, of which one goes */
    wide = _mm512_and_si512(wide, _mm512_set1_epi16((short)0xBF80));
    low = _mm512_cvtph_ps(_mm512_castsi512_si256(wide)), high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(wide, 1));
    scale = _mm512_mul_ps(scale, _mm512_set1_ps(256.0f));
  }
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
}

/* PANEL keys from `at` on -> [width / 2][PANEL][2]. */
INLINED void lay_keys_of(int kept, const Kept *all, int at, int dim, bf16 *panel) {
  for (int half = 0; half < PANEL; half += 16)
    for (int d = 0; d < dim; d += 32) {
      __m512i pairs[16];
      _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++)
          pairs[j] = take_32(kept, all, at + half + j, d, dim - d);
      transpose(pairs);
      bf16 *to = panel + (int64_t)d * PANEL + 2 * half;
      _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++) _mm512_storeu_si512(to + j * 2 * PANEL, pairs[j]);
    }
}

/* PANEL columns from `column` on of `count` values, and zeros up to `end` -> [end / 2][PANEL][2]. */
INLINED void lay_values_of(int kept, const Kept *all, int count, int end, int column, int dim, bf16 *panel) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int j = 0; j < end; j += 2) {
    __m512i first = {0}, second = {0};
    if (j < count) first = take_32(kept, all, j, column, dim - column);
    if (j + 1 < count) second = take_32(kept, all, j + 1, column, dim - column);
    _mm512_storeu_si512(panel + j * PANEL, _mm512_permutex2var_epi16(first, low, second));
    _mm512_storeu_si512(panel + j * PANEL + 32, _mm512_permutex2var_epi16(first, high, second));
  }
}

static void lay_keys(int kept, const Kept *all, int at, int dim, bf16 *panel) {
  switch (kept) {
    case AS_IS: lay_keys_of(AS_IS, all, at, dim, panel); break;
    case INT8: lay_keys_of(INT8, all, at, dim, panel); break;
    default: lay_keys_of(E4M3, all, at, dim, panel);
  }
}

static void lay_values(int kept, const Kept *all, int count, int end, int column, int dim, bf16 *panel) {
  switch (kept) {
    case AS_IS: lay_values_of(AS_IS, all, count, end, column, dim, panel); break;
    case INT8: lay_values_of(INT8, all, count, end, column, dim, panel); break;
    default: lay_values_of(E4M3, all, count, end, column, dim, panel);
  }
}

/* 2^x for x up to 127, to 9e-5 of it: much less than the rounding of the weights. Exactly 1 for 0, and 0 for less than
 * any number. What is no number stays none. */
static inline __m512 power_of_2(__m512 x) {
  __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 y = _mm512_set1_ps(7.7067204e-2f);
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.2764482e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.9511682e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, x);
}

/* Which of 16 keys from `j` on are from `begin` to `end` - 1. */
static inline __mmask16 seen_of(int j, int begin, int end) {
  int from = begin > j ? begin - j : 0, to = end - j < 16 ? end - j : 16;
  return from < to ? (__mmask16)((0xffffu >> (16 - to)) & (0xffffu << from)) : 0;
}

#define SPAN 128 /* keys, a divisor of CHUNK */
#define PARTS (SPAN / 16)
#define BLOCK 32 /* rows that are taken through a chunk at once */
#define EVERY_PART _Pragma("GCC unroll 8") for (int i = 0; i < PARTS; i++)

/* Scores of a span: [SPAN / PANEL][BLOCK + 1][PANEL], one row more, or rows of panels would share lines of the cache. */
#define SCORES_STRIDE ((BLOCK + 1) * PANEL)

/* What a row sees of a span that begins with key `from`: keys `begin` to `end` - 1, some at least. */
typedef struct {
  int from, begin, end;
  float scale, softcap;
} Span;

/* A row's scores to weights of all keys of the span: nothing for those it does not see. `top` is the largest score so
 * far, times the scale where scores have a cap. Returns the sum of the weights. */
INLINED float soften(int whole, int capped, const float *scores, const Span *span, float *top, bf16 *weights) {
  const __m512 none = _mm512_set1_ps(-INFINITY);
  __m512 s[PARTS];
  EVERY_PART {
    const float *at = scores + i / 2 * SCORES_STRIDE + i % 2 * 16;
    __mmask16 seen = whole ? 0xffff : seen_of(span->from + 16 * i, span->begin, span->end);
    s[i] = whole ? _mm512_loadu_ps(at) : _mm512_mask_loadu_ps(none, seen, at);
    if (capped) {
      lanes values = span->softcap * tanh_of((lanes)s[i] * span->scale / span->softcap);
      s[i] = _mm512_mask_mov_ps(none, seen, (__m512)values);
    }
  }
  __m512 tops = _mm512_max_ps(_mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3])),
                              _mm512_max_ps(_mm512_max_ps(s[4], s[5]), _mm512_max_ps(s[6], s[7])));
  float highest = _mm512_reduce_max_ps(tops), factor = (capped ? 1.0f : span->scale) * 1.44269504f;
  highest = *top > highest ? *top : highest;
  *top = highest;
  __m512 factors = _mm512_set1_ps(factor), shift = _mm512_set1_ps(-highest * factor), sums = _mm512_setzero_ps();
  EVERY_PART s[i] = power_of_2(_mm512_fmadd_ps(s[i], factors, shift));
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  _Pragma("GCC unroll 4") for (int i = 0; i < PARTS; i += 2) {
    __m512bh rounded = _mm512_cvtne2ps_pbh(s[i + 1], s[i]);
    sums = _mm512_dpbf16_ps(sums, rounded, ones);
    _mm512_storeu_si512(weights + 16 * i, (__m512i)rounded);
  }
  return _mm512_reduce_add_ps(sums);
}

static float soften_whole(const float *scores, const Span *span, float *top, bf16 *weights) {
  return soften(1, 0, scores, span, top, weights);
}
static float soften_some(const float *scores, const Span *span, float *top, bf16 *weights) {
  return soften(0, 0, scores, span, top, weights);
}
static float soften_capped(const float *scores, const Span *span, float *top, bf16 *weights) {
  return soften(0, 1, scores, span, top, weights);
}

/* Buffers of a call, one after another in its scratch memory. */
typedef struct {
  int64_t *places_of_keys; /* [CHUNK] */
  bf16 *query;             /* [rows][width] */
  bf16 *keys;              /* [CHUNK / PANEL] panels */
  bf16 *values;            /* [width / PANEL] panels */
  float *scores;           /* [SPAN / PANEL] times SCORES_STRIDE */
  bf16 *weights;           /* [BLOCK][SPAN] */
  float *tile;             /* [BLOCK][PANEL] */
} ChunkBuffers;

static int64_t chunk_buffers(int64_t rows, int dim, float *at, ChunkBuffers *b) {
  int64_t panels = (int64_t)CHUNK * padded(dim);
  int64_t sizes[] = {CHUNK * 2,  rows * padded(dim) / 2,       panels / 2,       panels / 2,
                     SPAN / PANEL * SCORES_STRIDE, BLOCK * SPAN / 2, BLOCK * PANEL};
  void **buffers[] = {(void **)&b->places_of_keys, (void **)&b->query,   (void **)&b->keys, (void **)&b->values,
                      (void **)&b->scores,         (void **)&b->weights, (void **)&b->tile};
  int64_t floats = 0;
  for (int i = 0; i < 7; i++) {
    if (at != NULL) *buffers[i] = at + floats;
    floats += (sizes[i] + 15) / 16 * 16;
  }
  return floats;
}

int64_t chunk_scratch_bf16(int group, int dim) {
  ChunkBuffers none;
  return chunk_buffers((int64_t)tokens_at_once(group, 1) * group, dim, NULL, &none);
}

static void round_queries(const Head *head, const Queries *queries, bf16 *query) {
  int dim = head->dim, width = padded(dim);
  for (int t = 0; t < queries->tokens; t++)
    for (int g = 0; g < head->group; g++, query += width) {
      const float *from = queries->q + t * queries->stride + g * dim;
      for (int d = 0; d < width; d += LANES) {
        lanes values = d < dim ? take_float(from + d, dim - d) : (lanes){0};
        _mm256_storeu_si256((__m256i *)(query + d), (__m256i)_mm512_cvtneps_pbh((__m512)values));
      }
    }
}

/* What each token sees of a chunk. */
typedef struct {
  int begin[MOST_TOKENS], end[MOST_TOKENS];
} Sight;

/* By how much sums of earlier spans are scaled; 1 where nothing is seen yet. */
INLINED __m512 factors_of(const float *before, const float *now, __m512 factor) {
  __m512 old = _mm512_loadu_ps(before), top = _mm512_loadu_ps(now);
  __m512 scaled = power_of_2(_mm512_mul_ps(_mm512_sub_ps(old, top), factor));
  return _mm512_mask_mov_ps(scaled, _mm512_cmp_ps_mask(old, top, _CMP_EQ_OQ), _mm512_set1_ps(1.0f));
}

/* Rows of queries, up to BLOCK. */
typedef struct {
  int first, count;
} Block;

/* The weights of a span for some rows, whose scores are there. Their tops and totals are brought up to date; `factors`
 * are those of the sums of earlier spans. */
static void weigh(const Head *head, const ChunkBuffers *b, const Sight *sight, Block rows, int from, float *tops,
                  float *totals, float *factors) {
  float before[BLOCK], own[BLOCK] = {0};
  memcpy(before, tops, sizeof before);
  for (int r = 0; r < rows.count; r++) {
    int t = (rows.first + r) / head->group, begin = sight->begin[t], end = sight->end[t];
    Span span = {from, begin, end, head->scale, head->softcap};
    const float *scores = b->scores + r * PANEL;
    bf16 *weights = b->weights + r * SPAN;
    if ((begin > from ? begin : from) >= (end < from + SPAN ? end : from + SPAN))
      memset(weights, 0, sizeof(bf16) * SPAN);
    else if (head->softcap > 0.0f)
      own[r] = soften_capped(scores, &span, tops + r, weights);
    else if (begin <= from && from + SPAN <= end)
      own[r] = soften_whole(scores, &span, tops + r, weights);
    else
      own[r] = soften_some(scores, &span, tops + r, weights);
  }
  __m512 factor = _mm512_set1_ps((head->softcap > 0.0f ? 1.0f : head->scale) * 1.44269504f);
  for (int r = 0; r < rows.count; r += 16) {
    __m512 scaled = factors_of(before + r, tops + r, factor);
    _mm512_storeu_ps(factors + r, scaled);
    _mm512_storeu_ps(totals + r, _mm512_fmadd_ps(_mm512_loadu_ps(totals + r), scaled, _mm512_loadu_ps(own + r)));
  }
}

/* Some rows, for which keys are laid out from key `from` of the chunk on. */
static void attend_block(const Head *head, const ChunkBuffers *b, const Sight *sight, Block rows, int from,
                         const Seen *seen) {
  int dim = head->dim, width = padded(dim);
  int first = rows.first / head->group, last = (rows.first + rows.count - 1) / head->group;
  int begin = sight->begin[first] / PANEL * PANEL, end = (sight->end[last] + PANEL - 1) / PANEL * PANEL;
  float tops[BLOCK], totals[BLOCK] = {0}, factors[BLOCK], *sums = seen->sums + (int64_t)rows.first * width;
  for (int r = 0; r < BLOCK; r++) tops[r] = -INFINITY;
  memset(sums, 0, sizeof(float) * rows.count * width);
  for (int span = begin / SPAN * SPAN; span < end; span += SPAN) {
    int at = span > begin ? span : begin, behind = span + SPAN < end ? span + SPAN : end;
    for (int j = at; j < behind; j += PANEL)
      dots_product(b->query + (int64_t)rows.first * width, width, b->keys + (int64_t)(j - from) * width, rows.count,
                   width, 0, b->scores + (j - span) / PANEL * SCORES_STRIDE);
    weigh(head, b, sight, rows, span, tops, totals, factors);
    for (int d = 0; d < dim; d += PANEL) {
      dots_product(b->weights + at - span, SPAN, b->values + (int64_t)d * CHUNK + (int64_t)(at - from) * PANEL,
                   rows.count, behind - at, 0, b->tile);
      for (int r = 0; r < rows.count; r++)
        for (int c = 0; c < PANEL; c += LANES) {
          float *to = sums + (int64_t)r * width + d + c;
          store_float(multiply_add(load_float(to), all_of(factors[r]), load_float(b->tile + r * PANEL + c)), to);
        }
    }
  }
  float scale = head->softcap > 0.0f ? 1.0f : head->scale;
  for (int r = 0; r < rows.count; r++)
    seen->tops[rows.first + r] = tops[r] * scale, seen->totals[rows.first + r] = totals[r];
}

void attend_chunk_bf16(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch) {
  int group = head->group, dim = head->dim, tokens = queries->tokens, start = chunk * CHUNK;
  Sight sight;
  for (int t = 0; t < tokens; t++) {
    sight.begin[t] = queries->first[t] > start ? queries->first[t] - start : 0;
    sight.end[t] = queries->len[t] - start < CHUNK ? queries->len[t] - start : CHUNK;
  }
  int from = sight.begin[0] / PANEL * PANEL, last = sight.end[tokens - 1], to = (last + PANEL - 1) / PANEL * PANEL;
  ChunkBuffers b;
  chunk_buffers(tokens * group, dim, scratch, &b);
  round_queries(head, queries, b.query);
  find_places(&head->pages, start + from, start + last, PANEL, b.places_of_keys);
  float scales[CHUNK];
  Kept keys = {b.places_of_keys, head->k, scales}, values = {b.places_of_keys, head->v, scales};
  if (head->kept != AS_IS) find_scales(head, head->k_scales, start + from, start + last, PANEL, scales);
  for (int j = from; j < to; j += PANEL)
    lay_keys(head->kept, &keys, j - from, dim, b.keys + (int64_t)(j - from) * padded(dim));
  if (head->kept != AS_IS) find_scales(head, head->v_scales, start + from, start + last, PANEL, scales);
  for (int d = 0; d < dim; d += PANEL)
    lay_values(head->kept, &values, last - from, to - from, d, dim, b.values + (int64_t)d * CHUNK);
  for (int row = 0; row < tokens * group; row += BLOCK) {
    Block rows = {row, tokens * group - row < BLOCK ? tokens * group - row : BLOCK};
    attend_block(head, &b, &sight, rows, from, seen);
  }
}

#endif
