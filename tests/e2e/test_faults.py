"""Faults while the daemon runs: what status and log say, that the arm is held, the way back."""

from collections.abc import Iterator
from typing import Any

import pytest

from robotd.errors import IpcError
from robotd.ipc.ring import Fault, Mode
from robotd.ipc.simlink import Reset
from tests.e2e.rig import Daemon, arm_table, near, running, runtime, write_config
from tests.test_cli import refused, robotd
from tests.workers import wait_until

pytest.importorskip("mujoco")
pytestmark = pytest.mark.xdist_group("e2e_faults")
CONTROL = {"rate_hz": 100, "failed_ticks_hold": 20, "failed_ticks_fault": 60}
LIFT = 1


@pytest.fixture(scope="module", params=["so101", "koch"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """On a pseudo-terminal, which can be unplugged."""
    model = request.param
    with runtime() as folder:
        place = tmp_path_factory.mktemp(model)
        config = write_config(
            place,
            runtime_dir=folder,
            control=CONTROL,
            arms=[arm_table(place, model, "sim")],
            sim={"task": "reach", "transport": "pty"},
        )
        with running(config, folder) as started:
            yield started.ready()
            assert started.end() == 0
            assert started.processes() == {}
            assert "Traceback" not in started.log


@pytest.fixture(autouse=True)
def _armed(daemon: Daemon) -> Iterator[None]:
    """Every test finds the arm armed and well, and leaves it disarmed."""
    daemon.forget()
    daemon.sim(Reset(3))
    daemon.call("arm")
    yield
    daemon.inject()
    report = daemon.report()
    assert report is not None
    if report.mode is Mode.FAULT:
        clear(daemon)
    elif report.mode is not Mode.IDLE:
        daemon.call("disarm")
    daemon.mode(Mode.IDLE)


def clear(daemon: Daemon) -> str:
    """Clear as soon as that is not refused; what is said then."""
    said: list[str] = []

    def done() -> bool:
        try:
            said.append(daemon.call("clear").message)
        except IpcError:
            return False
        return True

    wait_until(done, lambda: f"clear:\n{daemon.log}")
    return said[0]


def faulted(daemon: Daemon, fault: Fault, *words: str) -> dict[str, Any]:
    """Wait for the fault; `robotd status` and the log say it in these words."""
    report = daemon.mode(Mode.FAULT)
    assert report.fault is fault
    daemon.says(f"FAULT {fault.name}", *words)
    state = daemon.status()
    assert state["fault"] == fault.name
    for word in words:
        assert word in state["message"]
    return state


def test_mute_servo(daemon: Daemon) -> None:
    before = daemon.truth()["joints"]
    daemon.inject("mute:id=2")
    state = faulted(daemon, Fault.BUS_SILENT, "follower.shoulder_lift", "no answer", "cable")
    assert not state["joints"]["follower.shoulder_lift"]["valid"]
    assert all(daemon.truth()["torque"])  # nobody tells the servos otherwise: they hold
    assert near(daemon.truth()["joints"], before)
    assert "no answer" in daemon.refuses("clear")
    daemon.inject()
    clear(daemon)
    assert daemon.call("arm").mode is Mode.HOLD


def test_unplugged_and_plugged_in_again(daemon: Daemon) -> None:
    before = daemon.truth()["joints"]
    daemon.inject("unplug")
    state = faulted(daemon, Fault.PORT_LOST, "follower", "unplugged")
    assert not any(joint["valid"] for joint in state["joints"].values())
    assert near(daemon.truth()["joints"], before)
    refused(robotd("clear", "--runtime-dir", str(daemon.runtime_dir)), "clear", "unplugged")
    daemon.inject()
    wait_until(
        lambda: all(joint["valid"] for joint in daemon.status()["joints"].values()), "contact"
    )
    assert daemon.status()["mode"] == "FAULT"
    assert clear(daemon) == "PORT_LOST cleared: torque is off"
    assert not any(daemon.truth()["torque"])
    assert daemon.call("arm").mode is Mode.HOLD


def test_overload(daemon: Daemon) -> None:
    daemon.inject("overload:id=2")
    state = faulted(daemon, Fault.SERVO_ERROR, "follower.shoulder_lift", "overload")
    assert state["fault_joint"] == "follower.shoulder_lift"
    held = [on for joint, on in enumerate(daemon.truth()["torque"]) if joint != LIFT]
    assert all(held)
    said = clear(daemon)
    assert said.startswith("SERVO_ERROR cleared: torque is off")
    assert daemon.call("arm").mode is Mode.HOLD
    assert all(daemon.truth()["torque"])


def test_over_temperature(daemon: Daemon) -> None:
    daemon.inject("overheat:id=2:c=85")
    state = faulted(daemon, Fault.OVERHEAT, "follower.shoulder_lift")
    assert state["fault_joint"] == "follower.shoulder_lift"
    assert not any(daemon.truth()["torque"])
    assert "shoulder_lift" in daemon.refuses("clear")
    daemon.inject()
    daemon.sim(Reset(3))  # a long rest
    clear(daemon)
    assert daemon.call("arm").mode is Mode.HOLD


def test_restarted_servo(daemon: Daemon) -> None:
    daemon.inject("reboot:id=5")
    daemon.mode(Mode.FAULT)
    daemon.says("FAULT", "follower.wrist_roll")
    clear(daemon)
    assert daemon.call("arm").mode is Mode.HOLD


def test_emergency_stop_is_a_fault_too(daemon: Daemon) -> None:
    run = robotd("estop", "--runtime-dir", str(daemon.runtime_dir))
    assert run.returncode == 0
    assert "robotd clear" in run.stdout
    faulted(daemon, Fault.ESTOP, "emergency stop")
    assert not any(daemon.truth()["torque"])
    assert "robotd clear" in daemon.refuses("arm")
    assert clear(daemon) == "ESTOP cleared: torque is off"
