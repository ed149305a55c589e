/* Products of some rows of x with one panel of a matrix, whatever its layout (panels.h). */
#pragma once
#include "panels.h"

#define PRODUCT_ROWS 256 /* at most, of what has a tile on the stack */

typedef struct {
  const void *packed; /* NULL: no such matrix */
  const float *bias;  /* or NULL */
  int32_t in, out;
  Grid grid; /* what is packed: bfloat16 values, or integers */
} Matrix;

static inline int columns_of(const Matrix *m, int dots) {
  return m->grid.bits < 16 ? QUANTIZED_COLUMNS : dots ? DOTS_COLUMNS : WIDENING_COLUMNS;
}

/* Rows of x that are multiplied with one panel after another, as many of them in each block: they are to stay in the
 * second-level cache, as the panel does while it is multiplied with them. */
static inline int block_rows(int64_t rows, int in, int dots) {
  int64_t most = (1 << 20) / (in * (int64_t)(dots ? sizeof(bf16) : sizeof(float))) / 32 * 32;
  most = most < 64 ? 64 : most > PRODUCT_ROWS ? PRODUCT_ROWS : most;
  int64_t blocks = (rows + most - 1) / most;
  return rows <= most ? (int)rows : (int)(((rows + blocks - 1) / blocks + 31) / 32 * 32);
}

/* Rows of x: bfloat16 where `dots`. */
typedef struct {
  const void *x;
  int64_t first;
  int count, dots;
  int far; /* the panel comes from memory, and not from a cache */
} Rows;

/* Whether a matrix is multiplied by tiles with nothing done to its weights before. */
static inline int takes_tiles(const Matrix *m, int dots) {
  return dots && m->grid.bits == 16 && m->in % TILE_INPUTS == 0 && has_tiles();
}

/* Panel number `panel` of a matrix times rows of x. `more`, which only a matrix that takes tiles has, may be NULL. */
static inline void multiply_panel(const Matrix *m, const Rows *of, int panel, const More *more, float *tile) {
  int dots = of->dots, rows = of->count;
  const void *x = of->x;
  int64_t first = of->first;
  const bf16 *narrow = (const bf16 *)x + first * m->in;
  const float *wide = (const float *)x + first * m->in;
  const bf16 *plain = (const bf16 *)m->packed + (int64_t)panel * columns_of(m, dots) * m->in;
  if (more != NULL)
    dots_by_tiles(narrow, m->in, plain, rows, m->in, of->far, more, tile);
  else if (m->grid.bits == 16 && dots)
    dots_product(narrow, m->in, plain, rows, m->in, of->far, tile);
  else if (m->grid.bits == 16)
    widening_product(wide, plain, rows, m->in, tile);
  else {
    const uint8_t *integers = (const uint8_t *)m->packed + panel * quantized_panel(&m->grid, m->in);
    if (dots)
      quantized_dots(&m->grid, narrow, integers, rows, m->in, tile);
    else
      quantized_widening(&m->grid, wide, integers, rows, m->in, tile);
  }
}
