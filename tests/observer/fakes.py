"""Stand-ins for the observer's neighbours: a worker that says what a test wants, and a control
loop that publishes ticks and keeps the chunks that it is sent.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from robotd.config import JOINTS, Config
from robotd.ipc.inbox import SOCKET_NAME, Inbox
from robotd.ipc.inbox import Chunk as InboxChunk
from robotd.ipc.ring import RING_NAME, Layout, Mode, RingWriter
from robotd.policy.bundle import MANIFEST, Bundle
from robotd.policy.wire import (
    Chunk,
    Hello,
    Message,
    Observe,
    Ping,
    Pong,
    decode,
    encode,
    pack_tokens,
)
from tests.observer.ticks import MIDDLE, tick
from tests.workers import Child, child, wait_until

TOKENS = np.full(6, 128, np.int64)
PERIOD_NS = 10_000_000


class FakeWorker:
    """A ROUTER in a thread that answers as a test tells it to."""

    def __init__(self, endpoint: str, answer: Callable[[Message], list[list[bytes]]]) -> None:
        self._answer = answer
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(endpoint)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._router.poll(10):
                identity, *parts = self._router.recv_multipart()
                for reply in self._answer(decode(parts)):
                    self._router.send_multipart([identity, *reply])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)


@contextlib.contextmanager
def fake(endpoint: str, answer: Callable[[Message], list[list[bytes]]]) -> Iterator[None]:
    made = FakeWorker(endpoint, answer)
    try:
        yield
    finally:
        made.close()


def honest(bundle: Bundle, message: Message) -> list[list[bytes]]:
    """What a proper worker says to HELLO and PING."""
    header = message.header
    raw = (bundle.folder / MANIFEST).read_bytes()
    if isinstance(header, Hello):
        return [encode(Hello(header.client, bundle.digest, "tiny", (1.0,), len(raw)), raw)]
    if isinstance(header, Ping):
        return [encode(Pong(header.nonce))]
    return []


def chunk(bundle: Bundle, header: Observe) -> list[bytes]:
    made = Chunk(header.sequence, header.observed_ns, bundle.digest, 6, 10, 20)
    return encode(made, pack_tokens(TOKENS))


class FakeControl:
    """Publishes ticks in real time and takes every chunk, as control does in POLICY."""

    def __init__(self, runtime_dir: Path, mode: Mode = Mode.POLICY) -> None:
        self.mode = mode
        self.chunks: list[InboxChunk] = []
        self.follow = True  # report the chunk in use
        self._runtime = runtime_dir
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        names = tuple(f"follower.{joint}" for joint in JOINTS)
        ring = RingWriter(self._runtime / RING_NAME, Layout(names, PERIOD_NS, 2000))
        inbox = Inbox(self._runtime / SOCKET_NAME)
        deadline, sequence = time.monotonic_ns(), 0
        while not self._stop.is_set():
            sequence += 1
            _, chunk = inbox.drain()
            if chunk is not None:
                self.chunks.append(chunk)
            in_use = self.chunks[-1].sequence if self.chunks and self.follow else 0
            report = tick(deadline, MIDDLE, mode=self.mode, chunk_sequence=in_use)
            report.sequence = sequence
            ring.publish(report)
            deadline = max(deadline + PERIOD_NS, time.monotonic_ns())
            self._stop.wait(max(0, deadline - time.monotonic_ns()) / 1e9)
        inbox.close()
        ring.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int = 2) -> None:
        """Wait until that many more chunks have come."""
        have = len(self.chunks)
        wait_until(lambda: len(self.chunks) >= have + count, f"{count} more chunks")


@contextlib.contextmanager
def control(runtime_dir: Path, mode: Mode = Mode.POLICY) -> Iterator[FakeControl]:
    """A control loop for the observer."""
    made = FakeControl(runtime_dir, mode)
    try:
        yield made
    finally:
        made.close()


class ObserverProcess:
    """A real observer process and its status file."""

    def __init__(self, process: Child, runtime_dir: Path) -> None:
        self.child = process
        self._path = runtime_dir / "observer.json"

    @property
    def status(self) -> dict[str, Any]:
        """What it says of itself; empty before the first time."""
        try:
            state: dict[str, Any] = json.loads(self._path.read_text())
        except OSError:
            return {}
        return state

    def until(self, happened: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait until the status says so."""
        wait_until(
            lambda: bool(self.status) and happened(self.status),
            lambda: f"{what}: {self.status} {self.child.lines[-5:]}",
        )
        return self.status


@contextlib.contextmanager
def observer(config: Config) -> Iterator[ObserverProcess]:
    """An observer process of this configuration."""
    path = config.runtime_dir / "config.json"
    config.save(path)
    with child("robotd.observer", "--config", str(path)) as process:
        yield ObserverProcess(process, config.runtime_dir)
