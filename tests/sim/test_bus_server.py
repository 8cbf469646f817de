"""The simulated bus on the wire: baud time in stepped time; pty and socket in real time."""

import os
import select
import socket
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robotd.errors import PortError, SimError
from robotd.sim.bus import MemoryPort, SimBus
from robotd.sim.serve import BusServer, PtyLine, SocketLine
from tests.sim.clients import BROADCAST, Client, Dynamixel, Feetech

PING, READ, WRITE = 1, 2, 3
BYTE_NS = 10_000  # 10 bits at 1 Mbaud
PATIENCE_S = 20.0


def sync_read(arm: Client) -> bytes:
    if isinstance(arm, Dynamixel):
        return arm.packet(BROADCAST, 0x82, bytes([132, 0, 4, 0, 1, 2, 3, 4, 5, 6]))
    return arm.packet(BROADCAST, 0x82, bytes([56, 2, 1, 2, 3, 4, 5, 6]))


@pytest.fixture(params=[Dynamixel, Feetech], ids=["koch", "so101"])
def arm(request: pytest.FixtureRequest) -> Client:
    name = "koch" if request.param is Dynamixel else "so101"
    return request.param(name, now=time.monotonic_ns())


# -- the time that bytes take


def test_without_baud_time_everything_comes_at_once(arm: Client) -> None:
    ((when, data),) = arm.bus.feed(sync_read(arm), arm.now)
    assert when == arm.now
    assert len(arm.parse(data)) == 6


@pytest.mark.parametrize(
    ("client", "name", "asked"), [(Dynamixel, "koch", 20), (Feetech, "so101", 14)]
)
def test_bytes_take_their_time_on_the_wire(client, name: str, asked: int) -> None:
    arm = client(name, baud_time=True)
    for servo_id in range(1, 7):
        arm.put(servo_id, "Return_Delay_Time", 0)
    arm.wait(0.1)
    request = sync_read(arm)
    assert len(request) == asked
    ((when, data),) = arm.bus.feed(request, arm.now)
    assert when == arm.now + (asked + len(data)) * BYTE_NS
    arm.wait(0.1)
    ((when, data),) = arm.bus.feed(arm.packet(1, PING), arm.now, 1_000_000)
    assert when == arm.now + (len(arm.packet(1, PING)) + len(data)) * BYTE_NS


def test_the_return_delay_is_part_of_it() -> None:
    koch = Dynamixel("koch", baud_time=True)
    koch.put(2, "Return_Delay_Time", 0)
    koch.wait(0.1)
    ping = koch.packet(1, PING)
    ((when, data),) = koch.bus.feed(ping, koch.now)
    assert when == koch.now + (len(ping) + len(data)) * BYTE_NS + 500_000


def test_a_busy_wire_is_waited_for() -> None:
    koch = Dynamixel("koch", baud_time=True)
    for servo_id in range(1, 7):
        koch.put(servo_id, "Return_Delay_Time", 0)
    koch.wait(0.1)
    goals = koch.packet(BROADCAST, 0x83, bytes([116, 0, 4, 0]) + bytes(30))
    assert koch.bus.feed(goals, koch.now) == []
    ping = koch.packet(1, PING)
    ((when, data),) = koch.bus.feed(ping, koch.now + 1000)
    assert when == koch.now + (len(goals) + len(ping) + len(data)) * BYTE_NS


def test_at_a_slower_rate_everything_takes_longer() -> None:
    koch = Dynamixel("koch", baud_time=True)
    koch.put(1, "Return_Delay_Time", 0)
    koch.put(1, "Baud_Rate", 1)
    koch.wait(0.1)
    ping = koch.packet(1, PING)
    ((when, data),) = koch.bus.feed(ping, koch.now, 57_600)
    expected = (len(ping) + len(data)) * 10 / 57_600
    assert (when - koch.now) * 1e-9 == pytest.approx(expected, rel=0.001)


# -- memory port


