/* Products with A by tiles (tiles.h), for up to TILE_ROWS rows of x and as many ranks. A lies as panels of weights do,
 * [in / 2][width][2]: a tile reaches over into the next pair of its rows where it has less ranks, and what that gives is
 * left out. Sums are made in four parts, every fourth tile of inputs in each, for one has to wait for its last product. */
#include "lora.h"

#if TILES

#define PARTS 4
#define SOME 512 /* inputs that are gathered at once: PARTS tiles, or a multiple */

#define ADD(sum, rows, ranks, step)                                                                                   \
  if ((step) < steps) {                                                                                               \
    LOAD_TILE(rows, x + (step) * TILE_INPUTS, stride * (int)sizeof(bf16));                                            \
    LOAD_TILE(ranks, a + (int64_t)(step) * TILE_INPUTS * width, width * 2 * (int)sizeof(bf16));                       \
    _tile_dpbf16ps(sum, rows, ranks);                                                                                 \
  }

static void add(const bf16 *x, int64_t stride, const bf16 *a, int64_t width, int steps) {
  for (int step = 0; step < steps; step += PARTS) {
    ADD(0, 4, 6, step)
    ADD(1, 5, 7, step + 1)
    ADD(2, 4, 6, step + 2)
    ADD(3, 5, 7, step + 3)
  }
}

void lora_down_by_tiles(int count, const bf16 *const *x, const bf16 *a, int width, int ranks, int in, bf16 *const *low) {
  bf16 gathered[TILE_ROWS * SOME] __attribute__((aligned(64)));
  float sums[PARTS][TILE_ROWS * 16] __attribute__((aligned(64)));
  int beside = 1;
  for (int i = 1; i < count; i++) beside = beside && x[i] == x[0] + (int64_t)i * in;
  take_tiles(count, TILE_INPUTS);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (beside) add(x[0], in, a, width, in / TILE_INPUTS);
  for (int k = 0; k < in && !beside; k += SOME) {
    int some = least(in - k, SOME);
    for (int i = 0; i < count; i++) memcpy(gathered + i * SOME, x[i] + k, some * sizeof(bf16));
    add(gathered, SOME, a + (int64_t)k * width, width, some / TILE_INPUTS);
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (int i = 0; i < count; i++) {
    lanes all = (load_float(sums[0] + 16 * i) + load_float(sums[1] + 16 * i)) +
                (load_float(sums[2] + 16 * i) + load_float(sums[3] + 16 * i));
    put_bf16(all, low[i], ranks);
  }
}

#else

void lora_down_by_tiles(int count, const bf16 *const *x, const bf16 *a, int width, int ranks, int in, bf16 *const *low) {
}

#endif
