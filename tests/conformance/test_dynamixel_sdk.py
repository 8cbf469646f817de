"""ROBOTIS' dynamixel-sdk as a client of the simulated Koch arm."""

import time
from collections.abc import Iterator

import dynamixel_sdk as dxl
import pytest

from tests.conformance.served import ServedBus

IDS = (1, 2, 3, 4, 5, 6)
TORQUE, LED, PROFILE_VELOCITY, GOAL, PRESENT, VOLTAGE = 64, 65, 112, 116, 132, 144
OK = dxl.COMM_SUCCESS


class Sdk:
    """Port and packet handler on one bus."""

    def __init__(self, bus: ServedBus, baud: int = 1_000_000) -> None:
        self.port = dxl.PortHandler(str(bus.path))
        self.port.setBaudRate(baud)
        self.packet = dxl.PacketHandler(2.0)

    def present(self, servo_id: int) -> int:
        value, result, error = self.packet.read4ByteTxRx(self.port, servo_id, PRESENT)
        assert (result, error) == (OK, 0)
        return value


@pytest.fixture(scope="module")
def bus() -> Iterator[ServedBus]:
    with ServedBus("koch") as served:
        yield served


@pytest.fixture
def sdk(bus: ServedBus) -> Iterator[Sdk]:
    client = Sdk(bus)
    yield client
    for servo_id in IDS:
        client.packet.write1ByteTxRx(client.port, servo_id, TORQUE, 0)
    client.port.closePort()


def test_ping_one_and_all(sdk: Sdk) -> None:
    assert sdk.packet.ping(sdk.port, 1) == (1060, OK, 0)
    assert sdk.packet.ping(sdk.port, 6) == (1200, OK, 0)
    assert sdk.packet.ping(sdk.port, 7)[1] == dxl.COMM_RX_TIMEOUT
    found, result = sdk.packet.broadcastPing(sdk.port)
    assert result == OK
    assert found == {1: [1060, 46], 2: [1060, 46]} | {i: [1200, 48] for i in (3, 4, 5, 6)}


def test_nobody_answers_another_rate(bus: ServedBus) -> None:
    sdk = Sdk(bus, 57_600)
    assert sdk.packet.ping(sdk.port, 1)[1] == dxl.COMM_RX_TIMEOUT
    sdk.port.setBaudRate(1_000_000)
    assert sdk.packet.ping(sdk.port, 1)[1] == OK
    sdk.port.closePort()


def test_reads_and_writes_of_every_width(sdk: Sdk) -> None:
    assert sdk.packet.read2ByteTxRx(sdk.port, 1, VOLTAGE) == (120, OK, 0)
    assert sdk.packet.write1ByteTxRx(sdk.port, 2, LED, 1) == (OK, 0)
    assert sdk.packet.read1ByteTxRx(sdk.port, 2, LED) == (1, OK, 0)
    assert sdk.packet.write2ByteTxRx(sdk.port, 3, 84, 777) == (OK, 0)
    assert sdk.packet.write4ByteTxRx(sdk.port, 3, PROFILE_VELOCITY, 100) == (OK, 0)
    assert sdk.packet.read4ByteTxRx(sdk.port, 3, PROFILE_VELOCITY) == (100, OK, 0)
    assert sdk.packet.write4ByteTxRx(sdk.port, 3, PROFILE_VELOCITY, 0) == (OK, 0)


def test_errors_are_understood(sdk: Sdk) -> None:
    def said(answer: tuple[int, int]) -> str:
        assert answer[0] == OK
        return sdk.packet.getRxPacketError(answer[1])

    assert "exceeds the limit" in said(sdk.packet.write4ByteTxRx(sdk.port, 1, GOAL, 9999))
    assert "out of range" in said(sdk.packet.write1ByteTxRx(sdk.port, 1, TORQUE, 7))
    assert "not available" in said(sdk.packet.write4ByteTxRx(sdk.port, 1, PRESENT, 1))
    assert "length" in said(sdk.packet.write2ByteTxRx(sdk.port, 1, GOAL, 1))


