"""The tick path of an arm on the emulated bus: readings, goals, slow values, and every fault."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.bus.arm import JointReading
from robotd.bus.registers import JOINTS
from robotd.bus.status import ServoStatus
from robotd.errors import PortError, ServoError
from tests.bus.rig import MS, PERIOD_NS, Rig

MODELS = ("so101", "koch")
FOLLOWERS = pytest.mark.parametrize("model", MODELS)
DETAILS = pytest.mark.parametrize("detail", ["full", "lean", "position"])
ELBOW = 2
SECOND = 1_000_000_000 // PERIOD_NS  # ticks


def armed(model: str, wire: bool = False, **options: object) -> tuple[Rig, tuple[float, ...]]:
    rig = Rig(model, **options).ready()
    present = rig.arm.engage()
    if wire:
        rig.slow_wire()
    return rig, present


def valid(readings: Sequence[JointReading]) -> list[bool]:
    return [one.valid for one in readings]


def true_positions(rig: Rig) -> list[float]:
    """Where the servos are, by their own registers."""
    rig.bus.advance(rig.now_ns)
    for servo in rig.bus.servos:
        servo.refresh(rig.now_ns)
    names = rig.arm.calibration
    return [names.normalise(j, rig.register(at, "Present_Position")) for at, j in enumerate(JOINTS)]


# Readings and goals


@FOLLOWERS
@DETAILS
def test_readings_are_what_the_servos_hold(model: str, detail: str) -> None:
    rig, present = armed(model, detail=detail)
    goals = tuple(value + 6 for value in present)
    moved = False
    for _ in range(60):
        expected = true_positions(rig)
        readings = rig.tick(goals)
        assert all(valid(readings))
        assert [one.position for one in readings] == expected
        moved = moved or any(one.velocity > 1 for one in readings)
    assert moved
    assert not any(one.status for one in readings)
    assert rig.arm.counters.errors == rig.arm.counters.retries == 0


@FOLLOWERS
@DETAILS
def test_velocity_is_the_derivative_of_position(model: str, detail: str) -> None:
    rig, present = armed(model, detail=detail)
    goals = list(present)
    goals[0] += 40
    positions, velocities = [], []
    for _ in range(30):
        reading = rig.tick(tuple(goals))[0]
        positions.append(reading.position)
        velocities.append(reading.velocity)
    measured = (positions[25] - positions[15]) / (10 * PERIOD_NS / 1e9)
    assert measured > 5
    assert sum(velocities[15:25]) / 10 == pytest.approx(measured, rel=0.25)


@FOLLOWERS
def test_the_arm_goes_where_it_is_told(model: str) -> None:
    rig, present = armed(model)
    goals = tuple(0.8 * value + 4 for value in present)
    readings = rig.run(2 * SECOND, goals)
    for reading, goal in zip(readings, goals, strict=True):
        assert reading.position == pytest.approx(goal, abs=2.0)


@FOLLOWERS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, -1e9, 1e9])
def test_a_goal_that_is_no_position_is_refused_unsent(model: str, bad: float) -> None:
    rig, present = armed(model)
    before = [rig.register(at, "Goal_Position") for at in range(6)]
    with pytest.raises(ServoError, match=r"arm left|do not fit"):
        rig.arm.write((*present[:3], bad, *present[4:]))
    with pytest.raises(ServoError, match="are not six numbers"):
        rig.arm.write(present[:5])
    assert [rig.register(at, "Goal_Position") for at in range(6)] == before


@FOLLOWERS
@settings(max_examples=30)
@given(st.lists(st.floats(-110, 110), min_size=6, max_size=6))
def test_goals_arrive_rounded_to_counts(model: str, goals: list[float]) -> None:
    rig, _ = armed(model)
    rig.arm.write(goals)
    expected = [rig.calibration.counts(j, g) for j, g in zip(JOINTS, goals, strict=True)]
    assert [rig.register(at, "Goal_Position") for at in range(6)] == expected


def test_the_gripper_can_be_in_signed_units() -> None:
    from dataclasses import replace

    rig = Rig("so101")
    signed = Rig("so101", calibration=replace(rig.calibration, gripper_signed=True)).ready()
    rig.ready()
    one, other = rig.tick()[5], signed.tick()[5]
    assert other.position == pytest.approx(2 * one.position - 100)


def test_two_arms_are_asked_before_either_answers() -> None:
    """On a slow wire both arms' answers come within the time of one."""
    rigs = [armed("so101", wire=True)[0] for _ in range(2)]
    for rig in rigs:
        rig.arm.request()
    wire_ns = (14 + 6 * 12) * 10_000  # bytes at 1 Mbaud
    for rig in rigs:
        assert all(valid(rig.arm.collect(rig.now_ns + wire_ns + MS)))


