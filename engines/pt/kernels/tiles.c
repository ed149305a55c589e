/* Permission to use tiles, and their shapes: see tiles.h. */
#include "tiles.h"

#if TILES

#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* of arch_prctl, and the number of the tiles' state: asm/prctl.h of Linux 5.16 */
#define XFEATURE_XTILEDATA 18

static int allowed;

static __attribute__((constructor)) void ask(void) {
  allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

int has_tiles(void) { return allowed; }

/* As LDTILECFG reads it. */
typedef struct {
  uint8_t palette, start_row, unused[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} Shape;

static _Thread_local int taken_rows, taken_inputs; /* 0: none */

void take_tiles(int rows, int inputs) {
  if (rows == taken_rows && inputs == taken_inputs) return;
  Shape shape = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    shape.row_bytes[i] = (uint16_t)(i == 4 || i == 5 ? inputs * (int)sizeof(bf16) : 64);
    shape.rows[i] = (uint8_t)(i < 6 ? rows : inputs / 2);
  }
  __asm__ volatile("" : : "r"(&shape) : "memory"); /* GCC takes LDTILECFG to read 8 bytes of it */
  _tile_loadconfig(&shape);
  taken_rows = rows, taken_inputs = inputs;
}

void leave_tiles(void) {
  if (taken_rows) _tile_release();
  taken_rows = 0;
}

#else

int has_tiles(void) { return 0; }

#endif
