/* y += B A x for every row, with the low-rank matrices of the row's own adapter (batched LoRA, as Punica's SGMV:
 * Chen et al. 2023, arXiv:2310.18547), for all layers that get the same x in one call.
 *
 * x      [rows, in]                     float32 or bfloat16, as all matrices here
 * y      [layers] of [rows, outs[l]]    added to in float32, then rounded once; float32 where `mixed`
 * a      [slots, layers] of [rank, in]; as lora_tiles.c has them where `mixed` and there are tiles
 * b      [slots, layers] of [rank, outs[l]], transposed and scaled; where `mixed` in panels as linear_dots.c has them:
 *                                       [panels][rank / 2][PANEL][2], filled up with zeros
 * ranks  [slots, layers] int32          0: the adapter leaves this layer alone, and has no a and b there
 * widths [slots, layers] int32          as tiles take A: how many ranks lie side by side in it, of one layer or more
 * order, starts, blocks                 rows by adapter, from `deal_rows`
 * low    [layers, rows, width]          scratch for A x, of each row from its block's place on: float32, or bfloat16
 *                                       where `mixed`, for it is then multiplied with bfloat16
 *
 * A block is up to BLOCK rows with the same adapter, wherever they are: they share the reading of its matrices. First
 * come all products with A, RANKS of its rows a task, then all those with B, COLUMNS of its columns a task; so one row
 * keeps several cores busy. decoder.c adds those with B to the layer's own products, a panel's columns at a time, and
 * tiles take them with the products of all slots at once (`lora_stack`), as inputs of the layer behind its own. The sums
 * of a row are made in the same order whatever rows are beside it.
 */
#include "lora.h"
#include "typed.h"

#define BLOCK UPDATED_ROWS
#define ROWS 4 /* of a block that are computed at once */
#define RANKS 16
#define COLUMNS 512 /* a multiple of PANEL */
#define PANEL DOTS_COLUMNS
#define PIECES 8 /* of the A of a slot, which are fetched at once */
#define LINE 64  /* bytes */

/* Rows by slot as blocks: `order[starts[block]]` to `order[starts[block + 1] - 1]`. Behind the last block come the rows
 * without a slot (-1). Returns how many blocks there are; both arrays have room for rows + 1. */
int deal_rows(int rows, const int32_t *slots, int32_t *order, int32_t *starts) {
  int highest = -1, dealt = 0, blocks = 0, most = has_tiles() ? BLOCK : ROWS;
  for (int t = 0; t < rows; t++) highest = slots[t] > highest ? slots[t] : highest;
  for (int slot = 0; slot <= highest; slot++) {
    int first = dealt;
    for (int t = 0; t < rows; t++)
      if (slots[t] == slot) order[dealt++] = t;
    for (int at = first; at < dealt; at += most) starts[blocks++] = at;
  }
  starts[blocks] = dealt;
  for (int t = 0; t < rows; t++)
    if (slots[t] < 0) order[dealt++] = t;
  return blocks;
}

static inline int most(int x, int y) { return x > y ? x : y; }
static inline int tasks_of(int values, int size) { return (values + size - 1) / size; }
static inline int whole(int values, int size) { return tasks_of(values, size) * size; }

/* Blocks with the same adapter are neighbours. */
static inline int slot_of(const Dealt *d, int block) { return d->slots[d->order[d->starts[block]]]; }
static inline int begins_slot(const Dealt *d, int block) {
  return block == 0 || slot_of(d, block - 1) != slot_of(d, block);
}

void lora_places(Dealt *d, int stacked) {
  int width = 0, place = 0, used = 0;
  for (int block = 0; block < d->blocks; block++) {
    if (begins_slot(d, block)) {
      int slot = slot_of(d, block), rank = whole(d->ranks[slot], 2);
      if (stacked) place = width % TILE_INPUTS + rank > TILE_INPUTS ? whole(width, TILE_INPUTS) : width;
      width = most(width, place + rank);
      if (d->used != NULL) d->used[used] = (Used){slot, place};
      used++;
    }
    if (d->places != NULL) d->places[block] = place;
  }
  d->width = stacked ? whole(width, TILE_INPUTS) : width, d->num_used = used;
  if (d->places != NULL) d->places[d->blocks] = d->width;
}

