"""Arms on served buses in real time: pseudo-terminals and sockets, unplugging, LeRobot beside."""

import contextlib
import importlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from robotd.bus.arm import Arm
from robotd.bus.port import SerialPort
from robotd.errors import PortError
from robotd.sim.arms import sim_calibration
from robotd.sim.bus import SimBus
from robotd.sim.serve import BusServer, PtyLine, SocketLine

LATER_NS = 10_000_000_000
PATIENCE_NS = 200_000_000  # a busy machine may keep the simulator waiting
ALL = [("so101", "follower"), ("so101", "leader"), ("koch", "follower"), ("koch", "leader")]
ARMS = pytest.mark.parametrize(("model", "role"), ALL)


@contextlib.contextmanager
def running(bus: SimBus, line: PtyLine | SocketLine) -> Iterator[None]:
    """The bus served on the line by a thread."""
    server = BusServer()
    server.add(bus, line)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()
        line.close()


@contextlib.contextmanager
def arm_on(kind: str, model: str, role: str = "follower") -> Iterator[tuple[Arm, SimBus]]:
    """An `Arm` on a simulated bus of its own."""
    bus = SimBus(model, role)
    if kind == "pty":
        line: PtyLine | SocketLine = PtyLine()
        port = SerialPort.open(line.path, 1_000_000)
    else:
        mine, theirs = socket.socketpair()
        line = SocketLine(theirs.detach())
        port = SerialPort.from_fd(mine.detach())
    arm = Arm("left", model, role, port, sim_calibration(model, role), margin_ns=PATIENCE_NS)
    with running(bus, line):
        try:
            yield arm, bus
        finally:
            arm.close()


@ARMS
@pytest.mark.parametrize("kind", ["pty", "socket"])
def test_an_arm_works_over_a_descriptor(kind: str, model: str, role: str) -> None:
    with arm_on(kind, model, role) as (arm, bus):
        arm.connect()
        arm.configure()
        present = arm.engage()
        for _ in range(60):
            arm.request()
            readings = arm.collect(time.monotonic_ns() + LATER_NS)
            assert all(one.valid for one in readings)
            if role == "follower":
                arm.write(present)
            time.sleep(0.002)
        body = slice(0, 5)  # the Koch leader's gripper opens
        assert [one.position for one in readings[body]] == pytest.approx(present[body], abs=1.5)
        assert arm.fast is (model == "koch")
        assert arm.counters.slow_reads > 0
        arm.release()
        assert not any(servo.torque_on for servo in bus.servos)


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_cable_pulled_and_put_in_again(model: str, tmp_path: Path) -> None:
    bus = SimBus(model)
    line = PtyLine(tmp_path / "arm")
    port = SerialPort.open(line.path, 1_000_000)
    arm = Arm("left", model, "follower", port, sim_calibration(model), margin_ns=PATIENCE_NS)
    server = BusServer()
    server.add(bus, line)
    pull = threading.Event()
    plug = threading.Event()

    def cable(now_ns: int) -> None:
        if pull.is_set():
            pull.clear()
            line.unplug(True)
        if plug.is_set():
            plug.clear()
            line.unplug(False)

    server.after_step(cable)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        arm.connect()
        arm.configure()
        present = arm.engage()
        pull.set()
        with pytest.raises(PortError):
            tick_until_lost(arm, present)
        begun = time.monotonic_ns()
        assert not arm.reconnect()
        assert time.monotonic_ns() - begun < 500_000_000
        assert not arm.engaged
        plug.set()
        deadline = time.monotonic_ns() + LATER_NS
        while not arm.reconnect() and time.monotonic_ns() < deadline:
            time.sleep(0.01)
        arm.connect()
        arm.configure()
        arm.engage()
        assert arm.engaged
    finally:
        server.stop()
        thread.join()
        line.close()
        arm.close()


def tick_until_lost(arm: Arm, goals: tuple[float, ...]) -> None:
    """Ticks until one raises, at most for a few seconds."""
    deadline = time.monotonic_ns() + LATER_NS
    while time.monotonic_ns() < deadline:
        arm.request()
        arm.collect(time.monotonic_ns() + 10_000_000)
        arm.write(goals)
        time.sleep(0.002)


def test_a_simulator_that_dies_is_a_port_error_at_once() -> None:
    mine, theirs = socket.socketpair()
    port = SerialPort.from_fd(mine.detach())
    arm = Arm("left", "so101", "follower", port, sim_calibration("so101"))
    theirs.close()
    begun = time.monotonic_ns()
    for call in (arm.request, lambda: arm.collect(begun + LATER_NS), arm.connect, arm.release):
        with pytest.raises(PortError):
            call()
    assert not arm.reconnect()
    assert time.monotonic_ns() - begun < LATER_NS / 2


# Module and class of LeRobot, imported where they are used: that takes seconds.
LEROBOTS = {
    ("koch", "follower"): ("robots.koch_follower", "KochFollower"),
    ("so101", "follower"): ("robots.so_follower", "SO101Follower"),
    ("koch", "leader"): ("teleoperators.koch_leader", "KochLeader"),
    ("so101", "leader"): ("teleoperators.so_leader", "SO101Leader"),
}
# Where robotd differs on purpose: torque and goals wait for engage(), the EEPROM is locked again.
DIFFERENT = {"Torque_Enable", "Lock", "Goal_Position", "Goal_Current"}


def configured_by_lerobot(model: str, role: str, folder: Path) -> SimBus:
    """A simulated arm after LeRobot's own `configure`."""
    place, name = LEROBOTS[model, role]
    module = importlib.import_module(f"lerobot.{place}")
    device, config = getattr(module, name), getattr(module, f"{name}Config")
    sim_calibration(model, role).save(folder / "arm.json")
    bus, line = SimBus(model, role), PtyLine()
    unlike_either(bus)
    with running(bus, line):
        theirs = device(config(port=str(line.path), id="arm", calibration_dir=folder))
        for attempt in range(10):
            try:
                theirs.bus.connect()
                theirs.configure()
                break
            except ConnectionError:  # it gives up on the first late answer: a busy machine
                assert attempt < 9
                if theirs.bus.is_connected:
                    theirs.bus.port_handler.closePort()
        theirs.bus.port_handler.closePort()
    return bus


@ARMS
def test_configured_like_lerobot_itself(model: str, role: str, tmp_path: Path) -> None:
    """The same servos, configured by LeRobot's own class and by robotd: the same registers."""
    bus = configured_by_lerobot(model, role, tmp_path)
    other = SimBus(model, role)
    unlike_either(other)
    mine, far = socket.socketpair()
    with running(other, SocketLine(far.detach())):
        port = SerialPort.from_fd(mine.detach())
        arm = Arm("left", model, role, port, sim_calibration(model, role))
        arm.configure()
        arm.close()
    for one, two in zip(bus.servos, other.servos, strict=True):
        for item in one.model.items:
            if item.writable and item.name not in DIFFERENT:
                assert one.get(item.name) == two.get(item.name), (one.id, item.name)
        assert not two.torque_on


def unlike_either(bus: SimBus) -> None:
    """Servos that were used for something else before."""
    for servo in bus.servos:
        servo.keep("Return_Delay_Time", 250)
        servo.keep("Operating_Mode", 1)
        if bus.arm.protocol == "feetech":
            servo.keep("Phase", 0x1C)
            servo.keep("P_Coefficient", 32)
            servo.keep("Max_Torque_Limit", 1000)
        else:
            servo.set("Position_P_Gain", 700)
