/* What a machine does at most, for measurements (benchmarks/steps.py): reading memory, and products of tiles. */
#include <stdint.h>

#include "lanes.h"
#include "tiles.h"

#define STRETCH (1 << 20) /* bytes of a task */
#define STREAMS 4         /* that a thread reads side by side */
#define AHEAD 2048        /* bytes: how far before its use memory is fetched */

/* Read memory once, a multiple of 1 MiB, with all threads. */
void read_memory(const char *from, int64_t bytes) {
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t task = 0; task < bytes / STRETCH; task++) {
    bits all[STREAMS] = {{0}};
    for (int at = 0; at < STRETCH / STREAMS; at += (int)sizeof(bits))
      for (int i = 0; i < STREAMS; i++) {
        const char *line = from + task * STRETCH + i * (STRETCH / STREAMS) + at;
        bits values;
        memcpy(&values, line, sizeof values);
        __builtin_prefetch(line + AHEAD);
        all[i] |= values;
      }
    for (int i = 0; i < STREAMS; i++) __asm__ volatile("" : : "m"(all[i]));
  }
}

/* Make products of full tiles in each thread. Returns the operations of all threads; 0: there are no tiles. */
double multiply_tiles(int64_t times) {
  double operations = 0.0;
#if TILES
  if (!has_tiles()) return 0.0;
#pragma omp parallel reduction(+ : operations)
  {
    take_tiles(TILE_ROWS, TILE_INPUTS);
    for (int64_t i = 0; i < times; i++) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    leave_tiles();
    operations += 4.0 * 2.0 * TILE_ROWS * 16 * TILE_INPUTS * (double)times;
  }
#endif
  return operations;
}
