"""A bus for comparing clients: a pseudo-terminal whose servos answer from memory.

The servo emulator is real but slow, and its cost would drown what is compared. So each request is
asked of it once; after that a small program (responder.c, else responder.py) gives the same bytes
again, at once ("instant wire") or when the last of them would have come over a wire. All clients
talk to the same program over the same pseudo-terminal, whatever they ask and however they wait:
what differs between them is their own.
"""

import contextlib
import fcntl
import os
import pty
import queue
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from robotd.bench.native import Native
from robotd.bus.registers import Protocol
from robotd.bus.tty import make_raw
from robotd.children import prepare_child
from robotd.errors import ProcessError

BITS_PER_BYTE = 10  # start, eight data bits, stop
_ANSWER_S = 10.0
_COUNTERS = struct.Struct("<6Q")

Teacher = Callable[[bytes], bytes]  # request -> answer, all servos' packets in a row


def emulator(model: str) -> tuple[Protocol, Teacher]:
    """A simulated arm's servos as a teacher, torque off, joints at rest."""
    from robotd.sim.bus import SimBus

    bus = SimBus(model)

    def teach(request: bytes) -> bytes:
        return b"".join(data for _, data in bus.feed(request, time.monotonic_ns()))

    return Protocol(bus.arm.protocol), teach


@dataclass(frozen=True, slots=True)
class Counters:
    """What a responder has done since its start. Bytes are those on the wire, both directions."""

    requests: int
    asked: int  # of the emulator
    request_bytes: int
    answer_bytes: int
    junk: int  # bytes that belonged to no packet
    realtime: bool


class Wire:
    """One simulated bus at `path`. Close it, or use it as a context manager."""

    def __init__(self, protocol: Protocol, teacher: Teacher, native: Native) -> None:
        self._teacher = teacher
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._master, self._slave = pty.openpty()  # our slave end: it outlives its clients
        make_raw(self._slave, "pseudo-terminal")
        self.path = os.ttyname(self._slave)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = native.build("responder")
        self.program = "responder.c" if program else "responder.py"
        head = [str(program)] if program else [sys.executable, "-m", "robotd.bench.responder"]
        kind = "x" if protocol is Protocol.DYNAMIXEL else "s"
        self._process = subprocess.Popen(
            [*head, str(self._master), str(theirs.fileno()), kind],
            pass_fds=(self._master, theirs.fileno()),
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: prepare_child(True),
            start_new_session=True,
        )
        theirs.close()
        self._thread = threading.Thread(target=self._teach, daemon=True)
        self._thread.start()

    def _teach(self) -> None:
        """Answer what the responder does not know yet; runs beside the bench."""
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096):
                if message[:1] == b"R":
                    self._socket.send(b"R" + self._teacher(message[1:]))
                else:
                    self._answers.put(message[1:])

    def set_baud(self, baud: int | None) -> None:
        """Bytes take as long as at this rate from now on; None: no time at all."""
        byte_ns = round(1e9 * BITS_PER_BYTE / baud) if baud else 0
        self._socket.send(b"B" + struct.pack("<I", byte_ns))
        self.counters()  # answered in order: the change has been made

    def counters(self) -> Counters:
        """What went over the wire so far. ProcessError when the responder has gone."""
        try:
            self._socket.send(b"S")
            raw = self._answers.get(timeout=_ANSWER_S)
        except (OSError, queue.Empty):
            raise ProcessError(f"the bench's {self.program} does not answer") from None
        requests, asked, sent, answered, junk, realtime = _COUNTERS.unpack(raw)
        return Counters(requests, asked, sent, answered, junk, bool(realtime))

    def free(self) -> None:
        """After a client: let the next one open the port, drop what nobody has read."""
        fcntl.ioctl(self._slave, termios.TIOCNXCL)
        termios.tcflush(self._slave, termios.TCIOFLUSH)

    def close(self) -> None:
        """End the responder."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._process.wait()
        self._thread.join(_ANSWER_S)
        self._socket.close()
        for fd in (self._master, self._slave):
            os.close(fd)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
