/* A decoder of the Llama kind, one step of it in one call: from token ids to logits, for all rows of the step.
 *
 *   x += attention(norm(x));  x += down(silu(gate(norm(x))) * up(norm(x)))    for every layer
 *
 * What runs from layer to layer, norms, positions, sums and logits are float32. Products are made as in `linear.c` (rows
 * in float32) or, where `dots`, as in `linear_dots.c` (rows rounded to bfloat16). Keys and values are kept in the
 * cache's type. Threads meet after each phase (team.h). A row's result is the same to the last bit whatever rows are
 * beside it: each sum is made in an order that depends on the row alone.
 *
 * The structs are those of decoder.py.
 */
#include <math.h>
#include <omp.h>

#include "attention.h"
#include "lora.h"
#include "products.h"
#include "team.h"

#define INLINED static inline __attribute__((always_inline))

typedef struct {
  const bf16 *packed; /* NULL: no such matrix */
  const float *bias;  /* or NULL */
  int32_t in, out;
} Matrix;

typedef struct {
  const float *attention_norm, *mlp_norm; /* [hidden] */
  const float *query_norm, *key_norm;     /* [dim], or NULL */
  Matrix query, key, value, output, gate, up, down;
  int32_t window; /* keys that a token sees, its own included; 0: all */
} Layer;

typedef struct {
  const Layer *layers;
  const bf16 *embeddings;   /* [vocabulary][hidden] */
  const float *final_norm;  /* [hidden] */
  const float *frequencies; /* [rotary / 2] of the positions' angles */
  Matrix head;
  int32_t num_layers, hidden, inner, heads, kv_heads, dim, rotary;
  int32_t dots;        /* rows are rounded to bfloat16 for products */
  int32_t narrow_cache; /* keys and values are bfloat16, else float32 */
  float epsilon, scale, rotary_scale;
} Decoder;

typedef struct {
  const int32_t *ids, *positions; /* [rows] */
  const int64_t *slots;           /* [rows] where each row's key and value are stored: block * block_size + offset */
  const int32_t *sequences;       /* [rows] row of `table` */
  const int32_t *table;           /* [sequences][max_blocks] */
  const int32_t *wanted;          /* [num_wanted] rows whose logits are wanted */
  void *const *keys, *const *values; /* [layers] of [blocks][block_size][kv_heads][dim] */
  float *hidden;  /* [num_wanted][hidden]: after the last norm */
  float *logits;  /* [num_wanted][vocabulary], or NULL */
  char *scratch;  /* decoder_scratch bytes */
  const float *embedded;        /* [rows][hidden] in place of the table's rows, or NULL */
  const Updates *const *updates; /* [layers][GROUPS] low-rank updates, NULL where there are none; or NULL */
  Dealt dealt;                  /* rows that have updates */
  int32_t rows, num_wanted, max_blocks, block_size;
} Step;

/* Layers that get the same inputs. */
enum { ENTRIES, OUTPUT, GATES, DOWN, GROUPS };