def test_memory_port_lets_time_pass_while_it_is_read() -> None:
    koch = Dynamixel("koch", baud_time=True)
    koch.put(1, "Return_Delay_Time", 0)
    koch.wait(0.1)

    def wait(until_ns: int) -> None:
        koch.now = max(koch.now, until_ns)

    port = MemoryPort(koch.bus, lambda: koch.now, wait)
    start = koch.now
    ping = koch.packet(1, PING)
    for n in range(1, 100):
        port.write(ping)
        assert len(port.read(14, koch.now + 10_000_000)) == 14
        assert koch.now == start + n * 24 * BYTE_NS
    assert port.read(5, koch.now + 1_000_000) == b""
    assert koch.now == start + 99 * 24 * BYTE_NS + 1_000_000


def test_memory_port_gives_what_arrives_by_the_deadline(arm: Client) -> None:
    arm.bus.baud_time = True
    port = MemoryPort(arm.bus, lambda: arm.now)
    port.write(sync_read(arm))
    assert port.read(1000, 0) == b""
    assert port.read(1000, arm.now + 100_000) == b""
    first = port.read(10, arm.now + 50_000_000)
    rest = port.read(1000, arm.now + 50_000_000)
    assert len(first) == 10
    assert len(arm.parse(first + rest)) == 6
    port.write(sync_read(arm))
    arm.now += 50_000_000
    assert port.flush_input() == len(first + rest)
    assert port.reopen()
    port.close()
    with pytest.raises(PortError):
        port.write(b"x")
    assert not port.reopen()


# -- real time


@contextmanager
def served(*lines: tuple[SimBus, PtyLine | SocketLine]) -> Iterator[BusServer]:
    """Serve buses from a thread."""
    server = BusServer()
    for bus, line in lines:
        server.add(bus, line)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        for _, line in lines:
            line.close()
        assert not thread.is_alive()


