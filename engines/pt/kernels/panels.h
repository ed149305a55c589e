/* Rows of x times one panel of packed weights: a function for each layout. `tile` [rows][panel's columns] float32. A
 * row's result does not depend on the rows beside it. */
#pragma once
#include "tiles.h"

#define WIDENING_COLUMNS (2 * LANES)
#define DOTS_COLUMNS 32
#define QUANTIZED_COLUMNS 32
#define QUANTIZED_GROUP 256 /* the largest */
#define MOST_COLUMNS 32
#define AHEAD 4096 /* bytes: how far before its use a panel is fetched from memory */

typedef struct {
  int32_t begin, end;
} Range;

/* How integers stand for weights. */
typedef struct {
  int32_t bits;    /* 4 or 8; 16: the weights are bfloat16 values, and not integers */
  int32_t group;   /* inputs that share a scale: a multiple of 4 */
  int32_t zeros;   /* whether groups have zeros of their own; only of 4 bits */
  int32_t offsets; /* whether they have offsets */
} Grid;

void widening_product(const float *x, const bf16 *panel, int rows, int in, float *tile);
/* Rows of x lie `stride` values apart. `far`: the panel comes from memory, not from a cache. */
void dots_product(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, float *tile);
/* Add the same to sums of up to ADDED_ROWS rows, which lie `width` values apart. */
#define ADDED_ROWS 32
void dots_add(const bf16 *x, int stride, const bf16 *panel, int rows, int in, float *sums, int width);

/* Inputs behind the others of each row, and a panel of weights for them; `inputs` is a multiple of TILE_INPUTS. */
typedef struct {
  const bf16 *x;       /* [rows][inputs] */
  const bf16 *panel;   /* [inputs / 2][DOTS_COLUMNS][2] */
  const Range *ranges; /* of the inputs of TILE_ROWS rows after another: others are 0 */
  int inputs;
} More;

/* Where there are tiles; `more` may be NULL. */
void dots_by_tiles(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, const More *more,
                   float *tile);
void add_dots_by_tiles(const bf16 *x, int stride, const bf16 *panel, int rows, int in, float *sums, int width);
void quantized_dots(const Grid *grid, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile);
void add_by_tiles(const Grid *grid, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile); /* to the tile */
void quantized_widening(const Grid *grid, const float *x, const uint8_t *panel, int rows, int in, float *tile);
int has_quantized_dots(void);

int64_t quantized_panel(const Grid *grid, int in); /* bytes of a panel */
int64_t quantized_block(const Grid *grid);         /* and of what it has of a group: it begins with the scales */
void widen_group(const Grid *grid, const uint8_t *block, uint32_t *pairs); /* its values, [group / 2][columns] pairs */
