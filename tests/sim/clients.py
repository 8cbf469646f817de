"""Small clients of a simulated bus in stepped time, written apart from robotd's own bus code.

Packets are checked with the makers' SDKs, so that a shared mistake cannot hide.
"""

from dataclasses import dataclass

from dynamixel_sdk import Protocol2PacketHandler

from robotd.sim.bus import SimBus

BROADCAST = 254
MS = 1_000_000
_CRC = Protocol2PacketHandler().updateCRC


@dataclass
class Status:
    """One status packet that passed its check."""

    id: int
    error: int
    data: bytes


class Client:
    """Requests in, status packets out; time moves on only when told to."""

    def __init__(
        self, model: str, role: str = "follower", now: int = 1_000_000_000, **options: object
    ) -> None:
        self.bus = SimBus(model, role, **options)  # type: ignore[arg-type]
        self.now = now
        self.bus.advance(self.now)

    def servo(self, joint_or_id: int | str):
        for servo, joint in zip(self.bus.servos, self.bus.joints, strict=True):
            if joint_or_id in (joint, servo.id):
                return servo
        raise KeyError(joint_or_id)

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)
        self.bus.advance(self.now)

    def raw(self, data: bytes, baud: int | None = None) -> bytes:
        return b"".join(part for _, part in self.bus.feed(data, self.now, baud))

    def ask(self, servo_id: int, instruction: int, data: bytes = b"") -> list[Status]:
        return self.parse(self.raw(self.packet(servo_id, instruction, data)))

    def ping(self, servo_id: int) -> list[Status]:
        return self.ask(servo_id, 1)

    def one(self, servo_id: int, instruction: int, data: bytes = b"") -> Status:
        (status,) = self.ask(servo_id, instruction, data)
        return status

    def at(self, name: str, servo_id: int) -> tuple[int, int]:
        item = self.servo(servo_id).item(name)
        return item.address, item.size

    def get(self, servo_id: int, name: str) -> int:
        status = self.read(servo_id, *self.at(name, servo_id))
        item = self.servo(servo_id).item(name)
        return item.decode(int.from_bytes(status.data, "little"))

    def put(self, servo_id: int, name: str, value: int) -> int:
        item = self.servo(servo_id).item(name)
        data = item.encode(value).to_bytes(item.size, "little")
        return self.write(servo_id, item.address, data).error

    def packet(self, servo_id: int, instruction: int, data: bytes = b"") -> bytes:
        raise NotImplementedError

    def parse(self, data: bytes) -> list[Status]:
        raise NotImplementedError

    def read(self, servo_id: int, address: int, size: int) -> Status:
        raise NotImplementedError

    def write(self, servo_id: int, address: int, data: bytes) -> Status:
        raise NotImplementedError


class Dynamixel(Client):
    """Protocol 2.0."""

    def packet(self, servo_id: int, instruction: int, data: bytes = b"") -> bytes:
        body = (bytes([instruction]) + data).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
        size = len(body) + 2
        whole = bytes([0xFF, 0xFF, 0xFD, 0, servo_id, size & 0xFF, size >> 8]) + body
        return whole + _CRC(0, whole, len(whole)).to_bytes(2, "little")

    def parse(self, data: bytes) -> list[Status]:
        found = []
        while data:
            assert data[:4] == b"\xff\xff\xfd\x00", data.hex(" ")
            size = 7 + (data[5] | data[6] << 8)
            packet, data = data[:size], data[size:]
            assert _CRC(0, packet[:-2], size - 2) == packet[-2] | packet[-1] << 8
            assert packet[7] == 0x55
            body = packet[8:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
            found.append(Status(packet[4], body[0], body[1:]))
        return found

    def read(self, servo_id: int, address: int, size: int) -> Status:
        return self.one(servo_id, 2, address.to_bytes(2, "little") + size.to_bytes(2, "little"))

    def write(self, servo_id: int, address: int, data: bytes) -> Status:
        return self.one(servo_id, 3, address.to_bytes(2, "little") + data)


class Feetech(Client):
    """The Feetech bus protocol."""

    def packet(self, servo_id: int, instruction: int, data: bytes = b"") -> bytes:
        body = bytes([servo_id, len(data) + 2, instruction]) + data
        return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])

    def parse(self, data: bytes) -> list[Status]:
        found = []
        while data:
            assert data[:2] == b"\xff\xff", data.hex(" ")
            size = 4 + data[3]
            packet, data = data[:size], data[size:]
            assert ~sum(packet[2:-1]) & 0xFF == packet[-1]
            found.append(Status(packet[2], packet[4], packet[5:-1]))
        return found

    def read(self, servo_id: int, address: int, size: int) -> Status:
        return self.one(servo_id, 2, bytes([address, size]))

    def write(self, servo_id: int, address: int, data: bytes) -> Status:
        return self.one(servo_id, 3, bytes([address]) + data)
