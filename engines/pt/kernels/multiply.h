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
static int begin_updates(const Adapted *a, const Buffers *b, Member *me) {
  int tasks = a->own == NULL ? 0 : lora_down_tasks(a->own, &b->dealt);
  expect(me, tasks);
  return tasks;
}

static void multiply_down(const Decoder *d, const Updates *u, const Buffers *b, const void *x, int task, Member *me) {
  if (d->dots)
    lora_down_mixed(u, &b->dealt, x, task);
  else
    lora_down_float(u, &b->dealt, x, task);
  tell_done(me);
}

/* Not where tiles multiply: what they read comes as soon without. */
static void fetch_next(const Decoder *d, const Adapted *a, const Buffers *b, int part, int parts) {
  if (a->next != NULL && !is_stacked(d)) lora_fetch_down(a->next, &b->dealt, factor_size(d), part, parts);
}

/* One panel of a matrix, the `layer`-th of those with the same inputs, times some rows of x; with their updates. */
static void multiply_updated(const Decoder *d, const Matrix *m, const Rows *x, const Updates *u, const Buffers *b,
                             int layer, int panel, float *values, Member *me) {
  if (u == NULL) {
    multiply_panel(m, x, panel, NULL, values);
    return;
  }
  const Dealt *dealt = &b->dealt;
  int columns = columns_of(m, d->dots), column = panel * columns, width = least(columns, m->out - column);
  if (takes_tiles(m, d->dots)) {
    const bf16 *low = (const bf16 *)dealt->low + (layer * (int64_t)dealt->rows + x->first) * dealt->width;
    bf16 *stacked = b->stacked + me->number * (int64_t)dealt->width * DOTS_COLUMNS;
    More more = {low, stacked, b->ranges + x->first / TILE_ROWS, dealt->width};
    lora_stack(u, dealt, layer, panel, stacked);
    await(me);
    multiply_panel(m, x, panel, &more, values);
    return;
  }
  lora_fetch_up(u, dealt, factor_size(d), layer, column, width);
  multiply_panel(m, x, panel, NULL, values);
  Tile tile = {values, columns, (int)x->first, x->count, column, width};
  await(me);
  if (d->dots)
    lora_up_tile_mixed(u, dealt, layer, &tile);
  else
    lora_up_tile_float(u, dealt, layer, &tile);
}

/* How the products of all rows with some panels are cut into tasks: blocks of rows, and stretches of panels. */
typedef struct {
  int stretch, stretches, most, tasks;
} Cut;

static Cut cut_products(const Decoder *d, int rows, int in, int panels, int threads) {
  int most = block_rows(rows, in, d->dots), blocks = PORTIONS(rows, most), some = stretch(panels, blocks, threads);
  int stretches = PORTIONS(panels, some);
  return (Cut){some, stretches, most, stretches * blocks};
}

static Rows rows_of(const Decoder *d, const Cut *cut, const void *x, int rows, int64_t task) {
  int64_t first = task / cut->stretches * cut->most;
  return (Rows){x, first, least((int)(rows - first), cut->most), d->dots, 1};
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
static void multiply_all(const Decoder *d, const Buffers *b, const void *x, int rows, int how,
                         const Product *products, int count, Adapted a, Member *me) {
  int panels = 0;
  for (int i = 0; i < count; i++) panels += panels_of(d, products[i].matrix);
  Cut cut = cut_products(d, rows, products->matrix->in, panels, me->threads);
  int downs = begin_updates(&a, b, me);
  float tile[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  EVERY_TASK(task, me, downs + cut.tasks) {
    if (task < downs) {
      multiply_down(d, a.own, b, x, task, me);
      continue;
    }
    int64_t own = task - downs;
    fetch_next(d, &a, b, own, cut.tasks);
    Rows some = rows_of(d, &cut, x, rows, own);
    for (int at = own % cut.stretches * cut.stretch, end = least(at + cut.stretch, panels); at < end; at++) {
      const Product *product = products;
      int panel = at;
      for (; panel >= panels_of(d, product->matrix); product++) panel -= panels_of(d, product->matrix);
      multiply_updated(d, product->matrix, &some, a.own, b, product - products, panel, tile, me);
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
      put_factor(d, b->gated, gated(d, g, u), x->first + r, d->inner, column + c, width - c);
    }
}

static void multiply_gated(const Decoder *d, const Layer *layer, const Step *s, const Buffers *b, Adapted a,
                           Member *me) {
  int panels = panels_of(d, &layer->gate); /* those of `up`, too */
  Cut cut = cut_products(d, s->rows, d->hidden, panels, me->threads);
  int downs = begin_updates(&a, b, me);
  float gate[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  float up[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
  EVERY_TASK(task, me, downs + cut.tasks) {
    if (task < downs) {
      multiply_down(d, a.own, b, b->normed, task, me);
      continue;
    }
    int64_t own = task - downs;
    fetch_next(d, &a, b, own, cut.tasks);
    Rows some = rows_of(d, &cut, b->normed, s->rows, own);
    for (int at = own % cut.stretches * cut.stretch, end = least(at + cut.stretch, panels); at < end; at++) {
      multiply_updated(d, &layer->gate, &some, a.own, b, 0, at, gate, me);
      multiply_updated(d, &layer->up, &some, a.own, b, 1, at, up, me);
      put_gated(d, layer, b, &some, at, gate, up);
    }
  }
  meet(me, downs + cut.tasks);
}

/* The same where one matrix has both. */
static void multiply_fused(const Decoder *d, const Layer *layer, const Step *s, const Buffers *b, Adapted a,
                           Member *me) {
  multiply_all(d, b, b->normed, s->rows, STORED, &(Product){&layer->gate, b->gate}, 1, a, me);
  int some = portion(s->rows, me->threads), tasks = PORTIONS(s->rows, some), n = d->inner;
  EVERY_TASK(task, me, tasks)
    for (int64_t t = task * some; t < least((task + 1) * some, s->rows); t++) {
      const float *gate = b->gate + t * 2 * n, *up = gate + n;
      for (int c = 0; c < n; c += LANES)
        put_factor(d, b->gated, gated(d, take_float(gate + c, n - c), take_float(up + c, n - c)), t, n, c, n - c);
    }
  meet(me, tasks);
}
