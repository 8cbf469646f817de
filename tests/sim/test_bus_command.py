"""`robotd sim bus`: its console, and the command as a process."""

import io
import json
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from robotd.errors import SimError
from robotd.sim.bus import SimBus
from robotd.sim.bus_command import Console, serve_bus_command
from tests.sim.clients import Feetech
from tests.sim.test_bus_server import open_terminal, receive

ROBOTD = str(Path(sys.executable).parent / "robotd")


@pytest.fixture
def bus() -> SimBus:
    bus = SimBus("so101")
    bus.advance(0)
    return bus


def test_console_obeys_and_answers_every_line(bus: SimBus) -> None:
    stopped: list[bool] = []
    console = Console(bus, lambda: stopped.append(True))
    assert console.obey("", 0) == "ok"
    assert console.obey("only gripper wrist_roll", 0) == "ok"
    assert [servo.connected for servo in bus.servos] == [False] * 4 + [True] * 2
    assert console.obey("all", 0) == "ok"
    assert all(servo.connected for servo in bus.servos)
    assert console.obey("faults drop:p=0.5, mute:id=2", 0) == "ok"
    assert bus.faults.active
    assert console.obey("faults", 0) == "ok"
    assert not bus.faults.active
    assert console.obey("hand elbow_flex=20 gripper=80", 0) == "ok"
    bus.advance(3_000_000_000)
    state = json.loads(console.obey("state", 0).removeprefix("ok "))
    assert state["joints"][2] == pytest.approx(20, abs=0.5)
    assert state["joints"][5] == pytest.approx(80, abs=0.5)
    assert state["ids"] == [1, 2, 3, 4, 5, 6]
    assert console.obey("hand", 0) == "ok"
    assert console.obey("quit", 0) == "ok"
    assert stopped == [True]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("jump", "no command 'jump'; there are: faults, only, all, hand, state, quit"),
        ("faults dorp", "no kind 'dorp'"),
        ("faults mute:id=9", "no servo 9"),
        ("only elbow", "no joint 'elbow'; there are: shoulder_pan"),
        ("hand elbow_flex", "write JOINT=X; joints are shoulder_pan"),
        ("hand elbow_flex=up", "write JOINT=X"),
    ],
)
def test_console_says_what_is_wrong(bus: SimBus, line: str, said: str) -> None:
    answer = Console(bus, lambda: None).obey(line, 0)
    assert answer.startswith("error: ")
    assert said in answer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "so100"}, "no simulated arm so100 follower"),
        ({"model": "koch", "faults": "drop:x=1"}, "no option 'x=1'"),
        ({"model": "koch", "link": Path("/nonexistent/arm")}, "cannot make the link"),
    ],
)
def test_wrong_arguments_are_one_clear_error(arguments: dict, said: str) -> None:
    with pytest.raises(SimError) as caught:
        serve_bus_command(**arguments, physics="ideal", out=io.StringIO())
    assert said in str(caught.value)


@pytest.mark.parametrize("physics", ["ideal", "mujoco"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_ends_on_a_signal(
    tmp_path: Path, physics: str, number: signal.Signals
) -> None:
    link = tmp_path / "arm"
    process = subprocess.Popen(
        [ROBOTD, "sim", "bus", "--arm", "so101", "--link", str(link), "--physics", physics],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(link)
        fd = open_terminal(link, termios.B1000000)
        ping = Feetech("so101").packet(4, 1)
        os.write(fd, ping)
        assert receive(fd, 6) == ping[:4] + b"\x00" + bytes([~(4 + 2) & 0xFF])
        os.close(fd)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert errors == ""
        assert not link.is_symlink()
    finally:
        process.kill()
        process.wait()
