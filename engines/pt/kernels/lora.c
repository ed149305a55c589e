/* y += B A x for every row, with the low-rank matrices of the row's own adapter (batched LoRA, as Punica's SGMV:
 * Chen et al. 2023, arXiv:2310.18547), for all layers that get the same x in one call.
 *
 * x      [rows, in]                     float32 or bfloat16, as all matrices here
 * y      [layers] of [rows, outs[l]]    added to in float32, then rounded once; float32 where `mixed`
 * a      [slots, layers] of [rank, in]
 * b      [slots, layers] of [rank, outs[l]], transposed and scaled
 * ranks  [slots, layers] int32          0: the adapter leaves this layer alone, and has no a and b there
 * order, starts, blocks                 rows by adapter, from `deal_rows`
 * low    [rows, height] float32         scratch for A x, in that order; no slot's ranks add up to more than `height`
 *
 * A block is up to ROWS rows with the same adapter, wherever they are: they share the reading of its matrices. First
 * come all products with A, RANKS of its rows a task, then all those with B, COLUMNS of its columns a task; so one row
 * keeps several cores busy. decoder.c adds those with B to the layer's own products, a panel's columns at a time. The
 * sums of a row are made in the same order whatever rows are beside it.
 */
#include "lora.h"
#include "typed.h"

#define ROWS UPDATED_ROWS
#define RANKS 16
#define COLUMNS 512

/* Rows by slot as blocks: `order[starts[block]]` to `order[starts[block + 1] - 1]`. Behind the last block come the rows
 * without a slot (-1). Returns how many blocks there are; both arrays have room for rows + 1. */
int deal_rows(int rows, const int32_t *slots, int32_t *order, int32_t *starts) {
  int highest = -1, dealt = 0, blocks = 0;
  for (int t = 0; t < rows; t++) highest = slots[t] > highest ? slots[t] : highest;
  for (int slot = 0; slot <= highest; slot++) {
    int first = dealt;
    for (int t = 0; t < rows; t++)
      if (slots[t] == slot) order[dealt++] = t;
    for (int at = first; at < dealt; at += ROWS) starts[blocks++] = at;
  }
  starts[blocks] = dealt;
  for (int t = 0; t < rows; t++)
    if (slots[t] < 0) order[dealt++] = t;
  return blocks;
}

static inline int least(int x, int y) { return x < y ? x : y; }
static inline int most(int x, int y) { return x > y ? x : y; }

/* Values as they are multiplied with A: bfloat16 ones in pairs where the machine has an instruction for it. */
#define WIDTH_float LANES
typedef lanes factors_float;
#define FACTORS_float load_float
#define ADD_PRODUCT_float multiply_add

#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define WIDTH_bf16 32
typedef __m512i factors_bf16;
#define FACTORS_bf16(p) _mm512_loadu_si512(p)
#define ADD_PRODUCT_bf16(x, y, sum) (lanes)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(x), (__m512bh)(y))
#else
#define WIDTH_bf16 LANES
typedef lanes factors_bf16;
#define FACTORS_bf16 load_bf16
#define ADD_PRODUCT_bf16 multiply_add
#endif

#define WIDTH_mixed WIDTH_bf16
#define FACTORS_mixed FACTORS_bf16
#define ADD_PRODUCT_mixed ADD_PRODUCT_bf16
#define take_mixed take_bf16
typedef factors_bf16 factors_mixed;

static inline int tasks_of(int values, int size) { return (values + size - 1) / size; }
static inline int width_of(const Updates *u) {
  int columns = 0;
  for (int l = 0; l < u->layers; l++) columns += u->outs[l];
  return columns;
}
int lora_down_tasks(const Updates *u, const Dealt *d) { return d->blocks * tasks_of(u->height, RANKS); }

/* A block's rows, and what a layer adds to them. */
typedef struct {
  const int32_t *rows;
  int count, rank;
  const void *b;
  const float *low; /* [count][height]: the products with the layer's A */
} Own;

static Own own_of(const Updates *u, const Dealt *d, int block, int layer) {
  const int32_t *rows = d->order + d->starts[block];
  int table = d->slots[rows[0]] * u->layers, before = 0;
  for (int l = 0; l < layer; l++) before += u->ranks[table + l];
  return (Own){rows, d->starts[block + 1] - d->starts[block], u->ranks[table + layer], u->b[table + layer],
               d->low + (int64_t)d->starts[block] * u->height + before};
}

static void fetch(const char *matrix, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += 64) __builtin_prefetch(matrix + at, 0, 2);
}

/* Blocks with the same adapter are neighbours. */
#define EVERY_SLOT(slot, d)                                                                                           \
  for (int block = 0, slot, before = -1; block < (d)->blocks; before = slot, block++)                                 \
    if ((slot = (d)->slots[(d)->order[(d)->starts[block]]]) != before)

void lora_fetch_down(const Updates *u, const Dealt *d, int size, int part, int parts) {
  EVERY_SLOT(slot, d)
    for (int table = slot * u->layers; table < (slot + 1) * u->layers; table++) {
      int64_t lines = tasks_of(size * u->in * u->ranks[table], 64);
      fetch(u->a[table], lines * part / parts * 64, lines * (part + 1) / parts * 64);
    }
}

void lora_fetch_up(const Updates *u, const Dealt *d, int size, int layer, int column, int width) {
  EVERY_SLOT(slot, d) {
    int table = slot * u->layers + layer;
    for (int64_t r = 0; r < u->ranks[table]; r++) {
      int64_t begin = size * (r * u->outs[layer] + column);
      fetch(u->b[table], begin, begin + size * width);
    }
  }
}

#define T float
#define Y float
#include "lora_rows.h"
#undef T
#undef Y
#define T bf16
#define Y bf16
#include "lora_rows.h"
#undef T
#undef Y
#define T mixed
#define Y float
#include "lora_rows.h"

/* The rows of a block rise from one to the next. */
#define UP_TILE(NAME, T, UP)                                                                                          \
  void NAME(const Updates *u, const Dealt *d, int layer, const Tile *tile) {                                          \
    for (int block = 0; block < d->blocks; block++) {                                                                 \
      int end = tile->row + tile->rows, first = 0, count = 0;                                                         \
      if (d->order[d->starts[block]] >= end || d->order[d->starts[block + 1] - 1] < tile->row) continue;              \
      Own own = own_of(u, d, block, layer);                                                                           \
      float *to[ROWS];                                                                                                \
      while (own.rows[first] < tile->row) first++;                                                                    \
      for (int i = first; i < own.count && own.rows[i] < end; i++)                                                    \
        to[count++] = tile->values + (int64_t)(own.rows[i] - tile->row) * tile->stride;                               \
      if (count > 0 && own.rank > 0)                                                                                  \
        UP(count, own.low + (int64_t)first * u->height, u->height, (const T *)own.b + tile->column, own.rank,         \
           u->outs[layer], to, tile->columns);                                                                        \
    }                                                                                                                 \
  }

UP_TILE(lora_up_tile_float, float, up_float)
UP_TILE(lora_up_tile_mixed, mixed, up_mixed)