def test_sync_read_and_sync_write_move_the_arm(sdk: Sdk) -> None:
    for servo_id in IDS:
        assert sdk.packet.write1ByteTxRx(sdk.port, servo_id, TORQUE, 1) == (OK, 0)
    reader = dxl.GroupSyncRead(sdk.port, sdk.packet, PRESENT, 4)
    for servo_id in IDS:
        assert reader.addParam(servo_id)
    assert reader.txRxPacket() == OK
    goals = {i: reader.getData(i, PRESENT, 4) + (60 if i != 6 else 20) for i in IDS}
    writer = dxl.GroupSyncWrite(sdk.port, sdk.packet, GOAL, 4)
    for servo_id, goal in goals.items():
        assert writer.addParam(servo_id, list(goal.to_bytes(4, "little")))
    assert writer.txPacket() == OK
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert reader.txRxPacket() == OK
        if all(abs(reader.getData(i, PRESENT, 4) - goal) <= 1 for i, goal in goals.items()):
            break
    assert {i: reader.getData(i, PRESENT, 4) for i in IDS} == pytest.approx(goals, abs=1)


def test_fast_sync_read_agrees_with_sync_read(sdk: Sdk) -> None:
    reader = dxl.GroupSyncRead(sdk.port, sdk.packet, PRESENT, 4)
    for servo_id in IDS:
        reader.addParam(servo_id)
    assert reader.fastSyncRead() == OK
    fast = [reader.getData(i, PRESENT, 4) for i in IDS]
    assert reader.txRxPacket() == OK
    assert [reader.getData(i, PRESENT, 4) for i in IDS] == fast


def test_bulk_read_and_bulk_write(sdk: Sdk) -> None:
    writer = dxl.GroupBulkWrite(sdk.port, sdk.packet)
    writer.addParam(1, LED, 1, [1])
    writer.addParam(4, PROFILE_VELOCITY, 4, [55, 0, 0, 0])
    assert writer.txPacket() == OK
    reader = dxl.GroupBulkRead(sdk.port, sdk.packet)
    reader.addParam(1, LED, 1)
    reader.addParam(4, PROFILE_VELOCITY, 4)
    assert reader.txRxPacket() == OK
    assert reader.getData(1, LED, 1) == 1
    assert reader.getData(4, PROFILE_VELOCITY, 4) == 55
    assert reader.fastBulkRead() == OK
    assert reader.getData(4, PROFILE_VELOCITY, 4) == 55
    assert sdk.packet.write4ByteTxRx(sdk.port, 4, PROFILE_VELOCITY, 0) == (OK, 0)


def test_reg_write_and_action(sdk: Sdk) -> None:
    assert sdk.packet.regWriteTxRx(sdk.port, 5, LED, 1, [1]) == (OK, 0)
    assert sdk.packet.read1ByteTxRx(sdk.port, 5, LED)[0] == 0
    assert sdk.packet.action(sdk.port, dxl.BROADCAST_ID) == OK
    assert sdk.packet.read1ByteTxRx(sdk.port, 5, LED)[0] == 1


def test_reboot_and_clear(sdk: Sdk) -> None:
    sdk.packet.write1ByteTxRx(sdk.port, 6, LED, 1)
    assert sdk.packet.reboot(sdk.port, 6) == (OK, 0)
    assert sdk.packet.ping(sdk.port, 6)[1] == dxl.COMM_RX_TIMEOUT
    end = time.monotonic() + 20
    while sdk.packet.ping(sdk.port, 6)[1] != OK:
        assert time.monotonic() < end
    assert sdk.packet.read1ByteTxRx(sdk.port, 6, LED) == (0, OK, 0)
    assert sdk.packet.clearMultiTurn(sdk.port, 6) == (OK, 0)


def test_a_new_servo_is_set_up_and_reset() -> None:
    with ServedBus("koch", factory=True) as new:
        new.command("only gripper")
        sdk = Sdk(new, 57_600)
        assert sdk.packet.ping(sdk.port, 1) == (1200, OK, 0)
        assert sdk.packet.write1ByteTxRx(sdk.port, 1, 7, 6) == (OK, 0)
        assert sdk.packet.write1ByteTxRx(sdk.port, 6, 8, 3) == (OK, 0)
        sdk.port.setBaudRate(1_000_000)
        assert sdk.packet.ping(sdk.port, 6) == (1200, OK, 0)
        assert sdk.packet.factoryReset(sdk.port, 6, 0x02) == (OK, 0)
        end = time.monotonic() + 20
        while sdk.packet.ping(sdk.port, 6)[1] != OK:
            assert time.monotonic() < end
        sdk.port.closePort()
