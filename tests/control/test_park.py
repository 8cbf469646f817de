"""The way to the park pose."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.control.limits import JointLimits, limit, seed
from robotd.control.park import Ramp

LIMITS = JointLimits.per_second((-100, 100), 150, 1200, 40, 0.005)
poses = st.lists(st.floats(-100, 100), min_size=3, max_size=3)


@settings(max_examples=30, deadline=None)
@given(poses, poses, st.floats(0.02, 0.75))
def test_joints_arrive_together_and_inside_their_limits(
    start: list[float], goal: list[float], step: float
) -> None:
    ramp = Ramp(start, goal, [step] * 3, [LIMITS] * 3)
    states = [seed(value) for value in start]
    for tick in range(1, ramp.ticks + 2):
        targets = ramp.at(tick)
        for index, target in enumerate(targets):
            state, bits = limit(target, states[index].applied, states[index], LIMITS)
            assert bits == 0
            assert abs(state.step) <= step * (1 + 1e-9)
            states[index] = state
    assert [state.applied for state in states] == goal
    assert ramp.at(10**9) == tuple(goal)


def test_it_begins_where_the_arm_is_and_takes_the_slowest_joints_time() -> None:
    ramp = Ramp([0.0, 0.0], [60.0, 1.0], [0.3, 0.3], [LIMITS] * 2)
    assert ramp.at(0) == (0.0, 0.0)
    assert ramp.at(ramp.ticks // 2) == pytest.approx((30.0, 0.5), rel=0.02)
    assert ramp.ticks == pytest.approx(1.5 * 60 / 0.3, rel=0.02)


def test_already_there_takes_no_time() -> None:
    assert Ramp([5.0], [5.0], [0.3], [LIMITS]).ticks <= 2
