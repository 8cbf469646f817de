"""What the emulated X-series servos do with their registers."""

import math

import pytest

from robotd.sim.control_tables import MODELS
from tests.sim.clients import Dynamixel

RANGE_ERROR, LENGTH_ERROR, LIMIT_ERROR, ACCESS_ERROR = 4, 5, 6, 7
ALERT = 0x80
REBOOT = 8
PAN, ELBOW, ROLL, GRIPPER = 1, 3, 5, 6


@pytest.fixture
def koch() -> Dynamixel:
    return Dynamixel("koch")


def move(client: Dynamixel, servo_id: int, goal: int, seconds: float = 3.0) -> int:
    assert client.put(servo_id, "Goal_Position", goal) == 0
    client.wait(seconds)
    return client.get(servo_id, "Present_Position")


@pytest.mark.parametrize(
    ("role", "servo_id", "name"),
    [("follower", 1, "xl430-w250"), ("follower", 4, "xl330-m288"), ("leader", 1, "xl330-m077")],
)
def test_new_servos_have_the_makers_values(role: str, servo_id: int, name: str) -> None:
    client = Dynamixel("koch", role, factory=True)
    servo = client.bus.servos[servo_id - 1]
    shown = {"Goal_Position", "Present_Position", "Position_Trajectory", "Moving_Status"}
    shown |= {"Present_Input_Voltage", "Present_Temperature"}
    for item in MODELS[name].items:
        if item.name not in shown:
            assert servo.get(item.name) == item.default, item.name
    assert servo.get("Goal_Position") == round(servo.position())
    assert servo.get("Present_Temperature") == 25


def test_eeprom_is_locked_while_torque_is_on(koch: Dynamixel) -> None:
    koch.put(PAN, "Torque_Enable", 1)
    assert koch.put(PAN, "Homing_Offset", 5) == ACCESS_ERROR
    assert koch.put(PAN, "ID", 9) == ACCESS_ERROR
    koch.put(PAN, "Torque_Enable", 0)
    assert koch.put(PAN, "Homing_Offset", 5) == 0


def test_read_only_unknown_and_partial_registers_are_refused(koch: Dynamixel) -> None:
    assert koch.put(PAN, "Present_Position", 1) == ACCESS_ERROR
    assert koch.write(PAN, 150, b"\0").error == ACCESS_ERROR
    assert koch.write(PAN, 116, b"\0\0").error == LENGTH_ERROR
    assert koch.write(PAN, 117, b"\0\0\0").error == ACCESS_ERROR
    assert koch.put(ELBOW, "Current_Limit", 900) == 0  # XL330 senses current, XL430 does not
    assert koch.write(PAN, 38, b"\0\0").error == ACCESS_ERROR
    assert koch.read(PAN, 700, 4).error == ACCESS_ERROR


def test_one_write_may_cover_several_registers_and_changes_all_or_none(koch: Dynamixel) -> None:
    def gains(p: int, i: int, d: int) -> bytes:
        return b"".join(v.to_bytes(2, "little") for v in (d, i, p))

    assert koch.write(PAN, 80, gains(700, 1, 2)).error == 0
    assert koch.get(PAN, "Position_P_Gain") == 700
    assert koch.write(PAN, 80, gains(60_000, 5, 6)).error == RANGE_ERROR
    assert koch.get(PAN, "Position_I_Gain") == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("ID", 253, RANGE_ERROR),
        ("Baud_Rate", 9, RANGE_ERROR),
        ("Operating_Mode", 5, RANGE_ERROR),  # the XL430 has no current
        ("Drive_Mode", 2, RANGE_ERROR),
        ("Homing_Offset", 2_000_000, RANGE_ERROR),
        ("Goal_Position", 4096, LIMIT_ERROR),
        ("Goal_Velocity", 266, LIMIT_ERROR),
        ("Goal_PWM", -886, RANGE_ERROR),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: int, error: int) -> None:
    koch = Dynamixel("koch", factory=True)
    koch.bus.connect_only(["shoulder_pan"])
    assert koch.put(1, name, value) == error


