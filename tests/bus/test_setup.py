"""Connecting, configuring and powering an arm on the emulated bus: what is done and refused."""

from dataclasses import replace

import pytest

from robotd.bus.arm import Arm
from robotd.bus.calibration import Calibration
from robotd.bus.registers import JOINTS
from robotd.errors import CalibrationError, PortError, ServoError
from robotd.sim.arms import sim_calibration
from tests.bus.rig import Rig

ARMS = pytest.mark.parametrize(
    ("model", "role"),
    [("so101", "follower"), ("so101", "leader"), ("koch", "follower"), ("koch", "leader")],
)
FOLLOWERS = pytest.mark.parametrize("model", ["so101", "koch"])
ELBOW, GRIPPER = 2, 5


@ARMS
def test_every_arm_connects_configures_engages_and_lets_go(model: str, role: str) -> None:
    rig = Rig(model, role).ready()
    present = rig.arm.engage()
    assert len(present) == len(JOINTS)
    powered = {("koch", "leader"): [0, 0, 0, 0, 0, 1], ("so101", "leader"): [0] * 6}
    torque = [rig.register(at, "Torque_Enable") for at in range(6)]
    assert torque == powered.get((model, role), [1] * 6)
    assert rig.arm.engaged
    rig.arm.release()
    assert [rig.register(at, "Torque_Enable") for at in range(6)] == [0] * 6
    assert not rig.arm.engaged


def test_koch_follower_is_configured_as_lerobot_does() -> None:
    rig = Rig("koch").ready()
    for at in range(6):
        assert rig.register(at, "Return_Delay_Time") == 0
        assert rig.register(at, "Operating_Mode") == (5 if at == GRIPPER else 4)
        assert rig.register(at, "Torque_Enable") == 0
    gains = [rig.register(ELBOW, f"Position_{gain}_Gain") for gain in ("P", "I", "D")]
    assert gains == [1500, 0, 600]


def test_so101_follower_is_configured_as_lerobot_does() -> None:
    rig = Rig("so101")
    for servo in rig.bus.servos:
        servo.keep("Phase", 0x1F)
        servo.keep("Operating_Mode", 1)
    rig.ready()
    for at in range(6):
        shown = {
            name: rig.register(at, name)
            for name in (
                "Return_Delay_Time",
                "Maximum_Acceleration",
                "Acceleration",
                "Phase",
                "Operating_Mode",
                "P_Coefficient",
                "I_Coefficient",
                "D_Coefficient",
                "Torque_Enable",
                "Lock",
            )
        }
        assert list(shown.values()) == [0, 254, 254, 0x0F, 0, 16, 0, 32, 0, 1]
    assert rig.register(GRIPPER, "Max_Torque_Limit") == 500
    assert rig.register(GRIPPER, "Protection_Current") == 250
    assert rig.register(GRIPPER, "Overload_Torque") == 25
    assert rig.kept(GRIPPER, "P_Coefficient") == b"\x10"  # the EEPROM was open
    assert rig.kept(ELBOW, "Phase") == b"\x0f"


@ARMS
def test_configuring_twice_writes_no_permanent_register_again(model: str, role: str) -> None:
    rig = Rig(model, role).ready()
    before = [bytes(servo.rom) for servo in rig.bus.servos]
    sent: list[bytes] = []
    write = rig.port.write
    rig.port.write = lambda data: (sent.append(data), write(data))[1]  # type: ignore[method-assign]
    rig.arm.configure()
    assert [bytes(servo.rom) for servo in rig.bus.servos] == before
    instruction_at, address_at = (7, 8) if model == "koch" else (4, 5)
    written = {p[address_at] for p in sent if p[instruction_at] == 3}
    limit = 64 if model == "koch" else 40  # where RAM begins
    assert min(written) >= limit


def test_the_koch_leaders_gripper_becomes_a_trigger() -> None:
    rig = Rig("koch", "leader").ready()
    rig.arm.engage()
    goal = rig.register(GRIPPER, "Goal_Position")
    assert goal == rig.calibration.counts("gripper", 50.0)
    with pytest.raises(ServoError, match="is a leader: it takes no goals"):
        rig.arm.write((0.0,) * 6)
    readings = rig.run(400)
    assert readings[GRIPPER].position == pytest.approx(50.0, abs=2.0)
    assert not any(one.status for one in readings)


# Identity


@FOLLOWERS
def test_a_silent_servo_is_named(model: str) -> None:
    rig = Rig(model)
    rig.inject("mute:id=3")
    with pytest.raises(ServoError, match=r"no answer from servo 3 \(elbow_flex\) on arm left: ch"):
        rig.arm.connect()


