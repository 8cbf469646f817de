"""Real-time rights: what was obtained is seen from outside, what was not is named."""

import json
import os
import resource
import subprocess
import sys

import pytest

from robotd.control.realtime import explain
from robotd.ipc.ring import Degraded

CHILD = """
import gc, json, os, sys
from robotd.config import ControlConfig
from robotd.control import realtime
os.setuid({uid}) if {uid} else None
degraded = realtime.apply(ControlConfig(cpu={cpu}, priority=7))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps(dict(
    degraded=degraded, scheduler=os.sched_getscheduler(0), priority=os.sched_getparam(0)[0],
    locked=int(status["VmLck"].split()[0]), gc=gc.isenabled(), cpus=sorted(os.sched_getaffinity(0)),
)))
"""


def child(cpu: int | None = None, uid: int = 0, poor: bool = False) -> dict[str, int]:
    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))

    out = subprocess.run(
        [sys.executable, "-c", CHILD.format(cpu=cpu, uid=uid)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limits if poor else None,
    )
    answer: dict[str, int] = json.loads(out.stdout)
    return answer


def test_every_right_that_is_not_reported_missing_is_in_force() -> None:
    cpu = sorted(os.sched_getaffinity(0))[0]
    got = child(cpu)
    if not got["degraded"] & Degraded.SCHEDULER:
        assert got["scheduler"] & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        assert got["priority"] == 7
    if not got["degraded"] & Degraded.MEMORY_LOCK:
        assert got["locked"] > 0
    if not got["degraded"] & Degraded.AFFINITY:
        assert got["cpus"] == [cpu]
    assert not got["gc"]


def test_a_core_that_is_not_there_is_reported() -> None:
    assert child(1023)["degraded"] & Degraded.AFFINITY


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become nobody")
def test_without_rights_it_says_what_is_missing_and_goes_on() -> None:
    got = child(uid=65534, poor=True)
    assert got["degraded"] == Degraded.SCHEDULER | Degraded.MEMORY_LOCK
    assert got["scheduler"] == os.SCHED_OTHER
    assert got["locked"] == 0


def test_what_is_missing_is_put_into_words_with_a_remedy() -> None:
    assert explain(0) == ""
    text = explain(Degraded.SCHEDULER | Degraded.MEMORY_LOCK)
    assert "LimitRTPRIO" in text
    assert "LimitMEMLOCK" in text
    assert "control.cpu" not in text
