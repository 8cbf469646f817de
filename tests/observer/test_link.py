"""The link to the worker: death, hang, restart, wrong bundle, garbage, half-open connections."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from robotd.errors import ConfigError
from robotd.observer.detokenize import Reply
from robotd.observer.link import Event, Link, Lost, Refusal
from robotd.observer.observation import Observation
from robotd.policy.bundle import Bundle
from robotd.policy.endpoint import generate_keys
from robotd.policy.session import PolicySession
from robotd.policy.wire import (
    Error,
    Hello,
    Message,
    Observe,
    Ping,
    decode,
    encode,
)
from tests.bundles import make_bundle
from tests.observer.fakes import chunk, fake, honest
from tests.workers import free_tcp_port, socket_folder, wait_until, worker

STATE = np.zeros(12, np.float32)
TOKENS = np.full(6, 128, np.int64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def endpoint() -> Iterator[str]:
    with socket_folder() as folder:
        yield f"ipc://{folder}/w.sock"


class Driver:
    """Drives a link as the observer does, and keeps what it reports."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.seen: list[Event] = []
        self.waiting = False

    def turn(self) -> None:
        self.link.poller.poll(5)
        now = time.monotonic_ns()
        self.seen += self.link.events(now)
        self.link.step(now, self.waiting)

    def until(self, happened: Callable[[], bool], what: str) -> None:
        def turned() -> bool:
            self.turn()
            return happened()

        wait_until(turned, lambda: f"{what}; link is {self.link.state}: {self.link.text}")

    def until_ready(self) -> None:
        self.until(lambda: self.link.ready, "ready")

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.seen if isinstance(event, kind)]


@contextlib.contextmanager
def driver(
    endpoint: str, bundle: Bundle, keys: Path | None = None, timeout_s: float = 0.3
) -> Iterator[Driver]:
    link = Link(endpoint, bundle, keys, timeout_s)
    try:
        yield Driver(link)
    finally:
        link.close()


def observation(sequence: int = 1, level: int = 255) -> Observation:
    images = {
        "front": np.full((16, 24, 3), level, np.uint8),
        "wrist": np.full((16, 16, 3), level, np.uint8),
    }
    return Observation(sequence, 1000, STATE, images, {})


def test_a_real_worker_answers(bundle: Bundle, endpoint: str) -> None:
    with driver(endpoint, bundle) as us:
        us.turn()
        assert (us.link.state, us.link.send(observation())) == ("absent", False)
        with worker(bundle.folder, endpoint):
            us.until_ready()
            assert len(us.link.warmup_ms) == 3
            asked = observation(7)
            assert us.link.send(asked)
            us.until(lambda: bool(us.of(Reply)), "reply")
            (reply,) = us.of(Reply)
            assert isinstance(reply, Reply)
            assert (reply.sequence, reply.observed_ns, reply.digest) == (7, 1000, bundle.digest)
            expected = PolicySession(bundle).act(asked.images, asked.state)
            assert reply.tokens.tolist() == expected.tolist()
            assert reply.inference_ns > 0


def test_a_worker_that_dies_is_noticed_and_its_successor_found(
    bundle: Bundle, endpoint: str
) -> None:
    with driver(endpoint, bundle) as us:
        with worker(bundle.folder, endpoint) as process:
            us.until_ready()
            process.process.kill()
            us.until(lambda: bool(us.of(Lost)), "lost")
            (lost,) = us.of(Lost)
            assert isinstance(lost, Lost)
            assert lost.reason == "worker_ended"
            assert not us.link.send(observation())
        with worker(bundle.folder, endpoint):
            us.until_ready()
            assert us.link.counts.reconnects == 1
            assert us.link.send(observation())
            us.until(lambda: bool(us.of(Reply)), "reply")


def test_a_worker_that_hangs_is_given_up_and_found_again(bundle: Bundle, endpoint: str) -> None:
    with driver(endpoint, bundle) as us, worker(bundle.folder, endpoint) as process:
        us.until_ready()
        process.process.send_signal(signal.SIGSTOP)
        us.link.send(observation(3))
        us.link.give_up("timeout", "no answer")  # as the observer does after its time-out
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            us.turn()
        assert not us.link.ready
        process.process.send_signal(signal.SIGCONT)
        us.until_ready()
        assert us.of(Reply) == []  # the answer to 3 went to a socket that is no more
        assert us.link.send(observation(4))
        us.until(lambda: bool(us.of(Reply)), "reply")
        assert [reply.sequence for reply in us.of(Reply) if isinstance(reply, Reply)] == [4]


