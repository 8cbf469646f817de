"""Deadlines on a fixed grid: skipped and counted when missed, never made up for."""

import time

from hypothesis import given
from hypothesis import strategies as st

from robotd.control.clock import MonotonicClock, Pacer
from tests.control.rig import START_NS, SteppedClock

PERIOD = 5_000_000


class DrowsyClock(SteppedClock):
    """Wakes up twice for every sleep, as signals make it."""

    def sleep_until(self, deadline_ns: int) -> None:
        self.time_ns = max(self.time_ns, (self.time_ns + deadline_ns + 1) // 2)


def test_deadlines_lie_on_the_grid() -> None:
    clock = SteppedClock()
    pacer = Pacer(clock, PERIOD)
    for k in range(1, 20):
        assert pacer.wait() == START_NS + k * PERIOD == clock.time_ns
        clock.time_ns += 1_000_000  # the tick's own time does not shift the next one
    assert pacer.missed == 0


def test_missed_deadlines_are_skipped_and_counted() -> None:
    clock = SteppedClock()
    pacer = Pacer(clock, PERIOD)
    pacer.wait()
    clock.time_ns += 3 * PERIOD + 1  # deadlines 2, 3 and 4 have passed
    assert pacer.wait() == START_NS + 5 * PERIOD
    assert pacer.missed == 3
    assert pacer.wait() == START_NS + 6 * PERIOD


def test_a_deadline_met_exactly_is_not_missed() -> None:
    clock = SteppedClock()
    pacer = Pacer(clock, PERIOD)
    clock.time_ns += PERIOD
    assert pacer.wait() == START_NS + PERIOD
    assert pacer.missed == 0


def test_an_early_wake_up_is_slept_out() -> None:
    clock = DrowsyClock()
    pacer = Pacer(clock, PERIOD)
    assert pacer.wait() == clock.time_ns


@given(st.lists(st.integers(0, 10 * PERIOD), max_size=30))
def test_no_two_ticks_are_closer_than_a_period(work_ns: list[int]) -> None:
    clock = SteppedClock()
    pacer = Pacer(clock, PERIOD)
    last = START_NS
    for work in work_ns:
        deadline = pacer.wait()
        assert deadline >= last + PERIOD
        assert (deadline - START_NS) % PERIOD == 0
        assert clock.time_ns == deadline  # always woken on time: what was late was skipped
        clock.time_ns += work
        last = deadline
    assert (last - START_NS) // PERIOD == len(work_ns) + pacer.missed


def test_the_monotonic_clock_sleeps_to_an_absolute_time() -> None:
    clock = MonotonicClock()
    begun = time.monotonic_ns()
    assert abs(clock.now_ns() - begun) < 10**9
    clock.sleep_until(begun + 20_000_000)
    assert time.monotonic_ns() >= begun + 20_000_000
    clock.sleep_until(begun)  # already past: no sleep, no error
