"""The simulator process of the daemon, with its control channel and its cameras."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robotd.config import parse
from robotd.errors import IpcError, SimError
from robotd.ipc.frames import FRAMES_DIR, Encoding, FrameReader
from robotd.ipc.simlink import SOCKET_NAME, Hand, Inject, Query, Reset, SimLink
from robotd.sim.arms import arm as simulated_arm
from tests.sim.clients import Feetech
from tests.sim.test_bus_server import open_terminal, receive

PATIENCE_S = 60.0
STATUS_SIZE = 6


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


class Simulator:
    """`python -m robotd.sim` with one SO-101 on a socket pair."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.path = folder / "config.json"
        sim = {"baud_time": False} | changes.pop("sim", {})
        raw = {
            "runtime_dir": str(folder),
            "arms": [{"id": "arm", "model": "so101", "port": "sim", "calibration": "c.json"}],
            "cameras": changes.pop("cameras", []),
            "sim": sim,
        } | changes
        parse(raw, folder / "robotd.toml").save(self.path)
        self.wire, theirs = socket.socketpair()
        pty = sim.get("transport") == "pty"
        ends = [f"--link=arm={folder / 'arm.tty'}"] if pty else [f"--fd=arm={theirs.fileno()}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robotd.sim", "--config", str(self.path), *ends],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.client = Feetech("so101")  # for its packets

    def link(self) -> SimLink:
        def connect() -> SimLink | None:
            assert self.process.poll() is None, self.end()
            with contextlib.suppress(IpcError):
                return SimLink(self.folder, PATIENCE_S)
            return None

        found: SimLink = until(connect)
        return found

    def ask(self, servo_id: int, instruction: int, data: bytes = b"", size: int = 0) -> bytes:
        self.wire.send(self.client.packet(servo_id, instruction, data))
        (status,) = self.client.parse(receive(self.wire.fileno(), STATUS_SIZE + size))
        return status.data

    def position(self, servo_id: int) -> int:
        return int.from_bytes(self.ask(servo_id, 2, bytes([56, 2]), 2), "little")

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        try:
            _, errors = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
        return self.process.returncode, errors

    def close(self) -> None:
        self.wire.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="robotd-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def simulator(folder: Path) -> Iterator[Simulator]:
    made = Simulator(folder)
    yield made
    made.close()


def test_servos_answer_and_the_scene_is_reset(simulator: Simulator) -> None:
    link = simulator.link()
    assert simulator.ask(3, 1) == b""
    first = link.call(Reset(7))
    assert (first.seed, first.success) == (7, False)
    park = simulated_arm("so101").park_norm
    joints = first.info["arm"]["joints"]
    assert joints == pytest.approx(park, abs=2.5)
    second = link.call(Reset(8))
    again = link.call(Reset(7))
    cube = [first.info[f"cube_{axis}_m"] for axis in "xy"]
    assert [again.info[f"cube_{axis}_m"] for axis in "xy"] == pytest.approx(cube, abs=1e-4)
    assert [second.info[f"cube_{axis}_m"] for axis in "xy"] != pytest.approx(cube, abs=1e-4)
    assert again.elapsed_ns < 2_000_000_000
    assert link.call(Query()).state == []
    assert len(link.call(Query(state=True)).state) > 12
    link.close()


def test_an_arm_with_torque_on_stays_where_a_reset_puts_it(simulator: Simulator) -> None:
    link = simulator.link()
    link.call(Reset(1))
    for servo_id in range(1, 7):
        simulator.ask(servo_id, 3, bytes([40, 1]))
    before = [simulator.position(i) for i in range(1, 7)]
    simulator.ask(1, 3, bytes([42]) + (before[0] + 300).to_bytes(2, "little"))
    until(lambda: abs(simulator.position(1) - before[0] - 300) < 20)
    placed = link.call(Reset(2)).info["arm"]["joints"]
    time.sleep(0.5)
    after = link.call(Query()).info["arm"]
    assert after["torque"] == [True] * 6
    assert after["joints"] == pytest.approx(placed, abs=2.0)
    link.close()


def test_faults_and_the_hand_come_through_the_control_channel(simulator: Simulator) -> None:
    link = simulator.link()
    link.call(Inject("drop:id=2"))
    simulator.wire.send(simulator.client.packet(2, 1))
    assert simulator.ask(3, 1) == b""  # what comes is the other servo's answer
    assert link.call(Inject("")).info["arm"]["injected"] == {"drop": 1}
    assert simulator.ask(2, 1) == b""
    link.call(Hand({0: 0.5}))
    until(lambda: abs(link.call(Query()).info["arm"]["joints"][0]) > 20)
    link.call(Hand({}))
    for wrong in (Inject("dorp"), Inject("drop", arm="other"), Hand({9: 0.0}), Inject("mute:id=9")):
        with pytest.raises(SimError):
            link.call(wrong)
    link.close()


