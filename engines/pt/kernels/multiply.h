/* The products of a step's rows with matrices of weights, and what becomes of them, in tasks that threads take one by
 * one. */
#pragma once
#include "rows.h"
#include "team.h"

/* What becomes of a product. */
enum { STORED, ADDED, LOGITS };

typedef struct {
  const Matrix *matrix;
  float *to; /* [rows][matrix->out] */
} Product;

static inline int panels_of(const Decoder *d, const Matrix *m) { return PORTIONS(m->out, columns_of(m, d->dots)); }

#define TILED_ROWS 32  /* of x in tiles that are taken through panels together */
#define TILED_PANELS 4 /* of a stretch then, at most */

/* Panels of a task: neighbours, which are read as one stream. */
static inline int stretch(int panels, int blocks, int threads) {
  int tasks = blocks > 1 ? panels : 16 * threads;
  return (panels + tasks - 1) / tasks;
}

/* Updates of a phase's products, and those of the phase after it, whose A is about to be needed; NULL where there are
 * none. */
typedef struct {
  const Updates *own, *next;
} Adapted;

static Adapted adapted_at(const Decoder *d, const Step *s, int number, int group) {
  int at = number * GROUPS + group, more = at + 1 < d->num_layers * GROUPS;
  if (s->updates == NULL) return (Adapted){NULL, NULL};
  return (Adapted){s->updates[at], more ? s->updates[at + 1] : NULL};
}

static inline int factor_size(const Decoder *d) { return d->dots ? sizeof(bf16) : sizeof(float); }

/* Tasks with which a phase begins: the products with the updates' A. */
static int begin_updates(const Adapted *a, const Step *s, Member *me) {
  int tasks = a->own == NULL ? 0 : lora_down_tasks(a->own, &s->dealt);
  expect(me, tasks);
  return tasks;
}

static void multiply_down(const Decoder *d, const Updates *u, const Step *s, const void *x, int task, Member *me) {
  if (d->dots)
    lora_down_mixed(u, &s->dealt, x, task);
  else
    lora_down_float(u, &s->dealt, x, task);
  tell_done(me);
}

static void fetch_next(const Decoder *d, const Adapted *a, const Step *s, int part, int parts) {
  if (a->next != NULL) lora_fetch_down(a->next, &s->dealt, factor_size(d), part, parts);
}

/* One panel of a matrix, the `layer`-th of those with the same inputs, times some rows of x; with their updates. */
static void multiply_updated(const Decoder *d, const Matrix *m, const Rows *x, const Updates *u, const Step *s,
                             int layer, int panel, float *values, Member *me) {
  int columns = columns_of(m, d->dots), column = panel * columns;
  Tile tile = {values, columns, (int)x->first, x->count, column, least(columns, m->out - column)};
  if (u != NULL) lora_fetch_up(u, &s->dealt, factor_size(d), layer, column, tile.columns);
  multiply_panel(m, x, panel, values);
  if (u == NULL) return;
  await(me);
  if (d->dots)
    lora_up_tile_mixed(u, &s->dealt, layer, &tile);
  else
    lora_up_tile_float(u, &s->dealt, layer, &tile);
}

/* How the products of all rows with some panels are cut into tasks: blocks of rows, and stretches of panels, which a
 * task takes one after another for some rows at a time. */
typedef struct {
  int panels, stretch, stretches, rows, most, some;
  int64_t tasks;
} Cut;

/* Where rows lie in tiles, few of them are taken through several panels: they stay in the first-level cache, and so do
 * their products until they are where they belong. Panels come from the second as one stream. */
static Cut cut_products(const Decoder *d, const Factors *x, int rows, int in, int panels, int threads) {
  Cut cut = {.panels = panels, .rows = rows, .most = block_rows(rows, in, d->dots)};
  int blocks = PORTIONS(rows, cut.most);
  cut.stretch = stretch(panels, blocks, threads), cut.some = cut.most;
  if (x->tiled && rows > TILED_ROWS) {
    cut.some = TILED_ROWS;
    for (int some = TILED_PANELS; some > cut.stretch; some--) {
      int64_t tasks = (int64_t)blocks * PORTIONS(panels, some);
      if (tasks >= 3 * threads && tasks % threads == 0) cut.stretch = some;
    }
  }
  cut.stretches = PORTIONS(panels, cut.stretch), cut.tasks = (int64_t)cut.stretches * blocks;
  return cut;
}

/* The rows of a task's `part`-th part; none are left where the count is 0. */
static Rows rows_of(const Decoder *d, const Cut *cut, const Factors *x, int64_t task, int part) {
  int64_t first = task / cut->stretches * cut->most, at = first + (int64_t)part * cut->some;
  int64_t end = first + cut->most < cut->rows ? first + cut->most : cut->rows;
  int count = at < end ? least((int)(end - at), cut->some) : 0;
  return (Rows){x->values, at, count, d->dots, x->tiled, part == 0};
}

