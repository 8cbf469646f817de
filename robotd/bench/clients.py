"""The clients that a tick is compared with: each reads six positions and writes six goals.

All are used as their makers intend: what can be prepared is prepared in `open`, a tick is one read
of all servos and one write to all. Libraries are imported when a client is made, so that one that
is not installed is skipped and none pays for another's imports.

No client touches torque. Goals are the positions read at the beginning; without `write` nothing is
written at all.
"""

from __future__ import annotations

import importlib.metadata
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robotd.bus import dynamixel, feetech
from robotd.bus.arm import Arm, JointReading
from robotd.bus.blocks import FULL, POSITION
from robotd.bus.calibration import Calibration
from robotd.bus.port import SerialPort
from robotd.bus.registers import GRIPPER, JOINTS
from robotd.bus.tty import open_tty
from robotd.errors import BusError

REPLY_NS = 100_000_000
_TIMEOUT_S = 0.1
_NEVER = 1 << 40  # ticks
# Address and size of Present_Position and Goal_Position.
_POSITION = {"koch": (132, 4), "so101": (56, 2)}
_GOAL = {"koch": (116, 4), "so101": (42, 2)}


@dataclass(frozen=True, slots=True)
class Setup:
    """The bus a client is to work on."""

    path: str
    arm: str  # "koch" or "so101"
    baud: int
    calibration: Path
    write: bool

    def ids(self) -> list[int]:
        """Servo ids in the order of the joints."""
        joints = Calibration.load(self.calibration, self.arm).joints
        return [joints[joint].id for joint in JOINTS]


class Client(Protocol):
    """One way to talk to the servos. Raises whatever its library raises when that fails."""

    def open(self, setup: Setup) -> None:
        """Open the port and prepare; may talk to the servos, but writes nothing that moves."""

    def tick(self) -> None:
        """Read six positions, then write six goals."""

    def close(self) -> None:
        """Give the port back. Torque stays as it is."""


class BytesOnly:
    """The floor: the bytes of a tick through the port, nothing checked, nothing decoded."""

    def open(self, setup: Setup) -> None:
        packets = dynamixel if setup.arm == "koch" else feetech
        address, size = _POSITION[setup.arm]
        ids = setup.ids()
        self._request = packets.sync_read(address, size, ids)
        self._size = (size + packets.OVERHEAD) * len(ids)
        self._fd = open_tty(setup.path, setup.baud)
        answer = self._read()
        each = len(answer) // len(ids)
        at = packets.OVERHEAD - 2 if setup.arm == "koch" else packets.OVERHEAD - 1
        place = slice(at, at + size)
        rows = {n: answer[i * each : (i + 1) * each][place] for i, n in enumerate(ids)}
        self._goals = packets.sync_write(*_GOAL[setup.arm], rows) if setup.write else b""

    def _read(self) -> bytes:
        os.write(self._fd, self._request)
        data = b""
        while len(data) < self._size:
            if not select.select((self._fd,), (), (), REPLY_NS / 1e9)[0]:
                raise BusError(f"{len(data)} of {self._size} bytes arrived")
            data += os.read(self._fd, self._size - len(data))
        return data

    def tick(self) -> None:
        self._read()
        if self._goals:
            os.write(self._fd, self._goals)

    def close(self) -> None:
        os.close(self._fd)


class RobotdArm:
    """robotd's own Arm, as `control` uses it, without the slow values that no peer reads.

    With "position" it reads what the others read; "full" holds velocity and load as well.
    """

    def __init__(self, detail: str) -> None:
        self._detail = detail

    def open(self, setup: Setup) -> None:
        calibration = Calibration.load(setup.calibration, setup.arm)
        port = SerialPort.open(setup.path, setup.baud)
        self._arm = Arm(
            "bench",
            setup.arm,
            "follower",
            port,
            calibration,
            detail=self._detail,
            slow_every=_NEVER,
        )
        try:
            self._arm.connect(check_calibration=False)
            self._goals = [reading.position for reading in self._read()]
        except BaseException:
            self._arm.close()
            raise
        self._write = setup.write

    def _read(self) -> list[JointReading]:
        self._arm.request()
        readings = self._arm.collect(time.monotonic_ns() + REPLY_NS)
        for reading in readings:
            if not reading.valid:
                raise BusError("a servo did not answer")
        return readings

    def tick(self) -> None:
        self._read()
        if self._write:
            self._arm.write(self._goals)

    def close(self) -> None:
        self._arm.close()