def test_limits_that_were_configured_bind_the_goals(koch: Dynamixel) -> None:
    koch.put(PAN, "PWM_Limit", 300)
    assert koch.put(PAN, "Goal_PWM", 301) == LIMIT_ERROR
    low, high = koch.get(PAN, "Min_Position_Limit"), koch.get(PAN, "Max_Position_Limit")
    for torque in (0, 1):
        koch.put(PAN, "Torque_Enable", torque)
        assert koch.put(PAN, "Goal_Position", low - 1) == LIMIT_ERROR
        assert koch.put(PAN, "Goal_Position", high + 1) == LIMIT_ERROR
        assert koch.put(PAN, "Goal_Position", high) == 0
    koch.put(PAN, "Torque_Enable", 0)
    koch.put(PAN, "Operating_Mode", 4)  # extended: beyond them
    assert koch.put(PAN, "Goal_Position", high + 5000) == 0


def test_position_shown_is_the_actual_one_plus_the_offset(koch: Dynamixel) -> None:
    koch.put(PAN, "Homing_Offset", 0)
    actual = koch.get(PAN, "Present_Position")
    koch.put(PAN, "Homing_Offset", 300)
    assert koch.get(PAN, "Present_Position") == actual + 300
    koch.put(PAN, "Homing_Offset", -300)
    assert koch.get(PAN, "Present_Position") == actual - 300


def test_position_mode_ignores_an_offset_beyond_a_quarter_turn(koch: Dynamixel) -> None:
    koch.put(PAN, "Homing_Offset", 0)
    actual = koch.get(PAN, "Present_Position")
    koch.put(PAN, "Homing_Offset", 2000)
    assert koch.get(PAN, "Present_Position") == actual
    koch.put(PAN, "Operating_Mode", 4)
    assert koch.get(PAN, "Present_Position") == actual + 2000


def test_drive_mode_reverses_position_velocity_and_load(koch: Dynamixel) -> None:
    koch.put(ROLL, "Operating_Mode", 4)
    koch.put(ROLL, "Homing_Offset", 0)
    before = koch.get(ROLL, "Present_Position")
    koch.put(ROLL, "Drive_Mode", 1)
    start = koch.get(ROLL, "Present_Position")
    assert start == pytest.approx(4096 - before, abs=1)
    koch.ask(ROLL, REBOOT)
    koch.wait(0.5)
    assert koch.get(ROLL, "Present_Position") == start  # a calibration survives a restart
    joint = koch.bus.mechanism.position[4]
    koch.put(ROLL, "Torque_Enable", 1)
    koch.put(ROLL, "Goal_Position", start + 800)
    koch.wait(0.05)
    assert koch.get(ROLL, "Present_Velocity") > 0
    assert koch.get(ROLL, "Present_Current") > 0
    koch.wait(3.0)
    assert koch.get(ROLL, "Present_Position") == pytest.approx(start + 800, abs=1)
    turned = (koch.bus.mechanism.position[4] - joint) * koch.bus.arm.mounts[4].sign
    assert turned == pytest.approx(-800 / 4096 * 2 * math.pi, abs=0.01)


def test_goal_moves_the_joint_once_torque_is_on(koch: Dynamixel) -> None:
    start = koch.get(PAN, "Present_Position")
    assert move(koch, PAN, start + 500) == start
    koch.put(PAN, "Torque_Enable", 1)
    koch.wait(3.0)
    assert koch.get(PAN, "Present_Position") == start + 500
    assert koch.get(PAN, "Moving") == 0


def test_the_goal_after_power_on_is_the_present_position(koch: Dynamixel) -> None:
    start = koch.get(PAN, "Present_Position")
    koch.put(PAN, "Torque_Enable", 1)
    koch.wait(1.0)
    assert koch.get(PAN, "Present_Position") == start
    assert koch.get(PAN, "Goal_Position") == start


def test_profile_velocity_and_acceleration_shape_the_motion(koch: Dynamixel) -> None:
    koch.put(PAN, "Torque_Enable", 1)
    koch.put(PAN, "Profile_Velocity", 20)  # 20 * 0.229 rev/min = 312.7 counts/s
    koch.put(PAN, "Profile_Acceleration", 1)  # 244 counts/s^2
    start = koch.get(PAN, "Present_Position")
    koch.put(PAN, "Goal_Position", start + 1000)
    koch.wait(0.5)
    assert koch.get(PAN, "Present_Position") - start < 0.5**2 * 244.2 / 2 + 5
    assert koch.get(PAN, "Moving_Status") & 0x32 == 0x32  # trapezoid, under way
    koch.wait(1.5)
    assert koch.get(PAN, "Velocity_Trajectory") == 20
    assert koch.get(PAN, "Present_Velocity") == pytest.approx(20, abs=2)
    assert koch.get(PAN, "Moving") == 1
    koch.wait(4.0)
    assert koch.get(PAN, "Present_Position") == start + 1000
    assert koch.get(PAN, "Moving_Status") & 0x03 == 0x01  # arrived


