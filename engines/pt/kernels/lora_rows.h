/* The part of lora.c that is compiled once for each type T, and Y of the results. Where a function is inlined, how many rows it takes is a
 * constant: its sums stay in registers. */
#define INLINED static inline __attribute__((always_inline))

/* The next `n` values for a product with A, filled up with zeros. */
INLINED OF(factors) OF(factors_of)(const T *p, int n) {
  if (n == OF(WIDTH)) return OF(FACTORS)(p);
  T padded[OF(WIDTH)] = {0};
  memcpy(padded, p, sizeof(T) * n);
  return OF(FACTORS)(padded);
}

/* sum[r * width + i] += a[r] . x[i] over `n` values. */
INLINED void OF(multiply)(int ranks, int count, int width, const T *const *x, const T *a, int in, int k, int n,
                          lanes *sum) {
  OF(factors) values[ROWS];
  _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) values[i] = OF(factors_of)(x[i] + k, n);
  _Pragma("GCC unroll 16") for (int r = 0; r < ranks; r++) {
    OF(factors) row = OF(factors_of)(a + (int64_t)r * in + k, n);
    _Pragma("GCC unroll 4") for (int i = 0; i < count; i++)
        sum[r * width + i] = OF(ADD_PRODUCT)(row, values[i], sum[r * width + i]);
  }
}

/* low[i][r] = a[r] . x[i] for `ranks` rows of A, up to `width` rows of x: together as many sums as a register has lanes,
 * or fewer. */
INLINED void OF(down_tile)(int ranks, int count, int width, const T *const *x, const T *a, int in, float *low,
                           int height) {
  lanes sum[LANES] = {0};
  int k = 0;
  for (; k + OF(WIDTH) <= in; k += OF(WIDTH)) OF(multiply)(ranks, count, width, x, a, in, k, OF(WIDTH), sum);
  if (k < in) OF(multiply)(ranks, count, width, x, a, in, k, in - k, sum);
  lanes sums = sums_of(sum);
  _Pragma("GCC unroll 16") for (int r = 0; r < ranks; r++)
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) low[(int64_t)i * height + r] = sums[r * width + i];
}

/* As many rows of A at once as there are registers for, then half as many, and so on. */
INLINED void OF(down_rows)(int count, int width, const T *const *x, const T *a, int ranks, int in, float *low,
                           int height) {
  int r = 0;
  _Pragma("GCC unroll 5") for (int some = LANES / width; some >= 1; some /= 2)
    for (; r + some <= ranks; r += some)
      OF(down_tile)(some, count, width, x, a + (int64_t)r * in, in, low + r, height);
}

static void OF(down)(int count, const T *const *x, const T *a, int ranks, int in, float *low, int height) {
  for (int64_t k = 0; k < (int64_t)ranks * in; k += 64 / (int)sizeof(T)) __builtin_prefetch(a + k);
  switch (count) {
    case 1: OF(down_rows)(1, 1, x, a, ranks, in, low, height); break;
    case 2: OF(down_rows)(2, 2, x, a, ranks, in, low, height); break;
    case 3: OF(down_rows)(3, 4, x, a, ranks, in, low, height); break;
    default: OF(down_rows)(4, 4, x, a, ranks, in, low, height);
  }
}

/* y[i] += low[i] . b in one or two registers of columns, `n` of them in each. */
INLINED void OF(up_tile)(int registers, int n, int count, const float *low, int height, const T *b, int rank, int out,
                         Y *const *y, int column) {
  lanes sum[2][ROWS];
  _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++)
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) sum[v][i] = OF_Y(take)(y[i] + column + v * LANES, n);
  for (int r = 0; r < rank; r++)
    _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) {
      lanes row = OF(take)(b + (int64_t)r * out + column + v * LANES, n);
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++)
          sum[v][i] = multiply_add(low[(int64_t)i * height + r] - (lanes){0}, row, sum[v][i]);
    }
  _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++)
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) OF_Y(put)(sum[v][i], y[i] + column + v * LANES, n);
}

INLINED void OF(up_rows)(int count, const float *low, int height, const T *b, int rank, int out, Y *const *y,
                         int columns) {
  int c = 0;
  for (; c + 2 * LANES <= columns; c += 2 * LANES) OF(up_tile)(2, LANES, count, low, height, b, rank, out, y, c);
  for (; c < columns; c += LANES)
    if (c + LANES <= columns)
      OF(up_tile)(1, LANES, count, low, height, b, rank, out, y, c);
    else
      OF(up_tile)(1, columns - c, count, low, height, b, rank, out, y, c);
}

/* y[i] += low[i] . b in `columns` columns of B, whose rows have `out`. */
static void OF(up)(int count, const float *low, int height, const T *b, int rank, int out, Y *const *y, int columns) {
  switch (count) {
    case 1: OF(up_rows)(1, low, height, b, rank, out, y, columns); break;
    case 2: OF(up_rows)(2, low, height, b, rank, out, y, columns); break;
    case 3: OF(up_rows)(3, low, height, b, rank, out, y, columns); break;
    default: OF(up_rows)(4, low, height, b, rank, out, y, columns);
  }
}

/* RANKS rows of A, of all layers one after another, for one block of rows. */
void OF(lora_down)(const Updates *u, const Dealt *d, const T *x, int task) {
  int each = tasks_of(u->height, RANKS), block = task / each, begin = task % each * RANKS;
  const int32_t *own = d->order + d->starts[block];
  int count = d->starts[block + 1] - d->starts[block], first_table = d->slots[own[0]] * u->layers;
  const T *from[ROWS];
  for (int i = 0; i < count; i++) from[i] = x + (int64_t)own[i] * u->in;
  for (int l = 0, at = 0; l < u->layers; at += u->ranks[first_table + l++]) {
    int first = most(begin - at, 0), last = least(begin + RANKS - at, u->ranks[first_table + l]);
    if (first < last)
      OF(down)(count, from, (const T *)u->a[first_table + l] + (int64_t)first * u->in, last - first, u->in,
               d->low + (int64_t)d->starts[block] * u->height + at + first, u->height);
  }
}

/* COLUMNS columns of B, of all layers one after another, for one block of rows. */
static void OF(lora_up)(const Updates *u, const Dealt *d, Y *const *y, int task) {
  int each = tasks_of(width_of(u), COLUMNS), block = task / each, begin = task % each * COLUMNS;
  for (int l = 0, at = 0; l < u->layers; at += u->outs[l++]) {
    int first = most(begin - at, 0), last = least(begin + COLUMNS - at, u->outs[l]);
    Own own = own_of(u, d, block, l);
    if (first >= last || own.rank == 0) continue;
    const T *b = (const T *)own.b + first;
    /* A tile's columns of one row of B are far from those of the next, which the hardware does not foresee. */
    for (int r = 0; r < own.rank; r++)
      for (int c = 0; c < last - first; c += 64 / (int)sizeof(T)) __builtin_prefetch(b + (int64_t)r * u->outs[l] + c);
    Y *to[ROWS];
    for (int i = 0; i < own.count; i++) to[i] = y[l] + (int64_t)own.rows[i] * u->outs[l] + first;
    OF(up)(own.count, own.low, u->height, b, own.rank, u->outs[l], to, last - first);
  }
}

void OF(lora_add)(const T *x, Y *const *y, const Updates *u, const Dealt *d) {
  int downs = lora_down_tasks(u, d), ups = d->blocks * tasks_of(width_of(u), COLUMNS);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < downs; task++) OF(lora_down)(u, d, x, task);
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < ups; task++) OF(lora_up)(u, d, y, task);
  }
}
#undef INLINED
