"""The guard: what it blocks, against a plain recomputation over all goals."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.control.guard import WINDOW_NS, Guard, HardJoint

MS = 1_000_000
JOINT = HardJoint("a.wrist_roll", -105.0, 105.0, step=4.0, rate=200.0)  # 50 units in 250 ms


def started(at: float = 0.0, now_ns: int = 0, joint: HardJoint = JOINT) -> Guard:
    guard = Guard([joint])
    guard.start([at], now_ns)
    return guard


@pytest.mark.parametrize("goal", [math.nan, math.inf, -math.inf, 105.1, -105.1, 1e300])
def test_goals_outside_the_hard_range_are_blocked(goal: float) -> None:
    guard = started(104.0)
    block = guard.check([goal], 5 * MS)
    assert block is not None
    assert block.joint == 0
    assert "a.wrist_roll" in block.reason
    assert "outside the hard range" in block.reason
    assert guard.last == (104.0,)


def test_a_step_up_to_the_limit_passes_and_a_larger_one_is_blocked() -> None:
    guard = started()
    assert guard.check([4.0], 5 * MS) is None
    block = guard.check([8.001], 10 * MS)
    assert block is not None
    assert "4.00 units from the one before" in block.reason
    assert guard.check([0.0], 15 * MS) is None


def test_many_small_steps_are_blocked_when_their_sum_is_too_fast_in_real_time() -> None:
    """A loop that makes up for lost ticks: every step is small, the rate is not."""
    guard = started()
    blocked = [guard.check([3.0 * k], k * MS) for k in range(1, 30)]
    assert blocked[15] is None  # 48 units
    assert blocked[16] is not None  # 51 units
    assert "within 250 ms" in blocked[16].reason


def test_the_same_steps_at_their_proper_pace_pass() -> None:
    guard = started(-90.0)
    for k in range(1, 60):
        assert guard.check([-90.0 + 3.0 * k], k * 15 * MS) is None


def test_to_and_fro_counts_as_the_spread_not_the_sum() -> None:
    guard = started()
    for k in range(1, 500):
        assert guard.check([3.0 * (k % 2)], k * MS) is None


def test_a_goal_that_stood_long_still_counts_when_it_has_just_been_left() -> None:
    guard = started(joint=HardJoint("j", -105, 105, step=60, rate=200))
    for k in range(1, 400):
        assert guard.check([0.0], k * 5 * MS) is None
    assert guard.check([49.0], 2000 * MS) is None
    assert guard.check([51.0], 2005 * MS) is not None
    assert guard.check([51.0], 1995 * MS + WINDOW_NS + 1) is None


def test_a_block_leaves_nothing_behind() -> None:
    guard = started()
    assert guard.check([2.0], 5 * MS) is None
    assert guard.check([50.0], 10 * MS) is not None
    assert guard.last == (2.0,)
    assert guard.check([3.0], 15 * MS) is None


def test_one_bad_joint_blocks_all_of_them() -> None:
    guard = Guard([JOINT, HardJoint("a.gripper", -5, 105, 6, 260)])
    guard.start([0.0, 50.0], 0)
    block = guard.check([1.0, 57.0], 5 * MS)
    assert block is not None
    assert block.joint == 1
    assert guard.last == (0.0, 50.0)
    assert guard.check([1.0, 56.0], 10 * MS) is None


def test_starting_anew_forgets_the_windows() -> None:
    guard = started()
    assert guard.check([4.0], MS) is None
    guard.start([100.0], 2 * MS)
    assert guard.check([97.0], 3 * MS) is None


def test_positions_can_be_looked_at_without_passing_them() -> None:
    guard = Guard([JOINT])
    assert guard.outside([105.0]) is None
    assert guard.outside([math.nan]) is not None
    block = guard.outside([-106.0])
    assert block is not None
    assert "-106.00 is outside the hard range -105 to 105" in block.reason


def test_more_or_fewer_goals_than_joints_are_a_defect_not_a_pass() -> None:
    with pytest.raises(ValueError, match="zip"):
        started().check([1.0, 2.0], 5 * MS)
    with pytest.raises(ValueError, match="zip"):
        Guard([JOINT]).check([1.0], 5 * MS)  # never started


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.just(0.0), st.floats(-4.5, 4.5), st.floats(allow_nan=True, allow_infinity=True)
            ),
            st.sampled_from([0, 1, 2, 5, 20, 60, 125, 250, 251]),
        ),
        max_size=80,
    )
)
def test_it_agrees_with_a_plain_recomputation(moves: list[tuple[float, int]]) -> None:
    """Every goal ever passed, with its time; the rules applied to all of them anew."""
    guard = started()
    passed, now = [(0, 0.0)], 0
    for move, wait_ms in moves:
        now += wait_ms * MS
        last = passed[-1][1]
        goal = last + move
        window = [g for t, g in passed if t >= now - WINDOW_NS] + [goal]
        allowed = (
            -105 <= goal <= 105
            and abs(goal - last) <= 4
            and max(window) - min(window) <= JOINT.rate * 0.25
        )
        assert (guard.check([goal], now) is None) == allowed
        if allowed:
            passed.append((now, goal))
        assert guard.last == (passed[-1][1],)
