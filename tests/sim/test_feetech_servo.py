"""What the emulated STS3215 does with its registers."""

import math

import pytest

from robotd.sim.control_tables import STS3215
from tests.sim.clients import Feetech

PAN, LIFT, GRIPPER = 1, 2, 6
OVERLOAD, OVERHEAT, VOLTAGE = 0x20, 0x04, 0x01
REBOOT = 8


@pytest.fixture
def so101() -> Feetech:
    return Feetech("so101")


def test_new_servos_have_the_makers_values() -> None:
    client = Feetech("so101", factory=True)
    servo = client.bus.servos[2]
    shown = {"Goal_Position", "Present_Position"}
    for item in STS3215.items:
        if item.name not in shown:
            assert servo.get(item.name) == item.default, item.name
    assert servo.get("Goal_Position") == servo.position()


def test_the_lock_decides_what_survives_a_restart(so101: Feetech) -> None:
    so101.put(PAN, "P_Coefficient", 20)  # locked: taken, not kept
    assert so101.get(PAN, "P_Coefficient") == 20
    so101.put(PAN, "Lock", 0)
    so101.put(PAN, "D_Coefficient", 21)
    so101.ask(PAN, REBOOT)
    so101.wait(1.0)
    assert so101.get(PAN, "P_Coefficient") == 32
    assert so101.get(PAN, "D_Coefficient") == 21
    assert so101.get(PAN, "Lock") == 1


def test_values_out_of_range_are_cut_and_read_only_registers_stay(so101: Feetech) -> None:
    so101.put(PAN, "Max_Torque_Limit", 5000)
    assert so101.get(PAN, "Max_Torque_Limit") == 1000
    before = so101.get(PAN, "Present_Position")
    so101.write(PAN, 56, b"\x01\x00")
    assert so101.get(PAN, "Present_Position") == before
    assert so101.get(PAN, "Model_Number") == 777


def test_position_shown_is_the_actual_one_less_the_offset(so101: Feetech) -> None:
    so101.put(PAN, "Homing_Offset", 0)
    actual = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Homing_Offset", 300)
    assert so101.get(PAN, "Present_Position") == actual - 300
    so101.put(PAN, "Homing_Offset", -300)
    assert so101.read(PAN, 31, 2).data == (300 | 1 << 11).to_bytes(2, "little")
    assert so101.get(PAN, "Present_Position") == actual + 300


def test_the_reading_wraps_at_one_turn_unless_phase_says_otherwise(so101: Feetech) -> None:
    so101.put(PAN, "Homing_Offset", 0)
    actual = so101.get(PAN, "Present_Position")
    offset = min(2047, actual)
    so101.put(PAN, "Homing_Offset", offset)
    so101.bus.mechanism.position[0] -= (actual - offset + 100) / 4096 * 2 * math.pi
    assert so101.get(PAN, "Present_Position") == 4096 - 100
    so101.put(PAN, "Phase", 12 | 16)
    assert so101.get(PAN, "Present_Position") == -100
    assert so101.read(PAN, 56, 2).data == (100 | 1 << 15).to_bytes(2, "little")


def test_goal_moves_the_joint_and_switches_torque_on(so101: Feetech) -> None:
    start = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Goal_Position", start + 400)
    assert so101.get(PAN, "Torque_Enable") == 1
    so101.wait(3.0)
    assert so101.get(PAN, "Present_Position") == start + 400
    assert so101.get(PAN, "Moving") == 0


def test_the_goal_after_power_on_is_the_present_position(so101: Feetech) -> None:
    start = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Torque_Enable", 1)
    so101.wait(1.0)
    assert so101.get(PAN, "Present_Position") == start
    so101.put(PAN, "Torque_Enable", 0)
    so101.bus.mechanism.position[0] += 0.5  # moved by hand: torque-on goes back to the old goal
    so101.put(PAN, "Torque_Enable", 1)
    so101.wait(3.0)
    assert so101.get(PAN, "Present_Position") == start


def test_goals_beyond_the_limits_stop_at_them(so101: Feetech) -> None:
    low = so101.get(LIFT, "Min_Position_Limit")
    so101.put(LIFT, "Goal_Position", 0)
    so101.wait(3.0)
    assert so101.get(LIFT, "Present_Position") == pytest.approx(low, abs=1)
    assert so101.get(LIFT, "Goal_Position") == 0


def test_acceleration_and_velocity_shape_the_motion(so101: Feetech) -> None:
    so101.put(PAN, "Acceleration", 5)  # 500 counts/s^2
    so101.put(PAN, "Goal_Velocity", 400)
    start = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Goal_Position", start + 1000)
    so101.wait(0.4)
    moved = so101.get(PAN, "Present_Position") - start
    assert 0 < moved < 0.4**2 * 500 / 2 + 3
    so101.wait(1.1)
    assert so101.get(PAN, "Present_Velocity") == pytest.approx(400, abs=25)
    assert so101.get(PAN, "Moving") == 1
    so101.wait(3.0)
    assert so101.get(PAN, "Present_Position") == start + 1000


def test_velocities_downwards_carry_the_sign_bit(so101: Feetech) -> None:
    start = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Goal_Position", start - 900)
    so101.wait(0.05)
    assert so101.get(PAN, "Present_Velocity") < 0
    assert so101.read(PAN, 59, 1).data[0] & 0x80
    assert so101.read(PAN, 61, 1).data[0] & 0x04  # load: bit 10


