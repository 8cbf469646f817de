// A control loop's timing without a control loop: the yardstick for robotd's own.
//
//   wake PERIOD_NS TICKS PRIORITY ANCHOR_NS    wakes at ANCHOR_NS + k * PERIOD_NS (CLOCK_MONOTONIC)
//   wake burn                                  keeps one core busy until it is ended
//
// SCHED_FIFO, memory locked, clock_nanosleep with absolute deadlines; missed ticks are skipped. The
// first line of output says what was obtained and what was missed, the following ones hold how late
// each wake-up was, in nanoseconds.

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + at.tv_nsec;
}

static void burn(void) {
    for (volatile uint64_t turns = 0;; turns++) {}
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc == 2 && !strcmp(argv[1], "burn")) burn();
    if (argc != 5) return 2;
    uint64_t period = strtoull(argv[1], NULL, 10), ticks = strtoull(argv[2], NULL, 10);
    uint64_t deadline = strtoull(argv[4], NULL, 10), missed = 0;
    struct sched_param priority = {.sched_priority = atoi(argv[3])};
    if (!period || !ticks || ticks > 10000000) return 2;
    uint32_t *late = calloc(ticks, sizeof *late);
    if (!late) return 1;
    memset(late, 0, ticks * sizeof *late);
    int fifo = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    int locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
    uint64_t now = now_ns();
    if (deadline <= now) deadline += ((now - deadline) / period + 1) * period;
    for (uint64_t tick = 0; tick < ticks; tick++) {
        struct timespec at = {deadline / 1000000000u, deadline % 1000000000u};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {}
        now = now_ns();
        late[tick] = now - deadline < UINT32_MAX ? now - deadline : UINT32_MAX;
        uint64_t skipped = (now - deadline) / period;
        missed += skipped;
        deadline += (skipped + 1) * period;
    }
    printf("fifo %d locked %d missed %llu\n", fifo, locked, (unsigned long long)missed);
    for (uint64_t tick = 0; tick < ticks; tick++) printf("%u\n", late[tick]);
    return 0;
}
