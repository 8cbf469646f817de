"""Camera frames in shared memory: one writer, any number of readers, newest frame first.

A memory-mapped file with a few slots, each with its sequence number at both ends. Readers never
wait and never hold the writer up; a reader that was overtaken gets the next newer frame.
"""

import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from robotd.errors import IpcError
from robotd.ipc import mapped

FRAMES_DIR = "frames"
_MAGIC = b"ROBOTD-FRAME"
_PREFIX = struct.Struct("<12sIII")  # magic, version, slots, capacity
_VERSION = 1
_LAST = struct.Struct("<Q")
_LAST_AT = 32
_PAGE = mapped.PAGE
_SLOT = struct.Struct("<QQIIII")  # sequence, captured_ns, width, height, encoding, length


class Encoding(IntEnum):
    """How the bytes of a frame are to be read."""

    RGB = 0  # uint8 [height, width, 3]
    JPEG = 1


_ENCODINGS = frozenset(Encoding)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture. `captured_ns` is CLOCK_MONOTONIC (or the stepped clock) at capture."""

    sequence: int
    captured_ns: int
    width: int
    height: int
    encoding: Encoding
    data: bytes


class FrameWriter:
    """Publishes the frames of one camera to `<runtime>/frames/<name>`."""

    def __init__(self, path: Path, capacity: int, slots: int = 4) -> None:
        self._capacity = capacity
        self._slots = slots
        self._stride = (_SLOT.size + capacity + 8 + 63) // 64 * 64
        self.sequence = 0
        total = _PAGE + self._stride * slots

        def fill(mapping: mmap.mmap) -> None:
            _PREFIX.pack_into(mapping, 0, _MAGIC, _VERSION, slots, capacity)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IpcError(f"{path}: cannot create the frame file: {error.strerror}") from error
        self._map = mapped.create(path, total, fill, "the frame file")

    def publish(
        self, data: bytes, captured_ns: int, width: int, height: int, encoding: Encoding
    ) -> None:
        """Write one frame; IpcError when it is larger than the ring was made for."""
        if len(data) > self._capacity:
            raise IpcError(f"a frame of {len(data)} bytes exceeds the ring's {self._capacity}")
        number = self.sequence + 1
        start = _PAGE + (number % self._slots) * self._stride
        body = start + _SLOT.size
        end = start + self._stride - 8
        _LAST.pack_into(self._map, end, 0)
        _SLOT.pack_into(self._map, start, number, captured_ns, width, height, encoding, len(data))
        self._map[body : body + len(data)] = data
        _LAST.pack_into(self._map, end, number)
        _LAST.pack_into(self._map, _LAST_AT, number)
        self.sequence = number

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


class FrameReader(mapped.ReadMapping):
    """Reads the newest frame. IpcError when the camera's file is absent or damaged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "no such camera is being published")
        self._map = self.map
        magic, version, self._slots, self._capacity = _PREFIX.unpack_from(self._map, 0)
        if magic != _MAGIC or version != _VERSION:
            raise IpcError(f"{path}: is no frame file of version {_VERSION}")
        self._stride = (_SLOT.size + self._capacity + 8 + 63) // 64 * 64
        if self._slots < 1 or len(self._map) < _PAGE + self._stride * self._slots:
            raise IpcError(f"{path}: is too short for the frames that it announces")

    @property
    def last(self) -> int:
        """Sequence of the newest frame, 0 before the first."""
        sequence: int = _LAST.unpack_from(self._map, _LAST_AT)[0]
        return sequence

    def latest(self) -> Frame | None:
        """The newest whole frame, or None before the first."""
        for _ in range(4):
            number = self.last
            if number == 0:
                return None
            start = _PAGE + (number % self._slots) * self._stride
            raw = self._map[start : start + self._stride]
            begin, captured_ns, width, height, encoding, length = _SLOT.unpack_from(raw)
            (echo,) = _LAST.unpack_from(raw, self._stride - 8)
            if begin == echo == number and length <= self._capacity and encoding in _ENCODINGS:
                data = raw[_SLOT.size : _SLOT.size + length]
                return Frame(number, captured_ns, width, height, Encoding(encoding), data)
        return None
