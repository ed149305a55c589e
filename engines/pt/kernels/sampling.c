/* From rows of logits to tokens and to logprobs, on a CPU: the rules are those of engines/sampler/sampling.py.
 *
 * A row is read once for its largest score, and once more where its whole mass matters. Its likeliest tokens are found
 * in bands of falling score, each sorted and put behind those before it, until they settle the choice: seldom more than
 * some hundred. A row's result depends on nothing but the row.
 *
 * The structs are those of engines/sampler/native.py.
 */
#include <math.h>
#include <omp.h>

#include "lanes.h"

#define BLOCK 64      /* tokens whose largest score and mass are noted */
#define BAND 2.0f     /* a token is e^2 times less likely at a band's end than at its beginning */
#define DEEPEST 32.0f /* what is less likely than e^-32 is all in one band */

typedef struct {
  const float *scores; /* [width] */
  double uniform, top_p, min_p;
  float temperature; /* 0: greedy */
  int32_t top_k;     /* 0: off */
  int32_t token;     /* result */
  float best;        /* result: the largest score; no number where one of them is none */
} Choice;

typedef struct {
  const float *logits; /* [width] */
  int32_t *top_ids;    /* result [top]: the likeliest, ties by id */
  float *top_logprobs; /* result [top] */
  float temperature;
  int32_t token, top;
  int32_t rank;  /* result: 1 for the likeliest */
  float logprob; /* result: the token's */
} Telling;

typedef struct {
  const float *scores;
  int width, blocks;
  float best, temperature;
  float *maxima;           /* [blocks] */
  double *masses;          /* [blocks], all up to this one */
  uint64_t *found, *spare; /* [width] tokens found so far, the likeliest first */
  double *cumulative;      /* [width] their weights, all up to this one; the likeliest token's weight is 1 */
  int count;               /* of those found */
  float reach, bound;      /* how far they reach: to this logarithm of a weight, negated; to this score */
} Row;

/* Set a row's buffers, or count their bytes where `at` is NULL. */
static int64_t row_buffers(Row *r, int width, char *at) {
  r->width = width, r->blocks = (width + BLOCK - 1) / BLOCK;
  struct {
    void **buffer;
    int64_t bytes;
  } all[] = {
      {(void **)&r->maxima, r->blocks * sizeof(float)}, {(void **)&r->masses, r->blocks * sizeof(double)},
      {(void **)&r->found, width * sizeof(uint64_t)},   {(void **)&r->spare, width * sizeof(uint64_t)},
      {(void **)&r->cumulative, width * sizeof(double)},
  };
  int64_t bytes = 0;
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
    if (at != NULL) *all[i].buffer = at + bytes;
    bytes += whole_lines(all[i].bytes);
  }
  return bytes;
}

/* Bytes of scratch memory for rows of this width. */
int64_t sampling_scratch(int width) {
  Row none;
  return row_buffers(&none, width, NULL) * omp_get_max_threads();
}

/* ---- vectors */

/* The next `n` scores, filled up with those of tokens that cannot come. */
static inline lanes take_scores(const float *p, int n) {
  if (n >= LANES) return load_float(p);
  float padded[LANES];
  for (int l = 0; l < LANES; l++) padded[l] = l < n ? p[l] : -INFINITY;
  return load_float(padded);
}

#define ACROSS(l, d) ((l) ^ (d))
#define FOLDED(v, d) LANES_OF(v, v, EVERY_LANE(ACROSS, d))

static inline float top_of(lanes v) {
#if LANES > 8
  v = larger_of(v, FOLDED(v, 8));
#endif
#if LANES > 4
  v = larger_of(v, FOLDED(v, 4));
#endif
  v = larger_of(v, FOLDED(v, 2));
  return larger_of(v, FOLDED(v, 1))[0];
}

static inline float sum_of(lanes v) {
#if LANES > 8
  v += FOLDED(v, 8);
#endif
#if LANES > 4
  v += FOLDED(v, 4);
#endif
  v += FOLDED(v, 2);
  return (v + FOLDED(v, 1))[0];
}

/* One bit for each lane that is set. */
static inline unsigned marks(places set) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)set, (__m512i)set);
#elif defined(__AVX2__)
  return (unsigned)_mm256_movemask_ps((__m256)set);
#else
  unsigned found = 0;
  for (int l = 0; l < LANES; l++) found |= (set[l] != 0) << l;
  return found;
#endif
}

/* ---- a row */

/* Note each block's largest score, and the row's. */
static void find_best(Row *r) {
  lanes best = all_of(-INFINITY);
  places none = {0};
  for (int b = 0; b < r->blocks; b++) {
    lanes top = all_of(-INFINITY);
    for (int c = b * BLOCK, end = least(c + BLOCK, r->width); c < end; c += LANES) {
      lanes scores = take_scores(r->scores + c, end - c);
      none |= scores != scores;
      top = larger_of(scores, top);
    }
    r->maxima[b] = top_of(top);
    best = larger_of(top, best);
  }
  r->best = marks(none) ? NAN : top_of(best);
}

