"""The observer's end of the link to the policy worker.

A DEALER socket that is thrown away and made anew whenever the worker has died, hung or restarted,
so that nothing stale can arrive. No clock of its own: the caller passes the time.

    absent     no connection               -> greeting   once connected
    greeting   HELLO sent, not answered    -> ready | refused, or absent again when nothing comes
    ready      the worker serves our bundle
    refused    it serves another bundle; asked again every few seconds
"""

import hashlib
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import zmq

from robotd.errors import ConfigError, WireError
from robotd.observer.detokenize import Reply
from robotd.observer.observation import Observation
from robotd.policy.bundle import Bundle
from robotd.policy.endpoint import check_endpoint, is_remote, secure_client
from robotd.policy.session import Image
from robotd.policy.wire import (
    MAX_MANIFEST,
    Chunk,
    Error,
    Hello,
    ImageInfo,
    Message,
    Observe,
    Ping,
    Pong,
    decode,
    encode,
    pack_state,
    tokens_of,
)

_PATIENCE_NS = 1_000_000_000  # for the answer to HELLO or PING; longer where requests may take so
_PING_NS = 500_000_000  # silence after which a ready worker is asked whether it is there
_ASK_AGAIN_NS = 2_000_000_000  # a worker with another bundle
_REDIAL_NS = 2_000_000_000  # libzmq itself does not try again after a broken handshake
_BURST = 64  # messages taken per call
_JPEG_QUALITY = 95
_MONITOR_EVENT = struct.Struct("=Hi")  # event, value: zmq_socket_monitor(3)
_ENDED = zmq.EVENT_DISCONNECTED
_NOT_LET_IN = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_CUT_OFF = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL  # a worker that just ended, or other keys


