/* Attention of some consecutive tokens to their sequence's cache, for the query heads of one key-value head. Compiled
 * once for each type T of the cache.
 *
 * Keys are taken CHUNK at a time, from a multiple of it on: their scores, the largest of them, the weights, the weighted
 * sum of the values. The chunks' sums are joined in their order ("Online normalizer calculation for softmax", Milakov and
 * Gimelshein 2018, arXiv:1805.02867). So a token's result depends on its own keys and their places alone. LANES keys at a
 * time are used for all tokens while they are in the cache of the core.
 */

#ifndef ATTENTION_FACTORS
#define ATTENTION_FACTORS
#define INLINED static inline __attribute__((always_inline))
#define HEADS 4 /* query heads whose sums are held in registers at once */

/* Where keys `begin` to `end` - 1 are, and the last of them again until LANES are full. */
INLINED void find_places(const Pages *pages, int begin, int end, int64_t *places_of_keys) {
  int block = begin / pages->block_size, offset = begin % pages->block_size;
  for (int token = begin; token < end; token++) {
    *places_of_keys++ = ((int64_t)pages->blocks[block] * pages->block_size + offset) * pages->stride;
    if (++offset == pages->block_size) block++, offset = 0;
  }
  for (int64_t last = places_of_keys[-1], more = -end & (LANES - 1); more; more--) *places_of_keys++ = last;
}

#define FACTOR_float float
#define WIDTH_float LANES
#define ROUND_float(values, p) store_float(values, p)
#define ADD_DOT_float(key, query, sum) multiply_add(load_float(query), load_float(key), sum)
#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define FACTOR_bf16 bf16
#define WIDTH_bf16 32
#define ROUND_bf16(values, p) store_bf16(values, p)
#define ADD_DOT_bf16(key, query, sum)                                                                                 \
  (lanes) _mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_loadu_si512(query), (__m512bh)_mm512_loadu_si512(key))
#else
#define FACTOR_bf16 float
#define WIDTH_bf16 LANES
#define ROUND_bf16(values, p) store_float(values, p)
#define ADD_DOT_bf16(key, query, sum) multiply_add(load_float(query), load_bf16(key), sum)
#endif
#endif

/* The rows of LANES keys. Heads that do not fill whole registers are copied to `copies`, filled up with zeros. */
INLINED void OF(rows_at)(const int64_t *places_of_keys, const T *from, int dim, int width, T *copies,
                         const T *rows[LANES]) {
  for (int j = 0; j < LANES; j++) {
    const T *row = from + places_of_keys[j];
    if (dim % width) {
      T *copy = copies + j * padded(dim);
      memcpy(copy, row, sizeof(T) * dim);
      memset(copy + dim, 0, sizeof(T) * (padded(dim) - dim));
      row = copy;
    }
    rows[j] = row;
  }
}