/* Buffers of a step, one after another in its scratch memory. */
typedef struct {
  float *x, *query, *key, *value, *angles; /* float32; angles [rows][2][rotary / 2]: cosines, sines */
  float *gate, *up;                        /* where there are updates */
  void *normed, *attended, *gated;         /* as they are multiplied: bfloat16 or float32 */
  int32_t *runs;                           /* first rows of the runs that attention takes at once */
  float *own;                              /* [threads][own_size] */
  int64_t own_size;
  int num_runs;
} Buffers;

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Set the buffers, or count their bytes where `at` is NULL. */
static int64_t divide(const Decoder *d, const Step *s, int threads, char *at, Buffers *b) {
  int64_t rows = s->rows, most = rows > s->num_wanted ? rows : s->num_wanted;
  int64_t factor = d->dots ? sizeof(bf16) : sizeof(float), gates = s->updates == NULL ? 0 : rows * d->inner;
  int64_t queries = (int64_t)d->heads * d->dim, keys = (int64_t)d->kv_heads * d->dim;
  b->own_size = aligned(sizeof(float) * attention_scratch(d->heads / d->kv_heads, d->dim)) / sizeof(float);
  struct {
    void **buffer;
    int64_t bytes;
  } all[] = {
      {(void **)&b->x, rows * d->hidden * sizeof(float)},  {(void **)&b->query, rows * queries * sizeof(float)},
      {(void **)&b->key, rows * keys * sizeof(float)},     {(void **)&b->value, rows * keys * sizeof(float)},
      {(void **)&b->angles, rows * d->rotary * sizeof(float)}, {&b->normed, most * d->hidden * factor},
      {&b->attended, rows * queries * factor},             {&b->gated, rows * d->inner * factor},
      {(void **)&b->gate, gates * sizeof(float)},          {(void **)&b->up, gates * sizeof(float)},
      {(void **)&b->runs, (rows + 1) * sizeof(int32_t)},
      {(void **)&b->own, threads * b->own_size * sizeof(float)},
  };
  int64_t bytes = 0;
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
    if (at != NULL) *all[i].buffer = at + bytes;
    bytes += aligned(all[i].bytes);
  }
  return bytes;
}

/* Bytes of scratch memory that a step needs, which begin at a multiple of 64. */
int64_t decoder_scratch(const Decoder *d, const Step *s) {
  Buffers none;
  return divide(d, s, omp_get_max_threads(), NULL, &none);
}

/* ---- rows */

static inline int least(int x, int y) { return x < y ? x : y; }

/* Rows of a task: as few as keep all threads busy. */
static inline int portion(int rows, int threads) { return (rows + 4 * threads - 1) / (4 * threads); }
#define PORTIONS(rows, portion) (((rows) + (portion) - 1) / (portion))

/* `n` values, as they are multiplied with weights, to row[at]. */
INLINED void put_factor(const Decoder *d, lanes values, void *row, int64_t at, int n) {
  if (d->dots)
    put_bf16(values, (bf16 *)row + at, n);
  else
    put_float(values, (float *)row + at, n);
}

/* 1 / the root of the mean of squares ("Root Mean Square Layer Normalization", Zhang and Sennrich 2019,
 * arXiv:1910.07467). */
INLINED float inverse_norm(const float *x, int n, float epsilon) {
  lanes squares = {0};
  for (int c = 0; c < n; c += LANES) {
    lanes values = take_float(x + c, n - c);
    squares = multiply_add(values, values, squares);
  }
  return 1.0f / sqrtf(total(squares) / (float)n + epsilon);
}

static void normalize(const Decoder *d, const float *x, const float *weight, void *normed, float *exact, int64_t row) {
  int n = d->hidden;
  float inverse = inverse_norm(x, n, d->epsilon);
  for (int c = 0; c < n; c += LANES) {
    lanes values = take_float(x + c, n - c) * inverse * take_float(weight + c, n - c);
    put_factor(d, values, normed, row * n + c, n - c);
    if (exact != NULL) put_float(values, exact + row * n + c, n - c);
  }
}

static void normalize_all(const Decoder *d, const Step *s, const Buffers *b, const float *weight, Member *me) {
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some);
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++)
      normalize(d, b->x + t * d->hidden, weight, b->normed, NULL, t);
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
          put_float(take_bf16(d->embeddings + (int64_t)s->ids[t] * d->hidden + c, d->hidden - c),
                    b->x + t * d->hidden + c, d->hidden - c);
      float *cosines = b->angles + t * d->rotary, *sines = cosines + half;
      for (int i = 0; i < half; i++) {
        float angle = (float)s->positions[t] * d->frequencies[i];
        cosines[i] = cosf(angle) * d->rotary_scale, sines[i] = sinf(angle) * d->rotary_scale;
      }
    }
  meet(me, tasks);
}

/* ---- products */

/* What becomes of a product. */
enum { STORED, ADDED };

typedef struct {
  const Matrix *matrix;
  float *to; /* [rows][matrix->out] */
} Product;