@FOLLOWERS
def test_several_silent_servos_are_named(model: str) -> None:
    rig = Rig(model)
    rig.inject("mute:id=5,mute:id=6")
    with pytest.raises(ServoError, match=r"servo 5 \(wrist_roll\).*, servo 6 \(gripper\)"):
        rig.arm.connect()


@FOLLOWERS
def test_a_silent_bus_is_not_blamed_on_one_servo(model: str) -> None:
    rig = Rig(model)
    rig.inject("mute")
    with pytest.raises(ServoError, match="no servo answers on arm left: check its power supply"):
        rig.arm.connect()


def test_a_wrong_model_is_shown_with_the_right_one() -> None:
    rig = Rig("koch")
    rig.bus.servos[ELBOW].keep("Model_Number", 1190)
    expected = r"servo 3 \(elbow_flex\) on arm left is model 1190 \(xl330-m077\), expected 1200"
    with pytest.raises(ServoError, match=expected):
        rig.arm.connect()
    rig = Rig("so101")
    rig.bus.servos[0].keep("Model_Number", 1234)
    with pytest.raises(ServoError, match=r"model 1234 \(unknown\), expected 777 \(sts3215\)"):
        rig.arm.connect()


def test_leader_and_follower_swapped_is_recognised() -> None:
    rig = Rig("koch", "leader")
    rig_follower = Rig("koch", "follower")
    rig_follower.arm._setup._link._port = rig.port
    with pytest.raises(ServoError, match=r"are those of a koch leader: is this the right port\?"):
        rig_follower.arm.connect()


def test_mixed_firmware_is_refused_on_feetech() -> None:
    rig = Rig("so101")
    rig.bus.servos[4].keep("Firmware_Minor_Version", 9)
    with pytest.raises(ServoError, match=r"arm left mixes firmware versions \(.*wrist_roll \d\.9"):
        rig.arm.connect()


def test_no_such_arm() -> None:
    rig = Rig("so101")
    with pytest.raises(ServoError, match="no arm model 'so101' with role 'boss'"):
        Arm("left", "so101", "boss", rig.port, rig.calibration)
    with pytest.raises(ServoError, match="no detail 'none'"):
        Rig("so101", detail="none")


# Calibration


@ARMS
def test_a_calibration_of_another_arm_is_refused_and_can_be_written(model: str, role: str) -> None:
    other = dict(sim_calibration(model, role).joints)
    other["wrist_flex"] = replace(other["wrist_flex"], homing_offset=-17, range_max=3000)
    rig = Rig(model, role, Calibration(other))
    servo = rig.bus.servos[3]
    there = servo.get("Homing_Offset")
    with pytest.raises(CalibrationError) as caught:
        rig.arm.connect()
    text = str(caught.value)
    assert f"wrist_flex Homing_Offset is {there} in the servo, -17 in the file" in text
    assert "wrist_flex Max_Position_Limit" in text
    assert "elbow_flex" not in text
    rig.arm.connect(check_calibration=False)
    rig.arm.write_calibration()
    rig.arm.connect()
    servo.power_on(0)  # it was kept
    assert servo.get("Homing_Offset") == -17


def test_a_dynamixels_drive_mode_belongs_to_its_calibration() -> None:
    rows = dict(sim_calibration("koch").joints)
    rows["elbow_flex"] = replace(rows["elbow_flex"], drive_mode=1)
    rig = Rig("koch", calibration=Calibration(rows))
    with pytest.raises(CalibrationError, match="elbow_flex Drive_Mode is 0 in the servo, 1"):
        rig.arm.connect()
    rig.arm.write_calibration()
    rig.arm.connect()


def test_a_feetech_drive_mode_turns_the_reading_round() -> None:
    straight = Rig("so101").ready()
    rows = dict(sim_calibration("so101").joints)
    rows["elbow_flex"] = replace(rows["elbow_flex"], drive_mode=1)
    turned = Rig("so101", calibration=Calibration(rows)).ready()
    one, other = straight.arm.engage(), turned.arm.engage()
    assert other[ELBOW] == -one[ELBOW] != 0
    assert [*one[:ELBOW], *one[ELBOW + 1 :]] == [*other[:ELBOW], *other[ELBOW + 1 :]]
    goals = (*other[:ELBOW], other[ELBOW] + 10, *other[ELBOW + 1 :])
    readings = turned.run(400, goals)
    assert readings[ELBOW].position == pytest.approx(goals[ELBOW], abs=3.0)


# Engaging


