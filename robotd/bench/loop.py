"""The control loop's timing in the real daemon, beside a C program that only wakes up.

The daemon runs as in use: control and simulated bus over a socketpair with wire time, two cameras,
a policy worker that moves the arm. Figures come from the state ring. The C program (wake.c:
SCHED_FIFO, absolute deadlines) runs in the same seconds, half a period shifted so that the two do
not want a core at the same time, and once more when the daemon is not running; each with the cores
as they are and with every core kept busy.
"""

import contextlib
import math
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robotd.bench.figures import percentile, ratio, spread_us
from robotd.bench.machine import describe
from robotd.bench.native import Native
from robotd.bench.progress import Steps, steps
from robotd.bench.report import Goal, Report, Table
from robotd.bench.stage import Usage, busy_cores, daemon_config, find_bundle, running
from robotd.children import prepare_child
from robotd.episodes import LiveStage, start_policy
from robotd.errors import ProcessError
from robotd.ipc.ring import Degraded, Mode, TickReport

RATES = (200, 500)
_MARGIN_S = 30.0
_ALONE, _BESIDE = "C, no daemon", "C, beside it"
_WAKE_COLUMNS = {
    "who": "us late at wake-up",
    "wake_p50": "p50",
    "wake_p99": "p99",
    "wake_p99_9": "p99.9",
    "wake_max": "max",
    "missed": "missed",
    "missed_percent": "%",
}
_TICK_COLUMNS = {
    "load": "us after the deadline",
    "done_p50": "goals written p50",
    "done_p99": "p99",
    "done_p99_9": "p99.9",
    "done_max": "max",
    "read_p50": "read",
    "decide_p50": "decide",
    "write_p50": "write",
}


@dataclass(frozen=True, slots=True)
class Wakes:
    """How late a C thread woke up, and how many deadlines it skipped."""

    late_ns: list[int]
    missed: int
    fifo: bool

    def row(self, who: str) -> dict[str, Any]:
        """A row of the table."""
        return {
            "who": who if self.fifo else f"{who} (no SCHED_FIFO)",
            **_prefixed("wake", self.late_ns),
            "missed": self.missed,
            "missed_percent": 100 * self.missed / (len(self.late_ns) + self.missed),
        }


def _prefixed(prefix: str, values_ns: Sequence[int]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in spread_us(values_ns).items()}


