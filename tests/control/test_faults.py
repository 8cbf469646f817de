"""How faults are recognised in readings, and what follows from them."""

import math

import pytest

from robotd.bus.arm import JointReading
from robotd.bus.status import ServoStatus
from robotd.control.faults import READINGS, STOPS, Finding, Stop, Watch, WatchedJoint
from robotd.ipc.ring import Fault, Limited

PERIOD_S = 0.01
JOINTS = [WatchedJoint("a.elbow_flex", -105, 105), WatchedJoint("a.gripper", -5, 105, gripper=True)]


def readings(**changes: float) -> list[JointReading]:
    elbow = JointReading(valid=True, position=0.0, velocity=0.0, load=0.0, temperature_c=30.0)
    gripper = JointReading(valid=True, position=20.0, velocity=0.0, load=0.0, temperature_c=30.0)
    for name, value in changes.items():
        joint, field = name.split("_", 1)
        setattr({"elbow": elbow, "gripper": gripper}[joint], field, value)
    return [elbow, gripper]


def look(
    watch: Watch,
    times: int,
    limited: tuple[int, int] = (0, 0),
    engaged: bool = True,
    **changes: float,
) -> Finding | None:
    """The last of several looks at the same readings."""
    found = None
    for _ in range(times):
        found = watch.look(readings(**changes), limited, engaged)
    return found


@pytest.fixture
def watch() -> Watch:
    return Watch(JOINTS, 65.0, PERIOD_S)


def test_every_fault_has_its_row() -> None:
    assert set(STOPS) == set(Fault) - {Fault.NONE}


def test_torque_goes_off_for_these_faults_only() -> None:
    off = {fault for fault, stop in STOPS.items() if stop in (Stop.RELEASE, Stop.RELEASE_ARM)}
    assert off == {Fault.ESTOP, Fault.ENGAGE_FAILED, Fault.OVERHEAT}


def test_healthy_readings_are_no_fault(watch: Watch) -> None:
    assert look(watch, 1000) is None


@pytest.mark.parametrize(
    ("bit", "fault", "words"),
    [
        (ServoStatus.OVERLOAD, Fault.SERVO_ERROR, "overload"),
        (ServoStatus.VOLTAGE, Fault.SERVO_ERROR, "voltage"),
        (ServoStatus.OVERCURRENT, Fault.SERVO_ERROR, "overcurrent"),
        (ServoStatus.SENSOR, Fault.SERVO_ERROR, "sensor"),
        (ServoStatus.ALERT, Fault.SERVO_ERROR, "alert"),
        (ServoStatus.OVERHEAT, Fault.OVERHEAT, "overheated"),
        (ServoStatus.TORQUE_LOST, Fault.TORQUE_LOST, "torque went off"),
    ],
)
def test_error_bits_are_faults_in_words(
    watch: Watch, bit: ServoStatus, fault: Fault, words: str
) -> None:
    assert look(watch, READINGS - 1, elbow_status=int(bit)) is None
    found = look(watch, 1, elbow_status=int(bit))
    assert found is not None
    assert (found.fault, found.joint) == (fault, 0)
    assert "a.elbow_flex" in found.text
    assert words in found.text


def test_one_odd_reading_is_no_fault(watch: Watch) -> None:
    for _ in range(20):
        assert look(watch, READINGS - 1, elbow_status=int(ServoStatus.OVERLOAD)) is None
        assert look(watch, 1) is None
        assert look(watch, READINGS - 1, elbow_temperature_c=90.0) is None
        assert look(watch, 1) is None


def test_the_angle_limit_bit_is_no_fault(watch: Watch) -> None:
    assert look(watch, 100, elbow_status=int(ServoStatus.ANGLE_LIMIT)) is None


def test_torque_is_missed_only_when_engaged(watch: Watch) -> None:
    lost = int(ServoStatus.TORQUE_LOST)
    assert look(watch, 100, engaged=False, elbow_status=lost) is None


def test_a_gripper_may_squeeze_for_ever(watch: Watch) -> None:
    bits = (0, int(Limited.FOLLOWING))
    assert look(watch, 5000, bits, gripper_status=int(ServoStatus.OVERLOAD)) is None


def test_a_gripper_without_torque_is_a_fault(watch: Watch) -> None:
    found = look(watch, READINGS, gripper_status=int(ServoStatus.TORQUE_LOST))
    assert found is not None
    assert (found.fault, found.joint) == (Fault.TORQUE_LOST, 1)


def test_heat_is_a_fault_also_without_torque(watch: Watch) -> None:
    found = look(watch, READINGS, engaged=False, elbow_temperature_c=66.0)
    assert found is not None
    assert found.fault is Fault.OVERHEAT
    assert "66 degrees, allowed are 65" in found.text


def test_temperatures_not_read_in_a_tick_neither_count_nor_reset(watch: Watch) -> None:
    for _ in range(READINGS - 1):
        assert look(watch, 1, elbow_temperature_c=70.0) is None
        assert look(watch, 1, elbow_temperature_c=math.nan) is None
    assert look(watch, 1, elbow_temperature_c=70.0) is not None


def test_following_is_a_fault_after_a_second_and_a_half(watch: Watch) -> None:
    bits = (int(Limited.FOLLOWING), 0)
    assert look(watch, 149, bits) is None
    assert look(watch, 1) is None  # caught up in between
    assert look(watch, 149, bits) is None
    found = look(watch, 1, bits)
    assert found is not None
    assert (found.fault, found.joint) == (Fault.FOLLOWING, 0)


def test_a_joint_outside_its_hard_range_is_a_fault_while_engaged(watch: Watch) -> None:
    assert look(watch, 100, engaged=False, elbow_position=120.0) is None
    assert look(watch, 24, elbow_position=120.0) is None
    found = look(watch, 1, elbow_position=120.0)
    assert found is not None
    assert found.fault is Fault.RANGE
    assert "120.0" in found.text


def test_invalid_readings_say_nothing(watch: Watch) -> None:
    bad = readings(elbow_status=int(ServoStatus.OVERLOAD), elbow_temperature_c=99.0)
    bad[0].valid = False
    for _ in range(100):
        assert watch.look(bad, (0, 0), True) is None


def test_obstacles_are_present_causes_at_once(watch: Watch) -> None:
    assert watch.obstacle(readings()) == ""
    assert "overload" in watch.obstacle(readings(elbow_status=int(ServoStatus.OVERLOAD)))
    assert "70 degrees" in watch.obstacle(readings(gripper_temperature_c=70.0))
    assert watch.obstacle(readings(elbow_status=int(ServoStatus.TORQUE_LOST))) == ""
