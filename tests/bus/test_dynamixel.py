"""Dynamixel Protocol 2.0 packets against the e-Manual's examples, the vendor's SDK, and noise."""

from itertools import pairwise

import dynamixel_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robotd.bus import dynamixel
from robotd.bus.status import ServoStatus, Status


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


# From the e-Manual, "Protocol 2.0", the examples under each instruction.
EXAMPLES = [
    (dynamixel.ping(1), "FF FF FD 00 01 03 00 01 19 4E"),
    (dynamixel.ping(), "FF FF FD 00 FE 03 00 01 31 42"),
    (dynamixel.read(1, 132, 4), "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
    (
        dynamixel.write(1, 116, (512).to_bytes(4, "little")),
        "FF FF FD 00 01 09 00 03 74 00 00 02 00 00 CA 89",
    ),
    (dynamixel.reboot(1), "FF FF FD 00 01 03 00 08 2F 4E"),
    (dynamixel.factory_reset(1, dynamixel.RESET_EXCEPT_ID), "FF FF FD 00 01 04 00 06 01 A1 E6"),
    (
        dynamixel.sync_read(132, 4, (1, 2)),
        "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA",
    ),
    (
        dynamixel.sync_write(
            116, 4, {1: (150).to_bytes(4, "little"), 2: (170).to_bytes(4, "little")}
        ),
        "FF FF FD 00 FE 11 00 83 74 00 04 00 01 96 00 00 00 02 AA 00 00 00 82 87",
    ),
]


@pytest.mark.parametrize(("built", "documented"), EXAMPLES)
def test_packets_are_those_of_the_manual(built: bytes, documented: str) -> None:
    assert built == hexed(documented)


def test_status_packets_of_the_manual() -> None:
    parser = dynamixel.StatusParser()
    ping = hexed("FF FF FD 00 01 07 00 55 00 06 04 26 65 5D")
    position = hexed("FF FF FD 00 01 08 00 55 00 A6 00 00 00 8C C0")
    assert parser.feed(ping + position) == [
        Status(1, 0, (1030).to_bytes(2, "little") + b"\x26"),
        Status(1, 0, (166).to_bytes(4, "little")),
    ]
    assert (parser.skipped, parser.bad, parser.foreign) == (0, 0, 0)


class SdkPort:
    """Enough of a port for the SDK to send into."""

    is_using = False

    def clearPort(self) -> None:  # noqa: N802 (the SDK's name)
        self.sent = b""

    def writePort(self, packet: list[int]) -> int:  # noqa: N802
        self.sent = bytes(packet)
        return len(packet)

    def setPacketTimeout(self, length: int) -> None:  # noqa: N802
        self.is_using = False


def sdk_sends(call: str, *args: object) -> bytes:
    port = SdkPort()
    getattr(dynamixel_sdk.PacketHandler(2.0), call)(port, *args)
    return port.sent


ids = st.integers(0, 252)
addresses = st.integers(0, 600)
# The SDK means to stuff what it sends but drops the result; FD is left out where it is compared.
plain = st.binary(min_size=1, max_size=8).filter(lambda data: b"\xfd" not in data)


@given(ids, addresses, st.integers(1, 100))
def test_read_is_the_sdks(servo_id: int, address: int, size: int) -> None:
    assert dynamixel.read(servo_id, address, size) == sdk_sends("readTx", servo_id, address, size)


@given(ids, addresses, plain)
def test_writes_are_the_sdks(servo_id: int, address: int, data: bytes) -> None:
    args = (servo_id, address, len(data), list(data))
    assert dynamixel.write(servo_id, address, data) == sdk_sends("writeTxOnly", *args)
    assert dynamixel.reg_write(servo_id, address, data) == sdk_sends("regWriteTxOnly", *args)


@given(addresses, st.integers(1, 20), st.lists(ids, min_size=1, max_size=8, unique=True))
def test_group_reads_are_the_sdks(address: int, size: int, chain: list[int]) -> None:
    args = (address, size, chain, len(chain))
    assert dynamixel.sync_read(address, size, chain) == sdk_sends("syncReadTx", *args, False)
    assert dynamixel.fast_sync_read(address, size, chain) == sdk_sends("syncReadTx", *args, True)
    rows = [v for i in chain for v in (i, address & 0xFF, address >> 8, size, 0)]
    assert dynamixel.bulk_read([(i, address, size) for i in chain]) == sdk_sends(
        "bulkReadTx", rows, len(rows), False
    )


@given(addresses, plain, st.lists(ids.filter(lambda i: i < 250), min_size=1, unique=True))
def test_group_writes_are_the_sdks(address: int, data: bytes, chain: list[int]) -> None:
    rows = [v for i in chain for v in (i, *data)]
    assert dynamixel.sync_write(address, len(data), dict.fromkeys(chain, data)) == sdk_sends(
        "syncWriteTxOnly", address, len(data), rows, len(rows)
    )
    rows = [v for i in chain for v in (i, address & 0xFF, address >> 8, len(data), 0, *data)]
    assert dynamixel.bulk_write([(i, address, data) for i in chain]) == sdk_sends(
        "bulkWriteTxOnly", rows, len(rows)
    )


def test_crc_is_the_sdks_and_linear() -> None:
    message = bytes(range(256)) * 2
    handler = dynamixel_sdk.PacketHandler(2.0)
    assert dynamixel.crc16(message) == handler.updateCRC(0, list(message), len(message))
    for size in (0, 1, 2, 17, 90):
        shares = 0
        for table, byte in zip(dynamixel.crc_tables(size), message[:size], strict=True):
            shares ^= table[byte]
        assert shares == dynamixel.crc16(message[:size])


HEADERISH = st.lists(
    st.sampled_from([b"\xff", b"\xfd", b"\x00", b"\x55", b"\xff\xff\xfd", b"\xff\xff\xfd\x00"]),
    max_size=12,
).map(b"".join)


@given(st.one_of(st.binary(max_size=40), HEADERISH))
def test_stuffing_hides_headers_and_comes_off_again(data: bytes) -> None:
    stuffed = dynamixel.stuff(data)
    assert dynamixel.HEADER not in stuffed
    assert dynamixel.unstuff(stuffed) == data


@given(ids, st.one_of(st.binary(max_size=40), HEADERISH))
def test_sent_packets_hold_one_header(servo_id: int, data: bytes) -> None:
    packet = dynamixel.write(servo_id, 64, data)
    assert packet.count(dynamixel.HEADER) == 1
    assert int.from_bytes(packet[5:7], "little") == len(packet) - 7
    plain, seen = bytearray(), b""
    for byte in packet[8:-2]:  # the SDK's own way back goes wrong on FF FF FD FF FD FD
        if not (byte == 0xFD and seen.endswith(b"\xff\xff\xfd")):
            plain.append(byte)
            seen += bytes((byte,))
        else:
            seen = b""
    assert plain[2:] == data


def status(servo_id: int, error: int, params: bytes) -> bytes:
    """What a servo sends, built here independently of the module's own packet function."""
    body = (b"\x55" + bytes((error,)) + params).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    packet = b"\xff\xff\xfd\x00" + bytes((servo_id, (len(body) + 2) & 0xFF, (len(body) + 2) >> 8))
    packet += body
    crc = dynamixel_sdk.PacketHandler(2.0).updateCRC(0, list(packet), len(packet))
    return packet + crc.to_bytes(2, "little")


answers = st.builds(Status, ids, st.integers(0, 255), st.one_of(st.binary(max_size=24), HEADERISH))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


@given(st.lists(answers, max_size=6), st.lists(st.integers(0, 300), max_size=20))
def test_any_cutting_of_a_clean_stream_gives_all_packets(
    sent: list[Status], places: list[int]
) -> None:
    parser = dynamixel.StatusParser()
    stream = b"".join(status(*one) for one in sent)
    found = [one for piece in cut(stream, places) for one in parser.feed(piece)]
    assert found == sent
    assert (parser.skipped, parser.bad, parser.needed) == (0, 0, 0)


@given(
    st.lists(st.one_of(answers, st.binary(max_size=30), HEADERISH), max_size=8),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_garbage_never_raises_and_good_packets_survive_it(
    parts: list[Status | bytes], places: list[int]
) -> None:
    """Whatever lies between them, packets come out whole and in order, and nothing else does."""
    parser = dynamixel.StatusParser(longest=60)
    stream = b"".join(part if isinstance(part, bytes) else status(*part) for part in parts)
    found = [one for piece in cut(stream, places) for one in parser.feed(piece)]
    found += parser.give_up()
    sent = [part for part in parts if isinstance(part, Status)]
    rest = iter(found)
    assert all(any(one == got for got in rest) for one in sent)
    at = 0
    for one in found:  # and each is in the stream, CRC and all, behind the one before
        packet = status(*one)
        assert packet in stream[at:]
        at += stream[at:].index(packet) + len(packet)


@given(answers, st.data())
def test_a_damaged_packet_is_dropped(one: Status, data: st.DataObject) -> None:
    packet = bytearray(status(*one))
    at = data.draw(st.integers(0, len(packet) - 1))
    packet[at] ^= 1 << data.draw(st.integers(0, 7))
    parser = dynamixel.StatusParser()
    found = parser.feed(bytes(packet)) + parser.give_up()
    assert one not in found
    assert parser.skipped > 0 or parser.foreign > 0


def test_a_packet_behind_a_false_header_is_found_when_nothing_more_comes() -> None:
    parser = dynamixel.StatusParser()
    good = Status(3, 0, b"\x01\x02")
    false_header = b"\xff\xff\xfd\x00\x01\xf0\x00\x55"  # announces 240 bytes
    assert parser.feed(false_header + status(*good)) == []
    assert parser.needed > 0
    assert parser.give_up() == [good]


def test_an_echo_is_no_answer() -> None:
    parser = dynamixel.StatusParser()
    assert parser.feed(dynamixel.ping(1)) == []
    assert parser.foreign == 1


def test_fast_sync_read_answer_is_split_by_servo() -> None:
    """e-Manual, fast sync read: by servo error, id, data, and the CRC of the packet so far."""
    packet = hexed("FF FF FD 00 FE 19 00 55")
    for servo_id, position in ((3, 166), (7, 2079), (4, 1023)):
        packet += bytes((0, servo_id)) + position.to_bytes(4, "little")
        packet += dynamixel.crc16(packet).to_bytes(2, "little")
    (one,) = dynamixel.StatusParser().feed(packet)
    assert one.id == dynamixel.BROADCAST
    blocks = dynamixel.fast_blocks(one.params, one.error, 4)
    assert [(b.id, int.from_bytes(b.params, "little")) for b in blocks] == [
        (3, 166),
        (7, 2079),
        (4, 1023),
    ]
    assert dynamixel.fast_blocks(one.params, one.error, 3) == []


def test_error_byte_in_words() -> None:
    assert dynamixel.error_text(0) == ""
    assert dynamixel.error_text(0x04) == "data range error"
    assert dynamixel.error_text(0x80) == "hardware alert"
    assert dynamixel.error_text(0x87) == "access error, hardware alert"
    assert dynamixel.refused(0x87)
    assert not dynamixel.refused(0x80)


def test_hardware_error_register_becomes_common_bits() -> None:
    assert dynamixel.hardware_status(0x20) == ServoStatus.OVERLOAD
    assert dynamixel.hardware_status(0x05) == ServoStatus.VOLTAGE | ServoStatus.OVERHEAT
    assert dynamixel.hardware_status(0x18) == ServoStatus.SENSOR | ServoStatus.OVERCURRENT
