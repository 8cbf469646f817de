"""The registers read and written on every tick, for the whole chain at once.

Packets are built once; an answer that arrives as expected is taken apart by one `struct` call and
compared with the headers it must have. Anything else is left to the reader's parser.

A block starts at a fixed address and is read up to seven bytes longer in its variants, so that the
length of an answer can tell which question it answers: a late reply is not taken for the next one.
The bytes at the end are thrown away.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Protocol as Interface

from robotd.bus import dynamixel, feetech
from robotd.bus.registers import STS_TABLE, XL430_TABLE, Protocol
from robotd.errors import ServoError

VARIANTS = 8

# Answers of all servos in chain order, in the registers' steps: error byte (None: no answer),
# position, velocity, load (none of what the block does not hold).
type Rows = tuple[Sequence[int | None], Sequence[int], Sequence[float], Sequence[int]]
type Row = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """Where a block starts and what is in it, before the extra bytes of a variant."""

    address: int
    size: int  # bytes
    layout: str  # struct codes of `size` bytes


# "full": position, velocity, load. "lean": without the load, which is then read in turn.
# "position": without the velocity too, which then follows from the positions.
FULL, LEAN, POSITION = "full", "lean", "position"
DETAILS = (FULL, LEAN, POSITION)
SPECS = {
    (Protocol.DYNAMIXEL, FULL): BlockSpec(126, 10, "hii"),  # load or current, velocity, position
    (Protocol.DYNAMIXEL, LEAN): BlockSpec(128, 8, "ii"),
    (Protocol.DYNAMIXEL, POSITION): BlockSpec(132, 4, "i"),
    (Protocol.FEETECH, FULL): BlockSpec(56, 6, "HHH"),  # position, velocity, load
    (Protocol.FEETECH, LEAN): BlockSpec(56, 4, "HH"),
    (Protocol.FEETECH, POSITION): BlockSpec(56, 2, "H"),
}


_READ_SHARE = 0.35  # of the period: beyond it a read leaves too little time for the rest
_SERVOS = 6
_BITS_PER_BYTE = 10  # 8N1


def detail_for(protocol: Protocol, baud: int, period_ns: int) -> str:
    """The fullest block whose sync read of six servos takes at most 35 % of the period.

    At 1 Mbaud that is "full" at 200 Hz and "position", the least there is, at 500 Hz.
    """
    if protocol is Protocol.DYNAMIXEL:
        ask, answer = len(dynamixel.sync_read(0, 0, range(_SERVOS))), dynamixel.OVERHEAD
    else:
        ask, answer = len(feetech.sync_read(0, 0, range(_SERVOS))), feetech.OVERHEAD
    byte_ns = _BITS_PER_BYTE * 1_000_000_000 / baud
    for detail in DETAILS:
        wire_bytes = ask + (answer + SPECS[protocol, detail].size) * _SERVOS
        if wire_bytes * byte_ns <= _READ_SHARE * period_ns:
            return detail
    return POSITION


class Blocks(Interface):
    """One block of one chain of servos."""

    lengths: tuple[int, ...]  # data bytes of one servo, by variant
    sizes: tuple[int, ...]  # bytes of a whole answer, by variant
    requests: tuple[bytes, ...]  # packets that ask all servos, by variant

    def decode(self, data: bytes, variant: int) -> Rows | None:
        """All servos' rows when `data` is exactly the answer, None otherwise."""

    def request(self, variant: int, ids: Sequence[int]) -> bytes:
        """The packet that asks some of the servos."""

    def row(self, error: int, params: bytes) -> Row:
        """One servo's row out of its own status packet."""