def test_configured_faults_act_from_the_start(folder: Path) -> None:
    simulator = Simulator(folder, sim={"faults": "mute:id=1"})
    simulator.link().close()
    simulator.wire.send(simulator.client.packet(1, 1))
    assert simulator.ask(2, 1) == b""
    simulator.close()


def test_cameras_are_drawn_from_the_present_scene(folder: Path) -> None:
    cameras = [
        {"name": "front", "driver": "sim", "width": 64, "height": 48, "fps": 30},
        {"name": "wrist", "driver": "sim", "width": 32, "height": 32, "fps": 15},
    ]
    simulator = Simulator(folder, cameras=cameras)
    link = simulator.link()
    until(lambda: all((folder / FRAMES_DIR / c["name"]).exists() for c in cameras))
    front, wrist = (FrameReader(folder / FRAMES_DIR / str(c["name"])) for c in cameras)
    first = until(front.latest)
    assert (first.width, first.height, first.encoding) == (64, 48, Encoding.RGB)
    assert len(set(first.data)) > 10
    assert abs(time.monotonic_ns() - first.captured_ns) < 30_000_000_000
    until(lambda: front.last > first.sequence + 3)
    assert until(wrist.latest).width == 32
    link.call(Hand({0: 1.2, 1: 0.5}))  # the arm moves: the picture changes
    until(lambda: front.latest().data != first.data)
    link.close()
    simulator.process.terminate()
    assert simulator.end()[0] == 0
    number = front.last
    time.sleep(0.3)
    assert front.last == number  # the camera process has gone too
    simulator.close()


def test_blank_cameras_are_grey(folder: Path) -> None:
    cameras = [{"name": "front", "driver": "sim", "width": 16, "height": 16, "fps": 30}]
    simulator = Simulator(folder, cameras=cameras, sim={"blank_images": True})
    until(lambda: (folder / FRAMES_DIR / "front").exists())
    reader = FrameReader(folder / FRAMES_DIR / "front")
    assert set(until(reader.latest).data) == {128}
    simulator.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_a_word(simulator: Simulator, number: signal.Signals) -> None:
    simulator.link().close()
    simulator.process.send_signal(number)
    assert simulator.end() == (0, "")
    assert not (simulator.folder / SOCKET_NAME).exists()
    with pytest.raises(IpcError):
        SimLink(simulator.folder)


def test_it_ends_when_nobody_is_left(simulator: Simulator) -> None:
    simulator.link().close()
    simulator.wire.close()
    assert simulator.end() == (0, "")


def test_a_pseudo_terminal_serves_as_well(folder: Path) -> None:
    simulator = Simulator(folder, sim={"transport": "pty"})
    simulator.link().close()
    fd = open_terminal(folder / "arm.tty", termios.B1000000)
    os.write(fd, simulator.client.packet(5, 1))
    assert len(simulator.client.parse(receive(fd, STATUS_SIZE))) == 1
    os.close(fd)
    simulator.process.terminate()
    assert simulator.end()[0] == 0
    assert not (folder / "arm.tty").is_symlink()
    simulator.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cameras": [{"name": "left", "driver": "sim"}]}, "no simulated camera 'left'"),
        ({"sim": {"faults": "dorp"}}, "no kind 'dorp'"),
        (
            {"arms": [{"id": "arm", "model": "so101", "port": "/dev/x", "calibration": "c.json"}]},
            'no arm has port = "sim"',
        ),
        (
            {"arms": [{"id": "left", "model": "so101", "port": "sim", "calibration": "c.json"}]},
            "neither --fd nor --link",
        ),
    ],
)
def test_what_cannot_work_is_one_line_and_code_2(folder: Path, changes: dict, said: str) -> None:
    simulator = Simulator(folder, **changes)
    code, errors = simulator.end()
    assert code == 2
    assert said in errors
    assert len(errors.splitlines()) == 1, errors
    simulator.close()


def test_a_descriptor_that_is_no_socket_is_refused(folder: Path) -> None:
    valid = Simulator(folder)
    valid.close()
    done = subprocess.run(
        [sys.executable, "-m", "robotd.sim", "--config", str(valid.path), "--fd", "arm=77"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert "arm=77: no inherited socket" in done.stderr
