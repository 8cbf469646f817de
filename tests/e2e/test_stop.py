"""SIGINT, SIGTERM and SIGHUP at any moment: the arm parked or held, torque off as configured.

The servos are those of a bus that outlives the daemon, so that they can be looked at afterwards.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from robotd.ipc.ring import Mode
from tests.bundles import make_bundle
from tests.conformance.served import ServedBus
from tests.e2e.rig import KEPT, PARK, Daemon, arm_table, near, running, runtime, write_config
from tests.workers import wait_until

pytestmark = pytest.mark.xdist_group("e2e_stop")
START = {"shoulder_pan": 20.0, "shoulder_lift": -60.0, "elbow_flex": 50.0, "wrist_flex": 40.0,
         "wrist_roll": 10.0, "gripper": 30.0}  # fmt: skip
CONTROL = {"rate_hz": 100, "failed_ticks_hold": 30, "failed_ticks_fault": 100}


@pytest.fixture(scope="module")
def bus() -> Iterator[ServedBus]:
    with ServedBus("so101") as served:
        yield served


class Case:
    """A daemon on that bus, with a policy that sees a picture from a file."""

    def __init__(self, bus: ServedBus, folder: Path, runtime_dir: Path) -> None:
        self.bus, self.folder, self.runtime_dir = bus, folder, runtime_dir
        bus.command("faults")
        bus.hand(START)

    def config(self, policy: bool = False, park_velocity: float = 100, **stop: Any) -> Path:
        sections: dict[str, Any] = {
            "runtime_dir": self.runtime_dir,
            "control": CONTROL,
            "stop": {"park_timeout_s": 30, **stop},
            "arms": [arm_table(self.folder, "so101", self.bus.path, park_velocity=park_velocity)],
        }
        if policy:
            picture = self.folder / "grey.png"
            cv2.imwrite(str(picture), np.full((16, 24, 3), 160, np.uint8))
            bundle = make_bundle(self.folder / "bundle", cameras=(("front", 24, 16),))
            camera = {"name": "front", "driver": "file", "device": picture}
            sections |= {"cameras": [camera | {"width": 24, "height": 16}]}
            sections |= {"policy": {"bundle": bundle}}
        return write_config(self.folder, **sections)

    def torque(self) -> list[bool]:
        return list(self.bus.state()["torque"])

    def joints(self) -> list[float]:
        return list(self.bus.state()["joints"])


@pytest.fixture
def case(bus: ServedBus, tmp_path: Path) -> Iterator[Case]:
    with runtime() as folder:
        yield Case(bus, tmp_path, folder)


def tidy(daemon: Daemon, exit_code: int) -> None:
    """It ended well: exit code, nobody left, nothing left, nothing ugly said."""
    assert exit_code == 0, daemon.log
    assert daemon.processes() == {}
    assert daemon.left() <= KEPT
    assert "Traceback" not in daemon.log
    assert "Error" not in daemon.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["the first process", "the first tick"])
def test_while_starting_and_in_idle(case: Case, number: int, after: str) -> None:
    with running(case.config(), case.runtime_dir) as daemon:
        if after == "the first tick":
            daemon.ready()
        else:
            wait_until(lambda: len(daemon.processes()) > 1, "a process of the daemon")
        tidy(daemon, daemon.end(number))
    assert not any(case.torque())


def test_in_hold_the_arm_is_parked_and_torque_goes_off(case: Case) -> None:
    with running(case.config(), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        assert all(case.torque())
        tidy(daemon, daemon.end(signal.SIGINT))
        assert daemon.line("PARK", "parking, then stopping")
        assert daemon.line("IDLE", "stopped: torque is off")
    assert not any(case.torque())
    assert near(case.joints(), PARK["so101"])


def test_held_with_torque_kept_when_so_configured(case: Case) -> None:
    with running(case.config(action="hold", torque_off=False), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        tidy(daemon, daemon.end())
    assert all(case.torque())
    assert near(case.joints(), START.values())


def test_held_and_then_limp_when_so_configured(case: Case) -> None:
    with running(case.config(action="hold"), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        tidy(daemon, daemon.end())
    assert not any(case.torque())
    assert near(case.joints(), START.values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_under_a_policy_the_arm_is_parked(case: Case, number: int) -> None:
    with running(case.config(policy=True), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        daemon.follow_policy()
        wait_until(lambda: not near(case.joints(), START.values(), 5.0), "motion by the policy")
        tidy(daemon, daemon.end(number))
    assert not any(case.torque())
    assert near(case.joints(), PARK["so101"])


def test_while_parking_it_still_parks(case: Case) -> None:
    with running(case.config(), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        daemon.call("park")
        tidy(daemon, daemon.end(signal.SIGINT))
    assert not any(case.torque())
    assert near(case.joints(), PARK["so101"])


def test_a_second_signal_takes_torque_off_at_once(case: Case) -> None:
    with running(case.config(park_velocity=15), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        daemon.process.send_signal(signal.SIGINT)
        daemon.mode(Mode.PARK)
        tidy(daemon, daemon.end(signal.SIGINT))
        assert daemon.line("SIGINT again", "torque off now")
    assert not any(case.torque())
    assert not near(case.joints(), PARK["so101"])


def test_in_a_fault_torque_goes_off_where_servos_still_answer(case: Case) -> None:
    with running(case.config(), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        case.bus.command("faults mute:id=2")
        daemon.mode(Mode.FAULT)
        tidy(daemon, daemon.end())
        assert daemon.line("FAULT BUS_SILENT", "follower.shoulder_lift")
        assert daemon.line("torque off is not confirmed", "shoulder_lift")
    muted = 1
    assert [on for at, on in enumerate(case.torque()) if at != muted] == [False] * 5


def test_after_an_emergency_stop(case: Case) -> None:
    with running(case.config(), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        daemon.call("estop")
        assert not any(case.torque())
        tidy(daemon, daemon.end(signal.SIGINT))
    assert not any(case.torque())
    assert near(case.joints(), START.values())


def test_killed_daemon_parks_the_arm_and_leaves_nobody(case: Case) -> None:
    with running(case.config(policy=True), case.runtime_dir) as daemon:
        daemon.ready().call("arm")
        daemon.follow_policy()
        daemon.process.send_signal(signal.SIGKILL)
        daemon.wait()
        daemon.all_gone()
    assert not any(case.torque())
    assert near(case.joints(), PARK["so101"])


def test_a_new_daemon_waits_until_a_killed_ones_arm_is_parked(case: Case) -> None:
    config = case.config(park_velocity=15)
    with running(config, case.runtime_dir) as first:
        first.ready().call("arm")
        first.process.send_signal(signal.SIGKILL)
        first.wait()
        with running(config, case.runtime_dir, 1) as second:
            second.ready()
            assert first.processes() == {}
            assert near(case.joints(), PARK["so101"])
            tidy(second, second.end())
            assert second.line("waiting for the processes of a killed robotd")
