"""Block reads of a chain against a scripted peer: what is accepted, retried, dropped, counted."""

import math
import struct
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robotd.bus import dynamixel, feetech
from robotd.bus.blocks import (
    DETAILS,
    FULL,
    LEAN,
    POSITION,
    VARIANTS,
    Blocks,
    DynamixelBlocks,
    DynamixelGoals,
    FastDynamixelBlocks,
    FeetechBlocks,
    FeetechGoals,
    detail_for,
)
from robotd.bus.link import BusCounters
from robotd.bus.port import SerialPort
from robotd.bus.reader import ChainReader, ReadOptions
from robotd.bus.registers import STS_TABLE, XL430_TABLE, Protocol
from robotd.bus.slope import Slope
from robotd.errors import ServoError
from tests.bus.peer import (
    LATER_NS,
    Script,
    after,
    dynamixel_status,
    fast_status,
    feetech_status,
    served,
)

IDS = (1, 2, 3, 4, 5, 6)
BOTH = pytest.mark.parametrize("protocol", Protocol)
MEMORY = bytes(range(100, 200))  # what follows a block; to be thrown away

positions_x = st.integers(-(2**31), 2**31 - 1)
loads_x = st.integers(-(2**15), 2**15 - 1)
magnitudes = st.integers(-32767, 32767)
errors = st.integers(0, 255)


def sts(register: str, value: int) -> bytes:
    return STS_TABLE[register].encode(value)


def sts_block(position: int, velocity: int, load: int, length: int) -> bytes:
    data = sts("Present_Position", position) + sts("Present_Velocity", velocity)
    return (data + sts("Present_Load", load) + MEMORY)[:length]


def x_block(position: int, velocity: int, load: int, length: int, detail: str = FULL) -> bytes:
    data = struct.pack("<hii", load, velocity, position) + MEMORY
    start = {FULL: 0, LEAN: 2, POSITION: 6}[detail]
    return data[start : start + length]