class DynamixelBlocks:
    """Sync read: one status packet from each servo."""

    def __init__(self, ids: Sequence[int], detail: str = FULL) -> None:
        spec = SPECS[Protocol.DYNAMIXEL, detail]
        self._address = spec.address
        self._row = Struct("<" + spec.layout)
        self._width = len(spec.layout) + 3  # fields of one servo: header, error, ..., CRC
        self.lengths = tuple(spec.size + extra for extra in range(VARIANTS))
        self.sizes = tuple((n + dynamixel.OVERHEAD) * len(ids) for n in self.lengths)
        self.requests = tuple(self.request(variant, ids) for variant in range(VARIANTS))
        self._expected = []
        for extra, length in enumerate(self.lengths):
            size, tail = length + dynamixel.OVERHEAD, length + 1  # tail: error byte and data
            headers = tuple(
                dynamixel.HEADER + struct.pack("<BHB", servo_id, length + 4, dynamixel.STATUS)
                for servo_id in ids
            )
            parts = Struct("<" + f"8sB{spec.layout}{extra}xH" * len(ids))
            fixed = [dynamixel.crc16(header + bytes(tail)) for header in headers]
            cuts = [slice(at + 8, at + 8 + tail) for at in range(0, size * len(ids), size)]
            self._expected.append((parts, headers, fixed, cuts, dynamixel.crc_tables(tail)))

    def request(self, variant: int, ids: Sequence[int]) -> bytes:
        """The packet that asks some of the servos."""
        return dynamixel.sync_read(self._address, self.lengths[variant], ids)

    def decode(self, data: bytes, variant: int) -> Rows | None:
        """All servos' rows when `data` is exactly the answer, None otherwise."""
        parts, headers, fixed, cuts, tables = self._expected[variant]
        fields, width = parts.unpack(data), self._width
        if fields[::width] != headers:
            return None
        for crc, sent, cut in zip(fixed, fields[width - 1 :: width], cuts, strict=True):
            for table, byte in zip(tables, data[cut], strict=True):
                crc ^= table[byte]
            if crc != sent:
                return None
        velocity = fields[width - 3 :: width] if width > 4 else ()
        load = fields[2::width] if width > 5 else ()
        return fields[1::width], fields[width - 2 :: width], velocity, load

    def row(self, error: int, params: bytes) -> Row:
        """One servo's row out of its own status packet."""
        *rest, position = self._row.unpack_from(params)
        return error, position, rest[-1] if rest else 0, rest[-2] if len(rest) > 1 else 0


class FastDynamixelBlocks:
    """Fast sync read: one status packet that all servos build together."""

    def __init__(self, ids: Sequence[int], detail: str = FULL) -> None:
        spec = SPECS[Protocol.DYNAMIXEL, detail]
        self._address = spec.address
        self._row = Struct("<" + spec.layout)
        self._width = len(spec.layout) + 3  # fields of one servo: error, id, ..., CRC
        self._ids = tuple(ids)
        self.lengths = tuple(spec.size + extra for extra in range(VARIANTS))
        self.sizes = tuple(8 + (length + 4) * len(ids) for length in self.lengths)
        self.requests = tuple(self.request(variant, ids) for variant in range(VARIANTS))
        self._expected = []
        for extra, size in enumerate(self.sizes):
            tail = size - 10  # all but the first eight bytes and the CRC at the end
            header = dynamixel.HEADER + struct.pack(
                "<BHB", dynamixel.BROADCAST, size - 7, dynamixel.STATUS
            )
            parts = Struct("<8s" + f"BB{spec.layout}{extra}xH" * len(ids))
            fixed = dynamixel.crc16(header + bytes(tail))
            self._expected.append((parts, header, fixed, dynamixel.crc_tables(tail)))

    def request(self, variant: int, ids: Sequence[int]) -> bytes:
        """The packet that asks some of the servos."""
        return dynamixel.fast_sync_read(self._address, self.lengths[variant], ids)

    def decode(self, data: bytes, variant: int) -> Rows | None:
        """All servos' rows when `data` is exactly the answer, None otherwise."""
        parts, header, crc, tables = self._expected[variant]
        fields, width = parts.unpack(data), self._width
        if fields[0] != header or fields[2::width] != self._ids:
            return None
        for table, byte in zip(tables, data[8:-2], strict=True):
            crc ^= table[byte]
        if crc != fields[-1]:  # it covers the CRCs of the servos before
            return None
        velocity = fields[width - 2 :: width] if width > 4 else ()
        load = fields[3::width] if width > 5 else ()
        return fields[1::width], fields[width - 1 :: width], velocity, load

    def row(self, error: int, params: bytes) -> Row:
        """One servo's row out of its part of the packet."""
        *rest, position = self._row.unpack_from(params)
        return error, position, rest[-1] if rest else 0, rest[-2] if len(rest) > 1 else 0


def sign15(raw: int) -> int:
    """A Feetech position or velocity: bit 15 is the sign."""
    return raw if raw < 0x8000 else 0x8000 - raw


def sign10(raw: int) -> int:
    """A Feetech load: bit 10 is the sign."""
    return -(raw & 0x3FF) if raw & 0x400 else raw & 0x3FF


