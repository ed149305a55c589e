/* y = x W^T + b on a CPU, W in integers of 4 or 8 bits: w = scale (code - zero) + offset, each of these one for a group
 * of neighbours in a row of W.
 *
 * x       [rows, in]    float32, or bfloat16 where `dots`; in is a multiple of the group
 * w       [panels][in / group] blocks (pack_quantized), which hold what NR rows of W have in a group:
 *           scales [NR] float32
 *           zeros  [NR] bytes, and as many again unused; only where there are zeros. Otherwise they are 8, or 0 of 8 bits
 *           offsets [NR] float32; only where there are some
 *           codes, four inputs after one another: of 4 bits, or signed of 8
 * bias    [out] float32, or NULL
 * y       [rows, out]   float32
 *
 * code - zero is a small integer, which bfloat16 has exactly. Codes are widened to it in registers for a few rows, and
 * for more into the first-level cache; then multiplied as in linear_dots.c, or as float32 values. A group is summed by
 * itself, and its sum is scaled: w is never rounded. Offsets come first, times the sums of groups' inputs.
 * All sums are made in the order of the inputs, so that a row's result does not depend on the rows beside it.
 */
#include "products.h"
#include "tiles.h"

#define NR QUANTIZED_COLUMNS
#define MR 6
#define DEPTH QUANTIZED_GROUP
#define FEW_ROWS 4 /* of a tile for which codes are widened as they are multiplied: of one tile, or of two */

#define INLINED static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

static int64_t offsets_at(const Grid *g) { return NR * (int)sizeof(float) + (g->zeros ? 2 * NR : 0); }
static int64_t head_bytes(const Grid *g) { return offsets_at(g) + (g->offsets ? NR * (int)sizeof(float) : 0); }
static int64_t code_bytes(const Grid *g) { return (int64_t)g->group * NR * g->bits / 8; }
int64_t quantized_block(const Grid *g) { return head_bytes(g) + code_bytes(g); }

int64_t quantized_panel(const Grid *g, int in) { return in / g->group * quantized_block(g); }

/* How four inputs lie in a block: four vectors v of 32 values, those of 16 columns in pairs of inputs; vectors 0 and 1
 * have the first two inputs, 2 and 3 the next two; 0 and 2 the first 16 columns.
 *   4 bits: 32 words, word i has value i of vector t in bits 4t to 4t + 3
 *   8 bits: two inputs are 64 bytes, each 16 of which have 8 values of vector 0 and 8 of vector 1 */
#define VECTORS 4
#define LINE(bits) (NR * VECTORS * (bits) / 8)
#define BYTE_OF(half, i) ((i) / 8 * 16 + (half) * 8 + (i) % 8)

/* Add the offsets of all groups, times the sums of the groups' inputs, to the tile. */
INLINED void add_offsets(const Grid *g, int narrow, const void *x, const uint8_t *panel, int rows, int in,
                         float *tile) {
  int groups = in / g->group;
  for (int r = 0; r < rows; r++)
    for (int first = 0; first < groups; first += LANES) {
      lanes inputs[LANES] = {0};
      int some = groups - first < LANES ? groups - first : LANES;
      for (int i = 0; i < some; i++)
        for (int k = 0; k < g->group; k += LANES) {
          int64_t from = (int64_t)r * in + (first + i) * g->group + k;
          int left = g->group - k;
          inputs[i] += narrow ? take_bf16((const bf16 *)x + from, left) : take_float((const float *)x + from, left);
        }
      lanes sums = sums_of(inputs), total[NR / LANES];
      UNROLL for (int c = 0; c < NR / LANES; c++) total[c] = load_float(tile + r * NR + c * LANES);
      for (int i = 0; i < some; i++) {
        const float *offsets = (const float *)(panel + (first + i) * quantized_block(g) + offsets_at(g));
        UNROLL for (int c = 0; c < NR / LANES; c++)
          total[c] = multiply_add(all_of(sums[i]), load_float(offsets + c * LANES), total[c]);
      }
      UNROLL for (int c = 0; c < NR / LANES; c++) store_float(total[c], tile + r * NR + c * LANES);
    }
}

INLINED int zero_of(const Grid *g, const uint8_t *block, int column) {
  return g->zeros ? block[NR * sizeof(float) + column] : g->bits == 4 ? 8 : 0;
}

#if defined(__AVX512BW__) && defined(__AVX512VBMI__)

static uint16_t differences[32]; /* bfloat16 of -15 to 15 */
static uint16_t centred[32];     /* of -8 to 7, twice: the bit above a code is another's */
static uint8_t halves_of[2][128]; /* low and high, of 128 and of 1 to 127 */

static uint16_t bf16_of(int value) {
  union { float value; uint32_t bits; } exact = {(float)value};
  return (uint16_t)(exact.bits >> 16);
}

