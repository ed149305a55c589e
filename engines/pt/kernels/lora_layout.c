/* An adapter's matrices as they are multiplied where layers compute in bfloat16 and keep their results in float32 (lora.c
 * has the shapes). */
#include "lora.h"

/* a [rank][in] to `a_to`: in pairs where `width`, beside the others of so many ranks, as lora_tiles.c takes them. b, whose
 * values lie `step` apart from rank to rank and `stride` from column to column, to `b_to`, in panels. Where there is no
 * value, both keep the zeros that they have. */
void lora_lay_out(const bf16 *a, const bf16 *b, int64_t step, int64_t stride, int rank, int in, int out, int width,
                  bf16 *a_to, bf16 *b_to) {
  if (width == 0) memcpy(a_to, a, (size_t)rank * in * sizeof(bf16));
  for (int64_t k = 0; k < in && width; k += 2)
    for (int64_t r = 0; r < rank; r++) memcpy(a_to + k * width + 2 * r, a + r * in + k, 2 * sizeof(bf16));
  for (int64_t column = 0; column < out; column += DOTS_COLUMNS)
    for (int64_t r = 0; r < rank; r += 2, b_to += 2 * DOTS_COLUMNS)
      for (int64_t c = column; c < least(column + DOTS_COLUMNS, out); c++) {
        bf16 *pair = b_to + 2 * (c - column);
        pair[0] = b[r * step + c * stride];
        if (r + 1 < rank) pair[1] = b[(r + 1) * step + c * stride];
      }
}
