/* The part of lora.c that is compiled once for each type T, LOW of the products with A, and Y of the results. Where a
 * function is inlined, how many rows it takes is a constant: its sums stay in registers. */

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
INLINED void OF(down_tile)(int ranks, int count, int width, const T *const *x, const T *a, int in, LOW *const *low,
                           int first) {
  lanes sum[LANES] = {0};
  int k = 0;
  for (; k + OF(WIDTH) <= in; k += OF(WIDTH)) OF(multiply)(ranks, count, width, x, a, in, k, OF(WIDTH), sum);
  if (k < in) OF(multiply)(ranks, count, width, x, a, in, k, in - k, sum);
  LOW sums[LANES];
  OF(STORE_LOW)(sums_of(sum), sums);
  _Pragma("GCC unroll 16") for (int r = 0; r < ranks; r++)
      _Pragma("GCC unroll 4") for (int i = 0; i < count; i++) low[i][first + r] = sums[r * width + i];
}

/* As many rows of A at once as there are registers for, then half as many, and so on. */
INLINED void OF(down_rows)(int count, int width, const T *const *x, const T *a, int ranks, int in, LOW *const *low) {
  int r = 0;
  _Pragma("GCC unroll 5") for (int some = LANES / width; some >= 1; some /= 2)
    for (; r + some <= ranks; r += some)
      OF(down_tile)(some, count, width, x, a + (int64_t)r * in, in, low, r);
}

static void OF(down)(int all, const T *const *x, const Ranks *of, LOW *const *low) {
  int in = of->in, ranks = of->last - of->first;
  const T *a = (const T *)of->a + (int64_t)of->first * in;
  for (int64_t k = 0; k < (int64_t)ranks * in; k += 64 / (int)sizeof(T)) __builtin_prefetch(a + k);
  for (int i = 0; i < all; i += ROWS, x += ROWS, low += ROWS)
    switch (all - i) {
      case 1: OF(down_rows)(1, 1, x, a, ranks, in, low); break;
      case 2: OF(down_rows)(2, 2, x, a, ranks, in, low); break;
      case 3: OF(down_rows)(3, 4, x, a, ranks, in, low); break;
      default: OF(down_rows)(4, 4, x, a, ranks, in, low);
    }
}

/* RANKS rows of A, of all layers one after another, for one block of rows. */
void OF(lora_down)(const Updates *u, const Dealt *d, const T *x, int task) {
  int each = tasks_of(u->height, RANKS), block = task / each, begin = task % each * RANKS;
  if (OF(DOWN_TOGETHER)(u, d, x, block, begin)) return;
  for (int l = 0, at = 0; l < u->layers; l++) {
    Own own = own_of(u, d, block, l);
    int first = most(begin - at, 0), last = least(begin + RANKS - at, own.rank);
    at += own.rank;
    if (first >= last) continue;
    const T *from[BLOCK];
    LOW *low[BLOCK];
    for (int i = 0; i < own.count; i++) {
      from[i] = x + (int64_t)own.rows[i] * u->in;
      low[i] = (LOW *)d->low + place_of(d, block, l, own.rows[i]) + first;
      if (last == own.rank && last % 2) low[i][last - first] = 0; /* with which the zeros of B make pairs */
    }
    Ranks ranks = {own.a, own.width, u->in, first, last};
    OF(DOWN)(own.count, from, &ranks, low);
  }
}

/* COLUMNS columns of B, of all layers one after another, for one block of rows. */
static void OF(lora_up)(const Updates *u, const Dealt *d, Y *const *y, int task) {
  int each = tasks_of(width_of(u), COLUMNS), block = task / each, begin = task % each * COLUMNS;
  for (int l = 0, at = 0; l < u->layers; at += whole(u->outs[l++], PANEL)) {
    int first = most(begin - at, 0), last = least(begin + COLUMNS - at, u->outs[l]);
    Own own = own_of(u, d, block, l);
    if (first >= last || own.rank == 0) continue;
    fetch_columns(own.b, own.rank, sizeof(T), OF(IN_PANELS), u->outs[l], first, last - first);
    const LOW *low[BLOCK];
    Y *to[BLOCK];
    for (int i = 0; i < own.count; i++) {
      low[i] = (const LOW *)d->low + place_of(d, block, l, own.rows[i]);
      to[i] = y[l] + (int64_t)own.rows[i] * u->outs[l] + first;
    }
    for (int i = 0; i < own.count; i += ROWS)
      OF(up)(least(own.count - i, ROWS), low + i, own.b, own.rank, u->outs[l], first, last - first, to + i);
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
    leave_tiles();
  }
}
