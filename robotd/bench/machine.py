"""What a figure was measured on: machine kind, kernel, Python, real-time rights, load."""

import datetime
import os
import platform
import resource
from pathlib import Path
from typing import Any

from robotd import __version__

_TRIAL_PRIORITY = 10


def describe() -> dict[str, Any]:
    """The machine as it is now; JSON-ready."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "kind": _kind(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "robotd": __version__,
        "realtime": realtime_rights(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def realtime_rights() -> str:
    """What this user may have: SCHED_FIFO, and how much memory may be locked."""
    fifo = "SCHED_FIFO" if _may_fifo() else "no SCHED_FIFO"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return f"{fifo}, memory lock"
    return f"{fifo}, memory lock up to {limit // 1_000_000} MB"


def _may_fifo() -> bool:
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_TRIAL_PRIORITY))
    except OSError:
        return False
    os.sched_setscheduler(0, before, parameters)
    return True


def _kind() -> str:
    info = _cpu_info()
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    virtual = "virtual, " if "hypervisor" in info.get("flags", "").split() else ""
    model = info.get("model name") or _device_tree() or "processor unknown"
    return f"{platform.machine()}, {virtual}{cores} cores ({model}), {memory_gb:.0f} GB"


def _cpu_info() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.partition(":") for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, _, value in rows}


def _device_tree() -> str:
    """The board's name, on machines that have one (a Raspberry Pi)."""
    try:
        return Path("/proc/device-tree/model").read_text().rstrip("\x00\n")
    except OSError:
        return ""
