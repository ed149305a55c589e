/* Attention, one chunk of keys after another: see attention.h. */
#include "attention.h"

int64_t chunk_scratch(int group, int dim, int narrow) {
  return narrow ? chunk_scratch_bf16(group, dim) : chunk_scratch_float(group, dim);
}

int64_t attention_scratch(int group, int dim, int narrow) {
  int64_t rows = (int64_t)tokens_at_once(group, narrow) * group;
  return 2 * seen_size(rows, dim) + chunk_scratch(group, dim, narrow) + 16;
}

void attend_chunk(const Head *head, const Queries *queries, int chunk, const Seen *seen, float *scratch) {
  if (head->narrow)
    attend_chunk_bf16(head, queries, chunk, seen, scratch);
  else
    attend_chunk_float(head, queries, chunk, seen, scratch);
}

void see_nothing(const Seen *whole, int rows, int dim) {
  memset(whole->sums, 0, sizeof(float) * rows * padded(dim));
  for (int r = 0; r < rows; r++) whole->tops[r] = -INFINITY, whole->totals[r] = 0.0f;
}

void join_seen(const Seen *whole, const Seen *next, int rows, int dim) {
  int width = padded(dim);
  for (int row = 0; row < rows; row += LANES) {
    int some = least(LANES, rows - row);
    lanes top = take_float(whole->tops + row, some), more = take_float(next->tops + row, some);
    lanes highest = larger_of(more, top), mine = exp_of(top - highest), others = exp_of(more - highest);
    for (int r = 0; r < some; r++) {
      if (next->totals[row + r] == 0.0f) continue;
      float *to = whole->sums + (int64_t)(row + r) * width;
      const float *from = next->sums + (int64_t)(row + r) * width;
      for (int d = 0; d < width; d += LANES)
        store_float(load_float(to + d) * mine[r] + load_float(from + d) * others[r], to + d);
      whole->totals[row + r] = whole->totals[row + r] * mine[r] + next->totals[row + r] * others[r];
      whole->tops[row + r] = highest[r];
    }
  }
}

void finish(const Head *head, const Queries *queries, const Seen *whole) {
  int group = head->group, dim = head->dim, width = padded(dim);
  for (int t = 0; t < queries->tokens; t++)
    for (int g = 0; g < group; g++) {
      const float *sums = whole->sums + (int64_t)(t * group + g) * width;
      for (int d = 0; d < dim; d += LANES)
        put_float(load_float(sums + d) / whole->totals[t * group + g],
                  queries->out + t * queries->stride + g * dim + d, dim - d);
    }
}

void attend_tokens(const Head *head, const Queries *queries, float *scratch) {
  int rows = queries->tokens * head->group, dim = head->dim;
  int64_t size = seen_size(rows, dim);
  Seen whole = seen_at(scratch, rows, dim), next = seen_at(scratch + size, rows, dim);
  float *own = scratch + (2 * size + 15) / 16 * 16;
  see_nothing(&whole, rows, dim);
  for (int chunk = first_chunk(queries); chunk < end_chunk(queries); chunk++) {
    attend_chunk(head, queries, chunk, &next, own);
    join_seen(&whole, &next, rows, dim);
  }
  finish(head, queries, &whole);
}
