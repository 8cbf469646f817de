"""The daemon: starts the processes, watches them, restarts them, stops them in order.

It does no real work itself. What each process is, what its death means and in which order things
stop stands in PROCESSES. Children follow the daemon: when it is killed, `control` receives SIGTERM
and stops as configured; the simulator ends when its bus has no one left.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from robotd.config import RESOLVED_NAME, Config
from robotd.errors import IpcError, ProcessError, RobotdError
from robotd.ipc.ring import RING_NAME, Fault, RingReader
from robotd.ipc.status import write_status

STATUS_NAME = "daemon.json"
LOCK_NAME = "daemon.lock"
USAGE_ERROR = 2  # exit code of a child whose configuration or hardware cannot work
_BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_STABLE_S = 30.0  # running this long forgets earlier deaths
_START_S = 15.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("robotd")


@dataclass(frozen=True)
class ProcessSpec:
    """One row of the process table."""

    name: str
    module: str
    wanted: Callable[[Config], bool]
    follows_parent: bool  # SIGTERM from the kernel when the daemon dies
    stop_s: float  # time to end after SIGTERM, then SIGKILL
    death: str  # what its death means for the arm


PROCESSES = (
    ProcessSpec(
        "sim", "robotd.sim", lambda c: c.sim is not None, False, 3.0,
        "the bus falls silent: control faults, reconnects when the simulator is back",
    ),
    ProcessSpec(
        "control", "robotd.control", lambda c: True, True, 4.0,
        "servos hold their last goal; control restarts disarmed",
    ),
    ProcessSpec(
        "worker", "robotd.policy", lambda c: c.policy is not None and c.policy.endpoint is None,
        True, 3.0, "rest of the chunk, then hold; resumes when the worker is back in time",
    ),
    ProcessSpec(
        "observer", "robotd.observer", lambda c: c.policy is not None or bool(c.cameras),
        True, 3.0, "rest of the chunk, then hold; resumes when the observer is back in time",
    ),
)  # fmt: skip
STOP_ORDER = ("control", "observer", "worker", "sim")


@dataclass
class Child:
    """A process of the table while the daemon runs."""

    spec: ProcessSpec
    argv: list[str]
    descriptors: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    restarts: int = 0

    def start(self) -> None:
        """Start the process; it dies with the daemon where the table says so."""
        follows = self.spec.follows_parent
        self.process = subprocess.Popen(
            self.argv,
            pass_fds=self.descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the daemon alone, which stops in order
            preexec_fn=lambda: prepare_child(follows),
        )
        self.started = time.monotonic()

    def died(self) -> int | None:
        """Exit code when the process has ended since the last look, else None."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        if time.monotonic() - self.started > _STABLE_S:
            self.deaths = 0
        delay = _BACK_OFF_S[min(self.deaths, len(_BACK_OFF_S) - 1)]
        self.deaths += 1
        self.start_at = time.monotonic() + delay
        return code

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL after the time-out."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("%s did not end within %.0f s: killed", self.spec.name, timeout_s)
            self.process.kill()
            self.process.wait()
        self.process = None


