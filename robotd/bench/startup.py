"""How long `robotd run` takes to its first tick, what imports cost, what each process keeps.

The first tick's time is its deadline in the state ring, on the same clock as the start of the
process (CLOCK_MONOTONIC), so nothing is added by looking. Two set-ups: everything simulated (the
simulator starts too), and an arm on a port, played by the responder of `bench tick`.

Python compiles a module when it is first imported and keeps the result. Each set-up is therefore
started once before it is timed; that first start is shown beside. A folder of the bench's own holds
the compiled modules, so that this works wherever the installation cannot be written to.
"""

import contextlib
import os
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
ON_PORT, SIMULATED = "arm on a port", "simulated arm, two cameras, policy"
SET_UPS = (ON_PORT, SIMULATED)
MODULES = (
    "robotd.control.process",
    "robotd.daemon",
    "robotd.cli",
    "robotd.observer.process",
    "robotd.policy.worker",
    "robotd.sim.process",
)


def environment(folder: Path) -> dict[str, str]:
    """Environment in which Python keeps compiled modules below `folder`."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


@contextlib.contextmanager
def _run(config: Config, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
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
            env=env,
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
    """Seconds to the first tick, the first start ever first; the processes of the last run."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="robotd-") as compiled:
        for number in range(count + 1):
            step(f"{what}, start {number} of {count}")
            with _run(config, environment(Path(compiled))) as (process, begun_ns):
                seconds.append((first_tick_ns(config, process) - begun_ns) / 1e9)
                if number == count:
                    processes = _processes(config, process, what)
    return seconds, processes


def _processes(config: Config, process: subprocess.Popen[bytes], what: str) -> Table:
    """CPU and memory once everything is up."""
    time.sleep(_SETTLE_S)
    if process.poll() is not None:
        raise ProcessError(f"`robotd run` ended by itself: {_last_words(config)}")
    usage = Usage.begin(config.runtime_dir)
    time.sleep(1.0)
    return usage.table(f"processes in IDLE, {what}", 1.0)


def import_seconds(module: str, count: int) -> float:
    """Median time of `import module` in a new interpreter, beyond that of the interpreter."""
    with tempfile.TemporaryDirectory(prefix="robotd-") as compiled:
        env, code = environment(Path(compiled)), f"import {module}"
        _python(code, env)
        return median([_python(code, env) - _python("pass", env) for _ in range(count)])


def _python(code: str, env: dict[str, str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, env=env, check=False
    )
    if done.returncode:
        raise ProcessError(f"{code!r} fails")
    return time.perf_counter() - begin


def _start_row(what: str, seconds: list[float]) -> dict[str, Any]:
    first, *others = seconds
    return {
        "what": what,
        "median_s": median(others),
        "least_s": min(others),
        "most_s": max(others),
        "first_s": first,
    }


def bench_startup(
    count: int,
    arm: str = "so101",
    bundle: Path | None = None,
    modules: Sequence[str] = MODULES,
    set_ups: Sequence[str] = SET_UPS,
) -> Report:
    """`count` starts of each set-up, `count` imports of each module (the first has the goal)."""
    report = Report("startup", describe(), {"starts": count, "arm": arm})
    chosen = find_bundle(arm, bundle, report.notes)
    rows, memory = [], []
    with steps("startup", len(set_ups) * (count + 1) + len(modules)) as step:
        for what in set_ups:
            with _config(arm, chosen, what == ON_PORT) as config:
                seconds, processes = _starts(config, count, step, what)
            rows.append(_start_row(what, seconds))
            memory.append(processes)
            report.goals.append(
                Goal(f"`robotd run` to the first tick, {what}", rows[-1]["median_s"], 1.5, "s")
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
        "first_s": "first ever",
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
