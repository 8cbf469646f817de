"""The daemon: starts the processes, watches them, restarts them, stops them in order.

It does no real work itself. What each process is, what its death means and in which order things
stop stands in robotd/children.py. Children follow the daemon: when it is killed, `control` receives
SIGTERM and stops as configured; the simulator ends when its bus has no one left.

A process that ends with exit code 2 in its first life cannot work as configured: the daemon stops
in order and ends with 2 as well. Later deaths, whatever their exit code, lead to a restart.
"""

import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from robotd.children import (
    PROCESSES,
    STOP_ORDER,
    STOP_SIGNALS,
    USAGE_ERROR,
    Child,
    ending,
)
from robotd.config import RESOLVED_NAME, Config
from robotd.errors import IpcError, ProcessError
from robotd.ipc.ring import RING_NAME, Fault, RingReader, TickReport
from robotd.ipc.simlink import SOCKET_NAME as SIM_SOCKET
from robotd.ipc.status import write_status
from robotd.rundir import STATUS_NAME, port_link, remove_links, runtime_directory, save_config

_START_S = 30.0  # to the simulator's bus, and to control's first tick, on a busy machine
_LOOK_S = 0.05  # between two looks at processes and ring
_STATUS_S = 0.25

log = logging.getLogger("robotd")


class StopAsked(Exception):  # noqa: N818 - it is none
    """A signal has asked for the end while something was waited for."""


def block_signals() -> None:
    """From now on a signal that asks for the end waits until the daemon looks."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def awaited_signals() -> list[signal.Signals]:
    """The signals that ask for the end: what is ignored (nohup does that with SIGHUP) is not."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in STOP_SIGNALS if not (ignores_hangup and s is signal.SIGHUP)]