def open_terminal(path: Path, baud: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    mode = termios.tcgetattr(fd)
    mode[0] = mode[1] = mode[3] = 0
    mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    mode[4] = mode[5] = baud
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    return fd


def receive(fd: int, size: int, patience_s: float = PATIENCE_S) -> bytes:
    data, end = b"", time.monotonic() + patience_s
    while len(data) < size and time.monotonic() < end:
        if select.select([fd], (), (), max(0.0, end - time.monotonic()))[0]:
            part = os.read(fd, size - len(data))
            if not part:
                break
            data += part
    return data


def until(condition) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_a_pty_answers_the_rate_its_servos_have(arm: Client) -> None:
    ping = arm.packet(3, PING)
    size = 14 if isinstance(arm, Dynamixel) else 6
    line = PtyLine()
    with served((arm.bus, line)):
        fd = open_terminal(line.path, termios.B1000000)
        os.write(fd, ping)
        assert [s.id for s in arm.parse(receive(fd, size))] == [3]
        os.close(fd)
        fd = open_terminal(line.path, termios.B115200)  # a new client at another rate
        os.write(fd, ping)
        assert receive(fd, 1, patience_s=0.3) == b""
        os.close(fd)
        fd = open_terminal(line.path, termios.B1000000)
        os.write(fd, ping)
        assert [s.id for s in arm.parse(receive(fd, size))] == [3]
        os.close(fd)


def test_a_client_that_leaves_takes_its_half_packet_with_it(arm: Client) -> None:
    ping = arm.packet(3, PING)
    line = PtyLine()
    with served((arm.bus, line)):
        fd = open_terminal(line.path, termios.B1000000)
        os.write(fd, ping[:-2])
        assert until(lambda: len(arm.bus.server._buffer) > 0)
        os.close(fd)
        assert until(lambda: len(arm.bus.server._buffer) == 0)
        fd = open_terminal(line.path, termios.B1000000)
        os.write(fd, ping)
        assert len(arm.parse(receive(fd, 14 if isinstance(arm, Dynamixel) else 6))) == 1
        os.close(fd)


def test_the_link_points_to_the_terminal_and_goes_with_it(tmp_path: Path, arm: Client) -> None:
    link = tmp_path / "arm"
    line = PtyLine(link)
    assert line.path == link
    assert link.is_symlink()
    assert link.exists()
    line.close()
    assert not link.is_symlink()


def test_a_link_that_is_in_use_or_no_link_is_left_alone(tmp_path: Path) -> None:
    link = tmp_path / "arm"
    line = PtyLine(link)
    with pytest.raises(SimError, match="another simulator"):
        PtyLine(link)
    line.close()
    link.write_text("something")
    with pytest.raises(SimError, match="is no link"):
        PtyLine(link)
    assert link.read_text() == "something"
    with pytest.raises(SimError, match="cannot make the link"):
        PtyLine(tmp_path / "nowhere" / "arm")


def test_a_dangling_link_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "arm"
    link.symlink_to(tmp_path / "gone")
    line = PtyLine(link)
    assert link.exists()
    line.close()


def test_unplugged_the_client_gets_an_error_and_plugged_in_again_the_link_is_back(
    tmp_path: Path, arm: Client
) -> None:
    link = tmp_path / "arm"
    line = PtyLine(link)
    size = 14 if isinstance(arm, Dynamixel) else 6
    with served((arm.bus, line)) as server:
        fd = open_terminal(link, termios.B1000000)
        arm.bus.inject("unplug:at=50ms:for=300ms", server._clock())
        assert until(lambda: not link.exists())
        with pytest.raises(OSError, match="Input/output error"):
            os.write(fd, arm.packet(1, PING))
        os.close(fd)
        assert until(link.exists)
        fd = open_terminal(link, termios.B1000000)
        os.write(fd, arm.packet(1, PING))
        assert [s.id for s in arm.parse(receive(fd, size))] == [1]
        os.close(fd)


def test_a_socket_pair_serves_and_notices_its_end(arm: Client) -> None:
    ours, theirs = socket.socketpair()
    line = SocketLine(theirs.detach())
    size = 14 if isinstance(arm, Dynamixel) else 6
    with served((arm.bus, line)) as server:
        ours.send(arm.packet(2, PING))
        assert [s.id for s in arm.parse(receive(ours.fileno(), size))] == [2]
        # Silence only: a socket cannot come back.
        arm.bus.inject("unplug:at=20ms:for=400ms", server._clock())
        assert until(lambda: arm.bus.faults.injected["unplug"] == 1)
        ours.send(arm.packet(2, PING))
        assert receive(ours.fileno(), 1, patience_s=0.1) == b""
        assert until(lambda: not arm.bus.faults.active)
        ours.send(arm.packet(2, PING))
        assert [s.id for s in arm.parse(receive(ours.fileno(), size))] == [2]
        ours.close()
        assert until(lambda: line.descriptor() == -1)


def test_several_buses_are_served_by_one_thread() -> None:
    now = time.monotonic_ns()
    koch, so101 = Dynamixel("koch", now=now), Feetech("so101", now=now)
    pairs = [socket.socketpair() for _ in range(2)]
    lines = [SocketLine(theirs.detach()) for _, theirs in pairs]
    with served((koch.bus, lines[0]), (so101.bus, lines[1])):
        pairs[0][0].send(sync_read(koch))
        pairs[1][0].send(sync_read(so101))
        assert len(koch.parse(receive(pairs[0][0].fileno(), 90))) == 6
        assert len(so101.parse(receive(pairs[1][0].fileno(), 48))) == 6
    for ours, _ in pairs:
        ours.close()


def test_replies_in_baud_time_are_not_early() -> None:
    koch = Dynamixel("koch", baud_time=True, now=time.monotonic_ns())
    ours, theirs = socket.socketpair()
    with served((koch.bus, SocketLine(theirs.detach()))):
        for _ in range(20):
            start = time.monotonic_ns()
            ours.send(sync_read(koch))
            assert len(receive(ours.fileno(), 90)) == 90
            taken = time.monotonic_ns() - start
            assert taken >= 110 * BYTE_NS + 6 * 500_000
    ours.close()


def test_physics_goes_on_while_nobody_asks() -> None:
    koch = Dynamixel("koch", now=time.monotonic_ns())
    koch.put(1, "Torque_Enable", 1)
    koch.put(1, "Goal_Position", koch.get(1, "Present_Position") + 300)
    before = koch.bus.mechanism.position[0]
    ours, theirs = socket.socketpair()
    with served((koch.bus, SocketLine(theirs.detach()))):
        assert until(lambda: koch.bus.mechanism.position[0] > before + 0.01)
    ours.close()