static void begin(Row *r, const float *scores, float temperature) {
  r->scores = scores, r->temperature = temperature;
  r->count = 0, r->reach = 0, r->bound = INFINITY;
  find_best(r);
}

/* Weights: the likeliest token has 1, and what cannot come 0. */
static inline lanes weights_of(const Row *r, lanes scores) {
  lanes x = (scores - r->best) * (1.0f / r->temperature);
  return (lanes)((bits)exp_of(x) & (bits)(x > -87.0f));
}

/* Note the masses of the blocks, all up to each. Returns that of the row. */
static double weigh(Row *r) {
  double mass = 0;
  for (int b = 0; b < r->blocks; b++) {
    lanes sum = {0};
    for (int c = b * BLOCK, end = least(c + BLOCK, r->width); c < end; c += LANES)
      sum += weights_of(r, take_scores(r->scores + c, end - c));
    r->masses[b] = mass += sum_of(sum);
  }
  return mass;
}

/* ---- the likeliest tokens */

/* Keys fall and rise as scores do the other way, and as ids where these are equal. */
static inline uint64_t key_of(float score, int id) {
  int32_t order;
  memcpy(&order, &score, sizeof order);
  order ^= order >> 31 & 0x7FFFFFFF; /* integers in the order of the floats */
  return (uint64_t)(~(uint32_t)order ^ 0x80000000u) << 32 | (uint32_t)id;
}
static inline int id_of(uint64_t key) { return (int)(uint32_t)key; }
static inline float score_of(uint64_t key) {
  int32_t order = (int32_t)(~(uint32_t)(key >> 32) ^ 0x80000000u);
  order ^= order >> 31 & 0x7FFFFFFF;
  float score;
  memcpy(&score, &order, sizeof score);
  return score;
}

