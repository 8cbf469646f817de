"""The inbox: what comes through, what is dropped and counted, and what senders are told."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robotd.errors import IpcError
from robotd.ipc.inbox import MAX_DATAGRAM, SOCKET_NAME, Chunk, Command, Inbox, InboxClient
from robotd.ipc.ring import RING_NAME, JointReport, Layout, Result, RingWriter, TickReport
from tests.workers import socket_folder

ENCODER = msgspec.msgpack.Encoder()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with socket_folder() as path:
        yield path


@pytest.fixture
def inbox(folder: Path) -> Iterator[Inbox]:
    box = Inbox(folder / SOCKET_NAME)
    yield box
    box.close()


def send_raw(inbox: Inbox, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, str(inbox.path))


def test_an_empty_inbox_gives_nothing(inbox: Inbox) -> None:
    assert inbox.drain() == ([], None)


def test_commands_come_in_order_and_the_last_chunk_wins(inbox: Inbox, folder: Path) -> None:
    client = InboxClient(folder)
    ids = [client.send("arm"), client.send("policy", "digest")]
    client.send_chunk("digest", 1, 10, 33_000_000, [[1.0, 2.0], [3.0, 4.0]])
    client.send_chunk("digest", 2, 20, 33_000_000, [[5.0, 6.0]])
    commands, chunk = inbox.drain()
    assert commands == [Command(ids[0], "arm"), Command(ids[1], "policy", "digest")]
    assert chunk is not None
    assert (chunk.source, chunk.sequence, chunk.observed_ns) == ("digest", 2, 20)
    assert (chunk.period_ns, chunk.joints) == (33_000_000, 2)
    assert list(chunk.values()) == [5.0, 6.0]
    assert inbox.dropped == {"superseded": 1}
    client.close()


def test_one_drain_takes_a_bounded_number(inbox: Inbox, folder: Path) -> None:
    client = InboxClient(folder)
    for _ in range(8):
        client.send("hold")
    assert len(inbox.drain(limit=5)[0]) == 5
    assert len(inbox.drain(limit=5)[0]) == 3
    client.close()


def test_a_full_inbox_is_said_to_the_sender_without_blocking(inbox: Inbox, folder: Path) -> None:
    client = InboxClient(folder)

    def flood() -> None:
        for _ in range(100_000):
            client.send("hold")

    with pytest.raises(IpcError, match="the inbox is full"):
        flood()
    client.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"hello",
        b"\x91" * 5000,  # arrays within arrays
        ENCODER.encode({"type": "command", "id": 1}),
        ENCODER.encode({"type": "command", "id": 0, "name": "arm"}),
        ENCODER.encode({"type": "command", "id": 2**63, "name": "arm"}),
        ENCODER.encode({"type": "command", "id": 1, "name": "explode"}),
        ENCODER.encode({"type": "command", "id": 1, "name": "arm", "more": 1}),
        ENCODER.encode({"type": "command", "id": 1, "name": "arm", "source": "x" * 65}),
        ENCODER.encode({"type": "shutdown", "id": 1}),
        ENCODER.encode([1, 2, 3]),
        ENCODER.encode(Chunk("", 1, 0, 10**7, 1, bytes(8))),
        ENCODER.encode(Chunk("p", 0, 0, 10**7, 1, bytes(8))),
        ENCODER.encode(Chunk("p", 1, -1, 10**7, 1, bytes(8))),
        ENCODER.encode(Chunk("p", 1, 0, 999, 1, bytes(8))),
        ENCODER.encode(Chunk("p", 1, 0, 10**7, 0, bytes(8))),
        ENCODER.encode(Chunk("p", 1, 0, 10**7, 65, bytes(520))),
        ENCODER.encode(Chunk("p", 1, 0, 10**7, 1, bytes(7))),
        ENCODER.encode(Chunk("p", 1, 0, 10**7, 1, bytes(60_008))),
    ],
)
def test_malformed_messages_are_dropped_and_counted(inbox: Inbox, data: bytes) -> None:
    send_raw(inbox, data)
    assert inbox.drain() == ([], None)
    assert inbox.dropped == {"malformed": 1}


def test_what_is_too_long_is_dropped_and_counted(inbox: Inbox) -> None:
    send_raw(inbox, bytes(MAX_DATAGRAM + 1))
    assert inbox.drain() == ([], None)
    assert inbox.dropped == {"too_long": 1}


def test_a_bad_message_does_not_hide_the_good_ones(inbox: Inbox, folder: Path) -> None:
    client = InboxClient(folder)
    first = client.send("arm")
    send_raw(inbox, b"\xc1")
    second = client.send("hold")
    assert [command.id for command in inbox.drain()[0]] == [first, second]
    client.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.binary(max_size=300), st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
).map(ENCODER.encode)))  # fmt: skip
def test_no_bytes_get_through_that_are_no_message(inbox: Inbox, data: bytes) -> None:
    send_raw(inbox, data)
    assert inbox.drain() == ([], None)


def test_a_chunk_that_is_no_whole_number_of_steps_says_so() -> None:
    with pytest.raises(IpcError, match="not whole steps"):
        Chunk("p", 1, 0, 10**7, 2, bytes(24)).values()


def test_the_socket_is_for_its_group_and_goes_away(folder: Path) -> None:
    box = Inbox(folder / SOCKET_NAME)
    mode = os.stat(box.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    again = Inbox(folder / SOCKET_NAME)  # what an earlier run left behind is replaced
    again.close()
    box.close()
    assert not box.path.exists()


def test_a_socket_that_cannot_be_bound_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="cannot open the command socket"):
        Inbox(tmp_path / ("x" * 120))


def test_without_a_robotd_the_sender_is_told(tmp_path: Path) -> None:
    client = InboxClient(tmp_path)
    with pytest.raises(IpcError, match="robotd is not running here"):
        client.send("arm")
    client.close()


class Loop:
    """Something that drains the inbox and answers through a ring, as the control loop does."""

    def __init__(self, folder: Path, results: dict[str, tuple[Result, str]]) -> None:
        self.inbox = Inbox(folder / SOCKET_NAME)
        self.ring = RingWriter(folder / RING_NAME, Layout(("a.j",), 10**6, 1000))
        self.report = TickReport(joints=[JointReport()])
        self.report.sequence = 1
        self.ring.publish(self.report)
        self._results = results
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Loop":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._end.set()
        self._thread.join()
        self.inbox.close()
        self.ring.close()

    def _run(self) -> None:
        while not self._end.wait(0.002):
            for command in self.inbox.drain()[0]:
                if command.name in self._results:
                    self.report.command_id = command.id
                    self.report.command_result, self.report.command_text = self._results[
                        command.name
                    ]
            self.report.sequence += 1
            self.ring.publish(self.report)


def test_a_call_waits_for_its_result(folder: Path) -> None:
    with Loop(folder, {"arm": (Result.DONE, ""), "park": (Result.REFUSED, "not armed")}):
        client = InboxClient(folder)
        report = client.call("arm", timeout_s=30)
        assert report.command_result is Result.DONE
        with pytest.raises(IpcError, match="park: refused: not armed"):
            client.call("park", timeout_s=30)
        with pytest.raises(IpcError, match="did not answer"):
            client.call("hold", timeout_s=0.1)
        client.close()


def test_a_call_to_a_loop_that_stands_still_gives_up(folder: Path) -> None:
    box = Inbox(folder / SOCKET_NAME)
    ring = RingWriter(folder / RING_NAME, Layout(("a.j",), 10**6, 10))
    client = InboxClient(folder)
    with pytest.raises(IpcError, match="its loop is not ticking"):
        client.call("arm", timeout_s=60)
    client.close()
    box.close()
    ring.close()
