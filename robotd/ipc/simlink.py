"""Control channel to the simulator: reset the scene, ask how the task stands, inject faults.

One Unix seqpacket socket in the runtime directory, one JSON object per message, answered in order.
Only tools use it (demo, evaluation, tests); `control` and `observer` do not know it exists.
"""

import os
import socket
from pathlib import Path
from typing import Annotated, Any

import msgspec

from robotd.errors import IpcError, SimError

SOCKET_NAME = "sim.sock"
_MAX = 65536


class Reset(msgspec.Struct, tag="reset", forbid_unknown_fields=True):
    """New episode: the scene of this seed, the arm teleported to its (seeded) start pose."""

    seed: Annotated[int, msgspec.Meta(ge=0)]


class Query(msgspec.Struct, tag="query", forbid_unknown_fields=True):
    """How the task stands; with `state` also the whole state of the physics."""

    state: bool = False


class Inject(msgspec.Struct, tag="inject", forbid_unknown_fields=True):
    """Faults in their text form (robotd/sim/faults.py); an empty text ends all of them."""

    faults: Annotated[str, msgspec.Meta(max_length=2000)]
    arm: str = ""  # arm id, "": all


class Hand(msgspec.Struct, tag="hand", forbid_unknown_fields=True):
    """An outside hand pulls joints (index -> radians); an empty map lets go."""

    joints: dict[int, float]
    arm: str = ""


Request = Reset | Query | Inject | Hand


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """Answer to any request; `error` is empty when it was carried out."""

    error: str = ""
    time_ns: int = 0  # CLOCK_MONOTONIC up to which the physics has been stepped
    seed: int = 0
    success: bool = False
    success_ns: int = 0  # simulated time since reset at which the task succeeded
    elapsed_ns: int = 0  # simulated time since reset
    info: dict[str, Any] = {}
    state: list[float] = []  # Physics.state().integration


_REQUESTS = msgspec.json.Decoder(Request)
_ANSWERS = msgspec.json.Decoder(Answer)


class SimLinkServer:
    """The simulator's end; poll its descriptors and call `serve` when one is readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(str(path))
        except OSError as error:
            raise IpcError(f"{path}: cannot open the simulator's socket: {error}") from error
        os.chmod(path, 0o660)
        self._listener.listen(8)
        self._peers: dict[int, socket.socket] = {}

    def descriptors(self) -> list[int]:
        """Descriptors to poll for reading."""
        return [self._listener.fileno(), *self._peers]

    def serve(self, descriptor: int) -> tuple[int, Request] | None:
        """Accept, or read one request; bad requests are answered here. Returns (peer, request)."""
        if descriptor == self._listener.fileno():
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return None
            peer.setblocking(False)
            self._peers[peer.fileno()] = peer
            return None
        try:
            data = self._peers[descriptor].recv(_MAX)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._drop(descriptor)
            return None
        try:
            return descriptor, _REQUESTS.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.answer(descriptor, Answer(error=f"bad request: {error}"))
            return None

    def answer(self, peer: int, answer: Answer) -> None:
        """Answer one peer; a peer that has gone or does not read is dropped."""
        if peer in self._peers:
            try:
                self._peers[peer].send(msgspec.json.encode(answer))
            except OSError:
                self._drop(peer)

    def _drop(self, peer: int) -> None:
        self._peers.pop(peer).close()

    def close(self) -> None:
        """Close everything and remove the socket."""
        for peer in list(self._peers):
            self._drop(peer)
        self._listener.close()
        self.path.unlink(missing_ok=True)


class SimLink:
    """A tool's end. SimError when the simulator refuses, IpcError when it is not there."""

    def __init__(self, runtime_dir: Path, timeout_s: float = 10.0) -> None:
        path = runtime_dir / SOCKET_NAME
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise IpcError(f"{path}: no simulator is running here") from error

    def call(self, request: Request) -> Answer:
        """Send one request and wait for its answer."""
        try:
            self._socket.send(msgspec.json.encode(request))
            data = self._socket.recv(_MAX)
        except OSError as error:
            raise IpcError(f"the simulator does not answer: {error}") from error
        if not data:
            raise IpcError("the simulator has ended")
        answer = _ANSWERS.decode(data)
        if answer.error:
            raise SimError(answer.error)
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
