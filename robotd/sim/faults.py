"""Faults that can be injected into a simulated bus while it runs.

Text form, for the command line and the configuration: faults separated by commas, each a kind and
its options separated by colons, for example `drop:p=0.01,mute:id=3:at=2s:for=500ms`.

| kind      | what happens                                                    | own option    |
|-----------|-----------------------------------------------------------------|---------------|
| drop      | a reply is lost                                                 |               |
| corrupt   | one bit of a reply is flipped                                   |               |
| late      | a reply comes later                                             | by=5ms        |
| duplicate | a reply comes twice                                             |               |
| stale     | the servo's previous reply comes instead                        |               |
| wrong-id  | a reply carries another id                                      | as=ID         |
| error     | error bits are set in a reply, by default the alarm bit         | bits=0x24     |
| mute      | the servo neither hears nor answers; its torque stays           |               |
| overload  | the servo behaves as overloaded                                 |               |
| overheat  | the servo is that hot                                           | c=90          |
| brownout  | the supply falls (all servos of that rail)                      | v=2           |
| reboot    | the servo restarts                                              |               |
| unplug    | the port goes away, and comes back when the fault ends          |               |

Options of every kind: `id=3` (one servo, else all), `at=2s` (begins that long after it was
injected), `for=500ms` (ends that long after it began). Kinds that act on replies also take `p=0.01`
(probability for each reply) and `n=5` (ends after so many).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from robotd.errors import SimError
from robotd.sim.protocol import ProtocolServer, Reply
from robotd.sim.servos import Servo

REPLY_KINDS = ("drop", "corrupt", "late", "duplicate", "stale", "wrong-id", "error")
SERVO_KINDS = ("mute", "overload", "overheat", "brownout", "reboot")
PORT_KINDS = ("unplug",)
KINDS = REPLY_KINDS + SERVO_KINDS + PORT_KINDS
_OWN = {
    "late": "by",
    "wrong-id": "as",
    "error": "bits",
    "overheat": "c",
    "brownout": "v",
}
_DEFAULTS = {"by": 5e6, "as": -1.0, "bits": 0.0, "c": 90.0, "v": 2.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_UNITS_NS = {"us": 1e3, "ms": 1e6, "s": 1e9}


@dataclass(slots=True)
class Fault:
    """One fault. Times are nanoseconds; `amount` is the kind's own option."""

    kind: str
    servo_id: int | None = None
    at_ns: int = 0
    for_ns: int | None = None
    probability: float = 1.0
    count: int | None = None
    amount: float = 0.0

    def concerns(self, servo_id: int) -> bool:
        """True when it acts on that servo."""
        return self.servo_id is None or self.servo_id == servo_id


def parse_faults(text: str) -> list[Fault]:
    """Faults from their text form. Raises SimError that names the part that is wrong."""
    return [_parse(part.strip()) for part in text.split(",") if part.strip()]


def _parse(text: str) -> Fault:
    kind, *options = text.split(":")
    if kind not in KINDS:
        raise SimError(f"fault {text!r}: no kind {kind!r}; there are: {', '.join(KINDS)}")
    own = _OWN.get(kind)
    fault = Fault(kind, amount=_DEFAULTS[own] if own else 0.0)
    for option in options:
        key, equals, value = option.partition("=")
        allowed = ["id", "at", "for", *([own] if own else [])]
        if kind in REPLY_KINDS:
            allowed += ["p", "n"]
        if not equals or key not in allowed:
            known = ", ".join(f"{name}=" for name in allowed)
            raise SimError(f"fault {text!r}: no option {option!r} for {kind}; there are: {known}")
        try:
            _set(fault, key, value)
        except ValueError as error:
            raise SimError(f"fault {text!r}: {key}={value!r}: {error}") from None
    return fault


def _set(fault: Fault, key: str, value: str) -> None:
    if key == "id":
        fault.servo_id = _whole(value, 0, 253)
    elif key == "at":
        fault.at_ns = _duration(value)
    elif key == "for":
        fault.for_ns = _duration(value)
    elif key == "p":
        fault.probability = _real(value, 0.0, 1.0)
    elif key == "n":
        fault.count = _whole(value, 1, 1_000_000_000)
    elif key == "by":
        fault.amount = float(_duration(value))
    elif key == "as":
        fault.amount = float(_whole(value, 0, 252))
    elif key == "bits":
        fault.amount = float(_whole(value, 1, 255))
    elif key == "c":
        fault.amount = _real(value, -40.0, 200.0)
    else:
        fault.amount = _real(value, 0.0, 30.0)


