/* How keys and values of a chunk are laid out for products of bfloat16 values (AVX512-BF16): as weights are. */
#pragma once
#include "attention.h"
#include "panels.h"

#if HAS_DOTS

#define PANEL DOTS_COLUMNS

/* 16 rows of 16 values of 32 bits become columns. */
INLINED void transpose(__m512i r[16]) {
  __m512i t[16];
  _Pragma("GCC unroll 8") for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  _Pragma("GCC unroll 2") for (int i = 0; i < 16; i += 8)
      _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
    t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
    t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
  }
  _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88), r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
  }
}

/* Keys or values of the chunk: those of a head, from the cache's first block on. */
typedef struct {
  const int64_t *places_of_keys;
  const char *from;
  const float *scales; /* of the keys in 8 bits */
} Kept;

/* 32 values of key `j` from `d` on, `n` of them and then zeros. E4M3 has three bits less of an exponent that is
 * binary16's but for its bias. */
INLINED __m512i take_32(int kept, const Kept *all, int j, int d, int n) {
  const char *p = all->from + (all->places_of_keys[j] + d) * width_of(kept, 1);
  __mmask32 some = n >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << n) - 1;
  if (kept == AS_IS) return _mm512_maskz_loadu_epi16(some, p);
  __m256i eights = _mm256_maskz_loadu_epi8(some, p);
  __m512 low, high, scale = _mm512_set1_ps(all->scales[j]);
  if (kept == INT8) {
    low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(eights)));
    high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(eights, 1)));
  } else {
    __m512i wide = _mm512_slli_epi16(_mm512_cvtepi8_epi16(eights), 7); /* the sign twice, of which one goes */
    wide = _mm512_and_si512(wide, _mm512_set1_epi16((short)0xBF80));
    low = _mm512_cvtph_ps(_mm512_castsi512_si256(wide)), high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(wide, 1));
    scale = _mm512_mul_ps(scale, _mm512_set1_ps(256.0f));
  }
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
}

/* PANEL keys from `at` on -> [width / 2][PANEL][2]. */
INLINED void lay_keys_of(int kept, const Kept *all, int at, int dim, bf16 *panel) {
  for (int half = 0; half < PANEL; half += 16)
    for (int d = 0; d < dim; d += 32) {
      __m512i pairs[16];
      _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++)
          pairs[j] = take_32(kept, all, at + half + j, d, dim - d);
      transpose(pairs);
      bf16 *to = panel + (int64_t)d * PANEL + 2 * half;
      _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++) _mm512_storeu_si512(to + j * 2 * PANEL, pairs[j]);
    }
}

/* PANEL columns from `column` on of `count` values, and zeros up to `end` -> [end / 2][PANEL][2]. */
INLINED void lay_values_of(int kept, const Kept *all, int count, int end, int column, int dim, bf16 *panel) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int j = 0; j < end; j += 2) {
    __m512i first = {0}, second = {0};
    if (j < count) first = take_32(kept, all, j, column, dim - column);
    if (j + 1 < count) second = take_32(kept, all, j + 1, column, dim - column);
    _mm512_storeu_si512(panel + j * PANEL, _mm512_permutex2var_epi16(first, low, second));
    _mm512_storeu_si512(panel + j * PANEL + 32, _mm512_permutex2var_epi16(first, high, second));
  }
}

static void lay_keys(int kept, const Kept *all, int at, int dim, bf16 *panel) {
  switch (kept) {
    case AS_IS: lay_keys_of(AS_IS, all, at, dim, panel); break;
    case INT8: lay_keys_of(INT8, all, at, dim, panel); break;
    default: lay_keys_of(E4M3, all, at, dim, panel);
  }
}

static void lay_values(int kept, const Kept *all, int count, int end, int column, int dim, bf16 *panel) {
  switch (kept) {
    case AS_IS: lay_values_of(AS_IS, all, count, end, column, dim, panel); break;
    case INT8: lay_values_of(INT8, all, count, end, column, dim, panel); break;
    default: lay_values_of(E4M3, all, count, end, column, dim, panel);
  }
}

/* Keys and values of the next chunk, which are fetched a few at a time while this one is computed. */
typedef struct {
  const Head *head;
  int at, end; /* keys of the sequence */
} Ahead;

INLINED void fetch_some(Ahead *ahead, int keys) {
  const Head *head = ahead->head;
  const Pages *pages = &head->pages;
  int64_t width = width_of(head->kept, 1);
  for (int behind = least(ahead->at + keys, ahead->end); ahead->at < behind; ahead->at++) {
    int64_t block = pages->blocks[ahead->at / pages->block_size];
    int64_t place = (block * pages->block_size + ahead->at % pages->block_size) * pages->stride * width;
    for (int64_t byte = 0; byte < head->dim * width; byte += 64) {
      _mm_prefetch((const char *)head->k + place + byte, _MM_HINT_T1);
      _mm_prefetch((const char *)head->v + place + byte, _MM_HINT_T1);
    }
  }
}

#endif
