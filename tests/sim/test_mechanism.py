"""The ideal joints that stand in for physics in protocol tests."""

import pytest

from robotd.sim.mechanism import STEP_NS, Drive, IdealMechanism

SECOND = 1_000_000_000


def two_joints() -> IdealMechanism:
    ideal = IdealMechanism([-1.0, -2.0], [1.0, 2.0], max_speed_rad_s=2.0)
    ideal.advance(5 * SECOND)  # the origin of time
    return ideal


def test_joints_start_in_the_middle_and_stay_unpowered() -> None:
    ideal = two_joints()
    ideal.advance(6 * SECOND)
    assert ideal.sense(0).position_rad == 0.0
    assert ideal.sense(0).torque == 0.0


def test_a_powered_joint_reaches_its_goal_at_its_speed() -> None:
    ideal = two_joints()
    ideal.drive(1, Drive(torque_on=True, goal_rad=1.5))
    ideal.advance(5 * SECOND + SECOND // 2)
    assert ideal.sense(1).position_rad == pytest.approx(1.0, abs=0.01)
    assert ideal.sense(1).velocity_rad_s == pytest.approx(2.0)
    ideal.advance(7 * SECOND)
    assert ideal.sense(1).position_rad == pytest.approx(1.5, abs=1e-3)
    assert ideal.sense(0).position_rad == 0.0


def test_velocity_limit_hard_stop_and_missing_torque() -> None:
    ideal = two_joints()
    ideal.drive(0, Drive(torque_on=True, goal_rad=9.0, velocity_limit_rad_s=0.5))
    ideal.drive(1, Drive(torque_on=True, goal_rad=1.0, torque_limit=0.0))
    ideal.advance(6 * SECOND)
    assert ideal.sense(0).position_rad == pytest.approx(0.5, abs=0.01)
    ideal.advance(60 * SECOND)
    assert ideal.sense(0).position_rad == 1.0
    assert ideal.sense(1).position_rad == 0.0


def test_a_hand_moves_unpowered_joints_only() -> None:
    ideal = two_joints()
    ideal.drive(0, Drive(torque_on=True, goal_rad=0.0))
    ideal.hand({0: 0.8, 1: 0.8})
    ideal.advance(7 * SECOND)
    assert ideal.sense(0).position_rad == 0.0
    assert ideal.sense(1).position_rad == pytest.approx(0.8, abs=1e-3)
    ideal.hand(None)
    ideal.advance(8 * SECOND)
    assert ideal.sense(1).velocity_rad_s == 0.0


def test_time_does_not_run_backwards_and_parts_of_steps_add_up() -> None:
    ideal, other = two_joints(), two_joints()
    for one in (ideal, other):
        one.drive(0, Drive(torque_on=True, goal_rad=0.9))
    for step in range(1, 11):
        ideal.advance(5 * SECOND + step * STEP_NS // 2)
    ideal.advance(5 * SECOND)
    other.advance(5 * SECOND + 5 * STEP_NS)
    assert ideal.sense(0) == other.sense(0)
