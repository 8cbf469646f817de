"""LeRobot's own robots and teleoperators on the simulated arms: connect, observe, act."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robotd.sim.arms import JOINTS, calibration_table
from robotd.sim.control_tables import MODELS
from tests.conformance.served import ServedBus

pytestmark = pytest.mark.xdist_group("lerobot")  # its import takes seconds: once is enough
FOLLOWERS = [("koch", "follower"), ("so101", "follower")]
LEADERS = [("koch", "leader"), ("so101", "leader")]
PATIENCE_S = 30.0
PATIENCE_MS = 1000.0


def device(bus: ServedBus, model: str, role: str, folder: Path) -> Any:
    """LeRobot's class for an arm, with the simulated arm's calibration file in a folder."""
    from lerobot.robots.koch_follower import KochFollower, KochFollowerConfig
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
    from lerobot.teleoperators.koch_leader import KochLeader, KochLeaderConfig
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    classes = {
        ("koch", "follower"): (KochFollower, KochFollowerConfig),
        ("koch", "leader"): (KochLeader, KochLeaderConfig),
        ("so101", "follower"): (SO101Follower, SO101FollowerConfig),
        ("so101", "leader"): (SO101Leader, SO101LeaderConfig),
    }
    (folder / "sim.json").write_text(json.dumps(calibration_table(model, role)))
    kind, config = classes[model, role]
    options = {"use_degrees": False} if model == "so101" else {}
    return kind(config(port=str(bus.path), id="sim", calibration_dir=folder, **options))


@pytest.fixture(autouse=True)
def patient_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer time-outs in the SDKs: this machine may be too busy to answer in 35 ms."""
    from dynamixel_sdk import port_handler
    from lerobot.motors.feetech import feetech

    def patient(self: Any, length: int) -> None:
        self.packet_start_time = self.getCurrentTime()
        self.packet_timeout = self.tx_time_per_byte * (length + 3) + PATIENCE_MS

    monkeypatch.setattr(port_handler, "LATENCY_TIMER", PATIENCE_MS / 2)
    monkeypatch.setattr(feetech, "patch_setPacketTimeout", patient)


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prompt: str = "") -> str:
        raise AssertionError(f"LeRobot asked: {prompt}")

    monkeypatch.setattr("builtins.input", refuse)


