"""Calibration files: what is refused and how it is said; units against LeRobot's own bus."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robotd.bus.calibration import Calibration, JointCalibration
from robotd.bus.registers import JOINTS, Protocol
from robotd.errors import CalibrationError


def table() -> dict[str, dict[str, Any]]:
    return {
        joint: {
            "id": at + 1,
            "drive_mode": 0,
            "homing_offset": -709 + at,
            "range_min": 43 + at,
            "range_max": 1335 + 100 * at,
        }
        for at, joint in enumerate(JOINTS)
    }


def written(folder: Path, content: object) -> Path:
    path = folder / "arm.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refused(folder: Path, content: object, model: str = "so101") -> str:
    with pytest.raises(CalibrationError) as caught:
        Calibration.load(written(folder, content), model)
    text = str(caught.value)
    assert "arm.json" in text
    assert "\n" not in text
    return text


def test_a_lerobot_file_is_read_and_written_back(tmp_path: Path) -> None:
    path = written(tmp_path, table())
    calibration = Calibration.load(path, "so101")
    assert calibration.protocol is Protocol.FEETECH
    assert calibration.joints["shoulder_lift"] == JointCalibration(2, 0, -708, 44, 1435)
    calibration.save(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text()) == table()
    assert Calibration.load(tmp_path / "copy.json", "so101") == calibration
    assert sorted(file.name for file in tmp_path.iterdir()) == ["arm.json", "copy.json"]


def test_the_order_of_the_joints_in_the_file_does_not_matter(tmp_path: Path) -> None:
    shuffled = dict(reversed(table().items()))
    assert Calibration.load(written(tmp_path, shuffled), "koch").joints["gripper"].id == 6


def test_missing_and_unknown_joints_are_named(tmp_path: Path) -> None:
    rows = table()
    del rows["elbow_flex"]
    assert "joint elbow_flex is missing" in refused(tmp_path, rows)
    rows = table() | {"tail": table()["gripper"] | {"id": 7}}
    assert "unknown joint 'tail'" in refused(tmp_path, rows)


def test_an_id_clash_names_both_joints(tmp_path: Path) -> None:
    rows = table()
    rows["gripper"]["id"] = 2
    assert "shoulder_lift and gripper have the same id 2" in refused(tmp_path, rows)


def test_empty_and_inverted_ranges(tmp_path: Path) -> None:
    rows = table()
    rows["wrist_flex"]["range_max"] = rows["wrist_flex"]["range_min"]
    assert "wrist_flex: empty range" in refused(tmp_path, rows)
    rows["wrist_flex"]["range_max"] = 5
    assert "wrist_flex: range_min 46 is above range_max 5" in refused(tmp_path, rows)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("range_max", 4096, "4096 is outside 0 to 4095"),
        ("range_min", -1, "-1 is outside 0 to 4095"),
        ("id", 253, "253 is outside 0 to 252"),
        ("drive_mode", 2, "2 is outside 0 to 1"),
        ("homing_offset", 2048, "2048 is outside -2047 to 2047"),
        ("homing_offset", 1.5, "expected a whole number, not 1.5"),
        ("homing_offset", True, "expected a whole number, not True"),
        ("id", "3", "expected a whole number, not '3'"),
        ("id", None, "expected a whole number, not None"),
    ],
)
def test_a_bad_value_is_shown_with_its_joint(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    rows = table()
    rows["elbow_flex"][field] = value
    text = refused(tmp_path, rows)
    assert f"elbow_flex.{field}" in text
    assert words in text


def test_homing_offsets_of_a_dynamixel_may_span_turns(tmp_path: Path) -> None:
    rows = table()
    rows["elbow_flex"]["homing_offset"] = -5000
    refused(tmp_path, rows, "so101")
    assert Calibration.load(written(tmp_path, rows), "koch").joints["elbow_flex"].homing_offset


def test_missing_and_unknown_fields(tmp_path: Path) -> None:
    rows = table()
    del rows["gripper"]["range_min"]
    assert "gripper: range_min is missing" in refused(tmp_path, rows)
    rows = table()
    rows["gripper"]["range_mid"] = 3
    assert "gripper: unknown range_mid" in refused(tmp_path, rows)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"gripper": 3}', '"\ud800"', "[" * 50_000, "x" * 70_000],
    ids=["empty", "cut", "list", "number", "row", "surrogate", "deep", "large"],
)
def test_what_is_no_calibration_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "arm.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CalibrationError, match=r"arm\.json"):
        Calibration.load(path, "so101")


def test_a_joint_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(table())
    twice = text[:-1] + ', "gripper": ' + json.dumps(table()["gripper"]) + "}"
    assert "gripper is there twice" in refused(tmp_path, twice)


def test_no_file_and_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        Calibration.load(tmp_path / "none.json", "so101")
    with pytest.raises(CalibrationError, match="cannot be read"):
        Calibration.load(tmp_path, "so101")
    with pytest.raises(CalibrationError, match="no arm model 'so100'"):
        Calibration.load(written(tmp_path, table()), "so100")
    with pytest.raises(CalibrationError, match="cannot be written"):
        Calibration.load(written(tmp_path, table()), "so101").save(tmp_path / "no" / "x.json")


@st.composite
def calibrations(draw: st.DrawFn) -> dict[str, JointCalibration]:
    rows = {}
    for at, joint in enumerate(JOINTS):
        low = draw(st.integers(0, 4094))
        rows[joint] = JointCalibration(
            at + 1,
            draw(st.integers(0, 1)),
            draw(st.integers(-2047, 2047)),
            low,
            draw(st.integers(low + 1, 4095)),
        )
    return rows


def lerobots(rows: dict[str, JointCalibration], protocol: Protocol, signed: bool) -> Any:
    """LeRobot's own bus with this calibration. Imported here: that takes seconds."""
    from lerobot.motors import Motor, MotorCalibration, MotorNormMode
    from lerobot.motors.dynamixel import DynamixelMotorsBus
    from lerobot.motors.feetech import FeetechMotorsBus

    feetech = protocol is Protocol.FEETECH
    grip = MotorNormMode.RANGE_M100_100 if signed else MotorNormMode.RANGE_0_100
    motors = {
        joint: Motor(
            row.id,
            "sts3215" if feetech else "xl330-m288",
            grip if joint == "gripper" else MotorNormMode.RANGE_M100_100,
        )
        for joint, row in rows.items()
    }
    theirs = {
        joint: MotorCalibration(
            row.id, row.drive_mode, row.homing_offset, row.range_min, row.range_max
        )
        for joint, row in rows.items()
    }
    return (FeetechMotorsBus if feetech else DynamixelMotorsBus)("no port", motors, theirs)