/* A panel's products, to where they belong. */
static void put_product(const Decoder *d, const Product *product, int how, const Rows *x, int panel,
                        const float *tile) {
  const Matrix *m = product->matrix;
  int columns = columns_of(m, d->dots), column = panel * columns, width = least(columns, m->out - column);
  for (int r = 0; r < x->count; r++) {
    float *to = product->to + (x->first + r) * m->out + column;
    for (int c = 0; c < width; c += LANES) {
      lanes values = load_float(tile + r * columns + c);
      if (m->bias != NULL) values += take_float(m->bias + column + c, width - c);
      if (how == ADDED) values += take_float(to + c, width - c);
      if (how == LOGITS) values *= d->logit_scale;
      if (how == LOGITS && d->logit_cap > 0.0f) values = capped(values, d->logit_cap);
      put_float(values, to + c, width - c);
    }
  }
}

/* The products of all rows of x with some matrices, which have the same inputs. */
static void multiply_all(const Decoder *d, const Step *s, const Factors *x, int rows, int how, const Product *products,
                         int count, Adapted a, Member *me) {
  int panels = 0;
  for (int i = 0; i < count; i++) panels += panels_of(d, products[i].matrix);
  Cut cut = cut_products(d, x, rows, products->matrix->in, panels, me->threads);
  int downs = begin_updates(&a, s, me);
  float tile[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  EVERY_TASK(task, me, downs + cut.tasks) {
    if (task < downs) {
      multiply_down(d, a.own, s, x->values, task, me);
      continue;
    }
    int64_t own = task - downs;
    fetch_next(d, &a, s, own, cut.tasks);
    Rows some;
    for (int part = 0; (some = rows_of(d, &cut, x, own, part)).count; part++)
      for (int at = own % cut.stretches * cut.stretch, end = least(at + cut.stretch, panels); at < end; at++) {
        const Product *product = products;
        int panel = at;
        for (; panel >= panels_of(d, product->matrix); product++) panel -= panels_of(d, product->matrix);
        multiply_updated(d, product->matrix, &some, a.own, s, product - products, panel, tile, me);
        put_product(d, product, how, &some, panel, tile);
      }
  }
  meet(me, downs + cut.tasks);
}

/* A panel's products with `gate` and `up`, to what `down` is multiplied with. */
static void put_gated(const Decoder *d, const Layer *layer, const Buffers *b, const Rows *x, int panel,
                      const float *gate, const float *up) {
  int columns = columns_of(&layer->gate, d->dots), column = panel * columns, width = least(columns, d->inner - column);
  for (int r = 0; r < x->count; r++)
    for (int c = 0; c < width; c += LANES) {
      lanes g = load_float(gate + r * columns + c), u = load_float(up + r * columns + c);
      if (layer->gate.bias != NULL) g += take_float(layer->gate.bias + column + c, width - c);
      if (layer->up.bias != NULL) u += take_float(layer->up.bias + column + c, width - c);
      put_factor(d, &b->gated, gated(d, g, u), x->first + r, d->inner, column + c, width - c);
    }
}

static void multiply_gated(const Decoder *d, const Layer *layer, const Step *s, const Buffers *b, Adapted a,
                           Member *me) {
  int panels = panels_of(d, &layer->gate); /* those of `up`, too */
  Cut cut = cut_products(d, &b->normed, s->rows, d->hidden, panels, me->threads);
  int downs = begin_updates(&a, s, me);
  float gate[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  float up[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  EVERY_TASK(task, me, downs + cut.tasks) {
    if (task < downs) {
      multiply_down(d, a.own, s, b->normed.values, task, me);
      continue;
    }
    int64_t own = task - downs;
    fetch_next(d, &a, s, own, cut.tasks);
    Rows some;
    for (int part = 0; (some = rows_of(d, &cut, &b->normed, own, part)).count; part++)
      for (int at = own % cut.stretches * cut.stretch, end = least(at + cut.stretch, panels); at < end; at++) {
        multiply_updated(d, &layer->gate, &some, a.own, s, 0, at, gate, me);
        multiply_updated(d, &layer->up, &some, a.own, s, 1, at, up, me);
        put_gated(d, layer, b, &some, at, gate, up);
      }
  }
  meet(me, downs + cut.tasks);
}

/* The same where one matrix has both. */
static void multiply_fused(const Decoder *d, const Layer *layer, const Step *s, const Buffers *b, Adapted a,
                           Member *me) {
  multiply_all(d, s, &b->normed, s->rows, STORED, &(Product){&layer->gate, b->gate}, 1, a, me);
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some), n = d->inner;
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++) {
      const float *gate = b->gate + t * 2 * n, *up = gate + n;
      for (int c = 0; c < n; c += LANES)
        put_factor(d, &b->gated, gated(d, take_float(gate + c, n - c), take_float(up + c, n - c)), t, n, c, n - c);
    }
  meet(me, tasks);
}
