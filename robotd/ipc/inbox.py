"""Inbox: chunks and commands into `control`, over one non-blocking Unix datagram socket.

The socket lies in the runtime directory with mode 0660: membership of its group is the authority.
Every datagram is size-bounded and schema-checked; a bad one is dropped and counted by reason.
A command's result shows up in the state ring, under its id.
"""

import os
import secrets
import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from robotd.errors import IpcError
from robotd.ipc.ring import RING_NAME, Result, RingReader, TickReport

SOCKET_NAME = "control.sock"
MAX_DATAGRAM = 65536
_STALE_S = 5.0  # arming and clearing may hold the loop up, on a slow adapter for seconds

CommandName = Literal["arm", "disarm", "hold", "park", "policy", "estop", "clear"]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**62)]


class Command(msgspec.Struct, tag="command", frozen=True, forbid_unknown_fields=True):
    """One order. `source`, with "policy", names whose chunks may move the arm (a digest)."""

    id: PositiveInt
    name: CommandName
    source: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Chunk(msgspec.Struct, tag="chunk", frozen=True, forbid_unknown_fields=True):
    """An action chunk: step i is the target for `observed_ns + i * period_ns`.

    `actions` is `steps x joints` little-endian float64 in normalised units, steps outermost.
    """

    source: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    sequence: PositiveInt
    observed_ns: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    period_ns: Annotated[int, msgspec.Meta(ge=1_000_000, le=1_000_000_000)]
    joints: Annotated[int, msgspec.Meta(ge=1, le=64)]
    actions: Annotated[bytes, msgspec.Meta(min_length=8, max_length=60_000)]

    def values(self) -> array[float]:
        """All targets, flat; IpcError when the length is not whole steps."""
        if len(self.actions) % (8 * self.joints):
            raise IpcError(f"chunk of {len(self.actions)} bytes is not whole steps")
        return array("d", self.actions)


Message = Command | Chunk
_DECODER = msgspec.msgpack.Decoder(Message)
_ENCODER = msgspec.msgpack.Encoder()


class Inbox:
    """Control's end: bind once, drain at the start of each tick."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped: Counter[str] = Counter()
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            raise IpcError(f"{path}: cannot open the command socket: {error}") from error
        os.chmod(path, 0o660)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def drain(self, limit: int = 16) -> tuple[list[Command], Chunk | None]:
        """Up to `limit` datagrams: the commands in order, and the newest chunk (last one wins)."""
        commands: list[Command] = []
        chunk: Chunk | None = None
        if not self._poll.poll(0):  # the usual case: a third of the cost of a read
            return commands, chunk
        for _ in range(limit):
            try:
                data = self._socket.recv(MAX_DATAGRAM + 1)
            except BlockingIOError:
                break
            except OSError:
                self.dropped["socket"] += 1
                break
            if len(data) > MAX_DATAGRAM:
                self.dropped["too_long"] += 1
                continue
            try:
                message = _DECODER.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.dropped["malformed"] += 1
                continue
            if isinstance(message, Command):
                commands.append(message)
            else:
                if chunk is not None:
                    self.dropped["superseded"] += 1
                chunk = message
        return commands, chunk

    def close(self) -> None:
        """Close and remove the socket."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


class InboxClient:
    """Everybody else's end. Sending never blocks; a full inbox is an IpcError."""

    def __init__(self, runtime_dir: Path) -> None:
        self._path = runtime_dir / SOCKET_NAME
        self._ring = runtime_dir / RING_NAME
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def _send(self, message: Message) -> None:
        try:
            self._socket.sendto(_ENCODER.encode(message), str(self._path))
        except BlockingIOError as error:
            raise IpcError(
                f"{self._path}: the inbox is full; control is not draining it"
            ) from error
        except PermissionError as error:
            raise IpcError(f"{self._path}: not permitted; join the socket's group") from error
        except OSError as error:
            raise IpcError(
                f"{self._path}: robotd is not running here ({error.strerror}); start `robotd run`"
            ) from error

    def send_chunk(
        self,
        source: str,
        sequence: int,
        observed_ns: int,
        period_ns: int,
        steps: Sequence[Sequence[float]],
    ) -> None:
        """Send a chunk of `steps` x joints targets in normalised units."""
        flat = array("d", [value for step in steps for value in step])
        self._send(Chunk(source, sequence, observed_ns, period_ns, len(steps[0]), flat.tobytes()))

    def send(self, name: CommandName, source: str = "") -> int:
        """Send a command; returns its id, under which the ring reports the result."""
        number = secrets.randbits(61) + 1
        self._send(Command(number, name, source))
        return number

    def call(self, name: CommandName, source: str = "", timeout_s: float = 5.0) -> TickReport:
        """Send a command and wait for its result; IpcError when refused or not answered."""
        ring = RingReader(self._ring)
        try:
            seen = ring.last
            number = self.send(name, source)
            end = time.monotonic() + timeout_s
            last_growth = time.monotonic()
            while time.monotonic() < end:
                for report in ring.since(seen):
                    seen = report.sequence
                    last_growth = time.monotonic()
                    if report.command_id == number:
                        if report.command_result is Result.REFUSED:
                            raise IpcError(f"{name}: refused: {report.command_text}")
                        return report
                if time.monotonic() - last_growth > _STALE_S:
                    break
                time.sleep(0.005)
            raise IpcError(f"{name}: control did not answer; its loop is not ticking")
        finally:
            ring.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
