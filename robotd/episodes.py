"""Episodes through the real daemon: its processes, its clock, the simulated arm's bus bytes.

Used by the demo and by the evaluation. `LiveStage` starts `robotd run` as a user would, resets the
simulated scene between episodes, and drives the arm only through the daemon's sockets.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from robotd.children import prepare_child
from robotd.config import Config
from robotd.errors import IpcError, ProcessError
from robotd.ipc.inbox import InboxClient
from robotd.ipc.ring import RING_NAME, Fault, Mode, RingReader, TickReport
from robotd.ipc.simlink import Answer, Query, Reset, SimLink
from robotd.ipc.status import read_status
from robotd.rundir import STATUS_NAME
from robotd.sources import PERIOD_NS, ChunkSource

OBSERVER_NAME = "observer.json"
TIME_LIMIT_S = 12.0
PATIENCE_S = 10  # with a fault whose cause has to go first
_STALE_NS = 5_000_000_000


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How one episode ended. `seconds` is simulated time to success, or until it was ended."""

    seed: int
    success: bool
    seconds: float
    note: str = ""  # why it ended without success


def observer_ready(runtime_dir: Path) -> str | None:
    """Digest of the bundle when observer, worker and cameras are ready, else None."""
    try:
        state = read_status(runtime_dir / OBSERVER_NAME)
    except IpcError:
        return None
    digest = state.get("digest")
    return digest if state.get("ready") and isinstance(digest, str) else None


def start_policy(runtime_dir: Path, wait_s: float) -> TickReport:
    """Wait for observer and worker, then ask control for mode POLICY. IpcError when refused."""
    end = time.monotonic() + wait_s
    while (digest := observer_ready(runtime_dir)) is None:
        if time.monotonic() > end:
            try:
                why = read_status(runtime_dir / OBSERVER_NAME).get("waiting_for", "starting")
            except IpcError:
                why = "no observer is running: configure [policy]"
            raise IpcError(f"policy: not ready within {wait_s:g} s: {why}")
        time.sleep(0.02)
    client = InboxClient(runtime_dir)
    try:
        return client.call("policy", source=digest)
    finally:
        client.close()


def await_mode(runtime_dir: Path, passing: Mode) -> TickReport:
    """Wait until the loop has left a mode; its report then. IpcError when it stops ticking."""
    ring = RingReader(runtime_dir / RING_NAME)
    try:
        while (report := ring.latest()) is None or report.mode is passing:
            if report is not None and time.monotonic_ns() - report.deadline_ns > _STALE_NS:
                raise IpcError("the loop is not ticking any more; see `robotd status`")
            time.sleep(0.02)
        return report
    finally:
        ring.close()


def temporary_runtime() -> Path:
    """A short runtime directory of one's own (socket paths are limited to 107 bytes)."""
    return Path(tempfile.mkdtemp(prefix="robotd-"))


