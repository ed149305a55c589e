/* attend_chunk over a cache in bfloat16 or 8 bits, with products of bfloat16 values (AVX512-BF16).
 *
 * Scores and weighted sums are products of matrices as linear_dots.c makes them. Keys are laid out as its weights are,
 * PANEL of them for all rows; so are the values, PANEL columns of a chunk of them. Then BLOCK rows at a time are taken
 * through both, SPAN keys after SPAN keys, so that scores and weights stay in the first-level cache. Sums are scaled where
 * a span has a score that is larger by more than SLACK than the one whose weight is 1 ("FlashAttention", Dao et al. 2022,
 * arXiv:2205.14135), which is seldom. Largest scores and sums of weights are found for 16 rows at once, so that no row
 * waits for its own. Spans begin at multiples of SPAN, and one that a row sees nothing of changes nothing for it: all its
 * sums are made in an order that depends on it alone. Queries and weights are rounded to bfloat16, as a model in bfloat16
 * has them; so are values of 8 bits times their scale. Sums are float32, the one of the rounded weights too.
 */
#include "attention_layout.h"

#if HAS_DOTS

#define SPAN 128 /* keys, a divisor of CHUNK */
#define PARTS (SPAN / 16)
#define BLOCK 32   /* rows that are taken through a chunk at once */
#define SLACK 8.0f /* as a power of 2: weights are up to 256 */
#define EVERY_PART _Pragma("GCC unroll 8") for (int i = 0; i < PARTS; i++)

/* Scores of a span: [SPAN / PANEL][BLOCK + 1][PANEL], one row more, or rows of panels would share lines of the cache. */
#define SCORES_STRIDE ((BLOCK + 1) * PANEL)

/* ---- vectors */

/* 2^x for x up to 127, to 9e-5 of it: much less than the rounding of the weights. Exactly 1 for 0, and 0 for less than
 * any number. What is no number stays none. */
INLINED __m512 power_of_2(__m512 x) {
  __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 y = _mm512_set1_ps(7.7067204e-2f);
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.2764482e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.9511682e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, x);
}

/* Lane l of the result is the sum, or the largest, of the lanes of v[l]. */
#define ACROSS(name, with)                                                                                            \
  INLINED __m512 name(const __m512 v[16]) {                                                                           \
    __m512 pairs[8], fours[4], all[2];                                                                                \
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) pairs[i] =                                                    \
        with(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));                 \
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {                                                             \
      __m512d x = (__m512d)pairs[2 * i], y = (__m512d)pairs[2 * i + 1];                                               \
      fours[i] = with((__m512)_mm512_unpacklo_pd(x, y), (__m512)_mm512_unpackhi_pd(x, y));                            \
    }                                                                                                                 \
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) all[i] =                                                      \
        with(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),                                              \
             _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));                                             \
    return with(_mm512_shuffle_f32x4(all[0], all[1], 0x88), _mm512_shuffle_f32x4(all[0], all[1], 0xdd));              \
  }
ACROSS(sums_across, _mm512_add_ps)
ACROSS(tops_across, _mm512_max_ps)

/* Which of 16 keys from `j` on are from `begin` to `end` - 1. */
static inline __mmask16 seen_of(int j, int begin, int end) {
  int from = begin > j ? begin - j : 0, to = end - j < 16 ? end - j : 16;
  return from < to ? (__mmask16)((0xffffu >> (16 - to)) & (0xffffu << from)) : 0;
}

/* ---- where everything is */

/* Buffers of a call, one after another in its scratch memory. */
typedef struct {
  int64_t *places_of_keys; /* [CHUNK] */
  bf16 *query;             /* [rows][width] */
  bf16 *keys;              /* [CHUNK / PANEL] panels */
  bf16 *values;            /* [width / PANEL] panels */
  float *scores;           /* [SPAN / PANEL] times SCORES_STRIDE */
  bf16 *weights;           /* [BLOCK][SPAN] */
} ChunkBuffers;

static int64_t chunk_buffers(int64_t rows, int dim, float *at, ChunkBuffers *b) {
  int64_t panels = (int64_t)CHUNK * padded(dim);
  int64_t sizes[] = {CHUNK * 2,  rows * padded(dim) / 2,       panels / 2,
                     panels / 2, SPAN / PANEL * SCORES_STRIDE, BLOCK * SPAN / 2};
  void **buffers[] = {(void **)&b->places_of_keys, (void **)&b->query,  (void **)&b->keys,
                      (void **)&b->values,         (void **)&b->scores, (void **)&b->weights};
  int64_t floats = 0;
  for (int i = 0; i < 6; i++) {
    if (at != NULL) *buffers[i] = at + floats;
    floats += (sizes[i] + 15) / 16 * 16;
  }
  return floats;
}

int64_t chunk_scratch_bf16(int group, int dim) {
  ChunkBuffers none;
  return chunk_buffers((int64_t)tokens_at_once(group, 1) * group, dim, NULL, &none);
}

