"""What becomes of a fault, and how faults are recognised in the readings of one arm. Pure.

| fault | the arm does |
|---|---|
| SERVO_ERROR, FOLLOWING, RANGE | brakes and holds (category 2) |
| BUS_SILENT, PORT_LOST, TORQUE_LOST | that arm: no more goals, its servos hold; others as above |
| GUARD, INTERNAL | stays at the last goal that passed the guard; the limiter is not asked |
| OVERHEAT | that arm: torque off at once; the others brake and hold |
| ESTOP, ENGAGE_FAILED | torque off at once, all arms (category 0) |

Clearing a fault takes torque off everywhere. Dynamixels that report an error then are restarted,
for nothing else ends their shutdown; a Feetech servo forgets an overload when torque goes on again.
What may have lost its settings is checked and configured, and every servo must be free of errors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from robotd.bus.arm import JointReading
from robotd.bus.status import ServoStatus, status_text
from robotd.ipc.ring import Fault, Limited


class Stop(Enum):
    """How motion ends when a fault occurs."""

    HOLD = "brake, then hold"
    LEAVE = "no more goals to the arm concerned, the others brake and hold"
    FREEZE = "repeat the last goal"
    RELEASE_ARM = "torque off on the arm concerned, the others brake and hold"
    RELEASE = "torque off everywhere"


# A Feetech servo switches its torque on when it is sent a goal: so one that has lost it gets none.
STOPS: dict[Fault, Stop] = {
    Fault.BUS_SILENT: Stop.LEAVE,
    Fault.PORT_LOST: Stop.LEAVE,
    Fault.SERVO_ERROR: Stop.HOLD,
    Fault.TORQUE_LOST: Stop.LEAVE,
    Fault.GUARD: Stop.FREEZE,
    Fault.FOLLOWING: Stop.HOLD,
    Fault.OVERHEAT: Stop.RELEASE_ARM,
    Fault.ESTOP: Stop.RELEASE,
    Fault.ENGAGE_FAILED: Stop.RELEASE,
    Fault.RANGE: Stop.HOLD,
    Fault.INTERNAL: Stop.FREEZE,
}

READINGS = 3  # a value must be seen this often in a row: one odd reading is no fault
FOLLOWING_S = 1.5  # at the following bound for this long: blocked or overloaded
RANGE_S = 0.25  # outside the hard range for this long
_ERRORS = int(
    ServoStatus.VOLTAGE
    | ServoStatus.SENSOR
    | ServoStatus.OVERCURRENT
    | ServoStatus.OVERLOAD
    | ServoStatus.ALERT
)
_OVERHEAT = int(ServoStatus.OVERHEAT)
_TORQUE_LOST = int(ServoStatus.TORQUE_LOST)
_OVERLOAD = int(ServoStatus.OVERLOAD)
_FOLLOWING = int(Limited.FOLLOWING)


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault seen in the readings: which, on which joint of the arm, in words."""

    fault: Fault
    joint: int
    text: str


@dataclass(frozen=True, slots=True)
class WatchedJoint:
    """What is watched about one joint. Positions in normalised units."""

    name: str
    lower: float  # hard range
    upper: float
    gripper: bool = False


class Watch:
    """Looks at every tick's readings of one arm.

    A gripper that closes on an object neither follows its target nor avoids the servo's overload
    bit, and both are normal: for it FOLLOWING is never a fault, and its overload bit is not one
    either (the servo limits its own torque; if it switches off, that is TORQUE_LOST).
    """

    def __init__(
        self, joints: Sequence[WatchedJoint], max_temperature_c: float, period_s: float
    ) -> None:
        self._joints = tuple(joints)
        self._hottest = max_temperature_c
        self._errors = [_ERRORS & ~_OVERLOAD if j.gripper else _ERRORS for j in joints]
        self._following_ticks = math.ceil(FOLLOWING_S / period_s)
        self._range_ticks = math.ceil(RANGE_S / period_s)
        self.restart()

    def restart(self) -> None:
        """Forget what was counted: faults have been cleared."""
        count = len(self._joints)
        self._status = [0] * count
        self._hot = [0] * count
        self._behind = [0] * count
        self._outside = [0] * count

    def obstacle(self, readings: Sequence[JointReading], curable: int = 0) -> str:
        """What speaks against arming or clearing now, "" for nothing; `curable` bits do not."""
        for index, reading in enumerate(readings):
            if reading.status & (self._errors[index] | _OVERHEAT) & ~curable:
                text = self._status_text(index, reading)
                return f"{text}; if that stays, switch the arm's power off and on"
            if reading.temperature_c > self._hottest:
                return self._heat_text(index, reading)
        return ""

    def look(
        self, readings: Sequence[JointReading], limited: Sequence[int], engaged: bool
    ) -> Finding | None:
        """The first fault in this tick's readings; `limited`: the limiter's bits."""
        found = None
        for index, reading in enumerate(readings):
            if not reading.valid:
                continue
            seen = self._look_at_status(index, reading, engaged)
            found = found or seen
            if reading.temperature_c > self._hottest:
                self._hot[index] += 1
                if self._hot[index] >= READINGS:
                    text = self._heat_text(index, reading)
                    found = found or Finding(Fault.OVERHEAT, index, text)
            elif reading.temperature_c <= self._hottest:  # NaN: not read in this tick
                self._hot[index] = 0
            if engaged:
                seen = self._look_at_position(index, reading, limited[index])
                found = found or seen
        return found

    def _look_at_status(self, index: int, reading: JointReading, engaged: bool) -> Finding | None:
        wrong = self._errors[index] | _OVERHEAT | (_TORQUE_LOST if engaged else 0)
        if not reading.status & wrong:
            self._status[index] = 0
            return None
        self._status[index] += 1
        if self._status[index] < READINGS:
            return None
        text = self._status_text(index, reading)
        if reading.status & _OVERHEAT:
            return Finding(Fault.OVERHEAT, index, text)
        if reading.status & self._errors[index]:
            return Finding(Fault.SERVO_ERROR, index, text)
        return Finding(Fault.TORQUE_LOST, index, f"{text}; was it rebooted?")

    def _look_at_position(self, index: int, reading: JointReading, limited: int) -> Finding | None:
        joint = self._joints[index]
        inside = joint.lower <= reading.position <= joint.upper
        self._outside[index] = 0 if inside else self._outside[index] + 1
        if self._outside[index] >= self._range_ticks:
            text = (
                f"{joint.name}: measured at {reading.position:.1f}, outside its hard range "
                f"{joint.lower:g} to {joint.upper:g}"
            )
            return Finding(Fault.RANGE, index, text)
        if joint.gripper:
            return None
        self._behind[index] = self._behind[index] + 1 if limited & _FOLLOWING else 0
        if self._behind[index] >= self._following_ticks:
            text = (
                f"{joint.name}: too far from its target for {FOLLOWING_S:g} s; "
                "is it blocked or overloaded?"
            )
            return Finding(Fault.FOLLOWING, index, text)
        return None

    def _status_text(self, index: int, reading: JointReading) -> str:
        return f"{self._joints[index].name}: its servo reports: {status_text(reading.status)}"

    def _heat_text(self, index: int, reading: JointReading) -> str:
        return (
            f"{self._joints[index].name}: {reading.temperature_c:.0f} degrees, "
            f"allowed are {self._hottest:g}; let it cool down"
        )
