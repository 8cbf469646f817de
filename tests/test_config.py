"""The configuration: what is accepted, what is refused, and how the refusal reads."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from robotd.config import JOINTS, Config, load, parse
from robotd.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.toml"))
MINIMAL = """
[[arms]]
id = "follower"
model = "so101"
port = "/dev/ttyACM0"
calibration = "follower.json"
"""


def given(text: str) -> dict[str, Any]:
    return tomllib.loads(MINIMAL + text)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_their_files_exist(path: Path) -> None:
    config = load(path)
    assert config.arms[0].calibration.is_file()


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "robotd.toml"
    path.write_text(MINIMAL)
    assert load(path).arms[0].calibration == tmp_path / "follower.json"


def test_resolved_file_gives_the_same_configuration(tmp_path: Path) -> None:
    config = parse(given("[arms.limits.gripper]\nvelocity = 120"), tmp_path / "robotd.toml")
    config.save(tmp_path / "config.json")
    assert load(tmp_path / "config.json") == config


def test_a_joints_own_limit_beats_body_and_default() -> None:
    text = "[arms.limits.body]\nvelocity = 100\n[arms.limits.elbow_flex]\nvelocity = 50"
    arm = parse(given(text), Path("robotd.toml")).arms[0]
    velocities = {joint: arm.soft_limits(joint).velocity for joint in JOINTS}
    assert velocities["shoulder_pan"] == 100
    assert velocities["elbow_flex"] == 50
    assert velocities["gripper"] == 200


def test_signed_gripper_range_doubles_the_grippers_limits() -> None:
    raw = given("")
    raw["arms"][0]["gripper_range"] = "-100..100"
    arm = parse(raw, Path("robotd.toml")).arms[0]
    assert arm.soft_limits("gripper").position == (-100, 100)
    assert arm.soft_limits("gripper").velocity == 400
    assert arm.hard_limits("gripper").position == (-110, 110)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[control]\nrate_hz = 5000", ["control.rate_hz", "5000", "1000"]),
        ("[control]\nrate = 100", ["control.rate", "no such key"]),
        ("[arms.limits.gripper]\nvelocity = -3", ["arms.0.limits.gripper.velocity", "-3"]),
        ("[arms.limits.knee]\nvelocity = 3", ["arms.0.limits", "knee", "shoulder_pan"]),
        ("[arms.limits.body]\nvelocity = nan", ["velocity", "nan"]),
        ("[arms.limits.body]\nposition = [50, -50]", ["position", "not below"]),
        ("[arms.guard.body]\nrate = 20", ["velocity", "above", "guard"]),
        ("[arms.guard.body]\nposition = [-50, 50]", ["not inside", "guard"]),
        ("[control]\nfailed_ticks_hold = 9\nfailed_ticks_fault = 9", ["failed_ticks_fault"]),
        ('[[cameras]]\nname = "front"\ndriver = "opencv"', ["cameras.0", "device"]),
        ('[[cameras]]\nname = "front"\ndriver = "sim"', ["front", "[sim]"]),
        ('[policy]\nbundle = "b"\nendpoint = "http://x"', ["policy.endpoint", "tcp://"]),
    ],
)
def test_refusal_names_file_key_and_value(text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(given(text), Path("robotd.toml"))
    message = str(caught.value)
    assert message.startswith("robotd.toml: ")
    assert "\n" not in message
    for word in expected:
        assert word in message


def test_park_pose_outside_the_range_is_refused() -> None:
    raw = given("")
    raw["arms"][0]["park"] = [0, 0, 0, 0, 0, -5]
    with pytest.raises(ConfigError, match=r"park: gripper -5"):
        parse(raw, Path("robotd.toml"))


def test_two_arms_on_one_port_are_refused() -> None:
    raw = given("")
    raw["arms"].append({**raw["arms"][0], "id": "second"})
    with pytest.raises(ConfigError, match="listed twice"):
        parse(raw, Path("robotd.toml"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"name = ", b"[[arms]\n"])
def test_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "robotd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")


def test_defaults_need_nothing_but_an_arm() -> None:
    config = parse(given(""), Path("robotd.toml"))
    assert isinstance(config, Config)
    assert config.policy is None
    assert config.stop.torque_off


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_park_where_the_simulated_arms_park(path: Path) -> None:
    pytest.importorskip("mujoco")
    from robotd.sim.arms import arm

    config = load(path).arms[0]
    assert config.park == arm(config.model).park_norm