static __attribute__((constructor)) void fill_tables(void) {
  for (int i = 0; i < 32; i++) differences[i] = bf16_of(i - 15), centred[i] = bf16_of(i % 16 - 8);
  for (int i = 0; i < 128; i++) {
    uint16_t value = bf16_of(i ? i : 128);
    halves_of[0][i] = (uint8_t)value, halves_of[1][i] = (uint8_t)(value >> 8);
  }
}

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
    UNROLL for (int i = 0; i < 4; i++) tables.parts[i] = _mm512_loadu_si512((const uint8_t *)halves_of + 64 * i);
  else
    tables.parts[0] = _mm512_loadu_si512(kind == FOUR_ZEROS ? differences : centred);
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

INLINED void widen_kind(int kind, const Grid *g, const uint8_t *block, uint32_t *pairs) {
  __m512i shift[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, v[2];
  Tables tables = take_tables(kind);
  take_zeros(kind, block, shift);
  const uint8_t *codes = block + head_bytes(g);
  for (int k = 0; k < g->group; k += 4, codes += line_of(kind)) {
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

/* ---- inputs in bfloat16 */

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)

/* Where groups that follow one another lie: their blocks, and their codes or the widened ones. */
typedef struct {
  const uint8_t *blocks, *codes;
  int64_t block_bytes, code_bytes;
  int group;
} Groups;

/* Add the products of group number `at` to the totals. */
INLINED void dot_group(int kind, const Tables *tables, int rows, const Groups *from, int at, const uint32_t *x,
                       int64_t pairs, __m512 total[MR][2]) {
  const uint8_t *block = from->blocks + at * from->block_bytes, *line = from->codes + at * from->code_bytes;
  __m512 sum[MR][2];
  __m512i shift[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  take_zeros(kind, block, shift);
  UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  x += at * from->group / 2;
  for (int k = 0; k < from->group / 4; k++, line += line_of(kind))
    UNROLL for (int pair = 0; pair < 2; pair++) {
      __m512i v[2];
      widen(kind, tables, line, pair, shift, v);
      UNROLL for (int r = 0; r < rows; r++) {
        __m512bh values = (__m512bh)_mm512_set1_epi32((int)x[r * pairs + 2 * k + pair]);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)v[0], values);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)v[1], values);
      }
    }
  const float *scales = (const float *)block;
  __m512 low = _mm512_loadu_ps(scales), high = _mm512_loadu_ps(scales + 16);
  UNROLL for (int r = 0; r < rows; r++) {
    total[r][0] = _mm512_fmadd_ps(low, sum[r][0], total[r][0]);
    total[r][1] = _mm512_fmadd_ps(high, sum[r][1], total[r][1]);
  }
}

/* Add the products of `count` groups to the tile. */
INLINED void dot_tile(int kind, int rows, const Groups *from, int count, const uint32_t *x, int64_t pairs,
                      float *tile) {
  __m512 total[MR][2];
  UNROLL for (int r = 0; r < rows; r++) {
    total[r][0] = _mm512_loadu_ps(tile + r * NR);
    total[r][1] = _mm512_loadu_ps(tile + r * NR + 16);
  }
  Tables tables = take_tables(kind);
  for (int at = 0; at < count; at++) dot_group(kind, &tables, rows, from, at, x, pairs, total);
  UNROLL for (int r = 0; r < rows; r++) {
    _mm512_storeu_ps(tile + r * NR, total[r][0]);
    _mm512_storeu_ps(tile + r * NR + 16, total[r][1]);
  }
}

typedef void (*DotTile)(const Groups *, int, const uint32_t *, int64_t, float *);
#define DOT(KIND, ROWS)                                                                                               \
  static void dot_##KIND##_##ROWS(const Groups *from, int count, const uint32_t *x, int64_t pairs, float *tile) {     \
    dot_tile(KIND, ROWS, from, count, x, pairs, tile);                                                                \
  }
#define FEW(KIND) DOT(KIND, 1) DOT(KIND, 2) DOT(KIND, 3) DOT(KIND, 4)
FEW(FOUR) FEW(FOUR_ZEROS) FEW(EIGHT) FEW(WIDE) DOT(WIDE, 5) DOT(WIDE, 6)