def held(detail: str, rows: list[tuple[int, ...]]) -> list[list[int]]:
    """Errors, positions, velocities and loads of a block, without what it does not hold."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[2] = columns[2] if detail != POSITION else []
    columns[3] = columns[3] if detail == FULL else []
    return columns


# Decoding


@given(st.lists(st.tuples(errors, positions_x, positions_x, loads_x), min_size=6, max_size=6))
def test_dynamixel_blocks_decode_what_servos_send(rows: list[tuple[int, int, int, int]]) -> None:
    for detail in DETAILS:
        plain, fast = DynamixelBlocks(IDS, detail), FastDynamixelBlocks(IDS, detail)
        for variant in range(VARIANTS):
            data = [x_block(p, v, w, plain.lengths[variant], detail) for _, p, v, w in rows]
            answer = b"".join(
                dynamixel_status(i, d, row[0]) for i, d, row in zip(IDS, data, rows, strict=True)
            )
            expected = held(detail, list(rows))
            if len(answer) == plain.sizes[variant]:  # nothing was stuffed
                found = plain.decode(answer, variant)
                assert found is not None
                assert [list(x) for x in found] == expected
            answer = fast_status(list(zip(IDS, data, strict=True)))
            found = fast.decode(answer, variant)
            assert found is not None
            assert [list(x) for x in found[1:]] == expected[1:]


@given(
    st.lists(
        st.tuples(errors, magnitudes, magnitudes, st.integers(-1023, 1023)), min_size=6, max_size=6
    )
)
def test_feetech_blocks_decode_what_servos_send(rows: list[tuple[int, int, int, int]]) -> None:
    for detail in DETAILS:
        blocks = FeetechBlocks(IDS, detail)
        for variant in range(VARIANTS):
            answer = b"".join(
                feetech_status(i, sts_block(*row[1:], blocks.lengths[variant]), row[0])
                for i, row in zip(IDS, rows, strict=True)
            )
            found = blocks.decode(answer, variant)
            assert found is not None
            assert [list(x) for x in found] == held(detail, list(rows))


def answers_of(blocks: Blocks, variant: int) -> bytes:
    length = blocks.lengths[variant]
    if isinstance(blocks, FeetechBlocks):
        return b"".join(feetech_status(i, sts_block(2000 + i, 5, -7, length)) for i in IDS)
    data = [x_block(2000 + i, 5, -7, length) for i in IDS]
    if isinstance(blocks, FastDynamixelBlocks):
        return fast_status(list(zip(IDS, data, strict=True)))
    return b"".join(dynamixel_status(i, d) for i, d in zip(IDS, data, strict=True))


@given(
    st.sampled_from([DynamixelBlocks, FastDynamixelBlocks, FeetechBlocks]),
    st.integers(0, VARIANTS - 1),
    st.data(),
)
def test_no_damaged_answer_is_decoded(
    kind: Callable[[Sequence[int]], Blocks], variant: int, data: st.DataObject
) -> None:
    blocks = kind(IDS)
    answer = bytearray(answers_of(blocks, variant))
    assert blocks.decode(bytes(answer), variant) is not None
    at = data.draw(st.integers(0, len(answer) - 1))
    answer[at] ^= 1 << data.draw(st.integers(0, 7))
    assert blocks.decode(bytes(answer), variant) is None


@given(st.lists(positions_x, min_size=6, max_size=6))
def test_dynamixel_goals_are_the_general_packet(goals: list[int]) -> None:
    encoded = {i: XL430_TABLE["Goal_Position"].encode(g) for i, g in zip(IDS, goals, strict=True)}
    assert DynamixelGoals(IDS).packet(goals) == dynamixel.sync_write(116, 4, encoded)


def test_a_goal_that_looks_like_a_header_is_stuffed() -> None:
    packet = DynamixelGoals(IDS).packet([0x00FDFFFF, 0, 0, 0, 0, -2])
    assert b"\xff\xff\xfd\xfd" in packet
    assert packet.count(b"\xff\xff\xfd\x00") == 1


@given(st.lists(magnitudes, min_size=6, max_size=6))
def test_feetech_goals_are_the_general_packet(goals: list[int]) -> None:
    encoded = {i: STS_TABLE["Goal_Position"].encode(g) for i, g in zip(IDS, goals, strict=True)}
    assert FeetechGoals(IDS).packet(goals) == feetech.sync_write(42, 2, encoded)


def test_goals_that_do_not_fit_are_refused() -> None:
    for goals in ([40_000] + [0] * 5, [0] * 5 + [-40_000]):
        with pytest.raises(ServoError, match="do not fit"):
            FeetechGoals(IDS).packet(goals)
    with pytest.raises(ServoError, match="do not fit"):
        DynamixelGoals(IDS).packet([2**31] + [0] * 5)


@BOTH
def test_the_block_is_chosen_by_what_the_wire_allows(protocol: Protocol) -> None:
    assert detail_for(protocol, 1_000_000, 5_000_000) == FULL
    assert detail_for(protocol, 1_000_000, 2_000_000) == POSITION
    assert detail_for(protocol, 4_000_000, 2_000_000) == FULL
    assert detail_for(protocol, 57_600, 20_000_000) == POSITION


def test_the_load_is_the_first_to_be_left_out() -> None:
    assert detail_for(Protocol.FEETECH, 1_000_000, 2_200_000) == LEAN
    assert detail_for(Protocol.DYNAMIXEL, 1_000_000, 4_000_000) == LEAN


# Velocities from positions


def test_a_slope_is_taken_over_the_last_20_ms() -> None:
    slope = Slope([1.0, 2.0])
    found = [slope.velocities(at * 2_000_000, (0, 0), (3 * at, -at)) for at in range(30)]
    assert all(math.isnan(value) for value in found[0])
    assert found[1] == pytest.approx([1500, -250])
    assert slope.velocities(60_000_000, (0, 0), (87, -29)) == pytest.approx([1350, -225])


def test_a_position_that_did_not_come_gives_no_velocity() -> None:
    slope = Slope([1.0, 1.0])
    slope.velocities(0, (0, None), (100, 0))
    first, second = slope.velocities(10_000_000, (0, 0), (110, 2000))
    assert first == pytest.approx(1000)
    assert math.isnan(second)
    slope.reset()
    assert all(math.isnan(value) for value in slope.velocities(20_000_000, (0, 0), (110, 2000)))


# Reading


PATIENT_NS = 100_000_000  # a busy machine may keep the peer waiting that long


def reader_on(
    port: SerialPort, protocol: Protocol, margin_ns: int = LATER_NS, retries: int = 2
) -> ChainReader:
    options = ReadOptions(margin_ns=margin_ns, retries=retries)
    return ChainReader(port, protocol, IDS, time.monotonic_ns, BusCounters(), options)


class Chain:
    """Six servos that answer sync reads; `disturb(packets, attempt)` may change their packets."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.requests: list[tuple[int, tuple[int, ...]]] = []  # length, ids
        self.mute: set[int] = set()
        self.disturb: Callable[[list[bytes], int], list[bytes]] = lambda packets, attempt: packets

    def __call__(self, request: bytes) -> bytes:
        if self.protocol is Protocol.FEETECH:
            length, ids = request[6], tuple(request[7:-1])
        else:
            length, ids = request[10], tuple(request[12:-2])
        self.requests.append((length, ids))
        packets = [self.status(i, length) for i in ids if i not in self.mute]
        return b"".join(self.disturb(packets, len(self.requests)))

    def status(self, servo_id: int, length: int, position: int | None = None) -> bytes:
        place = 2000 + servo_id if position is None else position
        if self.protocol is Protocol.FEETECH:
            return feetech_status(servo_id, sts_block(place, -5, 7, length))
        return dynamixel_status(servo_id, x_block(place, -5, 7, length))


