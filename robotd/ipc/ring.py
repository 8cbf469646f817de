"""State ring: what `control` publishes every tick, for any number of readers, without locks.

A memory-mapped file of fixed-size slots. Each slot holds its sequence number at both ends and a
CRC-32 of what lies between, so a reader that was overtaken sees it and reads again. The file
outlives its writer: it is also the flight recorder.

File layout: one page of header (magic, sizes, JSON description, last sequence), then the slots.
"""

import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path

from robotd.errors import IpcError
from robotd.ipc import mapped

RING_NAME = "state.ring"
_MAGIC = b"ROBOTD-RING\x00"
_VERSION = 1
_PAGE = mapped.PAGE
_PREFIX = struct.Struct("<12sIIII")  # magic, version, slot size, slots, length of description
_LAST = struct.Struct("<Q")  # last published sequence, at _LAST_AT
_LAST_AT = 64
_DESCRIPTION_AT = 128
_TEXT = 240


class Mode(IntEnum):
    """What the control loop is doing. Numbers are stable: they stand in recordings."""

    IDLE = 0  # torque off
    HOLD = 1  # torque on, targets constant
    POLICY = 3  # targets from action chunks
    PARK = 5  # moving to the park pose
    FAULT = 6  # latched; see TickReport.fault


class Fault(IntEnum):
    """Why the loop is in FAULT; the first cause is kept until cleared."""

    NONE = 0
    BUS_SILENT = 1  # too many failed ticks on an arm
    PORT_LOST = 2  # the port is gone
    SERVO_ERROR = 3  # a servo reports a hardware error
    TORQUE_LOST = 4  # a servo rebooted or switched its torque off
    GUARD = 5  # the guard blocked a goal
    FOLLOWING = 6  # a joint stays too far from its target
    OVERHEAT = 7  # a servo is above its temperature limit
    ESTOP = 8  # asked for by command
    ENGAGE_FAILED = 9  # torque could not be switched on safely
    RANGE = 10  # a joint was measured outside its hard range
    INTERNAL = 11  # a defect in the loop itself


class Limited(IntFlag):
    """What the limiter changed about a joint's target in this tick."""

    NOT_FINITE = 1
    POSITION = 2
    VELOCITY = 4
    ACCELERATION = 8
    FOLLOWING = 16


class Degraded(IntFlag):
    """Real-time rights that were asked for and not obtained."""

    SCHEDULER = 1
    MEMORY_LOCK = 2
    AFFINITY = 4


class Result(IntEnum):
    """Outcome of the last command."""

    NONE = 0
    DONE = 1
    REFUSED = 2


@dataclass(slots=True)
class JointReport:
    """One joint in one tick; positions and targets in normalised units."""

    position: float = math.nan  # measured
    velocity: float = math.nan  # measured, units/s
    load: float = math.nan  # signed fraction of the servo's maximum
    asked: float = math.nan  # target wanted by the source of the mode
    applied: float = math.nan  # target after safety: what was written, or would be in IDLE
    temperature_c: float = math.nan
    voltage_v: float = math.nan
    valid: bool = False  # this tick's reading arrived
    status: int = 0  # bits of robotd.bus.status.ServoStatus
    limited: int = 0  # bits of Limited