def test_time_based_profile_takes_the_time_given(koch: Dynamixel) -> None:
    koch.put(PAN, "Drive_Mode", 4)
    koch.put(PAN, "Torque_Enable", 1)
    koch.put(PAN, "Profile_Velocity", 2000)  # ms for the whole way
    koch.put(PAN, "Profile_Acceleration", 500)
    start = koch.get(PAN, "Present_Position")
    koch.put(PAN, "Goal_Position", start + 800)
    koch.wait(1.0)
    assert koch.get(PAN, "Position_Trajectory") == pytest.approx(start + 400, abs=10)
    koch.wait(0.9)
    assert koch.get(PAN, "Position_Trajectory") < start + 800
    koch.wait(0.2)
    assert koch.get(PAN, "Position_Trajectory") == start + 800


def test_velocity_mode_turns_until_stopped(koch: Dynamixel) -> None:
    koch.put(PAN, "Operating_Mode", 1)
    koch.put(PAN, "Torque_Enable", 1)
    koch.put(PAN, "Goal_Velocity", -40)
    koch.wait(0.5)
    assert koch.get(PAN, "Present_Velocity") == pytest.approx(-40, abs=3)
    koch.put(PAN, "Goal_Velocity", 0)
    koch.wait(0.5)
    assert koch.get(PAN, "Present_Velocity") == 0


def test_pwm_and_current_modes_push_in_their_direction(koch: Dynamixel) -> None:
    for mode, name, value in ((16, "Goal_PWM", 200), (0, "Goal_Current", -300)):
        koch.put(ROLL, "Torque_Enable", 0)
        koch.put(ROLL, "Operating_Mode", mode)
        koch.put(ROLL, name, 0)
        koch.put(ROLL, "Torque_Enable", 1)
        start = koch.get(ROLL, "Present_Position")
        koch.put(ROLL, name, value)
        koch.wait(0.3)
        assert (koch.get(ROLL, "Present_Position") - start) * value > 0


def test_goal_current_bounds_the_grip(koch: Dynamixel) -> None:
    koch.put(GRIPPER, "Operating_Mode", 5)
    koch.put(GRIPPER, "Torque_Enable", 1)
    koch.put(GRIPPER, "Goal_Current", 147)  # a tenth of the stall current
    koch.put(GRIPPER, "Goal_Position", 4000)
    koch.wait(2.0)
    assert koch.servo(GRIPPER).drive.torque_limit == pytest.approx(0.1)
    assert abs(koch.get(GRIPPER, "Present_Current")) <= 148


def test_change_of_mode_resets_gains_profile_and_goal(koch: Dynamixel) -> None:
    koch.put(ELBOW, "Position_P_Gain", 1500)
    koch.put(ELBOW, "Profile_Velocity", 50)
    koch.put(ELBOW, "Operating_Mode", 4)
    assert koch.get(ELBOW, "Position_P_Gain") == 400
    assert koch.get(ELBOW, "Profile_Velocity") == 0
    koch.put(ELBOW, "Position_P_Gain", 1500)
    koch.put(ELBOW, "Operating_Mode", 4)  # no change
    assert koch.get(ELBOW, "Position_P_Gain") == 1500
    koch.put(ELBOW, "Torque_Enable", 1)
    koch.wait(0.1)
    assert koch.servo(ELBOW).drive.stiffness == pytest.approx(1500 / 400)


def test_torque_on_by_goal_update(koch: Dynamixel) -> None:
    koch.put(PAN, "Drive_Mode", 8)
    koch.put(PAN, "Goal_Position", koch.get(PAN, "Present_Position"))
    assert koch.get(PAN, "Torque_Enable") == 1


