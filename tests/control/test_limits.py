"""The limiter: its promises, for any stream of targets."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.control.limits import (
    JointLimits,
    JointState,
    braking_travel,
    fastest_step,
    limit,
    seed,
    stopping_point,
)
from robotd.ipc.ring import Limited

BODY = JointLimits.per_second((-100, 100), 150, 1200, 40, 0.005)


def limits_strategy() -> st.SearchStrategy[JointLimits]:
    def build(low: float, span: float, velocity: float, stop_s: float, rate: float, bound: float):
        return JointLimits.per_second(
            (low, low + span), velocity, velocity / stop_s, bound, 1 / rate
        )

    return st.builds(
        build,
        st.floats(-100, 60),
        st.floats(0.5, 150),
        st.floats(5, 500),
        st.floats(0.02, 1.0),
        st.sampled_from([50.0, 200.0, 333.0, 1000.0]),
        st.floats(1, 100),
    )


anything = st.one_of(
    st.floats(-130, 130),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -100.0, 100.0, 1e308, 5e-324]),
)


def run(
    targets: Sequence[float], start: float, limits: JointLimits, measured: Sequence[float] = ()
) -> list[tuple[float, int]]:
    """Applied targets and bits; the joint follows exactly unless measured positions are given."""
    state, out = seed(start), []
    for index, target in enumerate(targets):
        at = measured[index % len(measured)] if measured else state.applied
        state, bits = limit(target, at, state, limits)
        out.append((state.applied, bits))
    return out


def assert_envelope(applied: Sequence[float], start: float, limits: JointLimits) -> None:
    """Recomputed from the applied targets alone, without any tolerance."""
    low, high = min(limits.lower, start), max(limits.upper, start)
    last, last_step = start, 0.0
    for value in applied:
        step = value - last
        assert low <= value <= high
        assert abs(step) <= limits.step
        assert abs(step - last_step) <= limits.change
        last, last_step = value, step
        low, high = max(low, min(limits.lower, value)), min(high, max(limits.upper, value))


@settings(max_examples=300, deadline=None)
@given(
    limits_strategy(),
    st.floats(-0.3, 1.3),
    st.lists(anything, min_size=1, max_size=80),
    st.lists(anything, max_size=5),
)
def test_no_stream_of_targets_leaves_the_envelope(
    limits: JointLimits, where: float, targets: list[float], measured: list[float]
) -> None:
    start = limits.lower + where * (limits.upper - limits.lower)
    applied = [value for value, _ in run(targets, start, limits, measured)]
    assert_envelope(applied, start, limits)


@settings(max_examples=200, deadline=None)
@given(
    limits_strategy(),
    st.lists(st.tuples(st.floats(-1.1, 1.1), st.integers(1, 200)), min_size=1, max_size=4),
)
def test_a_stream_that_runs_into_the_end_of_the_range_is_braked_in_time(
    limits: JointLimits, ramps: list[tuple[float, int]]
) -> None:
    """Slopes are shares of the velocity limit; the stream does not care about the range."""
    start = (limits.lower + limits.upper) / 2
    targets, at = [], start
    for slope, ticks in ramps:
        for _ in range(ticks):
            at += slope * limits.step
            targets.append(at)
    applied = [value for value, _ in run(targets, start, limits)]
    assert_envelope(applied, start, limits)


def test_a_ramp_into_the_end_of_the_range_stops_there() -> None:
    ramp = [0.7 * k for k in range(1, 200)]  # inside all limits until the range ends
    out = run(ramp, 0.0, BODY)
    assert_envelope([applied for applied, _ in out], 0.0, BODY)
    assert out[-1] == (100.0, Limited.POSITION)
    assert max(applied for applied, _ in out) == 100.0


@settings(max_examples=150, deadline=None)
@given(limits_strategy(), st.lists(st.floats(-130, 130), min_size=1, max_size=60))
def test_it_can_always_stop_inside_the_range(limits: JointLimits, targets: list[float]) -> None:
    state = seed((limits.lower + limits.upper) / 2)
    for target in targets:
        state, _ = limit(target, state.applied, state, limits)
        rest = stopping_point(state, limits)
        assert limits.lower <= rest <= limits.upper
    rest = stopping_point(state, limits)
    applied = []
    while state.step != 0.0 or not applied:
        state, _ = limit(math.nan, state.applied, state, limits)
        applied.append(state.applied)
        assert len(applied) < 2000
    assert applied[-1] == pytest.approx(rest, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    limits_strategy(),
    st.floats(0.1, 0.9),
    st.floats(0.05, 0.98),
    st.floats(0.05, 0.98),
    st.integers(20, 300),
)
def test_a_stream_inside_the_envelope_passes_unchanged(
    limits: JointLimits, middle: float, fast: float, hard: float, ticks: int
) -> None:
    """Sines whose peak velocity and acceleration are shares of the limits."""
    limits = replace(limits, following=limits.following + 2 * limits.step)
    span = limits.upper - limits.lower
    centre = limits.lower + middle * span
    step, change = fast * limits.step, hard * limits.change
    omega = change / step  # radians per tick
    room = min(centre - limits.lower, limits.upper - centre)
    swing = min(step / omega, 0.95 * room)
    # From rest at one end of the swing, as a motion begins.
    targets = [centre - swing * math.cos(omega * k) for k in range(ticks)]
    for asked, (applied, bits) in zip(targets, run(targets, targets[0], limits), strict=True):
        assert applied == asked
        assert bits == 0


def test_engaging_never_jumps_wherever_the_target_is() -> None:
    for target in (-100.0, 100.0, math.inf, math.nan, 12.345):
        [(applied, _)] = run([target], 10.0, BODY)
        assert abs(applied - 10.0) <= BODY.change


@settings(max_examples=200, deadline=None)
@given(limits_strategy(), st.floats(0, 1), st.floats(0, 1))
def test_a_far_target_is_reached_without_overshoot_in_the_time_of_a_trapezoid(
    limits: JointLimits, start_share: float, goal_share: float
) -> None:
    limits = replace(limits, following=1000.0)
    span = limits.upper - limits.lower
    start, goal = limits.lower + start_share * span, limits.lower + goal_share * span
    way = abs(goal - start)
    ramp = limits.step / limits.change
    if way >= limits.step * ramp:
        best = way / limits.step + ramp
    else:
        best = 2 * math.sqrt(way / limits.change)
    state, ticks = seed(start), 0
    while state.applied != goal or state.step != 0.0:
        state, _ = limit(goal, state.applied, state, limits)
        ticks += 1
        assert abs(state.applied - start) <= way * (1 + 1e-12) + 1e-12
        assert ticks <= 1.001 * best + 4


@settings(max_examples=100, deadline=None)
@given(st.floats(101, 250), st.lists(st.floats(-150, 260), min_size=1, max_size=100))
def test_a_seed_outside_the_range_moves_only_inward(start: float, targets: list[float]) -> None:
    last = start
    for applied, _ in run(targets, start, BODY):
        assert applied <= max(last, 100.0)
        last = applied


def test_a_joint_outside_its_range_may_stay_there() -> None:
    assert run([104.0, 104.0, 104.0], 104.0, BODY) == [(104.0, 0)] * 3


def test_a_moving_target_is_caught_up_with_although_it_starts_ahead() -> None:
    """A ramp that begins at full speed: the lag of the acceleration phase is made good."""
    ramp = [0.5 * k for k in range(1, 120)]  # 100 units/s
    out = run(ramp, 0.0, BODY)
    assert [applied for applied, _ in out[-40:]] == ramp[-40:]
    assert max(a - b for (a, _), b in zip(out, ramp, strict=True)) <= 1e-9  # never ahead of it


def test_bits_say_what_was_limited() -> None:
    _, bits = limit(math.nan, 0.0, seed(0.0), BODY)
    assert bits == Limited.NOT_FINITE
    _, bits = limit(200.0, 0.0, seed(0.0), BODY)
    assert bits & Limited.POSITION
    assert bits & Limited.FOLLOWING
    assert bits & Limited.ACCELERATION
    state = JointState(0.0, BODY.step * (1 - 1e-9), 0.0, 0.0)
    _, bits = limit(30.0, 0.0, state, BODY)
    assert bits == Limited.VELOCITY
    _, bits = limit(0.0, math.nan, seed(0.0), BODY)
    assert bits == 0  # nothing had to be changed
    _, bits = limit(1.0, math.nan, seed(0.0), BODY)
    assert bits == Limited.FOLLOWING  # cannot be judged: it stays


@settings(max_examples=100, deadline=None)
@given(limits_strategy(), st.floats(0, 1), st.floats(0, 1))
def test_a_narrow_following_bound_slows_down_but_does_not_make_it_overshoot(
    limits: JointLimits, start_share: float, goal_share: float
) -> None:
    span = limits.upper - limits.lower
    start, goal = limits.lower + start_share * span, limits.lower + goal_share * span
    state, ticks = seed(start), 0
    while state.applied != goal or state.step != 0.0:
        state, _ = limit(goal, state.applied, state, limits)
        ticks += 1
        assert abs(state.applied - start) <= abs(goal - start) + 1e-9
        assert ticks < 200_000


def test_the_target_stays_within_reach_of_a_joint_that_is_stuck() -> None:
    out = run([90.0] * 400, 0.0, BODY, measured=[0.0])
    assert out[-1] == (40.0, Limited.FOLLOWING)
    assert max(applied for applied, _ in out) <= 40.0 + 1e-9


def test_the_target_returns_when_the_joint_is_pushed_away() -> None:
    out = run([0.0] * 400, 0.0, BODY, measured=[60.0])
    assert out[-1] == (20.0, Limited.FOLLOWING)


def test_a_late_tick_is_not_allowed_more() -> None:
    """There is no time in the limiter: the nominal period is in the limits."""
    assert "ns" not in " ".join(JointLimits.__slots__)


@given(st.floats(1e-7, 1e4), st.floats(0, 1e3))
def test_fastest_step_is_the_inverse_of_braking_travel(change: float, distance: float) -> None:
    if distance / change > 1e12:
        return
    step = fastest_step(distance, change)
    assert braking_travel(step, change) == pytest.approx(distance, rel=1e-9, abs=1e-12)


def test_braking_travel_adds_up_the_steps() -> None:
    steps = [1.0, 0.7, 0.4, 0.1]
    assert braking_travel(1.0, 0.3) == pytest.approx(sum(steps))
    assert fastest_step(-1.0, 0.3) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        (5.0, 5.0, 1.0, 0.1, 10.0),
        (math.nan, 5.0, 1.0, 0.1, 10.0),
        (0.0, 5.0, 0.0, 0.1, 10.0),
        (0.0, 5.0, math.inf, 0.1, 10.0),
        (0.0, 5.0, 1.0, 1e-9, 10.0),
        (0.0, 5.0, 1.0, 0.1, 0.0),
    ],
)
def test_limits_that_cannot_be_held_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be held"):
        JointLimits(*wrong)