/* Values as they are multiplied with A: bfloat16 ones in pairs where the machine has an instruction for it. */
#define WIDTH_float LANES
#define IN_PANELS_float 0
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
typedef factors_bf16 factors_mixed;
#define IN_PANELS_bf16 0
#define IN_PANELS_mixed 1

/* Columns of all layers, each from the start of a panel on. */
static inline int width_of(const Updates *u) {
  int columns = 0;
  for (int l = 0; l < u->layers; l++) columns += whole(u->outs[l], PANEL);
  return columns;
}
int lora_down_tasks(const Updates *u, const Dealt *d) { return d->blocks * tasks_of(u->height, RANKS); }

/* A block's rows, and what a layer adds to them. */
typedef struct {
  const int32_t *rows;
  int count, rank, width;
  const void *a, *b;
} Own;

static Own own_of(const Updates *u, const Dealt *d, int block, int layer) {
  int table = slot_of(d, block) * u->layers + layer, first = d->starts[block];
  return (Own){d->order + first, d->starts[block + 1] - first, u->ranks[table], u->widths[table], u->a[table],
               u->b[table]};
}

/* Where the products of a block's `row` with a layer's A are, among the values of `low`. */
static inline int64_t place_of(const Dealt *d, int block, int layer, int row) {
  return ((int64_t)layer * d->rows + row) * d->width + (d->places == NULL ? 0 : d->places[block]);
}

static void fetch(const char *matrix, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += 64) __builtin_prefetch(matrix + at, 0, 2);
}

/* Values of a panel of B. */
static inline int64_t panel_of(int rank) { return (int64_t)whole(rank, 2) * PANEL; }

/* Few slots at once, so that little time goes into where their matrices are. */
void lora_fetch_down(const Updates *u, const Dealt *d, int size, int part, int parts) {
  int64_t pieces = (int64_t)d->num_used * PIECES;
  for (int64_t piece = pieces * part / parts; piece < pieces * (part + 1) / parts; piece++)
    for (int layer = 0; layer < u->layers; layer++) {
      int table = d->used[piece / PIECES].slot * u->layers + layer;
      int64_t lines = tasks_of(size * u->in * u->ranks[table], 64), number = piece % PIECES;
      fetch(u->a[table], lines * number / PIECES * 64, lines * (number + 1) / PIECES * 64);
    }
}

/* Columns of B, in panels or in rows: a row's are far from those of the next, which the hardware does not foresee. */
static void fetch_columns(const void *b, int rank, int size, int in_panels, int out, int first, int columns) {
  int64_t panel = size * panel_of(rank);
  if (in_panels) fetch(b, first / PANEL * panel, tasks_of(first + columns, PANEL) * panel);
  for (int64_t r = 0; !in_panels && r < rank; r++)
    fetch(b, size * (r * out + first), size * (r * out + first + columns));
}

void lora_fetch_up(const Updates *u, const Dealt *d, int size, int layer, int column, int width) {
  for (int i = 0; i < d->num_used; i++) {
    int table = d->used[i].slot * u->layers + layer;
    fetch_columns(u->b[table], u->ranks[table], size, size == sizeof(bf16), u->outs[layer], column, width);
  }
}

/* Lines, up to `end`. */
static char *put_zeros(char *to, const char *end) {
  for (; to < end; to += LINE) memset(to, 0, LINE);
  return to;
}

