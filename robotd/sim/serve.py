"""A simulated bus in real time: on a pseudo-terminal or a socket, served by one thread.

The thread sleeps in `select` until a request comes, a reply is due, or the physics must move on;
it never waits busily for longer than 50 us. Simulated time is CLOCK_MONOTONIC.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from robotd.errors import SimError
from robotd.sim.bus import SimBus

SPIN_NS = 50_000  # sleep is not exact: the last bit of a wait for a reply is spent looking
_CHUNK = 4096
_TCGETS2 = 0x802C542A  # _IOR('T', 0x2A, struct termios2), the same on x86 and arm
_TERMIOS2 = struct.Struct("=4I20B2I")
_PR_SET_TIMERSLACK = 29


class Line(Protocol):
    """The client's end of the cable, as the simulator sees it."""

    def descriptor(self) -> int:
        """What to poll for bytes; -1 while nobody is there."""

    def receive(self) -> tuple[bytes, int | None]:
        """What has come in and the client's baud rate; b"" when the client has gone."""

    def send(self, data: bytes) -> None:
        """Deliver bytes; nobody there, or nobody reading: they are lost."""

    def look(self) -> None:
        """See whether somebody has come back; called while nobody is there."""

    def unplug(self, gone: bool) -> None:
        """Pull the cable out, or put it in again."""

    def close(self) -> None:
        """Take the line down for good."""


