"""LeRobot's calibration files: strict reading, and normalised units from encoder counts.

The file maps each joint to {"id", "drive_mode", "homing_offset", "range_min", "range_max"}.
A body joint's range becomes [-100, 100], the gripper's [0, 100] (or [-100, 100] when chosen).
Measured values are not clamped: what lies beyond the range is shown beyond 100. Formulas:
lerobot/motors/motors_bus.py, `_normalize` and `_unnormalize`; goals are rounded, not cut off.

Drive mode 1 turns a joint's sense round. A Dynamixel does that itself (register Drive_Mode), for
a Feetech servo it is done here.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from robotd.bus.registers import COUNTS_PER_TURN, GRIPPER, JOINTS, Protocol
from robotd.errors import CalibrationError

# What the servos' Homing_Offset registers hold: sign bit 11 (STS), e-Manual (X series).
HOMING_LIMIT: Mapping[Protocol, int] = {Protocol.FEETECH: 2047, Protocol.DYNAMIXEL: 1_044_479}
_PROTOCOLS = {"so101": Protocol.FEETECH, "koch": Protocol.DYNAMIXEL}
_LARGEST_ID = 252  # 253 and 254 are reserved, in both protocols
_LARGEST_FILE = 64 * 1024  # bytes; six joints take about one thousand


@dataclass(frozen=True, slots=True)
class JointCalibration:
    """One servo's place on its arm; counts are encoder counts, 4096 a turn."""

    id: int
    drive_mode: int  # 1: sense turned round
    homing_offset: int
    range_min: int
    range_max: int


FIELDS = tuple(field.name for field in fields(JointCalibration))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of one arm: joint name to its servo.

    Raises CalibrationError on construction when a joint is missing or unknown, two share an id,
    or a value is out of its range.
    """

    joints: Mapping[str, JointCalibration]
    protocol: Protocol = Protocol.DYNAMIXEL
    gripper_signed: bool = False  # gripper in [-100, 100] in place of [0, 100]

    def __post_init__(self) -> None:
        _check(self.joints, self.protocol)

    @classmethod
    def load(cls, path: Path | str, model: str, gripper_signed: bool = False) -> "Calibration":
        """Read the file of an arm of that model ("so101" or "koch").

        Raises CalibrationError naming file, joint and value.
        """
        if model not in _PROTOCOLS:
            raise CalibrationError(f"no arm model {model!r}; known: {', '.join(_PROTOCOLS)}")
        try:
            return cls(_read(Path(path)), _PROTOCOLS[model], gripper_signed)
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from None

    def save(self, path: Path | str) -> None:
        """Write LeRobot's layout, whole or not at all. Raises CalibrationError."""
        path = Path(path)
        text = json.dumps({name: asdict(self.joints[name]) for name in JOINTS}, indent=4)
        fresh = path.with_name(f".{path.name}.new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be written: {error.strerror}") from None

    def line(self, joint: str) -> tuple[int, int, int, int]:
        """(min, span, gain, bias): value = (counts - min) / span * gain + bias."""
        row = self.joints[joint]
        gain, bias = (100, 0) if joint == GRIPPER and not self.gripper_signed else (200, -100)
        if row.drive_mode and self.protocol is Protocol.FEETECH:
            gain, bias = -gain, bias + gain
        return row.range_min, row.range_max - row.range_min, gain, bias

    def normalise(self, joint: str, counts: float) -> float:
        """Counts of Present_Position in normalised units; not clamped."""
        low, span, gain, bias = self.line(joint)
        return (counts - low) / span * gain + bias

    def counts(self, joint: str, value: float) -> int:
        """The nearest count of Goal_Position for a finite value in normalised units."""
        low, span, gain, bias = self.line(joint)
        return round((value - bias) / gain * span + low)


def _read(path: Path) -> dict[str, JointCalibration]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise CalibrationError("there is no such file; calibrate the arm first") from None
    except OSError as error:
        raise CalibrationError(f"cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise CalibrationError(f"larger than {_LARGEST_FILE} bytes: not a calibration")
    try:
        table = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise CalibrationError("expected an object with one entry for each joint")
    return {joint: _row(joint, row) for joint, row in table.items()}


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CalibrationError(f"{twice} is there twice")
    return table


def _row(joint: str, row: object) -> JointCalibration:
    if not isinstance(row, dict):
        raise CalibrationError(f"{joint}: expected an object, not {row!r}")
    for name in FIELDS:
        if name not in row:
            raise CalibrationError(f"{joint}: {name} is missing")
        if type(row[name]) is not int:
            raise CalibrationError(f"{joint}.{name}: expected a whole number, not {row[name]!r}")
    unknown = sorted(set(row) - set(FIELDS))
    if unknown:
        raise CalibrationError(f"{joint}: unknown {unknown[0]}; known: {', '.join(FIELDS)}")
    return JointCalibration(**row)


def _check(joints: Mapping[str, JointCalibration], protocol: Protocol) -> None:
    missing = [name for name in JOINTS if name not in joints]
    if missing:
        raise CalibrationError(f"joint {', '.join(missing)} is missing")
    unknown = [name for name in joints if name not in JOINTS]
    if unknown:
        raise CalibrationError(f"unknown joint {unknown[0]!r}; known: {', '.join(JOINTS)}")
    owner: dict[int, str] = {}
    for joint in JOINTS:
        row = joints[joint]
        if row.id in owner:
            raise CalibrationError(f"{owner[row.id]} and {joint} have the same id {row.id}")
        owner[row.id] = joint
        _check_row(joint, row, HOMING_LIMIT[protocol])


def _check_row(joint: str, row: JointCalibration, homing: int) -> None:
    last = COUNTS_PER_TURN - 1
    for name, low, high in (
        ("id", 0, _LARGEST_ID),
        ("drive_mode", 0, 1),
        ("homing_offset", -homing, homing),
        ("range_min", 0, last),
        ("range_max", 0, last),
    ):
        value = getattr(row, name)
        if not low <= value <= high:
            raise CalibrationError(f"{joint}.{name}: {value} is outside {low} to {high}")
    if row.range_min == row.range_max:
        raise CalibrationError(f"{joint}: empty range, range_min and range_max are {row.range_min}")
    if row.range_min > row.range_max:
        raise CalibrationError(
            f"{joint}: range_min {row.range_min} is above range_max {row.range_max}"
        )