void lora_stack(const Updates *u, const Dealt *d, int layer, int panel, bf16 *to) {
  char *at = (char *)to;
  for (int i = 0; i < d->num_used; i++) {
    int table = d->used[i].slot * u->layers + layer;
    int64_t bytes = panel_of(u->ranks[table]) * (int64_t)sizeof(bf16);
    const char *from = (const char *)u->b[table] + panel * bytes, *end = from + bytes;
    at = put_zeros(at, (const char *)(to + (int64_t)d->used[i].place * PANEL));
    for (; from < end; from += LINE, at += LINE) memcpy(at, from, LINE);
  }
  put_zeros(at, (const char *)(to + (int64_t)d->width * PANEL));
}

/* ---- what is added to each row's columns `first` to `first + columns` - 1, in y from 0 on */

#define T float
#define Y float
#include "lora_up.h"
#undef T
#undef Y
#define T bf16
#define Y bf16
#include "lora_up.h"
#undef T
#undef Y

/* sum += two products of each column: of a pair of values in `b`, and of one in `low`. */
static inline lanes add_pairs(const bf16 *b, const bf16 *low, lanes sum) {
  uint32_t both;
  memcpy(&both, low, sizeof both);
#if defined(__AVX512F__) && defined(__AVX512BF16__)
  __m512bh pairs = (__m512bh)_mm512_loadu_si512(b);
  return (lanes)_mm512_dpbf16_ps((__m512)sum, pairs, (__m512bh)_mm512_set1_epi32((int)both));
#else
  bits pairs, values = both - (bits){0};
  memcpy(&pairs, b, sizeof pairs);
  sum = multiply_add((lanes)(pairs << 16), (lanes)(values << 16), sum);
  return multiply_add((lanes)(pairs & 0xFFFF0000), (lanes)(values & 0xFFFF0000), sum);
#endif
}

/* y[i] += low[i] . b for one panel. */
INLINED void add_panel(int count, const bf16 *const *low, const bf16 *b, int rank, float *const *y) {
  for (int c = 0; c < PANEL; c += 2 * LANES) {
    lanes sum[2][ROWS];
    _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
        _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) sum[v][i] = load_float(y[i] + c + v * LANES);
    for (int r = 0; r < rank; r += 2)
      _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
          _Pragma("GCC unroll 4") for (int i = 0; i < count; i++)
              sum[v][i] = add_pairs(b + (int64_t)r * PANEL + 2 * (c + v * LANES), low[i] + r, sum[v][i]);
    _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++)
        _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) store_float(sum[v][i], y[i] + c + v * LANES);
  }
}

static void up_mixed(int count, const bf16 *const *low, const bf16 *b, int rank, int out, int first, int columns,
                     float *const *y) {
  float padded[ROWS][PANEL] = {0}, *own[ROWS];
  for (int c = 0; c < columns; c += PANEL) {
    const bf16 *panel = b + (first + c) / PANEL * panel_of(rank);
    int width = least(columns - c, PANEL);
    for (int i = 0; i < count; i++) {
      own[i] = width < PANEL ? padded[i] : y[i] + c;
      if (width < PANEL) memcpy(own[i], y[i] + c, sizeof(float) * width);
    }
    switch (count) {
      case 1: add_panel(1, low, panel, rank, own); break;
      case 2: add_panel(2, low, panel, rank, own); break;
      case 3: add_panel(3, low, panel, rank, own); break;
      default: add_panel(4, low, panel, rank, own);
    }
    for (int i = 0; i < count && width < PANEL; i++) memcpy(y[i] + c, own[i], sizeof(float) * width);
  }
}

/* Products of a block's rows with ranks `first` to `last` - 1 of A. */
typedef struct {
  const void *a;
  int width, in, first, last;
} Ranks;

static int takes_pairs(int in) { return has_tiles() && in % TILE_INPUTS == 0; }

static void down_mixed_any(int count, const bf16 *const *x, const Ranks *of, bf16 *const *low);
#define DOWN_float down_float
#define DOWN_bf16 down_bf16
#define DOWN_mixed down_mixed_any

static int down_together(const Updates *u, const Dealt *d, const bf16 *x, int block, int begin);
#define DOWN_TOGETHER_float(...) 0
#define DOWN_TOGETHER_bf16(...) 0
#define DOWN_TOGETHER_mixed down_together