def test_an_idle_worker_that_hangs_is_noticed_by_its_silence(bundle: Bundle, endpoint: str) -> None:
    def deaf(message: Message) -> list[list[bytes]]:
        return [] if isinstance(message.header, Ping) else honest(bundle, message)

    with driver(endpoint, bundle) as us, fake(endpoint, deaf):
        us.until_ready()
        us.until(lambda: bool(us.of(Lost)), "lost")
        assert us.seen[0] == Lost("worker_silent", f"the worker at {endpoint} does not answer")


def test_a_worker_that_never_says_hello_is_tried_again_on_a_new_connection(
    bundle: Bundle, endpoint: str
) -> None:
    with driver(endpoint, bundle) as us:
        with fake(endpoint, lambda message: []):
            us.until(lambda: len(us.of(Lost)) >= 2, "given up twice")
        with worker(bundle.folder, endpoint):
            us.until_ready()


def test_an_idle_worker_stays_ready(bundle: Bundle, endpoint: str) -> None:
    pings: list[int] = []

    def answer(message: Message) -> list[list[bytes]]:
        if isinstance(message.header, Ping):
            pings.append(message.header.nonce)
        return honest(bundle, message)

    with driver(endpoint, bundle) as us, fake(endpoint, answer):
        us.until_ready()
        us.until(lambda: len(pings) >= 2, "two pings")
        assert us.link.ready
        assert us.seen == []


def test_while_a_request_is_open_silence_is_not_the_links_business(
    bundle: Bundle, endpoint: str
) -> None:
    def deaf(message: Message) -> list[list[bytes]]:
        return [] if isinstance(message.header, Ping) else honest(bundle, message)

    with driver(endpoint, bundle) as us, fake(endpoint, deaf):
        us.until_ready()
        us.waiting = True
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            us.turn()
        assert us.link.ready


def test_a_worker_with_another_bundle_is_refused_in_words(
    bundle: Bundle, endpoint: str, tmp_path: Path
) -> None:
    other = Bundle.load(make_bundle(tmp_path / "other", name="somebody_elses"))
    with driver(endpoint, bundle) as us:
        with worker(other.folder, endpoint):
            us.until(lambda: us.link.state == "refused", "refused")
            assert us.link.text == (
                f"the worker at {endpoint} serves bundle somebody_elses {other.digest[:12]}, "
                f"configured is tiny {bundle.digest[:12]}"
            )
            assert not us.link.send(observation())
        with worker(bundle.folder, endpoint):
            us.until_ready()


def test_a_worker_that_lies_about_its_manifest_is_refused(bundle: Bundle, endpoint: str) -> None:
    def liar(message: Message) -> list[list[bytes]]:
        if not isinstance(message.header, Hello):
            return honest(bundle, message)
        return [encode(Hello(message.header.client, bundle.digest, "tiny", (), 3), b"{ }")]

    with driver(endpoint, bundle) as us, fake(endpoint, liar):
        us.until(lambda: us.link.state == "refused", "refused")


def test_garbage_is_counted_and_survived(bundle: Bundle, endpoint: str) -> None:
    def babbler(message: Message) -> list[list[bytes]]:
        header = message.header
        noise = [[b""], [b"\xff" * 5000], [b"rbd\x01\x81"], [b"", b"", b""], encode(Ping(3))]
        if isinstance(header, Observe):
            return [*noise, chunk(bundle, header), encode(Error(0, "malformed"))]
        return [*noise, *honest(bundle, message)]

    with driver(endpoint, bundle) as us, fake(endpoint, babbler):
        us.until_ready()
        us.link.send(observation(5))
        us.until(lambda: bool(us.of(Refusal)), "the last of the answers")
        assert [reply.sequence for reply in us.of(Reply) if isinstance(reply, Reply)] == [5]
        assert us.link.counts.garbage >= 10
        assert us.link.ready


def test_an_unasked_hello_is_garbage(bundle: Bundle, endpoint: str) -> None:
    def eager(message: Message) -> list[list[bytes]]:
        answers = honest(bundle, message)
        return answers * 2 if isinstance(message.header, Hello) else answers

    with driver(endpoint, bundle) as us, fake(endpoint, eager):
        us.until_ready()
        us.until(lambda: us.link.counts.garbage == 1, "the second hello")
        assert us.link.ready


