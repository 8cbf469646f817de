"""The worker as a real process: what it answers, and what does not end it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq

from robotd.errors import BundleError, ConfigError
from robotd.policy.bundle import MANIFEST, Bundle
from robotd.policy.endpoint import check_endpoint, generate_keys, is_remote, secure_client
from robotd.policy.session import PolicySession
from robotd.policy.wire import (
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
from robotd.policy.worker import serve
from tests.bundles import make_bundle
from tests.workers import PATIENCE_S, alive, child, free_tcp_port, socket_folder, wait_until, worker

CLIENT = "00000000000000aa"
STATE = np.zeros(12, np.float32)
FRONT = np.full((16, 24, 3), 255, np.uint8)
WRIST = np.full((16, 16, 3), 10, np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as made:
        yield made


@pytest.fixture
def endpoint(folder: Path) -> str:
    return f"ipc://{folder}/w.sock"


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> Iterator[Path]:
    """The socket of one worker that serves several tests, and must survive all of them."""
    with socket_folder() as folder, worker(bundle.folder, f"ipc://{folder}/w.sock") as process:
        yield folder / "w.sock"
        assert process.process.poll() is None


@pytest.fixture
def asking(shared: Path) -> Iterator["Client"]:
    with client(f"ipc://{shared}") as made:
        yield made


class Client:
    """A bare DEALER, to say to a worker whatever a test wants."""

    def __init__(self, endpoint: str, keys: Path | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        secure_client(self.socket, keys)
        self.socket.connect(endpoint)

    def send(self, parts: list[bytes]) -> None:
        self.socket.send_multipart(parts)

    def receive(self, patience_s: float = PATIENCE_S) -> Message:
        assert self.socket.poll(round(patience_s * 1000)), "no answer"
        return decode(self.socket.recv_multipart())

    def ask(self, parts: list[bytes]) -> Message:
        self.send(parts)
        return self.receive()

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextlib.contextmanager
def client(endpoint: str, keys: Path | None = None) -> Iterator[Client]:
    made = Client(endpoint, keys)
    try:
        yield made
    finally:
        made.close()


def observe(bundle: Bundle, sequence: int = 1, **changes: object) -> list[bytes]:
    images = (ImageInfo("front", 24, 16), ImageInfo("wrist", 16, 16))
    fields = {"digest": bundle.digest, "state_size": 12, "images": images} | changes
    header = Observe(CLIENT, sequence, 777, **fields)  # type: ignore[arg-type]
    return encode(header, pack_state(STATE), FRONT.tobytes(), WRIST.tobytes())


def test_hello_carries_the_manifest_and_warm_up_times(bundle: Bundle, asking: Client) -> None:
    message = asking.ask(encode(Hello(CLIENT, bundle.digest)))
    header = message.header
    assert isinstance(header, Hello)
    assert (header.client, header.digest, header.name) == (CLIENT, bundle.digest, "tiny")
    assert len(header.warmup_ms) == 3
    assert message.buffers[0] == (bundle.folder / MANIFEST).read_bytes()
    pong = asking.ask(encode(Ping(41))).header
    assert pong == Pong(41)


def test_tokens_are_those_of_the_session(bundle: Bundle, asking: Client) -> None:
    message = asking.ask(observe(bundle, 9))
    header = message.header
    assert isinstance(header, Chunk)
    assert (header.sequence, header.observed_ns, header.digest) == (9, 777, bundle.digest)
    assert header.inference_ns > 0
    expected = PolicySession(bundle).act({"front": FRONT, "wrist": WRIST}, STATE)
    assert tokens_of(message).tolist() == expected.tolist()


def test_jpeg_images_are_decoded(bundle: Bundle, asking: Client) -> None:
    jpeg = cv2.imencode(".jpg", FRONT)[1].tobytes()
    images = (ImageInfo("front", 24, 16, "jpeg"), ImageInfo("wrist", 16, 16))
    header = Observe(CLIENT, 2, 1, bundle.digest, 12, images)
    lies = Observe(CLIENT, 3, 1, bundle.digest, 12, (ImageInfo("front", 24, 16, "jpeg"), images[1]))
    big = cv2.imencode(".jpg", np.zeros((2000, 2000, 3), np.uint8))[1].tobytes()
    message = asking.ask(encode(header, pack_state(STATE), jpeg, WRIST.tobytes()))
    expected = PolicySession(bundle).act({"front": FRONT, "wrist": WRIST}, STATE)
    assert isinstance(message.header, Chunk)
    assert np.abs(tokens_of(message) - expected).max() <= 1
    for bad in (big[:60000], jpeg[:30], b"not a jpeg at all"):
        answer = asking.ask(encode(lies, pack_state(STATE), bad, WRIST.tobytes())).header
        assert isinstance(answer, Error)
        assert answer.reason == "bad_observation"


def test_an_observation_that_does_not_fit_gets_an_error(bundle: Bundle, asking: Client) -> None:
    other = (ImageInfo("front", 16, 24), ImageInfo("wrist", 16, 16))
    unknown = (ImageInfo("back", 24, 16), ImageInfo("wrist", 16, 16))
    nan = encode(
        Observe(CLIENT, 6, 1, bundle.digest, 12, unknown),
        pack_state(STATE * np.nan),
        FRONT.tobytes(),
        WRIST.tobytes(),
    )
    short = encode(Observe(CLIENT, 6, 1, bundle.digest, 6), pack_state(STATE[:6]))
    for parts in (
        observe(bundle, 6, digest="0" * 64),
        observe(bundle, 6, images=other),
        observe(bundle, 6, images=unknown),
        short,
        nan,
    ):
        answer = asking.ask(parts).header
        assert isinstance(answer, Error)
        assert (answer.sequence, answer.reason) == (6, "bad_observation")
    assert isinstance(asking.ask(observe(bundle, 7)).header, Chunk)


def test_garbage_from_anybody_is_survived(bundle: Bundle, shared: Path, asking: Client) -> None:
    random = np.random.default_rng(3)
    for parts in ([b""], [b"\x00" * 9000], [b"rbd\x02"], [b"", b"", b""], [bytes(60000)] * 9):
        answer = asking.ask(parts).header
        assert isinstance(answer, Error)
        assert answer.reason == "malformed"
    assert isinstance(asking.ask(encode(Pong(1))).header, Error)
    for _ in range(20):  # not even the transport's own protocol
        with socket.socket(socket.AF_UNIX) as raw, contextlib.suppress(OSError):
            raw.connect(str(shared))
            raw.sendall(random.bytes(4000))
    with socket.socket(socket.AF_UNIX) as half_open:
        half_open.connect(str(shared))
        assert isinstance(asking.ask(observe(bundle, 1)).header, Chunk)


def test_an_oversized_message_costs_only_its_senders_connection(
    bundle: Bundle, shared: Path, asking: Client
) -> None:
    with client(f"ipc://{shared}") as hostile:
        hostile.send([bytes(10_000_000)])
        assert isinstance(asking.ask(observe(bundle, 1)).header, Chunk)


def test_a_client_that_does_not_read_does_not_stop_the_others(
    bundle: Bundle, shared: Path, asking: Client
) -> None:
    with client(f"ipc://{shared}") as deaf:
        deaf.socket.rcvhwm = 1
        for nonce in range(2000):
            deaf.send(encode(Ping(nonce)))
        assert isinstance(asking.ask(observe(bundle, 1)).header, Chunk)


def test_the_newest_observation_wins(bundle: Bundle, endpoint: str) -> None:
    with worker(bundle.folder, endpoint) as process, client(endpoint) as asking:
        assert isinstance(asking.ask(encode(Ping(1))).header, Pong)
        process.process.send_signal(signal.SIGSTOP)
        for sequence in range(1, 6):
            asking.send(observe(bundle, sequence))
        time.sleep(0.2)
        process.process.send_signal(signal.SIGCONT)
        answers = [asking.receive().header for _ in range(5)]
    chunks = [answer.sequence for answer in answers if isinstance(answer, Chunk)]
    errors = [answer for answer in answers if isinstance(answer, Error)]
    assert chunks[-1] == 5
    assert sorted(chunks + [error.sequence for error in errors]) == [1, 2, 3, 4, 5]
    assert {error.reason for error in errors} == {"superseded"}


def test_the_socket_file_of_a_dead_worker_is_replaced(bundle: Bundle, endpoint: str) -> None:
    with worker(bundle.folder, endpoint) as first:
        first.kill()
        assert Path(endpoint.removeprefix("ipc://")).exists()
        with worker(bundle.folder, endpoint), client(endpoint) as asking:
            assert isinstance(asking.ask(encode(Ping(1))).header, Pong)


def test_the_endpoint_of_a_living_worker_is_not_taken(bundle: Bundle, endpoint: str) -> None:
    arguments = ["--bundle", str(bundle.folder), "--endpoint", endpoint]
    with worker(bundle.folder, endpoint), child("robotd.policy", *arguments) as second:
        assert second.wait() == 2
        assert second.lines == [f"robotd worker: {endpoint}: another worker listens there"]
        with client(endpoint) as asking:
            assert isinstance(asking.ask(encode(Ping(1))).header, Pong)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly(bundle: Bundle, endpoint: str, number: int) -> None:
    with worker(bundle.folder, endpoint) as process:
        process.process.send_signal(number)
        assert process.wait() == 0
        assert len(process.lines) == 1
    assert not Path(endpoint.removeprefix("ipc://")).exists()


def test_it_ends_with_its_parent(bundle: Bundle, endpoint: str) -> None:
    """A parent that starts a worker, says its process id, and is killed."""
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'robotd.policy', *sys.argv[1:]],"
        " stderr=subprocess.PIPE)\n"
        "child.stderr.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, "--bundle", bundle.folder, "--endpoint", endpoint],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
    finally:
        parent.kill()
        parent.communicate()
    try:
        wait_until(lambda: not alive(pid), "the worker ends with its parent")
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def _break_policy(folder: Path) -> None:
    (folder / "policy.onnx").write_bytes(b"nothing like a graph")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "{broken}", "--endpoint", "ipc://{folder}/x"], "does not match its hash"),
        (["--bundle", "{bundle}", "--endpoint", "tcp://0.0.0.0:5555"], "needs keys"),
        (["--config", "/nowhere.json"], "cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    bundle: Bundle, folder: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    broken = make_bundle(tmp_path / "broken")
    _break_policy(broken)
    names = {"folder": folder, "bundle": bundle.folder, "broken": broken}
    with child("robotd.policy", *(text.format(**names) for text in arguments)) as process:
        assert process.wait() == 2
        assert len(process.lines) == 1, process.lines
        assert words in process.lines[0]


@pytest.mark.parametrize(
    ("endpoint", "keys", "words"),
    [
        ("ipc:///nowhere/x", None, "cannot listen there"),
        ("tcp://127.0.0.1:{taken}", None, "cannot listen there"),
        ("tcp://192.0.2.1:5555", "keys", "cannot listen there"),
        ("tcp://127.0.0.1:5555", "nowhere", "robotd policy keys"),
    ],
)
def test_an_address_that_cannot_be_had(
    bundle: Bundle, tmp_path: Path, endpoint: str, keys: str | None, words: str
) -> None:
    generate_keys(tmp_path / "keys")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = endpoint.format(taken=other.getsockname()[1])
        with pytest.raises(ConfigError, match=words):
            serve(bundle.folder, address, keys and tmp_path / keys)


def test_a_bundle_for_another_arm_is_not_served(bundle: Bundle, endpoint: str) -> None:
    with pytest.raises(BundleError, match="made for arm 'so101'"):
        serve(bundle.folder, endpoint, arm="koch")


def test_keys_let_in_their_owner_and_nobody_else(bundle: Bundle, tmp_path: Path) -> None:
    keys, others = tmp_path / "keys", tmp_path / "others"
    generate_keys(keys)
    generate_keys(others)
    (others / "worker.public").write_bytes((keys / "worker.public").read_bytes())
    endpoint = f"tcp://127.0.0.1:{free_tcp_port()}"
    with worker(bundle.folder, endpoint, keys):
        with client(endpoint, keys) as asking:
            assert isinstance(asking.ask(observe(bundle, 1)).header, Chunk)
        for stranger in (others, None):
            with client(endpoint, stranger) as asking:
                asking.send(encode(Ping(1)))
                assert not asking.socket.poll(700)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    paths = generate_keys(tmp_path / "keys")
    assert {path.name for path in paths} == {
        "worker.public",
        "worker.secret",
        "client.public",
        "client.secret",
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths if path.suffix == ".secret")
    with pytest.raises(ConfigError, match="is there already"):
        generate_keys(tmp_path / "keys")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as made:
        (tmp_path / "keys" / "client.secret").chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            secure_client(made, tmp_path / "keys")
        (tmp_path / "keys" / "client.secret").chmod(0o600)
        (tmp_path / "keys" / "client.secret").write_text("short")
        with pytest.raises(ConfigError, match="is no key"):
            secure_client(made, tmp_path / "keys")
    context.destroy()


def test_which_endpoints_reach_beyond_this_machine(tmp_path: Path) -> None:
    for endpoint in ("ipc:///a", "tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1"):
        check_endpoint(endpoint, None)
        assert not is_remote(endpoint)
    for endpoint in ("tcp://*:1", "tcp://10.0.0.1:1", "tcp://[::]:1", "tcp://robot:1"):
        with pytest.raises(ConfigError, match="needs keys"):
            check_endpoint(endpoint, None)
        check_endpoint(endpoint, tmp_path)
        assert is_remote(endpoint)
    for endpoint in ("tcp://", "tcp://a", "tcp://a:b", "tcp://:1", "ipc://", "ipc://@a", "x"):
        with pytest.raises(ConfigError):
            check_endpoint(endpoint, tmp_path)
