"""Feetech STS packets against the maker's examples, the SDK, and noise."""

from itertools import pairwise

import pytest
import scservo_sdk
from hypothesis import given
from hypothesis import strategies as st

from robotd.bus import feetech
from robotd.bus.status import ServoStatus, Status, status_text

# From Feetech's protocol manual (SMS/STS), the examples under each instruction.
EXAMPLES = [
    (feetech.ping(1), "FF FF 01 02 01 FB"),
    (feetech.read(1, 0x38, 2), "FF FF 01 04 02 38 02 BE"),
    (feetech.write(0xFE, 5, b"\x01"), "FF FF FE 04 03 05 01 F4"),
    (
        feetech.write(1, 0x2A, bytes((0x00, 0x08, 0x00, 0x00, 0xE8, 0x03))),
        "FF FF 01 09 03 2A 00 08 00 00 E8 03 D5",
    ),
    (feetech.action(), "FF FF FE 02 05 FA"),
    (feetech.sync_read(0x38, 8, (1, 2)), "FF FF FE 06 82 38 08 01 02 36"),
    (
        feetech.sync_write(
            0x2A, 6, {i: bytes((0x00, 0x08, 0x00, 0x00, 0xE8, 0x03)) for i in (1, 2, 3, 4)}
        ),
        "FF FF FE 20 83 2A 06 01 00 08 00 00 E8 03 02 00 08 00 00 E8 03 "
        "03 00 08 00 00 E8 03 04 00 08 00 00 E8 03 58",
    ),
]


@pytest.mark.parametrize(("built", "documented"), EXAMPLES)
def test_packets_are_those_of_the_manual(built: bytes, documented: str) -> None:
    assert built == bytes.fromhex(documented)


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
    getattr(scservo_sdk.PacketHandler(0), call)(port, *args)
    return port.sent


ids = st.integers(0, 252)
addresses = st.integers(0, 86)
data_bytes = st.binary(min_size=1, max_size=8)


@given(ids, addresses, st.integers(1, 60), data_bytes)
def test_single_packets_are_the_sdks(servo_id: int, address: int, size: int, data: bytes) -> None:
    assert feetech.read(servo_id, address, size) == sdk_sends("readTx", servo_id, address, size)
    args = (servo_id, address, len(data), list(data))
    assert feetech.write(servo_id, address, data) == sdk_sends("writeTxOnly", *args)
    assert feetech.reg_write(servo_id, address, data) == sdk_sends("regWriteTxOnly", *args)


@given(addresses, data_bytes, st.lists(ids, min_size=1, max_size=12, unique=True))
def test_group_packets_are_the_sdks(address: int, data: bytes, chain: list[int]) -> None:
    size = len(data)
    assert feetech.sync_read(address, size, chain) == sdk_sends(
        "syncReadTx", address, size, chain, len(chain)
    )
    rows = [v for i in chain for v in (i, *data)]
    assert feetech.sync_write(address, size, dict.fromkeys(chain, data)) == sdk_sends(
        "syncWriteTxOnly", address, size, rows, len(rows)
    )


def status(servo_id: int, error: int, params: bytes) -> bytes:
    """What a servo sends, built here independently of the module's own packet function."""
    body = bytes((servo_id, len(params) + 2, error)) + params
    return b"\xff\xff" + body + bytes((255 - sum(body) % 256,))


NOISE = st.lists(st.sampled_from([b"\xff", b"\xff\xff", b"\x01", b"\x02", b"\x00"]), max_size=12)
answers = st.builds(Status, ids, st.integers(0, 255), st.binary(max_size=20))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


@given(st.lists(answers, max_size=6), st.lists(st.integers(0, 200), max_size=20))
def test_any_cutting_of_a_clean_stream_gives_all_packets(
    sent: list[Status], places: list[int]
) -> None:
    parser = feetech.StatusParser()
    stream = b"".join(status(*one) for one in sent)
    found = [one for piece in cut(stream, places) for one in parser.feed(piece)]
    assert found == sent
    assert (parser.skipped, parser.bad, parser.needed) == (0, 0, 0)


@given(
    st.lists(st.one_of(answers, st.binary(max_size=20), NOISE.map(b"".join)), max_size=8),
    st.lists(st.integers(0, 300), max_size=20),
)
def test_garbage_never_raises_and_only_whole_packets_come_out(
    parts: list[Status | bytes], places: list[int]
) -> None:
    parser = feetech.StatusParser(longest=40)
    stream = b"".join(part if isinstance(part, bytes) else status(*part) for part in parts)
    found = [one for piece in cut(stream, places) for one in parser.feed(piece)]
    found += parser.give_up()
    at = 0
    for one in found:  # each is in the stream, checksum and all, behind the one before
        packet = status(*one)
        assert packet in stream[at:]
        at += stream[at:].index(packet) + len(packet)


@given(answers, st.data())
def test_a_damaged_packet_is_dropped(one: Status, data: st.DataObject) -> None:
    packet = bytearray(status(*one))
    at = data.draw(st.integers(0, len(packet) - 1))
    packet[at] ^= 1 << data.draw(st.integers(0, 7))
    parser = feetech.StatusParser()
    found = parser.feed(bytes(packet)) + parser.give_up()
    assert one not in found
    assert parser.skipped > 0


def test_good_packets_around_garbage_are_found() -> None:
    parser = feetech.StatusParser()
    first, second = Status(1, 0, b"\x01\x02"), Status(2, 0x20, b"")
    assert parser.feed(status(*first) + b"\x00\xff\x13" + status(*second)) == [first, second]
    assert parser.skipped == 3


def test_a_packet_behind_a_false_header_is_found_when_nothing_more_comes() -> None:
    parser = feetech.StatusParser()
    good = Status(3, 0, b"\x01\x02")
    assert parser.feed(b"\xff\xff\x01\x60\x00" + status(*good)) == []
    assert parser.give_up() == [good]


def test_error_bits_in_words() -> None:
    assert feetech.hardware_status(0x24) == ServoStatus.OVERHEAT | ServoStatus.OVERLOAD
    assert status_text(feetech.hardware_status(0x24)) == "overheated, overload"
    assert status_text(0) == ""
