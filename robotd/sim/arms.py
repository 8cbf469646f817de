"""The simulated arms: how each servo sits on its joint, and the calibration that follows from it.

A servo's encoder reads `actual = zero_counts + sign * rad * 4096 / 2 pi`. Its register then shows
`present = actual - homing_offset` (Feetech) or `present = +-actual + homing_offset` (Dynamixel,
minus with drive mode 1). The calibrations put the middle of each joint's mechanical range at 2047
counts, as LeRobot's half-turn homing does, and their range is the mechanical range.

Directions are the field's: shoulder_pan + turns right seen from above, shoulder_lift -100 leans
back, elbow_flex + and wrist_flex + turn downwards, gripper 0 is closed.

Sources: ranges are those of the MuJoCo models; stall torque and no-load speed are the makers'
(STS3215 at 12 V with the torque of the public SO-101 model; XL430-W250, XL330-M288 and XL330-M077
from the ROBOTIS e-Manual); gains are LeRobot's configuration. Stiffness and damping of the position
loops are estimates: they give one to two degrees of sag and some 40 ms of lag, as users see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robotd.bus import registers
from robotd.bus.calibration import Calibration, JointCalibration
from robotd.bus.registers import Protocol

COUNTS_PER_RAD = registers.COUNTS_PER_TURN / (2 * math.pi)
MIDDLE_COUNTS = 2047  # where LeRobot's half-turn homing puts the middle of the range
JOINTS = registers.JOINTS
GRIPPER = JOINTS.index(registers.GRIPPER)


@dataclass(frozen=True, slots=True)
class Motor:
    """One kind of servo, as seen at its output."""

    name: str
    stall_torque_nm: float
    max_speed_rad_s: float  # without load
    default_p_gain: int  # position gain register as delivered
    stiffness_nm_rad: float  # of the position loop at that gain
    damping_nms_rad: float  # of the position loop


STS3215 = Motor("sts3215", 3.35, 4.7, 32, 80.0, 0.6)  # 45 rpm
XL430_W250 = Motor("xl430-w250", 1.5, 6.4, 640, 14.0, 0.4)  # 61 rpm at 12 V
XL330_M288 = Motor("xl330-m288", 0.52, 10.9, 400, 2.4, 0.08)  # 104 rpm at 5 V
XL330_M077 = Motor("xl330-m077", 0.215, 40.0, 400, 1.0, 0.04)  # 383 rpm at 5 V


@dataclass(frozen=True, slots=True)
class Mount:
    """One servo on one joint."""

    joint: str
    servo_id: int
    motor: Motor
    mujoco_joint: str
    sign: int  # +1: counts grow with the joint's angle
    middle_actual_counts: int  # encoder in the middle of the joint's range: how it was screwed on
    lower_rad: float
    upper_rad: float
    drive_mode: int = 0
    p_gain: int = 0  # position gain register once configured
    torque_limit: float = 1.0  # once configured, fraction of the stall torque

    @property
    def stiffness(self) -> float:
        """Position gain once configured, 1.0 = as delivered (see `mechanism.Drive`)."""
        return self.p_gain / self.motor.default_p_gain

    @property
    def middle_rad(self) -> float:
        return (self.lower_rad + self.upper_rad) / 2

    @property
    def zero_counts(self) -> float:
        """Encoder counts at 0 rad."""
        return self.middle_actual_counts - self.sign * self.middle_rad * COUNTS_PER_RAD

    def actual_counts(self, rad: float) -> float:
        """What the bare encoder reads (not rounded)."""
        return self.zero_counts + self.sign * rad * COUNTS_PER_RAD

    def rad_from_actual(self, counts: float) -> float:
        return (counts - self.zero_counts) / (self.sign * COUNTS_PER_RAD)


@dataclass(frozen=True, slots=True)
class Arm:
    """A simulated arm: six mounts in robotd's order and a folded pose in which it rests safely."""

    model: str
    role: str
    protocol: str  # "feetech" or "dynamixel"
    mounts: tuple[Mount, ...]
    park_norm: tuple[float, ...]


def _mounts(
    names: Sequence[str],
    motors: Sequence[Motor],
    signs: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    screwed_on: Sequence[int],
    p_gains: Sequence[int],
    gripper_torque_limit: float = 1.0,
    inverted: str | None = None,
) -> tuple[Mount, ...]:
    return tuple(
        Mount(
            joint=joint,
            servo_id=i + 1,
            motor=motors[i],
            mujoco_joint=names[i],
            sign=signs[i],
            middle_actual_counts=screwed_on[i],
            lower_rad=ranges[i][0],
            upper_rad=ranges[i][1],
            drive_mode=int(joint == inverted),
            p_gain=p_gains[i],
            torque_limit=gripper_torque_limit if i == GRIPPER else 1.0,
        )
        for i, joint in enumerate(JOINTS)
    )


_SO101_RANGES = (
    (-1.91986, 1.91986),
    (-1.74533, 1.74533),
    (-1.69, 1.69),
    (-1.65806, 1.65806),
    (-2.74385, 2.84121),
    (-0.17453, 1.74533),
)
_KOCH_NAMES = ("base_rotation", "pitch", "elbow", "wrist_pitch", "wrist_roll", "gripper")
_KOCH_RANGES = (
    (-2.2, 2.2),
    (-1.57, 0.6),
    (-1.57, 1.45),
    (-2.0, 2.0),
    (-3.0, 3.0),
    (-1.60, 0.032),
)
_KOCH_SIGNS = (1, -1, 1, -1, 1, -1)
_KOCH_MOTORS = (XL430_W250, XL430_W250, XL330_M288, XL330_M288, XL330_M288, XL330_M288)
_SO101_PARK = (0.0, -88.0, 83.0, 70.0, 0.0, 5.0)
_KOCH_PARK = (0.0, -90.0, 64.0, 46.0, 0.0, 5.0)