@FOLLOWERS
def test_a_deadline_before_the_answer_gives_invalid_readings(model: str) -> None:
    rig, _ = armed(model, wire=True)
    readings = rig.tick(deadline_ns=MS // 10)
    assert not any(valid(readings))
    for reading in readings:
        assert math.isnan(reading.position)
        assert math.isnan(reading.velocity)
        assert math.isnan(reading.load)
    assert all(valid(rig.tick()))
    assert rig.arm.counters.failed_reads == 1


# Slow values


@FOLLOWERS
@DETAILS
def test_temperature_and_voltage_of_all_servos_come_within_a_second(
    model: str, detail: str
) -> None:
    rig, present = armed(model, detail=detail)
    assert all(math.isnan(one.temperature_c) for one in rig.tick(present))
    readings = rig.run(SECOND, present)
    for reading, servo in zip(readings, rig.bus.servos, strict=True):
        assert reading.temperature_c == pytest.approx(servo.temperature_c, abs=1.5)
        assert reading.voltage_v == pytest.approx(servo.voltage_v, abs=0.25)
    assert rig.arm.counters.slow_missed == 0


@FOLLOWERS
def test_an_arm_that_is_not_written_is_asked_for_slow_values_too(model: str) -> None:
    rig = Rig(model, "leader").ready()
    readings = rig.run(SECOND)
    assert not any(math.isnan(one.temperature_c) for one in readings)
    assert rig.arm.torque == (0,) * 6


@FOLLOWERS
def test_load_is_read_in_turn_where_the_block_leaves_it_out(model: str) -> None:
    rigs = [armed(model, detail=detail) for detail in ("full", "lean", "position")]
    for rig, present in rigs:
        rig.bus.servos[1].load = 0.25
        rig.bus.servos[1].current_a = 0.5
        rig.run(3, present)
    loads = [rig.run(SECOND, present)[1].load for rig, present in rigs]
    assert loads[0] == pytest.approx(loads[1], abs=0.1)
    assert loads[1] == pytest.approx(loads[2], abs=0.1)


@FOLLOWERS
def test_slow_values_are_forgotten_when_they_stay_away(model: str) -> None:
    rig, present = armed(model)
    rig.run(SECOND, present)
    rig.inject("mute:id=4")
    readings = rig.run(3 * SECOND, present)
    assert math.isnan(readings[3].position)
    rig.inject("")
    rig.port.flush_input()
    assert math.isnan(rig.tick(present)[3].temperature_c)
    assert not math.isnan(rig.run(2 * SECOND, present)[3].temperature_c)


@FOLLOWERS
def test_slow_questions_take_no_time_from_the_tick(model: str) -> None:
    """With wire time every tick's readings are in by the same deadline, slow question or not."""
    rig, present = armed(model, wire=True, slow_every=1)
    for _ in range(50):
        assert all(valid(rig.tick(present, deadline_ns=2 * MS)))
    assert rig.arm.counters.slow_reads >= 49
    assert rig.arm.counters.slow_missed == 0


@FOLLOWERS
def test_a_wire_too_slow_for_slow_questions_gets_fewer_of_them(model: str) -> None:
    rig, present = armed(model, wire=True, slow_every=1)
    ticks = 60
    for _ in range(ticks):
        rig.arm.request()
        assert all(valid(rig.arm.collect(rig.now_ns + 5 * MS)))
        rig.arm.write(present)
        # Time for readings and goals; the loop comes back while the slow answer is on the wire.
        rig.now_ns += 1_200_000 if model == "so101" else 1_750_000
    assert rig.arm.counters.slow_reads < ticks // 3
    assert rig.arm.counters.failed_reads == 0


# Faults


@FOLLOWERS
def test_a_mute_servo_is_invalid_until_it_speaks_again(model: str) -> None:
    rig, present = armed(model)
    rig.inject("mute:id=3")
    for _ in range(5):
        assert valid(rig.tick(present)) == [True, True, False, True, True, True]
    rig.inject("")
    rig.tick(present)
    assert all(valid(rig.tick(present)))


@FOLLOWERS
@pytest.mark.parametrize("kind", ["corrupt:n=1", "drop:n=1:id=4"])
def test_one_lost_answer_is_made_good_within_the_tick(model: str, kind: str) -> None:
    rig, present = armed(model)
    expected = true_positions(rig)
    rig.inject(kind)
    readings = rig.tick(present, deadline_ns=5 * MS)
    assert all(valid(readings))
    assert [one.position for one in readings] == expected
    assert rig.arm.counters.retries == 1


@FOLLOWERS
def test_a_servo_restarted_by_itself_is_noticed_within_a_second(model: str) -> None:
    rig, present = armed(model)
    rig.run(SECOND, present)
    rig.inject("reboot:id=3")
    status = [rig.tick(present)[ELBOW].status for _ in range(SECOND)]
    assert status[-1] & ServoStatus.TORQUE_LOST
    assert not any(one.status for at, one in enumerate(rig.tick(present)) if at != ELBOW)
    rig.arm.release()
    rig.arm.configure()
    present = rig.arm.engage()
    assert not any(one.status for one in rig.run(SECOND, present))


@FOLLOWERS
def test_an_overload_is_named(model: str) -> None:
    rig, present = armed(model)
    rig.run(10, present)
    rig.inject("overload:id=3")
    readings = rig.run(SECOND // 4, present)
    assert readings[ELBOW].status & ServoStatus.OVERLOAD
    assert not any(one.status for at, one in enumerate(readings) if at != ELBOW)


@FOLLOWERS
def test_an_overheated_servo_shows_bit_and_temperature(model: str) -> None:
    rig, present = armed(model)
    rig.inject("overheat:id=5:c=88")
    readings = rig.run(SECOND, present)
    assert readings[4].status & ServoStatus.OVERHEAT
    assert readings[4].temperature_c == pytest.approx(88, abs=2)


def test_a_dynamixels_alert_is_followed_up_at_once() -> None:
    rig, present = armed("koch")
    rig.run(10, present)
    rig.inject("overload:id=3")
    seen = [rig.tick(present)[ELBOW].status for _ in range(20)]
    first = next(at for at, status in enumerate(seen) if status & ServoStatus.ALERT)
    assert seen[first + 2] & ServoStatus.OVERLOAD


@FOLLOWERS
def test_error_bits_in_a_single_answer_are_shown(model: str) -> None:
    rig, present = armed(model, fast=False)
    bits, meaning = (0x20, ServoStatus.OVERLOAD) if model == "so101" else (0x80, ServoStatus.ALERT)
    rig.inject(f"error:id=3:bits={bits}:n=1")
    assert [one.status for one in rig.tick(present)] == [0, 0, meaning, 0, 0, 0]
    assert not any(one.status for one in rig.run(5, present))


@FOLLOWERS
def test_an_undervoltage_silences_or_flags(model: str) -> None:
    rig, present = armed(model)
    rig.inject("brownout:v=3.0" if model == "so101" else "brownout:v=3.2")
    readings = rig.run(SECOND // 2, present)
    assert any(not one.valid or one.status for one in readings)


@FOLLOWERS
def test_unplugged_and_plugged_in_again(model: str) -> None:
    rig, present = armed(model)
    rig.run(5, present)
    rig.inject("unplug:for=300ms")
    rig.now_ns += PERIOD_NS
    with pytest.raises(PortError):
        rig.arm.request()
    assert not rig.arm.reconnect()
    assert not rig.arm.engaged
    rig.now_ns += 400 * MS
    assert rig.arm.reconnect()
    rig.arm.connect()
    rig.arm.configure()
    present = rig.arm.engage()
    assert all(valid(rig.run(5, present)))


@FOLLOWERS
def test_reconnecting_does_not_depend_on_one_servo(model: str) -> None:
    rig = Rig(model).ready()
    rig.inject("mute:id=2")
    assert any(rig.arm.reconnect() for _ in range(2))
    rig.inject("mute")
    assert not any(rig.arm.reconnect() for _ in range(6))


FAULTS = st.lists(
    st.sampled_from(
        [
            "drop:p=0.2",
            "corrupt:p=0.2",
            "late:p=0.2:by=2ms",
            "late:p=0.1:by=7ms",
            "duplicate:p=0.3",
            "wrong-id:p=0.1",
            "error:p=0.1:bits=0x20",
            "mute:id=2:for=20ms",
        ]
    ),
    min_size=1,
    max_size=3,
    unique=True,  # damage done twice may cancel out in a Feetech checksum
)


@settings(max_examples=40)
@given(st.sampled_from(MODELS), FAULTS, st.booleans())
def test_under_any_faults_a_valid_reading_is_a_true_one(
    model: str, faults: list[str], fast: bool
) -> None:
    """Where every joint moves, a late, foreign or damaged answer would show as another value."""
    rig, present = armed(model, fast=fast)
    # Damage comes last: the other faults put a fitting checksum on what they change.
    rig.inject(",".join(sorted(faults, key=lambda fault: fault.startswith("corrupt"))))
    seen = 0
    for step in range(30):
        goals = tuple(value + 0.5 * step for value in present)
        expected = true_positions(rig)
        readings = rig.tick(goals)
        for reading, true in zip(readings, expected, strict=True):
            if reading.valid:
                seen += 1
                assert reading.position == pytest.approx(true, abs=0.8)
            else:
                assert math.isnan(reading.position)
    assert seen
    rig.inject("")
    rig.run(3, goals)
    assert all(valid(rig.tick(goals)))


def test_counters_can_be_shown() -> None:
    rig, present = armed("so101")
    rig.inject("corrupt:n=1,drop:n=1")
    rig.run(8, present)
    counts = rig.arm.counters.as_dict()
    assert counts["reads"] == 8
    assert counts["crc_errors"] + counts["timeouts"] == rig.arm.counters.errors > 0
