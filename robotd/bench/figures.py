"""Statistics of timings, and what is known about a process from /proc."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], fraction: float) -> float:
    """Nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))])


def median(values: Sequence[float]) -> float:
    """The middle value, the mean of both when there are two; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def spread_us(values_ns: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the largest of nanoseconds, in microseconds."""
    shares = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999, "max": 1.0}
    return {name: round(percentile(values_ns, s) / 1000, 1) for name, s in shares.items()}


def ratio(value: float, reference: float) -> float:
    """value / reference; NaN when there is no reference."""
    return value / reference if reference else math.nan


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used so far, in user and kernel mode; NaN when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def memory_mb(pid: int) -> dict[str, float]:
    """Memory of a process in MB: resident, the part of it that is its own, locked; NaN: gone.

    "own" is anonymous memory: what is not shared with other processes through files.
    """
    names = {"VmRSS": "resident", "RssAnon": "own", "VmLck": "locked"}
    found = dict.fromkeys(names.values(), math.nan)
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        if name in names:
            found[names[name]] = round(int(rest.split()[0]) / 1000, 1)
    return found
