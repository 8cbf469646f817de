"""The status page: its figures, what it says when something is wrong, and its JSON."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from robotd.errors import IpcError
from robotd.ipc.ring import (
    RING_NAME,
    Degraded,
    Fault,
    JointReport,
    Layout,
    Limited,
    Mode,
    RingWriter,
    TickReport,
)
from robotd.ipc.status import write_status
from robotd.status import gather, loop_figures, percentile, render

PERIOD_NS = 5_000_000
JOINTS = ("arm.shoulder_pan", "arm.gripper")


def write_ring(folder: Path, *reports: TickReport, joints: tuple[str, ...] = JOINTS) -> None:
    writer = RingWriter(folder / RING_NAME, Layout(joints, PERIOD_NS, 64, os.getpid()))
    for sequence, report in enumerate(reports, start=1):
        report.sequence = sequence
        writer.publish(report)
    writer.close()


def tick(age_s: float = 0.0, **changes: Any) -> TickReport:
    """A report of a two-joint arm."""
    report = TickReport(deadline_ns=time.monotonic_ns() - round(age_s * 1e9), **changes)
    report.joints = [
        JointReport(1.25, 0.0, -0.001, 1.5, 1.4, 31.0, 12.1, True, 0, int(Limited.VELOCITY)),
        JointReport(valid=False, status=0x20),
    ]
    return report


def observer(**changes: Any) -> dict[str, Any]:
    """What an observer with a policy and a camera writes."""
    camera = {"state": "live", "age_ms": 21.4, "fps": 29.96, "error": ""}
    return {
        "ready": True,
        "waiting_for": "",
        "bundle": "tiny",
        "worker": {"state": "ready"},
        "latency_ms": {"p50": 4.25, "p99": 9.0},
        "cameras": {"front": camera},
        **changes,
    }


def daemon(pid: int | None = None, **processes: Any) -> dict[str, Any]:
    entry = {"pid": 4711, "uptime_s": 3.0, "restarts": 0}
    return {
        "pid": os.getpid() if pid is None else pid,
        "ready": True,
        "processes": {"control": entry, **processes},
    }


def page(folder: Path, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(gather(folder)))
    console.file.close()
    return console.export_text()


def gone() -> int:
    """The id of no process."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_percentiles_are_nearest_ranks() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 3
    assert percentile([4, 1, 3, 2], 0.99) == 4
    assert math.isnan(percentile([], 0.5))


def test_loop_figures_of_a_second() -> None:
    reports = [
        TickReport(sequence=n, deadline_ns=n * PERIOD_NS, wake_late_ns=n * 1000, missed_ticks=n > 9)
        for n in range(1, 11)
    ]
    reports[-1].deadline_ns += PERIOD_NS  # the missed one
    figures = loop_figures(reports, PERIOD_NS)
    assert figures["rate_hz"] == 180.0
    assert figures["missed_ticks"] == 1
    assert figures["missed_fraction"] == 0.1
    assert figures["wake_late_us"] == {"p50": 6.0, "p99": 10.0, "max": 10.0}
    assert loop_figures(reports[:1], PERIOD_NS) == {}


def test_json_holds_everything_and_no_nan(tmp_path: Path) -> None:
    write_ring(tmp_path, tick(mode=Mode.POLICY, torque=True, chunk_sequence=3, chunk_step=1.5))
    write_status(tmp_path / "observer.json", observer())
    write_status(tmp_path / "daemon.json", daemon())
    state = json.loads(json.dumps(gather(tmp_path), allow_nan=False))
    assert state.keys() == {
        "running", "age_s", "mode", "torque", "fault", "fault_joint", "message", "degraded",
        "loop", "bus", "chunk", "inbox_dropped", "joints", "observer", "daemon",
    }  # fmt: skip
    assert state["running"]
    assert state["mode"] == "POLICY"
    assert state["chunk"]["step"] == 1.5
    assert state["joints"]["arm.shoulder_pan"] == {
        "valid": True, "position": 1.25, "velocity": 0.0, "asked": 1.5, "applied": 1.4,
        "load": -0.001, "temperature_c": 31.0, "voltage_v": 12.1, "status": 0,
        "limited": ["VELOCITY"],
    }  # fmt: skip
    assert state["joints"]["arm.gripper"]["position"] is None
    assert state["daemon"]["processes"]["control"]["pid"] == 4711


