/* Low-rank updates of a step's rows; lora.c says what the arrays are. */
#pragma once
#include "lanes.h"

typedef bf16 mixed; /* x and matrices in bfloat16, results in float32 */

#define UPDATED_ROWS 4 /* of a block, at most */

typedef struct {
  const void *const *a, *const *b;
  const int32_t *ranks, *outs;
  int32_t layers, in, height;
} Updates;

typedef struct {
  const int32_t *slots, *order, *starts;
  int32_t blocks;
  float *low;
} Dealt;

/* Have the `part`-th of `parts` of all A, or some columns of all B of a layer, come nearer from memory while something
 * else is computed. `size` of a value in bytes. */
void lora_fetch_down(const Updates *u, const Dealt *d, int size, int part, int parts);
void lora_fetch_up(const Updates *u, const Dealt *d, int size, int layer, int column, int width);

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