def _duration(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("is no time; write 200us, 5ms or 2s")
    return round(float(match[1]) * _UNITS_NS[match[2]])


def _whole(text: str, low: int, high: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise ValueError("is no whole number") from None
    if not low <= value <= high:
        raise ValueError(f"must be {low} to {high}")
    return value


def _real(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("is no number") from None
    if not low <= value <= high:
        raise ValueError(f"must be {low:g} to {high:g}")
    return value


@dataclass(slots=True)
class _Running:
    fault: Fault
    starts_ns: int
    ends_ns: int | None
    left: int | None
    begun: bool = False
    over: bool = False


@dataclass
class FaultEngine:
    """The faults of one bus: which act now, on what, and how often they did.

    Randomness comes from `seed`: the same requests under the same faults repeat exactly.
    """

    servos: Sequence[Servo]
    server: ProtocolServer[Servo]
    seed: int = 0
    unplug: Callable[[bool], None] = lambda gone: None  # the transport's; True: go away
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._running: list[_Running] = []
        self._previous: dict[tuple[int, int], Reply] = {}

    @property
    def active(self) -> bool:
        """False while there is nothing to do: then the bus need not ask."""
        return bool(self._running)

    def add(self, faults: Sequence[Fault], now_ns: int) -> None:
        """Inject faults. SimError for a servo id that is not on this bus."""
        present = {servo.id for servo in self.servos}
        for fault in faults:
            if fault.servo_id is not None and fault.servo_id not in present:
                ids = ", ".join(str(i) for i in sorted(present))
                raise SimError(f"fault {fault.kind}: no servo {fault.servo_id}; there are: {ids}")
        for fault in faults:
            starts = now_ns + fault.at_ns
            ends = None if fault.for_ns is None else starts + fault.for_ns
            self._running.append(_Running(fault, starts, ends, fault.count))

    def clear(self) -> None:
        """End all faults now; servos and port recover as far as they do by themselves."""
        for running in self._running:
            self._end(running)
        self._running.clear()

    def advance(self, now_ns: int) -> None:
        """Begin and end what is due."""
        for running in self._running:
            if not running.begun and now_ns >= running.starts_ns:
                running.begun = True
                self._begin(running, now_ns)
            if running.begun and running.ends_ns is not None and now_ns >= running.ends_ns:
                self._end(running)
            elif running.begun and running.fault.kind == "overheat":
                for servo in self._concerned(running.fault):
                    servo.temperature_c = max(servo.temperature_c, running.fault.amount)
        if any(running.over for running in self._running):
            self._running = [running for running in self._running if not running.over]

    def _concerned(self, fault: Fault) -> list[Servo]:
        return [servo for servo in self.servos if fault.concerns(servo.id)]

    def _begin(self, running: _Running, now_ns: int) -> None:
        fault = running.fault
        if fault.kind in REPLY_KINDS:
            return
        self.injected[fault.kind] += 1
        if fault.kind == "unplug":
            self.unplug(True)
            return
        for servo in self._concerned(fault):
            if fault.kind == "mute":
                servo.deaf = True
            elif fault.kind == "overload":
                servo.overload()
            elif fault.kind == "overheat":
                servo.temperature_c = fault.amount
            elif fault.kind == "brownout":
                servo.supply.brownout_v = fault.amount
            elif fault.kind == "reboot":
                servo.power_on(now_ns)
        if fault.kind in ("reboot", "overload"):
            running.over = True  # these happen once

    def _end(self, running: _Running) -> None:
        running.over = True
        if not running.begun:
            return
        kind = running.fault.kind
        if kind == "unplug":
            self.unplug(False)
        for servo in self._concerned(running.fault):
            if kind == "mute":
                servo.deaf = False
            elif kind == "brownout":
                servo.supply.brownout_v = None

    # -- replies

    def disturb(self, replies: list[Reply], now_ns: int) -> list[Reply]:
        """Replies as they leave the bus under the faults that act now."""
        if not self._running:
            for reply in replies:
                self._previous[reply.ids[0], len(reply.data)] = reply
            return replies
        out: list[Reply] = []
        for reply in replies:
            key = (reply.ids[0], len(reply.data))  # the previous answer of the same kind
            previous = self._previous.get(key, reply)
            self._previous[key] = reply
            disturbed = [reply]
            for running in self._running:
                if self._strikes(running, reply, now_ns):
                    disturbed = self._apply(running.fault, disturbed, previous)
            out += disturbed
        return out

    def _strikes(self, running: _Running, reply: Reply, now_ns: int) -> bool:
        fault = running.fault
        if fault.kind not in REPLY_KINDS or running.over or now_ns < running.starts_ns:
            return False
        if running.ends_ns is not None and now_ns >= running.ends_ns:
            return False
        if not any(fault.concerns(servo_id) for servo_id in reply.ids):
            return False
        if fault.probability < 1.0 and self._random.random() >= fault.probability:
            return False
        if running.left is not None:
            running.left -= 1
            running.over = running.left == 0
        self.injected[fault.kind] += 1
        return True

    def _apply(self, fault: Fault, replies: list[Reply], previous: Reply) -> list[Reply]:
        if fault.kind == "drop":
            return []
        if fault.kind == "duplicate":
            return [copy for reply in replies for copy in (reply, reply)]
        return [self._changed(fault, reply, previous) for reply in replies]

    def _changed(self, fault: Fault, reply: Reply, previous: Reply) -> Reply:
        if fault.kind == "late":
            return replace(reply, late_ns=reply.late_ns + int(fault.amount))
        if fault.kind == "corrupt":
            return replace(reply, data=self._damage(reply.data))
        words = self.server.take_apart(reply)
        if not words:
            return reply
        before = {who: (e, said) for e, who, said in self.server.take_apart(previous)}
        for n, (error, servo_id, data) in enumerate(words):
            if not fault.concerns(servo_id):
                continue
            if fault.kind == "stale":
                error, data = before.get(servo_id, (error, data))
            elif fault.kind == "wrong-id":
                servo_id = int(fault.amount) if fault.amount >= 0 else (servo_id + 100) % 253
            else:
                error |= int(fault.amount) or self.server.alarm
            words[n] = (error, servo_id, data)
        return replace(reply, data=self.server.put_together(reply, words))

    def _damage(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        at = self._random.randrange(len(damaged))
        damaged[at] ^= 1 << self._random.randrange(8)
        return bytes(damaged)
