"""Loop, latency and start-up benches: short runs of the real daemon on a simulated arm."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robotd.bench.latency import applied_ns, bench_latency
from robotd.bench.loop import bench_loop, loop_row
from robotd.bench.startup import ON_PORT, bench_startup, import_seconds
from robotd.errors import ProcessError
from robotd.ipc.ring import Mode, TickReport

pytest.importorskip("mujoco")


def reports(*rows: tuple[int, int, int]) -> list[TickReport]:
    """Reports in mode POLICY from (chunk, its age, goals written after the deadline)."""
    return [
        TickReport(sequence=n, mode=Mode.POLICY, chunk_sequence=c, chunk_age_ns=a, done_late_ns=d)
        for n, (c, a, d) in enumerate(rows, start=1)
    ]


def test_only_the_first_tick_of_a_chunk_counts() -> None:
    ticks = reports((0, 0, 9), (7, 1000, 50), (7, 2000, 90), (8, 700, 40))
    assert applied_ns(ticks) == [1050, 740]


def test_ticks_outside_policy_apply_nothing() -> None:
    ticks = reports((7, 1000, 50))
    ticks[0].mode = Mode.HOLD
    assert applied_ns(ticks) == []


def test_missed_ticks_are_a_share_of_those_due() -> None:
    ticks = [TickReport(sequence=n, wake_late_ns=1000 * n) for n in range(1, 10)]
    ticks[-1].missed_ticks = 2
    row = loop_row("robotd", ticks)
    assert row["missed"] == 2
    assert row["missed_percent"] == pytest.approx(100 * 2 / 10)
    assert row["wake_max"] == 9.0


def test_the_loop_is_timed_beside_a_c_thread() -> None:
    report = bench_loop(0.4, rates=(50,)).as_dict()
    json.dumps(report, allow_nan=False)
    timings, ticks, *processes = report["tables"]
    who = [row["who"] for row in timings["rows"]]
    assert who.count("robotd, cores free") == who.count("robotd, all cores busy") == 1
    if shutil.which("cc"):
        assert len(who) == 6
    for row in timings["rows"]:
        assert row["wake_p50"] > 0
    assert all(row["done_p50"] > row["read_p50"] > 0 for row in ticks["rows"])
    assert len(processes) == 2
    names = {row["process"] for row in processes[0]["rows"]}
    assert names >= {"daemon", "control", "sim", "worker", "observer"}
    control = next(row for row in processes[0]["rows"] if row["process"] == "control")
    assert control["resident_mb"] > 1


def test_latency_is_split_into_the_models_and_ours() -> None:
    report = bench_latency(1.0).as_dict()
    json.dumps(report, allow_nan=False)
    rows = {row["what"]: row for row in report["tables"][0]["rows"]}
    whole, own = rows["first goals written"], rows["applied, less the model"]
    assert whole["chunks"] >= 1
    assert 0 < own["p50_ms"] < whole["p50_ms"]
    assert [goal["met"] in (True, False) for goal in report["goals"]] == [True, True]


def test_startup_ends_at_the_first_tick() -> None:
    report = bench_startup(1, modules=("robotd.errors",), set_ups=(ON_PORT,)).as_dict()
    json.dumps(report, allow_nan=False)
    starts, imports, *memory = report["tables"]
    assert all(0.05 < row["median_s"] < 60 and row["first_s"] > 0.05 for row in starts["rows"])
    assert [row["module"] for row in imports["rows"]] == ["robotd.errors"]
    assert {row["process"] for row in memory[0]["rows"]} == {"daemon", "control"}


def test_a_module_that_cannot_be_imported_is_an_error() -> None:
    with pytest.raises(ProcessError, match="no_such_module"):
        import_seconds("no_such_module", 1)
    assert not math.isnan(import_seconds("json", 1))


def processes_of(folder: Path) -> list[int]:
    """Processes that have this folder for temporary files, or were started by one that has."""
    mark, found = f"TMPDIR={folder}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    folder = Path("/tmp") / f"rb-{tmp_path.name[-12:]}-{number}"  # short: it holds sockets
    folder.mkdir()
    try:
        bench = subprocess.Popen(
            [sys.executable, "-m", "robotd.cli", "bench", "latency", "--seconds", "100"],
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while len(processes_of(folder)) < 5 and time.monotonic() < end:
            time.sleep(0.05)
        bench.send_signal(number)
        assert bench.wait(60) in (130, 128 + number)
        assert processes_of(folder) == []
        assert list(folder.glob("robotd-*")) == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