class CThread:
    """wake.c running for some seconds; `result` waits for its end."""

    def __init__(
        self, program: Path, period_ns: int, seconds: float, priority: int, anchor_ns: int
    ) -> None:
        self._seconds = seconds
        ticks = max(1, int(seconds * 1e9 / period_ns))
        self._process = subprocess.Popen(
            [str(program), *map(str, (period_ns, ticks, priority, anchor_ns))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: prepare_child(True),
            start_new_session=True,
        )

    def result(self) -> Wakes:
        """Its samples. ProcessError when it did not end."""
        try:
            text, _ = self._process.communicate(timeout=self._seconds + _MARGIN_S)
        except subprocess.TimeoutExpired:
            self.end()
            raise ProcessError("the C program did not end") from None
        head, *lines = text.splitlines()
        words = head.split()
        return Wakes([int(line) for line in lines], int(words[5]), words[1] == "1")

    def end(self) -> None:
        """Kill it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def loop_row(who: str, reports: Sequence[TickReport]) -> dict[str, Any]:
    """Wake-ups of consecutive reports of the ring."""
    missed = reports[-1].missed_ticks - reports[0].missed_ticks
    due = reports[-1].sequence - reports[0].sequence + missed
    return {
        "who": who,
        **_prefixed("wake", [r.wake_late_ns for r in reports]),
        "missed": missed,
        "missed_percent": 100 * missed / max(1, due),
    }


def tick_row(load: str, reports: Sequence[TickReport]) -> dict[str, Any]:
    """When the goals of consecutive reports were written, and how the time was spent (p50)."""
    row: dict[str, Any] = {"load": load, **_prefixed("done", [r.done_late_ns for r in reports])}
    for part in ("read", "decide", "write"):
        values = [getattr(r, f"{part}_ns") for r in reports]
        row[f"{part}_p50"] = round(percentile(values, 0.5) / 1000, 1)
    return row


class LoopBench:
    """One run: `seconds` per rate and load."""

    def __init__(self, seconds: float, arm: str, bundle: Path | None, native: Native) -> None:
        self.seconds = seconds
        self.arm = arm
        self.native = native
        self.timings: list[Table] = []
        self.processes: dict[str, Table] = {}
        self.report = Report("loop", describe(), {"seconds": seconds, "arm": arm})
        self.bundle = find_bundle(arm, bundle, self.report.notes)
        self.program = native.build("wake")
        if self.program is None:
            self.report.notes.append(f"no C thread beside: {native.why_not}")

    def measure(self, rate_hz: int, step: Steps) -> None:
        """Both loads at one rate, with and without the daemon."""
        config = daemon_config(self.arm, self.bundle, rate_hz, self.seconds)
        period_ns, priority = config.control.period_ns, config.control.priority
        title = f"{rate_hz} Hz, {self.arm}, 1 Mbaud wire time"
        rows: list[dict[str, Any]] = []
        ticks: list[dict[str, Any]] = []
        for busy in (False, True):
            step(f"{title}: C thread alone, {_load(busy)}")
            if self.program is None:
                continue
            with self._load(busy):
                alone = self._alone(self.program, period_ns, priority)
            rows.append(alone.row(f"{_ALONE}, {_load(busy)}"))
        with running(config) as stage:
            for busy in (False, True):
                step(f"{title}: the daemon, {_load(busy)}")
                reports, wakes = self._beside(stage, period_ns, priority, busy)
                rows.append(loop_row(f"robotd, {_load(busy)}", reports))
                rows += [] if wakes is None else [wakes.row(f"{_BESIDE}, {_load(busy)}")]
                ticks.append(tick_row(_load(busy), reports))
        self.timings += [Table(title, _WAKE_COLUMNS, rows), Table(title, _TICK_COLUMNS, ticks)]
        self._goals(rate_hz, {row["who"]: row for row in rows}, ticks[0])

    def _load(self, busy: bool) -> contextlib.AbstractContextManager[int]:
        return busy_cores(self.native) if busy else contextlib.nullcontext(0)

    def _alone(self, program: Path, period_ns: int, priority: int) -> Wakes:
        thread = CThread(program, period_ns, self.seconds, priority, time.monotonic_ns())
        try:
            return thread.result()
        finally:
            thread.end()

    def _begin(self, stage: LiveStage) -> None:
        """Armed, and moved by the policy where there is one."""
        stage.reset(0)
        if self.bundle is not None:
            start_policy(stage.runtime_dir, 60.0)
        time.sleep(min(1.0, self.seconds))

    def _beside(
        self, stage: LiveStage, period_ns: int, priority: int, busy: bool
    ) -> tuple[list[TickReport], Wakes | None]:
        """The daemon's loop and a C thread in the same seconds."""
        self._begin(stage)
        with self._load(busy):
            time.sleep(min(0.5, self.seconds))
            first = stage.ring.latest()
            if first is None:
                raise ProcessError("control makes no ticks")
            usage = Usage.begin(stage.runtime_dir)
            anchor_ns = first.deadline_ns + period_ns // 2
            wakes = self._wait(stage, period_ns, priority, anchor_ns)
            title = f"processes, {_condition(period_ns, busy)}"
            self.processes[title] = usage.table(title, self.seconds)
        reports = list(stage.ring.since(first.sequence))
        if len(reports) < 2:
            raise ProcessError(f"control stopped ticking\n{stage.log_tail()}")
        self._remark(reports, period_ns, busy)
        return reports, wakes

    def _wait(
        self, stage: LiveStage, period_ns: int, priority: int, anchor_ns: int
    ) -> Wakes | None:
        """Let the seconds pass; what the C thread saw in them, None where there is none."""
        if self.program is None:
            time.sleep(self.seconds)
            return None
        thread = CThread(self.program, period_ns, self.seconds, priority, anchor_ns)
        try:
            time.sleep(self.seconds)
            stage.check()
            return thread.result()
        finally:
            thread.end()

    def _remark(self, reports: Sequence[TickReport], period_ns: int, busy: bool) -> None:
        """What a reader of the figures has to know about these seconds."""
        where = _condition(period_ns, busy)
        wanted = Mode.HOLD if self.bundle is None else Mode.POLICY
        share = sum(r.mode is wanted for r in reports) / len(reports)
        last = reports[-1]
        if share < 1:
            self.report.notes.append(
                f"{where}: in mode {wanted.name} for {share:.0%} of the ticks; "
                f"{last.mode.name} at the end: {last.message}"
            )
        if last.degraded:
            lacking = ", ".join(bit.name or "" for bit in Degraded if last.degraded & bit)
            self.report.notes.append(f"{where}: without real-time rights ({lacking.lower()})")
        failed = last.failed_ticks - reports[0].failed_ticks
        if failed:
            self.report.notes.append(f"{where}: {failed} ticks with missing readings")

    def _goals(self, rate_hz: int, rows: dict[str, dict[str, Any]], free: dict[str, Any]) -> None:
        goals, busy = self.report.goals, _load(True)
        if rate_hz == 500:
            missed = rows[f"robotd, {_load(False)}"]["missed_percent"]
            goals.append(Goal("500 Hz: goals written p99", free["done_p99"] / 1000, 1.0, "ms"))
            goals.append(Goal("500 Hz: missed ticks", missed, 0.1, "%"))
            mine = rows[f"robotd, {busy}"]["wake_p99"]
            for who in (f"{_BESIDE}, {busy}", f"{_ALONE}, {busy}"):
                late = rows.get(who, {}).get("wake_p99", math.nan)
                goals.append(Goal(f"500 Hz: wake-up p99 over {who}", ratio(mine, late), 2.0, "x"))
        if rate_hz == 200:
            table = self.processes[f"processes, {_condition(5_000_000, False)}"]
            control = next(row for row in table.rows if row["process"] == "control")
            goals.append(Goal("200 Hz: CPU of control", control["cpu_percent"], 5.0, "% of a core"))
            goals.append(Goal("200 Hz: memory of control", control["resident_mb"], 80.0, "MB"))

    def finish(self) -> Report:
        """The report, timings first."""
        self.report.tables = [*self.timings, *self.processes.values()]
        return self.report


def _load(busy: bool) -> str:
    return "all cores busy" if busy else "cores free"


def _condition(period_ns: int, busy: bool) -> str:
    return f"{round(1e9 / period_ns)} Hz, {_load(busy)}"


def bench_loop(
    seconds: float, arm: str = "so101", bundle: Path | None = None, rates: Sequence[int] = RATES
) -> Report:
    """The loop at every rate; takes about four times `seconds` for each."""
    with tempfile.TemporaryDirectory(prefix="robotd-") as folder:
        bench = LoopBench(seconds, arm, bundle, Native(Path(folder)))
        with steps("loop", 4 * len(rates)) as step:
            for rate_hz in rates:
                bench.measure(rate_hz, step)
    return bench.finish()