def test_page_of_a_policy_at_work(tmp_path: Path) -> None:
    work = tick(mode=Mode.POLICY, torque=True, chunk_sequence=3, chunks=9, message="following it")
    write_ring(tmp_path, tick(), work)
    write_status(tmp_path / "observer.json", observer())
    write_status(tmp_path / "daemon.json", daemon())
    text = page(tmp_path)
    assert text.startswith("POLICY  torque on  following it")
    pan, grip = (
        next(s for s in text.splitlines() if s.startswith(j)) for j in ("shoulder", "grip")
    )
    assert pan.split() == ["shoulder_pan", "1.2", "1.5", "1.4", "0", "0.00", "31", "12.1", "speed"]
    assert "no reply" in grip
    assert "overload" in grip
    assert "tiny: worker ready; 9 chunks" in text
    assert "answered in p50 4.2 ms" in " ".join(text.split())
    assert "front: live, 30.0 fps, age 21 ms" in text
    assert "control 4711" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_page_of_a_fault_says_where_why_and_what_to_do(tmp_path: Path) -> None:
    text = "arm.gripper: 80 degrees, allowed are 65; let it cool down"
    write_ring(tmp_path, tick(mode=Mode.FAULT, fault=Fault.OVERHEAT, fault_joint=1, message=text))
    write_status(tmp_path / "daemon.json", daemon())
    lines = page(tmp_path).splitlines()
    assert lines[0] == "FAULT  torque off  OVERHEAT at arm.gripper"
    assert lines[1] == text
    assert "robotd clear" in lines[2]


def test_page_without_real_time_rights(tmp_path: Path) -> None:
    write_ring(tmp_path, tick(degraded=int(Degraded.SCHEDULER | Degraded.MEMORY_LOCK)))
    assert "no SCHED_FIFO, memory not locked" in page(tmp_path)


@pytest.mark.parametrize("ended", ["by itself", "by a kill"])
def test_a_daemon_that_is_gone_is_said_to_be(tmp_path: Path, ended: str) -> None:
    write_ring(tmp_path, tick(age_s=200, mode=Mode.HOLD, torque=True))
    write_status(tmp_path / "observer.json", observer())
    if ended == "by a kill":
        write_status(tmp_path / "daemon.json", daemon(pid=gone()))
    state = gather(tmp_path)
    assert not state["running"]
    assert state["daemon"] is None
    text = page(tmp_path)
    assert text.startswith("robotd is not running here: its last tick was 3 min ago")
    assert "worker ready" not in text
    assert "process" not in text


def test_a_loop_that_does_not_tick_is_told_from_a_daemon_that_is_gone(tmp_path: Path) -> None:
    write_ring(tmp_path, tick(age_s=2.0))
    write_status(tmp_path / "daemon.json", daemon(control={"pid": None, "restarts": 2}))
    text = page(tmp_path)
    assert text.startswith("control is not ticking: its last tick was 2.0 s ago")
    assert "control down (restarted 2x)" in text


def test_what_the_policy_waits_for_is_shown(tmp_path: Path) -> None:
    camera = {"state": "failed", "age_ms": None, "fps": 0.0, "error": "/dev/video9: [Errno 2]"}
    why = "camera front is failed: /dev/video9: [Errno 2]"
    write_ring(tmp_path, tick())
    write_status(tmp_path / "daemon.json", daemon())
    write_status(
        tmp_path / "observer.json",
        observer(ready=False, waiting_for=why, cameras={"front": camera}, latency_ms={}),
    )
    text = page(tmp_path)
    assert f"not ready: {why}" in text
    assert "front: failed, no picture yet; /dev/video9: [Errno 2]" in text


def test_without_a_policy_only_cameras_are_shown(tmp_path: Path) -> None:
    write_ring(tmp_path, tick())
    write_status(tmp_path / "daemon.json", daemon())
    write_status(tmp_path / "observer.json", observer(bundle=None, waiting_for="no policy"))
    text = page(tmp_path)
    assert "policy" not in text
    assert "front: live" in text


def test_joints_of_two_arms_have_their_arms_names(tmp_path: Path) -> None:
    write_ring(tmp_path, tick(), joints=("left.gripper", "right.gripper"))
    text = page(tmp_path)
    assert "left.gripper" in text
    assert "right.gripper" in text


def test_no_ring_and_no_tick_are_errors(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="is robotd running"):
        gather(tmp_path)
    write_status(tmp_path / "daemon.json", daemon())
    with pytest.raises(IpcError, match="is starting"):
        gather(tmp_path)
    write_ring(tmp_path)
    with pytest.raises(IpcError, match="first tick"):
        gather(tmp_path)
