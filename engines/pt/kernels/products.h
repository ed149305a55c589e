/* Products of some rows of x with one panel of packed weights, in the layouts of linear.c, linear_dots.c and
 * linear_quantized.c. `tile` [rows][panel's columns] float32. A row's result does not depend on the rows beside it. */
#pragma once
#include "tiles.h"

#define PRODUCT_ROWS 256 /* at most, of what has a tile on the stack */
#define WIDENING_COLUMNS (2 * LANES)
#define DOTS_COLUMNS 32
#define QUANTIZED_COLUMNS 32
#define QUANTIZED_GROUP 256 /* the largest */
#define MOST_COLUMNS 32

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

typedef struct {
  const void *packed; /* NULL: no such matrix */
  const float *bias;  /* or NULL */
  int32_t in, out;
  Grid grid; /* what is packed: bfloat16 values, or integers */
} Matrix;

void widening_product(const float *x, const bf16 *panel, int rows, int in, float *tile);
/* Rows of x lie `stride` values apart. `far`: the panel comes from memory, not from a cache. */
void dots_product(const bf16 *x, int stride, const bf16 *panel, int rows, int in, int far, float *tile);

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
void quantized_dots(const Grid *grid, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile);
void add_by_tiles(const Grid *grid, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile); /* to the tile */
void quantized_widening(const Grid *grid, const float *x, const uint8_t *panel, int rows, int in, float *tile);
int has_quantized_dots(void);

int64_t quantized_panel(const Grid *grid, int in); /* bytes of a panel */
int64_t quantized_block(const Grid *grid);         /* and of what it has of a group: it begins with the scales */
void widen_group(const Grid *grid, const uint8_t *block, uint32_t *pairs); /* its values, [group / 2][columns] pairs */

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