_SO101_FOLLOWER = _mounts(
    names=JOINTS,
    motors=(STS3215,) * 6,
    signs=(1,) * 6,
    ranges=_SO101_RANGES,
    screwed_on=(2260, 1562, 2388, 1920, 2205, 2949),
    p_gains=(16,) * 6,
    gripper_torque_limit=0.5,
)
_SO101_LEADER = _mounts(
    names=JOINTS,
    motors=(STS3215,) * 6,
    signs=(1,) * 6,
    ranges=_SO101_RANGES,
    screwed_on=(1811, 2467, 1655, 2312, 1951, 1290),
    p_gains=(32,) * 6,
)
_KOCH_FOLLOWER = _mounts(
    names=_KOCH_NAMES,
    motors=_KOCH_MOTORS,
    signs=_KOCH_SIGNS,
    ranges=_KOCH_RANGES,
    screwed_on=(1783, 2701, 1502, 2398, 2089, 2833),
    p_gains=(640, 640, 1500, 400, 400, 400),
)
# The leader's elbow servo sits the other way round; its drive mode turns the reading back.
_KOCH_LEADER = _mounts(
    names=_KOCH_NAMES,
    motors=(XL330_M077,) * 6,
    signs=(1, -1, -1, -1, 1, -1),
    ranges=_KOCH_RANGES,
    screwed_on=(2322, 1409, 2594, 1707, 1990, 1236),
    p_gains=(400,) * 6,
    inverted="elbow_flex",
)
ARMS: dict[tuple[str, str], Arm] = {
    ("so101", "follower"): Arm("so101", "follower", "feetech", _SO101_FOLLOWER, _SO101_PARK),
    ("so101", "leader"): Arm("so101", "leader", "feetech", _SO101_LEADER, _SO101_PARK),
    ("koch", "follower"): Arm("koch", "follower", "dynamixel", _KOCH_FOLLOWER, _KOCH_PARK),
    ("koch", "leader"): Arm("koch", "leader", "dynamixel", _KOCH_LEADER, _KOCH_PARK),
}


def arm(model: str, role: str = "follower") -> Arm:
    """The simulated arm of that model and role. Raises KeyError for one that is not there."""
    return ARMS[model, role]


def calibration_table(model: str, role: str = "follower") -> dict[str, dict[str, int]]:
    """The calibration of a simulated arm in the layout of LeRobot's JSON file."""
    which = arm(model, role)
    return {mount.joint: _calibrate(which, mount) for mount in which.mounts}


def sim_calibration(model: str, role: str = "follower") -> Calibration:
    """The calibration of a simulated arm, as LeRobot would have written it."""
    table = calibration_table(model, role)
    protocol = Protocol.FEETECH if arm(model, role).protocol == "feetech" else Protocol.DYNAMIXEL
    joints = {joint: JointCalibration(**row) for joint, row in table.items()}
    return Calibration(joints, protocol)


def half_range_counts(mount: Mount) -> int:
    """Half of the joint's mechanical range in whole counts."""
    return math.floor((mount.upper_rad - mount.lower_rad) / 2 * COUNTS_PER_RAD)


def _calibrate(which: Arm, mount: Mount) -> dict[str, int]:
    # A reversed Dynamixel counts down, and keeps within one turn when it is switched on.
    turned = -mount.middle_actual_counts % 4096 if mount.drive_mode else mount.middle_actual_counts
    feetech = which.protocol == "feetech"
    half = half_range_counts(mount)
    return {
        "id": mount.servo_id,
        "drive_mode": mount.drive_mode,
        "homing_offset": turned - MIDDLE_COUNTS if feetech else MIDDLE_COUNTS - turned,
        "range_min": MIDDLE_COUNTS - half,
        "range_max": MIDDLE_COUNTS + half,
    }


class Units:
    """Normalised units to radians of the mechanism and back, for one arm, without rounding."""

    def __init__(self, model: str, role: str = "follower") -> None:
        which = arm(model, role)
        self._middle = [mount.middle_rad for mount in which.mounts]
        # Radians per unit of [-100, 100] from the middle, in the sense of the register.
        self._scale = []
        for mount in which.mounts:
            sense = -mount.sign if mount.drive_mode else mount.sign
            self._scale.append(sense * half_range_counts(mount) / COUNTS_PER_RAD / 100)

    def rad(self, joint: int, norm: float) -> float:
        """Radians of a normalised value: [-100, 100], the gripper [0, 100]."""
        value = 2 * norm - 100 if joint == GRIPPER else norm
        return self._middle[joint] + self._scale[joint] * value

    def norm(self, joint: int, rad: float) -> float:
        """The normalised value of an angle; outside the calibrated range it goes beyond +-100."""
        value = (rad - self._middle[joint]) / self._scale[joint]
        return (value + 100) / 2 if joint == GRIPPER else value

    def all_rad(self, norm: Sequence[float]) -> tuple[float, ...]:
        return tuple(self.rad(joint, value) for joint, value in enumerate(norm))

    def all_norm(self, rad: Sequence[float]) -> tuple[float, ...]:
        return tuple(self.norm(joint, value) for joint, value in enumerate(rad))
