"""A witness at the wire: reads every byte the loop writes, with its own decoder, and keeps goals.

It shares no code with robotd.bus. Feetech: FF FF id len instruction params checksum. Dynamixel 2.0:
FF FF FD 00 id len(2) instruction params(stuffed) crc(2). Sync write is 0x83, write 0x03, broadcast
0xFE in both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from robotd.bus.port import Port

WRITE, SYNC_WRITE = 0x03, 0x83
GOAL = {"so101": (42, 2), "koch": (116, 4)}
TORQUE = {"so101": 40, "koch": 64}
IDS = (1, 2, 3, 4, 5, 6)


@dataclass
class Engagement:
    """From torque on to torque off: goals of every tick, in counts."""

    begun_at: tuple[int, ...]  # goals in the servos when torque went on
    goals: list[tuple[int, ...]] = field(default_factory=list)


class Witness:
    """A port that passes everything on and takes notes."""

    def __init__(self, port: Port, model: str) -> None:
        self._port = port
        self._model = model
        self._goals = dict.fromkeys(IDS, 0)
        self._torque = dict.fromkeys(IDS, False)
        self.engagements: list[Engagement] = []
        self.on_torque: Callable[[int, int], None] = lambda servo, goal: None

    def write(self, data: bytes) -> None:
        self._port.write(data)  # a write that fails has not reached the wire
        packets = self._feetech(data) if self._model == "so101" else self._dynamixel(data)
        for servo, instruction, params in packets:
            self._note(servo, instruction, params)

    def _feetech(self, data: bytes) -> list[tuple[int, int, bytes]]:
        packets = []
        while data:
            assert data[:2] == b"\xff\xff"
            servo, length = data[2], data[3]
            body, data = data[: length + 4], data[length + 4 :]
            assert (~sum(body[2:-1])) & 0xFF == body[-1]
            packets.append((servo, body[4], body[5:-1]))
        return packets

    def _dynamixel(self, data: bytes) -> list[tuple[int, int, bytes]]:
        packets = []
        while data:
            assert data[:4] == b"\xff\xff\xfd\x00"
            servo, length = data[4], int.from_bytes(data[5:7], "little")
            body, data = data[: length + 7], data[length + 7 :]
            params = body[8:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
            packets.append((servo, body[7], params))
        return packets

    def _note(self, servo: int, instruction: int, params: bytes) -> None:
        if instruction not in (WRITE, SYNC_WRITE):
            return
        wide = self._model == "koch"
        address = int.from_bytes(params[:2], "little") if wide else params[0]
        rest = params[2:] if wide else params[1:]
        if instruction == WRITE:
            self._wrote(servo, address, rest)
        else:
            size = int.from_bytes(rest[:2], "little") if wide else rest[0]
            rows = rest[2:] if wide else rest[1:]
            for at in range(0, len(rows), size + 1):
                self._wrote(rows[at], address, rows[at + 1 : at + 1 + size])
            if address == GOAL[self._model][0]:
                assert all(self._torque.values()), "goals are written while torque is off"
                self.engagements[-1].goals.append(tuple(self._goals.values()))

    def _wrote(self, servo: int, address: int, data: bytes) -> None:
        goal_at, size = GOAL[self._model]
        if address == goal_at and len(data) == size:
            value = int.from_bytes(data, "little", signed=self._model == "koch")
            if self._model == "so101" and value & 0x8000:
                value = -(value & 0x7FFF)
            self._goals[servo] = value
        elif address == TORQUE[self._model]:
            on = data[0] == 1
            if on and not self._torque[servo]:
                self.on_torque(servo, self._goals[servo])
            self._torque[servo] = on
            if on and all(self._torque.values()):
                self.engagements.append(Engagement(tuple(self._goals.values())))

    def read(self, size: int, deadline_ns: int) -> bytes:
        return self._port.read(size, deadline_ns)

    def flush_input(self) -> int:
        return self._port.flush_input()

    def reopen(self) -> bool:
        return self._port.reopen()

    def close(self) -> None:
        self._port.close()
