"""The state ring: what is written is read, torn and overwritten reports are noticed."""

import math
import os
import struct
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.errors import IpcError
from robotd.ipc.ring import (
    RING_NAME,
    Fault,
    JointReport,
    Layout,
    Mode,
    Result,
    RingReader,
    RingWriter,
    TickReport,
)

JOINTS = ("a.shoulder_pan", "a.gripper")
LAYOUT = Layout(JOINTS, 5_000_000, 8, pid=123)


def report(sequence: int, **changes: object) -> TickReport:
    made = TickReport(sequence=sequence, joints=[JointReport(), JointReport()])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / RING_NAME


def same(a: TickReport, b: TickReport) -> bool:
    """Equal in every field; NaN equals NaN."""

    def equal(x: object, y: object) -> bool:
        if isinstance(x, float) and isinstance(y, float) and math.isnan(x):
            return math.isnan(y)
        return x == y

    head = [f.name for f in fields(TickReport) if f.name != "joints"]
    names = [f.name for f in fields(JointReport)]
    return all(equal(getattr(a, n), getattr(b, n)) for n in head) and all(
        equal(getattr(x, n), getattr(y, n))
        for x, y in zip(a.joints, b.joints, strict=True)
        for n in names
    )


u64 = st.integers(0, 2**64 - 1)
number = st.floats(allow_nan=True, allow_infinity=True)
joints = st.builds(
    JointReport, number, number, number, number, number, number, number,
    st.booleans(), st.integers(0, 255), st.integers(0, 65535),
)  # fmt: skip
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
reports = st.builds(
    TickReport,
    sequence=st.just(1), deadline_ns=u64, wake_late_ns=u64, read_ns=u64, decide_ns=u64,
    write_ns=u64, done_late_ns=u64, missed_ticks=u64, mode=st.sampled_from(Mode),
    fault=st.sampled_from(Fault), fault_joint=st.integers(-1, 100), torque=st.booleans(),
    degraded=st.integers(0, 7), failed_ticks=u64, bus_errors=u64, bus_retries=u64,
    command_id=u64, command_result=st.sampled_from(Result), command_text=text,
    chunk_sequence=u64, chunk_age_ns=u64, chunk_step=number, chunks=u64, chunks_dropped=u64,
    inbox_dropped=u64, message=text, message_sequence=u64,
    joints=st.lists(joints, min_size=2, max_size=2),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(reports)
def test_every_field_comes_back(tmp_path_factory: pytest.TempPathFactory, it: TickReport) -> None:
    path = tmp_path_factory.mktemp("ring") / RING_NAME
    writer = RingWriter(path, LAYOUT)
    writer.publish(it)
    reader = RingReader(path)
    back = reader.read(1)
    assert back is not None
    assert same(it, back)
    assert reader.layout == LAYOUT
    reader.close()
    writer.close()


def test_a_new_ring_has_nothing_in_it(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    reader = RingReader(path)
    assert reader.last == 0
    assert reader.latest() is None
    assert list(reader.since(0)) == []
    assert reader.read(1) is None
    writer.close()
    reader.close()


def test_since_gives_what_is_still_there_in_order(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    reader = RingReader(path)
    for k in range(1, 5):
        writer.publish(report(k))
    assert [r.sequence for r in reader.since(0)] == [1, 2, 3, 4]
    assert [r.sequence for r in reader.since(3)] == [4]
    for k in range(5, 30):
        writer.publish(report(k))
    assert reader.last == 29
    assert [r.sequence for r in reader.since(0)] == [23, 24, 25, 26, 27, 28, 29]
    assert reader.read(21) is None
    latest = reader.latest()
    assert latest is not None
    assert latest.sequence == 29
    writer.close()
    reader.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_report_is_not_given_out(
    tmp_path_factory: pytest.TempPathFactory, where: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("ring") / RING_NAME
    writer = RingWriter(path, LAYOUT)
    it = report(1, message="x" * 100, deadline_ns=2**60)
    writer.publish(it)
    reader = RingReader(path)
    slot = 4096 + LAYOUT.slot_size
    with open(path, "r+b") as file:
        file.seek(slot + where)
        byte = file.read(1)[0]
        file.seek(slot + where)
        file.write(bytes((byte ^ flip,)))
    back = reader.read(1)
    assert back is None
    assert reader.latest() is None
    reader.close()
    writer.close()


def test_text_that_is_too_long_is_cut_at_a_whole_character(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    writer.publish(report(1, message="ä" * 200, command_text="€" * 200))
    reader = RingReader(path)
    back = reader.latest()
    assert back is not None
    assert back.message == "ä" * 120
    assert back.command_text == "€" * 80
    writer.close()
    reader.close()


def test_a_ring_outlives_its_writer_and_is_replaced_by_the_next(path: Path) -> None:
    writer = RingWriter(path, LAYOUT)
    writer.publish(report(1, fault=Fault.GUARD))
    writer.close()
    reader = RingReader(path)
    back = reader.latest()
    assert back is not None
    assert back.fault is Fault.GUARD
    assert not reader.replaced
    second = RingWriter(path, LAYOUT)
    assert reader.replaced
    old = reader.latest()
    assert old is not None
    assert old.fault is Fault.GUARD
    assert RingReader(path).latest() is None
    second.close()
    os.unlink(path)
    assert reader.replaced
    reader.close()


def test_readers_cannot_write(path: Path) -> None:
    RingWriter(path, LAYOUT).close()
    assert path.stat().st_mode & 0o777 == 0o640
    reader = RingReader(path)
    with pytest.raises(TypeError):
        reader._map[0] = 0
    reader.close()


def test_no_ring_is_an_error_that_asks_the_right_question(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="is robotd running"):
        RingReader(tmp_path / RING_NAME)
    (tmp_path / RING_NAME).touch()
    with pytest.raises(IpcError, match="no state ring"):
        RingReader(tmp_path / RING_NAME)


def test_a_file_that_is_no_ring_is_an_error(path: Path) -> None:
    path.write_bytes(b"\x07" * 100)
    with pytest.raises(IpcError, match="too short"):
        RingReader(path)
    path.write_bytes(b"\x07" * 8192)
    with pytest.raises(IpcError, match="no state ring of version"):
        RingReader(path)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (12, struct.pack("<I", 99)),  # another version
        (16, struct.pack("<I", 64)),  # another slot size
        (20, struct.pack("<I", 1000)),  # more slots than there are
        (128, b"{{{{"),  # no description
        (128, b'{"joints": 7}         '),
    ],
)
def test_a_damaged_header_is_an_error(path: Path, at: int, data: bytes) -> None:
    RingWriter(path, LAYOUT).close()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    with pytest.raises(IpcError):
        RingReader(path)


def test_a_ring_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="cannot create the state ring"):
        RingWriter(tmp_path / "nowhere" / RING_NAME, LAYOUT)
    many = Layout(tuple(f"arm.joint{i}" for i in range(500)), 5_000_000, 8)
    with pytest.raises(IpcError, match="500 joints do not fit"):
        RingWriter(tmp_path / RING_NAME, many)
