/* y = x W^T + b on a CPU, sums and y in float32, for every kind of weights (linear.c, linear_dots.c, linear_quantized.c).
 *
 * x       [rows, in]    float32, or bfloat16 where `dots`
 * w       W as it is packed
 * bias    [out] float32, or NULL
 * y       [rows, out]   float32
 *
 * A task is one panel of W times a block of rows.
 */
#include "products.h"
#include "tiles.h"

void linear(const Grid *grid, int dots, const void *x, const void *w, const float *bias, float *y, int64_t rows, int in,
            int out) {
  Matrix m = {w, bias, in, out, *grid};
  int columns = columns_of(&m, dots), most = block_rows(rows, in, dots);
  int64_t panels = (out + columns - 1) / columns, blocks = rows ? (rows + most - 1) / most : 0;
#pragma omp parallel
  {
    float tile[PRODUCT_ROWS * MOST_COLUMNS] __attribute__((aligned(64)));
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < panels * blocks; task++) {
      int64_t first = task / panels * most, column = task % panels * columns;
      int height = rows - first < most ? (int)(rows - first) : most;
      int width = out - column < columns ? (int)(out - column) : columns;
      multiply_panel(&m, &(Rows){x, first, height, dots, .far = 1}, (int)(task % panels), NULL, tile);
      for (int r = 0; r < height; r++)
        for (int c = 0; c < width; c++)
          y[(first + r) * out + column + c] = tile[r * columns + c] + (bias ? bias[column + c] : 0.0f);
    }
    leave_tiles();
  }
}