static inline int columns_of(const Decoder *d) { return d->dots ? DOTS_COLUMNS : WIDENING_COLUMNS; }
static inline int panels_of(const Decoder *d, const Matrix *m) { return (m->out + columns_of(d) - 1) / columns_of(d); }

/* One panel of a matrix times rows `first` to `first` + `rows` - 1 of x. */
INLINED void multiply(const Decoder *d, const Matrix *m, const void *x, int64_t first, int rows, int panel,
                      float *tile) {
  const bf16 *packed = m->packed + (int64_t)panel * columns_of(d) * m->in;
  if (d->dots)
    dots_product((const bf16 *)x + first * m->in, packed, rows, m->in, tile);
  else
    widening_product((const float *)x + first * m->in, packed, rows, m->in, tile);
}

/* Panels of a task: neighbours, which are read as one stream. */
static inline int stretch(int panels, int blocks, int threads) {
  int tasks = blocks > 1 ? panels : 16 * threads;
  return (panels + tasks - 1) / tasks;
}

static const Updates *updates_of(const Step *s, int number, int group) {
  return s->updates == NULL ? NULL : s->updates[number * GROUPS + group];
}

static void multiply_down(const Decoder *d, const Updates *u, const Step *s, const void *x, int task) {
  if (d->dots)
    lora_down_mixed(u, &s->dealt, x, task);
  else
    lora_down_float(u, &s->dealt, x, task);
}

/* The rest of the updates, once the products with A are there. */
static void add_updates(const Decoder *d, const Updates *u, const Step *s, float *const *to, Member *me) {
  if (u == NULL) return;
  int tasks = lora_up_tasks(u, &s->dealt);
  EVERY_TASK(task, me, tasks)
    if (d->dots)
      lora_up_mixed(u, &s->dealt, to, task);
    else
      lora_up_float(u, &s->dealt, to, task);
  meet(me, tasks);
}

