"""From an observation to the first goal that follows from it, in the real daemon.

An observation is the tick whose joint states it holds (its deadline). It ends with the first tick
that follows the policy's answer and has written its goals. The state ring has both times; the
model's own time is the worker's figure for the same chunk, matched by the observer, and is taken
off. What is left is robotd's: pictures, sockets, checks, decoding, and waiting for the next tick.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robotd.bench.figures import spread_us
from robotd.bench.machine import describe
from robotd.bench.progress import steps
from robotd.bench.report import Goal, Report, Table
from robotd.bench.stage import daemon_config, running
from robotd.episodes import OBSERVER_NAME, LiveStage, start_policy
from robotd.errors import ProcessError
from robotd.evaluate import shipped_bundle
from robotd.ipc.ring import Mode, TickReport
from robotd.ipc.status import read_status

_RATE_HZ = 200
_CHUNK_S = 1.0  # at least one chunk comes in this time
_COLUMNS = {"what": "", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "chunks": "chunks"}
_OWN = "applied, less the model"


def applied_ns(reports: Sequence[TickReport]) -> list[int]:
    """For each chunk: from its observation until the first tick that used it had written."""
    found: dict[int, int] = {}
    for report in reports:
        if report.mode is Mode.POLICY and report.chunk_sequence:
            after = report.chunk_age_ns + report.done_late_ns
            found.setdefault(report.chunk_sequence, after)
    return list(found.values())


def _rows(reports: Sequence[TickReport], observer: dict[str, Any]) -> list[dict[str, Any]]:
    applied = spread_us(applied_ns(reports))
    latency = observer["latency_ms"]
    chunks = latency.get("chunks", 0)
    told = (
        ("chunk handed to control", latency),
        ("the model (worker's figure)", latency.get("inference", {})),
        (_OWN, latency.get("applied_less_inference", {})),
    )
    rows: list[dict[str, Any]] = [
        {
            "what": "first goals written",
            "p50_ms": applied["p50"] / 1000,
            "p99_ms": applied["p99"] / 1000,
            "chunks": len(applied_ns(reports)),
        }
    ]
    for what, figures in told:
        p50, p99 = (figures.get(key, math.nan) for key in ("p50", "p99"))
        rows.append({"what": what, "p50_ms": p50, "p99_ms": p99, "chunks": chunks})
    return rows


def _measure(stage: LiveStage, seconds: float, report: Report) -> list[dict[str, Any]]:
    """Let the policy move the arm for some seconds, over again when it was interrupted."""
    stage.reset(0)
    begun = start_policy(stage.runtime_dir, 60.0)
    time.sleep(max(seconds, 2 * _CHUNK_S))
    stage.check()
    reports = list(stage.ring.since(begun.sequence))
    if not applied_ns(reports):
        last = stage.ring.latest()
        why = last.message if last else "no tick"
        raise ProcessError(f"no chunk was applied: {why}\n{stage.log_tail()}")
    share = sum(r.mode is Mode.POLICY for r in reports) / len(reports)
    if share < 1:
        report.notes.append(f"in mode POLICY for {share:.0%} of the ticks: {reports[-1].message}")
    observer = read_status(stage.runtime_dir / OBSERVER_NAME)
    lost = {key: observer["counts"][key] for key in ("late", "unused", "rejected", "failed")}
    if any(lost.values()):
        report.notes.append(f"answers that were not used: {lost}")
    return _rows(reports, observer)


def bench_latency(seconds: float, arm: str = "so101", bundle: Path | None = None) -> Report:
    """The daemon in mode POLICY for `seconds`, on a simulated arm at 200 Hz."""
    report = Report("latency", describe(), {"seconds": seconds, "arm": arm, "rate_hz": _RATE_HZ})
    chosen = bundle if bundle is not None else shipped_bundle(arm)
    report.settings["bundle"] = chosen.name
    with steps("latency", 2) as step:
        step("starting the daemon")
        with running(daemon_config(arm, chosen, _RATE_HZ, seconds)) as stage:
            step(f"the policy moves the arm for {seconds:.0f} s")
            rows = _measure(stage, seconds, report)
    own = next(row for row in rows if row["what"] == _OWN)
    report.tables.append(Table("from the observation until", _COLUMNS, rows))
    report.goals += [
        Goal("observation to first applied action, less the model, p50", own["p50_ms"], 5.0, "ms"),
        Goal("observation to first applied action, less the model, p99", own["p99_ms"], 15.0, "ms"),
    ]
    return report
