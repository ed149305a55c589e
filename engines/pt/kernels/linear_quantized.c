/* y = x W^T + b on a CPU, W in integers of 4 or 8 bits: w = scale (code - zero) + offset, each of these one for a group
 * of neighbours in a row of W.
 *
 * x       [rows, in]    float32, or bfloat16 where `dots`; in is a multiple of the group
 * w       [panels][in / group] blocks (quantized.h)
 * bias    [out] float32, or NULL
 * y       [rows, out]   float32
 *
 * Codes are widened in registers for a few rows, and for more into the first-level cache; then multiplied as in
 * linear_dots.c, or as float32 values. A group is summed by itself, and its sum is scaled: w is never rounded. Offsets
 * come first, times the sums of groups' inputs.
 * All sums are made in the order of the inputs, so that a row's result does not depend on the rows beside it.
 */
#include "quantized.h"
#include "tiles.h"

#define MR 6
#define DEPTH QUANTIZED_GROUP
#define FEW_ROWS 4 /* of a tile for which codes are widened as they are multiplied: of one tile, or of two */

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
