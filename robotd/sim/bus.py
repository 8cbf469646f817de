"""A simulated servo bus: bytes in, replies out with the time at which the client gets them.

`SimBus` is one arm's chain of servos on its mechanism. It knows no clock and no descriptor:
`robotd.sim.serve` puts it on a pseudo-terminal or a socket in real time, `MemoryPort` makes it a
`robotd.bus.port.Port` in stepped time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from robotd.errors import PortError, SimError
from robotd.sim.arms import Arm, arm, calibration_table
from robotd.sim.control_tables import MODELS
from robotd.sim.dynamixel_server import DynamixelServer
from robotd.sim.dynamixel_servo import DynamixelServo
from robotd.sim.faults import FaultEngine, parse_faults
from robotd.sim.feetech_server import FeetechServer
from robotd.sim.feetech_servo import FeetechServo
from robotd.sim.mechanism import STEP_NS, IdealMechanism, Mechanism
from robotd.sim.protocol import ProtocolServer, Reply
from robotd.sim.servos import AMBIENT_C, Servo, Supply

BITS_PER_BYTE = 10  # start, 8 data, stop
STEP_S = STEP_NS * 1e-9
_IN_USE_BAUD = 1_000_000


def ideal_mechanism(which: Arm) -> IdealMechanism:
    """First-order joints with the ranges and speeds of an arm, at rest in its park pose."""
    from robotd.sim.arms import Units

    mounts = which.mounts
    park = Units(which.model, which.role).all_rad(which.park_norm)
    return IdealMechanism(
        [m.lower_rad for m in mounts], [m.upper_rad for m in mounts], start_rad=park
    )


class SimBus:
    """The servos of one simulated arm.

    As in use: ids 1 to 6, 1 Mbaud, calibrated as `arms.calibration_table` says. With `factory`
    they are as delivered: id 1 and the maker's baud rate, all of them.
    """

    def __init__(
        self,
        model: str,
        role: str = "follower",
        mechanism: Mechanism | None = None,
        *,
        baud_time: bool = False,
        factory: bool = False,
        seed: int = 0,
    ) -> None:
        """Raises SimError for an arm that is not there; `seed` is that of the faults."""
        try:
            self.arm = arm(model, role)
        except KeyError:
            raise SimError(f"no simulated arm {model} {role}; there are: so101, koch") from None
        self.baud_time = baud_time
        self.mechanism = mechanism if mechanism is not None else ideal_mechanism(self.arm)
        self.joints = tuple(mount.joint for mount in self.arm.mounts)
        self.servos, self.server = self._build()
        if not factory:
            self._commission()
        self.faults = FaultEngine(self.servos, self.server, seed)
        self._now_ns: int | None = None
        self._wire_free_ns = 0

    def _build(self) -> tuple[list[Servo], ProtocolServer[Servo]]:
        supplies: dict[float, Supply] = {}
        dynamixel: list[DynamixelServo] = []
        feetech: list[FeetechServo] = []
        for joint, mount in enumerate(self.arm.mounts):
            model = MODELS[mount.motor.name]
            volts = model.electrics.supply_v
            supply = supplies.setdefault(volts, Supply(volts))
            if self.arm.protocol == "dynamixel":
                dynamixel.append(DynamixelServo(model, mount, joint, self.mechanism, supply))
            else:
                feetech.append(FeetechServo(model, mount, joint, self.mechanism, supply))
        server = DynamixelServer(dynamixel) if dynamixel else FeetechServer(feetech)
        return [*dynamixel, *feetech], cast(ProtocolServer[Servo], server)

    def _commission(self) -> None:
        table = calibration_table(self.arm.model, self.arm.role)
        for servo, mount in zip(self.servos, self.arm.mounts, strict=True):
            row = table[mount.joint]
            values = {rate: value for value, rate in servo.model.bauds.items()}
            servo.keep("ID", row["id"])
            servo.keep("Baud_Rate", values[_IN_USE_BAUD])
            if self.arm.protocol == "dynamixel":
                servo.keep("Drive_Mode", row["drive_mode"])
            else:
                servo.keep("Max_Torque_Limit", round(mount.torque_limit * 1000))
            servo.keep("Homing_Offset", row["homing_offset"])
            servo.keep("Min_Position_Limit", row["range_min"])
            servo.keep("Max_Position_Limit", row["range_max"])
            servo.power_on(0)

    # -- time

    def advance(self, now_ns: int) -> None:
        """Bring servos, mechanism and faults up to a time; the first call sets the origin."""
        if self._now_ns is None:
            self._now_ns = now_ns
            self.mechanism.advance(now_ns)
        while now_ns - self._now_ns >= STEP_NS:
            self._now_ns += STEP_NS
            for servo in self.servos:
                servo.tick(self._now_ns, STEP_S)
            self.mechanism.advance(self._now_ns)
            if self.faults.active:
                self.faults.advance(self._now_ns)

    def next_step_ns(self) -> int:
        """When `advance` has something to do again."""
        return (self._now_ns or 0) + STEP_NS

    # -- bytes

    def feed(self, data: bytes, now_ns: int, baud: int | None = None) -> list[tuple[int, bytes]]:
        """Bytes the client sent at `now_ns` (at `baud`) in; (when it gets them, bytes) out.

        With `baud_time` a request takes its time on the wire, then the replies theirs, each after
        the servo's return delay; a wire still busy is waited for. Without, all come at once. The
        request is carried out at `now_ns`. Replies are in the order of their times.
        """
        self.advance(now_ns)
        if self.faults.active:
            self.faults.advance(now_ns)
        replies = self.server.feed(data, now_ns, baud)
        if replies:
            replies = self.faults.disturb(replies, now_ns)
        if not self.baud_time:
            return _bursts([(now_ns + reply.late_ns, reply.data) for reply in replies])
        byte_ns = BITS_PER_BYTE * 1_000_000_000 // (baud or _IN_USE_BAUD)
        self._wire_free_ns = max(now_ns, self._wire_free_ns) + byte_ns * len(data)
        return self._timed(replies, byte_ns)

    def _timed(self, replies: Sequence[Reply], byte_ns: int) -> list[tuple[int, bytes]]:
        timed = []
        for reply in replies:
            self._wire_free_ns += reply.delay_ns + byte_ns * len(reply.data)
            timed.append((self._wire_free_ns + reply.late_ns, reply.data))
        # Those in step reach the client together, when the last is in: adapters pass on blocks.
        ends = [when for (when, _), reply in zip(timed, replies, strict=True) if not reply.late_ns]
        last = max(ends, default=0)
        return _bursts([(max(when, last), data) for when, data in timed])

    def hang_up(self) -> None:
        """The client has gone: what it began to send is forgotten."""
        self.server.forget()

    # -- from outside

    def inject(self, text: str, now_ns: int) -> None:
        """Inject faults in their text form; an empty text ends all. SimError for a wrong text."""
        faults = parse_faults(text)
        if not faults:
            self.faults.clear()
        self.faults.add(faults, now_ns)
        self.faults.advance(now_ns)

    def settle(self) -> None:
        """The arm was put elsewhere: every servo takes where it is as its goal."""
        for servo in self.servos:
            servo.settle()

    def rest(self) -> None:
        """As `settle`, after a long rest: cool, and nothing overloaded."""
        for servo in self.servos:
            servo.temperature_c = AMBIENT_C
            servo.recover()
        self.settle()

    def connect_only(self, joints: Sequence[str] | None) -> None:
        """Leave only these servos plugged into the chain; None: all. SimError for a wrong name."""
        for joint in joints or ():
            if joint not in self.joints:
                raise SimError(f"no joint {joint!r}; there are: {', '.join(self.joints)}")
        for servo, joint in zip(self.servos, self.joints, strict=True):
            servo.connected = joints is None or joint in joints


def _bursts(timed: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """In order of time, what comes at the same time joined."""
    if len({when for when, _ in timed}) == 1:
        return [(timed[0][0], b"".join(data for _, data in timed))]
    out: list[tuple[int, bytes]] = []
    for when, data in sorted(timed, key=lambda one: one[0]):
        if out and out[-1][0] == when:
            out[-1] = (when, out[-1][1] + data)
        else:
            out.append((when, data))
    return out


class MemoryPort:
    """A `SimBus` as a port, in the time of `clock`, without a process or a descriptor.

    A read gives what arrives up to its deadline, as if it had been waited for. With `wait` that
    time passes (it is called with the time up to which); without, reading takes no time, which
    fits a bus without `baud_time`.
    """

    def __init__(
        self, bus: SimBus, clock: Callable[[], int], wait: Callable[[int], None] | None = None
    ) -> None:
        self.bus = bus
        self._clock = clock
        self._wait = wait if wait is not None else lambda until_ns: None
        self._coming: list[tuple[int, bytes]] = []
        self._closed = False
        self._unplugged = False
        bus.faults.unplug = self._unplug

    def write(self, data: bytes) -> None:
        """Hand bytes to the bus. PortError while it is unplugged."""
        self._check()
        self._coming += self.bus.feed(data, self._clock())
        self._coming.sort(key=lambda one: one[0])

    def read(self, size: int, deadline_ns: int) -> bytes:
        """At most `size` bytes, as many as arrive by the deadline (not before the present)."""
        self._check()
        until = max(deadline_ns, self._clock())
        data = b""
        while self._coming and len(data) < size and self._coming[0][0] <= until:
            when, part = self._coming.pop(0)
            self._wait(when)
            data += part
            if len(data) > size:
                self._coming.insert(0, (when, data[size:]))
                data = data[:size]
        if len(data) < size:
            self._wait(until)
        return data

    def flush_input(self) -> int:
        """Drop what has arrived by now; bytes dropped."""
        return len(self.read(1 << 30, 0))

    def reopen(self) -> bool:
        """True when the port can be used (again)."""
        self.bus.advance(self._clock())
        return not self._closed and not self._unplugged

    def close(self) -> None:
        """Give the port back."""
        self._closed = True

    def _check(self) -> None:
        self.bus.advance(self._clock())
        if self._unplugged or self._closed:
            raise PortError("simulated bus: the port has gone away; is it unplugged?")

    def _unplug(self, gone: bool) -> None:
        self._unplugged = gone
        if gone:
            self._coming.clear()
            self.bus.hang_up()
