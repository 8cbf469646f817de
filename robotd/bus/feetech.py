"""Feetech STS: packets to bytes and back, nothing else.

Layout and instructions: Feetech "SMS/STS communication protocol" (doc.feetech.cn).

    FF FF | id | length | instruction | parameters ... | checksum

`length` counts from the instruction to the checksum; the checksum is the inverted sum of everything
after the header. A status packet has the servo's error bits where the instruction was. Nothing is
stuffed, so a header may occur inside a packet.
"""

from collections.abc import Mapping, Sequence

from robotd.bus.status import Status

HEADER = b"\xff\xff"
BROADCAST = 0xFE
OVERHEAD = 6  # bytes of a status packet besides its parameters
_FIXED = 4  # header, id, length

PING, READ, WRITE, REG_WRITE, ACTION = 1, 2, 3, 4, 5
SYNC_READ, SYNC_WRITE = 0x82, 0x83

STATUS_BITS = 0x3F  # voltage, sensor, temperature, current, angle, overload: ServoStatus 0..5


def checksum(data: bytes) -> int:
    """The checksum over id, length, instruction or error, and parameters."""
    return ~sum(data) & 0xFF


def instruction(servo_id: int, code: int, params: bytes = b"") -> bytes:
    """Any instruction packet, with its checksum."""
    body = bytes((servo_id, len(params) + 2, code)) + params
    return HEADER + body + bytes((checksum(body),))


def ping(servo_id: int = BROADCAST) -> bytes:
    """Ask one servo, or all of them, whether it is there."""
    return instruction(servo_id, PING)


def read(servo_id: int, address: int, size: int) -> bytes:
    """Ask one servo for `size` bytes from `address`."""
    return instruction(servo_id, READ, bytes((address, size)))


def write(servo_id: int, address: int, data: bytes) -> bytes:
    """Write `data` at `address` of one servo, or of all (no answer then)."""
    return instruction(servo_id, WRITE, bytes((address,)) + data)


def reg_write(servo_id: int, address: int, data: bytes) -> bytes:
    """A write that waits in the servo for `action`."""
    return instruction(servo_id, REG_WRITE, bytes((address,)) + data)


def action(servo_id: int = BROADCAST) -> bytes:
    """Carry out what `reg_write` left."""
    return instruction(servo_id, ACTION)


def sync_read(address: int, size: int, ids: Sequence[int]) -> bytes:
    """Ask several servos for the same registers; each answers with its own packet, in order."""
    return instruction(BROADCAST, SYNC_READ, bytes((address, size)) + bytes(ids))


def sync_write(address: int, size: int, values: Mapping[int, bytes]) -> bytes:
    """Write `size` bytes at the same address of several servos: id to data. No answer."""
    rows = b"".join(bytes((servo_id,)) + data for servo_id, data in values.items())
    return instruction(BROADCAST, SYNC_WRITE, bytes((address, size)) + rows)


def error_text(error: int) -> str:
    """Nothing to say: a Feetech error byte holds the servo's state, see ServoStatus."""
    return ""


def hardware_status(register: int) -> int:
    """The Status register or error byte as ServoStatus bits; they are the same."""
    return register & STATUS_BITS


def refused(error: int) -> bool:
    """Feetech servos do not say that an instruction was refused; they do not answer then."""
    return False


class StatusParser:
    """Status packets out of a byte stream, in pieces of any size and among any garbage.

    Never raises; only packets with a good checksum come out. After bad bytes it goes on at the next
    header. `skipped` counts bytes that belonged to no packet, `bad` packets with a wrong checksum.
    An adapter's echo looks like a status packet: tell it by its id and length.
    """

    def __init__(self, longest: int = 255) -> None:
        self.longest = longest  # largest length byte that is believed
        self.skipped = 0
        self.bad = 0
        self.foreign = 0  # always 0 here; see dynamixel.StatusParser
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Status]:
        """Take more bytes; the packets they complete."""
        self._buffer += data
        return self._parse()

    def give_up(self) -> list[Status]:
        """Nothing more comes: drop an unfinished packet, and return what was behind its header."""
        found: list[Status] = []
        while self._buffer:
            self._skip(1)
            found += self._parse()
        return found

    def reset(self) -> None:
        """Forget an unfinished packet."""
        self._buffer.clear()

    @property
    def needed(self) -> int:
        """Bytes still missing from the packet that has begun; 0 when none has."""
        have = len(self._buffer)
        if not have:
            return 0
        if have < _FIXED:
            return OVERHEAD - have
        return _FIXED + self._buffer[3] - have

    def _skip(self, count: int) -> None:
        del self._buffer[:count]
        self.skipped += count

    def _parse(self) -> list[Status]:
        found: list[Status] = []
        buffer = self._buffer
        while self._align():
            servo_id, length = buffer[2], buffer[3]
            if servo_id >= BROADCAST or not 2 <= length <= self.longest:
                self._skip(1)
                continue
            end = _FIXED + length
            if len(buffer) < end:
                break
            packet = bytes(buffer[:end])
            if checksum(packet[2:-1]) != packet[-1]:
                self.bad += 1
                self._skip(1)
                continue
            del buffer[:end]
            found.append(Status(servo_id, packet[4], packet[5:-1]))
        return found

    def _align(self) -> bool:
        """Bring a header to the front; True when a packet's length is there too."""
        buffer = self._buffer
        at = buffer.find(HEADER)
        if at < 0:
            at = len(buffer) - (1 if buffer.endswith(b"\xff") else 0)
        if at:
            self._skip(at)
        return len(buffer) >= _FIXED
