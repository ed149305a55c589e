/* dots_product and quantized_dots by tiles (tiles.h): panels of linear_dots.c are what the instruction takes, 16 columns
 * of 32 inputs a tile, and so are the widened groups of linear_quantized.c, of 16 inputs where the group has no more.
 *
 * Up to 32 rows times the panel's 32 columns are summed at once, in four tiles. Where rows do not fill the last tile it
 * begins earlier, and sums some of them a second time, to the same; only where they do not fill one is it less high.
 * Rows that are more meet the panel again, so that it is to stay in the first-level cache: they go past it, and take as
 * many inputs at a time as there is room for. Else it is the panel that is used once.
 */
#include "panels.h"
#include "tiles.h"

#if TILES

#define NR DOTS_COLUMNS
#define LINE (NR * (int)sizeof(float)) /* bytes of a row of sums, and of a pair of rows of weights */
#define KEPT_INPUTS 640                /* of a panel, 40 KiB of the 48 that the first-level cache has */

/* Rows times part of a panel, `depth` inputs in steps of `step`. */
typedef struct {
  const bf16 *panel;
  int64_t stride; /* values of x from row to row */
  int depth, step, fetches;
  int again; /* whether the panel is used again soon, and the rows are not */
} Part;

#define LOAD(number, from, stride, again)                                                                             \
  do {                                                                                                                \
    if (again)                                                                                                        \
      LOAD_TILE(number, from, stride);                                                                                \
    else                                                                                                              \
      STREAM_TILE(number, from, stride);                                                                              \
  } while (0)

