"""`robotd run` as a real process on a simulated bus, and what a test wants to know about it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from robotd.config import JOINTS
from robotd.episodes import observer_ready, remove_runtime, temporary_runtime
from robotd.errors import IpcError
from robotd.ipc.inbox import CommandName, InboxClient
from robotd.ipc.ring import RING_NAME, Mode, RingReader, TickReport
from robotd.ipc.simlink import Answer, Inject, Query, Request, SimLink
from robotd.ipc.status import read_status
from robotd.rundir import STATUS_NAME
from robotd.sim.arms import arm as simulated_arm
from robotd.sim.arms import sim_calibration
from robotd.status import gather
from tests.workers import wait_until

MARK = "ROBOTD_TEST_MARK"
KEPT = {"config.json", "daemon.lock", "state.ring"}  # the record of a run, in its runtime directory
PARK = {model: tuple(simulated_arm(model).park_norm) for model in ("so101", "koch")}


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def arm_table(folder: Path, model: str, port: str | Path, **changes: Any) -> dict[str, Any]:
    """The configuration of one arm, with its calibration file in `folder`."""
    calibration = folder / f"{model}.json"
    if not calibration.exists():
        sim_calibration(model).save(calibration)
    table = {"id": "follower", "model": model, "port": port, "calibration": calibration}
    return {**table, "park": PARK[model], **changes}


def write_config(folder: Path, **sections: Any) -> Path:
    """A configuration file of these sections; `arms` and `cameras` are lists of tables."""
    path = folder / "robotd.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in sections.items()))
    return path


def marked(mark: str) -> dict[int, str]:
    """Every living process by id whose environment carries a mark, and its command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() not in (entry / "environ").read_bytes():
                    continue
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if state != "Z" and command:
                    found[int(entry.name)] = command
    return found


class Daemon:
    """One `robotd run`, with everything that it has said, and all processes that belong to it."""

    def __init__(self, config: Path, runtime_dir: Path, number: int = 0) -> None:
        self.runtime_dir = runtime_dir
        self._log = config.with_name(f"daemon{number}.log")
        self._forgotten = 0
        self._mark = uuid.uuid4().hex
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robotd", "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, MARK: self._mark},
            )

    @property
    def log(self) -> str:
        """All that the daemon and its processes have printed, since `forget`."""
        return self._log.read_text(errors="replace")[self._forgotten :]

    def forget(self) -> None:
        """What has been said so far is not looked at any more."""
        self._forgotten += len(self.log)

    def says(self, *words: str) -> None:
        """Wait until one line of the log has all these words."""
        wait_until(lambda: self.line(*words) is not None, lambda: f"{words} in:\n{self.log}")

    def line(self, *words: str) -> str | None:
        """The first line of the log that has all these words."""
        lines = self.log.splitlines()
        return next((one for one in lines if all(word in one for word in words)), None)

    # Processes

    def processes(self) -> dict[int, str]:
        """Every living process of this daemon by id, however it came to be, and its command."""
        return marked(self._mark)

    def pid(self, name: str) -> int | None:
        """Process id of a child as the daemon's status says it."""
        try:
            entry = read_status(self.runtime_dir / STATUS_NAME)["processes"].get(name)
        except IpcError:
            return None
        return entry["pid"] if entry else None

    def kill(self, name: str) -> int:
        """SIGKILL a child; the id that it had."""
        pid = self.pid(name)
        assert pid is not None, f"{name} is not running:\n{self.log}"
        os.kill(pid, signal.SIGKILL)
        return pid

    def comes_back(self, name: str, dead: int) -> None:
        """Wait until a child runs again, with another id."""
        wait_until(lambda: self.pid(name) not in (None, dead), lambda: f"{name} again:\n{self.log}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and wait for it; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self.process.wait(60)

    def all_gone(self) -> None:
        """Wait until no process of it is left."""
        wait_until(lambda: not self.processes(), "every process gone")

    def left(self) -> set[str]:
        """What lies in the runtime directory."""
        return {path.name for path in self.runtime_dir.iterdir()}

    # State

    def ready(self) -> Self:
        """Wait until it is."""

        def happened() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            try:
                state = read_status(self.runtime_dir / STATUS_NAME)
            except IpcError:
                return False
            return bool(state["ready"]) and state["pid"] == self.process.pid

        wait_until(happened, lambda: f"ready:\n{self.log}")
        return self

    def report(self) -> TickReport | None:
        """The loop's newest report."""
        try:
            ring = RingReader(self.runtime_dir / RING_NAME)
        except IpcError:
            return None
        try:
            return ring.latest()
        finally:
            ring.close()

    def mode(self, mode: Mode) -> TickReport:
        """Wait for a mode."""
        found: list[TickReport] = []

        def happened() -> bool:
            report = self.report()
            if report is not None and report.mode is mode:
                found.append(report)
            return bool(found)

        wait_until(happened, lambda: f"mode {mode.name}:\n{self.log}")
        return found[0]

    def status(self) -> dict[str, Any]:
        """What `robotd status --json` shows."""
        return gather(self.runtime_dir)

    def positions(self) -> list[float]:
        """Measured positions."""
        report = self.report()
        assert report is not None
        return [joint.position for joint in report.joints]

    # Commands

    def call(self, name: CommandName, source: str = "") -> TickReport:
        """A command and its result; IpcError when it is refused."""
        client = InboxClient(self.runtime_dir)
        try:
            return client.call(name, source, timeout_s=60)
        finally:
            client.close()

    def refuses(self, name: CommandName) -> str:
        """A command that must be refused; why it was."""
        try:
            self.call(name)
        except IpcError as error:
            return str(error)
        raise AssertionError(f"{name} was not refused")

    def follow_policy(self) -> None:
        """Wait until the policy is ready, and start it."""
        wait_until(
            lambda: observer_ready(self.runtime_dir) is not None,
            lambda: f"policy ready:\n{self.log}",
        )
        self.call("policy", observer_ready(self.runtime_dir) or "")

    def sim(self, request: Request) -> Answer:
        """Ask the simulator."""
        link = SimLink(self.runtime_dir, 60)
        try:
            return link.call(request)
        finally:
            link.close()

    def inject(self, faults: str = "") -> None:
        """Inject faults; an empty text ends all."""
        self.sim(Inject(faults))

    def truth(self) -> dict[str, Any]:
        """The simulated arm's true pose, torque and so on."""
        return dict(self.sim(Query()).info["follower"])

    # End

    def clean(self) -> None:
        """Nothing of it outlives the test, whatever has happened."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def runtime() -> Iterator[Path]:
    """A runtime directory whose path is short enough for sockets."""
    path = temporary_runtime()
    try:
        yield path
    finally:
        remove_runtime(path)


@contextlib.contextmanager
def running(config: Path, runtime_dir: Path, number: int = 0) -> Iterator[Daemon]:
    """A daemon that does not outlive the test."""
    daemon = Daemon(config, runtime_dir, number)
    try:
        yield daemon
    finally:
        daemon.clean()


def near(measured: Any, expected: Any, within: float = 3.0) -> bool:
    """Whether all body joints are where they are expected to be (a gripper may hold something)."""
    pairs = list(zip(JOINTS, measured, expected, strict=True))
    return all(abs(a - b) <= within for joint, a, b in pairs if joint != "gripper")
