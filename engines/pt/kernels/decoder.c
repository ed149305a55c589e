/* A decoder of the Llama kind, one step of it in one call: from token ids to logits, for all rows of the step.
 *
 *   x += attention(norm(x));  x += down(silu(gate(norm(x))) * up(norm(x)))    for every layer
 *
 * Families differ from it in what the structs say: norms after attention and down, too, or only there; one matrix in
 * the place of some that get the same input; another activation; capped scores; several sets of angles.
 *
 * What runs from layer to layer, norms, positions, sums and logits are float32. Products are made as in `linear.c` (rows
 * in float32) or, where `dots`, as in `linear_dots.c` (rows rounded to bfloat16); with weights that are integers, as in
 * `linear_quantized.c`. Keys and values are kept in the cache's type. Threads meet after each phase (team.h). A row's
 * result is the same to the last bit whatever rows are beside it: each sum is made in an order that depends on the row
 * alone.
 */
#include <math.h>
#include <omp.h>

#include "buffers.h"
#include "multiply.h"
#include "parts.h"
#include "rows.h"
#include "team.h"

/* Bytes of scratch memory that a step needs, which begin at a multiple of 64. */
int64_t decoder_scratch(const Decoder *d, const Step *s) {
  Buffers none;
  return step_buffers(d, s, omp_get_max_threads(), NULL, &none);
}

/* ---- rows */

static void normalize_all(const Decoder *d, const Step *s, const Buffers *b, const float *weight, Member *me) {
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some);
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++)
      normalize(d, b->x + t * d->hidden, weight, b->normed, NULL, t);
  meet(me, tasks);
}

/* Add to x what attention or MLP gives: its norm, or the same times a number. */
static void take_given(const Decoder *d, const Step *s, const Buffers *b, const float *after, Member *me) {
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some), n = d->hidden;
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++) {
      float *x = b->x + t * n, *given = b->given + t * n;
      float factor = after == NULL ? d->given_scale : inverse_norm(given, n, d->epsilon);
      for (int c = 0; c < n; c += LANES) {
        lanes values = take_float(given + c, n - c) * factor;
        if (after != NULL) values *= take_float(after + c, n - c);
        put_float(take_float(x + c, n - c) + values, x + c, n - c);
      }
    }
  meet(me, tasks);
}

/* The rows of the table, and the angles of their positions ("RoFormer", Su et al. 2021, arXiv:2104.09864). */
static void enter(const Decoder *d, const Step *s, const Buffers *b, Member *me) {
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some), half = d->rotary / 2;
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++) {
      if (s->embedded != NULL)
        memcpy(b->x + t * d->hidden, s->embedded + t * d->hidden, sizeof(float) * d->hidden);
      else
        for (int c = 0; c < d->hidden; c += LANES)
          put_float(take_bf16(d->embeddings + (int64_t)s->ids[t] * d->hidden + c, d->hidden - c) * d->embedding_scale,
                    b->x + t * d->hidden + c, d->hidden - c);
      for (int turn = 0; turn < d->turns; turn++) {
        float *cosines = b->angles + (t * d->turns + turn) * d->rotary, *sines = cosines + half;
        for (int i = 0; i < half; i++) {
          float angle = (float)s->positions[t] * d->frequencies[turn * half + i];
          cosines[i] = cosf(angle) * d->turn_scales[turn], sines[i] = sinf(angle) * d->turn_scales[turn];
        }
      }
    }
  meet(me, tasks);
}

/* ---- what is added to x */

/* What attention (`from` its heads) or MLP gives, to x. */
static void add_product(const Decoder *d, const Step *s, const Buffers *b, const void *from, const Matrix *m,
                        const float *after, Adapted a, Member *me) {
  int changed = is_changed(d, after);
  multiply_all(d, b, from, s->rows, changed ? STORED : ADDED, &(Product){m, changed ? b->given : b->x}, 1, a, me);
  if (changed) take_given(d, s, b, after, me);
}

/* ---- attention */

/* A row's keys or values go to the cache. */
INLINED void keep(const Decoder *d, const Step *s, const float *from, void *to, float *scales, int64_t slot) {
  int size = d->kv_heads * d->dim;
  if (d->kept != AS_IS) {
    int64_t block = slot / s->block_size, offset = slot % s->block_size;
    for (int64_t h = 0; h < d->kv_heads; h++)
      scales[(block * d->kv_heads + h) * s->block_size + offset] =
          round_head(d->kept, from + h * d->dim, d->dim, (uint8_t *)to + slot * size + h * d->dim);
    return;
  }
  for (int c = 0; c < size; c += LANES)
    if (d->narrow_cache)
      put_bf16(take_float(from + c, size - c), (bf16 *)to + slot * size + c, size - c);
    else
      put_float(take_float(from + c, size - c), (float *)to + slot * size + c, size - c);
}

