"""How long `robotd run` takes to its first tick, what imports cost, what each process keeps.

The first tick's time is its deadline in the state ring, on the same clock as the start of the
process (CLOCK_MONOTONIC), so nothing is added by looking. Two set-ups: everything simulated (the
simulator starts too), and an arm on a port, played by the responder of `bench tick`.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robotd.bench.figures import median
from robotd.bench.machine import describe
from robotd.bench.native import Native
from robotd.bench.progress import Steps, steps
from robotd.bench.report import Goal, Report, Table
from robotd.bench.stage import Usage, daemon_config, find_bundle
from robotd.bench.wire import Wire, emulator
from robotd.children import prepare_child
from robotd.config import Config
from robotd.errors import IpcError, ProcessError
from robotd.ipc.ring import RING_NAME, RingReader

_READY_S = 60.0
_END_S = 30.0
_SETTLE_S = 2.0  # from the first tick until memory is read
_BAUD = 1_000_000
_RATE_HZ = 200
MODULES = (
    "robotd.control.process",
    "robotd.daemon",
    "robotd.cli",
    "robotd.observer.process",
    "robotd.policy.worker",
    "robotd.sim.process",
)


@contextlib.contextmanager
def _run(config: Config) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`robotd run`, and the time of its start; ended as a user would end it."""
    path = config.runtime_dir / "start.json"
    config.save(path)
    (config.runtime_dir / RING_NAME).unlink(missing_ok=True)  # that of the start before
    with open(config.runtime_dir / "start.log", "wb") as log:
        begun_ns = time.monotonic_ns()
        process = subprocess.Popen(
            [sys.executable, "-m", "robotd.cli", "run", "--config", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: prepare_child(True),
            start_new_session=True,
        )
    try:
        yield process, begun_ns
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def first_tick_ns(config: Config, process: subprocess.Popen[bytes]) -> int:
    """Deadline of the first tick. ProcessError when the daemon ends, or makes none."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(IpcError):
            ring = RingReader(config.runtime_dir / RING_NAME)
            try:
                report = ring.read(1)
            finally:
                ring.close()
            if report is not None:
                return report.deadline_ns
        time.sleep(0.01)
    raise ProcessError(f"`robotd run` made no tick: {_last_words(config)}")


def _last_words(config: Config) -> str:
    text = (config.runtime_dir / "start.log").read_text(errors="replace").strip()
    return text[-500:] or "no message"


def _starts(config: Config, count: int, step: Steps, what: str) -> tuple[list[float], Table]:
    """Seconds to the first tick, `count` times; the processes of the last run."""
    seconds = []
    for number in range(count):
        step(f"{what}, start {number + 1} of {count}")
        with _run(config) as (process, begun_ns):
            seconds.append((first_tick_ns(config, process) - begun_ns) / 1e9)
            if number == count - 1:
                time.sleep(_SETTLE_S)
                if process.poll() is not None:
                    raise ProcessError(f"`robotd run` ended by itself: {_last_words(config)}")
                usage = Usage.begin(config.runtime_dir)
                time.sleep(1.0)
                processes = usage.table(f"processes in IDLE, {what}", 1.0)
    return seconds, processes


def import_seconds(module: str, count: int) -> float:
    """Median time of `import module` in a new interpreter, beyond that of the interpreter."""
    return median([_python(f"import {module}") - _python("pass") for _ in range(count)])


def _python(code: str) -> float:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ProcessError(f"{code!r} fails")
    return time.perf_counter() - begin


def _start_row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "median_s": median(seconds),
        "least_s": min(seconds),
        "most_s": max(seconds),
    }


def bench_startup(
    count: int,
    arm: str = "so101",
    bundle: Path | None = None,
    modules: Sequence[str] = MODULES,
) -> Report:
    """`count` starts of each set-up, `count` imports of each module (the first has the goal)."""
    report = Report("startup", describe(), {"starts": count, "arm": arm})
    chosen = find_bundle(arm, bundle, report.notes)
    simulated = "simulated arm, two cameras" + (", policy worker" if chosen else "")
    on_port = "arm on a port"
    rows, memory = [], []
    with steps("startup", 2 * count + len(modules)) as step:
        for what in (on_port, simulated):
            with _config(arm, chosen, what == on_port) as config:
                seconds, processes = _starts(config, count, step, what)
            rows.append(_start_row(what, seconds))
            memory.append(processes)
            report.goals.append(
                Goal(f"`robotd run` to the first tick, {what}", median(seconds), 1.5, "s")
            )
        imports = []
        for module in modules:
            step(f"import {module}")
            imports.append((module, import_seconds(module, count)))
    report.goals.append(Goal("import of the control process", imports[0][1], 0.3, "s"))
    starts = {
        "what": "to the first tick",
        "median_s": "median s",
        "least_s": "least",
        "most_s": "most",
    }
    report.tables = [
        Table("start", starts, rows),
        Table(
            "imports",
            {"module": "module", "seconds": "s"},
            [{"module": module, "seconds": seconds} for module, seconds in imports],
        ),
        *memory,
    ]
    return report


@contextlib.contextmanager
def _config(arm: str, bundle: Path | None, on_port: bool) -> Iterator[Config]:
    """The configuration of one set-up, its runtime directory removed afterwards."""
    config = daemon_config(arm, bundle, _RATE_HZ, 0.0)
    try:
        if not on_port:
            yield config
            return
        protocol, teacher = emulator(arm)
        with (
            tempfile.TemporaryDirectory(prefix="robotd-") as folder,
            Wire(protocol, teacher, Native(Path(folder))) as wire,
        ):
            wire.set_baud(_BAUD)
            arms = [config.arms[0].model_copy(update={"port": wire.path})]
            nothing: dict[str, object] = {"cameras": [], "policy": None, "sim": None}
            yield config.model_copy(update={"arms": arms, **nothing})
    finally:
        shutil.rmtree(config.runtime_dir, ignore_errors=True)
