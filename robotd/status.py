"""What `robotd status` shows: a picture of the running daemon, read from the runtime directory."""

import math
import time
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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

OBSERVER_NAME = "observer.json"
DAEMON_NAME = "daemon.json"
_STALE_S = 1.0
_WINDOW_S = 5.0


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
    ring = RingReader(runtime_dir / RING_NAME)
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
        "daemon": _optional(runtime_dir / DAEMON_NAME),
    }


def _optional(path: Path) -> dict[str, Any] | None:
    try:
        return read_status(path)
    except IpcError:
        return None


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
    parts: list[RenderableType] = [_headline(state), _joint_table(state)]
    loop = state["loop"]
    if loop:
        parts.append(
            f"loop     {loop['rate_hz']:.1f} Hz over {loop['window_s']:.1f} s, "
            f"{loop['missed_ticks']} missed; "
            f"wake-up late p99 {loop['wake_late_us']['p99']:.0f} us; "
            f"read p50 {loop['read_us']['p50']:.0f} us; "
            f"goals written p99 {loop['done_late_us']['p99'] / 1000:.2f} ms after the deadline"
        )
    bus = state["bus"]
    parts.append(
        f"bus      {bus['failed_ticks']} failed ticks, {bus['errors']} errors, "
        f"{bus['retries']} retries"
    )
    parts += _observer_lines(state)
    daemon = state["daemon"]
    if daemon:
        running = ", ".join(
            f"{name} {entry['pid'] or 'down'}"
            + (f" ({entry['restarts']} restarts)" if entry["restarts"] else "")
            for name, entry in daemon["processes"].items()
        )
        parts.append(f"process  {running}")
    return Group(*parts)


def _headline(state: dict[str, Any]) -> Text:
    mode = state["mode"]
    style = "bold red" if mode == Mode.FAULT.name else "bold green"
    text = Text(f"{mode}", style=style)
    text.append(f"  torque {'on' if state['torque'] else 'off'}", style="default")
    if state["fault"] != Fault.NONE.name:
        joint = f" at {state['fault_joint']}" if state["fault_joint"] else ""
        text.append(f"  fault {state['fault']}{joint}; `robotd clear` when mended", style="red")
    if state["message"]:
        text.append(f"  {state['message']}", style="default")
    if not state["running"]:
        text.append(f"\nnot ticking: last tick {state['age_s']:.1f} s ago", style="bold red")
    if state["degraded"]:
        lacking = ", ".join(state["degraded"]).lower()
        text.append(f"\nno real-time rights: {lacking}; deadlines may be missed", style="yellow")
    return text


def _joint_table(state: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("joint", no_wrap=True)
    for column in ("measured", "asked", "applied", "units/s", "load", "deg C", "V"):
        table.add_column(column, justify="right")
    table.add_column("limited")
    arms = {name.split(".")[0] for name in state["joints"]}
    for name, joint in state["joints"].items():
        shown = name if len(arms) > 1 else name.split(".", 1)[1]
        values = [
            _cell(joint["position"], 1) if joint["valid"] else "[red]no reply[/]",
            _cell(joint["asked"], 1),
            _cell(joint["applied"], 1),
            _cell(joint["velocity"], 0),
            _cell(joint["load"], 2),
            _cell(joint["temperature_c"], 0),
            _cell(joint["voltage_v"], 1),
        ]
        flags = ", ".join(joint["limited"]).lower()
        if joint["status"]:
            flags = f"[red]servo status 0x{joint['status']:02x}[/] {flags}"
        table.add_row(shown, *values, flags)
    return table


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _observer_lines(state: dict[str, Any]) -> list[str]:
    observer = state["observer"]
    if not observer:
        return []
    chunk = state["chunk"]
    worker = observer.get("worker", {})
    lines = [
        f"policy   {observer.get('bundle') or 'none'}: worker {worker.get('state', 'unknown')}; "
        f"{chunk['accepted']} chunks, {chunk['dropped']} dropped, age {chunk['age_ms']:.0f} ms"
    ]
    for name, camera in observer.get("cameras", {}).items():
        age, fps = camera.get("age_ms"), camera.get("fps")
        shown = "no frame yet" if age is None else f"{fps or 0:.1f} fps, age {age:.0f} ms"
        error = camera.get("error")
        lines.append(f"camera   {name}: {shown}" + (f"; {error}" if error else ""))
    return lines
