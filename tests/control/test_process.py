"""The control process: started as the daemon does, on a simulated bus in real time."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robotd.bus.registers import JOINTS
from robotd.ipc.inbox import SOCKET_NAME, InboxClient
from robotd.ipc.ring import RING_NAME, Mode, RingReader, TickReport
from robotd.sim.bus import SimBus
from robotd.sim.serve import BusServer, SocketLine
from tests.control.rig import make_config
from tests.workers import socket_folder, wait_until

PARK = (0, -85, 80, 60, 0, 10)


class Process:
    """`python -m robotd.control` beside a thread that serves its bus."""

    def __init__(self, folder: Path, model: str = "so101", **sections: Any) -> None:
        self.folder = folder
        self.bus = SimBus(model)
        ours, theirs = socket.socketpair()
        self._server = BusServer()
        self._server.add(self.bus, SocketLine(theirs.detach()))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        sections.setdefault("arm", {"park": PARK})
        sections.setdefault("control", {"failed_ticks_hold": 100, "failed_ticks_fault": 10_000})
        config = make_config(folder, (model,), **sections)
        config.save(folder / "config.json")
        self.process = start(folder, "--fd", f"a={ours.fileno()}", fds=(ours.fileno(),))
        ours.close()

    def ready(self) -> RingReader:
        """The ring, once there has been a tick."""
        path = self.folder / RING_NAME

        def ticking() -> bool:
            assert self.process.poll() is None, self.said()
            return path.exists() and RingReader(path).last > 0

        wait_until(ticking, "a first tick")
        return RingReader(path)

    def said(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def torque(self) -> list[bool]:
        return [servo.torque_on for servo in self.bus.servos]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._server.stop()
        self._thread.join()


def start(folder: Path, *arguments: str, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    config = str(folder / "config.json")
    return subprocess.Popen(
        [sys.executable, "-m", "robotd.control", "--config", config, *arguments],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as path:
        yield path


def newest(ring: RingReader) -> TickReport:
    report = ring.latest()
    assert report is not None
    return report


def test_it_ticks_obeys_and_parks_when_told_to_end(folder: Path) -> None:
    process = Process(folder)
    try:
        ring = process.ready()
        assert newest(ring).mode is Mode.IDLE
        assert ring.layout.joints == tuple(f"a.{joint}" for joint in JOINTS)
        assert ring.layout.pid == process.process.pid
        client = InboxClient(folder)
        assert client.call("arm", timeout_s=20).torque
        assert all(process.torque())
        assert client.call("policy", "test", timeout_s=20).mode is Mode.POLICY
        client.send_chunk(
            "test", 1, time.monotonic_ns(), 100_000_000, [[0, -85, 80, 60, 0, 30]] * 9
        )
        wait_until(lambda: newest(ring).chunks == 1, "the chunk's acceptance")
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(30) == 0
        assert not any(process.torque())
        report = newest(ring)
        assert report.message == "stopped: torque is off"
        assert [joint.applied for joint in report.joints] == pytest.approx(PARK, abs=1.0)
        assert not (folder / SOCKET_NAME).exists()
        assert "Traceback" not in process.said()
    finally:
        process.end()


def test_a_second_signal_ends_it_at_once_without_torque(folder: Path) -> None:
    process = Process(folder, arm={"park": (90, -85, 80, 60, 0, 10), "park_velocity": 2})
    try:
        ring = process.ready()
        InboxClient(folder).call("arm", timeout_s=20)
        process.process.send_signal(signal.SIGINT)
        wait_until(lambda: newest(ring).mode is Mode.PARK, "parking")
        assert all(process.torque())
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(20) == 0
        assert not any(process.torque())
        assert process.said().count("\n") <= 1  # at most the line about real-time rights
    finally:
        process.end()


def test_a_missed_real_time_right_is_said_and_published_or_refused(folder: Path) -> None:
    """A core that is not there can be had nowhere."""
    process = Process(folder, control={"cpu": 1023})
    try:
        assert newest(process.ready()).degraded & 4
        process.process.terminate()
        assert process.process.wait(20) == 0
        assert "NO REAL TIME: not pinned to control.cpu" in process.said()
    finally:
        process.end()
    process = Process(folder, control={"cpu": 1023, "require_realtime": True})
    try:
        assert process.process.wait(20) == 2
        said = process.said()
        assert said.startswith("robotd control: control.require_realtime is set, but: ")
        assert said.count("\n") == 1
    finally:
        process.end()


def test_it_ends_when_the_bus_is_not_the_arm_that_is_configured(folder: Path) -> None:
    process = Process(folder)
    process.end()
    with socket_folder() as other:
        bus = SimBus("so101")
        bus.connect_only(["gripper"])
        ours, theirs = socket.socketpair()
        server = BusServer()
        server.add(bus, SocketLine(theirs.detach()))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        make_config(other).save(other / "config.json")
        child = start(other, "--fd", f"a={ours.fileno()}", fds=(ours.fileno(),))
        _, said = child.communicate(timeout=60)
        server.stop()
        thread.join()
        ours.close()
    lines = [line for line in said.decode().splitlines() if "REAL TIME" not in line]
    assert child.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("robotd control: no answer from servo 1")


@pytest.mark.parametrize(
    ("port", "arguments", "words"),
    [
        ("sim", (), "arm a is simulated: its bus must be given with --fd or --port"),
        ("/dev/does-not-exist", (), "/dev/does-not-exist"),
        ("sim", ("--port", "a=/dev/null"), "/dev/null"),
        ("sim", ("--fd", "a=777"), "simulated bus of a"),
    ],
)
def test_a_port_that_cannot_be_opened_is_one_line(
    folder: Path, port: str, arguments: tuple[str, ...], words: str
) -> None:
    make_config(folder, arm={"port": port}).save(folder / "config.json")
    child = start(folder, *arguments)
    _, said = child.communicate(timeout=60)
    lines = said.decode().splitlines()
    assert child.returncode == 2
    assert len(lines) == 1
    assert words in lines[0]


def test_a_missing_calibration_is_one_line(folder: Path) -> None:
    make_config(folder).save(folder / "config.json")
    (folder / "so101.json").unlink()
    ours, theirs = socket.socketpair()
    child = start(folder, "--fd", f"a={ours.fileno()}", fds=(ours.fileno(),))
    _, said = child.communicate(timeout=60)
    ours.close()
    theirs.close()
    assert child.returncode == 2
    assert said.decode().count("\n") == 1
    assert "so101.json" in said.decode()


def test_a_configuration_that_is_not_there_is_one_line(folder: Path) -> None:
    child = start(folder)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "cannot be read" in said.decode()
    assert said.decode().count("\n") == 1


def test_a_signal_before_the_first_tick_ends_it_quietly(folder: Path) -> None:
    """The bus does not answer: it is still looking for its servos."""
    make_config(folder).save(folder / "config.json")
    ours, theirs = socket.socketpair()
    child = start(folder, "--fd", f"a={ours.fileno()}", fds=(ours.fileno(),))
    try:
        theirs.recv(1)
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=60)
    finally:
        ours.close()
        theirs.close()
    assert child.returncode == 0
    assert "Traceback" not in said.decode()


def test_the_module_is_light() -> None:
    """Nothing heavy comes with it: no numpy, no images, no inference, no sockets library."""
    code = "import sys, robotd.control.process; print(*sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout.split()
    assert not {"numpy", "cv2", "onnxruntime", "zmq", "rich", "typer", "mujoco"} & set(out)


def test_malformed_options_are_refused(folder: Path) -> None:
    child = start(folder, "--fd", "a")
    _, said = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "'a' is not ARM=" in said.decode()
    child = start(folder, "--fd", "a=b")
    _, said = child.communicate(timeout=60)
    assert "'a=b' is not ARM=NUMBER" in said.decode()
