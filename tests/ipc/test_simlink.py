"""The control channel to the simulator: requests, answers, and peers that misbehave."""

import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robotd.errors import IpcError, SimError
from robotd.ipc.simlink import (
    SOCKET_NAME,
    Answer,
    Hand,
    Inject,
    Query,
    Request,
    Reset,
    SimLink,
    SimLinkServer,
)
from tests.workers import socket_folder


def obey(request: Request) -> Answer:
    """A simulator that tells what it was asked."""
    if isinstance(request, Inject) and request.faults == "bang":
        return Answer(error="no such fault")
    if isinstance(request, Reset):
        return Answer(seed=request.seed, success=True, success_ns=5)
    if isinstance(request, Query):
        return Answer(state=[0.25, -1.0] if request.state else [])
    return Answer(info={"asked": type(request).__name__, "arm": request.arm})


class Serving:
    """The server's end in a thread."""

    def __init__(self, folder: Path, answer: Callable[[Request], Answer] = obey) -> None:
        self.path = folder / SOCKET_NAME
        self.server = SimLinkServer(self.path)
        self._answer = answer
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for fd in select.select(self.server.descriptors(), (), (), 0.01)[0]:
                got = self.server.serve(fd)
                if got is not None:
                    self.server.answer(got[0], self._answer(got[1]))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self.server.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as path:
        yield path


@pytest.fixture
def serving(folder: Path) -> Iterator[Serving]:
    started = Serving(folder)
    yield started
    started.end()


@pytest.fixture
def link(serving: Serving, folder: Path) -> Iterator[SimLink]:
    client = SimLink(folder)
    yield client
    client.close()


def raw(serving: Serving) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(30)
    peer.connect(str(serving.path))
    return peer


def test_every_request_arrives_as_it_was_sent(link: SimLink) -> None:
    assert link.call(Reset(17)) == Answer(seed=17, success=True, success_ns=5)
    assert link.call(Query(state=True)).state == [0.25, -1.0]
    assert link.call(Query()).state == []
    assert link.call(Inject("mute", "left")).info == {"asked": "Inject", "arm": "left"}
    assert link.call(Hand({3: 0.5})).info == {"asked": "Hand", "arm": ""}


def test_a_refusal_is_an_error_and_the_link_goes_on(link: SimLink) -> None:
    with pytest.raises(SimError, match="no such fault"):
        link.call(Inject("bang"))
    assert link.call(Reset(1)).seed == 1


def test_several_tools_at_once(serving: Serving, folder: Path) -> None:
    links = [SimLink(folder) for _ in range(3)]
    for turn in range(3):
        for number, each in enumerate(links):
            assert each.call(Reset(10 * turn + number)).seed == 10 * turn + number
    for each in links:
        each.close()


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\x00 no JSON",
        b"{}",
        b"[1, 2]",
        json.dumps({"type": "reset", "seed": -1}).encode(),
        json.dumps({"type": "reset", "seed": "one"}).encode(),
        json.dumps({"type": "reset", "seed": 1, "more": 2}).encode(),
        json.dumps({"type": "explode"}).encode(),
        json.dumps({"type": "inject", "faults": "x" * 3000}).encode(),
    ],
)
def test_rubbish_is_answered_and_forgotten(serving: Serving, message: bytes) -> None:
    with raw(serving) as peer:
        peer.send(message)
        assert "bad request" in json.loads(peer.recv(65536))["error"]
        peer.send(b'{"type": "reset", "seed": 4}')
        assert json.loads(peer.recv(65536))["seed"] == 4


def test_a_tool_that_does_not_wait_for_its_answer_harms_nobody(
    serving: Serving, link: SimLink
) -> None:
    for _ in range(5):
        with raw(serving) as peer:
            peer.send(b'{"type": "query"}')
    assert link.call(Reset(2)).seed == 2


def test_a_tool_that_never_reads_is_dropped(serving: Serving, link: SimLink) -> None:
    with raw(serving) as peer, contextlib.suppress(OSError):
        for _ in range(100_000):
            peer.send(b'{"type": "query"}')
        raise AssertionError("it was not dropped")
    assert link.call(Reset(2)).seed == 2


def test_no_simulator(folder: Path) -> None:
    with pytest.raises(IpcError, match="no simulator is running"):
        SimLink(folder)


def test_a_simulator_that_ends(folder: Path) -> None:
    serving = Serving(folder)
    client = SimLink(folder)
    client.call(Reset(0))
    serving.end()
    with pytest.raises(IpcError, match=r"has ended|does not answer"):
        client.call(Reset(1))
    client.close()
    assert not serving.path.exists()


def test_a_simulator_that_hangs(folder: Path) -> None:
    server = SimLinkServer(folder / SOCKET_NAME)
    client = SimLink(folder, timeout_s=0.05)
    with pytest.raises(IpcError, match="does not answer"):
        client.call(Query())
    client.close()
    server.close()


def test_the_socket_is_the_groups_and_replaces_a_dead_one(folder: Path) -> None:
    path = folder / SOCKET_NAME
    path.write_text("left by a killed process")
    serving = Serving(folder)
    assert os.stat(path).st_mode & 0o777 == 0o660
    client = SimLink(folder)
    assert client.call(Reset(3)).seed == 3
    client.close()
    serving.end()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="cannot open the simulator's socket"):
        SimLinkServer(tmp_path / "none" / "s")
