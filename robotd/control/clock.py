"""Time for the loop: a clock, and absolute deadlines on a fixed grid.

There is one pacer. After an overrun the missed deadlines are skipped and counted; ticks are never
made back to back to catch up. Nothing here spins: at SCHED_FIFO that would starve the machine.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the loop's time comes from; CLOCK_MONOTONIC or a stepped clock. Nanoseconds."""

    def now_ns(self) -> int:
        """The present time."""
        ...

    def sleep_until(self, deadline_ns: int) -> None:
        """Return at the deadline or after it; earlier only when a signal has arrived."""
        ...


class MonotonicClock:
    """CLOCK_MONOTONIC. `time.sleep` itself waits for an absolute time of that clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        left_ns = deadline_ns - time.monotonic_ns()
        if left_ns > 0:
            time.sleep(left_ns * 1e-9)


class Pacer:
    """Deadlines `start + k * period`, each at most once."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self._deadline_ns = clock.now_ns()
        self.missed = 0  # deadlines skipped so far

    def wait(self) -> int:
        """Sleep until the next deadline that is not yet past; returns it."""
        deadline = self._deadline_ns + self._period_ns
        late = self._clock.now_ns() - deadline
        if late > 0:
            skipped = late // self._period_ns + 1
            self.missed += skipped
            deadline += skipped * self._period_ns
        self._deadline_ns = deadline
        while self._clock.now_ns() < deadline:
            self._clock.sleep_until(deadline)
        return deadline