@FOLLOWERS
def test_engaging_never_moves_the_arm(model: str) -> None:
    """Also when the servos hold an old goal far away."""
    rig = Rig(model).ready()
    for servo in rig.bus.servos:
        servo.set("Goal_Position", 2500)
    before = [servo.actual() for servo in rig.bus.servos]
    present = rig.arm.engage()
    readings = rig.run(200, present)
    moved = [abs(s.actual() - old) for s, old in zip(rig.bus.servos, before, strict=True)]
    assert max(moved) < 12  # counts; gravity may bend it a little
    for reading, goal in zip(readings, present, strict=True):
        assert reading.position == pytest.approx(goal, abs=1.0)


@FOLLOWERS
def test_goals_are_set_before_torque(model: str) -> None:
    rig = Rig(model).ready()
    sent: list[bytes] = []
    write = rig.port.write
    rig.port.write = lambda data: (sent.append(data), write(data))[1]  # type: ignore[method-assign]
    rig.arm.engage()
    instruction_at, address_at = (7, 8) if model == "koch" else (4, 5)
    writes = [p[address_at] for p in sent if p[instruction_at] == 3]
    goal, torque = (116, 64) if model == "koch" else (42, 40)
    assert writes.count(goal) == writes.count(torque) == 6
    assert max(at for at, a in enumerate(writes) if a == goal) < writes.index(torque)
    assert all(p[instruction_at] == 2 for p in sent[:12])  # reads come first: health, present


@FOLLOWERS
def test_a_servo_in_error_is_not_engaged(model: str) -> None:
    rig = Rig(model).ready()
    rig.inject("overheat:id=3:c=95")
    rig.now_ns += 100_000_000
    rig.bus.advance(rig.now_ns)
    with pytest.raises(ServoError, match=r"servo 3 \(elbow_flex\) on arm left reports: overheated"):
        rig.arm.engage()
    assert not rig.arm.engaged


@FOLLOWERS
def test_a_servo_lost_while_engaging_leaves_no_torque(model: str) -> None:
    rig = Rig(model).ready()
    write = rig.port.write
    torque = bytes((3, 64, 0, 1)) if model == "koch" else bytes((3, 40, 1))

    def cut(data: bytes) -> None:
        if torque in data and data[4 if model == "koch" else 2] == 4:
            rig.inject("mute:id=4")
        write(data)

    rig.port.write = cut  # type: ignore[method-assign]
    with pytest.raises(ServoError, match=r"servo 4 \(wrist_flex\) .*did not confirm Torque_Enable"):
        rig.arm.engage()
    assert not rig.arm.engaged
    assert [rig.register(at, "Torque_Enable") for at in (0, 1, 2, 4, 5)] == [0] * 5


def test_a_joint_a_turn_away_is_not_engaged() -> None:
    rig = Rig("koch").ready()
    servo = rig.bus.servos[ELBOW]
    servo.keep("Homing_Offset", servo.get("Homing_Offset") + 8192)
    servo.power_on(0)
    with pytest.raises(ServoError, match="more than half a turn outside its range"):
        rig.arm.engage()
    assert rig.register(ELBOW, "Torque_Enable") == 0


@FOLLOWERS
def test_release_reaches_the_others_when_one_is_mute(model: str) -> None:
    rig = Rig(model).ready()
    rig.arm.engage()
    rig.inject("mute:id=2")
    with pytest.raises(ServoError, match=r"torque off is not confirmed by servo 2 \(shoulder_lift"):
        rig.arm.release()
    assert [rig.register(at, "Torque_Enable") for at in (0, 2, 3, 4, 5)] == [0] * 5


@ARMS
@pytest.mark.parametrize(
    "faults",
    [
        "drop:p=0.1",
        "corrupt:p=0.1",
        "duplicate:p=0.3",
        "late:p=0.1:by=3ms",
        "wrong-id:p=0.1",
        "drop:p=0.05,corrupt:p=0.05,duplicate:p=0.2",
    ],
)
def test_set_up_gets_through_a_bad_line(model: str, role: str, faults: str) -> None:
    rig = Rig(model, role)
    rig.inject(faults)
    for _ in range(4):  # three tries a question: rarely, all of them fail
        try:
            rig.ready().arm.engage()
            break
        except ServoError as error:
            assert "arm left" in str(error)  # noqa: PT017
    rig.inject("")
    assert rig.arm.engaged
    torque = [rig.register(at, "Torque_Enable") for at in range(6)]
    assert torque == [int(joint in rig.arm.model.torque) for joint in JOINTS]


@FOLLOWERS
def test_an_unplugged_port_is_a_port_error_in_every_call(model: str) -> None:
    rig = Rig(model).ready()
    rig.inject("unplug")
    rig.now_ns += 10_000_000
    for call in (rig.arm.connect, rig.arm.configure, rig.arm.engage, rig.arm.release):
        with pytest.raises(PortError, match="gone away"):
            call()
    assert not rig.arm.engaged
