"""SIGKILL of every process of a daemon, one after the other: what it means, and what comes back."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robotd.errors import IpcError
from robotd.ipc.ring import Fault, Mode
from tests.bundles import make_bundle
from tests.e2e.rig import KEPT, Daemon, arm_table, running, runtime, write_config
from tests.test_cli import robotd
from tests.workers import wait_until

pytest.importorskip("mujoco")
pytestmark = pytest.mark.xdist_group("e2e_kill")
CAMERAS = (("front", 24, 16),)


def config_file(folder: Path, runtime_dir: Path, **sim: Any) -> Path:
    """A simulated arm, a camera, a policy."""
    camera = {"name": "front", "driver": "sim", "width": 24, "height": 16, "fps": 20}
    return write_config(
        folder,
        runtime_dir=runtime_dir,
        control={"rate_hz": 100, "failed_ticks_hold": 30, "failed_ticks_fault": 60},
        arms=[arm_table(folder, "so101", "sim")],
        sim={"task": "reach", **sim},
        cameras=[camera],
        policy={"bundle": make_bundle(folder / "bundle", cameras=CAMERAS)},
    )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with runtime() as folder:
        config = config_file(tmp_path_factory.mktemp("kill"), folder)
        with running(config, folder) as started:
            yield started.ready()
            assert started.end(signal.SIGINT) == 0
            assert started.processes() == {}
            assert started.left() <= KEPT
            assert "Traceback" not in started.log


@pytest.fixture(autouse=True)
def _disarmed(daemon: Daemon) -> None:
    """Each test finds the arm disarmed, and all processes at work."""
    daemon.forget()
    report = daemon.report()
    if report is not None and report.mode is not Mode.IDLE:
        daemon.call("clear" if report.mode is Mode.FAULT else "disarm")
        daemon.mode(Mode.IDLE)


def test_control_comes_back_disarmed(daemon: Daemon) -> None:
    daemon.call("arm")
    assert all(daemon.truth()["torque"])
    dead = daemon.kill("control")
    daemon.says("control ended (signal SIGKILL)", "hold their last goal")
    daemon.comes_back("control", dead)
    daemon.ready()
    wait_until(lambda: daemon.status()["running"], "ticks")
    assert daemon.status()["mode"] == "IDLE"
    assert not any(daemon.truth()["torque"])
    assert daemon.status()["daemon"]["processes"]["control"]["restarts"] == 1
    daemon.call("arm")


@pytest.mark.parametrize("name", ["worker", "observer"])
def test_a_policy_goes_on_or_holds_and_can_be_started_again(daemon: Daemon, name: str) -> None:
    daemon.call("arm")
    daemon.follow_policy()
    dead = daemon.kill(name)
    daemon.says(f"{name} ended (signal SIGKILL)")
    daemon.comes_back(name, dead)
    daemon.says("observer", "worker ready")
    chunks = daemon.status()["chunk"]["accepted"]

    def at_work() -> bool:
        if daemon.status()["mode"] == "HOLD":
            daemon.says("no usable chunk")
            daemon.follow_policy()
        return bool(daemon.status()["chunk"]["accepted"] > chunks)

    wait_until(at_work, lambda: f"chunks again:\n{daemon.log}")


def test_a_bus_that_is_back_is_usable_after_clear(daemon: Daemon) -> None:
    daemon.call("arm")
    dead = daemon.kill("sim")
    report = daemon.mode(Mode.FAULT)
    assert report.fault is Fault.BUS_SILENT
    daemon.says("FAULT BUS_SILENT", "follower", "no answer from any servo")
    daemon.comes_back("sim", dead)

    def cleared() -> bool:
        try:
            return daemon.call("clear").mode is Mode.IDLE
        except IpcError:  # refused while the bus is silent
            return False

    wait_until(cleared, lambda: f"clear:\n{daemon.log}")
    daemon.call("arm")
    assert all(daemon.truth()["torque"])


def test_cameras_come_back_and_the_arm_does_not_notice(daemon: Daemon) -> None:
    daemon.call("arm")
    cameras = [pid for pid, what in daemon.processes().items() if "sim.cameras" in what]
    assert len(cameras) == 1
    os.kill(cameras[0], signal.SIGKILL)
    daemon.says("cameras ended")
    wait_until(
        lambda: any(
            pid not in cameras for pid, what in daemon.processes().items() if "sim.cameras" in what
        ),
        "cameras again",
    )
    state = daemon.status()
    assert state["mode"] == "HOLD"
    daemon.follow_policy()


def test_a_camera_that_falls_silent_stops_the_policy_and_says_so(daemon: Daemon) -> None:
    daemon.call("arm")
    daemon.follow_policy()
    camera = next(pid for pid, what in daemon.processes().items() if "sim.cameras" in what)
    os.kill(camera, signal.SIGSTOP)
    daemon.says("HOLD", "no usable chunk")
    daemon.says("observer", "camera front", "no picture")
    state = daemon.status()
    assert state["mode"] == "HOLD"
    assert not state["observer"]["ready"]
    assert "camera front is silent" in state["observer"]["waiting_for"]
    assert (
        "camera front"
        in robotd("policy", "--wait", "0", "--runtime-dir", str(daemon.runtime_dir)).stderr
    )
    os.kill(camera, signal.SIGCONT)
    daemon.follow_policy()
    chunks = daemon.status()["chunk"]["accepted"]
    wait_until(lambda: daemon.status()["chunk"]["accepted"] > chunks, "chunks again")


def test_a_bundle_spoiled_on_the_way_keeps_only_the_worker_down(daemon: Daemon) -> None:
    daemon.call("arm")
    config = json.loads((daemon.runtime_dir / "config.json").read_text())
    graph = Path(config["policy"]["bundle"]) / "policy.onnx"
    good = graph.read_bytes()
    graph.write_bytes(good[:-1] + b"?")
    try:
        dead = daemon.kill("worker")
        daemon.says("robotd worker:", "policy.onnx", "hash")
        daemon.says("worker ended (exit code 2)")
        state = daemon.status()
        assert state["mode"] == "HOLD"
        assert state["daemon"]["processes"]["worker"]["restarts"] >= 1
    finally:
        graph.write_bytes(good)
    daemon.comes_back("worker", dead)
    daemon.follow_policy()
