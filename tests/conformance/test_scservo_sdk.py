"""Feetech's SDK (feetech-servo-sdk) as a client of the simulated SO-101."""

import time
from collections.abc import Iterator

import pytest
import scservo_sdk as scs

from tests.conformance.served import ServedBus

IDS = (1, 2, 3, 4, 5, 6)
TORQUE, ACCELERATION, GOAL, LOCK, PRESENT, VOLTAGE = 40, 41, 42, 55, 56, 62
OK = scs.COMM_SUCCESS


class Sdk:
    """Port and packet handler on one bus."""

    def __init__(self, bus: ServedBus, baud: int = 1_000_000) -> None:
        self.port = scs.PortHandler(str(bus.path))
        # Without this the SDK waits for a moment that has passed: its time-out is in the past.
        self.port.setBaudRate(baud)
        self.packet = scs.PacketHandler(0)


@pytest.fixture(scope="module")
def bus() -> Iterator[ServedBus]:
    with ServedBus("so101") as served:
        yield served


@pytest.fixture
def sdk(bus: ServedBus) -> Iterator[Sdk]:
    client = Sdk(bus)
    yield client
    for servo_id in IDS:
        client.packet.write1ByteTxRx(client.port, servo_id, TORQUE, 0)
    client.port.closePort()


def test_ping_and_reads(sdk: Sdk) -> None:
    for servo_id in IDS:
        assert sdk.packet.ping(sdk.port, servo_id) == (777, OK, 0)
    assert sdk.packet.ping(sdk.port, 9)[1] == scs.COMM_RX_TIMEOUT
    assert sdk.packet.read1ByteTxRx(sdk.port, 1, VOLTAGE) == (120, OK, 0)


def test_nobody_answers_another_rate(bus: ServedBus) -> None:
    sdk = Sdk(bus, 115_200)
    assert sdk.packet.ping(sdk.port, 1)[1] == scs.COMM_RX_TIMEOUT
    sdk.port.setBaudRate(1_000_000)
    assert sdk.packet.ping(sdk.port, 1)[1] == OK
    sdk.port.closePort()


def test_every_write_is_acknowledged(sdk: Sdk) -> None:
    assert sdk.packet.write1ByteTxRx(sdk.port, 2, ACCELERATION, 60) == (OK, 0)
    assert sdk.packet.read1ByteTxRx(sdk.port, 2, ACCELERATION) == (60, OK, 0)
    assert sdk.packet.write2ByteTxRx(sdk.port, 2, 48, 700) == (OK, 0)
    assert sdk.packet.read2ByteTxRx(sdk.port, 2, 48) == (700, OK, 0)
    assert sdk.packet.write1ByteTxRx(sdk.port, 2, LOCK, 0) == (OK, 0)


def test_sync_read_and_sync_write_move_the_arm(sdk: Sdk) -> None:
    reader = scs.GroupSyncRead(sdk.port, sdk.packet, PRESENT, 2)
    for servo_id in IDS:
        assert reader.addParam(servo_id)
    assert reader.txRxPacket() == OK
    goals = {i: reader.getData(i, PRESENT, 2) + 50 for i in IDS}
    writer = scs.GroupSyncWrite(sdk.port, sdk.packet, GOAL, 2)
    for servo_id, goal in goals.items():
        assert writer.addParam(servo_id, list(goal.to_bytes(2, "little")))
    assert writer.txPacket() == OK
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert reader.txRxPacket() == OK
        if all(abs(reader.getData(i, PRESENT, 2) - goal) <= 1 for i, goal in goals.items()):
            break
    assert {i: reader.getData(i, PRESENT, 2) for i in IDS} == pytest.approx(goals, abs=1)


def test_reg_write_and_action(sdk: Sdk) -> None:
    assert sdk.packet.regWriteTxRx(sdk.port, 3, ACCELERATION, 1, [44]) == (OK, 0)
    assert sdk.packet.read1ByteTxRx(sdk.port, 3, ACCELERATION)[0] != 44
    assert sdk.packet.action(sdk.port, scs.BROADCAST_ID) == OK
    assert sdk.packet.read1ByteTxRx(sdk.port, 3, ACCELERATION) == (44, OK, 0)


def test_an_overload_shows_in_the_error_byte(sdk: Sdk, bus: ServedBus) -> None:
    bus.command("faults overload:id=4")
    end = time.monotonic() + 20
    while (error := sdk.packet.ping(sdk.port, 4)[2]) == 0:
        assert time.monotonic() < end
    assert "Overload" in sdk.packet.getRxPacketError(error)
    sdk.packet.write1ByteTxRx(sdk.port, 4, TORQUE, 1)  # torque off and on clears it
    assert sdk.packet.ping(sdk.port, 4)[2] == 0
