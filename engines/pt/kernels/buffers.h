/* Where a step keeps what it computes. */
#pragma once
#include "step.h"

/* Tokens of a run, at most. */
static inline int most_of_run(const Decoder *d, const Step *s, int threads) {
  return tokens_of_run(d->heads / d->kv_heads, narrow_of(d), s->rows, d->kv_heads, threads);
}

/* Where one run's task is long beside the others, threads share the keys: a task is PIECE chunks of a run's. */
#define PIECE 2
#define TASKS_OF_THREAD 4           /* as long as the longest: fewer are not dealt out evenly */
#define MOST_SEEN ((int64_t)1 << 24) /* floats of what all runs have seen */
typedef struct {
  int count;    /* of the longest row; 1: none are shared */
  int chunks;   /* of the longest row */
  int64_t size; /* floats of what a run has seen of one */
} Pieces;

static inline Pieces pieces_of(const Decoder *d, const Step *s, int threads) {
  int group = d->heads / d->kv_heads, most = most_of_run(d, s, threads);
  int length = 0, longest = 0, last = 0, runs = 0;
  int64_t all = 0, most_seen = 0; /* keys that tokens see: of all runs, of one */
  for (int t = 0; t < s->rows; t++) {
    int keys = s->positions[t] + 1, goes_on = t > 0 && s->sequences[t] == s->sequences[t - 1] && length < most;
    length = goes_on ? length + 1 : 1, runs += !goes_on, all += keys;
    longest = length > longest ? length : longest;
    last = keys > last ? keys : last;
    most_seen = (int64_t)length * keys > most_seen ? (int64_t)length * keys : most_seen;
  }
  int chunks = (last + CHUNK - 1) / CHUNK;
  int64_t size = seen_size((int64_t)longest * group, d->dim);
  int uneven = most_seen * TASKS_OF_THREAD * threads > all * d->kv_heads;
  int shared = threads > 1 && uneven && runs * d->kv_heads * chunks * size <= MOST_SEEN;
  return (Pieces){shared ? (chunks + PIECE - 1) / PIECE : 1, chunks, size};
}

/* Buffers of a step, one after another in its scratch memory. */
typedef struct {
  float *x, *query, *key, *value, *angles; /* float32; angles [rows][turns][2][rotary / 2]: cosines, sines */
  float *gate;                             /* [rows][2][inner], where gate and up are one matrix */
  float *given;                            /* what attention or MLP adds to x, where it is scaled or normed before */
  int64_t query_stride, key_stride;        /* floats from row to row, of values, too */
  void *normed, *attended, *gated;         /* what is multiplied with weights: bfloat16 or float32 */
  int32_t *runs;                           /* first rows of the runs that attention takes at once */
  float *own;                              /* [threads][own_size] */
  int64_t own_size;
  int num_runs;
  Dealt dealt;                             /* the step's, where it has updates */
  Range *ranges;                           /* [rows / TILE_ROWS] of low-rank products, of inputs that tiles take */
  bf16 *stacked;                           /* [threads][dealt.width][DOTS_COLUMNS] */
  Pieces pieces;
  float *seen;                             /* [num_runs][kv_heads][pieces.chunks][pieces.size], where there are pieces */
} Buffers;

/* Whether what attention or MLP gives is scaled or normed before x gets it. */
static inline int is_changed(const Decoder *d, const float *after) { return after != NULL || d->given_scale != 1.0f; }