@dataclass(slots=True)
class TickReport:
    """Everything about one tick. Times are nanoseconds; counters count from process start."""

    sequence: int = 0
    deadline_ns: int = 0
    wake_late_ns: int = 0  # wake-up after the deadline
    read_ns: int = 0
    decide_ns: int = 0
    write_ns: int = 0
    done_late_ns: int = 0  # goals written, after the deadline
    missed_ticks: int = 0
    mode: Mode = Mode.IDLE
    fault: Fault = Fault.NONE
    fault_joint: int = -1  # index into the joints, -1: none in particular
    torque: bool = False
    degraded: int = 0  # bits of Degraded
    failed_ticks: int = 0  # total over all arms
    bus_errors: int = 0  # timeouts + bad packets, total over all arms
    bus_retries: int = 0
    command_id: int = 0
    command_result: Result = Result.NONE
    command_text: str = ""  # why it was refused
    chunk_sequence: int = 0  # chunk in use, 0: none
    chunk_age_ns: int = 0  # since the observation it answers
    chunk_step: float = math.nan  # position inside the chunk
    chunks: int = 0
    chunks_dropped: int = 0
    inbox_dropped: int = 0
    message: str = ""  # last event or fault in words
    message_sequence: int = 0  # tick of that message
    joints: list[JointReport] = field(default_factory=list)


_HEAD = struct.Struct(f"<QQ6QBBhBBQQQQB{_TEXT}sQQdQQQ{_TEXT}sQ")
_JOINT = struct.Struct("<7dBBHxxxx")  # 64 bytes
_JOINT_FORMAT = "7dBBHxxxx"
_TAIL = struct.Struct("<IxxxxQ")  # crc, sequence again


@dataclass(frozen=True)
class Layout:
    """What a ring holds: joint names ("arm.joint"), control period, number of slots."""

    joints: tuple[str, ...]
    period_ns: int
    slots: int
    pid: int = 0

    @property
    def slot_size(self) -> int:
        """Bytes per slot, a multiple of 64."""
        size = _HEAD.size + _JOINT.size * len(self.joints) + _TAIL.size
        return (size + 63) // 64 * 64


def _clip(text: str) -> bytes:
    """UTF-8 of at most the text field's size, cut at a whole character."""
    return text.encode()[:_TEXT].decode(errors="ignore").encode()


def _unclip(raw: bytes) -> str:
    return raw.rstrip(b"\x00").decode(errors="replace")