class SocketLine:
    """One end of a stream socket pair. Unplugged it is silent, for a socket cannot come back."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._there = True
        self._plugged = True

    def descriptor(self) -> int:
        return self._socket.fileno() if self._there else -1

    def receive(self) -> tuple[bytes, int | None]:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return b"", None
        except OSError:
            data = b""
        self._there = bool(data)
        return data if self._plugged else b"", None

    def send(self, data: bytes) -> None:
        if self._plugged and self._there:
            try:
                self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._there = False

    def look(self) -> None:
        """A socket whose other end was closed stays so."""

    def unplug(self, gone: bool) -> None:
        self._plugged = not gone

    def close(self) -> None:
        self._socket.close()
        self._there = False


class PtyLine:
    """A pseudo-terminal, under a link that stays the same when it is unplugged and plugged in.

    Nobody but the client holds the terminal open: so its exclusive use ends with it, and a new
    client finds a fresh terminal. Raises SimError when the link cannot be made.
    """

    def __init__(self, link: Path | None = None) -> None:
        self._link = link
        self._master = -1
        self._poll = select.poll()
        self._there = False
        self._open()

    @property
    def path(self) -> Path:
        """What clients open: the link, or the terminal itself."""
        return self._link if self._link is not None else Path(self._name)

    def _open(self) -> None:
        self._master, slave = os.openpty()
        self._name = os.ttyname(slave)
        os.set_blocking(self._master, False)
        os.close(slave)
        self._there = False
        self._poll.register(self._master, select.POLLIN)
        if self._link is not None:
            self._point(self._link)

    def _point(self, link: Path) -> None:
        try:
            if link.is_symlink():
                if link.exists() and os.readlink(link) != self._name:
                    raise SimError(
                        f"{link} points to {os.readlink(link)}, which exists; "
                        "is another simulator running? Otherwise remove the link."
                    )
            elif link.exists():
                raise SimError(f"{link} exists and is no link; choose another path")
            fresh = link.with_name(f".{link.name}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(self._name)
            os.replace(fresh, link)
        except OSError as error:
            raise SimError(f"{link}: cannot make the link: {error.strerror}") from error

    def descriptor(self) -> int:
        return self._master if self._there else -1

    def look(self) -> None:
        if self._master >= 0:
            events = self._poll.poll(0)
            self._there = not any(event & select.POLLHUP for _, event in events)

    def receive(self) -> tuple[bytes, int | None]:
        try:
            return os.read(self._master, _CHUNK), self._baud()
        except BlockingIOError:
            return b"", None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._there = False  # the client has closed it
            return b"", None

    def _baud(self) -> int:
        answer = fcntl.ioctl(self._master, _TCGETS2, bytes(_TERMIOS2.size))
        speed: int = _TERMIOS2.unpack(answer)[-1]
        return speed

    def send(self, data: bytes) -> None:
        if self._master < 0:
            return
        try:
            os.write(self._master, data)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EIO):
                raise

    def unplug(self, gone: bool) -> None:
        if gone and self._master >= 0:
            self._shut()
        elif not gone and self._master < 0:
            self._open()

    def close(self) -> None:
        if self._master >= 0:
            self._shut()

    def _shut(self) -> None:
        self._poll.unregister(self._master)
        os.close(self._master)
        self._master = -1
        self._there = False
        link = self._link
        if link is not None and link.is_symlink() and os.readlink(link) == self._name:
            link.unlink()


class _Served:
    """One bus on its line, with the replies that are on their way."""

    def __init__(self, bus: SimBus, line: Line) -> None:
        self.bus = bus
        self.line = line
        self.due: list[tuple[int, bytes]] = []
        self.was_there = False

    def receive(self, now_ns: int) -> None:
        """Take what came in and answer what is due at once."""
        data, baud = self.line.receive()
        if data:
            self.due += self.bus.feed(data, now_ns, baud)
            if len(self.due) > 1:
                self.due.sort(key=lambda one: one[0])

    def send(self, now_ns: int) -> None:
        """Deliver what is due."""
        while self.due and self.due[0][0] <= now_ns:
            self.line.send(self.due.pop(0)[1])

    def look(self) -> None:
        """Notice a client that came or went."""
        there = self.line.descriptor() >= 0
        if self.was_there and not there:
            self.due.clear()
            self.bus.hang_up()
        if not there:
            self.line.look()
        self.was_there = there


class BusServer:
    """Serves buses, and whatever else the process has to poll, from one thread."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._served: list[_Served] = []
        self._others: Callable[[], list[int]] = list
        self._serve_other: Callable[[int], None] = lambda fd: None
        self._after_step: Callable[[int], None] = lambda now_ns: None
        self._stopped = False

    def add(self, bus: SimBus, line: Line) -> None:
        """Serve a bus on a line; its unplug faults pull that line."""
        bus.faults.unplug = line.unplug
        self._served.append(_Served(bus, line))

    def also(self, descriptors: Callable[[], list[int]], serve: Callable[[int], None]) -> None:
        """Poll these descriptors too and call `serve` with one that is readable."""
        self._others, self._serve_other = descriptors, serve

    def after_step(self, call: Callable[[int], None]) -> None:
        """Call this whenever the physics has moved on while no reply was waited for."""
        self._after_step = call

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped = True

    def run(self) -> None:
        """Serve until stopped. The lines stay open."""
        _exact_sleeps()
        while not self._stopped:
            self.turn()

    def turn(self) -> None:
        """Sleep until something is to be done, at most one physics step, and do it."""
        now = self._clock()
        due = min((one.due[0][0] for one in self._served if one.due), default=None)
        step = min(one.bus.next_step_ns() for one in self._served)
        readable = self._wait(now, due, step)
        now = self._clock()
        if due is not None and due - now <= SPIN_NS and not readable:
            while now < due:
                now = self._clock()
        for one in self._served:
            if one.line.descriptor() in readable:
                one.receive(now)
            if one.due:
                one.send(now)
            one.look()
        if readable:
            for fd in self._others():
                if fd in readable:
                    self._serve_other(fd)
        if now >= step:
            for one in self._served:
                one.bus.advance(now)
            self._after_step(now)

    def _wait(self, now_ns: int, due_ns: int | None, step_ns: int) -> list[int]:
        until = step_ns if due_ns is None else min(step_ns, due_ns - SPIN_NS)
        lines = [one.line.descriptor() for one in self._served]
        polled = [fd for fd in lines if fd >= 0] + self._others()
        return select.select(polled, (), (), max(0, until - now_ns) * 1e-9)[0]


def _exact_sleeps() -> None:
    """Have the kernel end sleeps when asked, not up to 50 us later."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def until_signalled(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop())


def be_on_time(priority: int) -> bool:
    """Real-time class for this process alone: a servo does not wait for the host's scheduler.

    False where it is not permitted; then replies can be late when the machine is busy.
    """
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, policy, os.sched_param(max(1, priority)))
        return True
    return False
