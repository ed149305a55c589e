/* Vectors of as many floats as one register of this machine holds, and bfloat16 values from and to them. */
#include <stdint.h>

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

typedef uint16_t bf16;
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
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
