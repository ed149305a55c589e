/* An adapter's matrices as they are multiplied where layers compute in bfloat16 and keep their results in float32 (lora.c
 * has the shapes). */
#include "lora.h"

/* `values` of a row, as lora_tiles.c takes a pair of them from each. */
static void put_pairs(const bf16 *rows, int count, int values, bf16 *to) {
  for (int64_t k = 0; k < values; k += 2)
    for (int64_t r = 0; r < count; r++, to += 2) memcpy(to, rows + r * values + k, 2 * sizeof(bf16));
}

/* a [rank][in] to `a_to`, in pairs where `tiles`; b, whose values lie `step` apart from rank to rank and `stride` from
 * column to column, to `b_to`, in panels. Where there is no value, both keep the zeros that they have. */
void lora_lay_out(const bf16 *a, const bf16 *b, int64_t step, int64_t stride, int rank, int in, int out, int tiles,
                  bf16 *a_to, bf16 *b_to) {
  if (tiles)
    put_pairs(a, rank, in, a_to);
  else
    memcpy(a_to, a, (size_t)rank * in * sizeof(bf16));
  for (int64_t column = 0; column < out; column += DOTS_COLUMNS)
    for (int64_t r = 0; r < rank; r += 2, b_to += 2 * DOTS_COLUMNS)
      for (int64_t c = column; c < least(column + DOTS_COLUMNS, out); c++) {
        bf16 *pair = b_to + 2 * (c - column);
        pair[0] = b[r * step + c * stride];
        if (r + 1 < rank) pair[1] = b[(r + 1) * step + c * stride];
      }
}