/* Keys in rising order, from those in the order of ids: by one byte of the score after another. */
static void sort_keys(uint64_t *keys, uint64_t *spare, int n) {
  if (n <= 24) {
    for (int i = 1, j; i < n; i++) {
      uint64_t key = keys[i];
      for (j = i; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
      keys[j] = key;
    }
    return;
  }
  for (int shift = 32; shift < 64; shift += 8) {
    int starts[257] = {0};
    for (int i = 0; i < n; i++) starts[(keys[i] >> shift & 255) + 1]++;
    for (int digit = 0; digit < 256; digit++) starts[digit + 1] += starts[digit];
    for (int i = 0; i < n; i++) spare[starts[keys[i] >> shift & 255]++] = keys[i];
    uint64_t *sorted = spare;
    spare = keys, keys = sorted;
  }
}

/* Note the tokens with scores from `bound` to below `above`. */
static void collect(Row *r, float bound, float above) {
  for (int b = 0; b < r->blocks; b++) {
    if (r->maxima[b] < bound) continue;
    for (int c = b * BLOCK, end = least(c + BLOCK, r->width); c < end; c += LANES) {
      lanes scores = take_scores(r->scores + c, end - c);
      unsigned within = marks((scores >= bound) & (scores < above));
      for (; within; within &= within - 1) {
        int id = c + __builtin_ctz(within);
        if (id < r->width) r->found[r->count++] = key_of(r->scores[id], id);
      }
    }
  }
}

/* Find the tokens of the next band. Returns whether these are all. */
static int find_more(Row *r) {
  int first = r->count;
  r->reach += BAND;
  float bound = r->reach > DEEPEST ? -INFINITY : r->best - r->reach * r->temperature, above = r->bound;
  r->bound = bound;
  collect(r, bound, above);
  sort_keys(r->found + first, r->spare, r->count - first);
  double sum = first ? r->cumulative[first - 1] : 0;
  for (int i = first; i < r->count; i += LANES) {
    float scores[LANES] = {0};
    int some = least(LANES, r->count - i);
    for (int l = 0; l < some; l++) scores[l] = score_of(r->found[i + l]);
    lanes weights = weights_of(r, load_float(scores));
    for (int l = 0; l < some; l++) r->cumulative[i + l] = sum += weights[l];
  }
  return bound == -INFINITY;
}

/* ---- choosing */

/* The first place from `begin` on whose sum is above the target; `end` where there is none. */
static int first_above(const double *cumulative, int begin, int end, double target) {
  while (begin < end) {
    int middle = begin + (end - begin) / 2;
    if (cumulative[middle] > target)
      end = middle;
    else
      begin = middle + 1;
  }
  return begin;
}

/* A place of a mass, never one that has none of its own. */
static double target_of(double uniform, double mass) { return fmax(0, fmin(uniform * mass, nextafter(mass, 0))); }

static int first_best(const Row *r) {
  int b = 0, at;
  while (r->maxima[b] != r->best) b++;
  for (at = b * BLOCK; r->scores[at] != r->best;) at++;
  return at;
}

/* Tokens in the order of their ids. */
static int draw_unfiltered(Row *r, double uniform) {
  double target = target_of(uniform, weigh(r)), sums[BLOCK], sum = 0;
  int block = first_above(r->masses, 0, r->blocks - 1, target), first = block * BLOCK;
  int size = least(BLOCK, r->width - first);
  for (int c = 0; c < size; c += LANES) {
    lanes weights = weights_of(r, take_scores(r->scores + first + c, size - c));
    for (int l = 0; l < least(LANES, size - c); l++) sums[c + l] = sum += weights[l];
  }
  if (block) target -= r->masses[block - 1];
  return first + first_above(sums, 0, size - 1, fmin(target, nextafter(sum, 0)));
}

static inline float weight_of(const Row *r, int place) { return weights_of(r, all_of(score_of(r->found[place])))[0]; }

/* How many tokens, from the likeliest down, the filters keep; 0 where those found so far do not settle it. */
static int kept(const Row *r, const Choice *c, double mass, int all) {
  int count = r->count, some = count, settled = all;
  if (c->top_k > 0) {
    if (count < c->top_k && !all) return 0;
    some = least(c->top_k, count), settled = 1;
    while (some < count && score_of(r->found[some]) == score_of(r->found[some - 1])) some++; /* ties of the last one */
    mass = r->cumulative[some - 1];
  }
  if (c->top_p < 1) { /* the first that reaches it is kept, too */
    int before = first_above(r->cumulative, 0, count, nextafter(c->top_p * mass, -1));
    settled |= before < count, some = least(some, before + 1);
  }
  if (c->min_p > 0) {
    int begin = 0, end = count;
    while (begin < end) {
      int middle = begin + (end - begin) / 2;
      if (weight_of(r, middle) >= c->min_p)
        begin = middle + 1;
      else
        end = middle;
    }
    settled |= begin < count, some = least(some, begin);
  }
  return !settled ? 0 : some > 0 ? some : 1;
}

/* Tokens from the likeliest down. */
static int draw_filtered(Row *r, const Choice *c) {
  double mass = c->top_p < 1 && c->top_k == 0 ? weigh(r) : 0; /* that of top_k's tokens comes with these */
  int some = 0;
  while (!some) {
    int all = find_more(r);
    some = kept(r, c, mass, all);
  }
  return id_of(r->found[first_above(r->cumulative, 0, some - 1, target_of(c->uniform, r->cumulative[some - 1]))]);
}

static void choose(Row *r, Choice *c) {
  begin(r, c->scores, c->temperature);
  c->best = r->best;
  if (!isfinite(r->best))
    c->token = 0;
  else if (c->temperature == 0)
    c->token = first_best(r);
  else if (c->top_k > 0 || c->top_p < 1 || c->min_p > 0)
    c->token = draw_filtered(r, c);
  else
    c->token = draw_unfiltered(r, c->uniform);
}

/* ---- telling */

static int rank_of(const Row *r, float logit) {
  int above = 0;
  for (int c = 0; c < r->width; c += LANES)
    above += __builtin_popcount(marks(take_scores(r->scores + c, r->width - c) > logit));
  return above + 1;
}

static void tell(Row *r, Telling *t) {
  begin(r, t->logits, t->temperature);
  int numbers = isfinite(r->best);
  float whole = numbers ? (float)log(weigh(r)) : NAN;
  t->logprob = (t->logits[t->token] - r->best) / t->temperature - whole;
  t->rank = rank_of(r, t->logits[t->token]);
  while (numbers && r->count < t->top && !find_more(r)) continue;
  for (int i = 0; i < t->top; i++) {
    t->top_ids[i] = numbers ? id_of(r->found[i]) : i;
    t->top_logprobs[i] = (t->logits[t->top_ids[i]] - r->best) / t->temperature - whole;
  }
}

/* ---- all of it; `scratch`: sampling_scratch bytes */

#define EVERY_ROW(NAME, TYPE, DO)                                                                                     \
  void NAME(TYPE *rows, int count, int width, char *scratch) {                                                        \
    _Pragma("omp parallel if (count > 3)") {                                                                          \
      Row own;                                                                                                        \
      row_buffers(&own, width, scratch + row_buffers(&own, width, NULL) * omp_get_thread_num());                      \
      _Pragma("omp for schedule(dynamic, 1)") for (int i = 0; i < count; i++) DO(&own, rows + i);                     \
    }                                                                                                                 \
  }

EVERY_ROW(choose_tokens, Choice, choose)
EVERY_ROW(tell_logprobs, Telling, tell)