def test_watchdog_stops_a_servo_that_nobody_talks_to(koch: Dynamixel) -> None:
    koch.put(PAN, "Operating_Mode", 1)
    koch.put(PAN, "Torque_Enable", 1)
    koch.put(PAN, "Goal_Velocity", 40)
    koch.put(PAN, "Bus_Watchdog", 10)  # 200 ms
    for _ in range(5):
        koch.wait(0.1)
        koch.ping(2)  # any instruction on the bus counts
    assert koch.get(PAN, "Bus_Watchdog") == 10
    koch.wait(0.3)
    assert koch.get(PAN, "Bus_Watchdog") == -1
    assert koch.get(PAN, "Present_Velocity") == 0
    assert koch.put(PAN, "Goal_Velocity", 40) == RANGE_ERROR
    assert koch.put(PAN, "Bus_Watchdog", 0) == 0
    assert koch.put(PAN, "Goal_Velocity", 40) == 0


def test_overheating_shuts_down_until_a_reboot(koch: Dynamixel) -> None:
    koch.put(PAN, "Torque_Enable", 1)
    koch.servo(PAN).temperature_c = 90.0
    koch.wait(0.05)
    assert koch.one(PAN, 1).error == ALERT
    assert koch.get(PAN, "Hardware_Error_Status") == 0x04
    assert koch.get(PAN, "Torque_Enable") == 0
    assert koch.servo(PAN).drive.torque_on is False
    koch.servo(PAN).temperature_c = 30.0
    koch.put(PAN, "Torque_Enable", 1)
    assert koch.get(PAN, "Torque_Enable") == 0
    koch.ask(PAN, REBOOT)
    koch.wait(0.5)
    assert koch.put(PAN, "Torque_Enable", 1) == 0
    assert koch.get(PAN, "Torque_Enable") == 1


def test_shutdown_acts_only_on_the_conditions_chosen(koch: Dynamixel) -> None:
    koch.put(PAN, "Shutdown", 0)
    koch.put(PAN, "Torque_Enable", 1)
    koch.servo(PAN).temperature_c = 90.0
    koch.wait(0.05)
    assert koch.one(PAN, 1).error == ALERT
    assert koch.get(PAN, "Torque_Enable") == 1


def test_a_load_that_lasts_is_an_overload(koch: Dynamixel) -> None:
    # The hard stop of the joint is in the way of this goal.
    koch.put(PAN, "Operating_Mode", 4)
    koch.put(PAN, "Torque_Enable", 1)
    koch.put(PAN, "Goal_Position", 6000)
    koch.wait(4.5)
    assert koch.get(PAN, "Present_Load") == 1000
    assert koch.get(PAN, "Hardware_Error_Status") == 0
    koch.wait(2.0)
    assert koch.get(PAN, "Hardware_Error_Status") == 0x20
    assert koch.get(PAN, "Torque_Enable") == 0


def test_voltage_out_of_limits_is_reported(koch: Dynamixel) -> None:
    assert koch.get(PAN, "Present_Input_Voltage") == pytest.approx(120, abs=1)
    assert koch.get(ELBOW, "Present_Input_Voltage") == pytest.approx(50, abs=1)
    koch.put(PAN, "Min_Voltage_Limit", 130)
    koch.wait(0.05)
    assert koch.get(PAN, "Hardware_Error_Status") == 0x01
    assert koch.one(PAN, 1).error == ALERT


def test_realtime_tick_counts_milliseconds(koch: Dynamixel) -> None:
    first = koch.get(PAN, "Realtime_Tick")
    koch.wait(0.25)
    assert (koch.get(PAN, "Realtime_Tick") - first) % 32768 == 250


def test_indirect_data_are_windows_on_other_registers(koch: Dynamixel) -> None:
    for k, address in enumerate((132, 133, 134, 135, 146, 65)):
        assert koch.write(PAN, 168 + 2 * k, address.to_bytes(2, "little")).error == 0
    got = koch.read(PAN, 224, 5).data
    assert int.from_bytes(got[:4], "little") == koch.get(PAN, "Present_Position")
    assert got[4] == koch.get(PAN, "Present_Temperature")
    assert koch.write(PAN, 229, b"\x01").error == 0
    assert koch.get(PAN, "LED") == 1
    assert koch.write(PAN, 224, b"\0\0\0\0").error == ACCESS_ERROR  # Present Position


def test_settling_after_a_teleport_leaves_the_joint_where_it_was_put(koch: Dynamixel) -> None:
    koch.put(PAN, "Torque_Enable", 1)
    koch.wait(0.1)
    koch.bus.mechanism.position[0] += 0.7
    koch.bus.settle()
    there = koch.get(PAN, "Present_Position")
    koch.wait(1.0)
    assert koch.get(PAN, "Present_Position") == there
    assert koch.get(PAN, "Goal_Position") == there
