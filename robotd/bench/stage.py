"""The real daemon on a simulated arm, for measuring: started, looked at, and always ended."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robotd.bench.figures import cpu_seconds, memory_mb
from robotd.bench.native import Native
from robotd.bench.report import Table
from robotd.children import prepare_child
from robotd.config import CameraConfig, Config
from robotd.episodes import LiveStage, temporary_runtime
from robotd.errors import BundleError
from robotd.evaluate import shipped_bundle, stage_config
from robotd.ipc.status import read_status
from robotd.rundir import STATUS_NAME

_BURN = "while True: pass"
PROCESS_COLUMNS = {
    "process": "process",
    "cpu_percent": "CPU % of a core",
    "resident_mb": "resident MB",
    "own_mb": "own MB",
    "locked_mb": "locked MB",
}


def daemon_config(arm: str, bundle: Path | None, rate_hz: int, seconds: float) -> Config:
    """Control, simulator at 1 Mbaud over a socketpair, two cameras, and a policy if there is one.

    The ring is made long enough to hold a whole measurement; the arm need not park at the end, and
    a stalled machine shows in the figures rather than ending the run.
    """
    config = stage_config(arm, bundle, temporary_runtime())
    cameras = config.cameras or [
        CameraConfig(name=name, driver="sim", width=96, height=96, fps=30)
        for name in ("front", "wrist")
    ]
    ring_seconds = max(10, min(600, int(seconds) + 10))
    control = config.control.model_copy(update={"rate_hz": rate_hz, "ring_seconds": ring_seconds})
    stop = config.stop.model_copy(update={"action": "hold"})
    policy = config.policy and config.policy.model_copy(update={"silence_timeout_s": 20.0})
    changed = {"control": control, "cameras": cameras, "stop": stop, "policy": policy}
    return config.model_copy(update=changed)


def find_bundle(arm: str, given: Path | None, notes: list[str]) -> Path | None:
    """The bundle to use; None, and a note, when none was given and none is shipped here."""
    if given is not None:
        return given
    try:
        return shipped_bundle(arm)
    except BundleError:
        notes.append(f"no policy worker: no bundle for {arm} here; give --bundle")
        return None


@contextlib.contextmanager
def running(config: Config) -> Iterator[LiveStage]:
    """A daemon of its own, ready; ended and its runtime directory removed afterwards."""
    stage = LiveStage(config)
    try:
        with stage:
            yield stage
    finally:
        stage.discard()


@contextlib.contextmanager
def busy_cores(native: Native) -> Iterator[int]:
    """Keep every core busy at normal priority; yields how many processes do it."""
    program = native.build("wake")
    argv = [str(program), "burn"] if program else [sys.executable, "-c", _BURN]
    with contextlib.ExitStack() as stack:
        count = len(os.sched_getaffinity(0))
        for _ in range(count):
            burner = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: prepare_child(True),
                start_new_session=True,
            )
            stack.callback(_end, burner)
        yield count


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@dataclass
class Usage:
    """CPU and memory of the daemon's processes, from `begin` on."""

    pids: dict[str, int]
    begun: dict[str, float]

    @classmethod
    def begin(cls, runtime_dir: Path) -> "Usage":
        """Processes as the daemon lists them, itself and their children included."""
        state = read_status(runtime_dir / STATUS_NAME)
        pids = {"daemon": int(state["pid"])}
        pids |= {name: entry["pid"] for name, entry in state["processes"].items() if entry["pid"]}
        for name, pid in list(pids.items()):
            if name != "daemon":
                pids |= {f"{name}: child {n}": p for n, p in enumerate(_children(pid), start=1)}
        return cls(pids, {name: cpu_seconds(pid) for name, pid in pids.items()})

    def table(self, title: str, seconds: float) -> Table:
        """One row per process, over the last `seconds`."""
        rows = []
        for name, pid in self.pids.items():
            memory = memory_mb(pid)
            used = cpu_seconds(pid) - self.begun[name]
            rows.append(
                {
                    "process": name,
                    "cpu_percent": 100 * used / seconds,
                    **{f"{kind}_mb": value for kind, value in memory.items()},
                }
            )
        return Table(title, PROCESS_COLUMNS, rows)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]