@dataclass
class Daemon:
    """The process table at work. `run` returns the exit code."""

    config: Config
    children: dict[str, Child] = field(default_factory=dict)
    _sockets: list[socket.socket] = field(default_factory=list)
    _ring: RingReader | None = None
    _seen: int = 0  # tick of the last message that was logged
    _ready: bool = False  # control ticks
    _was_ready: bool = False
    _status_at: float = 0.0
    _told_status: bool = False
    _waited: bool = False

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP, or until a child says that it cannot work."""
        block_signals()
        try:
            with runtime_directory(self.config, self._pause) as lock:
                try:
                    self._prepare(lock)
                    return self._start() or self._supervise()
                finally:
                    self._stop()
        except StopAsked:
            return 0

    def _signal(self, wait_s: float) -> signal.Signals | None:
        """Wait for a signal that asks for the end."""
        got = signal.sigtimedwait(awaited_signals(), wait_s)
        return None if got is None else signal.Signals(got.si_signo)

    def _pause(self, why: str) -> None:
        """While the runtime directory is not free yet."""
        if not self._waited:
            self._waited = True
            log.info("%s", why)
        if self._signal(0.1) is not None:
            raise StopAsked

    def _prepare(self, lock: int) -> None:
        """Command lines for every wanted process; socket pairs for simulated arms."""
        path = self.config.runtime_dir / RESOLVED_NAME
        save_config(self.config, path)
        (self.config.runtime_dir / RING_NAME).unlink(missing_ok=True)
        extra: dict[str, list[str]] = {spec.name: [] for spec in PROCESSES}
        passed: dict[str, list[int]] = {spec.name: [lock] for spec in PROCESSES}
        if self.config.sim is not None:
            for arm in (arm for arm in self.config.arms if arm.port == "sim"):
                if self.config.sim.transport == "pty":
                    link = port_link(self.config, arm.id)
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

    def _start(self) -> int:
        """Start everything, the simulator first; exit code 2 when it says that it cannot work."""
        for name, child in self.children.items():
            child.start()
            if name == "sim" and self._await_sim(child) == USAGE_ERROR:
                return USAGE_ERROR
        return 0

    def _supervise(self) -> int:
        """Watch: restart what died, log what the loop says."""
        begun = time.monotonic()
        while True:
            got = self._signal(_LOOK_S)
            if got is not None:
                log.info("%s: stopping", got.name)
                return 0
            for child in self.children.values():
                code = child.died()
                if code is not None and self._cannot_work(child, code):
                    return USAGE_ERROR
                if child.due:
                    self._start_again(child)
            self._follow_ring()
            self._write_status()
            if not self._was_ready and time.monotonic() - begun > _START_S:
                raise ProcessError(f"control made no tick within {_START_S:.0f} s of its start")

    def _await_sim(self, sim: Child) -> int:
        """Wait until the simulator serves its bus; exit code 2 when it says that it cannot."""
        path = self.config.runtime_dir / SIM_SOCKET
        end = time.monotonic() + _START_S
        while not path.exists():
            code = sim.died()
            if code == USAGE_ERROR:
                return USAGE_ERROR
            if code is not None:
                raise ProcessError(f"the simulator ended while it started ({ending(code)})")
            if (got := self._signal(0.01)) is not None:
                log.info("%s: stopping", got.name)
                raise StopAsked
            if time.monotonic() > end:
                raise ProcessError(f"the simulator did not start within {_START_S:.0f} s")
        return 0

    def _cannot_work(self, child: Child, code: int) -> bool:
        """Whether the daemon must end for this death, which is logged otherwise."""
        name = child.spec.name
        if code == USAGE_ERROR and child.restarts == 0:
            return True  # the child has said why
        if name == "control":
            self._ready = False
        delay = max(0.0, child.start_at - time.monotonic())
        log.error("%s ended (%s): %s", name, ending(code), child.spec.death)
        log.info("%s starts again in %.1f s", name, delay)
        return False

    def _start_again(self, child: Child) -> None:
        if child.spec.name == "sim":  # the terminal behind its link is gone, or another's by now
            remove_links(self.config)
        try:
            child.start()
        except ProcessError as error:
            log.error("%s", error)

    def _follow_ring(self) -> None:
        """Log mode changes, faults and events as the loop publishes them."""
        control = self.children.get("control")
        ring = self._current_ring()
        report = ring.latest() if ring is not None else None
        if ring is None or report is None or control is None or control.last_pid != ring.layout.pid:
            return
        if not self._ready and control.pid is not None:
            self._ready = self._was_ready = True
            names = ", ".join(f"{arm.id} ({arm.model})" for arm in self.config.arms)
            log.info("ready: %s at %d Hz, torque off", names, self.config.control.rate_hz)
        for said in self._unseen(ring, report):
            fault = f" {said.fault.name}" if said.fault is not Fault.NONE else ""
            level = logging.ERROR if fault else logging.INFO
            log.log(level, "%s%s: %s", said.mode.name, fault, said.message)

    def _unseen(self, ring: RingReader, report: TickReport) -> list[TickReport]:
        """Ticks with a message that was not logged yet, oldest first."""
        found: list[TickReport] = []
        tick: TickReport | None = report
        while tick is not None and tick.message_sequence > self._seen:
            found.insert(0, ring.read(tick.message_sequence) or tick)
            tick = ring.read(tick.message_sequence - 1)
        self._seen = report.message_sequence
        return found

    def _current_ring(self) -> RingReader | None:
        """The ring of the newest control process, None before there is one."""
        if self._ring is not None and self._ring.replaced:
            self._close_ring()
        if self._ring is None:
            self._seen = 0
            try:
                self._ring = RingReader(self.config.runtime_dir / RING_NAME)
            except IpcError:
                return None
        return self._ring

    def _close_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _write_status(self) -> None:
        now = time.monotonic()
        if now - self._status_at < _STATUS_S:
            return
        self._status_at = now
        state = {
            name: {
                "pid": child.pid,
                "uptime_s": round(now - child.started, 1) if child.pid else None,
                "restarts": child.restarts,
            }
            for name, child in self.children.items()
        }
        try:
            write_status(
                self.config.runtime_dir / STATUS_NAME,
                {"pid": os.getpid(), "ready": self._ready, "processes": state},
            )
            self._told_status = False
        except OSError as error:  # a full disk must not end what moves an arm
            if not self._told_status:
                log.warning("%s cannot be written: %s", STATUS_NAME, error.strerror)
            self._told_status = True

    def _stop(self) -> None:
        """Stop every process in order; the arm first."""
        for names in STOP_ORDER:
            self._end([self.children[name] for name in names if name in self.children])
        for end in self._sockets:
            end.close()
        self._close_ring()

    def _end(self, children: list[Child]) -> None:
        """SIGTERM, then SIGKILL to what takes too long. A further signal hurries control."""
        begun = time.monotonic()
        for child in children:
            child.signal(signal.SIGTERM)
        while children := [child for child in children if not child.ended()]:
            if (got := self._signal(0.02)) is not None:
                hurried = any(child.spec.name == "control" for child in children)
                log.warning("%s again%s", got.name, ": torque off now" if hurried else "")
                for child in children:
                    child.signal(signal.SIGTERM)
            self._follow_ring()
            for child in children:
                if time.monotonic() - begun > self._patience(child):
                    arm = "; the servos keep their torque" if child.spec.name == "control" else ""
                    log.error("%s did not end in time: killed%s", child.spec.name, arm)
                    child.kill()
        self._follow_ring()

    def _patience(self, child: Child) -> float:
        stop = self.config.stop
        parks = child.spec.name == "control" and stop.action == "park"
        return child.spec.stop_s + (stop.park_timeout_s if parks else 0.0)
