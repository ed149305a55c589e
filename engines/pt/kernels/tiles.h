/* The tiles of AMX: eight registers of up to 16 rows of 64 bytes, and an instruction for products of bfloat16 values.
 *
 * Linux lends them to a process that asks for them, as the library does when it is loaded. A thread gives its tiles a
 * shape before it uses them and leaves them when it is done: a switch to another thread saves 8 KiB where they are in
 * use. Each product adds to 16 x 16 sums what up to 32 inputs give, odd and even ones apart, so that it rounds otherwise
 * than AVX512-BF16 does; what one row of a tile gets does not depend on the others.
 */
#pragma once
#include "lanes.h"

#define TILE_ROWS 16
#define TILE_INPUTS 32

int has_tiles(void); /* whether this machine has tiles and this process may use them */

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1

/* The thread's tiles: 0 to 3 are sums [rows][16] float32, 4 and 5 inputs [rows][inputs] bfloat16, 6 and 7 weights
 * [inputs / 2][16][2] bfloat16. Their content is lost where the shape was another, which takes some 70 ns. */
void take_tiles(int rows, int inputs);
void leave_tiles(void);

/* GCC does not know that a load reads memory. */
#define LOAD_TILE(number, from, stride)                                                                               \
  do {                                                                                                                \
    __asm__ volatile("" ::: "memory");                                                                                \
    _tile_loadd(number, from, stride);                                                                                \
  } while (0)

/* The same of what is not used again soon: it leaves the first-level cache to the rest. */
#define STREAM_TILE(number, from, stride)                                                                             \
  do {                                                                                                                \
    __asm__ volatile("" ::: "memory");                                                                                \
    _tile_stream_loadd(number, from, stride);                                                                         \
  } while (0)

#else
#define TILES 0
static inline void leave_tiles(void) {}
#endif