def test_errors_are_passed_on(bundle: Bundle, endpoint: str) -> None:
    with driver(endpoint, bundle) as us, worker(bundle.folder, endpoint):
        us.until_ready()
        small = Observation(2, 1000, STATE, {"front": np.zeros((8, 8, 3), np.uint8)}, {})
        us.link.send(small)
        us.until(lambda: bool(us.of(Refusal)), "refusal")
        (refusal,) = us.of(Refusal)
        assert isinstance(refusal, Refusal)
        assert (refusal.sequence, refusal.reason) == (2, "bad_observation")


def test_a_listener_that_says_nothing_is_no_worker(bundle: Bundle, endpoint: str) -> None:
    """Half-open: the connection is accepted by the kernel, and then nothing comes."""
    path = endpoint.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX) as mute, driver(endpoint, bundle) as us:
        mute.bind(path)
        mute.listen()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            us.turn()
        assert us.link.state == "absent"
        assert not us.link.send(observation())
        mute.close()
        Path(path).unlink()
        with worker(bundle.folder, endpoint):
            us.until_ready()


# The greeting of ZMTP 3.0 (rfc.zeromq.org/spec/23) with a security mechanism that does not exist:
# libzmq ends such a connection for good.
BOGUS_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"BOGUS".ljust(20, b"\x00") + bytes(32)


@pytest.mark.parametrize(
    "babble_of", [bytes(range(256)) * 20, BOGUS_GREETING], ids=["noise", "bogus mechanism"]
)
def test_a_listener_that_babbles_is_no_worker(
    bundle: Bundle, endpoint: str, babble_of: bytes
) -> None:
    path = endpoint.removeprefix("ipc://")
    stop = threading.Event()

    def babble(listener: socket.socket) -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            with contextlib.suppress(OSError):
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(babble_of)

    with socket.socket(socket.AF_UNIX) as listener, driver(endpoint, bundle) as us:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=babble, args=(listener,))
        thread.start()
        try:
            end = time.monotonic() + 0.7
            while time.monotonic() < end:
                us.turn()
            assert not us.link.ready
        finally:
            stop.set()
            thread.join()
        listener.close()
        Path(path).unlink()
        with worker(bundle.folder, endpoint):
            us.until_ready()


def test_keys_are_needed_beyond_this_machine_and_must_be_right(
    bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="needs keys"):
        Link("tcp://192.0.2.1:5555", bundle, None, 1.0)
    with pytest.raises(ConfigError, match="robotd policy keys"):
        Link("tcp://127.0.0.1:5555", bundle, tmp_path / "none", 1.0)
    keys, others = tmp_path / "keys", tmp_path / "others"
    generate_keys(keys)
    generate_keys(others)
    endpoint = f"tcp://127.0.0.1:{free_tcp_port()}"
    with worker(bundle.folder, endpoint, keys):
        with driver(endpoint, bundle, keys) as us:
            us.until_ready()
        (others / "worker.public").write_bytes((keys / "worker.public").read_bytes())
        with driver(endpoint, bundle, others) as us:
            us.until(lambda: "does not let us in" in us.link.text, "not let in")
            assert us.link.state == "absent"


def test_beyond_this_machine_pictures_travel_as_jpeg(bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    generate_keys(keys)
    endpoint = f"tcp://0.0.0.0:{free_tcp_port()}"  # not a loopback address, and yet this machine
    sent: list[Message] = []

    class Watched(Link):
        def _say(self, parts: list[bytes]) -> bool:
            sent.append(decode(parts))
            return super()._say(parts)

    asked = observation(2, level=200)
    with worker(bundle.folder, endpoint, keys):
        us = Driver(Watched(endpoint, bundle, keys, 1.0))
        try:
            us.until_ready()
            assert us.link.send(asked)
            header = sent[-1].header
            assert isinstance(header, Observe)
            assert [info.encoding for info in header.images] == ["jpeg", "jpeg"]
            us.until(lambda: bool(us.of(Reply)), "reply")
        finally:
            us.link.close()
    (reply,) = us.of(Reply)
    assert isinstance(reply, Reply)
    expected = PolicySession(bundle).act(asked.images, asked.state)
    assert np.abs(reply.tokens - expected).max() <= 1