/* Queries and keys of all rows get their positions; keys and values go to the cache. */
static void turn_and_keep(const Decoder *d, const Layer *layer, int number, const Step *s, const Buffers *b,
                          Member *me) {
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some);
  float *key_scales = d->kept == AS_IS ? NULL : s->key_scales[number];
  float *value_scales = d->kept == AS_IS ? NULL : s->value_scales[number];
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++) {
      const float *angles = layer->turn < 0 ? NULL : b->angles + (t * d->turns + layer->turn) * d->rotary;
      float *key = b->key + t * b->key_stride, *value = b->value + t * b->key_stride;
      turn(d, layer->query_norm, angles, b->query + t * b->query_stride, d->heads);
      turn(d, layer->key_norm, angles, key, d->kv_heads);
      keep(d, s, key, s->keys[number], key_scales, s->slots[t]);
      keep(d, s, value, s->values[number], value_scales, s->slots[t]);
    }
  meet(me, tasks);
}

/* The key-value head `head` of the sequence that row `t` belongs to. */
static Head head_at(const Decoder *d, const Layer *layer, const Step *s, int number, int64_t t, int head) {
  Pages pages = {s->table + (int64_t)s->sequences[t] * s->max_blocks, s->block_size, (int64_t)d->kv_heads * d->dim};
  int64_t own = (int64_t)head * d->dim * width_of(d->kept, d->narrow_cache), scales = (int64_t)head * s->block_size;
  Head one = {(char *)s->keys[number] + own, (char *)s->values[number] + own, narrow_of(d), d->kept, NULL, NULL,
              (int64_t)d->kv_heads * s->block_size, pages, d->heads / d->kv_heads, d->dim, layer->scale,
              layer->softcap};
  if (d->kept != AS_IS) one.k_scales = s->key_scales[number] + scales, one.v_scales = s->value_scales[number] + scales;
  return one;
}

/* The queries of a run for one key-value head; the results take their place. */
static Queries queries_of(const Decoder *d, const Layer *layer, const Step *s, const Buffers *b, int run, int head) {
  int64_t t = b->runs[run];
  float *query = b->query + t * b->query_stride + head * (d->heads / d->kv_heads) * d->dim;
  Queries queries = {.q = query, .out = query, .stride = b->query_stride, .tokens = b->runs[run + 1] - t};
  for (int i = 0; i < queries.tokens; i++) {
    int len = s->positions[t + i] + 1;
    queries.len[i] = len, queries.first[i] = layer->window > 0 && len > layer->window ? len - layer->window : 0;
  }
  return queries;
}

static void put_attended(const Decoder *d, const Buffers *b, const Queries *queries, int run, int head) {
  int size = d->heads / d->kv_heads * d->dim;
  for (int64_t i = 0; i < queries->tokens; i++)
    for (int c = 0; c < size; c += LANES)
      put_factor(d, b->attended, take_float(queries->out + i * queries->stride + c, size - c), b->runs[run] + i,
                 d->kv_heads * size, head * size + c, size - c);
}

/* What a run has seen of a chunk. */
static Seen seen_of(const Decoder *d, const Buffers *b, const Queries *queries, int run, int head, int chunk) {
  int64_t number = ((int64_t)run * d->kv_heads + head) * b->pieces.chunks + chunk;
  return seen_at(b->seen + number * b->pieces.size, queries->tokens * (d->heads / d->kv_heads), d->dim);
}

