"""Protocol 2.0 as the emulated chain speaks it, packet by packet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.sim.dynamixel_server import crc16
from tests.sim.clients import _CRC, BROADCAST, MS, Dynamixel

PING, READ, WRITE, REG_WRITE, ACTION, FACTORY_RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 16
SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE, FAST_BULK_READ = 0x92, 0x93, 0x9A
INSTRUCTION_ERROR, CRC_ERROR, LENGTH_ERROR, ACCESS_ERROR = 2, 3, 5, 7
INDIRECT_DATA = 224  # XL430
IDS = bytes(range(1, 7))


@pytest.fixture
def koch() -> Dynamixel:
    return Dynamixel("koch")


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


@given(st.binary(max_size=80))
def test_crc_is_the_makers(data: bytes) -> None:
    assert crc16(data) == _CRC(0, data, len(data))


def test_bytes_are_those_of_the_manual(koch: Dynamixel) -> None:
    # e-Manual, Protocol 2.0: ping of id 1, status packet of a write by id 1.
    assert koch.packet(1, PING).hex(" ") == "ff ff fd 00 01 03 00 01 19 4e"
    write = koch.packet(1, WRITE, words(64) + b"\x00")
    assert koch.raw(write).hex(" ") == "ff ff fd 00 01 04 00 55 00 a1 0c"


def test_ping_tells_model_and_firmware(koch: Dynamixel) -> None:
    assert koch.one(1, PING).data == words(1060) + bytes([46])
    assert koch.one(3, PING).data == words(1200) + bytes([48])
    assert Dynamixel("koch", "leader").one(1, PING).data[:2] == words(1190)
    assert koch.ping(9) == []


def test_broadcast_ping_is_answered_in_the_order_of_ids(koch: Dynamixel) -> None:
    assert [status.id for status in koch.ping(BROADCAST)] == [1, 2, 3, 4, 5, 6]
    koch.put(1, "ID", 40)
    assert [status.id for status in koch.ping(BROADCAST)] == [2, 3, 4, 5, 6, 40]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=8), st.binary(max_size=12))
def test_requests_survive_any_cutting_and_noise_before_them(cuts: list[int], noise: bytes) -> None:
    koch = Dynamixel("koch")
    noise = noise.replace(b"\xff\xff\xfd\x00", b"")
    stream = noise + koch.packet(2, PING) + koch.packet(3, READ, words(132, 4))
    got, at = b"", 0
    for size in [*cuts, len(stream)]:
        got += koch.raw(stream[at : at + size])
        at += size
    assert [status.id for status in koch.parse(got)] == [2, 3]


def test_a_header_repeated_before_a_packet_is_no_obstacle(koch: Dynamixel) -> None:
    packet = koch.packet(2, PING)
    assert [s.id for s in koch.parse(koch.raw(b"\xff\xff\xff" + packet))] == [2]
    assert [s.id for s in koch.parse(koch.raw(b"\xff\xff\xfd\xfd\xff" + packet))] == [2]


def test_a_packet_cut_off_is_forgotten_after_a_silence(koch: Dynamixel) -> None:
    assert koch.raw(koch.packet(1, READ, words(132, 4))[:9]) == b""
    koch.now += 60 * MS
    assert koch.one(1, PING).id == 1


def test_wrong_crc_is_reported_and_the_next_packet_understood(koch: Dynamixel) -> None:
    bad = bytearray(koch.packet(4, WRITE, words(65) + b"\x01"))
    bad[-1] ^= 0xFF
    assert [(s.id, s.error) for s in koch.parse(koch.raw(bytes(bad)))] == [(4, CRC_ERROR)]
    assert koch.get(4, "LED") == 0
    assert koch.one(4, PING).error == 0


def test_a_wrong_crc_in_a_broadcast_is_dropped(koch: Dynamixel) -> None:
    bad = bytearray(koch.packet(BROADCAST, SYNC_READ, words(132, 4) + IDS))
    bad[-1] ^= 0x01
    assert koch.raw(bytes(bad)) == b""


def test_bytes_like_a_header_are_stuffed_both_ways(koch: Dynamixel) -> None:
    tricky = b"\xff\xff\xfd\xff\xff\xfd"
    request = koch.packet(1, WRITE, words(INDIRECT_DATA) + tricky)
    assert b"\xff\xff\xfd\xfd" in request
    assert koch.parse(koch.raw(request))[0].error == 0
    reply = koch.raw(koch.packet(1, READ, words(INDIRECT_DATA, 6)))
    assert reply.count(b"\xff\xff\xfd\xfd") == 2
    assert koch.parse(reply)[0].data == tricky


@pytest.mark.parametrize("instruction", [0x07, 0x20, 0x7F, CLEAR])
def test_an_unknown_instruction_is_an_instruction_error(koch: Dynamixel, instruction: int) -> None:
    assert koch.one(1, instruction).error == INSTRUCTION_ERROR


@pytest.mark.parametrize("instruction", [READ, WRITE, REG_WRITE])
def test_too_few_parameters_are_a_length_error(koch: Dynamixel, instruction: int) -> None:
    assert koch.one(1, instruction, b"\x40").error == LENGTH_ERROR
    assert koch.ask(BROADCAST, SYNC_READ, b"\x40") == []


def test_sync_read_answers_in_the_order_asked(koch: Dynamixel) -> None:
    replies = koch.ask(BROADCAST, SYNC_READ, words(7, 1) + bytes([5, 1, 3]))
    assert [(status.id, status.data) for status in replies] == [(5, b"\5"), (1, b"\1"), (3, b"\3")]


@pytest.mark.parametrize("gone", ["absent", "deaf", "silent"])
def test_after_a_servo_that_does_not_answer_a_sync_read_ends(koch: Dynamixel, gone: str) -> None:
    if gone == "deaf":
        koch.servo(3).deaf = True
    elif gone == "silent":
        koch.put(3, "Status_Return_Level", 0)
    else:
        koch.servo(3).connected = False
    replies = koch.ask(BROADCAST, SYNC_READ, words(132, 4) + IDS)
    assert [status.id for status in replies] == [1, 2]


def fast_blocks(packet: bytes, sizes: list[int]) -> list[tuple[int, int, bytes]]:
    """Error, id and data of each servo in one fast status packet, with every CRC checked."""
    assert packet[:5] == b"\xff\xff\xfd\x00\xfe"
    assert packet[7] == 0x55
    assert packet[5] | packet[6] << 8 == 1 + sum(size + 4 for size in sizes)
    at, found = 8, []
    for size in sizes:
        error, servo_id, data = packet[at], packet[at + 1], packet[at + 2 : at + 2 + size]
        at += size + 2
        assert _CRC(0, packet[:at], at) == packet[at] | packet[at + 1] << 8
        at += 2
        found.append((error, servo_id, data))
    assert at == len(packet)
    return found


def test_fast_sync_read_is_one_packet_for_all(koch: Dynamixel) -> None:
    packet = koch.raw(koch.packet(BROADCAST, FAST_SYNC_READ, words(7, 1) + IDS))
    assert fast_blocks(packet, [1] * 6) == [(0, i, bytes([i])) for i in IDS]
    assert len(koch.raw(koch.packet(BROADCAST, FAST_SYNC_READ, words(132, 4) + IDS))) == 56


def test_fast_sync_read_breaks_off_at_a_silent_servo(koch: Dynamixel) -> None:
    whole = koch.raw(koch.packet(BROADCAST, FAST_SYNC_READ, words(132, 4) + IDS))
    koch.servo(4).deaf = True
    assert koch.raw(koch.packet(BROADCAST, FAST_SYNC_READ, words(132, 4) + IDS)) == whole[:32]
    koch.servo(1).deaf = True
    assert koch.raw(koch.packet(BROADCAST, FAST_SYNC_READ, words(132, 4) + IDS)) == b""


def test_bulk_reads_take_different_registers(koch: Dynamixel) -> None:
    wanted = b"\x01" + words(144, 2) + b"\x02" + words(146, 1)
    replies = koch.ask(BROADCAST, BULK_READ, wanted)
    assert [(status.id, status.data) for status in replies] == [(1, words(120)), (2, b"\x19")]
    packet = koch.raw(koch.packet(BROADCAST, FAST_BULK_READ, wanted))
    assert fast_blocks(packet, [2, 1]) == [(0, 1, words(120)), (0, 2, b"\x19")]


def test_sync_and_bulk_writes_reach_their_servos_without_an_answer(koch: Dynamixel) -> None:
    data = words(65, 1) + b"\x02\x01\x05\x01"
    assert koch.ask(BROADCAST, SYNC_WRITE, data) == []
    assert [koch.get(i, "LED") for i in IDS] == [0, 1, 0, 0, 1, 0]
    data = b"\x01" + words(65, 1) + b"\x01" + b"\x02" + words(78, 2) + words(77)
    assert koch.ask(BROADCAST, BULK_WRITE, data) == []
    assert koch.get(1, "LED") == 1
    assert koch.get(2, "Velocity_P_Gain") == 77


def test_broadcast_write_reaches_all_and_is_not_answered(koch: Dynamixel) -> None:
    assert koch.ask(BROADCAST, WRITE, words(65) + b"\x01") == []
    assert [koch.get(i, "LED") for i in IDS] == [1] * 6


def test_reg_write_waits_for_action(koch: Dynamixel) -> None:
    assert koch.one(2, REG_WRITE, words(65) + b"\x01").error == 0
    assert koch.get(2, "Registered_Instruction") == 1
    assert koch.get(2, "LED") == 0
    assert koch.ask(BROADCAST, ACTION) == []
    assert koch.get(2, "LED") == 1
    assert koch.get(2, "Registered_Instruction") == 0
    assert koch.one(2, ACTION).error == INSTRUCTION_ERROR


def test_status_return_level_decides_who_answers(koch: Dynamixel) -> None:
    address, _ = koch.at("Status_Return_Level", 1)
    assert len(koch.ask(1, WRITE, words(address) + b"\x01")) == 1  # still by the old level
    assert koch.ask(1, WRITE, words(65) + b"\x01") == []
    assert koch.get(1, "LED") == 1
    koch.ask(1, WRITE, words(address) + b"\x00")
    assert koch.ask(1, READ, words(65, 1)) == []
    assert len(koch.ping(1)) == 1


def test_a_new_id_counts_from_the_next_request(koch: Dynamixel) -> None:
    reply = koch.one(3, WRITE, words(7) + b"\x21")
    assert (reply.id, reply.error) == (3, 0)
    assert koch.ping(3) == []
    assert koch.one(0x21, PING).id == 0x21


def test_servos_under_one_id_destroy_each_others_answers(koch: Dynamixel) -> None:
    koch.put(2, "ID", 1)
    reply = koch.raw(koch.packet(1, PING))
    assert reply
    with pytest.raises(AssertionError):
        koch.parse(reply)
    koch.raw(koch.packet(1, WRITE, words(65) + b"\x01"))  # both obey
    assert [koch.bus.servos[n].get("LED") for n in (0, 1)] == [1, 1]


def test_a_shadow_obeys_and_keeps_silent(koch: Dynamixel) -> None:
    koch.put(2, "Secondary_ID", 5)
    assert [status.id for status in koch.ask(5, WRITE, words(65) + b"\x01")] == [5]
    assert koch.get(2, "LED") == 1


def test_reboot_answers_then_is_silent_and_forgets_ram(koch: Dynamixel) -> None:
    koch.put(3, "LED", 1)
    koch.put(3, "Torque_Enable", 1)
    assert koch.one(3, REBOOT).error == 0
    assert koch.ping(3) == []
    koch.wait(0.25)
    assert koch.ping(3) == []
    koch.wait(0.1)
    assert koch.get(3, "LED") == 0
    assert koch.get(3, "Torque_Enable") == 0
    assert koch.get(3, "Homing_Offset") == 545


@pytest.mark.parametrize(
    ("option", "servo_id", "rate"), [(0xFF, 1, 57_600), (0x01, 4, 57_600), (0x02, 4, 1_000_000)]
)
def test_factory_reset_keeps_what_its_option_says(option: int, servo_id: int, rate: int) -> None:
    koch = Dynamixel("koch")
    servo = koch.servo(4)
    assert koch.one(4, FACTORY_RESET, bytes([option])).error == 0
    assert (servo.id, servo.baud) == (servo_id, rate)
    koch.wait(0.4)
    assert servo.get("Homing_Offset") == 0
    assert servo.get("Max_Position_Limit") == 4095


def test_nobody_resets_everything_by_broadcast(koch: Dynamixel) -> None:
    koch.ask(BROADCAST, FACTORY_RESET, b"\xff")
    assert [status.id for status in koch.ping(BROADCAST)] == [1, 2, 3, 4, 5, 6]


def test_clear_brings_the_reading_back_into_one_turn(koch: Dynamixel) -> None:
    magic = bytes((0x01, 0x44, 0x58, 0x4C, 0x22))
    koch.put(5, "Operating_Mode", 4)
    koch.put(5, "Homing_Offset", 0)
    koch.bus.mechanism.position[4] += 1.0
    koch.servo(5)._turns += 3 * 4096
    koch.servo(5)._origin()
    assert koch.get(5, "Present_Position") > 3 * 4096
    assert koch.one(5, CLEAR, magic).error == 0
    assert 0 <= koch.get(5, "Present_Position") < 4096
    assert koch.one(5, CLEAR, b"\x01\x44\x58\x4c\x23").error == INSTRUCTION_ERROR


def test_only_servos_at_the_senders_rate_hear(koch: Dynamixel) -> None:
    assert koch.raw(koch.packet(BROADCAST, PING), baud=57_600) == b""
    assert len(koch.parse(koch.raw(koch.packet(BROADCAST, PING), baud=1_000_000))) == 6
    koch.put(2, "Baud_Rate", 1)
    assert len(koch.parse(koch.raw(koch.packet(2, PING), baud=57_600))) == 1
    assert koch.raw(koch.packet(2, PING), baud=1_000_000) == b""
    assert len(koch.parse(koch.raw(koch.packet(BROADCAST, PING), baud=1_000_000))) == 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_no_bytes_upset_the_chain(parts: list[bytes]) -> None:
    koch = Dynamixel("koch")
    for part in parts:
        koch.raw(part)
        koch.raw(koch.packet(1 + len(part) % 6, len(part), part))
    koch.wait(0.4)
    koch.now += 60 * MS
    assert all(servo.table for servo in koch.bus.servos)
    koch.raw(koch.packet(BROADCAST, PING))
