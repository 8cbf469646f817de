"""Values that change slowly, read in turn: one servo at a time, beside the tick's own traffic.

The question leaves behind the goals of a tick (or behind a block read when no goals are written),
and its answer arrives while the loop sleeps; the next tick finds it in the input. So it costs the
tick no waiting. With a question every 4th tick all twelve (six servos, two kinds) are asked in
0.25 s at 200 Hz. A servo that restarted by itself is noticed that way: its torque is off, or what
configuring wrote into its memory is gone.
"""

import math
from collections.abc import Sequence

from robotd.bus.blocks import FULL, LEAN, POSITION, sign10
from robotd.bus.link import BusCounters, new_parser, packets_of
from robotd.bus.models import STS_ACCELERATION
from robotd.bus.registers import Protocol
from robotd.bus.status import Status

UNKNOWN = -1
_FORGET_AFTER = 3  # missed answers in a row
_LONGEST_GAP = 16  # ticks

# (address, bytes) by kind; the lengths differ from each other and from those of the tick's block,
# so some read on beyond what is wanted: torque .. hardware error; V, degC; load (Dynamixel),
# torque, acceleration; V, degC; load (Feetech).
_CONDITION, _SUPPLY, _LOAD = 0, 1, 2
_PLACES = {
    (Protocol.DYNAMIXEL, FULL): ((64, 7), (144, 3)),
    (Protocol.DYNAMIXEL, LEAN): ((64, 7), (144, 3), (126, 2)),
    (Protocol.DYNAMIXEL, POSITION): ((64, 12), (144, 3), (126, 2)),
    (Protocol.FEETECH, FULL): ((40, 3), (62, 2)),
    (Protocol.FEETECH, LEAN): ((40, 3), (62, 2), (60, 12)),
    (Protocol.FEETECH, POSITION): ((40, 10), (62, 11), (60, 12)),
}
ANSWER_BYTES = 64  # more than any answer here


class SlowReads:
    """Asks in turn and keeps what was answered; lists are in chain order."""

    def __init__(
        self,
        protocol: Protocol,
        ids: Sequence[int],
        counters: BusCounters,
        detail: str,
        every: int = 4,
    ) -> None:
        count = len(ids)
        self.torque = [UNKNOWN] * count  # Torque_Enable; 0 also after a restart
        self.hardware = [0] * count  # Dynamixel's Hardware_Error_Status as ServoStatus bits
        self.temperature_c = [math.nan] * count
        self.voltage_v = [math.nan] * count
        self.load_steps = [0] * count  # kept only where the block does not hold the load
        self.pending = False
        places = _PLACES[protocol, detail]
        packets = packets_of(protocol)
        self._plan = [(at, kind) for kind in range(len(places)) for at in range(count)]
        self._sizes = [size for _, size in places]
        self._requests = {
            (at, kind): packets.read(ids[at], *places[kind]) for at, kind in self._plan
        }
        self._ids = tuple(ids)
        self._protocol = protocol
        self._parser = new_parser(protocol)
        self._counters = counters
        self._every = self._gap = every
        self._wait = every
        self._at = 0
        self._asked = self._plan[0]
        self._urgent: int | None = None
        self._missed = dict.fromkeys(self._plan, 0)

    def reset(self, torque: Sequence[int] | None = None) -> None:
        """Forget an open question; optionally set what is known about the torque."""
        self.pending = False
        self._wait = self._every
        if torque is not None:
            self.torque[:] = torque

    def urge(self, servo: int) -> None:
        """Ask this servo for its condition next."""
        if self._urgent is None:
            self._urgent = servo

    def next_request(self) -> bytes:
        """The question to send in this tick, b"" for none."""
        self._wait -= 1
        if self.pending or (self._wait > 0 and self._urgent is None):
            return b""
        self._wait = self._gap
        if self._urgent is not None:
            self._asked, self._urgent = (self._urgent, _CONDITION), None
        else:
            self._asked = self._plan[self._at]
            self._at = (self._at + 1) % len(self._plan)
        self.pending = True
        self._counters.slow_reads += 1
        return self._requests[self._asked]

    def take(self, data: bytes) -> None:
        """What arrived since the question was sent; asks less often when it came to nothing."""
        self.pending = False
        servo, kind = self._asked
        self._parser.reset()
        skipped = self._parser.skipped
        fits = False
        for status in self._parser.feed(data):
            if self._answers(status):
                self._store(servo, kind, status.params)
                fits = True
            else:
                self._counters.stale += 1
        self._counters.skipped_bytes += self._parser.skipped - skipped
        if fits:
            self._missed[self._asked] = 0
            self._gap = max(self._every, self._gap - 1)
            return
        self._counters.slow_missed += 1
        self._gap = min(2 * self._gap, _LONGEST_GAP)
        self._missed[self._asked] += 1
        if self._missed[self._asked] >= _FORGET_AFTER:
            self._forget(servo, kind)

    def late(self, status: Status) -> bool:
        """Whether this, found among a tick's answers, answers the last question; kept if so."""
        fits = self._answers(status)
        if fits:
            self._store(*self._asked, status.params)
            self._counters.slow_late += 1
        return fits

    def _answers(self, status: Status) -> bool:
        servo, kind = self._asked
        return status.id == self._ids[servo] and len(status.params) == self._sizes[kind]

    def _store(self, servo: int, kind: int, params: bytes) -> None:
        dynamixel = self._protocol is Protocol.DYNAMIXEL
        if kind == _CONDITION and dynamixel:
            self.torque[servo] = params[0]
            self.hardware[servo] = packets_of(self._protocol).hardware_status(params[6])
        elif kind == _CONDITION:
            # A goal switches an STS servo on again after a restart: tell that by its settings.
            self.torque[servo] = params[0] if params[1] == STS_ACCELERATION else 0
        elif kind == _SUPPLY:
            width = 2 if dynamixel else 1
            self.voltage_v[servo] = int.from_bytes(params[:width], "little") / 10
            self.temperature_c[servo] = float(params[width])
        else:
            raw = int.from_bytes(params[:2], "little")
            self.load_steps[servo] = (raw ^ 0x8000) - 0x8000 if dynamixel else sign10(raw)

    def _forget(self, servo: int, kind: int) -> None:
        if kind == _CONDITION:
            self.torque[servo] = UNKNOWN
            self.hardware[servo] = 0
        elif kind == _SUPPLY:
            self.voltage_v[servo] = self.temperature_c[servo] = math.nan
        else:
            self.load_steps[servo] = 0
