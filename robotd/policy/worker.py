"""The policy worker: a server process that answers observations with action tokens.

It loads, checks and warms up its bundle, and only then listens: whoever gets a HELLO from it gets
answers. One request at a time; when a client has queued several observations, only its newest is
answered with tokens. Nothing that a peer sends ends it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import zmq

from robotd.errors import BundleError, WireError
from robotd.ipc.lifetime import StopSignal
from robotd.ipc.say import say
from robotd.policy.bundle import MANIFEST, Manifest
from robotd.policy.check import CheckedBundle, open_checked
from robotd.policy.endpoint import authenticated, bind, check_endpoint, secure_server, sole_owner
from robotd.policy.images import decode_image
from robotd.policy.session import Image
from robotd.policy.wire import (
    Chunk,
    Error,
    Hello,
    Message,
    Observe,
    Ping,
    Pong,
    decode,
    encode,
    pack_tokens,
    state_of,
)

_QUEUE = 32  # messages held per connection
_BURST = 256  # messages taken in before the next inference
_HEARTBEAT_MS = 1000  # half-open TCP connections are dropped after three of these
_LONGEST_TEXT = 500
_LEAST_LIMIT = 65536  # bytes; the longest message part accepted, where images are small


@dataclass(slots=True)
class _Pending:
    """The newest observation of one client."""

    identity: bytes
    message: Message
    header: Observe
    received_ns: int


class Answerer:
    """What the worker says to each message; knows no socket."""

    def __init__(self, checked: CheckedBundle) -> None:
        self._policy = checked.policy
        self._manifest = checked.bundle.manifest
        self._digest = checked.bundle.digest
        self._raw = (checked.bundle.folder / MANIFEST).read_bytes()
        self._warmup_ms = tuple(checked.warmup_ms)

    def hello(self, asked: Hello) -> list[bytes]:
        """Who this worker is, with its manifest."""
        name, size = self._manifest.name, len(self._raw)
        return encode(Hello(asked.client, self._digest, name, self._warmup_ms, size), self._raw)

    def answer(self, message: Message, header: Observe, received_ns: int) -> list[bytes]:
        """CHUNK for an observation, or ERROR with the reason why there is none."""
        begun = time.monotonic_ns()
        try:
            images = self._images(message, header)
            tokens = self._policy.act(images, state_of(message))
        except WireError as error:
            return refuse(header.sequence, "bad_observation", str(error))
        except BundleError as error:
            return refuse(header.sequence, "inference_failed", str(error))
        spent = time.monotonic_ns() - begun
        waited = max(0, begun - received_ns)
        made = Chunk(header.sequence, header.observed_ns, self._digest, len(tokens), waited, spent)
        return encode(made, pack_tokens(tokens))

    def _images(self, message: Message, header: Observe) -> dict[str, Image]:
        """The observation's pictures, when they and the state are what the bundle takes."""
        if header.digest != self._digest:
            raise WireError(f"made for bundle {header.digest[:12]}, served is {self._digest[:12]}")
        if header.state_size != self._manifest.state_size:
            raise WireError(f"{header.state_size} state values, not {self._manifest.state_size}")
        wanted = [(image.camera, image.width, image.height) for image in self._manifest.images]
        given = [(info.camera, info.width, info.height) for info in header.images]
        if sorted(wanted) != sorted(given):
            raise WireError(f"images {given}, not {wanted}")
        return {
            info.camera: decode_image(info, buffer)
            for info, buffer in zip(header.images, message.buffers[1:], strict=True)
        }


def refuse(sequence: int, reason: str, text: str) -> list[bytes]:
    """An ERROR message."""
    return encode(Error(sequence, reason, text[:_LONGEST_TEXT]))


class Server:
    """The loop between one ROUTER socket and the Answerer."""

    def __init__(self, router: zmq.Socket[bytes], answerer: Answerer) -> None:
        self._router = router
        self._answerer = answerer
        self._pending: dict[str, _Pending] = {}

    def run(self, stop: StopSignal) -> None:
        """Serve until a signal asks to stop."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        while not stop.requested:
            if stop.fileno() in dict(poller.poll(0 if self._pending else None)):
                stop.clear()
            self.take_in()
            self.infer_one()

    def take_in(self) -> None:
        """Read what has arrived; answer all but observations, keep each client's newest."""
        for _ in range(_BURST):
            try:
                identity, *parts = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(parts)
            except WireError as error:
                self._send(identity, refuse(0, "malformed", str(error)))
                continue
            self._sort(identity, message)

    def _sort(self, identity: bytes, message: Message) -> None:
        header = message.header
        if isinstance(header, Hello):
            self._send(identity, self._answerer.hello(header))
        elif isinstance(header, Ping):
            self._send(identity, encode(Pong(header.nonce)))
        elif isinstance(header, Observe):
            older = self._pending.pop(header.client, None)
            if older is not None:
                text = f"observation {header.sequence} is newer"
                self._send(older.identity, refuse(older.header.sequence, "superseded", text))
            now = time.monotonic_ns()
            self._pending[header.client] = _Pending(identity, message, header, now)
        else:
            kind = type(header).__name__.lower()
            self._send(identity, refuse(0, "malformed", f"a worker does not take {kind}"))

    def infer_one(self) -> None:
        """Answer the client that has waited longest."""
        if not self._pending:
            return
        client = next(iter(self._pending))
        asked = self._pending.pop(client)
        self._send(
            asked.identity, self._answerer.answer(asked.message, asked.header, asked.received_ns)
        )

    def _send(self, identity: bytes, parts: Sequence[bytes]) -> None:
        """Reply; a client that has gone or does not read loses it."""
        try:
            self._router.send_multipart([identity, *parts], zmq.NOBLOCK)
        except zmq.ZMQError:
            return


def _router(context: zmq.Context[zmq.Socket[bytes]], manifest: Manifest) -> zmq.Socket[bytes]:
    """A ROUTER socket whose queues and messages are bounded."""
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.rcvhwm = router.sndhwm = _QUEUE
    pixels = [image.width * image.height * 3 for image in manifest.images]
    router.maxmsgsize = max([_LEAST_LIMIT, *pixels])
    router.heartbeat_ivl = _HEARTBEAT_MS
    router.heartbeat_timeout = 3 * _HEARTBEAT_MS
    return router


def serve(
    folder: Path,
    endpoint: str,
    keys: Path | None = None,
    arm: str | None = None,
    joints: Sequence[str] | None = None,
    gripper_range: tuple[float, float] | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve a bundle at an endpoint until SIGTERM or SIGINT. Main thread only.

    BundleError or ConfigError when the bundle cannot be used, or the endpoint not be had.
    """
    check_endpoint(endpoint, keys)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with StopSignal() as stop, sole_owner(endpoint), authenticated(context, keys):
            checked = open_checked(folder, arm, joints, gripper_range)
            with _router(context, checked.bundle.manifest) as router:
                secure_server(router, keys)
                bind(router, endpoint)
                (announce or partial(say, "worker"))(
                    f"ready: {checked.bundle.manifest.name} {checked.bundle.digest[:12]} "
                    f"at {endpoint}, inference {checked.report.act_ms_p50:.1f} ms"
                )
                Server(router, Answerer(checked)).run(stop)
    finally:
        context.destroy(linger=0)