/* Each piece of a run's keys; then all chunks of each run joined in their order, as `attend_tokens` does. */
static void attend_pieces(const Decoder *d, const Layer *layer, int number, const Step *s, const Buffers *b,
                          Member *me) {
  int count = b->pieces.count, tasks = b->num_runs * d->kv_heads;
  float *scratch = b->own + me->number * b->own_size;
  EVERY_TASK(task, me, tasks * count) {
    int piece = task % count, head = task / count % d->kv_heads, run = task / count / d->kv_heads;
    Queries queries = queries_of(d, layer, s, b, run, head);
    Head one = head_at(d, layer, s, number, b->runs[run], head);
    int first = first_chunk(&queries), end = least(end_chunk(&queries), (piece + 1) * PIECE);
    for (int chunk = first > piece * PIECE ? first : piece * PIECE; chunk < end; chunk++) {
      Seen seen = seen_of(d, b, &queries, run, head, chunk);
      attend_chunk(&one, &queries, chunk, &seen, scratch);
    }
  }
  meet(me, tasks * count);
  EVERY_TASK(task, me, tasks) {
    int head = task % d->kv_heads, run = task / d->kv_heads;
    Queries queries = queries_of(d, layer, s, b, run, head);
    Head one = head_at(d, layer, s, number, b->runs[run], head);
    int rows = queries.tokens * one.group;
    Seen whole = seen_at(scratch, rows, d->dim);
    see_nothing(&whole, rows, d->dim);
    for (int chunk = first_chunk(&queries); chunk < end_chunk(&queries); chunk++) {
      Seen seen = seen_of(d, b, &queries, run, head, chunk);
      join_seen(&whole, &seen, rows, d->dim);
    }
    finish(&one, &queries, &whole);
    put_attended(d, b, &queries, run, head);
  }
  meet(me, tasks);
}

static void attend_runs(const Decoder *d, const Layer *layer, int number, const Step *s, const Buffers *b, Member *me) {
  int tasks = b->num_runs * d->kv_heads;
  EVERY_TASK(task, me, tasks) {
    int run = task / d->kv_heads, head = task % d->kv_heads;
    Queries queries = queries_of(d, layer, s, b, run, head);
    Head one = head_at(d, layer, s, number, b->runs[run], head);
    attend_tokens(&one, &queries, b->own + me->number * b->own_size);
    put_attended(d, b, &queries, run, head);
  }
  meet(me, tasks);
}

/* ---- all of it */

static void leave(const Decoder *d, const Step *s, const Buffers *b, Member *me) {
  int some = portion(s->num_wanted, me->threads), tasks = PORTIONS(s->num_wanted, some);
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->num_wanted); t++)
      normalize(d, b->x + (int64_t)s->wanted[t] * d->hidden, d->final_norm, b->normed, s->hidden, t);
  meet(me, tasks);
  if (s->logits == NULL) return;
  Product logits = {&d->head, s->logits};
  multiply_all(d, b, b->normed, s->num_wanted, LOGITS, &logits, 1, (Adapted){NULL, NULL}, me);
}

static void run(const Decoder *d, const Step *s, const Buffers *b, Member *me) {
  Clock clock = {me->number ? NULL : s->nanoseconds, now()};
  enter(d, s, b, me);
  for (int number = 0; number < d->num_layers; number++) {
    const Layer *layer = d->layers + number;
    Adapted entries = adapted_at(d, s, number, ENTRIES), output = adapted_at(d, s, number, OUTPUT);
    Adapted gates = adapted_at(d, s, number, GATES), down = adapted_at(d, s, number, DOWN);
    normalize_all(d, s, b, layer->attention_norm, me);
    went_to(&clock, NORMS);
    Product all[] = {{&layer->query, b->query}, {&layer->key, b->key}, {&layer->value, b->value}};
    multiply_all(d, b, b->normed, s->rows, STORED, all, d->fused ? 1 : 3, entries, me);
    went_to(&clock, PROJECTIONS);
    turn_and_keep(d, layer, number, s, b, me);
    went_to(&clock, POSITIONS);
    if (b->pieces.count > 1)
      attend_pieces(d, layer, number, s, b, me);
    else
      attend_runs(d, layer, number, s, b, me);
    went_to(&clock, ATTENTION);
    add_product(d, s, b, b->attended, &layer->output, layer->attention_after, output, me);
    went_to(&clock, PROJECTIONS);
    normalize_all(d, s, b, layer->mlp_norm, me);
    went_to(&clock, NORMS);
    if (d->fused)
      multiply_fused(d, layer, s, b, gates, me);
    else
      multiply_gated(d, layer, s, b, gates, me);
    add_product(d, s, b, b->gated, &layer->down, layer->mlp_after, down, me);
    went_to(&clock, MLP);
  }
  if (s->num_wanted) leave(d, s, b, me);
  went_to(&clock, HEAD);
}

void decoder_step(const Decoder *d, const Step *s) {
  Team team = {0};
  Buffers buffers;
  int threads = omp_get_max_threads();
  step_buffers(d, s, threads, s->scratch, &buffers);
  cut_rows(s->sequences, s->rows, most_of_run(d, s, threads), buffers.runs);
#pragma omp parallel
  {
    Member me = {&team, omp_get_num_threads(), omp_get_thread_num(), 0, 0, 0};
    run(d, s, &buffers, &me);
    leave_tiles();
  }
}