GOOD = [2000 + i for i in IDS]


@BOTH
def test_a_clean_tick_is_one_question(protocol: Protocol) -> None:
    chain = Chain(protocol)
    with served(chain) as port:
        reader = reader_on(port, protocol)
        for _ in range(4):
            reader.request()
            errors, positions, velocities, loads = reader.collect(after(LATER_NS))
            assert list(errors) == [0] * 6
            assert list(positions) == GOOD
            assert (list(velocities), list(loads)) == ([-5] * 6, [7] * 6)
    assert len({length for length, _ in chain.requests}) == 1
    assert len(chain.requests) == 4


def test_stuffed_answers_are_read_without_a_retry() -> None:
    """Velocity -1 before a position that ends in FD looks like a header: FF FF FF FF FD."""
    chain = Chain(Protocol.DYNAMIXEL)

    def stuffed(packets: list[bytes], attempt: int) -> list[bytes]:
        length = chain.requests[-1][0]
        packets[2] = dynamixel_status(3, x_block(0x7FD, -1, 0, length))
        packets[5] = dynamixel_status(6, x_block(0x6FD, -1, 0, length))
        assert all(b"\xff\xff\xfd\xfd" in packets[at] for at in (2, 5))
        return packets

    chain.disturb = stuffed
    with served(chain) as port:
        reader = reader_on(port, Protocol.DYNAMIXEL)
        for _ in range(3):
            reader.request()
            _, positions, velocities, _ = reader.collect(after(LATER_NS))
            assert list(positions) == [2001, 2002, 0x7FD, 2004, 2005, 0x6FD]
            assert list(velocities) == [-5, -5, -1, -5, -5, -1]
        counts = reader._counters
        assert (counts.retries, counts.errors, counts.skipped_bytes) == (0, 0, 0)
    assert len(chain.requests) == 3


@BOTH
def test_a_damaged_answer_is_asked_for_again_at_once(protocol: Protocol) -> None:
    chain = Chain(protocol)

    def damage(packets: list[bytes], attempt: int) -> list[bytes]:
        if attempt == 1:
            packets[3] = packets[3][:-3] + bytes((packets[3][-3] ^ 0x40,)) + packets[3][-2:]
        return packets

    chain.disturb = damage
    with served(chain) as port:
        reader = reader_on(port, protocol)
        reader.request()
        begun = time.monotonic_ns()
        errors, positions, *_ = reader.collect(after(2 * LATER_NS))
        assert time.monotonic_ns() - begun < LATER_NS  # did not wait for the attempt to end
        assert (list(errors), list(positions)) == ([0] * 6, GOOD)
        assert reader._counters.crc_errors == 1
        assert reader._counters.retries == 1
        assert reader._counters.failed_reads == 0
    assert chain.requests[1][1] == (4,)


@BOTH
def test_garbage_around_answers_is_skipped(protocol: Protocol) -> None:
    chain = Chain(protocol)
    chain.disturb = lambda packets, attempt: [b"\xff\x00\xff\xff"[: attempt % 4], *packets]
    with served(chain) as port:
        reader = reader_on(port, protocol)
        for _ in range(3):
            reader.request()
            errors, positions, *_ = reader.collect(after(LATER_NS))
            assert (list(errors), list(positions)) == ([0] * 6, GOOD)
        assert reader._counters.skipped_bytes == 6
        assert reader._counters.retries == 0


@BOTH
def test_a_mute_servo_is_invalid_and_the_others_are_not(protocol: Protocol) -> None:
    chain = Chain(protocol)
    chain.mute = {2}
    with served(chain) as port:
        reader = reader_on(port, protocol, margin_ns=PATIENT_NS)
        reader.request()
        errors, positions, velocities, loads = reader.collect(after(LATER_NS))
        assert list(errors) == [0, None, 0, 0, 0, 0]
        assert [p for at, p in enumerate(positions) if at != 1] == [2001, 2003, 2004, 2005, 2006]
        assert (positions[1], velocities[1], loads[1]) == (0, 0, 0)
        assert reader._counters.failed_reads == 1
        assert reader._counters.retries == 2
    assert [ids for _, ids in chain.requests] == [IDS, (2,), (2,)]


