"""A byte pipe to one bus: serial device, pseudo-terminal, or inherited descriptor.

`SerialPort` is opened by path (raw, exclusive, low latency where the driver can) or takes an open
descriptor, which may also be a stream socket. Nothing here waits past a deadline or spins. All
failures are PortError; a hang-up is noticed on the next read or write.

On a terminal that is read again and again for the same number of bytes VMIN is set to that number
(VTIME 0): a wait then ends once, when all of them are there. It is changed seldom, for each change
makes some USB adapters talk to their device for a millisecond.
"""

import errno
import os
import select
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from robotd.bus.tty import make_raw, open_tty
from robotd.errors import PortError

_WRITE_PATIENCE_S = 0.005  # a healthy port takes a tick's bytes at once
_FLUSH_CHUNK = 4096
_LARGEST_VMIN = 255
_STEADY_READS = 8  # of the same size, before VMIN follows
_GONE = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.EPIPE, errno.ECONNRESET, errno.EBADF)


class Port(Protocol):
    """One byte pipe to one bus. Every failure is a PortError."""

    def write(self, data: bytes) -> None:
        """Hand all of `data` over, without waiting for it to be on the wire."""

    def read(self, size: int, deadline_ns: int) -> bytes:
        """At most `size` bytes: when they are there, or what is there at the deadline.

        A deadline that has passed (0) makes it a look without waiting.
        """

    def flush_input(self) -> int:
        """Drop what has arrived and return how many bytes that was."""

    def reopen(self) -> bool:
        """One cheap attempt to get a lost port back; True when it can be used again."""

    def close(self) -> None:
        """Give the port back. Can be called twice."""


class SerialPort:
    """A serial device, a pseudo-terminal or a socket behind a file descriptor."""

    def __init__(self, fd: int, name: str, reopener: Callable[[], int] | None = None) -> None:
        self.name = name
        self._reopener = reopener
        self._attach(fd)

    @classmethod
    def open(cls, path: str | Path, baud: int) -> "SerialPort":
        """Open a serial device for this process alone, 8N1 at `baud`.

        Raises PortError saying what is wrong: absent, not permitted, busy and with whom, no
        serial device, a rate the device does not have.
        """
        name = str(path)
        return cls(open_tty(name, baud), name, lambda: open_tty(name, baud, explain=False))

    @classmethod
    def from_fd(cls, fd: int, name: str = "") -> "SerialPort":
        """Take over an open descriptor: terminal or stream socket. It is closed with the port."""
        name = name or f"descriptor {fd}"
        port = cls(fd, name)
        if port._terminal:
            make_raw(fd, name)
        return port

    def _attach(self, fd: int) -> None:
        try:
            os.set_blocking(fd, False)
            self._terminal = os.isatty(fd)
        except OSError as error:
            raise PortError(f"{self.name}: not a usable descriptor: {error.strerror}") from None
        self._fd = fd
        self._vmin = 1
        self._size = 0  # of the last read
        self._steady = 0  # reads of that size in a row

    def write(self, data: bytes) -> None:
        """Hand `data` to the kernel; raises PortError when it does not take it within 5 ms."""
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._lost(error) from None
        if sent != len(data):
            self._write_rest(data[sent:])

    def _write_rest(self, data: bytes) -> None:
        end = time.monotonic() + _WRITE_PATIENCE_S
        try:
            while data:
                left = max(0.0, end - time.monotonic())
                if not select.select((), (self._fd,), (), left)[1]:
                    raise PortError(f"{self.name}: takes no more bytes; does anything read there?")
                data = data[os.write(self._fd, data) :]
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def read(self, size: int, deadline_ns: int) -> bytes:
        """At most `size` bytes, waiting until `deadline_ns` (CLOCK_MONOTONIC) for all of them."""
        data = b""
        try:
            if self._terminal and deadline_ns and size != self._vmin:
                self._suit(size)
            self._wait(deadline_ns)
            while True:
                try:
                    part = os.read(self._fd, size - len(data))
                except BlockingIOError:
                    if not self._wait(deadline_ns, bool(data)):
                        return data
                    continue
                if not part:
                    raise self._lost(None)
                data = data + part if data else part
                if len(data) == size:
                    return data
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def _wait(self, deadline_ns: int, for_the_rest: bool = False) -> bool:
        """Sleep until there is something to read; False when the deadline had already passed."""
        left_ns = deadline_ns - time.monotonic_ns()
        if left_ns <= 0:
            return False
        if for_the_rest and self._vmin > 1:
            self._set_vmin(1)
        select.select((self._fd,), (), (), left_ns * 1e-9)
        return True

    def flush_input(self) -> int:
        """Drop what has arrived; bytes dropped."""
        dropped = 0
        try:
            while part := os.read(self._fd, _FLUSH_CHUNK):
                dropped += len(part)
        except BlockingIOError:
            return dropped
        except OSError as error:
            raise self._lost(error) from None
        raise self._lost(None)

    def reopen(self) -> bool:
        """Open the path again when the port was lost; one attempt, no search for who holds it.

        An inherited descriptor cannot come back: False once it is gone.
        """
        if self._fd >= 0:
            return True
        if self._reopener is None:
            return False
        try:
            self._attach(self._reopener())
        except PortError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptor; the port can then no longer be reopened."""
        self._reopener = None
        self._drop()

    def _suit(self, size: int) -> None:
        """Have VMIN not above what is read now, and equal to what is always read."""
        self._steady = self._steady + 1 if size == self._size else 0
        self._size = size
        if self._steady >= _STEADY_READS and size <= _LARGEST_VMIN:
            self._set_vmin(size)
        elif self._vmin > size:
            self._set_vmin(1)

    def _set_vmin(self, size: int) -> None:
        try:
            mode = termios.tcgetattr(self._fd)
            mode[6][termios.VMIN] = size
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        except termios.error as error:
            raise OSError(*error.args) from None
        self._vmin = size

    def _lost(self, error: Exception | None) -> PortError:
        """What to raise; closes the descriptor, so that the path can be opened again."""
        if self._fd < 0:
            return PortError(f"{self.name}: the port is closed")
        self._drop()
        if error is None or (isinstance(error, OSError) and error.errno in _GONE):
            return PortError(f"{self.name}: the port has gone away; is it unplugged?")
        return PortError(f"{self.name}: {error}")

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