def prepare_child(follows_parent: bool) -> None:
    """In the child, before exec: undo the daemon's signal mask, follow the daemon's death."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if follows_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Daemon:
    """The process table at work. `run` returns the exit code."""

    config: Config
    children: dict[str, Child] = field(default_factory=dict)
    _sockets: list[socket.socket] = field(default_factory=list)
    _ring: RingReader | None = None
    _seen: tuple[str, int] = ("", 0)
    _ready: bool = False

    def run(self) -> int:
        """Run until SIGINT or SIGTERM, or until a child says that it cannot work."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        with runtime_directory(self.config):
            try:
                self._prepare()
                return self._supervise()
            finally:
                self._stop()

    def _prepare(self) -> None:
        """Command lines for every wanted process; socket pairs for simulated arms."""
        path = self.config.runtime_dir / RESOLVED_NAME
        self.config.save(path)
        (self.config.runtime_dir / RING_NAME).unlink(missing_ok=True)
        extra: dict[str, list[str]] = {spec.name: [] for spec in PROCESSES}
        passed: dict[str, list[int]] = {spec.name: [] for spec in PROCESSES}
        if self.config.sim is not None:
            for arm in (arm for arm in self.config.arms if arm.port == "sim"):
                if self.config.sim.transport == "pty":
                    link = self.config.runtime_dir / f"{arm.id}.tty"
                    extra["sim"] += ["--link", f"{arm.id}={link}"]
                    extra["control"] += ["--port", f"{arm.id}={link}"]
                    continue
                ours, theirs = socket.socketpair()
                self._sockets += [ours, theirs]  # kept, so that either side can be restarted
                for name, end in (("control", ours), ("sim", theirs)):
                    extra[name] += ["--fd", f"{arm.id}={end.fileno()}"]
                    passed[name].append(end.fileno())
        for spec in PROCESSES:
            if spec.wanted(self.config):
                argv = [sys.executable, "-m", spec.module, "--config", str(path)]
                self.children[spec.name] = Child(
                    spec, argv + extra[spec.name], tuple(passed[spec.name])
                )

    def _supervise(self) -> int:
        """Start, then watch: restart what died, log what the loop says."""
        if "sim" in self.children:
            self.children["sim"].start()
            if (code := self._await_sim()) is not None:
                return code
        for name, child in self.children.items():
            if name != "sim":
                child.start()
        begun = time.monotonic()
        while True:
            got = signal.sigtimedwait(_SIGNALS, 0.05)
            if got is not None:
                log.info("%s: stopping", signal.Signals(got.si_signo).name)
                return 0
            for child in self.children.values():
                code = child.died()
                if code is not None and (final := self._after_death(child, code)) is not None:
                    return final
                if child.process is None and time.monotonic() >= child.start_at:
                    child.restarts += 1
                    child.start()
            self._follow_ring()
            self._write_status()
            if not self._ready and time.monotonic() - begun > _START_S:
                raise ProcessError(f"control made no tick within {_START_S:.0f} s of its start")

    def _await_sim(self) -> int | None:
        """Wait until the simulator serves its bus; its exit code when it ended instead."""
        path = self.config.runtime_dir / "sim.sock"
        sim = self.children["sim"]
        end = time.monotonic() + _START_S
        while not path.exists():
            if (code := sim.died()) is not None:
                return code or 1
            if signal.sigtimedwait(_SIGNALS, 0.01) is not None:
                return 0
            if time.monotonic() > end:
                raise ProcessError(f"the simulator did not start within {_START_S:.0f} s")
        return None

    def _after_death(self, child: Child, code: int) -> int | None:
        """Log a death; the daemon's exit code when it must end for it."""
        if code == USAGE_ERROR and (not self._ready or child.spec.name in ("control", "sim")):
            return USAGE_ERROR  # the child has said why
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        delay = child.start_at - time.monotonic()
        log.error(
            "%s ended (%s): %s; restart in %.1f s", child.spec.name, why, child.spec.death, delay
        )
        return None

    def _follow_ring(self) -> None:
        """Log mode changes, faults and events as the loop publishes them."""
        control = self.children["control"]
        if self._ring is not None and self._ring.replaced:
            self._ring.close()
            self._ring = None
        if self._ring is None:
            try:
                self._ring = RingReader(self.config.runtime_dir / RING_NAME)
            except IpcError:
                return
            self._seen = ("", 0)
        report = self._ring.latest()
        if report is None or control.process is None:
            return
        if not self._ready:
            self._ready = True
            names = ", ".join(f"{arm.id} ({arm.model})" for arm in self.config.arms)
            log.info("ready: %s at %d Hz", names, self.config.control.rate_hz)
        if (report.message, report.message_sequence) != self._seen and report.message:
            fault = f" [{report.fault.name}]" if report.fault is not Fault.NONE else ""
            log.info("%s%s: %s", report.mode.name, fault, report.message)
        self._seen = (report.message, report.message_sequence)

    def _write_status(self) -> None:
        now = time.monotonic()
        state = {
            name: {
                "pid": child.process.pid if child.process else None,
                "uptime_s": round(now - child.started, 1) if child.process else None,
                "restarts": child.restarts,
            }
            for name, child in self.children.items()
        }
        write_status(
            self.config.runtime_dir / STATUS_NAME,
            {"pid": os.getpid(), "ready": self._ready, "processes": state},
        )

    def _stop(self) -> None:
        """Stop every process in order; the arm first."""
        park = self.config.stop.park_timeout_s if self.config.stop.action == "park" else 0.0
        for name in STOP_ORDER:
            if name in self.children:
                child = self.children[name]
                child.stop(child.spec.stop_s + (park if name == "control" else 0.0))
        for end in self._sockets:
            end.close()
        if self._ring is not None:
            self._ring.close()


@contextlib.contextmanager
def runtime_directory(config: Config) -> Iterator[Path]:
    """Create the runtime directory, and hold its lock: one daemon per directory."""
    path = config.runtime_dir
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = open(path / LOCK_NAME, "w")  # noqa: SIM115 - held until the daemon ends
    except OSError as error:
        raise RobotdError(
            f"{path}: cannot use this runtime directory: {error.strerror}; set runtime_dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RobotdError(
                f"{path}: another robotd is running here; stop it or set runtime_dir"
            ) from error
        if len(str(path)) > 80:
            raise RobotdError(f"{path}: too long for sockets (80 characters); set runtime_dir")
        yield path
        (path / STATUS_NAME).unlink(missing_ok=True)
