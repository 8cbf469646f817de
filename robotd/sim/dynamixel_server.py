"""Protocol 2.0 as a chain of Dynamixel servos hears and speaks it.

Source: ROBOTIS e-Manual, "DYNAMIXEL Protocol 2.0" and "CRC calculation". The parser is this
module's own; it shares nothing with robotd's bus code, so that they check each other.

Replies to sync and bulk reads come in the order of the request; a servo waits for the one before
it, so after a silent servo nobody answers (ROBOTIS' word on it: DynamixelSDK issue 364).
"""

from __future__ import annotations

import struct

from robotd.sim.dynamixel_servo import ALERT, DynamixelServo
from robotd.sim.dynamixel_table import CRC, DATA_LENGTH, INSTRUCTION, RESULT_FAIL
from robotd.sim.protocol import BROADCAST, ProtocolServer, Reply, Word

PING, READ, WRITE, REG_WRITE, ACTION, FACTORY_RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 16
STATUS, SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x55, 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE, FAST_BULK_READ = 0x92, 0x93, 0x9A
_HEADER = b"\xff\xff\xfd"
_STUFFED = b"\xff\xff\xfd\xfd"
_HEAD = struct.Struct("<3sxBH")
_LONGEST = 1024  # a length field beyond this is noise
_CLEAR_TURNS = bytes((0x01, 0x44, 0x58, 0x4C, 0x22))
_RESET_KEEPS = {0xFF: (), 0x01: ("ID",), 0x02: ("ID", "Baud_Rate")}
_CACHED = (READ, SYNC_READ, FAST_SYNC_READ, BULK_READ, FAST_BULK_READ)
# Parameters that an instruction needs at least.
_SHORTEST = {
    READ: 4,
    WRITE: 3,
    REG_WRITE: 3,
    SYNC_READ: 5,
    SYNC_WRITE: 5,
    FAST_SYNC_READ: 5,
    BULK_READ: 5,
    BULK_WRITE: 6,
    FAST_BULK_READ: 5,
}
_Request = tuple[int, int, bytes]  # id, instruction, parameters


def _crc_of_bytes() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return table


def _crc_of_words() -> list[int]:
    rows = ([crc >> 8, (crc & 0xFF) << 8] for crc in _BYTES)
    return [low ^ _BYTES[high ^ byte] for high, low in rows for byte in range(256)]


_BYTES = _crc_of_bytes()
_WORDS = _crc_of_words()  # two bytes at a time halve the work of the hottest loop here


def crc16(data: bytes | bytearray, crc: int = 0) -> int:
    """CRC-16 of Protocol 2.0: polynomial 0x8005, from 0, not reflected."""
    size = len(data)
    for word in struct.unpack_from(f">{size // 2}H", data):
        crc = _WORDS[crc ^ word]
    if size & 1:
        crc = (crc << 8 & 0xFF00) ^ _BYTES[crc >> 8 ^ data[-1]]
    return crc


def status_packet(servo_id: int, error: int, parameters: bytes = b"") -> bytes:
    """A whole status packet, stuffed and with its CRC."""
    body = bytes((STATUS, error)) + parameters
    if _HEADER in body:
        body = body.replace(_HEADER, _STUFFED)
    packet = _HEAD.pack(_HEADER, servo_id, len(body) + 2) + body
    return packet + crc16(packet).to_bytes(2, "little")


def fast_packet(words: list[Word], length: int) -> bytes:
    """One packet for all: error, id, data and a CRC of all before it, servo after servo.

    `length` is what the packet announces: it is shorter than that when a servo is silent.
    """
    packet = bytearray(_HEAD.pack(_HEADER, BROADCAST, length))
    packet.append(STATUS)
    crc, done = 0, 0
    for error, servo_id, data in words:
        packet += bytes((error, servo_id)) + data
        crc = crc16(packet[done:], crc)
        done = len(packet)
        packet += crc.to_bytes(2, "little")
    return bytes(packet)