@BOTH
def test_servos_behind_a_mute_one_are_reached_from_the_other_end(protocol: Protocol) -> None:
    """On a real chain a servo may wait for its predecessor's answer for ever."""
    chain = Chain(protocol)

    def wait_for_predecessor(packets: list[bytes], attempt: int) -> list[bytes]:
        ids = chain.requests[-1][1]
        return packets[: ids.index(3)] if 3 in ids else packets

    chain.mute = {3}
    chain.disturb = wait_for_predecessor
    with served(chain) as port:
        reader = reader_on(port, protocol, margin_ns=PATIENT_NS)
        reader.request()
        errors, *_ = reader.collect(after(LATER_NS))
        assert list(errors) == [0, 0, None, 0, 0, 0]
    assert chain.requests[1][1] == (6, 5, 4, 3)


@BOTH
def test_the_deadline_holds_when_nobody_answers(protocol: Protocol) -> None:
    with served(lambda request: b"") as port:
        reader = reader_on(port, protocol)
        reader.request()
        begun = time.monotonic_ns()
        errors, *_ = reader.collect(begun + 30_000_000)
        assert list(errors) == [None] * 6
        assert time.monotonic_ns() - begun < LATER_NS / 2
        assert reader._counters.timeouts == 1
        assert reader._counters.retries == 0  # no time was left


@BOTH
def test_a_late_answer_is_not_taken_for_the_next_one(protocol: Protocol) -> None:
    """The answers of tick 1 come only after the question of tick 2, before its own answers."""
    chain = Chain(protocol)
    kept: list[bytes] = []

    def hold_back(packets: list[bytes], attempt: int) -> list[bytes]:
        if attempt == 1:
            length = chain.requests[-1][0]
            kept.extend(chain.status(i, length, position=100 + i) for i in IDS)
            return []
        return kept + packets if attempt == 2 else packets

    chain.disturb = hold_back
    with served(chain) as port:
        reader = reader_on(port, protocol, retries=0, margin_ns=PATIENT_NS)
        reader.request()
        errors, *_ = reader.collect(after(LATER_NS))
        assert list(errors) == [None] * 6
        reader.request()
        errors, positions, *_ = reader.collect(after(LATER_NS))
        assert (list(errors), list(positions)) == ([0] * 6, GOOD)
        assert reader._counters.stale == 6


@BOTH
def test_while_answers_fail_no_two_ticks_ask_the_same(protocol: Protocol) -> None:
    """So that the answer to a question of one tick, retries included, is not taken for the next."""
    chain = Chain(protocol)
    chain.mute = {5}
    with served(chain) as port:
        reader = reader_on(port, protocol, margin_ns=5_000_000)
        per_tick = []
        for _ in range(12):
            before = len(chain.requests)
            reader.request()
            reader.collect(after(LATER_NS))
            per_tick.append({length for length, _ in chain.requests[before:]})
        chain.mute = set()
        for _ in range(33):
            reader.request()
            reader.collect(after(LATER_NS))
    assert all(len(now) == 3 for now in per_tick)
    assert not any(now & then for now, then in pairwise(per_tick))
    assert chain.requests[-1][0] == min(length for length, _ in chain.requests)


@BOTH
def test_twice_the_same_answer_counts_once(protocol: Protocol) -> None:
    chain = Chain(protocol)
    chain.disturb = lambda packets, attempt: [packets[0], *packets]
    with served(chain) as port:
        reader = reader_on(port, protocol)
        reader.request()
        errors, positions, *_ = reader.collect(after(LATER_NS))
        assert (list(errors), list(positions)) == ([0] * 6, GOOD)
        assert reader._counters.duplicates == 1
        assert reader._counters.retries == 0


@BOTH
def test_two_different_answers_of_one_servo_are_both_dropped(protocol: Protocol) -> None:
    """Servo 3 answers with the id of servo 4: nobody can tell which of the two is servo 4."""
    chain = Chain(protocol)

    def wrong_id(packets: list[bytes], attempt: int) -> list[bytes]:
        if attempt == 1:
            packets[2] = chain.status(4, chain.requests[-1][0], position=2003)
        return packets

    chain.disturb = wrong_id
    with served(chain) as port:
        reader = reader_on(port, protocol)
        reader.request()
        errors, positions, *_ = reader.collect(after(2 * LATER_NS))
        assert (list(errors), list(positions)) == ([0] * 6, GOOD)
    assert chain.requests[1][1] == (4, 3)


