/* attend_chunk on any machine; compiled once for each type T of the cache. LANES keys at a time are used for all tokens
 * while they are in the cache of the core. Values of a cache in bfloat16 are widened, those in 8 bits are float32.
 */

#ifndef HEADS
#define HEADS 4 /* query heads whose sums are held in registers at once */
#endif

/* The rows of LANES keys. Heads that do not fill whole registers are copied to `copies`, filled up with zeros. */
INLINED void OF(rows_at)(const int64_t *places_of_keys, const T *from, int dim, T *copies, const T *rows[LANES]) {
  for (int j = 0; j < LANES; j++) {
    const T *row = from + places_of_keys[j];
    if (dim % LANES) {
      T *copy = copies + j * padded(dim);
      memcpy(copy, row, sizeof(T) * dim);
      memset(copy + dim, 0, sizeof(T) * (padded(dim) - dim));
      row = copy;
    }
    rows[j] = row;
  }
}

/* The same of a cache in 8 bits. */
INLINED void OF(restored_at)(int kept, const int64_t *places_of_keys, const uint8_t *from, const float *scales, int dim,
                             float *copies, const T *rows[LANES]) {
  for (int j = 0; j < LANES; j++) {
    float *copy = copies + j * padded(dim);
    for (int d = 0; d < padded(dim); d += LANES)
      store_float(d < dim ? take_eights(kept, from + places_of_keys[j] + d, dim - d) * scales[j] : (lanes){0}, copy + d);
    rows[j] = (const T *)copy;
  }
}

INLINED void OF(kept_at)(const Head *head, const int64_t *places_of_keys, const void *from, const float *scales, int dim,
                         void *copies, const T *rows[LANES]) {
  if (sizeof(T) != sizeof(float) || head->kept == AS_IS)
    OF(rows_at)(places_of_keys, from, dim, copies, rows);
  else if (head->kept == INT8)
    OF(restored_at)(INT8, places_of_keys, from, scales, dim, copies, rows);
  else
    OF(restored_at)(E4M3, places_of_keys, from, scales, dim, copies, rows);
}

INLINED lanes OF(scores_of)(const float *query, const T *const rows[LANES], int dim) {
  lanes sum[LANES];
  _Pragma("GCC unroll 16") for (int j = 0; j < LANES; j++) sum[j] = (lanes){0};
  for (int d = 0; d < dim; d += LANES)
    _Pragma("GCC unroll 16") for (int j = 0; j < LANES; j++)
        sum[j] = multiply_add(load_float(query + d), OF(load)(rows[j] + d), sum[j]);
  return sums_of(sum);
}

/* sums[g][d] += weights[g][j] * values[j][d] for some heads and registers of d, over j from `begin` on. */
INLINED void OF(add_values)(int heads, int registers, const float *weights, const T *const *rows, int begin, int end, int column,
                            float *sums, int width) {
  lanes sum[HEADS][4];
  _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
      _Pragma("GCC unroll 4") for (int i = 0; i < registers; i++)
          sum[g][i] = load_float(sums + g * width + column + i * LANES);
  for (int j = begin; j < end; j++) {
    lanes value[4];
    _Pragma("GCC unroll 4") for (int i = 0; i < registers; i++) value[i] = OF(load)(rows[j] + column + i * LANES);
    _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++) {
      lanes weight = all_of(weights[g * CHUNK + j]);
      _Pragma("GCC unroll 4") for (int i = 0; i < registers; i++)
          sum[g][i] = multiply_add(weight, value[i], sum[g][i]);
    }
  }
  _Pragma("GCC unroll 4") for (int g = 0; g < heads; g++)
      _Pragma("GCC unroll 4") for (int i = 0; i < registers; i++)
          store_float(sum[g][i], sums + g * width + column + i * LANES);
}

INLINED void OF(add_all_values)(int heads, const float *weights, const T *const *rows, int begin, int end, int dim, float *sums,
                                int width) {
  int column = 0;
  for (; column + 4 * LANES <= dim; column += 4 * LANES)
    OF(add_values)(heads, 4, weights, rows, begin, end, column, sums, width);
  for (; column < dim; column += LANES) OF(add_values)(heads, 1, weights, rows, begin, end, column, sums, width);
}

INLINED void OF(weigh)(int group, const float *weights, const T *const *rows, int begin, int end, int dim, float *sums, int width) {
  for (int g = 0; g < group; g += HEADS) {
    const float *own = weights + g * CHUNK;
    float *to = sums + g * width;
    switch (group - g) {
      case 1: OF(add_all_values)(1, own, rows, begin, end, dim, to, width); break;
      case 2: OF(add_all_values)(2, own, rows, begin, end, dim, to, width); break;
      case 3: OF(add_all_values)(3, own, rows, begin, end, dim, to, width); break;
      default: OF(add_all_values)(4, own, rows, begin, end, dim, to, width);
    }
  }
}

