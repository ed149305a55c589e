/* Keys and values in 8 bits, with a scale for each token and head: eight_bits.py says which, and rounds in the same way. */
#pragma once
#include "lanes.h"

enum { AS_IS, INT8, E4M3 }; /* what a cache holds: values of its type, integers, floats of 4 bits and 3 */

typedef uint8_t eights __attribute__((vector_size(LANES), aligned(1)));
typedef int8_t signed_eights __attribute__((vector_size(LANES), aligned(1)));

/* Bytes of a value. */
static inline int width_of(int kept, int narrow) { return kept != AS_IS ? 1 : narrow ? sizeof(bf16) : sizeof(float); }

/* All the ones of `yes`, all the others of `no`. */
static inline bits chosen(places which, bits yes, bits no) { return (yes & (bits)which) | (no & ~(bits)which); }

/* Numbers up to 127 to the nearest integers, ties to even. */
static inline eights integers_of(lanes x) {
  return __builtin_convertvector((bits)(x + 12582912.0f) - 0x4B400000u, eights);
}

/* Numbers up to 448 to floats of 4 bits and 3, ties to even. Below 2^-6 they lie 2^-9 apart. */
static inline eights floats_of(lanes x) {
  bits sign = (bits)x >> 24 & 0x80, size = (bits)x & 0x7FFFFFFF;
  bits large = ((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - (120 << 3);
  bits small = (bits)((lanes)size * 512.0f + 12582912.0f) - 0x4B400000u;
  return __builtin_convertvector(sign | chosen((lanes)size < all_of(0.015625f), small, large), eights);
}

static inline lanes values_of_integers(eights from) {
  return __builtin_convertvector((signed_eights)from, lanes);
}
static inline lanes values_of_floats(eights from) {
  bits wide = __builtin_convertvector(from, bits), sign = (wide & 0x80) << 24, size = (wide & 0x7F) << 20;
  lanes small = (lanes)(size | 121 << 23) - 0.015625f;
  return (lanes)(sign | chosen((places)(size < (bits){0} + (1 << 23)), (bits)small, size + (120 << 23)));
}

static inline lanes take_eights(int kept, const uint8_t *p, int n) {
  uint8_t padded[LANES] = {0};
  if (n < LANES) memcpy(padded, p, n), p = padded;
  return kept == INT8 ? values_of_integers(*(const eights *)p) : values_of_floats(*(const eights *)p);
}

/* A head's `n` values to 8 bits; returns their scale. One that is no number, or has no end, leaves none. */
static inline float round_head(int kept, const float *from, int n, uint8_t *to) {
  bits top = {0}; /* of sizes: as integers they are in order, and what is no number is beyond them */
  for (int d = 0; d < n; d += LANES) {
    bits size = (bits)take_float(from + d, n - d) & 0x7FFFFFFF;
    top = chosen((places)(size > top), size, top);
  }
  uint32_t most = 0;
  for (int l = 0; l < LANES; l++) most = top[l] > most ? top[l] : most;
  float scale;
  memcpy(&scale, &most, sizeof scale);
  scale /= kept == INT8 ? 127.0f : 448.0f;
  if (scale < 1.17549435e-38f) scale = 1.17549435e-38f;
  for (int d = 0; d < n; d += LANES) {
    lanes values = take_float(from + d, n - d) / scale;
    eights rounded = kept == INT8 ? integers_of(values) : floats_of(values);
    memcpy(to + d, &rounded, n - d < LANES ? n - d : LANES);
  }
  return scale;
}