class LeRobot:
    """LeRobot's bus as KochFollower and SO101Follower use it: normalised sync_read, sync_write."""

    def __init__(self) -> None:
        from lerobot.motors import Motor, MotorCalibration, MotorNormMode
        from lerobot.motors.dynamixel import DynamixelMotorsBus
        from lerobot.motors.feetech import FeetechMotorsBus

        self._types: Any = (Motor, MotorCalibration, MotorNormMode)
        self._buses: dict[str, Any] = {"koch": DynamixelMotorsBus, "so101": FeetechMotorsBus}

    def open(self, setup: Setup) -> None:
        motor, calibration, mode = self._types
        table = Calibration.load(setup.calibration, setup.arm).joints
        kinds = ["xl430-w250"] * 2 + ["xl330-m288"] * 4 if setup.arm == "koch" else ["sts3215"] * 6
        motors = {
            joint: motor(
                table[joint].id,
                kind,
                mode.RANGE_0_100 if joint == GRIPPER else mode.RANGE_M100_100,
            )
            for joint, kind in zip(JOINTS, kinds, strict=True)
        }
        rows = {
            joint: calibration(
                row.id, row.drive_mode, row.homing_offset, row.range_min, row.range_max
            )
            for joint, row in table.items()
        }
        self._bus = self._buses[setup.arm](setup.path, motors, rows)
        self._bus.connect()
        self._goals = self._bus.sync_read("Present_Position")
        self._write = setup.write

    def tick(self) -> None:
        self._bus.sync_read("Present_Position")
        if self._write:
            self._bus.sync_write("Goal_Position", self._goals)

    def close(self) -> None:
        self._bus.disconnect(disable_torque=False)


class VendorSdk:
    """dynamixel_sdk or scservo_sdk: GroupSyncRead and GroupSyncWrite, raw counts."""

    def __init__(self, module: str) -> None:
        self._sdk: Any = importlib.import_module(module)

    def open(self, setup: Setup) -> None:
        sdk = self._sdk
        self._port = sdk.PortHandler(setup.path)
        if not (self._port.openPort() and self._port.setBaudRate(setup.baud)):
            raise BusError(f"{setup.path}: {sdk.__name__} cannot open it")
        packets = sdk.PacketHandler(2.0 if setup.arm == "koch" else 0)
        self._ids = setup.ids()
        self._place = _POSITION[setup.arm]
        self._reader = sdk.GroupSyncRead(self._port, packets, *self._place)
        self._writer = sdk.GroupSyncWrite(self._port, packets, *_GOAL[setup.arm])
        for servo_id in self._ids:
            self._reader.addParam(servo_id)
        self._write = setup.write
        self._goals = self._read()
        for servo_id, goal in zip(self._ids, self._goals, strict=True):
            self._writer.addParam(servo_id, self._bytes(goal))

    def _bytes(self, goal: int) -> list[int]:
        return list(goal.to_bytes(self._place[1], "little"))

    def _read(self) -> list[int]:
        result = self._reader.txRxPacket()
        if result != self._sdk.COMM_SUCCESS:
            raise BusError(f"{self._sdk.__name__}: communication result {result}")
        return [self._reader.getData(servo_id, *self._place) for servo_id in self._ids]

    def tick(self) -> None:
        self._read()
        if self._write:
            for servo_id, goal in zip(self._ids, self._goals, strict=True):
                self._writer.changeParam(servo_id, self._bytes(goal))
            self._writer.txPacket()

    def close(self) -> None:
        self._port.closePort()


class Rustypot:
    """rustypot's Python controllers: sync_read and sync_write in radians."""

    def __init__(self) -> None:
        self._module: Any = importlib.import_module("rustypot")

    def open(self, setup: Setup) -> None:
        kind = "Xl430PyController" if setup.arm == "koch" else "Sts3215PyController"
        self._bus = getattr(self._module, kind)(setup.path, setup.baud, _TIMEOUT_S)
        self._ids = setup.ids()
        self._goals: Sequence[float] = self._bus.sync_read_present_position(self._ids)
        self._write = setup.write

    def tick(self) -> None:
        self._bus.sync_read_present_position(self._ids)
        if self._write:
            self._bus.sync_write_goal_position(self._ids, self._goals)

    def close(self) -> None:
        del self._bus


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """One row of the comparison. `make` is called in the client's own process."""

    name: str
    distribution: str  # whose version is shown; empty: part of robotd
    arms: tuple[str, ...]
    make: Callable[[], Client]

    @property
    def version(self) -> str:
        """Installed version of the library, empty for our own."""
        try:
            return importlib.metadata.version(self.distribution) if self.distribution else ""
        except importlib.metadata.PackageNotFoundError:
            return ""


BOTH = ("koch", "so101")
CLIENTS = (
    ClientSpec("robotd", "", BOTH, lambda: RobotdArm(POSITION)),
    ClientSpec("robotd, full", "", BOTH, lambda: RobotdArm(FULL)),
    ClientSpec("lerobot", "lerobot", BOTH, LeRobot),
    ClientSpec("dynamixel_sdk", "dynamixel-sdk", ("koch",), lambda: VendorSdk("dynamixel_sdk")),
    ClientSpec("scservo_sdk", "feetech-servo-sdk", ("so101",), lambda: VendorSdk("scservo_sdk")),
    ClientSpec("rustypot", "rustypot", BOTH, Rustypot),
    ClientSpec("bytes only", "", BOTH, BytesOnly),
)
