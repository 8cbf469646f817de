"""Files that processes share by mapping them: made whole, put in place in one step."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from robotd.errors import IpcError

PAGE = 4096


def create(path: Path, size: int, fill: Callable[[mmap.mmap], None], what: str) -> mmap.mmap:
    """Map a new file of `size` bytes, `fill` it, and put it in the place of any earlier one.

    The space is allocated now: a disk that fills up later would end the writer with SIGBUS. Raises
    IpcError naming `what` could not be created.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with open(fresh, "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            mapping = mmap.mmap(file.fileno(), size)
        fill(mapping)
        os.chmod(fresh, 0o640)
        os.replace(fresh, path)
    except OSError as error:
        raise IpcError(f"{fresh}: cannot create {what}: {error.strerror}") from error
    return mapping


class ReadMapping:
    """A shared file for reading. IpcError with `missing` when it is not there or too short."""

    def __init__(self, path: Path, missing: str, least: int = PAGE) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._inode = os.fstat(file.fileno()).st_ino
                self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise IpcError(f"{path}: {missing}") from error
        if len(self.map) < least:
            raise IpcError(f"{path}: is too short, {len(self.map)} bytes")

    @property
    def replaced(self) -> bool:
        """True when a new writer has put another file in this one's place."""
        try:
            return os.stat(self.path).st_ino != self._inode
        except OSError:
            return True

    def close(self) -> None:
        """Unmap the file."""
        self.map.close()