static inline int num_tiles(int rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

/* Whether low-rank products are inputs of layers behind their own. */
static inline int is_stacked(const Decoder *d) { return d->dots && has_tiles(); }

/* Where those of each row are. What is no row's own stays 0. */
static void place_updates(const Decoder *d, const Step *s, Buffers *b, int64_t low) {
  Dealt *dealt = &b->dealt;
  const int32_t *places = dealt->places;
  lora_places(dealt, is_stacked(d));
  if (!is_stacked(d)) return;
  memset(dealt->low, 0, low);
  for (int tile = 0; tile < num_tiles(dealt->rows); tile++) b->ranges[tile] = (Range){dealt->width, 0};
  for (int block = 0; block < dealt->blocks; block++) {
    int32_t next = block;
    while (places[next] == places[block] && next < dealt->blocks) next++;
    Range own = {places[block] / TILE_INPUTS * TILE_INPUTS, (places[next] + TILE_INPUTS - 1) / TILE_INPUTS * TILE_INPUTS};
    for (int at = dealt->starts[block]; at < dealt->starts[block + 1]; at++) {
      Range *range = b->ranges + dealt->order[at] / TILE_ROWS;
      if (own.begin < range->begin) range->begin = own.begin;
      if (own.end > range->end) range->end = own.end;
    }
  }
}

/* Set the buffers, or count their bytes where `at` is NULL. */
static int64_t step_buffers(const Decoder *d, const Step *s, int threads, char *at, Buffers *b) {
  int64_t rows = s->rows, most = rows > s->num_wanted ? rows : s->num_wanted;
  int64_t factor = d->dots ? sizeof(bf16) : sizeof(float), gates = d->fused ? 2 * rows * d->inner : 0;
  int64_t queries = (int64_t)d->heads * d->dim, keys = (int64_t)d->kv_heads * d->dim;
  int64_t given = is_changed(d, d->layers->attention_after) ? rows * d->hidden : 0, every = d->fused ? 0 : rows;
  b->query_stride = d->fused ? queries + 2 * keys : queries, b->key_stride = d->fused ? b->query_stride : keys;
  int updated = s->updates != NULL;
  b->dealt = s->dealt, b->dealt.rows = s->rows;
  if (updated) lora_places(&b->dealt, is_stacked(d));
  int64_t low = updated ? MOST_LAYERS * rows * b->dealt.width * factor : 0, places = updated ? s->dealt.blocks + 1 : 0;
  int64_t stacked = updated && is_stacked(d) ? threads * (int64_t)b->dealt.width * DOTS_COLUMNS : 0;
  b->pieces = pieces_of(d, s, threads);
  b->num_runs = cut_rows(s->sequences, s->rows, most_of_run(d, s, threads), NULL);
  int64_t seen = b->pieces.count > 1 ? b->num_runs * d->kv_heads * b->pieces.chunks * b->pieces.size : 0;
  int64_t own = attention_scratch(d->heads / d->kv_heads, d->dim, narrow_of(d));
  b->own_size = whole_lines(own * sizeof(float)) / sizeof(float);
  struct {
    void **buffer;
    int64_t bytes;
  } all[] = {
      {(void **)&b->x, rows * d->hidden * sizeof(float)},
      {(void **)&b->query, rows * b->query_stride * sizeof(float)},
      {(void **)&b->key, every * keys * sizeof(float)},
      {(void **)&b->value, every * keys * sizeof(float)},
      {(void **)&b->angles, rows * d->turns * d->rotary * sizeof(float)},
      {&b->normed, most * d->hidden * factor},
      {&b->attended, rows * queries * factor},
      {&b->gated, rows * d->inner * factor},
      {(void **)&b->gate, gates * sizeof(float)},
      {(void **)&b->given, given * sizeof(float)},
      {(void **)&b->runs, (rows + 1) * sizeof(int32_t)},
      {&b->dealt.low, low},
      {(void **)&b->dealt.places, places * sizeof(int32_t)},
      {(void **)&b->dealt.used, places * sizeof(Used)},
      {(void **)&b->ranges, stacked ? num_tiles(rows) * sizeof(Range) : 0},
      {(void **)&b->stacked, stacked * sizeof(bf16)},
      {(void **)&b->own, threads * b->own_size * sizeof(float)},
      {(void **)&b->seen, seen * sizeof(float)},
  };
  int64_t bytes = 0;
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
    if (at != NULL) *all[i].buffer = at + bytes;
    bytes += whole_lines(all[i].bytes);
  }
  if (at != NULL && d->fused) b->key = b->query + queries, b->value = b->key + keys;
  if (at != NULL && updated) place_updates(d, s, b, low);
  return bytes;
}
