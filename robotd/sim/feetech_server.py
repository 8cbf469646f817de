"""The Feetech bus protocol as a chain of STS servos hears and speaks it.

Source: Feetech, "Communication protocol" of the SCS/STS series. The parser is this module's own;
it shares nothing with robotd's bus code, so that they check each other.

A sync read is answered in the order of the request. The maker's SDK searches the replies for each
id, so a silent servo costs its reply only; here the others answer as well.
"""

from __future__ import annotations

from robotd.sim.feetech_servo import OVERLOAD, PRESENT_END, FeetechServo
from robotd.sim.protocol import BROADCAST, ProtocolServer, Reply, Word

PING, READ, WRITE, REG_WRITE, ACTION, RECOVERY, REBOOT, RESET = 1, 2, 3, 4, 5, 6, 8, 10
SYNC_READ, SYNC_WRITE = 0x82, 0x83
_HEADER = b"\xff\xff"
# Parameters that an instruction needs at least; a shorter packet is ignored.
_SHORTEST = {READ: 2, WRITE: 2, REG_WRITE: 2, SYNC_READ: 3, SYNC_WRITE: 4}
_LONGEST = 253  # bytes that a status packet can carry
_ANSWERED = (PING, READ)  # at status level 0 too


def checksum(data: bytes | bytearray) -> int:
    """Complement of the sum of everything between header and checksum."""
    return ~sum(data) & 0xFF


def status_packet(servo_id: int, error: int, parameters: bytes = b"") -> bytes:
    """A whole status packet with its checksum."""
    body = bytes((servo_id, len(parameters) + 2, error)) + parameters
    return _HEADER + body + bytes((checksum(body),))


class FeetechServer(ProtocolServer[FeetechServo]):
    """A chain of STS servos."""

    alarm = OVERLOAD

    def _next(self, replies: list[Reply]) -> bool:
        buffer = self._buffer
        start = buffer.find(_HEADER)
        if start < 0:
            del buffer[: len(buffer) - (buffer[-1:] == b"\xff")]
            return False
        while start + 2 < len(buffer) and buffer[start + 2] == 0xFF:
            start += 1  # a third FF is noise: no id is 255
        del buffer[:start]
        if len(buffer) < 4:
            return False
        end = 4 + buffer[3]
        if buffer[3] < 2:
            del buffer[:2]
            return True
        if len(buffer) < end:
            return False
        packet = bytes(buffer[:end])
        if checksum(packet[2:-1]) != packet[-1]:
            del buffer[:2]  # not even an error comes back
            return True
        del buffer[:end]
        self._obey(packet[2], packet[4], packet[5:-1], replies)
        return True

    def _obey(self, servo_id: int, instruction: int, data: bytes, replies: list[Reply]) -> None:
        self.listen()
        if len(data) < _SHORTEST.get(instruction, 0):
            return
        if instruction == SYNC_READ:
            for wanted in (i for i in data[2:] if i != BROADCAST):
                self._single(wanted, READ, data[:2], replies)
        elif instruction == SYNC_WRITE:
            at, size = data[0], data[1]
            for k in range(2, len(data) - size, size + 1):
                for servo in self.named(data[k]):
                    servo.write(at, data[k + 1 : k + 1 + size])
        elif servo_id == BROADCAST:
            self._broadcast(instruction, data, replies)
        else:
            self._single(servo_id, instruction, data, replies)

    def _broadcast(self, instruction: int, data: bytes, replies: list[Reply]) -> None:
        if instruction == PING:
            for one in sorted(self._ears):  # in the order of their ids
                self._single(one, PING, data, replies)
            return
        for servo in self.hearing(BROADCAST):
            self._execute(servo, instruction, data)

    def _single(self, servo_id: int, instruction: int, data: bytes, replies: list[Reply]) -> None:
        packets = []
        for servo in self.hearing(servo_id):
            delay_ns, level = servo.reply_delay_ns, servo.table[8]
            answer = self._execute(servo, instruction, data)
            if answer is not None and (level or instruction in _ANSWERED):
                # A new id counts from the next request on.
                status = status_packet(servo_id, servo.status, answer)
                packets.append(Reply((servo_id,), status, delay_ns))
        self._answer(replies, packets)

    def _execute(self, servo: FeetechServo, instruction: int, data: bytes) -> bytes | None:
        """Parameters of the servo's answer, None when it keeps silent."""
        if instruction == READ:
            if data[1] > _LONGEST:
                return None
            if data[0] < PRESENT_END and data[0] + data[1] > 56:
                servo.refresh(self._now_ns)
            return servo.read(data[0], data[1])
        if instruction == WRITE:
            servo.write(data[0], data[1:])
        elif instruction == REG_WRITE:
            servo.registered = (data[0], data[1:])
        elif instruction == ACTION:
            if servo.registered is not None:
                at, values = servo.registered
                servo.registered = None
                servo.write(at, values)
        elif instruction == RECOVERY:
            servo.factory_reset(self._now_ns)
        elif instruction == REBOOT:
            servo.power_on(self._now_ns)
            return None
        elif instruction == RESET:
            servo.settle()  # its turns are forgotten
        elif instruction != PING:
            return None
        return b""

    def take_apart(self, reply: Reply) -> list[Word]:
        data = reply.data
        return [(data[4], data[2], data[5:-1])] if len(reply.ids) == 1 else []

    def put_together(self, reply: Reply, words: list[Word]) -> bytes:
        ((error, servo_id, data),) = words
        return status_packet(servo_id, error, data)
