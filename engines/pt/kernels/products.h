/* Products of up to PRODUCT_ROWS rows of x with one panel of packed weights, in the two layouts of linear.c and
 * linear_dots.c. `tile` [rows][panel's columns] float32. A row's result does not depend on the rows beside it. */
#pragma once
#include "lanes.h"

#define PRODUCT_ROWS 66
#define WIDENING_COLUMNS (2 * LANES)
#define DOTS_COLUMNS 32
#define MOST_COLUMNS 32

void widening_product(const float *x, const bf16 *panel, int rows, int in, float *tile);
void dots_product(const bf16 *x, const bf16 *panel, int rows, int in, float *tile);
