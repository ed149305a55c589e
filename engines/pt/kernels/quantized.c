/* Weights as integers are put into blocks (quantized.h), and the codes of a group are widened to bfloat16. */
#include "quantized.h"

int64_t quantized_block(const Grid *g) { return head_bytes(g) + code_bytes(g); }

int64_t quantized_panel(const Grid *g, int in) { return in / g->group * quantized_block(g); }

/* Bytes that `pack_quantized` writes. */
int64_t quantized_size(const Grid *g, int in, int out) { return (out + NR - 1) / NR * quantized_panel(g, in); }

/* Codes [out, in]: 0 to 15, or signed bytes. Scales [out, in / group]; zeros and offsets as they, where the grid has
 * some. */
void pack_quantized(const Grid *g, const int8_t *codes, const float *scales, const uint8_t *zeros,
                    const float *offsets, uint8_t *packed, int in, int out) {
  int groups = in / g->group;
#pragma omp parallel for
  for (int panel = 0; panel < (out + NR - 1) / NR; panel++) {
    uint8_t *block = packed + panel * quantized_panel(g, in);
    memset(block, 0, (size_t)quantized_panel(g, in));
    int columns = out - panel * NR < NR ? out - panel * NR : NR;
    for (int at = 0; at < groups; at++, block += quantized_block(g))
      for (int c = 0; c < columns; c++) {
        int64_t row = (int64_t)panel * NR + c;
        memcpy(block + c * sizeof(float), scales + row * groups + at, sizeof(float));
        if (g->zeros) block[NR * sizeof(float) + c] = zeros[row * groups + at];
        if (g->offsets)
          memcpy(block + offsets_at(g) + c * sizeof(float), offsets + row * groups + at, sizeof(float));
        uint8_t *to = block + head_bytes(g);
        for (int k = 0; k < g->group; k++) {
          int code = codes[row * in + at * g->group + k];
          int half = c / (NR / 2), i = c % (NR / 2) * 2 + k % 2, t = k % 4 / 2 * 2 + half;
          uint8_t *line = to + k / 4 * LINE(g->bits);
          if (g->bits == 4) {
            uint16_t word;
            memcpy(&word, line + 2 * i, sizeof word);
            word |= (uint16_t)(code << 4 * t);
            memcpy(line + 2 * i, &word, sizeof word);
          } else
            line[t / 2 * 2 * NR + BYTE_OF(half, i)] = (uint8_t)code;
        }
      }
  }
}

INLINED int zero_of(const Grid *g, const uint8_t *block, int column) {
  return g->zeros ? block[NR * sizeof(float) + column] : g->bits == 4 ? 8 : 0;
}

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)

__typeof__(widening_tables) widening_tables;

static uint16_t bf16_of(int value) {
  union { float value; uint32_t bits; } exact = {(float)value};
  return (uint16_t)(exact.bits >> 16);
}

static __attribute__((constructor)) void fill_tables(void) {
  for (int i = 0; i < 32; i++) {
    widening_tables.differences[i] = bf16_of(i - 15);
    widening_tables.centred[i] = bf16_of(i % 16 - 8);
  }
  for (int i = 0; i < 128; i++) {
    uint16_t value = bf16_of(i ? i : 128);
    widening_tables.halves[0][i] = (uint8_t)value, widening_tables.halves[1][i] = (uint8_t)(value >> 8);
  }
}

INLINED void widen_kind(int kind, const Grid *g, const uint8_t *block, uint32_t *pairs) {
  __m512i shift[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, v[2];
  Tables tables = take_tables(kind);
  take_zeros(kind, block, shift);
  const uint8_t *codes = block + head_bytes(g);
  for (int k = 0; k < g->group; k += 4, codes += line_of(kind)) {
    for (int line = 0; line < line_of(kind); line += 64) _mm_prefetch((const char *)codes + AHEAD + line, _MM_HINT_T0);
    UNROLL for (int pair = 0; pair < 2; pair++, pairs += NR) {
      widen(kind, &tables, codes, pair, shift, v);
      _mm512_storeu_si512(pairs, v[0]), _mm512_storeu_si512(pairs + 16, v[1]);
    }
  }
}

void widen_group(const Grid *g, const uint8_t *block, uint32_t *pairs) {
  switch (kind_of(g)) {
    case FOUR: widen_kind(FOUR, g, block, pairs); break;
    case FOUR_ZEROS: widen_kind(FOUR_ZEROS, g, block, pairs); break;
    default: widen_kind(EIGHT, g, block, pairs);
  }
}

#else

void widen_group(const Grid *g, const uint8_t *block, uint32_t *pairs) {
  const uint8_t *codes = block + head_bytes(g);
  int32_t zeros[2][NR];
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < NR; i++) zeros[half][i] = zero_of(g, block, half * NR / 2 + i / 2);
  bf16 *to = (bf16 *)pairs;
  for (int k = 0; k < g->group; k += 4, codes += LINE(g->bits))
    for (int t = 0; t < VECTORS; t++, to += NR)
      for (int i = 0; i < NR; i++) {
        int code = g->bits == 4 ? ((const uint16_t *)codes)[i] >> 4 * t & 15
                                : ((const int8_t *)codes)[t / 2 * 2 * NR + BYTE_OF(t % 2, i)];
        union { float value; uint32_t bits; } exact = {(float)(code - zeros[t % 2][i])};
        to[i] = (bf16)(exact.bits >> 16);
      }
}

#endif
