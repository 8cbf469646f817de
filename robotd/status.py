"""What `robotd status` shows: a picture of the running daemon, read from the runtime directory."""

import math
import time
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robotd.bus.status import status_text
from robotd.errors import IpcError
from robotd.ipc.ring import (
    RING_NAME,
    Degraded,
    Fault,
    JointReport,
    Limited,
    Mode,
    RingReader,
    TickReport,
)
from robotd.ipc.status import read_status
from robotd.rundir import STATUS_NAME

OBSERVER_NAME = "observer.json"
_STALE_S = 1.0
_WINDOW_S = 5.0
_LIMITED = {
    "NOT_FINITE": "nan", "POSITION": "range", "VELOCITY": "speed", "ACCELERATION": "accel",
    "FOLLOWING": "lag",
}  # fmt: skip
_DEGRADED = {
    "SCHEDULER": "no SCHED_FIFO",
    "MEMORY_LOCK": "memory not locked",
    "AFFINITY": "not pinned to its core",
}


def percentile(values: list[int], fraction: float) -> float:
    """Nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))])


def loop_figures(reports: list[TickReport], period_ns: int) -> dict[str, Any]:
    """Rate, lateness and misses over consecutive reports. Times in microseconds."""
    if len(reports) < 2:
        return {}
    first, last = reports[0], reports[-1]
    span = last.deadline_ns - first.deadline_ns
    missed = last.missed_ticks - first.missed_ticks
    due = (last.sequence - first.sequence) + missed
    return {
        "window_s": round(span / 1e9, 3),
        "period_us": period_ns / 1000,
        "rate_hz": round((last.sequence - first.sequence) * 1e9 / span, 2) if span else math.nan,
        "missed_ticks": missed,
        "missed_fraction": missed / due if due else 0.0,
        "wake_late_us": _spread([r.wake_late_ns for r in reports]),
        "read_us": _spread([r.read_ns for r in reports]),
        "decide_us": _spread([r.decide_ns for r in reports]),
        "write_us": _spread([r.write_ns for r in reports]),
        "done_late_us": _spread([r.done_late_ns for r in reports]),
    }


def _spread(values: list[int]) -> dict[str, float]:
    return {
        "p50": round(percentile(values, 0.5) / 1000, 1),
        "p99": round(percentile(values, 0.99) / 1000, 1),
        "max": round(max(values) / 1000, 1),
    }


def gather(runtime_dir: Path) -> dict[str, Any]:
    """Everything known now, as JSON-ready data. Raises IpcError when no robotd has run here."""
    try:
        ring = RingReader(runtime_dir / RING_NAME)
    except IpcError:
        if _living(_optional(runtime_dir / STATUS_NAME)):
            raise IpcError(f"{runtime_dir}: robotd is starting: no tick yet") from None
        raise
    try:
        report = ring.latest()
        if report is None:
            raise IpcError(f"{runtime_dir}: control has not made its first tick yet")
        window = int(_WINDOW_S * 1e9 / ring.layout.period_ns)
        recent = list(ring.since(report.sequence - window))
        names = ring.layout.joints
        figures = loop_figures(recent, ring.layout.period_ns)
    finally:
        ring.close()
    age_s = (time.monotonic_ns() - report.deadline_ns) / 1e9
    return {
        "running": age_s < _STALE_S,
        "age_s": round(age_s, 3),
        "mode": report.mode.name,
        "torque": report.torque,
        "fault": report.fault.name,
        "fault_joint": names[report.fault_joint] if report.fault_joint >= 0 else None,
        "message": report.message,
        "degraded": [bit.name for bit in Degraded if report.degraded & bit],
        "loop": figures,
        "bus": {
            "failed_ticks": report.failed_ticks,
            "errors": report.bus_errors,
            "retries": report.bus_retries,
        },
        "chunk": {
            "sequence": report.chunk_sequence,
            "age_ms": round(report.chunk_age_ns / 1e6, 1),
            "step": _number(report.chunk_step),
            "accepted": report.chunks,
            "dropped": report.chunks_dropped,
        },
        "inbox_dropped": report.inbox_dropped,
        "joints": {name: _joint(joint) for name, joint in zip(names, report.joints, strict=True)},
        "observer": _optional(runtime_dir / OBSERVER_NAME),
        "daemon": _living(_optional(runtime_dir / STATUS_NAME)),
    }


def _optional(path: Path) -> dict[str, Any] | None:
    try:
        return read_status(path)
    except IpcError:
        return None


def _living(daemon: dict[str, Any] | None) -> dict[str, Any] | None:
    """The daemon's status, None when it has been killed since it wrote it."""
    if daemon is None or not Path(f"/proc/{daemon.get('pid')}").exists():
        return None
    return daemon


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def _joint(joint: JointReport) -> dict[str, Any]:
    return {
        "valid": joint.valid,
        "position": _number(joint.position),
        "velocity": _number(joint.velocity),
        "asked": _number(joint.asked),
        "applied": _number(joint.applied),
        "load": _number(joint.load),
        "temperature_c": _number(joint.temperature_c),
        "voltage_v": _number(joint.voltage_v),
        "status": joint.status,
        "limited": [bit.name for bit in Limited if joint.limited & bit],
    }


