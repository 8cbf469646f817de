"""Dynamixel Protocol 2.0: packets to bytes and back, nothing else.

Layout, instructions, CRC and byte stuffing: ROBOTIS e-Manual, "Protocol 2.0",
https://emanual.robotis.com/docs/en/dxl/protocol2/

    FF FF FD 00 | id | length (2) | instruction | parameters ... | CRC-16 (2)

`length` counts from the instruction to the CRC. A status packet has instruction 55 and an error
byte before its parameters. Between length and CRC every FF FF FD is sent as FF FF FD FD, except in
the answer to a fast sync read, which is one packet by all servos and never stuffed.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from robotd.bus.status import ServoStatus, Status

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 0xFE
STATUS = 0x55
OVERHEAD = 11  # bytes of a status packet besides its parameters
_STUFFED = b"\xff\xff\xfd"
_FIXED = 7  # bytes before the instruction: header, id, length

PING, READ, WRITE, REG_WRITE, ACTION, FACTORY_RESET, REBOOT = 1, 2, 3, 4, 5, 6, 8
SYNC_READ, SYNC_WRITE, FAST_SYNC_READ, BULK_READ, BULK_WRITE = 0x82, 0x83, 0x8A, 0x92, 0x93

ALERT = 0x80  # bit of the error byte: see Hardware_Error_Status
ERRORS = (
    "",
    "result fail",
    "instruction error",
    "CRC error",
    "data range error",
    "data length error",
    "data limit error",
    "access error",
)
RESET_ALL, RESET_EXCEPT_ID, RESET_EXCEPT_ID_AND_BAUD = 0xFF, 0x01, 0x02


def _crc_table() -> tuple[int, ...]:
    """CRC-16/IBM, polynomial 8005, most significant bit first."""
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return tuple(table)


_CRC = _crc_table()
_LINEAR: list[tuple[int, ...]] = [_CRC]  # [d][b]: CRC of byte b with d zero bytes behind it


def crc16(data: bytes, crc: int = 0) -> int:
    """The packet CRC of `data`, continuing from `crc`."""
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _CRC[(crc >> 8) ^ byte]
    return crc


def crc_tables(size: int) -> tuple[tuple[int, ...], ...]:
    """One table for each byte of a message of `size` bytes: its CRC is the XOR of table[byte].

    The CRC starts at 0 and is linear, so the bytes' shares can be looked up independently. With
    fixed bytes in front, XOR the CRC of those followed by `size` zero bytes.
    """
    while len(_LINEAR) < size:
        _LINEAR.append(tuple(((c << 8) & 0xFFFF) ^ _CRC[c >> 8] for c in _LINEAR[-1]))
    return tuple(reversed(_LINEAR[:size]))


def stuff(data: bytes) -> bytes:
    """FD after every FF FF FD, as needed between length and CRC."""
    return data.replace(_STUFFED, _STUFFED + b"\xfd") if _STUFFED in data else data


def unstuff(data: bytes) -> bytes:
    """The inverse of `stuff`."""
    return data.replace(_STUFFED + b"\xfd", _STUFFED) if _STUFFED in data else data


def instruction(servo_id: int, code: int, params: bytes = b"") -> bytes:
    """Any instruction packet, stuffed and with its CRC."""
    body = stuff(bytes((code,)) + params)
    head = HEADER + bytes((servo_id,)) + (len(body) + 2).to_bytes(2, "little")
    packet = head + body
    return packet + crc16(packet).to_bytes(2, "little")


def ping(servo_id: int = BROADCAST) -> bytes:
    """Ask one servo, or all of them, for model number and firmware."""
    return instruction(servo_id, PING)


def read(servo_id: int, address: int, size: int) -> bytes:
    """Ask one servo for `size` bytes from `address`."""
    return instruction(servo_id, READ, _words(address, size))


def write(servo_id: int, address: int, data: bytes) -> bytes:
    """Write `data` at `address` of one servo, or of all (no answer then)."""
    return instruction(servo_id, WRITE, _words(address) + data)


def reg_write(servo_id: int, address: int, data: bytes) -> bytes:
    """A write that waits in the servo for `action`."""
    return instruction(servo_id, REG_WRITE, _words(address) + data)


def action(servo_id: int = BROADCAST) -> bytes:
    """Carry out what `reg_write` left."""
    return instruction(servo_id, ACTION)


def reboot(servo_id: int) -> bytes:
    """Restart one servo; clears a hardware error, torque is off afterwards."""
    return instruction(servo_id, REBOOT)


def factory_reset(servo_id: int, keep: int = RESET_EXCEPT_ID_AND_BAUD) -> bytes:
    """Put the control table back to its delivery values."""
    return instruction(servo_id, FACTORY_RESET, bytes((keep,)))


def sync_read(address: int, size: int, ids: Sequence[int]) -> bytes:
    """Ask several servos for the same registers; each answers with its own packet, in order."""
    return instruction(BROADCAST, SYNC_READ, _words(address, size) + bytes(ids))


def fast_sync_read(address: int, size: int, ids: Sequence[int]) -> bytes:
    """Like `sync_read`, answered by one packet that the servos build together."""
    return instruction(BROADCAST, FAST_SYNC_READ, _words(address, size) + bytes(ids))


def sync_write(address: int, size: int, values: Mapping[int, bytes]) -> bytes:
    """Write `size` bytes at the same address of several servos: id to data. No answer."""
    rows = b"".join(bytes((servo_id,)) + data for servo_id, data in values.items())
    return instruction(BROADCAST, SYNC_WRITE, _words(address, size) + rows)


def bulk_read(items: Iterable[tuple[int, int, int]]) -> bytes:
    """Ask several servos for different registers: (id, address, size); one packet from each."""
    rows = b"".join(bytes((servo_id,)) + _words(address, size) for servo_id, address, size in items)
    return instruction(BROADCAST, BULK_READ, rows)


def bulk_write(items: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Write different registers of several servos: (id, address, data). No answer."""
    rows = b"".join(
        bytes((servo_id,)) + _words(address, len(data)) + data for servo_id, address, data in items
    )
    return instruction(BROADCAST, BULK_WRITE, rows)


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


