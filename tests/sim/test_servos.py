"""What all emulated servos share: tables, trajectory generator, power and heat."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.bus.registers import SERVO_MODELS
from robotd.sim.arms import JOINTS
from robotd.sim.bus import SimBus
from robotd.sim.control_tables import MODELS
from robotd.sim.servos import AMBIENT_C, Profile
from tests.sim.clients import Dynamixel, Feetech

SIGN = {"UNSIGNED": "", "TWOS": "twos", "BIT10": "sign10", "BIT11": "sign11", "BIT15": "sign15"}
# Written signed by the emulator alone: -1 is the watchdog's error state, the PWM mode's direction.
OWN_SIGN = {"Bus_Watchdog", "Goal_Time", "Goal_Position_2"}


@pytest.mark.parametrize("name", MODELS)
def test_control_table_agrees_with_the_bus_table_written_apart(name: str) -> None:
    ours, theirs = MODELS[name].by_name, SERVO_MODELS[name].table
    assert set(ours) == set(theirs)
    for register in theirs.values():
        item = ours[register.name]
        assert (item.address, item.size) == (register.address, register.size), register.name
        assert item.writable == register.writable, register.name
        if register.name not in OWN_SIGN:
            assert item.coding == SIGN[register.sign.name], register.name
        assert (register.address < MODELS[name].eeprom_end) == register.eeprom, register.name
    assert {rate: value for value, rate in MODELS[name].bauds.items() if value < 7} == {
        rate: value for rate, value in SERVO_MODELS[name].baud.items() if value < 7
    }
    assert MODELS[name].number == SERVO_MODELS[name].number


@pytest.mark.parametrize("name", MODELS)
def test_registers_do_not_overlap_and_defaults_are_allowed(name: str) -> None:
    model = MODELS[name]
    end = 0
    for item in model.items:
        assert item.address >= end, item.name
        end = item.address + item.size
        assert item.decode(item.encode(item.default)) == item.default, item.name
        if item.low is not None and item.high is not None:
            assert item.low <= item.default <= item.high, item.name
    assert end <= model.table_size


@settings(max_examples=60, deadline=None)
@given(
    goals=st.lists(st.tuples(st.floats(-2000, 2000), st.integers(1, 300)), min_size=1, max_size=4),
    velocity=st.floats(50, 5000),
    acceleration=st.one_of(st.just(math.inf), st.floats(500, 50_000)),
)
def test_profile_keeps_its_limits_and_ends_at_rest_on_the_last_goal(
    goals: list[tuple[float, int]], velocity: float, acceleration: float
) -> None:
    profile, dt_s = Profile(), 0.002
    enough = math.ceil((8000 / velocity + 8 * velocity / acceleration + 1.0) / dt_s)
    for goal, steps in [*goals[:-1], (goals[-1][0], enough)]:
        for _ in range(steps):
            before, at = profile.velocity, profile.position
            profile.step(goal, velocity, acceleration, dt_s)
            assert abs(profile.velocity) <= velocity * 1.000001
            arrived = profile.velocity == 0.0  # this last step may brake twice as hard
            hardest = (2 if arrived else 1) * acceleration * dt_s * 1.001
            assert abs(profile.velocity - before) <= hardest
            assert arrived or abs(profile.position - at) <= velocity * dt_s * 1.000001
    assert profile.position == goals[-1][0]
    assert profile.velocity == 0.0


@settings(max_examples=40, deadline=None)
@given(st.floats(-1000, 1000), st.floats(100, 3000), st.floats(1000, 30_000))
def test_profile_from_rest_never_passes_its_goal(
    goal: float, velocity: float, acceleration: float
) -> None:
    profile = Profile()
    for _ in range(6000):
        profile.step(goal, velocity, acceleration, 0.002)
        step = acceleration * 0.002**2 + 1e-6  # what one step can resolve
        assert min(0.0, goal) - step <= profile.position <= max(0.0, goal) + step


def test_profile_without_limits_goes_at_once() -> None:
    profile = Profile()
    profile.step(100.0, math.inf, math.inf, 0.002)
    assert (profile.position, profile.velocity) == (100.0, 0.0)


class Pushing:
    """A mechanism whose joint 0 pushes with all its might against a wall."""

    def __init__(self, torque: float) -> None:
        self.torque = torque

    def drive(self, joint, drive) -> None:
        pass

    def sense(self, joint):
        from robotd.sim.mechanism import Sensed

        return Sensed(0.0, 0.0, self.torque if joint == 0 else 0.0)

    def advance(self, to_ns) -> None:
        pass


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_loaded_servo_draws_current_warms_and_pulls_the_voltage_down(model: str) -> None:
    bus = SimBus(model, mechanism=Pushing(0.6))
    bus.advance(0)
    servo, idle = bus.servos[0], bus.servos[1]
    rest_v = servo.voltage_v
    bus.advance(30_000_000_000)
    assert servo.temperature_c > idle.temperature_c + 4
    assert idle.temperature_c == pytest.approx(AMBIENT_C, abs=1)
    assert servo.current_a == pytest.approx(
        servo.model.electrics.idle_a + 0.6 * servo.model.electrics.stall_a
    )
    assert idle.voltage_v < rest_v  # same rail
    hot = servo.temperature_c
    bus.mechanism.torque = 0.0  # type: ignore[attr-defined]
    bus.advance(60_000_000_000)
    assert servo.temperature_c < hot


def test_a_longer_load_heats_a_servo_over_its_limit() -> None:
    bus = SimBus("so101", mechanism=Pushing(0.9))
    bus.advance(0)
    bus.advance(160_000_000_000)
    assert bus.servos[0].temperature_c > 70


@pytest.mark.parametrize(("client", "name"), [(Dynamixel, "koch"), (Feetech, "so101")])
def test_arms_in_use_are_calibrated_and_those_as_delivered_are_not(client, name: str) -> None:
    from robotd.sim.arms import calibration_table

    used, new = client(name), client(name, factory=True)
    for joint, row in calibration_table(name).items():
        servo = used.servo(joint)
        assert used.get(servo.id, "Homing_Offset") == row["homing_offset"]
        assert used.get(servo.id, "Min_Position_Limit") == row["range_min"]
        assert used.get(servo.id, "Max_Position_Limit") == row["range_max"]
        assert servo.id == row["id"]
        assert servo.baud == 1_000_000
        assert new.servo(joint).get("Homing_Offset") == 0
        assert new.servo(joint).id == 1


@pytest.mark.parametrize("name", ["koch", "so101"])
@pytest.mark.parametrize("role", ["follower", "leader"])
def test_the_middle_of_every_joint_reads_half_a_turn(name: str, role: str) -> None:
    client = (Dynamixel if name == "koch" else Feetech)(name, role)
    mechanism = client.bus.mechanism
    mechanism.position[:] = [mount.middle_rad for mount in client.bus.arm.mounts]
    for servo in client.bus.servos:
        servo.power_on(0)
    for joint in JOINTS:
        servo = client.servo(joint)
        assert abs(client.get(servo.id, "Present_Position") - 2047) <= 1, joint
