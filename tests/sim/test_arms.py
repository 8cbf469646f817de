"""The simulated arms' mounting and their calibrations."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robotd.bus.calibration import Calibration
from robotd.sim.arms import ARMS, JOINTS, Mount, Units, arm, sim_calibration

REPOSITORY = Path(__file__).parents[2]
EVERY_ARM = sorted(ARMS)


def present_counts(model: str, role: str, mount: Mount, rad: float) -> float:
    """What the Present_Position register shows, from the servos' documentation."""
    row = sim_calibration(model, role).joints[mount.joint]
    actual = mount.actual_counts(rad)
    if arm(model, role).protocol == "feetech":
        return actual - row.homing_offset
    return (-actual % 4096 if row.drive_mode else actual) + row.homing_offset


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_the_shipped_calibration_is_the_one_computed(model: str) -> None:
    shipped = Calibration.load(REPOSITORY / "calibration" / f"{model}_sim.json", model)
    assert shipped == sim_calibration(model)


@pytest.mark.parametrize(("model", "role"), EVERY_ARM)
def test_registers_never_wrap_between_the_hard_stops(model: str, role: str) -> None:
    for mount in arm(model, role).mounts:
        for rad in (mount.lower_rad, mount.middle_rad, mount.upper_rad):
            assert 20 <= mount.actual_counts(rad) <= 4075, mount.joint
            assert 20 <= present_counts(model, role, mount, rad) <= 4075, mount.joint


@pytest.mark.parametrize(("model", "role"), EVERY_ARM)
def test_calibration_range_is_the_mechanical_range(model: str, role: str) -> None:
    calibration = sim_calibration(model, role)
    for mount in arm(model, role).mounts:
        ends = sorted(
            calibration.normalise(mount.joint, present_counts(model, role, mount, rad))
            for rad in (mount.lower_rad, mount.upper_rad)
        )
        assert ends == pytest.approx([0 if mount.joint == "gripper" else -100, 100], abs=0.15)


@pytest.mark.parametrize(("model", "role"), EVERY_ARM)
def test_every_servo_has_an_offset_to_undo(model: str, role: str) -> None:
    assert all(abs(row.homing_offset) > 20 for row in sim_calibration(model, role).joints.values())


@pytest.mark.parametrize(("model", "role"), EVERY_ARM)
@given(norm=st.floats(-110, 110))
def test_units_agree_with_the_calibration_and_turn_back(model: str, role: str, norm: float) -> None:
    units = Units(model, role)
    calibration = sim_calibration(model, role)
    for joint, mount in enumerate(arm(model, role).mounts):
        rad = units.rad(joint, norm)
        assert units.norm(joint, rad) == pytest.approx(norm, abs=1e-9)
        counts = present_counts(model, role, mount, rad)
        assert calibration.normalise(JOINTS[joint], counts) == pytest.approx(norm, abs=1e-6)
        assert mount.rad_from_actual(mount.actual_counts(rad)) == pytest.approx(rad)


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_closed_gripper_is_zero(model: str) -> None:
    mount = arm(model).mounts[5]
    closed = {"so101": mount.lower_rad, "koch": mount.upper_rad}[model]
    assert Units(model).norm(5, closed) == pytest.approx(0, abs=0.2)


def test_arms_are_known_without_mujoco() -> None:
    code = "import sys, robotd.sim.arms; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(KeyError):
        arm("ur5")