static const DotTile DOT_TILES[][MR] = {
    [FOUR] = {dot_FOUR_1, dot_FOUR_2, dot_FOUR_3, dot_FOUR_4},
    [FOUR_ZEROS] = {dot_FOUR_ZEROS_1, dot_FOUR_ZEROS_2, dot_FOUR_ZEROS_3, dot_FOUR_ZEROS_4},
    [EIGHT] = {dot_EIGHT_1, dot_EIGHT_2, dot_EIGHT_3, dot_EIGHT_4},
    [WIDE] = {dot_WIDE_1, dot_WIDE_2, dot_WIDE_3, dot_WIDE_4, dot_WIDE_5, dot_WIDE_6},
};
/* Add the products of `count` groups to rows of a tile, which are dealt out evenly: 8 are 4 and 4, not 6 and 2. */
static void dot_rows(int kind, const Groups *from, int count, const bf16 *x, int rows, int in, float *tile) {
  int most = kind == WIDE ? MR : FEW_ROWS, tiles = (rows + most - 1) / most;
  for (int t = 0, r = 0; t < tiles; t++) {
    int height = (rows - r + tiles - t - 1) / (tiles - t);
    DOT_TILES[kind][height - 1](from, count, (const uint32_t *)(x + (int64_t)r * in), in / 2, tile + r * NR);
    r += height;
  }
}

void quantized_dots(const Grid *g, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile) {
  memset(tile, 0, sizeof(float) * (size_t)rows * NR);
  if (g->offsets) add_offsets(g, 1, x, panel, rows, in, tile);
  if (g->group % (TILE_INPUTS / 2) == 0 && has_tiles()) {
    add_by_tiles(g, x, panel, rows, in, tile);
    return;
  }
  int count = in / g->group;
  Groups from = {panel, panel + head_bytes(g), quantized_block(g), quantized_block(g), g->group};
  if (rows <= 2 * FEW_ROWS) {
    dot_rows(kind_of(g), &from, count, x, rows, in, tile);
    return;
  }
  uint32_t widened[DEPTH / 2 * NR] __attribute__((aligned(64)));
  from.codes = (const uint8_t *)widened, from.code_bytes = (int64_t)g->group * NR * sizeof(bf16);
  int some = DEPTH / g->group;
  for (int at = 0; at < count; at += some) {
    int now = count - at < some ? count - at : some;
    from.blocks = panel + at * from.block_bytes;
    for (int i = 0; i < now; i++) widen_group(g, from.blocks + i * from.block_bytes, widened + i * g->group / 2 * NR);
    dot_rows(WIDE, &from, now, x + at * g->group, rows, in, tile);
  }
}

int has_quantized_dots(void) { return 1; }

#else

void quantized_dots(const Grid *g, const bf16 *x, const uint8_t *panel, int rows, int in, float *tile) {}

int has_quantized_dots(void) { return 0; }

#endif

/* ---- inputs in float32 */

/* Add the products of a group to two vectors of each row of the tile. */
INLINED void add_group(int rows, const Grid *g, const uint32_t *pairs, const float *scales, const float *x, int64_t in,
                       float *tile) {
  lanes sum[MR][2];
  UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (lanes){0};
  for (int k = 0; k < g->group; k += 2, pairs += NR) {
    bits first, second;
    memcpy(&first, pairs, sizeof first), memcpy(&second, pairs + LANES, sizeof second);
    lanes even[] = {(lanes)(first << 16), (lanes)(second << 16)};
    lanes odd[] = {(lanes)(first & 0xFFFF0000), (lanes)(second & 0xFFFF0000)};
    UNROLL for (int r = 0; r < rows; r++) {
      lanes one = all_of(x[r * in + k]), other = all_of(x[r * in + k + 1]);
      sum[r][0] = multiply_add(other, odd[0], multiply_add(one, even[0], sum[r][0]));
      sum[r][1] = multiply_add(other, odd[1], multiply_add(one, even[1], sum[r][1]));
    }
  }
  UNROLL for (int r = 0; r < rows; r++)
    for (int c = 0; c < 2 * LANES; c += LANES) {
      float *to = tile + r * NR + c;
      store_float(multiply_add(load_float(scales + c), sum[r][c / LANES], load_float(to)), to);
    }
}

#define ADD(ROWS)                                                                                                     \
  case ROWS: add_group(ROWS, g, pairs + c, scales + c, x, in, tile + c); break;

static void add_columns(int rows, const Grid *g, const uint32_t *pairs, const float *scales, const float *x, int64_t in,
                        float *tile) {
  for (int c = 0; c < NR; c += 2 * LANES) switch (rows) { ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) }
}

void quantized_widening(const Grid *g, const float *x, const uint8_t *panel, int rows, int in, float *tile) {
  uint32_t widened[DEPTH / 2 * NR] __attribute__((aligned(64)));
  memset(tile, 0, sizeof(float) * (size_t)rows * NR);
  if (g->offsets) add_offsets(g, 0, x, panel, rows, in, tile);
  int tiles = (rows + MR - 1) / MR;
  for (int k = 0; k < in; k += g->group, panel += quantized_block(g)) {
    widen_group(g, panel, widened);
    for (int t = 0, r = 0; t < tiles; t++) {
      int height = (rows - r + tiles - t - 1) / (tiles - t);
      add_columns(height, g, widened, (const float *)panel, x + (int64_t)r * in + k, in, tile + r * NR);
      r += height;
    }
  }
}

/* ---- the layout */

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
