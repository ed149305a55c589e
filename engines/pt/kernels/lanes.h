/* Vectors of as many floats as one register of this machine holds, and bfloat16 values from and to them. */
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINED static inline __attribute__((always_inline))

static inline int least(int x, int y) { return x < y ? x : y; }

/* Bytes of the cache's lines that so many bytes take. */
static inline int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

typedef uint16_t bf16;
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t places __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

/* x * y + z, rounded once. Said outright, as a compiler fuses the two here and not there, and the last bit differs. */
static inline lanes multiply_add(lanes x, lanes y, lanes z) {
#if defined(__AVX512F__)
  return (lanes)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__AVX2__) && defined(__FMA__)
  return (lanes)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA)
  return (lanes)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y);
#else
  return x * y + z;
#endif
}

static inline lanes load_float(const float *p) { return *(const lanes *)p; }
static inline void store_float(lanes values, float *p) { *(lanes *)p = values; }

static inline lanes load_bf16(const bf16 *p) { return (lanes)(__builtin_convertvector(*(const halves *)p, bits) << 16); }

/* Rounded to the nearest, ties to even. What is no number stays none. */
static inline void store_bf16(lanes values, bf16 *p) {
  bits from = (bits)values, none = (bits)((from & 0x7FFFFFFF) > 0x7F800000);
  bits rounded = (from + 0x7FFF + (from >> 16 & 1)) >> 16;
  *(halves *)p = __builtin_convertvector((none & (from >> 16 | 0x40)) | (~none & rounded), halves);
}

static inline lanes all_of(float value) { return value - (lanes){0}; }

/* y where one of the two is no number. */
static inline lanes larger_of(lanes x, lanes y) {
#if defined(__AVX512F__)
  return (lanes)_mm512_max_ps((__m512)x, (__m512)y);
#elif defined(__AVX2__)
  return (lanes)_mm256_max_ps((__m256)x, (__m256)y);
#else
  places first = x > y;
  return (lanes)(((bits)x & (bits)first) | ((bits)y & ~(bits)first));
#endif
}

/* The next `n` values as float32, filled up with zeros; and back. */
static inline lanes take_float(const float *p, int n) {
  if (n >= LANES) return load_float(p);
  float padded[LANES] = {0};
  memcpy(padded, p, sizeof(float) * n);
  return load_float(padded);
}
static inline lanes take_bf16(const bf16 *p, int n) {
  if (n >= LANES) return load_bf16(p);
  bf16 padded[LANES] = {0};
  memcpy(padded, p, sizeof(bf16) * n);
  return load_bf16(padded);
}
static inline void put_float(lanes values, float *p, int n) {
  if (n >= LANES) {
    store_float(values, p);
    return;
  }
  float padded[LANES];
  store_float(values, padded);
  memcpy(p, padded, sizeof(float) * n);
}
static inline void put_bf16(lanes values, bf16 *p, int n) {
  if (n >= LANES) {
    store_bf16(values, p);
    return;
  }
  bf16 padded[LANES];
  store_bf16(values, padded);
  memcpy(p, padded, sizeof(bf16) * n);
}

/* Lane l of the result is the sum of the lanes of v[l]: halves are added pairwise, always in the same order. */
#define OF_FIRST(l, d) ((l) & (d) ? LANES + (l) - (d) : (l))
#define OF_SECOND(l, d) ((l) & (d) ? LANES + (l) : (l) + (d))
#define FOUR(f, l, d) f(l, d), f(l + 1, d), f(l + 2, d), f(l + 3, d)
#if LANES == 16
#define EVERY_LANE(f, d) FOUR(f, 0, d), FOUR(f, 4, d), FOUR(f, 8, d), FOUR(f, 12, d)
#elif LANES == 8
#define EVERY_LANE(f, d) FOUR(f, 0, d), FOUR(f, 4, d)
#else
#define EVERY_LANE(f, d) FOUR(f, 0, d)
#endif
#if defined(__clang__)
#define LANES_OF(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define LANES_OF(x, y, ...) __builtin_shuffle(x, y, (places){__VA_ARGS__})
#endif
#define ADD_PAIRS(d)                                                                                                  \
  _Pragma("GCC unroll 8") for (int i = 0; i < LANES / (2 * d); i++) {                                                 \
    lanes x = v[2 * i], y = v[2 * i + 1];                                                                             \
    v[i] = LANES_OF(x, y, EVERY_LANE(OF_FIRST, d)) + LANES_OF(x, y, EVERY_LANE(OF_SECOND, d));                        \
  }
INLINED lanes sums_of(lanes *v) {
  ADD_PAIRS(1)
  ADD_PAIRS(2)
#if LANES > 4
  ADD_PAIRS(4)
#endif
#if LANES > 8
  ADD_PAIRS(8)
#endif
  return v[0];
}

/* Not inlined: the compiler would be free to round differently from place to place. */
static __attribute__((noinline, unused)) float total(lanes sum) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) sum[l] += sum[l + half];
  return sum[0];
}
static __attribute__((noinline, unused)) float largest(lanes values) {
  float top = values[0];
  for (int l = 1; l < LANES; l++) top = values[l] > top ? values[l] : top;
  return top;
}

/* e^x to about one unit in the last place, for x from -87 to 88; beyond, what it is there. What is no number stays none.
 * x = n log 2 + r, and e^r by its series (as Cephes' expf). */
static inline lanes exp_of(lanes x) {
  x = larger_of(all_of(-87.0f), x);
  x = -larger_of(all_of(-88.0f), -x);
  lanes shifted = multiply_add(x, all_of(1.44269504f), all_of(12582912.0f));
  lanes n = shifted - 12582912.0f;
  lanes r = multiply_add(n, all_of(-0.693359375f), x);
  r = multiply_add(n, all_of(2.12194440e-4f), r);
  lanes y = all_of(1.9875691500e-4f);
  y = multiply_add(y, r, all_of(1.3981999507e-3f));
  y = multiply_add(y, r, all_of(8.3334519073e-3f));
  y = multiply_add(y, r, all_of(4.1665795894e-2f));
  y = multiply_add(y, r, all_of(1.6666665459e-1f));
  y = multiply_add(y, r, all_of(5.0000001201e-1f));
  y = multiply_add(y, r * r, r) + 1.0f;
  return (lanes)((bits)y + (((bits)shifted - 0x4B400000u) << 23));
}

static inline lanes tanh_of(lanes x) { return 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f); }
