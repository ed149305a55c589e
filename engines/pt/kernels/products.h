/* Products of up to PRODUCT_ROWS rows of x with one panel of packed weights, in the layouts of linear.c,
 * linear_dots.c and linear_quantized.c. `tile` [rows][panel's columns] float32. A row's result does not depend on the
 * rows beside it. */
#pragma once
#include "lanes.h"

#define PRODUCT_ROWS 64
#define WIDENING_COLUMNS (2 * LANES)
#define DOTS_COLUMNS 32
#define QUANTIZED_COLUMNS 32
#define QUANTIZED_GROUP 256 /* the largest */
#define MOST_COLUMNS 32

/* How integers stand for weights. */
typedef struct {
  int32_t bits;    /* 4 or 8; 16: the weights are bfloat16 values, and not integers */
  int32_t group;   /* inputs that share a scale: a multiple of 4 */
  int32_t zeros;   /* whether groups have zeros of their own; only of 4 bits */
  int32_t offsets; /* whether they have offsets */
} Grid;

void widening_product(const float *x, const bf16 *panel, int rows, int in, float *tile);
void dots_product(const bf16 *x, const bf16 *panel, int rows, int in, float *tile);
void tiles_product(const bf16 *x, const bf16 *panel, int rows, int in, float *tile); /* where has_tiles() */
void quantized_dots(const Grid *grid, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile);
void quantized_widening(const Grid *grid, const float *x, const uint8_t *panel, int rows, int in, float *tile);
int64_t quantized_panel(const Grid *grid, int in); /* bytes of a panel */
int has_quantized_dots(void);