class LiveStage:
    """A daemon of its own on simulated arms, and the tools to run episodes on it."""

    def __init__(self, config: Config, source: ChunkSource | None = None) -> None:
        self.config = config
        self.runtime_dir = config.runtime_dir
        self._source = source
        self._process: subprocess.Popen[str] | None = None
        self._sequence = 0

    def __enter__(self) -> Self:
        """Start the daemon and wait until it is ready."""
        path = self.runtime_dir / "stage.json"
        self.config.save(path)
        me = os.getpid()
        self._log = open(self.runtime_dir / "daemon.log", "w+")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "robotd", "run", "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stderr=self._log,
                stdout=self._log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process alone
                preexec_fn=lambda: prepare_child(True, me),  # and the daemon never outlives it
            )
            self._await_ready()
            self.ring = RingReader(self.runtime_dir / RING_NAME)
            self.sim = SimLink(self.runtime_dir)
            self.inbox = InboxClient(self.runtime_dir)
        except BaseException:
            self._end()
            raise
        return self

    def _await_ready(self, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self.check()
            try:
                if read_status(self.runtime_dir / STATUS_NAME).get("ready"):
                    return
            except IpcError:
                pass
            time.sleep(0.02)
        raise ProcessError(f"the daemon was not ready within {timeout_s:.0f} s:\n{self.log_tail()}")

    def check(self) -> None:
        """ProcessError with the daemon's last lines when it has ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise ProcessError(f"the daemon ended with exit code {code}:\n{self.log_tail()}")

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that the daemon and its processes have printed."""
        text = (self.runtime_dir / "daemon.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def reset(self, seed: int) -> None:
        """Disarm, set the scene and the arm's start pose for this seed, arm again."""
        self._recover()
        self.sim.call(Reset(seed))
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._recover()
                self.inbox.call("arm")
                return
            except IpcError:
                # Setting the scene holds the simulated bus up for a moment, as power-up would.
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _recover(self) -> None:
        """To IDLE from wherever the last episode left the loop. IpcError when it stays there."""
        end = time.monotonic() + PATIENCE_S
        while True:
            self.check()
            self._follow_restart()
            report = self.ring.latest()
            if report is None or report.mode is Mode.IDLE:
                return
            try:
                self.inbox.call("clear" if report.mode is Mode.FAULT else "disarm")
            except IpcError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _follow_restart(self) -> bool:
        """Whether control has been restarted, and writes another ring."""
        if not self.ring.replaced:
            return False
        self.ring.close()
        self.ring = RingReader(self.runtime_dir / RING_NAME)
        return True

    def episode(
        self,
        seed: int,
        time_limit_s: float = TIME_LIMIT_S,
        watch: Callable[[Answer], None] | None = None,
    ) -> EpisodeResult:
        """Reset, run the policy (or the given source) until success, time-out or fault."""
        self.reset(seed)
        if self._source is None:
            start_policy(self.runtime_dir, 30.0)
        else:
            self._source.begin(seed)
            self.inbox.call("policy", source=self._source.name)
        while True:
            state = self.sim.call(Query())
            if watch is not None:
                watch(state)
            if state.success:
                return self._result(seed, True, state.success_ns / 1e9)
            if state.elapsed_ns > time_limit_s * 1e9:
                return self._result(seed, False, state.elapsed_ns / 1e9, "time limit")
            if note := self._interrupted():
                return self._result(seed, False, state.elapsed_ns / 1e9, note)
            self._feed(state)
            time.sleep(0.02)

    def _interrupted(self) -> str:
        """Why the episode cannot go on, or an empty string."""
        self.check()
        if self._follow_restart():
            return "control has been restarted"
        report = self.ring.latest()
        if report is None or report.mode is Mode.POLICY:
            return ""
        fault = f"fault {report.fault.name}" if report.fault is not Fault.NONE else "stopped"
        return f"{fault}: {report.message}"

    def _feed(self, state: Answer) -> None:
        """Let a baseline's source send its next chunk."""
        if self._source is None:
            return
        truth = Answer()

        def look() -> list[float]:
            nonlocal truth
            truth = self.sim.call(Query(state=True))
            return truth.state

        steps = self._source.chunk(state.elapsed_ns / 1e9, look)
        if steps is not None:
            self._sequence += 1
            observed_ns = truth.time_ns or state.time_ns
            with contextlib.suppress(IpcError):  # control is being restarted: seen by the caller
                self.inbox.send_chunk(
                    self._source.name, self._sequence, observed_ns, PERIOD_NS, steps
                )

    def _result(self, seed: int, success: bool, seconds: float, note: str = "") -> EpisodeResult:
        return EpisodeResult(seed, success, round(seconds, 3), note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the daemon as a user would (SIGTERM) and wait for every process of it."""
        for part in (self.ring, self.sim, self.inbox):
            part.close()
        self._end()

    def _end(self) -> None:
        self._log.close()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def discard(self) -> None:
        """Remove the temporary runtime directory."""
        remove_runtime(self.runtime_dir)


def remove_runtime(path: Path) -> None:
    """Remove a runtime directory that was made by `temporary_runtime`, and no other."""
    if path.name.startswith("robotd-"):
        shutil.rmtree(path, ignore_errors=True)
