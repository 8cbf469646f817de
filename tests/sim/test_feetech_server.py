"""The Feetech bus protocol as the emulated chain speaks it, packet by packet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.clients import BROADCAST, MS, Feetech

PING, READ, WRITE, REG_WRITE, ACTION, RECOVERY, REBOOT, RESET = 1, 2, 3, 4, 5, 6, 8, 10
SYNC_READ, SYNC_WRITE = 0x82, 0x83
ID, LEVEL, PRESENT, TORQUE = 5, 8, 56, 40
IDS = bytes(range(1, 7))


@pytest.fixture
def so101() -> Feetech:
    return Feetech("so101")


def test_bytes_are_those_of_the_makers_manual(so101: Feetech) -> None:
    # Feetech, communication protocol: ping of id 1 and its answer.
    assert so101.packet(1, PING).hex(" ") == "ff ff 01 02 01 fb"
    assert so101.raw(so101.packet(1, PING)).hex(" ") == "ff ff 01 02 00 fc"


def test_model_number_and_firmware_can_be_read(so101: Feetech) -> None:
    for servo_id in IDS:
        assert so101.get(servo_id, "Model_Number") == 777
        assert so101.read(servo_id, 0, 2).data == so101.read(1, 0, 2).data


def test_broadcast_ping_is_answered_in_the_order_of_ids(so101: Feetech) -> None:
    assert [status.id for status in so101.ping(BROADCAST)] == [1, 2, 3, 4, 5, 6]
    so101.put(2, "ID", 60)
    assert [status.id for status in so101.ping(BROADCAST)] == [1, 3, 4, 5, 6, 60]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=8), st.binary(max_size=8))
def test_requests_survive_any_cutting_and_noise_before_them(cuts: list[int], noise: bytes) -> None:
    so101 = Feetech("so101")
    noise = noise.replace(b"\xff", b"\x00")
    stream = noise + so101.packet(2, PING) + so101.packet(3, READ, bytes([PRESENT, 2]))
    got, at = b"", 0
    for size in [*cuts, len(stream)]:
        got += so101.raw(stream[at : at + size])
        at += size
    assert [status.id for status in so101.parse(got)] == [2, 3]


def test_extra_header_bytes_are_no_obstacle(so101: Feetech) -> None:
    assert [s.id for s in so101.parse(so101.raw(b"\xff\xff\xff" + so101.packet(2, PING)))] == [2]


def test_wrong_checksum_is_not_answered_and_the_next_packet_understood(so101: Feetech) -> None:
    bad = bytearray(so101.packet(4, WRITE, bytes([41, 50])))
    bad[-1] ^= 0xFF
    good = so101.packet(4, PING)
    assert [s.id for s in so101.parse(so101.raw(bytes(bad) + good))] == [4]
    assert so101.get(4, "Acceleration") == 0


def test_a_packet_cut_off_is_forgotten_after_a_silence(so101: Feetech) -> None:
    assert so101.raw(so101.packet(1, WRITE, bytes([41, 50]))[:5]) == b""
    so101.now += 60 * MS
    assert len(so101.ping(1)) == 1


def test_every_write_to_one_servo_is_acknowledged(so101: Feetech) -> None:
    for address, data in ((41, b"\x32"), (PRESENT, b"\0\0"), (200, b"\1"), (ID, b"\x01")):
        status = so101.one(1, WRITE, bytes([address]) + data)
        assert (status.id, status.error, status.data) == (1, 0, b"")
    assert so101.get(1, "Acceleration") == 50


def test_at_status_level_0_only_ping_and_read_are_answered(so101: Feetech) -> None:
    so101.one(1, WRITE, bytes([LEVEL, 0]))
    assert so101.ask(1, WRITE, bytes([41, 10])) == []
    assert so101.get(1, "Acceleration") == 10
    assert len(so101.ping(1)) == 1


def test_sync_read_answers_in_the_order_asked_and_skips_the_silent(so101: Feetech) -> None:
    request = bytes([ID, 1, 5, 1, 3])
    replies = so101.ask(BROADCAST, SYNC_READ, request)
    assert [(status.id, status.data) for status in replies] == [(5, b"\5"), (1, b"\1"), (3, b"\3")]
    so101.servo(1).deaf = True
    assert [s.id for s in so101.ask(BROADCAST, SYNC_READ, request)] == [5, 3]


def test_sync_write_reaches_its_servos_without_an_answer(so101: Feetech) -> None:
    assert so101.ask(BROADCAST, SYNC_WRITE, bytes([41, 1, 2, 20, 5, 30])) == []
    assert [so101.get(i, "Acceleration") for i in IDS] == [0, 20, 0, 0, 30, 0]


def test_broadcast_write_reaches_all_and_is_not_answered(so101: Feetech) -> None:
    assert so101.ask(BROADCAST, WRITE, bytes([41, 9])) == []
    assert [so101.get(i, "Acceleration") for i in IDS] == [9] * 6


def test_reg_write_waits_for_action(so101: Feetech) -> None:
    assert so101.one(3, REG_WRITE, bytes([41, 7])).error == 0
    assert so101.get(3, "Acceleration") == 0
    assert so101.get(3, "Async_Write_Flag") == 1
    assert so101.ask(BROADCAST, ACTION) == []
    assert so101.get(3, "Acceleration") == 7
    assert so101.get(3, "Async_Write_Flag") == 0


def test_a_new_id_counts_from_the_next_request(so101: Feetech) -> None:
    assert so101.one(3, WRITE, bytes([ID, 33])).id == 3
    assert so101.ping(3) == []
    assert len(so101.ping(33)) == 1


def test_servos_under_one_id_destroy_each_others_answers(so101: Feetech) -> None:
    so101.put(2, "ID", 1)
    reply = so101.raw(so101.packet(1, PING))
    assert reply
    with pytest.raises(AssertionError):
        so101.parse(reply)


def test_recovery_gives_the_makers_values_and_keeps_the_id(so101: Feetech) -> None:
    assert so101.one(4, RECOVERY).error == 0
    so101.wait(0.9)
    assert so101.get(4, "Homing_Offset") == 0
    assert so101.get(4, "Max_Position_Limit") == 4095


def test_reboot_is_not_answered_and_takes_its_time(so101: Feetech) -> None:
    so101.put(4, "Acceleration", 50)
    assert so101.ask(4, REBOOT) == []
    so101.wait(0.7)
    assert so101.ping(4) == []
    so101.wait(0.2)
    assert so101.get(4, "Acceleration") == 0


def test_only_servos_at_the_senders_rate_hear(so101: Feetech) -> None:
    ping = so101.packet(BROADCAST, PING)
    assert so101.raw(ping, baud=115_200) == b""
    assert len(so101.parse(so101.raw(ping, baud=1_000_000))) == 6
    so101.put(2, "Baud_Rate", 4)
    assert [s.id for s in so101.parse(so101.raw(ping, baud=115_200))] == [2]
    assert len(so101.parse(so101.raw(ping, baud=1_000_000))) == 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_no_bytes_upset_the_chain(parts: list[bytes]) -> None:
    so101 = Feetech("so101")
    for part in parts:
        so101.raw(part)
        so101.raw(so101.packet(1 + len(part) % 6, len(part), part))
    so101.wait(1.0)
    so101.raw(so101.packet(BROADCAST, PING))
