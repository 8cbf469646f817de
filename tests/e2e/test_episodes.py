"""Episodes through the real daemon go on when one of them ends badly."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from robotd.episodes import LiveStage, remove_runtime, temporary_runtime
from robotd.errors import ProcessError
from robotd.evaluate import stage_config
from robotd.ipc.simlink import Answer, Inject
from robotd.ipc.status import read_status
from robotd.rundir import STATUS_NAME
from robotd.sources import ExpertSource

pytest.importorskip("mujoco")
pytestmark = pytest.mark.xdist_group("e2e_show")


def test_after_a_fault_and_after_a_crash_the_next_episode_is_whole() -> None:
    stage = LiveStage(stage_config("so101", None, temporary_runtime()), ExpertSource("so101"))

    def spoil(state: Answer) -> None:
        if state.elapsed_ns > 3e8:
            stage.sim.call(Inject("error:id=3:bits=0x02:for=500ms"))

    def crash(state: Answer) -> None:
        if state.elapsed_ns > 3e8:
            pid = read_status(stage.runtime_dir / STATUS_NAME)["processes"]["control"]["pid"]
            if pid is not None and pid == stage.ring.layout.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    try:
        with stage:
            faulted = stage.episode(5000, watch=spoil)
            assert not faulted.success
            assert faulted.note.startswith("fault SERVO_ERROR: follower.elbow_flex")
            crashed = stage.episode(5001, watch=crash)
            assert crashed.note == "control has been restarted"
            assert stage.episode(5002).success
    finally:
        stage.discard()
    assert not stage.runtime_dir.exists()


def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    config = stage_config("so101", None, temporary_runtime(), faults="bang")
    stage = LiveStage(config)
    with pytest.raises(ProcessError, match=r"(?s)exit code 2.*no kind 'bang'"), stage:
        pass
    stage.discard()


def test_only_a_runtime_directory_of_its_own_is_removed(tmp_path: Path) -> None:
    remove_runtime(tmp_path)
    assert tmp_path.exists()
