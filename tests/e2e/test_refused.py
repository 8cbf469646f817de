"""What cannot work ends with one clear line and exit code 2: no traceback, no motion, no rest."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robotd.ipc.ring import Mode
from robotd.sim.arms import sim_calibration
from robotd.sim.bus import SimBus
from robotd.sim.serve import BusServer, PtyLine
from tests.bundles import make_bundle, rehash
from tests.conformance.served import ServedBus
from tests.e2e.rig import KEPT, arm_table, near, running, runtime, write_config

pytestmark = pytest.mark.xdist_group("e2e_refused")
FRONT = {"name": "front", "driver": "file", "device": "none.png", "width": 24, "height": 16}


@pytest.fixture(scope="module")
def bus() -> Iterator[ServedBus]:
    with ServedBus("so101") as served:
        yield served


@pytest.fixture
def folder() -> Iterator[Path]:
    with runtime() as path:
        yield path


def refused(config: Path, runtime_dir: Path, *words: str, bus: ServedBus | None = None) -> None:
    """One line that has all the words, exit code 2, nobody and nothing left, nothing moved."""
    before = bus.state() if bus is not None else {}
    with running(config, runtime_dir) as daemon:
        assert daemon.wait() == 2
        assert daemon.processes() == {}
        lines = [line for line in daemon.log.splitlines() if "NO REAL TIME" not in line]
    assert len(lines) == 1, lines
    for word in ("robotd", *words):
        assert word in lines[0]
    assert {path.name for path in runtime_dir.glob("*")} <= KEPT
    if bus is not None:
        assert bus.state()["torque"] == [False] * 6
        assert near(bus.state()["joints"], before["joints"], 0.5)


def config_file(tmp_path: Path, folder: Path, port: str | Path, **sections: Any) -> Path:
    arm = {**arm_table(tmp_path, "so101", port), **sections.pop("arm", {})}
    return write_config(tmp_path, runtime_dir=folder, arms=[arm], **sections)


def test_absent_port(tmp_path: Path, folder: Path) -> None:
    refused(config_file(tmp_path, folder, "/dev/robotd-absent"), folder, "/dev/robotd-absent")


def test_port_that_is_no_serial_device(tmp_path: Path, folder: Path) -> None:
    refused(config_file(tmp_path, folder, "/dev/null"), folder, "/dev/null", "not a serial device")


def test_silent_servo(tmp_path: Path, folder: Path, bus: ServedBus) -> None:
    bus.command("faults mute:id=3")
    config = config_file(tmp_path, folder, bus.path)
    refused(config, folder, "no answer", "servo 3 (elbow_flex)", "arm follower", bus=bus)
    bus.command("faults")


def test_bus_without_power(tmp_path: Path, folder: Path, bus: ServedBus) -> None:
    bus.command("faults mute")
    config = config_file(tmp_path, folder, bus.path)
    refused(config, folder, "no servo answers", "arm follower", "power", bus=bus)
    bus.command("faults")


def test_arm_of_the_other_make(tmp_path: Path, folder: Path, bus: ServedBus) -> None:
    koch = arm_table(tmp_path, "koch", bus.path)
    config = write_config(tmp_path, runtime_dir=folder, arms=[koch])
    refused(config, folder, "configured as koch", "Feetech", "so101", bus=bus)


def test_so101_on_a_koch_and_follower_on_a_leader(tmp_path: Path, folder: Path) -> None:
    with ServedBus("koch", "leader") as leader:
        config = config_file(tmp_path, folder, leader.path)
        refused(config, folder, "configured as so101", "Dynamixel", "koch", bus=leader)
        koch = arm_table(tmp_path, "koch", leader.path)
        config = write_config(tmp_path, runtime_dir=folder, arms=[koch])
        refused(config, folder, "koch follower", "koch leader", "port", bus=leader)


def test_calibration_of_another_arm(tmp_path: Path, folder: Path, bus: ServedBus) -> None:
    path = tmp_path / "other.json"
    mine = sim_calibration("so101")
    elbow = replace(mine.joints["elbow_flex"], homing_offset=7)
    replace(mine, joints={**mine.joints, "elbow_flex": elbow}).save(path)
    config = config_file(tmp_path, folder, bus.path, arm={"calibration": path})
    refused(config, folder, "elbow_flex Homing_Offset", "7 in the file", "calibrat", bus=bus)


def test_servos_of_two_firmware_versions(tmp_path: Path, folder: Path) -> None:
    served, line, server = SimBus("so101"), PtyLine(), BusServer()
    served.servos[4].keep("Firmware_Minor_Version", 3)
    server.add(served, line)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        config = config_file(tmp_path, folder, line.path)
        refused(config, folder, "mixes firmware versions", "wrist_roll")
        assert not any(servo.torque_on for servo in served.servos)
    finally:
        server.stop()
        thread.join()
        line.close()


def test_graph_that_is_corrupt_though_its_hash_is_right(
    tmp_path: Path, folder: Path, bus: ServedBus
) -> None:
    bundle = make_bundle(tmp_path / "bundle", cameras=(("front", 24, 16),))
    (bundle / "policy.onnx").write_bytes(b"\x08\x01garbage")
    rehash(bundle)
    config = config_file(tmp_path, folder, bus.path, cameras=[FRONT], policy={"bundle": bundle})
    with running(config, folder) as daemon:
        assert daemon.wait() == 2
        assert daemon.processes() == {}
        assert "Traceback" not in daemon.log
        said = [line for line in daemon.log.splitlines() if line.startswith("robotd worker: ")]
        assert len(said) == 1
        assert "policy.onnx" in said[0]
    assert bus.state()["torque"] == [False] * 6


def test_simulated_camera_and_fault_that_do_not_exist(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("mujoco")
    config = config_file(tmp_path, folder, "sim", sim={"faults": "bang:id=2"})
    refused(config, folder, "fault", "bang", "unplug")


def test_second_daemon_in_the_same_directory_and_on_the_same_port(
    tmp_path: Path, folder: Path, bus: ServedBus
) -> None:
    config = config_file(tmp_path, folder, bus.path)
    with running(config, folder) as first:
        first.ready().call("arm")
        with running(config, folder, 1) as second:
            assert second.wait() == 2
            assert second.line("another robotd", str(first.process.pid), "runtime_dir")
        other = shutil.copy(config, tmp_path / "other.toml")
        with runtime() as elsewhere:
            text = Path(other).read_text().replace(str(folder), str(elsewhere))
            Path(other).write_text(text)
            with running(Path(other), elsewhere, 2) as third:
                assert third.wait() == 2
                assert third.line(str(bus.path), "in use")
        report = first.report()
        assert report is not None
        assert report.mode is Mode.HOLD
        assert first.end() == 0


def test_camera_that_is_not_there_stops_only_the_policy(
    tmp_path: Path, folder: Path, bus: ServedBus
) -> None:
    camera = FRONT | {"driver": "opencv", "device": "/dev/video97"}
    bundle = make_bundle(tmp_path / "bundle", cameras=(("front", 24, 16),))
    config = config_file(tmp_path, folder, bus.path, cameras=[camera], policy={"bundle": bundle})
    with running(config, folder) as daemon:
        daemon.ready().call("arm")
        daemon.says("camera front", "/dev/video97")
        from tests.test_cli import refused as line_refused
        from tests.test_cli import robotd

        run = robotd("policy", "--wait", "0.2", "--runtime-dir", str(folder))
        line_refused(run, "not ready", "camera front", "/dev/video97")
        state = daemon.status()
        assert state["mode"] == "HOLD"
        assert state["observer"]["cameras"]["front"]["state"] == "failed"
        assert "/dev/video97" in state["observer"]["waiting_for"]
        assert daemon.end() == 0
