"""The physics' newest state in shared memory, for the process that draws the cameras' pictures.

A memory-mapped file with two slots in turn, each with its sequence number at both ends: the writer
never waits, and a reader that was overtaken looks again.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from robotd.errors import IpcError
from robotd.ipc import mapped

SCENE_NAME = "scene"
_MAGIC = b"ROBOTD-SCENE"
_HEAD = struct.Struct("<12sI")  # magic, size of a snapshot
_LAST = struct.Struct("<Q")
_LAST_AT = 16
_SLOTS_AT = 64
_SLOT = struct.Struct("<QQ")  # sequence, time_ns


class SceneWriter:
    """Publishes `Physics.snapshot`s of one size."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        self._stride = _SLOT.size + size + _LAST.size
        self._sequence = 0

        def fill(mapping: mmap.mmap) -> None:
            _HEAD.pack_into(mapping, 0, _MAGIC, size)

        total = _SLOTS_AT + 2 * self._stride
        self._map = mapped.create(path, total, fill, "the scene file")

    def publish(self, snapshot: bytes, time_ns: int) -> None:
        """Make a snapshot the newest one."""
        number = self._sequence + 1
        start = _SLOTS_AT + (number % 2) * self._stride
        body = start + _SLOT.size
        _LAST.pack_into(self._map, body + self._size, 0)
        _SLOT.pack_into(self._map, start, number, time_ns)
        self._map[body : body + self._size] = snapshot
        _LAST.pack_into(self._map, body + self._size, number)
        _LAST.pack_into(self._map, _LAST_AT, number)
        self._sequence = number

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


class SceneReader(mapped.ReadMapping):
    """Reads the newest snapshot. IpcError when the file is absent or no scene."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "no simulator is publishing its scene", _SLOTS_AT)
        self._map = self.map
        magic, self._size = _HEAD.unpack_from(self._map, 0)
        self._stride = _SLOT.size + self._size + _LAST.size
        if magic != _MAGIC or len(self._map) != _SLOTS_AT + 2 * self._stride:
            raise IpcError(f"{path}: is no scene file")

    def latest(self) -> tuple[int, bytes] | None:
        """Time and snapshot, or None before the first."""
        for _ in range(8):
            (number,) = _LAST.unpack_from(self._map, _LAST_AT)
            if number == 0:
                return None
            start = _SLOTS_AT + (number % 2) * self._stride
            raw = self._map[start : start + self._stride]
            begin, time_ns = _SLOT.unpack_from(raw)
            (echo,) = _LAST.unpack_from(raw, _SLOT.size + self._size)
            if begin == echo == number:
                return time_ns, raw[_SLOT.size : _SLOT.size + self._size]
        return None