/* The products of all rows of x with some matrices, which have the same inputs; beside them those with the updates' A. */
static void multiply_all(const Decoder *d, const Step *s, const void *x, int rows, int how, const Product *products,
                         int count, const Updates *u, Member *me) {
  int columns = columns_of(d), panels = 0;
  for (int i = 0; i < count; i++) panels += panels_of(d, products[i].matrix);
  int blocks = PORTIONS(rows, PRODUCT_ROWS), some = stretch(panels, blocks, me->threads);
  int stretches = PORTIONS(panels, some), downs = u == NULL ? 0 : lora_down_tasks(u, &s->dealt);
  int tasks = stretches * blocks + downs;
  float tile[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  EVERY_TASK(task, me, tasks) {
    if (task >= stretches * blocks) {
      multiply_down(d, u, s, x, task - stretches * blocks);
      continue;
    }
    int64_t first = task / stretches * PRODUCT_ROWS;
    int height = least(rows - first, PRODUCT_ROWS), begin = task % stretches * some;
    for (int at = begin; at < least(begin + some, panels); at++) {
      const Product *product = products;
      int panel = at;
      for (; panel >= panels_of(d, product->matrix); product++) panel -= panels_of(d, product->matrix);
      const Matrix *m = product->matrix;
      multiply(d, m, x, first, height, panel, tile);
      int column = panel * columns, width = least(columns, m->out - column);
      for (int r = 0; r < height; r++) {
        float *to = product->to + (first + r) * m->out + column;
        for (int c = 0; c < width; c += LANES) {
          lanes values = load_float(tile + r * columns + c);
          if (m->bias != NULL) values += take_float(m->bias + column + c, width - c);
          if (how == ADDED) values += take_float(to + c, width - c);
          put_float(values, to + c, width - c);
        }
      }
    }
  }
  meet(me, tasks);
}

/* silu(gate) * up ("GLU Variants Improve Transformer", Shazeer 2020, arXiv:2002.05202). */
INLINED lanes gated(lanes gate, lanes up) { return gate / (1.0f + exp_of(-gate)) * up; }

static void multiply_gated(const Decoder *d, const Layer *layer, const Step *s, const Buffers *b, Member *me) {
  int columns = columns_of(d), panels = panels_of(d, &layer->gate);
  int blocks = PORTIONS(s->rows, PRODUCT_ROWS), some = stretch(panels, blocks, me->threads);
  int stretches = PORTIONS(panels, some), tasks = stretches * blocks;
  float gate[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  float up[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  EVERY_TASK(task, me, tasks) {
    int64_t first = task / stretches * PRODUCT_ROWS;
    int height = least(s->rows - first, PRODUCT_ROWS), begin = task % stretches * some;
    for (int panel = begin; panel < least(begin + some, panels); panel++) {
      multiply(d, &layer->gate, b->normed, first, height, panel, gate);
      multiply(d, &layer->up, b->normed, first, height, panel, up);
      int column = panel * columns, width = least(columns, d->inner - column);
      for (int r = 0; r < height; r++)
        for (int c = 0; c < width; c += LANES) {
          lanes g = load_float(gate + r * columns + c), u = load_float(up + r * columns + c);
          if (layer->gate.bias != NULL) g += take_float(layer->gate.bias + column + c, width - c);
          if (layer->up.bias != NULL) u += take_float(layer->up.bias + column + c, width - c);
          put_factor(d, gated(g, u), b->gated, (first + r) * d->inner + column + c, width - c);
        }
    }
  }
  meet(me, tasks);
}

/* The same where updates come between product and gate. */
static void multiply_updated(const Decoder *d, const Layer *layer, const Updates *u, const Step *s, const Buffers *b,
                             Member *me) {
  Product gates[] = {{&layer->gate, b->gate}, {&layer->up, b->up}};
  multiply_all(d, s, b->normed, s->rows, STORED, gates, 2, u, me);
  add_updates(d, u, s, (float *[]){b->gate, b->up}, me);
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some);
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++)
      for (int64_t c = 0, at = t * d->inner; c < d->inner; c += LANES) {
        int n = d->inner - c;
        put_factor(d, gated(take_float(b->gate + at + c, n), take_float(b->up + at + c, n)), b->gated, at + c, n);
      }
  meet(me, tasks);
}

/* ---- attention */

/* One head's query or key: its norm, and its turn by the row's angles. */
INLINED void turn(const Decoder *d, const float *norm, const float *cosines, float *head) {
  int n = d->dim, half = d->rotary / 2;
  const float *sines = cosines + half;
  if (norm != NULL) {
    float inverse = inverse_norm(head, n, d->epsilon);
    for (int c = 0; c < n; c += LANES)
      put_float(take_float(head + c, n - c) * inverse * take_float(norm + c, n - c), head + c, n - c);
  }
  for (int i = 0; i < half; i += LANES) {
    int some = half - i;
    lanes x = take_float(head + i, some), y = take_float(head + half + i, some);
    lanes cosine = take_float(cosines + i, some), sine = take_float(sines + i, some);
    put_float(x * cosine - y * sine, head + i, some);
    put_float(y * cosine + x * sine, head + half + i, some);
  }
}

/* Queries and keys of all rows get their positions; keys and values go to the cache. */
static void place(const Decoder *d, const Layer *layer, int number, const Step *s, const Buffers *b, Member *me) {
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some), size = d->kv_heads * d->dim;
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++) {
      const float *angles = b->angles + t * d->rotary;
      for (int h = 0; h < d->heads; h++)
        turn(d, layer->query_norm, angles, b->query + (t * d->heads + h) * d->dim);
      float *key = b->key + t * size, *value = b->value + t * size;
      for (int h = 0; h < d->kv_heads; h++) turn(d, layer->key_norm, angles, key + h * d->dim);
      int64_t at = s->slots[t] * size;
      for (int c = 0; c < size; c += LANES)
        if (d->narrow_cache) {
          put_bf16(take_float(key + c, size - c), (bf16 *)s->keys[number] + at + c, size - c);
          put_bf16(take_float(value + c, size - c), (bf16 *)s->values[number] + at + c, size - c);
        } else {
          put_float(take_float(key + c, size - c), (float *)s->keys[number] + at + c, size - c);
          put_float(take_float(value + c, size - c), (float *)s->values[number] + at + c, size - c);
        }
    }
  meet(me, tasks);
}