class DynamixelServer(ProtocolServer[DynamixelServo]):
    """A chain of X-series servos."""

    alarm = ALERT

    def __init__(self, servos: list[DynamixelServo]) -> None:
        super().__init__(servos)
        self._known: dict[bytes, _Request] = {}  # read requests already checked, by their bytes

    # -- parsing

    def _next(self, replies: list[Reply]) -> bool:
        buffer = self._buffer
        if not buffer:
            return False
        known = self._known.get(bytes(buffer)) if len(buffer) <= 64 else None
        if known is not None:
            buffer.clear()
            self._obey(*known, replies)
            return False
        start = self._find_header()
        if start < 0:
            return False
        del buffer[:start]
        if len(buffer) < 7:
            return False
        length = buffer[5] | buffer[6] << 8
        if buffer[4] > BROADCAST or not 3 <= length <= _LONGEST:
            del buffer[:3]
            return True
        end = 7 + length
        if len(buffer) < end:
            return False
        self._packet(bytes(buffer[:end]), replies)
        return True

    def _find_header(self) -> int:
        """Where the next packet begins, -1 when none does yet; noise before it is dropped."""
        buffer, at = self._buffer, 0
        while True:
            at = buffer.find(_HEADER, at)
            if at < 0:
                tail = 2 if buffer[-2:] == b"\xff\xff" else 1 if buffer[-1:] == b"\xff" else 0
                del buffer[: len(buffer) - tail]
                return -1
            if len(buffer) <= at + 3:
                del buffer[:at]
                return -1
            if buffer[at + 3] == 0:
                return at
            at += 3

    def _packet(self, packet: bytes, replies: list[Reply]) -> None:
        servo_id = packet[4]
        if crc16(packet[:-2]) != packet[-2] | packet[-1] << 8:
            del self._buffer[:3]
            self.listen()
            if servo_id != BROADCAST:
                self._say(replies, [(servo, CRC, b"") for servo in self.hearing(servo_id)])
            return
        del self._buffer[: len(packet)]
        parameters = packet[8:-2]
        if _STUFFED in packet:
            parameters = packet[7:-2].replace(_STUFFED, _HEADER)[1:]
        instruction = packet[7]
        if instruction in _CACHED and len(packet) <= 64 and len(self._known) < 64:
            self._known[packet] = (servo_id, instruction, parameters)
        self._obey(servo_id, instruction, parameters, replies)

    # -- instructions

    def _obey(self, servo_id: int, instruction: int, data: bytes, replies: list[Reply]) -> None:
        self.listen()
        for servo in self.servos:
            servo.heard_ns = self._now_ns
        if len(data) < _SHORTEST.get(instruction, 0):
            if servo_id != BROADCAST:
                self._say(replies, [(servo, DATA_LENGTH, b"") for servo in self.hearing(servo_id)])
        elif instruction in (SYNC_READ, FAST_SYNC_READ):
            at, size = data[0] | data[1] << 8, data[2] | data[3] << 8
            self._read_many([(i, at, size) for i in data[4:]], instruction != SYNC_READ, replies)
        elif instruction == SYNC_WRITE:
            self._sync_write(data)
        elif instruction in (BULK_READ, FAST_BULK_READ):
            wanted = [
                (data[k], data[k + 1] | data[k + 2] << 8, data[k + 3] | data[k + 4] << 8)
                for k in range(0, len(data) - 4, 5)
            ]
            self._read_many(wanted, instruction == FAST_BULK_READ, replies)
        elif instruction == BULK_WRITE:
            self._bulk_write(data)
        elif instruction == PING and servo_id == BROADCAST:
            for one in sorted(self._ears):  # in the order of their ids
                self._say(replies, [(s, *self._execute(s, PING, b"")) for s in self._ears[one]])
        elif servo_id == BROADCAST:
            for servo in self.hearing(servo_id):
                self._execute(servo, instruction, data, shared=True)
        elif instruction != STATUS:
            self._single(servo_id, instruction, data, replies)

    def _single(self, servo_id: int, instruction: int, data: bytes, replies: list[Reply]) -> None:
        packets = []
        for servo in self.hearing(servo_id):
            delay_ns, level = servo.reply_delay_ns, servo.table[68]
            error, answer = self._execute(servo, instruction, data)
            if instruction == PING or level >= 2 or (level == 1 and instruction == READ):
                # A new id or a reset counts from the next request on.
                status = status_packet(servo_id, error | servo.alert, answer)
                packets.append(Reply((servo_id,), status, delay_ns))
        self._answer(replies, packets)
        for servo in self._all:
            if servo.table[12] == servo_id and servo.id != servo_id:  # Secondary_ID
                self._execute(servo, instruction, data, shared=True)  # shadows never answer

    def _execute(
        self, servo: DynamixelServo, instruction: int, data: bytes, shared: bool = False
    ) -> tuple[int, bytes]:
        """Error number and parameters of one servo's answer."""
        if instruction == PING:
            return 0, servo.model.number.to_bytes(2, "little") + bytes((servo.table[6],))
        if instruction == READ:
            return self._read(servo, data[0] | data[1] << 8, data[2] | data[3] << 8)
        if instruction == WRITE:
            return servo.write(data[0] | data[1] << 8, data[2:]), b""
        if instruction == REG_WRITE:
            servo.registered = (data[0] | data[1] << 8, data[2:])
            servo.table[69] = 1
            return 0, b""
        if instruction == ACTION:
            if servo.registered is None:
                return INSTRUCTION, b""
            at, values = servo.registered
            servo.registered, servo.table[69] = None, 0
            return servo.write(at, values), b""
        return self._manage(servo, instruction, data, shared), b""

    def _manage(self, servo: DynamixelServo, instruction: int, data: bytes, shared: bool) -> int:
        if instruction == REBOOT:
            servo.power_on(self._now_ns)
            return 0
        if instruction == FACTORY_RESET:
            keep = _RESET_KEEPS.get(data[0] if data else -1)
            if keep is None or (shared and not keep):
                return INSTRUCTION
            servo.factory_reset(keep, self._now_ns)
            return 0
        if instruction == CLEAR and data == _CLEAR_TURNS:
            return 0 if servo.clear_turns() else RESULT_FAIL
        return INSTRUCTION

    def _read(self, servo: DynamixelServo, at: int, size: int) -> tuple[int, bytes]:
        if at + size > 120:
            servo.refresh(self._now_ns)
        data = servo.read(at, size)
        return (data, b"") if isinstance(data, int) else (0, data)

    def _sync_write(self, data: bytes) -> None:
        at, size = data[0] | data[1] << 8, data[2] | data[3] << 8
        for k in range(4, len(data) - size, size + 1):
            for servo in self.named(data[k]):
                servo.write(at, data[k + 1 : k + 1 + size])

    def _bulk_write(self, data: bytes) -> None:
        k = 0
        while k + 5 <= len(data):
            at, size = data[k + 1] | data[k + 2] << 8, data[k + 3] | data[k + 4] << 8
            for servo in self.named(data[k]):
                servo.write(at, data[k + 5 : k + 5 + size])
            k += 5 + size

    def _read_many(
        self, wanted: list[tuple[int, int, int]], fast: bool, replies: list[Reply]
    ) -> None:
        if fast and sum(size + 4 for _, _, size in wanted) > _LONGEST:
            return
        answers: list[list[tuple[DynamixelServo, int, bytes]]] = []
        for servo_id, at, size in wanted:
            speaking = [s for s in self.named(servo_id) if s.table[68] >= 1]
            if not speaking:
                break  # the next one waits for this one's packet
            answers.append([(servo, *self._read(servo, at, size)) for servo in speaking])
        if fast:
            self._say_fast([a[0] for a in answers], [size for _, _, size in wanted], replies)
            return
        for answer in answers:
            self._say(replies, answer)

    # -- replies

    def _say(self, replies: list[Reply], spoken: list[tuple[DynamixelServo, int, bytes]]) -> None:
        packets = [
            Reply(
                (servo.id,),
                status_packet(servo.id, error | servo.alert, answer),
                servo.reply_delay_ns,
            )
            for servo, error, answer in spoken
        ]
        self._answer(replies, packets)

    def _say_fast(
        self,
        answers: list[tuple[DynamixelServo, int, bytes]],
        sizes: list[int],
        replies: list[Reply],
    ) -> None:
        if not answers:
            return
        words = [
            (error | servo.alert, servo.id, answer.ljust(size, b"\0"))
            for (servo, error, answer), size in zip(answers, sizes, strict=False)
        ]
        length = 1 + sum(size + 4 for size in sizes)
        ids = tuple(servo.id for servo, _, _ in answers)
        delay_ns = answers[0][0].reply_delay_ns
        packet = fast_packet(words, length)
        replies.append(Reply(ids, packet, delay_ns, sizes=tuple(sizes[: len(ids)])))

    def take_apart(self, reply: Reply) -> list[Word]:
        data = reply.data
        if reply.sizes:
            words, at = [], 8
            for size in reply.sizes:
                words.append((data[at], data[at + 1], data[at + 2 : at + 2 + size]))
                at += size + 4
            return words
        if len(reply.ids) > 1:
            return []
        body = data[7:-2].replace(_STUFFED, _HEADER)
        return [(body[1], data[4], body[2:])]

    def put_together(self, reply: Reply, words: list[Word]) -> bytes:
        if reply.sizes:
            return fast_packet(words, reply.data[5] | reply.data[6] << 8)
        ((error, servo_id, data),) = words
        return status_packet(servo_id, error, data)