/* What each token sees of a chunk. */
typedef struct {
  int begin[MOST_TOKENS], end[MOST_TOKENS];
} Sight;

/* Rows of queries, up to BLOCK, on their way through a chunk. Tops are scores, times the scale where scores have a cap. */
typedef struct {
  const Head *head;
  const ChunkBuffers *b;
  int count, width;
  int from;                                       /* first key that is laid out */
  int first, behind;                              /* keys that some of the rows see */
  float factor;                                   /* of scores, to be powers of 2 */
  const bf16 *query;                              /* [count][width] */
  float *sums;                                    /* [count][width] */
  int begin[BLOCK], end[BLOCK];                   /* keys that each sees */
  float tops[BLOCK], totals[BLOCK], scaled[BLOCK]; /* the last: by what sums of earlier spans are multiplied */
} Block;

/* Keys of a span: where it begins, and those that some of the rows see, in whole panels. */
typedef struct {
  int start, at, behind;
} Span;

/* ---- products */

static void multiply_keys(const Block *rows, const Span *span) {
  int width = rows->width;
  for (int j = span->at; j < span->behind; j += PANEL) {
    float *scores = rows->b->scores + (j - span->start) / PANEL * SCORES_STRIDE;
    dots_product(rows->query, width, rows->b->keys + (int64_t)(j - rows->from) * width, rows->count, width, 0, scores);
    if (rows->head->softcap > 0.0f)
      for (float *score = scores; score < scores + rows->count * PANEL; score += LANES) {
        lanes values = load_float(score) * rows->head->scale / rows->head->softcap;
        store_float(rows->head->softcap * tanh_of(values), score);
      }
  }
}

static void multiply_values(const Block *rows, const Span *span) {
  const bf16 *weights = rows->b->weights + span->at - span->start;
  const bf16 *values = rows->b->values + (int64_t)(span->at - rows->from) * PANEL;
  for (int d = 0; d < rows->width; d += PANEL)
    dots_add(weights, SPAN, values + (int64_t)d * CHUNK, rows->count, span->behind - span->at, rows->sums + d,
             rows->width);
}

/* ---- scores to weights */

/* Whether each of the rows sees all of a span. */
static int is_whole(const Block *rows, const Span *span) {
  return rows->begin[rows->count - 1] <= span->start && span->start + SPAN <= rows->end[0];
}

INLINED const float *scores_of(const Block *rows, int row, int part) {
  return rows->b->scores + part / 2 * SCORES_STRIDE + row * PANEL + part % 2 * 16;
}

/* Bring tops and totals up to date with the largest scores of a span, and say which rows' sums are to be scaled. */
INLINED uint32_t measure(int whole, Block *rows, const Span *span) {
  uint32_t all = 0;
  for (int row = 0; row < rows->count; row += 16) {
    __m512 tops[16];
    for (int r = 0; r < 16; r++) {
      __m512 s[PARTS], none = _mm512_set1_ps(-INFINITY);
      tops[r] = none;
      if (row + r >= rows->count) continue;
      EVERY_PART {
        const float *scores = scores_of(rows, row + r, i);
        s[i] = whole ? _mm512_loadu_ps(scores)
                     : _mm512_mask_loadu_ps(
                           none, seen_of(span->start + 16 * i, rows->begin[row + r], rows->end[row + r]), scores);
      }
      tops[r] = _mm512_max_ps(_mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3])),
                              _mm512_max_ps(_mm512_max_ps(s[4], s[5]), _mm512_max_ps(s[6], s[7])));
    }
    __m512 before = _mm512_loadu_ps(rows->tops + row), top = tops_across(tops);
    __m512 factor = _mm512_set1_ps(rows->factor), one = _mm512_set1_ps(1.0f);
    __m512 growth = _mm512_mul_ps(_mm512_sub_ps(top, before), factor);
    __mmask16 higher = _mm512_cmp_ps_mask(growth, _mm512_set1_ps(SLACK), _CMP_GT_OQ);
    __mmask16 begun = higher & _mm512_cmp_ps_mask(before, _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ);
    __m512 scaled = _mm512_mask_mov_ps(one, begun, power_of_2(_mm512_sub_ps(_mm512_setzero_ps(), growth)));
    _mm512_storeu_ps(rows->tops + row, _mm512_mask_mov_ps(before, higher, top));
    _mm512_storeu_ps(rows->scaled + row, scaled);
    _mm512_storeu_ps(rows->totals + row, _mm512_mul_ps(_mm512_loadu_ps(rows->totals + row), scaled));
    all |= (uint32_t)begun << row;
  }
  return all;
}