static void attend_all(const Decoder *d, const Layer *layer, int number, const Step *s, const Buffers *b, Member *me) {
  int group = d->heads / d->kv_heads, size = group * d->dim, tasks = b->num_runs * d->kv_heads;
  float *scratch = b->own + me->number * b->own_size;
  EVERY_TASK(task, me, tasks) {
    int run = task / d->kv_heads, head = task % d->kv_heads;
    int64_t t = b->runs[run], stride = (int64_t)d->heads * d->dim, at = t * stride + head * size;
    float *query = b->query + at; /* the results take its place */
    Queries queries = {query, query, stride, b->runs[run + 1] - b->runs[run]};
    for (int i = 0; i < queries.tokens; i++) {
      int len = s->positions[t + i] + 1;
      queries.len[i] = len, queries.first[i] = layer->window > 0 && len > layer->window ? len - layer->window : 0;
    }
    Pages pages = {s->table + (int64_t)s->sequences[t] * s->max_blocks, s->block_size, (int64_t)d->kv_heads * d->dim};
    const void *keys = s->keys[number], *values = s->values[number];
    int64_t own = head * d->dim;
    if (d->narrow_cache)
      attend_tokens_bf16(&queries, (const bf16 *)keys + own, (const bf16 *)values + own, &pages, group, d->dim, d->scale,
                         0.0f, scratch);
    else
      attend_tokens_float(&queries, (const float *)keys + own, (const float *)values + own, &pages, group, d->dim,
                          d->scale, 0.0f, scratch);
    for (int i = 0; i < queries.tokens; i++)
      for (int c = 0; c < size; c += LANES)
        put_factor(d, take_float(query + i * stride + c, size - c), b->attended, at + i * stride + c, size - c);
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
  multiply_all(d, s, b->normed, s->num_wanted, STORED, &logits, 1, NULL, me);
}

static void run(const Decoder *d, const Step *s, const Buffers *b, Member *me) {
  enter(d, s, b, me);
  for (int number = 0; number < d->num_layers; number++) {
    const Layer *layer = d->layers + number;
    const Updates *entries = updates_of(s, number, ENTRIES), *output = updates_of(s, number, OUTPUT);
    const Updates *gates = updates_of(s, number, GATES), *down = updates_of(s, number, DOWN);
    normalize_all(d, s, b, layer->attention_norm, me);
    Product all[] = {{&layer->query, b->query}, {&layer->key, b->key}, {&layer->value, b->value}};
    multiply_all(d, s, b->normed, s->rows, STORED, all, 3, entries, me);
    add_updates(d, entries, s, (float *[]){b->query, b->key, b->value}, me);
    place(d, layer, number, s, b, me);
    attend_all(d, layer, number, s, b, me);
    multiply_all(d, s, b->attended, s->rows, ADDED, &(Product){&layer->output, b->x}, 1, output, me);
    add_updates(d, output, s, (float *[]){b->x}, me);
    normalize_all(d, s, b, layer->mlp_norm, me);
    if (gates == NULL)
      multiply_gated(d, layer, s, b, me);
    else
      multiply_updated(d, layer, gates, s, b, me);
    multiply_all(d, s, b->gated, s->rows, ADDED, &(Product){&layer->down, b->x}, 1, down, me);
    add_updates(d, down, s, (float *[]){b->x}, me);
  }
  if (s->num_wanted) leave(d, s, b, me);
}

void decoder_step(const Decoder *d, const Step *s) {
  Team team = {0};
  Buffers buffers;
  divide(d, s, omp_get_max_threads(), s->scratch, &buffers);
  buffers.num_runs = cut_rows(s->sequences, s->rows, tokens_at_once(d->heads / d->kv_heads), buffers.runs);
#pragma omp parallel
  {
    Member me = {&team, omp_get_num_threads(), omp_get_thread_num(), 0, 0};
    run(d, s, &buffers, &me);
  }
}
