/* Where the time of steps goes, as the first of the threads sees it: it meets the others at the end of each phase. */
#pragma once
#include <stdint.h>
#include <time.h>

enum { NORMS, PROJECTIONS, POSITIONS, ATTENTION, MLP, HEAD, PARTS }; /* as decoder.py names them */

typedef struct {
  int64_t *nanoseconds; /* [PARTS], or NULL */
  int64_t since;
} Clock;

static inline int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The time since the last part has gone to this one. */
static inline void went_to(Clock *clock, int part) {
  if (clock->nanoseconds == NULL) return;
  int64_t time = now();
  clock->nanoseconds[part] += time - clock->since, clock->since = time;
}
