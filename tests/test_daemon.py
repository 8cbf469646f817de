"""The daemon's parts: the process table, children and their restarts, the runtime directory."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robotd import children
from robotd.children import BACK_OFF_S, PROCESSES, STABLE_S, STOP_ORDER, Child, ProcessSpec, ending
from robotd.config import Config, parse
from robotd.daemon import Daemon, awaited_signals
from robotd.errors import ProcessError, RobotdError
from robotd.ipc.frames import FRAMES_DIR
from robotd.ipc.ring import RING_NAME, Fault, Layout, Mode, RingWriter, TickReport
from robotd.rundir import LOCK_NAME, runtime_directory, save_config
from robotd.sim.arms import sim_calibration
from tests.workers import socket_folder, wait_until


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as path:
        yield path


def make_config(folder: Path, **sections: Any) -> Config:
    sim_calibration("so101").save(folder / "cal.json")
    arm = {"id": "a", "model": "so101", "port": "sim", "calibration": "cal.json"}
    raw: dict[str, Any] = {"arms": [arm], "sim": {}, "runtime_dir": str(folder), **sections}
    return parse(raw, folder / "test.toml")


def child_of(script: str, follows_parent: bool = True) -> Child:
    spec = ProcessSpec("test", "none", lambda config: True, follows_parent, 1.0, "nothing")
    return Child(spec, [sys.executable, "-c", script])


def died(child: Child) -> int:
    codes: list[int] = []

    def happened() -> bool:
        code = child.died()
        if code is not None:
            codes.append(code)
        return bool(codes)

    wait_until(happened, "death")
    return codes[0]


# The table


def test_every_process_is_stopped_the_arm_first_and_its_servos_last() -> None:
    stopped = [name for names in STOP_ORDER for name in names]
    assert sorted(stopped) == sorted(spec.name for spec in PROCESSES)
    assert stopped[0] == "control"
    assert stopped[-1] == "sim"
    assert PROCESSES[0].name == "sim"  # control needs its bus


def wanted(config: Config) -> set[str]:
    return {spec.name for spec in PROCESSES if spec.wanted(config)}


def test_only_what_is_configured_runs(folder: Path) -> None:
    config = make_config(folder)
    policy: dict[str, Any] = {"bundle": "b"}
    assert wanted(config) == {"sim", "control"}
    assert wanted(config.model_copy(update={"sim": None})) == {"control"}
    camera = {"name": "front", "driver": "sim"}
    assert wanted(make_config(folder, cameras=[camera])) == {"sim", "control", "observer"}
    assert wanted(make_config(folder, policy=policy)) == {"sim", "control", "observer", "worker"}
    elsewhere = {**policy, "endpoint": "tcp://127.0.0.1:5555"}
    assert wanted(make_config(folder, policy=elsewhere)) == {"sim", "control", "observer"}


# A child


def test_back_off_grows_and_is_forgotten_after_a_stable_run() -> None:
    child = child_of("raise SystemExit(3)")
    for number in range(len(BACK_OFF_S) + 2):
        child.start()
        assert child.restarts == number
        begun = time.monotonic()
        assert died(child) == 3
        delay = BACK_OFF_S[min(number, len(BACK_OFF_S) - 1)]
        assert begun <= child.start_at - delay <= time.monotonic()
    assert not child.due
    child.start()
    child.started -= STABLE_S + 1
    died(child)
    assert child.start_at - time.monotonic() <= BACK_OFF_S[0]
    wait_until(lambda: child.due, "end of the back-off")


def test_a_child_has_no_blocked_signals_and_a_session_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import os, signal, sys\n"
        "blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        f"open({str(out)!r}, 'w').write(f'{{len(blocked)}} {{os.getsid(0) == os.getpid()}}')\n"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, children.STOP_SIGNALS)
    try:
        child = child_of(script)
        child.start()
        assert died(child) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert out.read_text() == "0 True"


def test_a_program_that_is_not_there_is_an_error_and_tried_later() -> None:
    child = child_of("")
    child.argv = ["/nonexistent/robotd"]
    with pytest.raises(ProcessError, match="test cannot be started"):
        child.start()
    assert child.pid is None
    assert child.deaths == 1


def test_a_deaf_child_is_killed() -> None:
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    )
    child = child_of(script)
    child.start()
    assert child.process is not None
    child.signal(signal.SIGTERM)
    child.kill()
    assert child.ended()
    child.signal(signal.SIGTERM)  # to nobody: no error


@pytest.mark.parametrize("follows", [True, False])
def test_who_follows_a_dead_parent(tmp_path: Path, follows: bool) -> None:
    """A parent is killed; its child ends with it where the table says so."""
    pid_file = tmp_path / "pid"
    script = (
        "import time\n"
        "from tests.test_daemon import child_of\n"
        f"child = child_of('import time; time.sleep(600)', {follows})\n"
        "child.start()\n"
        f"open({str(pid_file)!r}, 'w').write(f'{{child.pid}} ')\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith(" "), "the child")
    pid = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    if follows:
        wait_until(lambda: not running(pid), "end of the child")
    else:
        time.sleep(0.2)
        assert running(pid)
        os.kill(pid, signal.SIGKILL)


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_ends_are_put_into_words() -> None:
    assert ending(0) == "exit code 0"
    assert ending(-9) == "signal SIGKILL"
    assert ending(-77) == "signal 77"


def test_hangup_is_not_awaited_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in awaited_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in awaited_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


# The runtime directory


def nobody_waits(why: str) -> None:
    raise AssertionError(why)


def test_the_directory_is_made_locked_and_cleaned(folder: Path) -> None:
    place = folder / "run" / "robotd"
    camera = {"name": "front", "driver": "sim"}
    config = make_config(folder, runtime_dir=str(place), cameras=[camera])
    with runtime_directory(config, nobody_waits) as lock:
        assert (place / LOCK_NAME).read_text() == f"{os.getpid()}\n"
        assert os.fstat(lock).st_ino == (place / LOCK_NAME).stat().st_ino
        (place / FRAMES_DIR).mkdir()
        kept = ("state.ring", "config.json", "mine.txt", "frames/other")
        gone = ("control.sock", "sim.sock", "policy.sock", "observer.json", "daemon.json")
        for name in (*kept, *gone, "scene", "a.tty", "frames/front"):
            (place / name).write_text("")
    left = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert left == {*kept, LOCK_NAME}


def test_leftovers_of_a_killed_daemon_are_removed_at_the_start(folder: Path) -> None:
    (folder / "sim.sock").write_text("stale")
    with runtime_directory(make_config(folder), nobody_waits):
        assert not (folder / "sim.sock").exists()


def test_a_living_owner_is_named(folder: Path) -> None:
    config = make_config(folder)
    with (
        runtime_directory(config, nobody_waits),
        pytest.raises(RobotdError, match=rf"another robotd \(process {os.getpid()}\)"),
        runtime_directory(config, nobody_waits),
    ):
        pass
    with runtime_directory(config, nobody_waits):
        pass


def test_the_processes_of_a_killed_owner_are_waited_for(folder: Path) -> None:
    config = make_config(folder)
    holder = subprocess.Popen([sys.executable, "-c", "pass"])
    holder.wait()
    reasons: list[str] = []
    with runtime_directory(config, nobody_waits) as lock:
        heir = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=(lock,),
        )
        os.truncate(lock, 0)
        os.write(lock, f"{holder.pid}\n".encode())  # its owner is dead

    def pause(why: str) -> None:
        reasons.append(why)
        assert heir.stdin is not None
        heir.stdin.close()
        time.sleep(0.01)

    with runtime_directory(config, pause):
        assert heir.wait(60) == 0
    assert "killed robotd" in reasons[0]


def test_a_file_that_cannot_be_written_is_an_error(folder: Path) -> None:
    with pytest.raises(RobotdError, match="cannot be written"):
        save_config(make_config(folder), folder / "none" / "config.json")


# What the loop says


class Loop:
    """Writes a ring as control does."""

    def __init__(self, folder: Path) -> None:
        path = folder / RING_NAME
        self._ring = RingWriter(path, Layout(("a.gripper",), 5_000_000, 64, os.getpid()))
        self._report = TickReport()

    def tick(self, message: str = "", mode: Mode = Mode.IDLE, fault: Fault = Fault.NONE) -> None:
        from robotd.ipc.ring import JointReport

        report = self._report
        report.sequence += 1
        report.mode, report.fault = mode, fault
        if message:
            report.message, report.message_sequence = message, report.sequence
        report.joints = [JointReport()]
        self._ring.publish(report)

    def close(self) -> None:
        self._ring.close()


def test_every_message_is_logged_once_in_order(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(make_config(folder))
    control = child_of("import time; time.sleep(600)")
    control.start()
    daemon.children["control"] = control
    control.last_pid = os.getpid()
    caplog.set_level(logging.INFO)
    loop = Loop(folder)
    loop.tick()
    daemon._follow_ring()
    loop.tick("armed", Mode.HOLD)
    loop.tick()
    loop.tick("parking", Mode.PARK)
    loop.tick("gripper too hot", Mode.FAULT, Fault.OVERHEAT)
    loop.tick()
    daemon._follow_ring()
    daemon._follow_ring()
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("ready: a (so101)")
    assert said[1:] == ["HOLD: armed", "PARK: parking", "FAULT OVERHEAT: gripper too hot"]
    loop.close()
    caplog.clear()
    loop = Loop(folder)  # control has been restarted
    loop.tick("armed", Mode.HOLD)
    daemon._follow_ring()
    assert caplog.messages == ["HOLD: armed"]
    loop.close()
    control.kill()


def test_a_ring_of_an_earlier_run_says_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(make_config(folder))
    control = child_of("pass")
    control.last_pid = 1
    daemon.children["control"] = control
    loop = Loop(folder)
    loop.tick("armed", Mode.HOLD)
    daemon._follow_ring()
    assert caplog.messages == []
    loop.close()