@dataclass(frozen=True, slots=True)
class Refusal:
    """The worker's ERROR for one request (sequence 0: for something else)."""

    sequence: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection was given up; an open request will not be answered."""

    reason: str  # worker_ended | worker_silent
    text: str


Event = Reply | Refusal | Lost


@dataclass
class LinkCounts:
    """What has gone wrong so far."""

    reconnects: int = 0  # times ready again after the first
    garbage: int = 0  # messages that break the protocol


class Link:
    """Connection to one worker that must serve `bundle`. One thread."""

    def __init__(self, endpoint: str, bundle: Bundle, keys: Path | None, timeout_s: float) -> None:
        """ConfigError for an endpoint that is malformed or unsafe, or keys that are missing."""
        check_endpoint(endpoint, keys)
        self.endpoint = endpoint
        self.state = "absent"
        self.text = f"no worker at {endpoint}"
        self.warmup_ms: tuple[float, ...] = ()
        self.counts = LinkCounts()
        self.poller = zmq.Poller()
        self._bundle = bundle
        self._keys = keys
        self._patience_ns = max(_PATIENCE_NS, round(timeout_s * 1e9))
        self._jpeg = is_remote(endpoint)
        self._client = secrets.token_hex(8)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._been_ready = False
        self._asked_ns = 0  # HELLO or PING that is not answered yet was sent then; 0: none
        self._heard_ns = 0
        self._dialled_ns = 0  # when this socket was first seen absent; 0: not yet
        self._events: list[Event] = []
        self._open()

    @property
    def ready(self) -> bool:
        """True when the worker serves our bundle and was heard lately."""
        return self.state == "ready"

    def _open(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.immediate = True  # queue nothing for a worker that is not connected
        socket.maxmsgsize = MAX_MANIFEST
        socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 500  # ms
        socket.handshake_ivl = 2000  # ms; a peer that accepts and says nothing
        socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 3000  # ms; half-open TCP
        secure_client(socket, self._keys)
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | _ENDED | _NOT_LET_IN | _CUT_OFF
        )
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"{self.endpoint}: cannot connect: {error.strerror}") from error
        self._socket, self._dialled_ns = socket, 0
        self.poller.register(socket, zmq.POLLIN)
        self.poller.register(self._monitor, zmq.POLLIN)

    def _shut(self) -> None:
        self.poller.unregister(self._socket)
        self.poller.unregister(self._monitor)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def close(self) -> None:
        """Close the connection."""
        self._shut()
        self._context.destroy(linger=0)

    def give_up(self, reason: str, text: str) -> None:
        """Throw the socket away and begin anew; reported as Lost by the next `events`."""
        self._shut()
        self._open()
        self.state, self.text, self._asked_ns = "absent", text, 0
        self._events.append(Lost(reason, text))

    def step(self, now_ns: int, waiting: bool) -> None:
        """Greet, ping, and give up on silence. `waiting`: a request is open, and timed elsewhere.

        A worker busy with a request answers nothing else, so no PING is sent or timed meanwhile.
        """
        if self.state == "absent":
            self._greet(now_ns)
            self._dialled_ns = self._dialled_ns or now_ns
            if self.state == "absent" and now_ns - self._dialled_ns > _REDIAL_NS:
                self._shut()
                self._open()
        elif self.state == "ready":
            if waiting:
                self._asked_ns = 0
            elif not self._asked_ns and now_ns - self._heard_ns > _PING_NS:
                self._say(encode(Ping(now_ns)))
                self._asked_ns = now_ns
        elif self.state == "refused" and now_ns - self._heard_ns > _ASK_AGAIN_NS:
            self._greet(now_ns)
        if self._asked_ns and now_ns - self._asked_ns > self._patience_ns:
            self.give_up("worker_silent", f"the worker at {self.endpoint} does not answer")

    def _greet(self, now_ns: int) -> None:
        if self._say(encode(Hello(self._client, self._bundle.digest, self._bundle.manifest.name))):
            self.state, self._asked_ns = "greeting", now_ns
            self.text = f"the worker at {self.endpoint} has not answered yet"

    def _say(self, parts: list[bytes]) -> bool:
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def send(self, observation: Observation) -> bool:
        """Send a request; False when there is no ready worker to take it."""
        if not self.ready:
            return False
        images = [self._coded(name, image) for name, image in observation.images.items()]
        header = Observe(
            client=self._client,
            sequence=observation.sequence,
            observed_ns=observation.observed_ns,
            digest=self._bundle.digest,
            state_size=len(observation.state),
            images=tuple(info for info, _ in images),
        )
        state = pack_state(observation.state)
        return self._say(encode(header, state, *(data for _, data in images)))

    def _coded(self, camera: str, image: Image) -> tuple[ImageInfo, bytes]:
        """An image as it travels: raw inside this machine, JPEG beyond it."""
        height, width = image.shape[:2]
        if not self._jpeg:
            return ImageInfo(camera, width, height), image.tobytes()
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
        return ImageInfo(camera, width, height, "jpeg"), data.tobytes()

    def events(self, now_ns: int) -> list[Event]:
        """Everything that has happened since the last call."""
        for message in self._received():
            self._heard_ns, header = now_ns, message.header
            if isinstance(header, Chunk):
                self._events.append(
                    Reply(
                        header.sequence,
                        header.observed_ns,
                        header.digest,
                        tokens_of(message),
                        header.inference_ns,
                    )
                )
            elif isinstance(header, Error):
                self._events.append(Refusal(header.sequence, header.reason, header.text))
            elif isinstance(header, Hello):
                self._welcomed(header, message)
            elif isinstance(header, Pong):
                self._asked_ns = 0
            else:
                self.counts.garbage += 1
        self._watch()
        events, self._events = self._events, []
        return events

    def _received(self) -> Iterator[Message]:
        for _ in range(_BURST):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield decode(parts)
            except WireError:
                self.counts.garbage += 1

    def _welcomed(self, header: Hello, message: Message) -> None:
        """The worker's HELLO: is it for us, and does it serve our bundle?"""
        if header.client != self._client or self.state != "greeting":
            self.counts.garbage += 1
            return
        self._asked_ns = 0
        ours = self._bundle
        proof = hashlib.sha256(message.buffers[0]).hexdigest() if message.buffers else ""
        if header.digest != ours.digest or proof != ours.digest:
            self.state = "refused"
            self.text = (
                f"the worker at {self.endpoint} serves bundle {header.name or 'unnamed'} "
                f"{header.digest[:12]}, configured is {ours.manifest.name} {ours.digest[:12]}"
            )
            return
        self.state, self.text, self.warmup_ms = "ready", "", header.warmup_ms
        self.counts.reconnects += self._been_ready
        self._been_ready = True

    def _watch(self) -> None:
        """What the transport says: a worker that has ended, or does not let us in."""
        while self._monitor.poll(0):
            event, _ = _MONITOR_EVENT.unpack(self._monitor.recv_multipart()[0])
            if event & _NOT_LET_IN or (event & _CUT_OFF and self._keys is not None):
                self.text = f"whoever listens at {self.endpoint} does not let us in: other keys?"
            elif event & _ENDED and self.state != "absent":
                self.give_up("worker_ended", f"the worker at {self.endpoint} has ended")
                return