INLINED lanes OF(scores_of)(const OF(FACTOR) *query, const T *const rows[LANES], int dim) {
  lanes sum[LANES];
  _Pragma("GCC unroll 16") for (int j = 0; j < LANES; j++) sum[j] = (lanes){0};
  for (int d = 0; d < dim; d += OF(WIDTH))
    _Pragma("GCC unroll 16") for (int j = 0; j < LANES; j++) sum[j] = OF(ADD_DOT)(rows[j] + d, query + d, sum[j]);
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

/* Join the sums of a chunk with those before it. */
INLINED void OF(join)(float *whole, const float *sums, int width, float *top, float *whole_total, float chunk_top,
                      float chunk_total) {
  float highest = chunk_top > *top ? chunk_top : *top;
  lanes factors = exp_of((lanes){*top - highest, chunk_top - highest});
  for (int d = 0; d < width; d += LANES)
    store_float(load_float(whole + d) * factors[0] + load_float(sums + d) * factors[1], whole + d);
  *whole_total = *whole_total * factors[0] + chunk_total * factors[1];
  *top = highest;
}

INLINED void OF(attend)(const Queries *queries, const T *k, const T *v, const Pages *pages, int group, int dim,
                        float scale, float softcap, float *scratch) {
  int width = padded(dim), tokens = queries->tokens, heads = tokens * group;
  int64_t *places_of_keys = (int64_t *)scratch;
  float *weights = scratch + 2 * (CHUNK + LANES), *sums = weights + heads * CHUNK, *whole = sums + heads * width;
  float *tops = whole + heads * width, *totals = tops + heads, *chunk_tops = totals + heads;
  float *chunk_totals = chunk_tops + heads;
  OF(FACTOR) *query = (OF(FACTOR) *)(chunk_totals + heads);
  T *copies = (T *)(chunk_totals + heads + heads * width);
  int lowest = queries->first[0], highest = queries->len[0];
  for (int t = 0; t < tokens; t++) {
    lowest = queries->first[t] < lowest ? queries->first[t] : lowest;
    highest = queries->len[t] > highest ? queries->len[t] : highest;
    for (int g = 0; g < group; g++)
      for (int d = 0; d < width; d += LANES)
        OF(ROUND)(d < dim ? take_float(queries->q + t * queries->stride + g * dim + d, dim - d) : (lanes){0},
                  query + (t * group + g) * width + d);
  }
  const T *rows[LANES];
  for (int chunk = lowest / CHUNK * CHUNK; chunk < highest; chunk += CHUNK) {
    int from = (lowest > chunk ? lowest - chunk : 0) / LANES * LANES;
    int to = highest - chunk < CHUNK ? highest - chunk : CHUNK;
    find_places(pages, chunk + from, chunk + to, places_of_keys + from);
    int begin[MOST_TOKENS], end[MOST_TOKENS]; /* what each token sees of the chunk */
    for (int t = 0; t < tokens; t++) {
      begin[t] = queries->first[t] > chunk ? queries->first[t] - chunk : 0;
      end[t] = queries->len[t] - chunk < CHUNK ? queries->len[t] - chunk : CHUNK;
    }
    for (int j = from; j < to; j += LANES) {
      OF(rows_at)(places_of_keys + j, k, dim, OF(WIDTH), copies, rows);
      for (int t = 0; t < tokens; t++)
        if (j < end[t] && j + LANES > begin[t])
          for (int h = t * group; h < (t + 1) * group; h++)
            store_float(OF(scores_of)(query + h * width, rows, dim), weights + h * CHUNK + j);
    }
    for (int t = 0; t < tokens; t++)
      if (begin[t] < end[t])
        for (int h = t * group; h < (t + 1) * group; h++)
          chunk_tops[h] = OF(soften)(weights + h * CHUNK, begin[t], end[t], scale, softcap, chunk_totals + h);
    memset(sums, 0, sizeof(float) * heads * width);
    for (int j = from; j < to; j += LANES) {
      OF(rows_at)(places_of_keys + j, v, dim, LANES, copies, rows);
      for (int t = 0; t < tokens; t++) {
        int first = begin[t] > j ? begin[t] - j : 0, last = end[t] - j < LANES ? end[t] - j : LANES;
        if (first < last)
          OF(weigh)(group, weights + t * group * CHUNK + j, rows, first, last, dim, sums + t * group * width, width);
      }
    }
    for (int t = 0; t < tokens; t++)
      for (int h = t * group; h < (t + 1) * group && begin[t] < end[t]; h++)
        if (chunk <= queries->first[t]) {
          memcpy(whole + h * width, sums + h * width, sizeof(float) * width);
          tops[h] = chunk_tops[h], totals[h] = chunk_totals[h];
        } else {
          OF(join)(whole + h * width, sums + h * width, width, tops + h, totals + h, chunk_tops[h], chunk_totals[h]);
        }
  }
  for (int t = 0; t < tokens; t++)
    for (int g = 0; g < group; g++)
      for (int d = 0; d < dim; d += LANES)
        put_float(load_float(whole + (t * group + g) * width + d) / totals[t * group + g],
                  queries->out + t * queries->stride + g * dim + d, dim - d);
}

/* The same, with the usual sizes of heads as constants. */
void OF(attend_tokens)(const Queries *queries, const T *k, const T *v, const Pages *pages, int group, int dim,
                              float scale, float softcap, float *scratch) {
  switch (dim) {
    case 64: OF(attend)(queries, k, v, pages, group, 64, scale, softcap, scratch); break;
    case 128: OF(attend)(queries, k, v, pages, group, 128, scale, softcap, scratch); break;
    default: OF(attend)(queries, k, v, pages, group, dim, scale, softcap, scratch);
  }
}
