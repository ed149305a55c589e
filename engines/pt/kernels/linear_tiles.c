/* dots_product by tiles (tiles.h): linear_dots.c's panels are what the instruction takes, 16 columns of 32 inputs a tile.
 *
 * Up to 32 rows times the panel's 32 columns are summed at once, in four tiles. Rows that do not fill a tile are few
 * alone; among more than 16 the last tile begins earlier, and sums some rows a second time, to the same.
 */
#include "products.h"
#include "tiles.h"

#if TILES

#define NR DOTS_COLUMNS
#define LINE (NR * (int)sizeof(float)) /* of sums, and of pairs of weights */
#define AHEAD 4096 /* bytes: how far before its use a panel is fetched */

static inline void fetch(const bf16 *panel) {
  for (int line = 0; line < TILE_INPUTS * NR * (int)sizeof(bf16); line += 64)
    _mm_prefetch((const char *)panel + AHEAD + line, _MM_HINT_T0);
}

static void multiply_one(const bf16 *x, const bf16 *panel, int in, float *to, int fetches) {
  int64_t stride = (int64_t)in * sizeof(bf16);
  _tile_zero(0); _tile_zero(1);
  for (int k = 0; k < in; k += TILE_INPUTS, panel += TILE_INPUTS * NR) {
    if (fetches) fetch(panel);
    LOAD_TILE(4, x + k, stride);
    LOAD_TILE(6, panel, LINE);
    _tile_dpbf16ps(0, 4, 6);
    LOAD_TILE(7, panel + NR, LINE);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, to, LINE);
  _tile_stored(1, to + NR / 2, LINE);
}

static void multiply_two(const bf16 *const x[2], const bf16 *panel, int in, float *const to[2], int fetches) {
  int64_t stride = (int64_t)in * sizeof(bf16);
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int k = 0; k < in; k += TILE_INPUTS, panel += TILE_INPUTS * NR) {
    if (fetches) fetch(panel);
    LOAD_TILE(4, x[0] + k, stride);
    LOAD_TILE(6, panel, LINE);
    _tile_dpbf16ps(0, 4, 6);
    LOAD_TILE(7, panel + NR, LINE);
    _tile_dpbf16ps(1, 4, 7);
    LOAD_TILE(5, x[1] + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, to[0], LINE);
  _tile_stored(1, to[0] + NR / 2, LINE);
  _tile_stored(2, to[1], LINE);
  _tile_stored(3, to[1] + NR / 2, LINE);
}

void tiles_product(const bf16 *x, const bf16 *panel, int rows, int in, float *tile) {
  int height = rows < TILE_ROWS ? rows : TILE_ROWS, last = rows - height;
  take_tiles(height, TILE_INPUTS);
  for (int r = 0; r < rows; r += 2 * TILE_ROWS) {
    int first = r < last ? r : last, second = r + TILE_ROWS < last ? r + TILE_ROWS : last;
    const bf16 *from[] = {x + (int64_t)first * in, x + (int64_t)second * in};
    float *to[] = {tile + first * NR, tile + second * NR};
    if (first == second)
      multiply_one(from[0], panel, in, to[0], r == 0);
    else
      multiply_two(from, panel, in, to, r == 0);
  }
}

#else

void tiles_product(const bf16 *x, const bf16 *panel, int rows, int in, float *tile) {}

#endif