def arms(which: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("arm", which, indirect=True, ids="-".join)


@pytest.fixture
def arm(
    request: pytest.FixtureRequest, tmp_path: Path, no_questions: None
) -> Iterator[tuple[ServedBus, Any, str, str]]:
    model, role = request.param
    with ServedBus(model, role, physics="mujoco") as bus:
        connected = device(bus, model, role, tmp_path)
        connected.connect()
        yield bus, connected, model, role
        if connected.is_connected:
            connected.disconnect()


def eventually(check: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@arms(FOLLOWERS + LEADERS)
def test_connects_calibrated_reads_and_lets_go(arm: tuple[ServedBus, Any, str, str]) -> None:
    bus, device, _, role = arm
    assert device.is_connected
    assert device.is_calibrated  # every servo's EEPROM agrees with the file
    read = device.get_observation if role == "follower" else device.get_action
    seen = read()
    assert set(seen) == {f"{joint}.pos" for joint in JOINTS}
    truth = dict(zip(JOINTS, bus.state()["joints"], strict=True))
    for joint in JOINTS:
        low = 0.0 if joint == "gripper" else -100.0
        expected = min(100.0, max(low, truth[joint]))
        assert seen[f"{joint}.pos"] == pytest.approx(expected, abs=2.5), joint
    device.disconnect()
    assert bus.state()["torque"] == [False] * 6


@arms(FOLLOWERS)
def test_a_follower_goes_where_it_is_sent(arm: tuple[ServedBus, Any, str, str]) -> None:
    bus, device, _, _ = arm
    assert bus.state()["torque"] == [True] * 6
    start = device.get_observation()
    action = dict(start) | {"shoulder_pan.pos": 20.0, "wrist_roll.pos": -25.0, "gripper.pos": 40.0}
    sent = device.send_action(action)
    assert sent["shoulder_pan.pos"] == 20.0

    def arrived() -> bool:
        seen = device.get_observation()
        wanted = ("shoulder_pan.pos", "wrist_roll.pos", "gripper.pos")
        return all(abs(seen[key] - action[key]) < 2.0 for key in wanted)

    assert eventually(arrived), device.get_observation()


@arms(LEADERS)
def test_a_leader_shows_where_it_is_pulled(arm: tuple[ServedBus, Any, str, str]) -> None:
    bus, device, model, _ = arm
    assert bus.state()["torque"] == [False] * 5 + [model == "koch"]  # Koch: a spring as trigger
    pulled = {"shoulder_pan": 30.0, "wrist_roll": -40.0, "elbow_flex": 20.0}
    bus.command("hand " + " ".join(f"{joint}={x}" for joint, x in pulled.items()))

    def there() -> bool:
        seen = device.get_action()
        return all(abs(seen[f"{joint}.pos"] - x) < 3.0 for joint, x in pulled.items())

    assert eventually(there), device.get_action()


@arms(FOLLOWERS + LEADERS)
def test_configuration_arrives_in_the_servos(arm: tuple[ServedBus, Any, str, str]) -> None:
    _, device, model, role = arm
    motors = device.bus
    for joint in JOINTS:
        assert motors.read("Return_Delay_Time", joint) == 0
        grip = joint == "gripper"
        if model == "koch":
            assert motors.read("Operating_Mode", joint) == (5 if grip else 4)
        else:
            assert motors.read("Operating_Mode", joint) == 0
            assert motors.read("Acceleration", joint) == 254
    if (model, role) == ("koch", "follower"):
        assert motors.read("Position_P_Gain", "elbow_flex") == 1500
    if (model, role) == ("so101", "follower"):
        assert motors.read("P_Coefficient", "elbow_flex") == 16
        assert motors.read("Overload_Torque", "gripper") == 25


def test_another_calibration_file_is_noticed(
    tmp_path: Path, no_questions: None, request: pytest.FixtureRequest
) -> None:
    for model in ("koch", "so101"):
        with ServedBus(model) as bus:
            robot = device(bus, model, "follower", tmp_path)
            robot.calibration["elbow_flex"].homing_offset += 7
            robot.connect(calibrate=False)
            assert not robot.is_calibrated
            robot.bus.disable_torque()
            robot.bus.write_calibration(robot.calibration)
            assert robot.is_calibrated
            robot.disconnect()


def test_a_missing_servo_is_named(tmp_path: Path, no_questions: None) -> None:
    with ServedBus("so101") as bus:
        bus.command("only shoulder_pan shoulder_lift elbow_flex wrist_flex gripper")
        robot = device(bus, "so101", "follower", tmp_path)
        with pytest.raises(RuntimeError, match=r"Missing motor IDs:\s+- 5 \(expected model: 777\)"):
            robot.connect()
        robot.bus.port_handler.closePort()


def test_its_control_tables_agree_with_those_simulated() -> None:
    from lerobot.motors.dynamixel.tables import MODEL_CONTROL_TABLE as X_TABLES
    from lerobot.motors.dynamixel.tables import MODEL_NUMBER_TABLE as X_NUMBERS
    from lerobot.motors.feetech.tables import MODEL_CONTROL_TABLE as STS_TABLES
    from lerobot.motors.feetech.tables import MODEL_NUMBER_TABLE as STS_NUMBERS

    for name, model in MODELS.items():
        numbers, tables = (STS_NUMBERS, STS_TABLES) if name == "sts3215" else (X_NUMBERS, X_TABLES)
        assert numbers[name] == model.number
        by_address = dict(tables[name].values())
        for item in model.items:
            if item.address in by_address and item.name != "Present_Load":
                assert by_address[item.address] == item.size, item.name