/* Scores of the keys `begin` to `end` - 1 of a chunk to weights, in place; returns the largest score and adds the
 * weights up. Beside them, where registers reach further, weights are nothing. */
INLINED float OF(soften)(float *scores, int begin, int end, float scale, float softcap, float *sum) {
  lanes top = all_of(-INFINITY), weights = {0};
  int from = begin / LANES * LANES;
  for (int j = from; j < begin; j++) scores[j] = -INFINITY;
  for (int j = end; j < (end + LANES - 1) / LANES * LANES; j++) scores[j] = -INFINITY;
  for (int j = from; j < end; j += LANES) {
    lanes given = load_float(scores + j), score = given * scale;
    if (softcap > 0.0f) {
      places hidden = given == all_of(-INFINITY);
      score = softcap * tanh_of(score / softcap);
      score = (lanes)(((bits)given & (bits)hidden) | ((bits)score & ~(bits)hidden));
    }
    store_float(score, scores + j);
    top = larger_of(score, top);
  }
  float highest = largest(top);
  for (int j = from; j < end; j += LANES) {
    lanes score = load_float(scores + j);
    places hidden = score == all_of(-INFINITY);
    lanes weight = (lanes)((bits)exp_of(score - highest) & ~(bits)hidden);
    store_float(weight, scores + j);
    weights += weight;
  }
  *sum = total(weights);
  return highest;
}

/* Floats of the parts of a call's scratch memory: places of keys, weights, queries, copies of rows. */
int64_t OF(chunk_scratch)(int group, int dim) {
  int64_t rows = (int64_t)tokens_at_once(group, sizeof(T) == sizeof(bf16)) * group;
  return 2 * (CHUNK + LANES) + rows * (CHUNK + padded(dim)) + (int64_t)LANES * padded(dim);
}

INLINED void OF(chunk_of)(const Head *head, const Queries *queries, int dim, int chunk, const Seen *seen,
                          float *scratch) {
  int group = head->group, width = padded(dim), tokens = queries->tokens, heads = tokens * group, start = chunk * CHUNK;
  int64_t *places_of_keys = (int64_t *)scratch;
  float *weights = scratch + 2 * (CHUNK + LANES), *query = weights + heads * CHUNK;
  float *copies = query + heads * width, scales[CHUNK + LANES]; /* those of the keys, then of the values */
  int begin[MOST_TOKENS], end[MOST_TOKENS]; /* what each token sees of the chunk */
  for (int t = 0; t < tokens; t++) {
    begin[t] = queries->first[t] > start ? queries->first[t] - start : 0;
    end[t] = queries->len[t] - start < CHUNK ? queries->len[t] - start : CHUNK;
    for (int g = 0; g < group; g++)
      for (int d = 0; d < width; d += LANES)
        store_float(d < dim ? take_float(queries->q + t * queries->stride + g * dim + d, dim - d) : (lanes){0},
                    query + (t * group + g) * width + d);
  }
  int from = begin[0] / LANES * LANES, to = end[tokens - 1];
  find_places(&head->pages, start + from, start + to, LANES, places_of_keys + from);
  if (head->kept != AS_IS) find_scales(head, head->k_scales, start + from, start + to, LANES, scales + from);
  const T *rows[LANES];
  for (int j = from; j < to; j += LANES) {
    OF(kept_at)(head, places_of_keys + j, head->k, scales + j, dim, copies, rows);
    for (int t = 0; t < tokens; t++)
      if (j < end[t] && j + LANES > begin[t])
        for (int h = t * group; h < (t + 1) * group; h++)
          store_float(OF(scores_of)(query + h * width, rows, dim), weights + h * CHUNK + j);
  }
  for (int h = 0; h < heads; h++) {
    int t = h / group;
    seen->totals[h] = 0.0f;
    if (begin[t] < end[t])
      seen->tops[h] =
          OF(soften)(weights + h * CHUNK, begin[t], end[t], head->scale, head->softcap, seen->totals + h);
  }
  memset(seen->sums, 0, sizeof(float) * heads * width);
  if (head->kept != AS_IS) find_scales(head, head->v_scales, start + from, start + to, LANES, scales + from);
  for (int j = from; j < to; j += LANES) {
    OF(kept_at)(head, places_of_keys + j, head->v, scales + j, dim, copies, rows);
    for (int t = 0; t < tokens; t++) {
      int first = begin[t] > j ? begin[t] - j : 0, last = end[t] - j < LANES ? end[t] - j : LANES;
      if (first < last)
        OF(weigh)(group, weights + t * group * CHUNK + j, rows, first, last, dim, seen->sums + t * group * width, width);
    }
  }
}

/* The same, with the usual sizes of heads as constants. */
void OF(attend_chunk)(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch) {
  switch (head->dim) {
    case 64: OF(chunk_of)(head, queries, 64, chunk, seen, scratch); break;
    case 128: OF(chunk_of)(head, queries, 128, chunk, seen, scratch); break;
    default: OF(chunk_of)(head, queries, head->dim, chunk, seen, scratch);
  }
}