/* The weights of a span, nothing for keys that a row does not see, and their sums to the totals. */
INLINED void soften(int whole, Block *rows, const Span *span) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  __m512 factor = _mm512_set1_ps(rows->factor), totals[BLOCK];
  for (int row = 0; row < rows->count; row++) {
    __m512 shift = _mm512_set1_ps(-rows->tops[row] * rows->factor), s[PARTS], sums[2] = {{0}};
    EVERY_PART {
      s[i] = power_of_2(_mm512_fmadd_ps(_mm512_loadu_ps(scores_of(rows, row, i)), factor, shift));
      if (!whole) s[i] = _mm512_maskz_mov_ps(seen_of(span->start + 16 * i, rows->begin[row], rows->end[row]), s[i]);
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < PARTS; i += 2) {
      __m512bh rounded = _mm512_cvtne2ps_pbh(s[i + 1], s[i]);
      sums[i / 2 % 2] = _mm512_dpbf16_ps(sums[i / 2 % 2], rounded, ones);
      _mm512_storeu_si512(rows->b->weights + row * SPAN + 16 * i, (__m512i)rounded);
    }
    totals[row] = _mm512_add_ps(sums[0], sums[1]);
  }
  for (int row = rows->count; row % 16; row++) totals[row] = _mm512_setzero_ps();
  for (int row = 0; row < rows->count; row += 16)
    _mm512_storeu_ps(rows->totals + row, _mm512_add_ps(_mm512_loadu_ps(rows->totals + row), sums_across(totals + row)));
}

static void scale_sums(const Block *rows, uint32_t some) {
  for (; some; some &= some - 1) {
    int row = __builtin_ctz(some);
    for (float *sum = rows->sums + (int64_t)row * rows->width, *end = sum + rows->width; sum < end; sum += LANES)
      store_float(load_float(sum) * all_of(rows->scaled[row]), sum);
  }
}

INLINED void weigh(int whole, Block *rows, const Span *span) {
  scale_sums(rows, measure(whole, rows, span));
  soften(whole, rows, span);
}

static void weigh_whole(Block *rows, const Span *span) { weigh(1, rows, span); }
static void weigh_some(Block *rows, const Span *span) { weigh(0, rows, span); }

/* ---- all of it */

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

/* Rows from number `row` on. `keys`: how many are fetched ahead in a span. */
static void attend_block(const Head *head, const ChunkBuffers *b, const Sight *sight, int row, int count, int from,
                         const Seen *seen, Ahead *ahead, int keys) {
  int width = padded(head->dim);
  float scale = head->softcap > 0.0f ? 1.0f : head->scale;
  Block rows = {.head = head, .b = b, .count = count, .width = width, .from = from, .factor = scale * 1.44269504f};
  rows.query = b->query + (int64_t)row * width, rows.sums = seen->sums + (int64_t)row * width;
  for (int r = 0; r < BLOCK; r++) {
    int t = (row + least(r, count - 1)) / head->group;
    rows.begin[r] = sight->begin[t], rows.end[r] = sight->end[t];
    rows.tops[r] = -INFINITY, rows.totals[r] = 0.0f;
  }
  rows.first = rows.begin[0] / PANEL * PANEL, rows.behind = (rows.end[count - 1] + PANEL - 1) / PANEL * PANEL;
  memset(rows.sums, 0, sizeof(float) * count * width);
  for (int start = rows.first / SPAN * SPAN; start < rows.behind; start += SPAN) {
    Span span = {start, start > rows.first ? start : rows.first, least(start + SPAN, rows.behind)};
    fetch_some(ahead, keys);
    multiply_keys(&rows, &span);
    if (is_whole(&rows, &span))
      weigh_whole(&rows, &span);
    else
      weigh_some(&rows, &span);
    multiply_values(&rows, &span);
  }
  for (int r = 0; r < count; r++)
    seen->tops[row + r] = rows.tops[r] * scale, seen->totals[row + r] = rows.totals[r];
}

void attend_chunk_bf16(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch) {
  int group = head->group, dim = head->dim, tokens = queries->tokens, start = chunk * CHUNK, rows = tokens * group;
  Sight sight;
  for (int t = 0; t < tokens; t++) {
    sight.begin[t] = queries->first[t] > start ? queries->first[t] - start : 0;
    sight.end[t] = queries->len[t] - start < CHUNK ? queries->len[t] - start : CHUNK;
  }
  int from = sight.begin[0] / PANEL * PANEL, last = sight.end[tokens - 1], to = (last + PANEL - 1) / PANEL * PANEL;
  ChunkBuffers b;
  chunk_buffers(rows, dim, scratch, &b);
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
  Ahead ahead = {head, start + CHUNK, least(start + 2 * CHUNK, queries->len[tokens - 1])};
  int spans = (rows + BLOCK - 1) / BLOCK * (CHUNK / SPAN), some = (CHUNK + spans - 1) / spans;
  for (int row = 0; row < rows; row += BLOCK)
    attend_block(head, &b, &sight, row, least(BLOCK, rows - row), from, seen, &ahead, some);
}

#endif