class FeetechBlocks:
    """Sync read of STS servos: one status packet from each."""

    def __init__(self, ids: Sequence[int], detail: str = FULL) -> None:
        spec = SPECS[Protocol.FEETECH, detail]
        self._address = spec.address
        self._row = Struct("<" + spec.layout)
        self._width = len(spec.layout) + 3  # fields of one servo: header, error, ..., checksum
        self.lengths = tuple(spec.size + extra for extra in range(VARIANTS))
        self.sizes = tuple((n + feetech.OVERHEAD) * len(ids) for n in self.lengths)
        self.requests = tuple(self.request(variant, ids) for variant in range(VARIANTS))
        self._expected = []
        for extra, length in enumerate(self.lengths):
            size = length + feetech.OVERHEAD
            headers = tuple(feetech.HEADER + bytes((servo_id, length + 2)) for servo_id in ids)
            parts = Struct("<" + f"4sB{spec.layout}{extra}xB" * len(ids))
            cuts = [slice(at + 2, at + size) for at in range(0, size * len(ids), size)]
            self._expected.append((parts, headers, cuts))

    def request(self, variant: int, ids: Sequence[int]) -> bytes:
        """The packet that asks some of the servos."""
        return feetech.sync_read(self._address, self.lengths[variant], ids)

    def decode(self, data: bytes, variant: int) -> Rows | None:
        """All servos' rows when `data` is exactly the answer, None otherwise."""
        parts, headers, cuts = self._expected[variant]
        fields, width = parts.unpack(data), self._width
        if fields[::width] != headers:
            return None
        for cut in cuts:
            if sum(data[cut]) & 0xFF != 0xFF:  # with its inverted sum behind it
                return None
        return (
            fields[1::width],
            [raw if raw < 0x8000 else 0x8000 - raw for raw in fields[2::width]],
            [sign15(raw) for raw in fields[3::width]] if width > 4 else (),
            [sign10(raw) for raw in fields[4::width]] if width > 5 else (),
        )

    def row(self, error: int, params: bytes) -> Row:
        """One servo's row out of its own status packet."""
        position, *rest = self._row.unpack_from(params)
        velocity = sign15(rest[0]) if rest else 0
        return error, sign15(position), velocity, sign10(rest[1]) if len(rest) > 1 else 0


class DynamixelGoals:
    """The sync write of Goal_Position, built once but for the goals and the CRC."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._register = XL430_TABLE["Goal_Position"]
        self._ids = tuple(ids)
        self._params = Struct("<" + "Bi" * len(ids))
        self._values = [value for servo_id in ids for value in (servo_id, 0)]
        blank = dynamixel.sync_write(self._register.address, 4, dict.fromkeys(ids, bytes(4)))
        self._head = blank[:12]  # up to address and size
        tail = self._params.size
        self._fixed = dynamixel.crc16(self._head + bytes(tail))
        self._tables = dynamixel.crc_tables(tail)

    def packet(self, counts: Sequence[int]) -> bytes:
        """The packet that sets these goals. Raises ServoError for one that does not fit."""
        self._values[1::2] = counts
        try:
            params = self._params.pack(*self._values)
        except struct.error:
            raise ServoError(f"goal positions {tuple(counts)} do not fit the register") from None
        if b"\xff\xff\xfd" in params:
            rows = zip(self._ids, map(self._register.encode, counts), strict=True)
            return dynamixel.sync_write(self._register.address, 4, dict(rows))
        crc = self._fixed
        for table, byte in zip(self._tables, params, strict=True):
            crc ^= table[byte]
        return self._head + params + crc.to_bytes(2, "little")


class FeetechGoals:
    """The sync write of Goal_Position, built once but for the goals and the checksum."""

    def __init__(self, ids: Sequence[int]) -> None:
        register = STS_TABLE["Goal_Position"]
        self._params = Struct("<" + "BH" * len(ids))
        self._values = [value for servo_id in ids for value in (servo_id, 0)]
        blank = feetech.sync_write(register.address, 2, dict.fromkeys(ids, bytes(2)))
        self._head = blank[:7]  # up to address and size
        self._fixed = sum(self._head[2:])

    def packet(self, counts: Sequence[int]) -> bytes:
        """The packet that sets these goals. Raises ServoError for one that does not fit."""
        if max(counts) > 0x7FFF or min(counts) < -0x7FFF:
            raise ServoError(f"goal positions {tuple(counts)} do not fit the register")
        self._values[1::2] = [goal if goal >= 0 else 0x8000 - goal for goal in counts]
        params = self._params.pack(*self._values)
        return self._head + params + bytes((~(self._fixed + sum(params)) & 0xFF,))