@given(calibrations(), st.sampled_from(Protocol), st.booleans(), st.floats(0, 1))
def test_units_are_lerobots(
    rows: dict[str, JointCalibration], protocol: Protocol, signed: bool, share: float
) -> None:
    ours = Calibration(rows, protocol, signed)
    theirs = lerobots(rows, protocol, signed)
    for joint, row in rows.items():
        counts = round(row.range_min + share * (row.range_max - row.range_min))
        value = ours.normalise(joint, counts)
        assert value == theirs._normalize({row.id: counts})[row.id]
        assert ours.counts(joint, value) == counts
        # LeRobot cuts goals off to whole counts where they are rounded here.
        assert abs(theirs._unnormalize({row.id: value})[row.id] - counts) <= 1


@given(calibrations(), st.sampled_from(Protocol), st.integers(-4096, 8192))
def test_beyond_the_range_units_go_on(
    rows: dict[str, JointCalibration], protocol: Protocol, counts: int
) -> None:
    calibration = Calibration(rows, protocol)
    for joint in JOINTS:
        value = calibration.normalise(joint, counts)
        assert calibration.counts(joint, value) == counts
        inside = rows[joint].range_min <= counts <= rows[joint].range_max
        low = 0 if joint == "gripper" else -100
        assert (low - 1e-9 <= value <= 100 + 1e-9) is inside
        assert math.isfinite(value)