def error_text(error: int) -> str:
    """The error byte in words, "" for none."""
    code = error & ~ALERT
    text = ERRORS[code] if code < len(ERRORS) else f"error {code}"
    return ", ".join(part for part in (text, "hardware alert" if error & ALERT else "") if part)


_HARDWARE = {
    0x01: ServoStatus.VOLTAGE,
    0x04: ServoStatus.OVERHEAT,
    0x08: ServoStatus.SENSOR,
    0x10: ServoStatus.OVERCURRENT,
    0x20: ServoStatus.OVERLOAD,
}


def hardware_status(register: int) -> int:
    """Hardware_Error_Status (e-Manual, X series, address 70) as ServoStatus bits."""
    return sum(ours for theirs, ours in _HARDWARE.items() if register & theirs)


def refused(error: int) -> bool:
    """Whether a status packet says that the instruction was not carried out."""
    return bool(error & ~ALERT)


def fast_blocks(params: bytes, error: int, size: int) -> list[Status]:
    """The servos' answers in one fast sync read packet; [] when they do not add up.

    `error` and `params` are those of the status packet from id FE: the first servo's error, then
    its id and data, then for each further servo CRC, error, id, data.
    """
    row = size + 4  # error, id, data, CRC; the last CRC is the packet's own
    whole = bytes((error,)) + params + b"\0\0"
    if len(whole) % row:
        return []
    cuts = pairwise(range(0, len(whole) + 1, row))
    return [Status(whole[at + 1], whole[at], whole[at + 2 : end - 2]) for at, end in cuts]


class StatusParser:
    """Status packets out of a byte stream, in pieces of any size and among any garbage.

    Never raises; only packets with a good CRC come out. After bad bytes it goes on at the next
    header. `skipped` counts bytes that belonged to no packet, `bad` packets with a wrong CRC,
    `foreign` good packets that are no status packets (an adapter's echo).
    """

    def __init__(self, longest: int = 1024) -> None:
        self.longest = longest  # bytes of a packet's length field that are believed
        self.skipped = 0
        self.bad = 0
        self.foreign = 0
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
        return _FIXED + int.from_bytes(self._buffer[5:7], "little") - have

    def _skip(self, count: int) -> None:
        del self._buffer[:count]
        self.skipped += count

    def _parse(self) -> list[Status]:
        found: list[Status] = []
        buffer = self._buffer
        while self._align():
            length = buffer[5] | buffer[6] << 8
            if not 3 <= length <= self.longest:
                self._skip(1)
                continue
            end = _FIXED + length
            if len(buffer) < end:
                break
            packet = bytes(buffer[:end])
            if crc16(packet[:-2]) != packet[-2] | packet[-1] << 8:
                self.bad += 1
                self._skip(1)
                continue
            del buffer[:end]
            if packet[7] == STATUS and length > 3:
                data = packet[9:-2] if packet[4] == BROADCAST else unstuff(packet[8:-2])[1:]
                found.append(Status(packet[4], packet[8], data))
            else:
                self.foreign += 1
        return found

    def _align(self) -> bool:
        """Bring a header to the front; True when a packet's length is there too."""
        buffer = self._buffer
        at = buffer.find(HEADER)
        if at < 0:
            keep = next(n for n in (3, 2, 1, 0) if buffer.endswith(HEADER[:n]))
            at = len(buffer) - keep
        if at:
            self._skip(at)
        return len(buffer) >= _FIXED
