/* Low-rank updates of a step's rows; lora.c says what the arrays are. */
#pragma once
#include "panels.h"

typedef bf16 mixed; /* x and matrices in bfloat16, results in float32 */

#define UPDATED_ROWS 16 /* of a block, at most */

typedef struct {
  const void *const *a, *const *b;
  const int32_t *ranks, *widths, *outs;
  int32_t layers, in, height;
} Updates;

/* A slot that rows of a step use, and where its products with A begin in a row of `low`. */
typedef struct {
  int32_t slot, place;
} Used;

typedef struct {
  const int32_t *slots, *order, *starts;
  const int32_t *ranks; /* [slots] the highest of any layer; only where there are places */
  int32_t *places; /* each block's in a row of `low`; NULL: all 0 */
  Used *used;      /* the slots; only where there are places */
  void *low;
  int32_t blocks, rows, width, num_used;
} Dealt;

/* The width of a row of `low` and, where there is room for them, the places in it, for all layers alike. `stacked`:
 * slots follow one another, so that a row has zeros where others have theirs, and no slot is in more tiles than it
 * needs. */
void lora_places(Dealt *d, int stacked);

/* Have the `part`-th of `parts` of all A, or some columns of all B of a layer, come nearer from memory while something
 * else is computed. `size` of a value in bytes: of 2, B lies in panels. */
void lora_fetch_down(const Updates *u, const Dealt *d, int size, int part, int parts);
void lora_fetch_up(const Updates *u, const Dealt *d, int size, int layer, int column, int width);

/* Where there are tiles: low[i] = a . x[i] for some of the `width` ranks that lie side by side, from `a` and `low` on. */
void lora_down_by_tiles(int count, const bf16 *const *x, const bf16 *a, int width, int ranks, int in, bf16 *const *low);

/* The products with A of all rows, in tasks. */
int lora_down_tasks(const Updates *u, const Dealt *d);
void lora_down_float(const Updates *u, const Dealt *d, const float *x, int task);
void lora_down_mixed(const Updates *u, const Dealt *d, const bf16 *x, int task);

/* Those with B, for some rows and columns of a layer. */
typedef struct {
  float *values; /* [rows][stride]: added to */
  int stride, row, rows, column, columns;
} Tile;
void lora_up_tile_float(const Updates *u, const Dealt *d, int layer, const Tile *tile);
void lora_up_tile_mixed(const Updates *u, const Dealt *d, int layer, const Tile *tile);

/* A panel of B of all slots that rows use, stacked as their products with A are: [width / 2][DOTS_COLUMNS][2]. */
void lora_stack(const Updates *u, const Dealt *d, int layer, int panel, bf16 *to);
