"""Frames in shared memory: newest first, never half of one, never a crash on a damaged file."""

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robotd.errors import IpcError
from robotd.ipc.frames import Encoding, Frame, FrameReader, FrameWriter


def test_the_newest_frame_is_read(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "frames" / "front", 100)
    reader = FrameReader(tmp_path / "frames" / "front")
    assert reader.last == 0
    assert reader.latest() is None
    for number in range(1, 12):
        writer.publish(bytes([number]) * number, number * 10, 1, number, Encoding.JPEG)
        expected = Frame(number, number * 10, 1, number, Encoding.JPEG, bytes([number]) * number)
        assert reader.latest() == expected
        assert reader.last == number
    assert FrameReader(tmp_path / "frames" / "front").latest() == expected
    writer.close()
    assert reader.latest() == expected
    reader.close()


def test_a_frame_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "front", 10)
    with pytest.raises(IpcError, match="11 bytes exceeds"):
        writer.publish(bytes(11), 1, 1, 1, Encoding.RGB)
    writer.publish(bytes(10), 1, 1, 1, Encoding.RGB)
    assert FrameReader(tmp_path / "front").last == 1


def test_a_new_writer_replaces_the_file(tmp_path: Path) -> None:
    old = FrameWriter(tmp_path / "front", 10)
    reader = FrameReader(tmp_path / "front")
    assert not reader.replaced
    FrameWriter(tmp_path / "front", 20)
    assert reader.replaced
    old.publish(b"x", 1, 1, 1, Encoding.RGB)
    assert reader.latest() is not None  # the old file is still whole for who has it
    os.unlink(tmp_path / "front")
    assert reader.replaced


WRITE_WITHOUT_END = """
import sys
from pathlib import Path
from robotd.ipc.frames import Encoding, FrameWriter
writer = FrameWriter(Path(sys.argv[1]), 300_000, slots=1)
print("writing", flush=True)
while True:
    number = writer.sequence + 1
    writer.publish(bytes([number % 256]) * 300_000, number, 1, 1, Encoding.RGB)
"""


def test_a_reader_never_sees_half_a_frame(tmp_path: Path) -> None:
    """One slot, overwritten all the time by another process: what is read is whole or nothing."""
    path = tmp_path / "front"
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_WITHOUT_END, str(path)], stdout=subprocess.PIPE
    ) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            reader = FrameReader(path)
            whole, end = 0, time.monotonic() + 60
            tries = 0
            while (whole < 50 or tries < 2000) and time.monotonic() < end:
                tries += 1
                frame = reader.latest()
                if frame is not None:
                    whole += 1
                    assert frame.captured_ns == frame.sequence
                    assert frame.data == bytes([frame.sequence % 256]) * 300_000
            assert whole >= 50
        finally:
            writer.kill()


def test_no_camera_no_folder_and_no_room(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="no such camera"):
        FrameReader(tmp_path / "front")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IpcError, match="cannot create the frame file"):
        FrameWriter(tmp_path / "file" / "front", 10)


_HEAD = struct.Struct("<12sIII")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no such camera"),
        (b"short", "too short"),
        (bytes(8192), "no frame file of version 1"),
        (_HEAD.pack(b"ROBOTD-FRAME", 2, 4, 10) + bytes(8192), "no frame file of version 1"),
        (_HEAD.pack(b"ROBOTD-FRAME", 1, 0, 10) + bytes(8192), "too short for the frames"),
        (_HEAD.pack(b"ROBOTD-FRAME", 1, 4, 2**31) + bytes(8192), "too short for the frames"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "front").write_bytes(content)
    with pytest.raises(IpcError, match=words):
        FrameReader(tmp_path / "front")


def test_a_damaged_slot_is_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "front"
    FrameWriter(path, 10).publish(b"x", 1, 1, 1, Encoding.RGB)
    raw = bytearray(path.read_bytes())
    slot = 4096 + 64  # the second one: a page of header, then slots of 64 bytes
    for offset, damage in ((0, 9), (24, 7), (28, 99), (56, 9)):  # both sequences, encoding, length
        spoiled = bytearray(raw)
        spoiled[slot + offset] = damage
        path.write_bytes(spoiled)
        assert FrameReader(path).latest() is None
    path.write_bytes(raw)
    assert FrameReader(path).latest() is not None
