/* attend_chunk over a cache in bfloat16 or 8 bits, with products of bfloat16 values (AVX512-BF16).
 *
 * Scores and weighted sums are products of matrices as linear_dots.c makes them. Keys are laid out as its weights are,
 * PANEL of them for all rows; so are the values, PANEL columns of a chunk of them. Then some rows at a time are taken
 * through both. Queries and weights are rounded to bfloat16, as a model in bfloat16 has them; so are values of 8 bits
 * times their scale. Sums are float32, the one of the rounded weights too.
 */
#include "attention.h"
#include "products.h"

#if HAS_DOTS

#define PANEL DOTS_COLUMNS
#define INLINED static inline __attribute__((always_inline))

/* 16 rows of 16 values of 32 bits become columns. */
static inline __attribute__((always_inline)) void transpose(__m512i r[16]) {
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

/* 2^x for x up to 127, to 3e-6 of it: much less than the rounding of the weights. What is no number stays none. */
static inline __m512 power_of_2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(9.5827822e-3f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.5906277e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.4024099e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.9312423e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

/* Which of 16 keys from `j` on are from `begin` to `end` - 1. */
static inline __mmask16 seen_of(int j, int begin, int end) {
  int from = begin > j ? begin - j : 0, to = end - j < 16 ? end - j : 16;
  return from < to ? (__mmask16)((0xffffu >> (16 - to)) & (0xffffu << from)) : 0;
}

/* Sixteen scores to weights, before those of keys that are not seen go. */
static inline __m512 weights_of(const float *scores, __m512 factor, __m512 shift) {
  return power_of_2(_mm512_fmadd_ps(_mm512_loadu_ps(scores), factor, shift));
}

/* The scores of a row's keys `begin` to `end` - 1, in panels `stride` apart, to weights of all keys from `from` to `to`
 * - 1: nothing for those it does not see. Returns the largest score. */
static float soften(float *scores, int64_t stride, int from, int to, int begin, int end, float scale, float softcap,
                    bf16 *weights, float *total_of_weights) {
  if (softcap > 0.0f) { /* done at once, and the rest as without it */
    for (int j = from; j < to; j += PANEL)
      for (int i = 0; i < PANEL; i += 16) {
        float *at = scores + (j - from) / PANEL * stride + i;
        store_float(softcap * tanh_of(load_float(at) * scale / softcap), at);
      }
    scale = 1.0f;
  }
  __m512 tops[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
  for (int j = from; j < to; j += PANEL) {
    const float *at = scores + (j - from) / PANEL * stride;
    if (begin <= j && j + PANEL <= end) {
      _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) tops[i] = _mm512_max_ps(_mm512_loadu_ps(at + 16 * i), tops[i]);
    } else {
      _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) {
        __mmask16 seen = seen_of(j + 16 * i, begin, end);
        tops[i] = _mm512_mask_max_ps(tops[i], seen, _mm512_loadu_ps(at + 16 * i), tops[i]);
      }
    }
  }
  float top = _mm512_reduce_max_ps(_mm512_max_ps(tops[0], tops[1]));
  __m512 factor = _mm512_set1_ps(scale * 1.44269504f), shift = _mm512_set1_ps(-top * (scale * 1.44269504f));
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  __m512 sums = _mm512_setzero_ps();
  for (int j = from; j < to; j += PANEL) {
    const float *at = scores + (j - from) / PANEL * stride;
    __m512 low = weights_of(at, factor, shift), high = weights_of(at + 16, factor, shift);
    if (begin > j || j + PANEL > end) {
      low = _mm512_maskz_mov_ps(seen_of(j, begin, end), low);
      high = _mm512_maskz_mov_ps(seen_of(j + 16, begin, end), high);
    }
    __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
    sums = _mm512_dpbf16_ps(sums, rounded, ones);
    _mm512_storeu_si512(weights + j - from, (__m512i)rounded);
  }
  *total_of_weights = total((lanes)sums);
  return top * scale;
}

#define BLOCK 32 /* rows whose scores are made, and weights of them, while they are near */

static inline int tokens_of_block(int group) { return group < BLOCK ? BLOCK / group : 1; }

/* Buffers of a call, one after another in its scratch memory. */
typedef struct {
  int64_t *places_of_keys; /* [CHUNK] */
  bf16 *query;             /* [rows][width] */
  bf16 *keys;              /* [CHUNK / PANEL] panels */
  bf16 *values;            /* [width / PANEL] panels */
  float *scores;           /* [CHUNK / PANEL][block + 1][PANEL]: one row more, or they would share lines of the cache */
  bf16 *weights;           /* [block][CHUNK] */
  float *tile;             /* [block][PANEL] */
} Buffers;

static int64_t divide(int64_t rows, int group, int dim, float *at, Buffers *b) {
  int64_t block = tokens_of_block(group) * group, panels = (int64_t)CHUNK * padded(dim);
  int64_t sizes[] = {CHUNK * 2,         rows * padded(dim) / 2, panels / 2,   panels / 2,
                     CHUNK * (block + 1), block * CHUNK / 2,      block * PANEL};
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
  Buffers none;
  return divide((int64_t)tokens_at_once(group, 1) * group, group, dim, NULL, &none);
}

static void round_queries(const Head *head, const Queries *queries, bf16 *query) {
  int dim = head->dim, width = padded(dim);
  for (int t = 0; t < queries->tokens; t++)
    for (int g = 0; g < head->group; g++, query += width) {
      const float *from = queries->q + t * queries->stride + g * dim;
      for (int d = 0; d < width; d += LANES)
        store_bf16(d < dim ? take_float(from + d, dim - d) : (lanes){0}, query + d);
    }
}

/* What each token sees of a chunk. */
typedef struct {
  int begin[MOST_TOKENS], end[MOST_TOKENS];
} Sight;

/* Tokens `first` to `behind` - 1, whose keys are laid out from key `from` of the chunk on. */
static void attend_block(const Head *head, const Buffers *b, const Sight *sight, int first, int behind, int from,
                         const Seen *seen) {
  int group = head->group, dim = head->dim, width = padded(dim), rows = (behind - first) * group, row = first * group;
  int begin = sight->begin[first] / PANEL * PANEL, end = (sight->end[behind - 1] + PANEL - 1) / PANEL * PANEL;
  if (begin >= end) {
    for (int r = 0; r < rows; r++) seen->totals[row + r] = 0.0f;
    return;
  }
  int64_t stride = (int64_t)(rows + 1) * PANEL, keys = end - begin;
  for (int j = begin; j < end; j += PANEL)
    dots_product(b->query + (int64_t)row * width, b->keys + (int64_t)(j - from) * width, rows, width,
                 b->scores + (j - begin) / PANEL * stride);
  for (int r = 0; r < rows; r++) {
    int t = first + r / group;
    seen->tops[row + r] = soften(b->scores + (int64_t)r * PANEL, stride, begin, end, sight->begin[t], sight->end[t],
                                 head->scale, head->softcap, b->weights + r * keys, seen->totals + row + r);
  }
  for (int d = 0; d < dim; d += PANEL) {
    dots_product(b->weights, b->values + (int64_t)d * CHUNK + (int64_t)(begin - from) * PANEL, rows, keys, b->tile);
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < PANEL; c += LANES)
        store_float(load_float(b->tile + r * PANEL + c), seen->sums + (int64_t)(row + r) * width + d + c);
  }
}

void attend_chunk_bf16(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch) {
  int group = head->group, dim = head->dim, tokens = queries->tokens, start = chunk * CHUNK;
  Sight sight;
  for (int t = 0; t < tokens; t++) {
    sight.begin[t] = queries->first[t] > start ? queries->first[t] - start : 0;
    sight.end[t] = queries->len[t] - start < CHUNK ? queries->len[t] - start : CHUNK;
  }
  int from = sight.begin[0] / PANEL * PANEL, last = sight.end[tokens - 1], to = (last + PANEL - 1) / PANEL * PANEL;
  Buffers b;
  divide(tokens * group, group, dim, scratch, &b);
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
  int some = tokens_of_block(group);
  for (int first = 0; first < tokens; first += some)
    attend_block(head, &b, &sight, first, first + some < tokens ? first + some : tokens, from, seen);
}

#endif
