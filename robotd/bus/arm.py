"""One arm on one port: set-up calls that wait, and the tick path that does not.

    arm.connect(); arm.configure(); arm.engage()
    every tick:  arm.request() ... arm.collect(deadline) ... arm.write(goals)

With several arms, `request` goes to all of them before the first `collect`. Values are in
normalised units (see calibration.py). Any call may raise PortError when the port has gone; then
`reconnect` until it returns True, and connect, configure and engage again. A servo that is only
silent raises nothing on the tick: its reading is invalid.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from robotd.bus.blocks import DETAILS, FULL, POSITION, DynamixelGoals, FeetechGoals, Rows
from robotd.bus.calibration import Calibration
from robotd.bus.link import BusCounters, Link
from robotd.bus.models import ARM_MODELS
from robotd.bus.port import Port
from robotd.bus.reader import ChainReader, ReadOptions
from robotd.bus.registers import JOINTS, Protocol
from robotd.bus.setup import ServoSetup
from robotd.bus.slope import Slope
from robotd.bus.slow import ANSWER_BYTES, SlowReads
from robotd.bus.status import FORGOTTEN_BY_REBOOT, FORGOTTEN_BY_TORQUE, ServoStatus
from robotd.errors import BusError, ServoError

_RECONNECT_PING_NS = 5_000_000
_ALERT = int(ServoStatus.ALERT)
_TORQUE_LOST = int(ServoStatus.TORQUE_LOST)
_FORGOTTEN = int(FORGOTTEN_BY_TORQUE)  # without torque a servo only remembers these


@dataclass(slots=True)
class JointReading:
    """One joint in one tick, in normalised units. Invalid: nothing arrived, values are NaN."""

    valid: bool = False
    position: float = math.nan
    velocity: float = math.nan  # units/s
    load: float = math.nan  # signed fraction of the largest torque or current, in counting sense
    status: int = 0  # ServoStatus bits
    temperature_c: float = math.nan  # last known, NaN until read or when it stays away
    voltage_v: float = math.nan


@dataclass(frozen=True, slots=True)
class _Scale:
    """Register steps to units: position = (counts - low) / span * gain + bias."""

    low: int
    span: int
    gain: int
    bias: int
    velocity: float
    load: float


class Arm:
    """One arm. Not for use by several threads."""

    def __init__(
        self,
        name: str,
        model: str,
        role: str,
        port: Port,
        calibration: Calibration,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        baud: int = 1_000_000,
        detail: str = FULL,
        slow_every: int = 4,
        margin_ns: int = 1_500_000,
        retries: int = 2,
        fast: bool = True,
    ) -> None:
        """`detail`: "full" reads position, velocity and load on every tick, "lean" leaves out the
        load, which is then read in turn, "position" the velocity too, which then follows from the
        positions; `blocks.detail_for` chooses. `slow_every`: ticks between two questions for slow
        values. For the others see ReadOptions. Raises ServoError.
        """
        if (model, role) not in ARM_MODELS:
            raise ServoError(f"arm {name}: no arm model {model!r} with role {role!r}")
        if detail not in DETAILS:
            raise ServoError(f"arm {name}: no detail {detail!r}; known: {', '.join(DETAILS)}")
        self.name = name
        self.joints = JOINTS
        self.model = ARM_MODELS[model, role]
        self.calibration = replace(calibration, protocol=self.model.protocol)
        self.counters = BusCounters()
        self.engaged = False
        self._port = port
        self._clock = clock
        self._detail = detail
        self._ids = tuple(self.calibration.joints[joint].id for joint in JOINTS)
        protocol = self.model.protocol
        self._dynamixel = protocol is Protocol.DYNAMIXEL
        self._link = Link(port, protocol, clock, self.counters, self._label)
        self._setup = ServoSetup(name, self.model, self.calibration, self._link)
        self._slow = SlowReads(protocol, self._ids, self.counters, detail, slow_every)
        options = ReadOptions(detail, baud, margin_ns, retries, fast)
        self._reader = ChainReader(
            port, protocol, self._ids, clock, self.counters, options, self._slow.late
        )
        self._goals = DynamixelGoals(self._ids) if self._dynamixel else FeetechGoals(self._ids)
        self._scales = tuple(self._scale(joint) for joint in JOINTS)
        self._slope = Slope([servo.velocity_counts for servo in self.model.servos])
        self._readings = [JointReading() for _ in JOINTS]
        self._powered = tuple(joint in self.model.torque for joint in JOINTS)
        self._lost = [0] * len(JOINTS)  # TORQUE_LOST or 0
        self._alerted: set[int] = set()  # servos whose alert was followed up
        self._written = False  # goals were written since the last request
        self._slow_after_read = True
        self._ping_next = 0

    @property
    def fast(self) -> bool:
        """Whether the servos are read by fast sync read."""
        return self._reader.fast

    @property
    def torque(self) -> tuple[int, ...]:
        """Torque_Enable of each servo as last read, 0 after a restart; -1 where unknown."""
        return tuple(self._slow.torque)

    def connect(self, check_calibration: bool = True) -> None:
        """Find every servo and check model, firmware and calibration; reads only.

        Raises ServoError or CalibrationError naming servo, joint and arm.
        """
        self.engaged = False
        self._setup.identify()
        if check_calibration:
            self._setup.check_calibration()
        self._reader.probe_fast()
        self._slow.reset()
        self._slope.reset()

    def write_calibration(self) -> None:
        """Write the calibration to the servos' permanent memory; torque goes off."""
        self.engaged = False
        self._setup.write_calibration()

    def configure(self) -> None:
        """Torque off, then LeRobot's settings for this model and role. Raises ServoError."""
        self.engaged = False
        self._setup.configure()
        self._slow.reset()

    def engage(self) -> tuple[float, ...]:
        """Goal := present, then torque on, all read back; the present positions in units.

        A leader powers only what LeRobot powers (Koch: the gripper, as a trigger that opens).
        Raises ServoError, with torque off again.
        """
        present = self._setup.engage()
        self._slow.reset([int(powered) for powered in self._powered])
        self._lost = [0] * len(JOINTS)
        self.engaged = True
        self._written = True  # the first slow question waits for the first goals
        return tuple(self.calibration.normalise(joint, present[joint]) for joint in JOINTS)

    def release(self) -> None:
        """Torque off on every servo; tries all before it raises ServoError for some."""
        self.engaged = False
        self._lost = [0] * len(JOINTS)
        self._slow.reset([0] * len(JOINTS))
        self._setup.release()

    @property
    def curable(self) -> int:
        """ServoStatus bits that end when torque goes off and on, or the servo is restarted."""
        return int(FORGOTTEN_BY_REBOOT if self._dynamixel else FORGOTTEN_BY_TORQUE)

    def check_health(self) -> None:
        """No servo reports an error that stays. For an arm without torque. Raises ServoError."""
        self._setup.check_health()

    def reboot_alerted(self) -> list[str]:
        """After `release`: restart the Dynamixels that have shut down; the joints concerned.

        They are silent for some hundred milliseconds, then have to be configured again. Raises
        ServoError.
        """
        return self._setup.reboot_alerted()

    def request(self) -> None:
        """Ask for this tick's readings; does not wait."""
        data = b""
        if self._slow.pending:
            data = self._port.read(ANSWER_BYTES, 0)
        elif dropped := self._port.flush_input():
            self.counters.skipped_bytes += dropped
        self._reader.request()
        if self._slow.pending:
            self._take_slow(data)  # while the servos answer
        self._slow_after_read = not self._written
        self._written = False

    def collect(self, deadline_ns: int) -> list[JointReading]:
        """This tick's readings, in the order of `joints`, at the latest at the deadline.

        The list and its readings are the same objects on every tick.
        """
        rows = self._reader.collect(deadline_ns)
        self._fill(rows)
        if self._slow_after_read:
            question = self._slow.next_request()
            if question:
                self._port.write(question)
        return self._readings

    def write(self, goals: Sequence[float]) -> None:
        """Send the goals (units, order of `joints`) to all servos; does not wait.

        Raises ServoError, with nothing sent, for a goal that is not finite or does not fit.
        """
        if self.model.role == "leader":
            raise ServoError(f"arm {self.name} is a leader: it takes no goals")
        try:
            counts = [
                round((goal - scale.bias) / scale.gain * scale.span + scale.low)
                for goal, scale in zip(goals, self._scales, strict=True)
            ]
        except (ValueError, OverflowError):
            raise ServoError(f"arm {self.name}: goals {tuple(goals)} are not six numbers") from None
        self._port.write(self._goals.packet(counts) + self._slow.next_request())
        self._written = True

    def reconnect(self) -> bool:
        """One cheap step after PortError: open the port again and ping one servo (about 10 ms).

        True once the bus answers; the servos then have to be connected and configured again.
        """
        self.engaged = False
        self._lost = [0] * len(JOINTS)
        try:
            if not self._port.reopen():
                return False
            self._ping_next = (self._ping_next + 1) % len(self._ids)
            servo_id = self._ids[self._ping_next]
            return self._link.ping(servo_id, tries=1, wait_ns=_RECONNECT_PING_NS) is not None
        except BusError:
            return False

    def close(self) -> None:
        """Give the port back; torque stays as it is."""
        self._port.close()

    def _label(self, servo_id: int) -> str:
        if servo_id not in self._ids:
            return f"servo {servo_id} on arm {self.name}"
        return f"servo {servo_id} ({JOINTS[self._ids.index(servo_id)]}) on arm {self.name}"

    def _scale(self, joint: str) -> _Scale:
        low, span, gain, bias = self.calibration.line(joint)
        servo = self.model.servos[JOINTS.index(joint)]
        sense = 1 if gain > 0 else -1
        return _Scale(
            low, span, gain, bias, servo.velocity_counts / span * gain, sense / servo.load_full
        )

    def _take_slow(self, data: bytes) -> None:
        self._slow.take(data)
        if self.engaged:
            for at, powered in enumerate(self._powered):
                self._lost[at] = _TORQUE_LOST if powered and self._slow.torque[at] == 0 else 0

    def _fill(self, rows: Rows) -> None:
        errors, positions, velocities, loads = rows
        if self._detail != FULL:
            loads = self._slow.load_steps
        if self._detail == POSITION:
            velocities = self._slope.velocities(self._clock(), errors, positions)
        for at, (reading, scale, error, counts, velocity, load) in enumerate(
            zip(self._readings, self._scales, errors, positions, velocities, loads, strict=True)
        ):
            if error is None:
                reading.valid = False
                reading.position = reading.velocity = reading.load = math.nan
                reading.status = self._lost[at]
                continue
            reading.valid = True
            reading.position = (counts - scale.low) / scale.span * scale.gain + scale.bias
            reading.velocity = velocity * scale.velocity
            reading.load = load * scale.load
            reading.status = self._lost[at]
            if error or at in self._alerted:
                reading.status |= self._status(at, error)
            reading.temperature_c = self._slow.temperature_c[at]
            reading.voltage_v = self._slow.voltage_v[at]

    def _status(self, at: int, error: int) -> int:
        """ServoStatus bits of an error byte; a Dynamixel's tells only that there is something."""
        if not self._dynamixel:
            bits = self._link.packets.hardware_status(error)
            return bits if self.engaged else bits & ~_FORGOTTEN
        if not error & _ALERT:
            self._alerted.discard(at)
            return 0
        if at not in self._alerted:
            self._alerted.add(at)
            self._slow.hardware[at] = 0
            self._slow.urge(at)
        return _ALERT | self._slow.hardware[at]