class RingWriter:
    """The only writer of a ring. Replaces the file of an earlier run in one step."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.layout = layout
        self._size = layout.slot_size
        self._body = struct.Struct("<" + _HEAD.format[1:] + _JOINT_FORMAT * len(layout.joints))
        description = json.dumps(
            {"joints": layout.joints, "period_ns": layout.period_ns, "pid": layout.pid}
        ).encode()
        if _DESCRIPTION_AT + len(description) > _PAGE:
            raise IpcError(f"{path}: {len(layout.joints)} joints do not fit the ring's header")
        total = _PAGE + self._size * layout.slots

        def fill(mapping: mmap.mmap) -> None:
            header = (_MAGIC, _VERSION, self._size, layout.slots, len(description))
            _PREFIX.pack_into(mapping, 0, *header)
            mapping[_DESCRIPTION_AT : _DESCRIPTION_AT + len(description)] = description
            for start in range(0, total, _PAGE):  # not in the first lap's ticks: a page fault each
                mapping[start] = mapping[start]

        self._map = mapped.create(path, total, fill, "the state ring")
        self._view = memoryview(self._map)
        self._text_of = ("", b"")
        self._command_of = ("", b"")

    def publish(self, report: TickReport) -> None:
        """Write one report. Its sequence must grow by one each time, starting at 1."""
        r = report
        if r.message is not self._text_of[0]:
            self._text_of = (r.message, _clip(r.message))
        if r.command_text is not self._command_of[0]:
            self._command_of = (r.command_text, _clip(r.command_text))
        values: list[object] = [
            r.sequence, r.deadline_ns, r.wake_late_ns, r.read_ns, r.decide_ns, r.write_ns,
            r.done_late_ns, r.missed_ticks, r.mode, r.fault, r.fault_joint, r.torque, r.degraded,
            r.failed_ticks, r.bus_errors, r.bus_retries, r.command_id, r.command_result,
            self._command_of[1], r.chunk_sequence, r.chunk_age_ns, r.chunk_step, r.chunks,
            r.chunks_dropped, r.inbox_dropped, self._text_of[1], r.message_sequence,
        ]  # fmt: skip
        for j in r.joints:
            values += (
                j.position, j.velocity, j.load, j.asked, j.applied, j.temperature_c, j.voltage_v,
                j.valid, j.status, j.limited,
            )  # fmt: skip
        start = _PAGE + (r.sequence % self.layout.slots) * self._size
        end = start + self._size - _TAIL.size
        _TAIL.pack_into(self._map, end, 0, 0)  # invalid while being written
        self._body.pack_into(self._map, start, *values)
        crc = zlib.crc32(self._view[start : start + self._body.size])
        _TAIL.pack_into(self._map, end, crc, r.sequence)
        _LAST.pack_into(self._map, _LAST_AT, r.sequence)

    def close(self) -> None:
        """Unmap; the file stays for readers and for the record."""
        self._view.release()
        self._map.close()


class RingReader(mapped.ReadMapping):
    """Reads a ring, live or left behind. Raises IpcError when there is none, or it is damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "no state ring; is robotd running?")
        self._map = self.map
        magic, version, self._size, slots, length = _PREFIX.unpack_from(self._map, 0)
        if magic != _MAGIC or version != _VERSION:
            raise IpcError(f"{path}: is no state ring of version {_VERSION}")
        try:
            raw = json.loads(self._map[_DESCRIPTION_AT : _DESCRIPTION_AT + length])
            self.layout = Layout(tuple(raw["joints"]), raw["period_ns"], slots, raw["pid"])
        except (ValueError, KeyError, TypeError) as error:
            raise IpcError(f"{path}: the ring's description is damaged") from error
        if self._size != self.layout.slot_size or len(self._map) < _PAGE + slots * self._size:
            raise IpcError(f"{path}: the ring's sizes do not agree")
        self._body = struct.Struct("<" + _HEAD.format[1:] + _JOINT_FORMAT * len(self.layout.joints))

    @property
    def last(self) -> int:
        """Sequence of the newest report, 0 before the first."""
        sequence: int = _LAST.unpack_from(self._map, _LAST_AT)[0]
        return sequence

    def read(self, sequence: int) -> TickReport | None:
        """One report, or None when it is not there yet, overwritten, or being written."""
        start = _PAGE + (sequence % self.layout.slots) * self._size
        raw = self._map[start : start + self._size]
        crc, echo = _TAIL.unpack_from(raw, self._size - _TAIL.size)
        if echo != sequence or zlib.crc32(raw[: self._body.size]) != crc:
            return None
        return _unpack(self._body.unpack_from(raw), len(self.layout.joints))

    def latest(self) -> TickReport | None:
        """The newest whole report, or None before the first."""
        for _ in range(8):
            sequence = self.last
            if sequence == 0:
                return None
            report = self.read(sequence)
            if report is not None:
                return report
        return None

    def since(self, sequence: int) -> Iterator[TickReport]:
        """All reports after `sequence` that are still there, in order; gaps show in `sequence`."""
        last = self.last
        first = max(sequence + 1, last - self.layout.slots + 2, 1)
        for number in range(first, last + 1):
            report = self.read(number)
            if report is not None:
                yield report


def _unpack(values: tuple[object, ...], count: int) -> TickReport:
    """Inverse of RingWriter.publish's packing."""
    head = list(values[:27])
    head[8], head[9] = Mode(head[8]), Fault(head[9])  # type: ignore[arg-type]
    head[11] = bool(head[11])
    head[17] = Result(head[17])  # type: ignore[arg-type]
    head[18], head[25] = _unclip(head[18]), _unclip(head[25])  # type: ignore[arg-type]
    joints = []
    for index in range(count):
        j = list(values[27 + index * 10 : 37 + index * 10])
        j[7] = bool(j[7])
        joints.append(JointReport(*j))  # type: ignore[arg-type]
    return TickReport(*head, joints)  # type: ignore[arg-type, call-arg]
