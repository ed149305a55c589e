/* The part of lora.c that is compiled once for each type T of B where it lies in rows, and Y of the results. Where a
 * function is inlined, how many rows it takes is a constant: its sums stay in registers. */

/* y[i] += low[i] . b in one or two registers of columns, `n` of them in each. */
INLINED void OF(up_tile)(int registers, int n, int count, const float *const *low, const T *b, int rank, int out,
                         Y *const *y, int column) {
  lanes sum[2][ROWS];
  _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++)
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) sum[v][i] = OF_Y(take)(y[i] + column + v * LANES, n);
  for (int r = 0; r < rank; r++)
    _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) {
      lanes row = OF(take)(b + (int64_t)r * out + column + v * LANES, n);
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++)
          sum[v][i] = multiply_add(all_of(low[i][r]), row, sum[v][i]);
    }
  _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++)
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) OF_Y(put)(sum[v][i], y[i] + column + v * LANES, n);
}

INLINED void OF(up_rows)(int count, const float *const *low, const T *b, int rank, int out, Y *const *y, int columns) {
  int c = 0;
  for (; c + 2 * LANES <= columns; c += 2 * LANES) OF(up_tile)(2, LANES, count, low, b, rank, out, y, c);
  for (; c < columns; c += LANES)
    if (c + LANES <= columns)
      OF(up_tile)(1, LANES, count, low, b, rank, out, y, c);
    else
      OF(up_tile)(1, columns - c, count, low, b, rank, out, y, c);
}

static void OF(up)(int count, const float *const *low, const T *b, int rank, int out, int first, int columns,
                   Y *const *y) {
  b += first;
  switch (count) {
    case 1: OF(up_rows)(1, low, b, rank, out, y, columns); break;
    case 2: OF(up_rows)(2, low, b, rank, out, y, columns); break;
    case 3: OF(up_rows)(3, low, b, rank, out, y, columns); break;
    default: OF(up_rows)(4, low, b, rank, out, y, columns);
  }
}
