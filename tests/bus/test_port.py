"""Ports over real pseudo-terminals and sockets: deadlines, hang-ups, and why opening fails."""

import fcntl
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robotd.bus import tty
from robotd.bus.port import SerialPort
from robotd.errors import PortError

SOON_NS = 20_000_000
LATER_NS = 10_000_000_000


def after(ns: int) -> int:
    return time.monotonic_ns() + ns


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A pseudo-terminal: the master's descriptor and the path of the other end."""
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    yield master, path
    os.close(master)


@pytest.fixture(params=["pty", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[SerialPort, int]]:
    """A port and the descriptor at its other end."""
    if request.param == "pty":
        peer, mine = pty.openpty()
    else:
        mine, peer = (end.detach() for end in socket.socketpair())
    port = SerialPort.from_fd(mine)
    yield port, peer
    port.close()
    os.close(peer)


def test_bytes_pass_both_ways_unchanged(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends
    every = bytes(range(256))
    port.write(every)
    assert os.read(peer, 1000) == every
    os.write(peer, every)
    assert port.read(256, after(LATER_NS)) == every


def test_a_read_ends_when_all_is_there(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends

    def trickle() -> None:
        for at in range(120):
            os.write(peer, bytes((at,)))

    sender = threading.Thread(target=trickle)
    sender.start()
    assert port.read(120, after(LATER_NS)) == bytes(range(120))
    sender.join()


def test_a_read_ends_at_its_deadline_with_what_is_there(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends
    os.write(peer, b"abc")
    begun = time.monotonic_ns()
    assert port.read(10, begun + SOON_NS) == b"abc"
    assert time.monotonic_ns() - begun >= SOON_NS
    assert port.read(10, after(SOON_NS)) == b""


def test_a_passed_deadline_is_a_look_without_waiting(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends
    assert port.read(10, 0) == b""
    os.write(peer, b"hello")
    deadline = after(LATER_NS)
    while (got := port.read(10, 0)) == b"" and time.monotonic_ns() < deadline:
        time.sleep(0.001)
    assert got == b"hello"


def test_more_than_255_bytes(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends
    data = os.urandom(700)
    sender = threading.Thread(target=lambda: os.write(peer, data))
    sender.start()
    assert port.read(700, after(LATER_NS)) == data
    sender.join()


def test_steady_reads_of_a_terminal_wake_once_and_others_still_work() -> None:
    """VMIN follows reads of one size, seldom; shorter, longer and partial answers come through."""
    peer, mine = pty.openpty()
    port = SerialPort.from_fd(mine)

    def vmin() -> int:
        return int(termios.tcgetattr(mine)[6][termios.VMIN])

    def exchange(size: int, sent: int | None = None) -> None:
        data = os.urandom(size if sent is None else sent)
        os.write(peer, data)
        assert port.read(size, after(LATER_NS if sent is None else SOON_NS)) == data[:size]

    for _ in range(20):
        exchange(72)
    assert vmin() == 72
    exchange(72, sent=40)  # the rest is lost
    assert vmin() == 72
    exchange(10)
    assert vmin() == 1
    exchange(300)
    for _ in range(20):
        exchange(72)
        exchange(73)
    assert vmin() == 1
    for _ in range(20):
        exchange(78)
    assert vmin() == 78
    os.write(peer, b"abc")
    assert port.read(3, after(LATER_NS)) == b"abc"
    port.close()
    os.close(peer)


def test_flush_counts_what_it_drops(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends
    os.write(peer, b"x" * 100)
    dropped, deadline = 0, after(LATER_NS)
    while dropped < 100 and time.monotonic_ns() < deadline:
        dropped += port.flush_input()
    assert dropped == 100
    assert port.flush_input() == 0


def test_waiting_costs_no_processor_time(ends: tuple[SerialPort, int]) -> None:
    port, peer = ends
    os.write(peer, b"y")
    before = time.thread_time_ns()
    assert port.read(50, after(300_000_000)) == b"y"
    assert time.thread_time_ns() - before < 150_000_000  # a spinning wait would take all of it


USES: dict[str, Callable[[SerialPort], object]] = {
    "read": lambda port: port.read(10, after(LATER_NS)),
    "look": lambda port: port.read(10, 0),
    "flush": lambda port: port.flush_input(),
    "write": lambda port: port.write(b"x"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["pty", "socket"])
def test_a_hang_up_is_a_port_error_at_once(use: str, kind: str) -> None:
    if kind == "pty":
        peer, mine = pty.openpty()
    else:
        mine, peer = (end.detach() for end in socket.socketpair())
    port = SerialPort.from_fd(mine, "the port")
    os.close(peer)
    with pytest.raises(PortError, match="the port: the port has gone away"):
        USES[use](port)
    with pytest.raises(PortError, match="closed"):
        port.read(1, 0)
    assert not port.reopen()  # an inherited descriptor does not come back
    port.close()


def test_a_hang_up_ends_a_wait() -> None:
    mine, peer = (end.detach() for end in socket.socketpair())
    port = SerialPort.from_fd(mine)
    threading.Timer(0.05, os.close, (peer,)).start()
    begun = time.monotonic_ns()
    with pytest.raises(PortError):
        port.read(10, after(LATER_NS))
    assert time.monotonic_ns() - begun < LATER_NS / 2


def test_a_peer_that_takes_nothing_is_an_error_not_a_hang(ends: tuple[SerialPort, int]) -> None:
    port, _ = ends

    def fill() -> None:
        for _ in range(1000):
            port.write(b"z" * 4096)

    with pytest.raises(PortError, match="takes no more bytes"):
        fill()


def test_opened_raw_at_its_rate_and_exclusive(terminal: tuple[int, str]) -> None:
    master, path = terminal
    port = SerialPort.open(path, 1_000_000)
    mode = termios.tcgetattr(master)  # shows the line's settings
    assert mode[4:6] == [termios.B1000000] * 2
    assert mode[0] == mode[1] == mode[3] == 0
    assert mode[2] & termios.CSIZE == termios.CS8
    with pytest.raises(PortError, match="in use"):
        SerialPort.open(path, 1_000_000)
    port.close()
    SerialPort.open(path, 57_600).close()


def test_a_busy_port_says_who_holds_it(terminal: tuple[int, str]) -> None:
    _, path = terminal
    code = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(PortError, match=rf"{path}: in use by \S+ \(process {holder.pid}\)"):
            SerialPort.open(path, 1_000_000)


def test_why_a_path_cannot_be_opened(tmp_path: Path, terminal: tuple[int, str]) -> None:
    with pytest.raises(PortError, match=r"no such port; is the arm plugged in\?"):
        SerialPort.open(tmp_path / "ttyACM0", 1_000_000)
    plain = tmp_path / "file"
    plain.write_text("")
    with pytest.raises(PortError, match="not a serial device"):
        SerialPort.open(plain, 1_000_000)
    with pytest.raises(PortError, match="not a serial device"):
        SerialPort.open(tmp_path, 1_000_000)
    with pytest.raises(PortError, match=r"123456 baud is not supported; known: 9600, .*1000000"):
        SerialPort.open(terminal[1], 123456)
    with pytest.raises(PortError, match="not supported"):
        SerialPort.open(terminal[1], 0)
    with pytest.raises(PortError, match="not a usable descriptor"):
        SerialPort.from_fd(9999)


def test_no_permission_names_the_group(terminal: tuple[int, str]) -> None:
    _, path = terminal
    os.chmod(path, 0o060)
    code = (
        "import os, sys\n"
        "from robotd.bus.tty import open_tty\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "open_tty(sys.argv[1], 1000000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert f"{path}: no permission; it belongs to group " in done.stderr
    assert "add your user to it" in done.stderr


def test_a_failed_open_leaves_no_descriptor_behind(terminal: tuple[int, str]) -> None:
    _, path = terminal
    holder = os.open(path, os.O_RDWR | os.O_NOCTTY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(PortError):
            tty.open_tty(path, 1_000_000, explain=False)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(holder)


def test_reopen_finds_a_path_that_came_back(tmp_path: Path) -> None:
    link = tmp_path / "arm"

    def plug_in() -> int:
        master, slave = pty.openpty()
        link.unlink(missing_ok=True)
        link.symlink_to(os.ttyname(slave))
        os.close(slave)
        return master

    master = plug_in()
    port = SerialPort.open(link, 1_000_000)
    assert port.reopen()
    os.close(master)
    with pytest.raises(PortError):
        port.read(1, after(LATER_NS))
    assert not port.reopen()
    master = plug_in()
    assert port.reopen()
    os.write(master, b"back")
    assert port.read(4, after(LATER_NS)) == b"back"
    port.close()
    assert not port.reopen()
    os.close(master)
