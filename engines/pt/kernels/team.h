/* Threads that go through the same phases, each a number of tasks that are taken one by one.
 *
 * Whoever is done with a phase waits for the others: a moment in a loop, for they are about to come as a rule, and then
 * asleep, for on a busy machine the one that is waited for may need this very core.
 */
#pragma once
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TURNS 2000 /* of the loop: some tens of microseconds */

typedef struct {
  _Alignas(64) atomic_llong taken; /* tasks, over all phases, and one more for each thread and phase */
  _Alignas(64) atomic_int arrived; /* threads, over all phases */
  _Alignas(64) atomic_int passed;  /* phases that are over */
  atomic_int asleep;
  _Alignas(64) atomic_int done; /* tasks that others of their own phase need, over all phases */
} Team;

typedef struct {
  Team *team;
  int threads, number, phase;
  long long base; /* of this phase's tasks in `taken` */
  int due;        /* of `done`, up to those of this phase */
} Member;

static inline long long next_task(Member *me) {
  return atomic_fetch_add_explicit(&me->team->taken, 1, memory_order_relaxed) - me->base;
}

#define EVERY_TASK(task, me, count) for (long long task; (task = next_task(me)) < (count);)

static inline void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static inline void sleep_until_passed(Team *team, int phase) {
#if defined(__linux__)
  atomic_fetch_add(&team->asleep, 1);
  while (atomic_load(&team->passed) == phase) syscall(SYS_futex, &team->passed, FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
  atomic_fetch_sub(&team->asleep, 1);
#else
  while (atomic_load(&team->passed) == phase) sched_yield();
#endif
}

/* The first `count` tasks of this phase are needed by its others: each ends with `tell_done`, and whoever needs them calls
 * `await`. They wait for none, so all of them end. */
static inline void expect(Member *me, int count) { me->due += count; }
static inline void tell_done(Member *me) { atomic_fetch_add_explicit(&me->team->done, 1, memory_order_release); }
static inline void await(Member *me) {
  for (int turn = 0; atomic_load_explicit(&me->team->done, memory_order_acquire) < me->due; turn++)
    if (turn < TURNS)
      rest();
    else
      sched_yield();
}

/* End a phase of `tasks` tasks. What was written in it can be read by all. */
static inline void meet(Member *me, long long tasks) {
  Team *team = me->team;
  me->base += tasks + me->threads;
  int phase = me->phase++;
  if (me->threads == 1) return;
  if (atomic_fetch_add(&team->arrived, 1) + 1 == me->threads * me->phase) {
    atomic_store(&team->passed, me->phase);
#if defined(__linux__)
    if (atomic_load(&team->asleep)) syscall(SYS_futex, &team->passed, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
#endif
    return;
  }
  for (int turn = 0; turn < TURNS; turn++) {
    if (atomic_load_explicit(&team->passed, memory_order_acquire) != phase) return;
    rest();
  }
  sleep_until_passed(team, phase);
}