def render(state: dict[str, Any]) -> RenderableType:
    """The page for people."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column()
    for label, text in [*_loop_lines(state), *_observer_lines(state), *_process_lines(state)]:
        lines.add_row(label, text if isinstance(text, Text) else Text(text))
    return Group(_headline(state), Text(), _joint_table(state), Text(), lines)


def _headline(state: dict[str, Any]) -> Text:
    """Mode and torque; the fault and what to do; what else is not as it should be."""
    mode, fault = state["mode"], state["fault"]
    text = Text()
    if not state["running"]:
        text.append(_not_running(state), style="bold red")
    text.append(mode, style="bold red" if mode == Mode.FAULT.name else "bold green")
    text.append(f"  torque {'on' if state['torque'] else 'off'}")
    if fault != Fault.NONE.name:
        where = f" at {state['fault_joint']}" if state["fault_joint"] else ""
        text.append(f"  {fault}{where}", style="bold red")
        text.append(f"\n{state['message']}", style="red")
        text.append("\nwhen the cause is gone: robotd clear")
    elif state["message"]:
        text.append(f"  {state['message']}")
    if state["degraded"]:
        lacking = ", ".join(_DEGRADED[name] for name in state["degraded"])
        text.append(f"\nno real-time rights: {lacking}; ticks may be late", style="yellow")
    return text


def _not_running(state: dict[str, Any]) -> str:
    age_s = state["age_s"]
    ago = f"{age_s:.1f} s" if age_s < 120 else f"{age_s / 60:.0f} min"
    if state["daemon"]:
        return f"control is not ticking: its last tick was {ago} ago, as follows\n"
    return f"robotd is not running here: its last tick was {ago} ago, as follows\n"


def _joint_table(state: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("joint", no_wrap=True)
    for column in ("measured", "asked", "applied", "units/s", "load", "°C", "V"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("limited", overflow="fold")
    arms = {name.split(".")[0] for name in state["joints"]}
    for name, joint in state["joints"].items():
        shown = name if len(arms) > 1 else name.split(".", 1)[1]
        values = [
            _cell(joint["position"], 1) if joint["valid"] else Text("no reply", style="red"),
            _cell(joint["asked"], 1),
            _cell(joint["applied"], 1),
            _cell(joint["velocity"], 0),
            _cell(joint["load"], 2),
            _cell(joint["temperature_c"], 0),
            _cell(joint["voltage_v"], 1),
        ]
        table.add_row(shown, *values, _remarks(joint))
    return table


def _remarks(joint: dict[str, Any]) -> Text:
    """What the limiter did, and what the servo complains about."""
    text = Text(", ".join(_LIMITED[name] for name in joint["limited"]))
    if joint["status"]:
        text.append(f"{' ' if text else ''}{status_text(joint['status'])}", style="red")
    return text


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text if float(text) else text.removeprefix("-")


_Lines = list[tuple[str, str | Text]]


def _loop_lines(state: dict[str, Any]) -> _Lines:
    loop, bus = state["loop"], state["bus"]
    lines: _Lines = []
    if loop:
        lines.append(
            (
                "loop",
                f"{loop['rate_hz']:.1f} Hz over {loop['window_s']:.1f} s, "
                f"{loop['missed_ticks']} ticks missed; woke late p99 "
                f"{loop['wake_late_us']['p99']:.0f} us; read p50 {loop['read_us']['p50']:.0f} us; "
                f"goals written p99 {loop['done_late_us']['p99'] / 1000:.2f} ms after the deadline",
            )
        )
    lines.append(
        (
            "bus",
            f"{bus['failed_ticks']} failed ticks, {bus['errors']} errors, {bus['retries']} retries",
        )
    )
    return lines


def _observer_lines(state: dict[str, Any]) -> _Lines:
    observer = state["observer"]
    if not observer or not state["daemon"]:
        return []
    lines: _Lines = []
    if observer.get("bundle"):
        chunk, worker = state["chunk"], observer.get("worker", {})
        age = f", age {chunk['age_ms']:.0f} ms" if chunk["sequence"] else ""
        latency = observer.get("latency_ms") or {}
        took = f"; answered in p50 {latency['p50']:.1f} ms" if latency else ""
        lines.append(
            (
                "policy",
                f"{observer['bundle']}: worker {worker.get('state', 'unknown')}; "
                f"{chunk['accepted']} chunks{age}, {chunk['dropped']} dropped{took}",
            )
        )
        if observer.get("waiting_for"):
            lines.append(("", Text(f"not ready: {observer['waiting_for']}", style="yellow")))
    for name, camera in observer.get("cameras", {}).items():
        lines.append(("camera", _camera(name, camera)))
    return lines


def _camera(name: str, camera: dict[str, Any]) -> Text:
    age, fps, error = camera.get("age_ms"), camera.get("fps"), camera.get("error")
    shown = "no picture yet" if age is None else f"{fps or 0:.1f} fps, age {age:.0f} ms"
    text = Text(f"{name}: {camera.get('state', 'unknown')}, {shown}")
    if error:
        text.append(f"; {error}", style="red")
    return text


def _process_lines(state: dict[str, Any]) -> _Lines:
    daemon = state["daemon"]
    if not daemon:
        return []
    text = Text(f"daemon {daemon['pid']}")
    for name, entry in daemon["processes"].items():
        text.append(f", {name} ")
        text.append(str(entry["pid"] or "down"), style="" if entry["pid"] else "red")
        if entry["restarts"]:
            text.append(f" (restarted {entry['restarts']}x)", style="yellow")
    return [("process", text)]