/* Products with A, as they are kept. */
#define STORE_LOW_float store_float
#define STORE_LOW_bf16 store_float
#define STORE_LOW_mixed store_bf16

/* ---- all of it */

#define T float
#define LOW float
#define Y float
#include "lora_rows.h"
#undef T
#undef LOW
#undef Y
#define T bf16
#define LOW float
#define Y bf16
#include "lora_rows.h"
#undef T
#undef LOW
#undef Y
#define T mixed
#define LOW bf16
#define Y float
#include "lora_rows.h"

static void down_mixed_any(int count, const bf16 *const *x, const Ranks *of, bf16 *const *low) {
  if (takes_pairs(of->in))
    lora_down_by_tiles(count, x, (const bf16 *)of->a + 2 * of->first, of->width, of->last - of->first, of->in, low);
  else
    down_mixed(count, x, of, low);
}

/* RANKS ranks of several layers by one product of tiles, where their A lie side by side; 0 where they do not. */
static int down_together(const Updates *u, const Dealt *d, const bf16 *x, int block, int begin) {
  int all = 0, width = 0;
  const bf16 *a = NULL;
  if (!takes_pairs(u->in)) return 0;
  for (int l = 0; l < u->layers; l++) {
    Own own = own_of(u, d, block, l);
    if (own.rank == 0) continue;
    if (all == 0) a = own.a, width = own.width;
    if (own.a != a + 2 * all || own.width != width) return 0;
    all += own.rank;
  }
  if (begin >= all) return 1;
  const int32_t *rows = d->order + d->starts[block];
  int count = d->starts[block + 1] - d->starts[block];
  bf16 products[BLOCK][RANKS], *to[BLOCK];
  const bf16 *from[BLOCK];
  for (int i = 0; i < count; i++) from[i] = x + (int64_t)rows[i] * u->in, to[i] = products[i];
  lora_down_by_tiles(count, from, a + 2 * begin, width, least(all - begin, RANKS), u->in, to);
  for (int l = 0, at = 0; l < u->layers; l++) {
    int rank = own_of(u, d, block, l).rank, first = most(begin - at, 0), last = least(begin + RANKS - at, rank);
    for (int i = 0; i < count && first < last; i++) {
      bf16 *low = (bf16 *)d->low + place_of(d, block, l, rows[i]);
      memcpy(low + first, products[i] + at + first - begin, (last - first) * sizeof(bf16));
      if (last == rank && last % 2) low[last] = 0; /* with which the zeros of B make pairs */
    }
    at += rank;
  }
  return 1;
}

/* The rows of a block rise from one to the next. */
#define UP_TILE(T, LOW)                                                                                               \
  void lora_up_tile_##T(const Updates *u, const Dealt *d, int layer, const Tile *tile) {                              \
    for (int block = 0; block < d->blocks; block++) {                                                                 \
      Own own = own_of(u, d, block, layer);                                                                           \
      int end = tile->row + tile->rows, count = 0;                                                                    \
      if (own.rank == 0 || own.rows[0] >= end || own.rows[own.count - 1] < tile->row) continue;                       \
      const LOW *low[BLOCK];                                                                                          \
      float *to[BLOCK];                                                                                               \
      for (int i = 0; i < own.count; i++) {                                                                           \
        if (own.rows[i] < tile->row || own.rows[i] >= end) continue;                                                  \
        low[count] = (const LOW *)d->low + place_of(d, block, layer, own.rows[i]);                                    \
        to[count++] = tile->values + (int64_t)(own.rows[i] - tile->row) * tile->stride;                               \
      }                                                                                                               \
      for (int i = 0; i < count; i += ROWS)                                                                           \
        up_##T(least(count - i, ROWS), low + i, own.b, own.rank, u->outs[layer], tile->column, tile->columns, to + i); \
    }                                                                                                                 \
  }

UP_TILE(float, float)
UP_TILE(mixed, bf16)
