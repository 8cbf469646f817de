"""The daemon's processes: the table that says what each is, and one of them while it runs."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from robotd.config import Config
from robotd.errors import ProcessError

USAGE_ERROR = 2  # exit code of a process whose configuration or hardware cannot work
BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_S = 30.0  # running this long forgets earlier deaths
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class ProcessSpec:
    """One row of the process table."""

    name: str
    module: str
    wanted: Callable[[Config], bool]
    follows_parent: bool  # SIGTERM from the kernel when the daemon dies
    stop_s: float  # time to end after SIGTERM, then SIGKILL
    death: str  # what its death means for the arm


# In the order of their start.
PROCESSES = (
    ProcessSpec(
        "sim", "robotd.sim", lambda c: c.sim is not None, False, 3.0,
        "the bus falls silent: control faults, and finds the simulator again when it is back",
    ),
    ProcessSpec(
        "control", "robotd.control", lambda c: True, True, 4.0,
        "the servos hold their last goal until control is back, disarmed",
    ),
    ProcessSpec(
        "worker", "robotd.policy", lambda c: c.policy is not None and c.policy.endpoint is None,
        True, 3.0, "a policy at work runs the rest of its chunk, then holds",
    ),
    ProcessSpec(
        "observer", "robotd.observer", lambda c: c.policy is not None or bool(c.cameras),
        True, 3.0, "a policy at work runs the rest of its chunk, then holds",
    ),
)  # fmt: skip
# The arm first; then those that only watch it; the simulated servos last.
STOP_ORDER = (("control",), ("observer", "worker"), ("sim",))


@dataclass
class Child:
    """A process of the table while the daemon runs."""

    spec: ProcessSpec
    argv: list[str]
    descriptors: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0  # earliest time of the next start
    deaths: int = 0  # since it was last stable
    restarts: int = 0
    last_pid: int | None = None  # its process id, also after it has ended
    _begun: bool = field(default=False, repr=False)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self.process is None else self.process.pid

    def start(self) -> None:
        """Start the process, or start it again. ProcessError when there is none to be had."""
        parent = os.getpid()
        follows = self.spec.follows_parent
        self.restarts += self._begun
        self._begun = True
        self.started = time.monotonic()
        try:
            self.process = subprocess.Popen(
                self.argv,
                pass_fds=self.descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the daemon alone, which stops in order
                preexec_fn=lambda: prepare_child(follows, parent),
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._back_off()
            raise ProcessError(f"{self.spec.name} cannot be started: {error}") from error
        self.last_pid = self.process.pid

    def died(self) -> int | None:
        """Exit code when the process has ended since the last look, else None."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        self._back_off()
        return code

    def _back_off(self) -> None:
        now = time.monotonic()
        if now - self.started > STABLE_S:
            self.deaths = 0
        self.start_at = now + BACK_OFF_S[min(self.deaths, len(BACK_OFF_S) - 1)]
        self.deaths += 1

    @property
    def due(self) -> bool:
        """Whether it is down and may be started again."""
        return self.process is None and time.monotonic() >= self.start_at

    def signal(self, number: int) -> None:
        """Send a signal, if it is there to receive one."""
        if self.process is not None:
            self.process.send_signal(number)

    def ended(self) -> bool:
        """Whether it is gone; for the way down, when nobody asks why any more."""
        if self.process is not None and self.process.poll() is not None:
            self.process = None
        return self.process is None

    def kill(self) -> None:
        """End it the hard way."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def prepare_child(follows_parent: bool, parent: int | None = None) -> None:
    """In the child, before exec: undo the daemon's signal mask, follow the parent's death."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if follows_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent not in (None, os.getppid()):  # it died in between
            os._exit(0)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
