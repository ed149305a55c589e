/* How integers of 4 or 8 bits lie in a panel, in blocks (pack_quantized) that hold what NR rows of W have in a group:
 *
 *   scales [NR] float32
 *   zeros  [NR] bytes, and as many again unused; only where there are zeros. Otherwise they are 8, or 0 of 8 bits
 *   offsets [NR] float32; only where there are some
 *   codes, four inputs after one another: of 4 bits, or signed of 8
 *
 * code - zero is a small integer, which bfloat16 has exactly: codes are widened to it by tables.
 */
#pragma once
#include "panels.h"

#define NR QUANTIZED_COLUMNS

#define UNROLL _Pragma("GCC unroll 8")

static inline int64_t offsets_at(const Grid *g) { return NR * (int)sizeof(float) + (g->zeros ? 2 * NR : 0); }
static inline int64_t head_bytes(const Grid *g) { return offsets_at(g) + (g->offsets ? NR * (int)sizeof(float) : 0); }
static inline int64_t code_bytes(const Grid *g) { return (int64_t)g->group * NR * g->bits / 8; }

/* How four inputs lie in a block: four vectors v of 32 values, those of 16 columns in pairs of inputs; vectors 0 and 1
 * have the first two inputs, 2 and 3 the next two; 0 and 2 the first 16 columns.
 *   4 bits: 32 words, word i has value i of vector t in bits 4t to 4t + 3
 *   8 bits: two inputs are 64 bytes, each 16 of which have 8 values of vector 0 and 8 of vector 1 */
#define VECTORS 4
#define LINE(bits) (NR * VECTORS * (bits) / 8)
#define BYTE_OF(half, i) ((i) / 8 * 16 + (half) * 8 + (i) % 8)

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)

extern __attribute__((visibility("hidden"))) struct { /* read without a detour by way of other libraries */
  uint16_t differences[32]; /* bfloat16 of -15 to 15 */
  uint16_t centred[32];     /* of -8 to 7, twice: the bit above a code is another's */
  uint8_t halves[2][128];   /* low and high, of 128 and of 1 to 127 */
} widening_tables;

enum { FOUR, FOUR_ZEROS, EIGHT, WIDE };

INLINED int kind_of(const Grid *g) { return g->bits == 8 ? EIGHT : g->zeros ? FOUR_ZEROS : FOUR; }
INLINED int line_of(int kind) { return kind == WIDE ? LINE(16) : kind == EIGHT ? LINE(8) : LINE(4); }

/* What is added to codes of both halves of the columns, for the table of differences. */
INLINED void take_zeros(int kind, const uint8_t *block, __m512i shift[2]) {
  UNROLL for (int half = 0; half < 2 && kind == FOUR_ZEROS; half++) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)(block + NR * sizeof(float) + 16 * half));
    __m512i zeros = _mm512_cvtepu8_epi32(bytes);
    zeros = _mm512_or_si512(zeros, _mm512_slli_epi32(zeros, 16));
    shift[half] = _mm512_sub_epi16(_mm512_set1_epi16(15), zeros);
  }
}

/* The tables in registers: for codes of 4 bits one, for those of 8 four. */
typedef struct {
  __m512i parts[4];
} Tables;

INLINED Tables take_tables(int kind) {
  Tables tables;
  if (kind == EIGHT)
    UNROLL for (int i = 0; i < 4; i++)
      tables.parts[i] = _mm512_loadu_si512((const uint8_t *)widening_tables.halves + 64 * i);
  else
    tables.parts[0] = _mm512_loadu_si512(kind == FOUR_ZEROS ? widening_tables.differences : widening_tables.centred);
  return tables;
}

/* By their magnitude, of which 128 has the place of 0; then their sign. */
INLINED void widen_bytes(const Tables *tables, __m512i codes, __m512i *first, __m512i *second) {
  const __m512i *parts = tables->parts, sign = _mm512_set1_epi8(-128), sizes = _mm512_abs_epi8(codes);
  __m512i low = _mm512_permutex2var_epi8(parts[0], sizes, parts[1]);
  __m512i high = _mm512_maskz_permutex2var_epi8(_mm512_test_epi8_mask(codes, codes), parts[2], sizes, parts[3]);
  high = _mm512_ternarylogic_epi32(high, codes, sign, 0xF8); /* high | codes & sign */
  *first = _mm512_unpacklo_epi8(low, high), *second = _mm512_unpackhi_epi8(low, high);
}

/* The two vectors of the first or second pair of four inputs. */
INLINED void widen(int kind, const Tables *tables, const uint8_t *codes, int pair, const __m512i shift[2],
                   __m512i v[2]) {
  if (kind == WIDE) {
    v[0] = _mm512_loadu_si512(codes + 128 * pair), v[1] = _mm512_loadu_si512(codes + 128 * pair + 64);
  } else if (kind == EIGHT) {
    widen_bytes(tables, _mm512_loadu_si512(codes + 64 * pair), v, v + 1);
  } else {
    __m512i words = _mm512_loadu_si512(codes);
    UNROLL for (int half = 0; half < 2; half++) {
      int t = 2 * pair + half;
      __m512i place = t == 0 ? words : _mm512_srli_epi16(words, 4 * t);
      if (kind == FOUR_ZEROS)
        place = _mm512_add_epi16(_mm512_and_si512(place, _mm512_set1_epi16(15)), shift[half]);
      v[half] = _mm512_permutexvar_epi16(place, tables->parts[0]);
    }
  }
}

#endif
