"""What a newcomer runs: the daemon by hand, the demo, an evaluation through the real daemon."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import cv2
import pytest

from robotd.evaluate import stage_config
from tests.e2e.rig import MARK, PARK, marked, near, running, runtime, write_config
from tests.test_cli import ROOT, refused, robotd
from tests.workers import socket_folder, wait_until

pytest.importorskip("mujoco")
pytestmark = pytest.mark.xdist_group("e2e_show")


def test_by_hand_with_the_shipped_policy(tmp_path: Path) -> None:
    """The commands of the README, one after the other."""
    with runtime() as folder:
        example = (ROOT / "docs" / "examples" / "so101_sim.toml").read_text()
        config = tmp_path / "robotd.toml"
        text = f'runtime_dir = "{folder}"\n' + example.replace("../..", str(ROOT))
        config.write_text(text)
        at = ("--runtime-dir", str(folder))
        with running(config, folder) as daemon:
            daemon.ready()
            refused(robotd("park", *at), "not armed", "robotd arm")
            assert robotd("arm", *at).stdout.startswith("armed")
            start = daemon.positions()
            run = robotd("policy", "--wait", "60", *at)
            assert "so101_lift moves the arm" in run.stdout, run.stderr
            wait_until(lambda: not near(daemon.positions(), start, 5.0), "motion by the policy")
            state = json.loads(robotd("status", "--json", *at).stdout)
            assert state["running"]
            assert state["observer"]["bundle"] == "so101_lift"
            assert state["chunk"]["accepted"] >= 1
            assert state["observer"]["cameras"].keys() == {"front", "wrist"}
            page = robotd("status", *at).stdout
            assert "shoulder_lift" in page
            assert "worker ready" in page
            assert "holding" in robotd("hold", *at).stdout
            assert robotd("park", *at).stdout == "parked: mode HOLD\n"
            assert near(daemon.truth()["joints"], PARK["so101"])
            assert "torque is off" in robotd("disarm", *at).stdout
            assert daemon.truth()["torque"] == [False] * 6
            assert daemon.end(signal.SIGINT) == 0


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_live_expert_succeeds(model: str) -> None:
    run = robotd(
        "eval", "--arm", model, "--baseline", "expert", "-n", "2", "--seed-start", "5000", "--json",
        timeout_s=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert (report["clock"], report["subject"]) == ("live", "expert")
    assert report["successes"] == 2, report
    assert report["interval95"][0] < 1.0


def test_demo_shows_a_picture_and_ends_by_itself(tmp_path: Path) -> None:
    picture = tmp_path / "cameras.png"
    mark = uuid.uuid4().hex
    run = subprocess.run(
        [sys.executable, "-m", "robotd", "demo", "-n", "1", "--view", str(picture), "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, MARK: mark},
    )
    summary = json.loads(run.stdout)
    assert run.returncode == (0 if summary["successes"] else 1), run.stderr
    assert summary["episodes"] == 1
    assert summary["loop"]["rate_hz"] > 50
    assert summary["chunks"] >= 1
    assert summary["observer"]["bundle"] == "so101_lift"
    image = cv2.imread(str(picture))
    assert image is not None
    assert image.std() > 5  # there is something to see
    assert "episode 1 of 1" in run.stderr
    assert marked(mark) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_demo_leaves_nobody(number: int) -> None:
    mark = uuid.uuid4().hex
    with socket_folder() as temporary:
        demo = subprocess.Popen(
            [sys.executable, "-m", "robotd", "demo"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, MARK: mark, "TMPDIR": str(temporary)},
        )
        control = "robotd.control"
        wait_until(lambda: any(control in what for what in marked(mark).values()), "the daemon")
        demo.send_signal(number)
        _, said = demo.communicate(timeout=100)
        assert said == b""
        assert demo.returncode != 0
        wait_until(lambda: not marked(mark), "every process gone")
        if number != signal.SIGKILL:
            assert not list(temporary.glob("robotd-*"))


def test_without_cameras_and_policy(tmp_path: Path) -> None:
    """A bare arm: no observer, and `robotd policy` says what is missing."""
    with runtime() as folder:
        arms = stage_config("so101", None, folder).model_dump(mode="json")["arms"]
        plain = {"id": "follower", "model": "so101", "port": "sim"}
        plain |= {"calibration": arms[0]["calibration"]}
        config = write_config(tmp_path, runtime_dir=folder, arms=[plain], sim={"task": "reach"})
        at = ("--runtime-dir", str(folder))
        with running(config, folder) as daemon:
            daemon.ready().call("arm")
            refused(robotd("policy", "--wait", "0", *at), "no observer", "[policy]")
            refused(robotd("park", *at), "park pose", "configuration")
            assert daemon.pid("observer") is None
            assert daemon.end() == 0