@BOTH
def test_a_strangers_answer_is_counted_and_its_place_asked_again(protocol: Protocol) -> None:
    chain = Chain(protocol)

    def stranger(packets: list[bytes], attempt: int) -> list[bytes]:
        if attempt == 1:
            packets[5] = chain.status(77, chain.requests[-1][0])
        return packets

    chain.disturb = stranger
    with served(chain) as port:
        reader = reader_on(port, protocol)
        reader.request()
        errors, positions, *_ = reader.collect(after(2 * LATER_NS))
        assert (list(errors), list(positions)) == ([0] * 6, GOOD)
        assert reader._counters.wrong_id == 1
    assert chain.requests[1][1] == (6,)


def test_an_answer_without_data_is_a_refusal() -> None:
    chain = Chain(Protocol.DYNAMIXEL)

    def refuse(packets: list[bytes], attempt: int) -> list[bytes]:
        return [dynamixel_status(1, b"", error=4), *packets[1:]] if attempt == 1 else packets

    chain.disturb = refuse
    with served(chain) as port:
        reader = reader_on(port, Protocol.DYNAMIXEL, margin_ns=PATIENT_NS)
        reader.request()
        errors, *_ = reader.collect(after(LATER_NS))
        assert list(errors) == [0] * 6
        assert reader._counters.refused == 1


# Fast sync read


class FastChain(Chain):
    """Dynamixels that also answer a fast sync read, unless told not to."""

    def __init__(self, script: Script | None = None) -> None:
        super().__init__(Protocol.DYNAMIXEL)
        self.fast = True
        self.instructions: list[int] = []

    def __call__(self, request: bytes) -> bytes:
        self.instructions.append(request[7])
        if request[7] == 0x82:
            return super().__call__(request)
        length, ids = request[10], tuple(request[12:-2])
        if not self.fast or self.mute:
            return b""
        return fast_status([(i, x_block(2000 + i, -5, 7, length)) for i in ids])


def test_fast_sync_read_is_used_where_it_is_answered() -> None:
    chain = FastChain()
    with served(chain) as port:
        reader = reader_on(port, Protocol.DYNAMIXEL)
        assert not reader.fast
        assert reader.probe_fast()
        for _ in range(3):
            reader.request()
            errors, positions, *_ = reader.collect(after(LATER_NS))
            assert (list(errors), list(positions)) == ([0] * 6, GOOD)
    assert set(chain.instructions) == {0x8A}


def test_sync_read_is_used_where_fast_is_not_answered() -> None:
    chain = FastChain()
    chain.fast = False
    with served(chain) as port:
        reader = reader_on(port, Protocol.DYNAMIXEL)
        assert not reader.probe_fast()
        reader.request()
        assert list(reader.collect(after(LATER_NS))[1]) == GOOD
    assert chain.instructions[-1] == 0x82


def test_fast_sync_read_is_given_up_when_it_keeps_failing() -> None:
    """A mute servo spoils the common answer: the others are still read, then fast is dropped."""
    chain = FastChain()
    with served(chain) as port:
        reader = reader_on(port, Protocol.DYNAMIXEL, margin_ns=PATIENT_NS)
        assert reader.probe_fast()
        chain.mute = {3}
        for _ in range(3):
            reader.request()
            errors, *_ = reader.collect(after(LATER_NS))
            assert list(errors) == [0, 0, None, 0, 0, 0]
        assert not reader.fast
        assert reader._counters.fallbacks == 1
        chain.mute = set()
        reader.request()
        assert list(reader.collect(after(LATER_NS))[1]) == GOOD


def test_one_lost_fast_answer_does_not_change_the_way_of_reading() -> None:
    chain = FastChain()
    with served(chain) as port:
        reader = reader_on(port, Protocol.DYNAMIXEL, margin_ns=PATIENT_NS)
        assert reader.probe_fast()
        for _ in range(4):
            chain.fast = False
            reader.request()
            assert list(reader.collect(after(LATER_NS))[1]) == GOOD  # by sync read
            chain.fast = True
            reader.request()
            assert list(reader.collect(after(LATER_NS))[1]) == GOOD
        assert reader.fast


# Any disturbance


@given(st.sampled_from(Protocol), st.lists(st.binary(max_size=40), min_size=1, max_size=3))
def test_noise_for_answers_never_raises_and_never_becomes_a_reading(
    protocol: Protocol, noise: list[bytes]
) -> None:
    script = iter(noise)
    with served(lambda request: next(script, b"")) as port:
        reader = reader_on(port, protocol, margin_ns=1_000_000)
        reader.request()
        errors, *_ = reader.collect(after(10_000_000))
    assert list(errors) == [None] * 6