def test_velocity_pwm_and_step_modes(so101: Feetech) -> None:
    so101.put(PAN, "Operating_Mode", 1)
    so101.put(PAN, "Torque_Enable", 1)
    so101.put(PAN, "Goal_Velocity", -300)
    so101.wait(0.5)
    assert so101.get(PAN, "Present_Velocity") == pytest.approx(-300, abs=20)
    so101.put(PAN, "Goal_Velocity", 0)
    so101.put(PAN, "Operating_Mode", 2)
    start = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Goal_Time", 300)
    so101.wait(0.3)
    assert so101.get(PAN, "Present_Position") > start + 20
    so101.put(PAN, "Goal_Time", 0)
    so101.wait(0.2)
    so101.put(PAN, "Operating_Mode", 3)
    so101.wait(0.5)
    start = so101.get(PAN, "Present_Position")
    so101.put(PAN, "Goal_Position", -150)
    so101.wait(1.0)
    assert so101.get(PAN, "Present_Position") == pytest.approx(start - 150, abs=1)


def test_writing_128_to_torque_enable_makes_here_the_middle(so101: Feetech) -> None:
    so101.put(PAN, "Torque_Enable", 128)
    assert so101.get(PAN, "Present_Position") == 2048
    assert so101.get(PAN, "Torque_Enable") == 0
    so101.ask(PAN, REBOOT)
    so101.wait(1.0)
    assert so101.get(PAN, "Present_Position") == 2048


def test_torque_limit_is_taken_from_max_torque_at_power_on(so101: Feetech) -> None:
    assert so101.get(GRIPPER, "Torque_Limit") == 500  # as an arm in use is configured
    so101.put(PAN, "Lock", 0)
    so101.put(PAN, "Max_Torque_Limit", 300)
    assert so101.get(PAN, "Torque_Limit") == 1000
    so101.ask(PAN, REBOOT)
    so101.wait(1.0)
    assert so101.get(PAN, "Torque_Limit") == 300
    so101.put(PAN, "Torque_Enable", 1)
    so101.wait(0.1)
    assert so101.servo(PAN).drive.torque_limit == pytest.approx(0.3)


def push_against_the_stop(so101: Feetech, seconds: float) -> None:
    so101.put(GRIPPER, "Min_Position_Limit", 0)
    so101.put(GRIPPER, "Goal_Position", 0)
    so101.wait(seconds)


def test_a_load_that_lasts_is_an_overload_and_leaves_the_protective_torque(so101: Feetech) -> None:
    so101.put(GRIPPER, "Overload_Torque", 25)
    push_against_the_stop(so101, 1.5)
    assert so101.get(GRIPPER, "Present_Load") == -500
    assert so101.one(GRIPPER, 1).error == 0
    so101.wait(2.0)
    assert so101.one(GRIPPER, 1).error == OVERLOAD
    assert so101.get(GRIPPER, "Status") == OVERLOAD
    assert so101.get(GRIPPER, "Torque_Enable") == 1
    assert so101.get(GRIPPER, "Present_Load") == -200
    so101.put(GRIPPER, "Goal_Position", 3000)  # the other way: released
    so101.wait(0.5)
    assert so101.one(GRIPPER, 1).error == 0


def test_overload_does_nothing_where_unloading_does_not_ask_for_it(so101: Feetech) -> None:
    so101.put(GRIPPER, "Overload_Torque", 25)
    so101.put(GRIPPER, "Unloading_Condition", 0x0C)
    push_against_the_stop(so101, 4.0)
    assert so101.get(GRIPPER, "Present_Load") == -500


def test_too_much_current_for_too_long_takes_torque_away(so101: Feetech) -> None:
    so101.put(GRIPPER, "Protection_Current", 100)
    so101.put(GRIPPER, "Over_Current_Protection_Time", 50)
    push_against_the_stop(so101, 1.5)
    assert so101.get(GRIPPER, "Torque_Enable") == 0
    assert so101.one(GRIPPER, 1).error & 0x08
    so101.put(GRIPPER, "Torque_Enable", 1)
    assert so101.one(GRIPPER, 1).error & 0x08 == 0


def test_heat_takes_torque_away_until_it_is_gone(so101: Feetech) -> None:
    so101.put(PAN, "Torque_Enable", 1)
    so101.servo(PAN).temperature_c = 80.0
    so101.wait(0.05)
    assert so101.one(PAN, 1).error == OVERHEAT
    assert so101.get(PAN, "Torque_Enable") == 0
    so101.put(PAN, "Goal_Position", 2000)
    assert so101.get(PAN, "Torque_Enable") == 0
    so101.servo(PAN).temperature_c = 40.0
    so101.wait(0.05)
    assert so101.get(PAN, "Present_Temperature") == 40
    so101.put(PAN, "Torque_Enable", 1)
    assert so101.get(PAN, "Torque_Enable") == 1


def test_voltage_out_of_limits_is_reported(so101: Feetech) -> None:
    assert so101.get(PAN, "Present_Voltage") == pytest.approx(120, abs=1)
    so101.put(PAN, "Max_Voltage_Limit", 90)
    so101.wait(0.05)
    assert so101.one(PAN, 1).error == VOLTAGE


def test_settling_after_a_teleport_leaves_the_joint_where_it_was_put(so101: Feetech) -> None:
    so101.put(PAN, "Torque_Enable", 1)
    so101.wait(0.1)
    so101.bus.mechanism.position[0] += 0.7
    so101.bus.settle()
    there = so101.get(PAN, "Present_Position")
    so101.wait(1.0)
    assert so101.get(PAN, "Present_Position") == there