static inline void fetch(const Part *part, int k) {
  if (!part->fetches) return;
  const char *next = (const char *)(part->panel + k * NR) + AHEAD;
  for (int line = 0; line < TILE_INPUTS * NR * (int)sizeof(bf16); line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
}

/* Add to the sums of the rows of one tile. */
static void add_one(const Part *part, const bf16 *x) {
  int64_t stride = part->stride * (int)sizeof(bf16);
  for (int k = 0; k < part->depth; k += part->step) {
    const bf16 *weights = part->panel + k * NR;
    fetch(part, k);
    LOAD(4, x + k, stride, !part->again);
    LOAD(6, weights, LINE, part->again);
    _tile_dpbf16ps(0, 4, 6);
    LOAD(7, weights + NR, LINE, part->again);
    _tile_dpbf16ps(1, 4, 7);
  }
}

/* To those of two. */
static void add_two(const Part *part, const bf16 *x, const bf16 *other) {
  int64_t stride = part->stride * (int)sizeof(bf16);
  for (int k = 0; k < part->depth; k += part->step) {
    const bf16 *weights = part->panel + k * NR;
    fetch(part, k);
    LOAD(4, x + k, stride, !part->again);
    LOAD(6, weights, LINE, part->again);
    _tile_dpbf16ps(0, 4, 6);
    LOAD(7, weights + NR, LINE, part->again);
    _tile_dpbf16ps(1, 4, 7);
    LOAD(5, other + k, stride, !part->again);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

/* Where rows of one tile or two begin; NULL: there is no second. */
static inline void add(const Part *part, const bf16 *x, const bf16 *other) {
  if (other == NULL)
    add_one(part, x);
  else
    add_two(part, x, other);
}

static inline void begin_sums(void) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* Sums from memory, and back, `line` bytes from row to row. */
static inline void load_sums(const float *from, const float *from_other, int64_t line) {
  LOAD_TILE(0, from, line);
  LOAD_TILE(1, from + NR / 2, line);
  if (from_other == NULL) return;
  LOAD_TILE(2, from_other, line);
  LOAD_TILE(3, from_other + NR / 2, line);
}
static inline void store_sums(float *to, float *to_other, int64_t line) {
  _tile_stored(0, to, line);
  _tile_stored(1, to + NR / 2, line);
  if (to_other == NULL) return;
  _tile_stored(2, to_other, line);
  _tile_stored(3, to_other + NR / 2, line);
}

/* Where the tiles of `rows` rows begin. */
typedef struct {
  int height, last;
} Tiles;

static Tiles tiles_of(int rows) {
  int height = least(rows, TILE_ROWS);
  return (Tiles){height, rows - height};
}

static Range both(Range one, Range other) {
  return (Range){least(one.begin, other.begin), one.end > other.end ? one.end : other.end};
}

/* To the sums of tiles that begin with rows `first` and `second`, what more inputs give: to each those that its rows
 * have. */
static void add_more(const More *more, int first, int second, int height) {
  const Range none = {more->inputs, 0}, *ranges = more->ranges;
  Range one = both(ranges[first / TILE_ROWS], ranges[(first + height - 1) / TILE_ROWS]);
  Range other = both(ranges[second / TILE_ROWS], ranges[(second + height - 1) / TILE_ROWS]);
  if (first == second) other = none;
  Range all = both(one, other);
  int64_t stride = more->inputs * (int64_t)sizeof(bf16);
  for (int64_t k = all.begin; k < all.end; k += TILE_INPUTS) {
    LOAD_TILE(6, more->panel + k * NR, LINE);
    LOAD_TILE(7, more->panel + k * NR + NR, LINE);
    if (k >= one.begin && k < one.end) {
      LOAD_TILE(4, more->x + (int64_t)first * more->inputs + k, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (k >= other.begin && k < other.end) {
      LOAD_TILE(5, more->x + (int64_t)second * more->inputs + k, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

void dots_by_tiles(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, const More *more,
                   float *tile) {
  Tiles tiles = tiles_of(rows);
  int again = rows > 2 * TILE_ROWS, blocks = again ? (in + KEPT_INPUTS - 1) / KEPT_INPUTS : 1;
  int block = (in / TILE_INPUTS + blocks - 1) / blocks * TILE_INPUTS;
  take_tiles(tiles.height, TILE_INPUTS);
  for (int at = 0; at < in; at += block)
    for (int r = 0; r < rows; r += 2 * TILE_ROWS) {
      int first = least(r, tiles.last), second = least(r + TILE_ROWS, tiles.last), two = first != second;
      int end = least(at + block, in), late = first < r; /* its rows are the tile's before, too: */
      if (late && end < in) continue;                    /* all inputs at the end, or they would take some twice */
      int begin = late ? 0 : at;
      float *to = tile + first * NR, *to_other = two ? tile + second * NR : NULL;
      Part part = {panel + begin * NR, stride, end - begin, TILE_INPUTS, far && r == 0, again};
      if (begin)
        load_sums(to, to_other, LINE);
      else
        begin_sums();
      add(&part, x + (int64_t)first * stride + begin, two ? x + (int64_t)second * stride + begin : NULL);
      if (more != NULL && end == in) add_more(more, first, second, tiles.height);
      store_sums(to, to_other, LINE);
    }
}

void add_dots_by_tiles(const bf16 *x, int stride, const bf16 *panel, int rows, int in, float *sums, int width) {
  Tiles tiles = tiles_of(rows);
  Part part = {panel, stride, in, TILE_INPUTS, 0, 0};
  float *other = tiles.last ? sums + (int64_t)tiles.last * width : NULL;
  int64_t line = width * (int64_t)sizeof(float);
  take_tiles(tiles.height, TILE_INPUTS);
  load_sums(sums, other, line); /* both before one is stored: rows that both have are added to once */
  add(&part, x, other == NULL ? NULL : x + (int64_t)tiles.last * stride);
  store_sums(sums, other, line);
}

/* Add sums to those of a row, times the columns' scales. */
static inline void add_scaled(const float *scales, const float *sums, float *to) {
  for (int c = 0; c < NR; c += 16)
    _mm512_storeu_ps(to + c, _mm512_fmadd_ps(_mm512_loadu_ps(scales + c), _mm512_loadu_ps(sums + c),
                                             _mm512_loadu_ps(to + c)));
}

void add_by_tiles(const Grid *g, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile) {
  bf16 widened[QUANTIZED_GROUP * NR] __attribute__((aligned(64)));
  float sums[2][TILE_ROWS * NR] __attribute__((aligned(64)));
  Tiles tiles = tiles_of(rows);
  int step = g->group % TILE_INPUTS ? TILE_INPUTS / 2 : TILE_INPUTS;
  Part part = {widened, in, g->group, step, 0, rows > 2 * TILE_ROWS};
  take_tiles(tiles.height, part.step);
  for (int k = 0; k < in; k += g->group, panel += quantized_block(g)) {
    widen_group(g, panel, (uint32_t *)widened);
    for (int r = 0; r < rows; r += 2 * TILE_ROWS) {
      int64_t first = least(r, tiles.last), second = least(r + TILE_ROWS, tiles.last);
      int two = first != second;
      begin_sums();
      add(&part, x + first * in + k, two ? x + second * in + k : NULL);
      store_sums(sums[0], two ? sums[1] : NULL, LINE);
      for (int row = r; row < least(r + TILE_ROWS, rows); row++)
        add_scaled((const float *)panel, sums[0] + (row - first) * NR, tile + row * NR);
      for (int row = r + TILE_ROWS; row < least(r + 2 * TILE_ROWS, rows); row++)
        add_scaled((const float *)panel, sums[1] + (row - second) * NR, tile + row * NR);
    }
  }
}

#else

void dots_by_tiles(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, const More *more,
                   float *tile) {}
void add_dots_by_tiles(const bf16 *x, int stride, const bf16 *panel, int rows, int in, float *sums, int width) {}
void add_by_tiles(const Grid *g, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile) {}

#endif
