"""Real-time rights for the process's one thread: what is asked for, and what was obtained.

SCHED_FIFO wakes the loop before everything of normal priority; locked memory never waits for a
page; a collector that is off never pauses the tick. Where the rights are missing the loop runs on,
and says so: bits in the ring, and one line on stderr with what to do.
"""

import contextlib
import ctypes
import gc
import os
import resource

from robotd.config import ControlConfig
from robotd.errors import ProcessError
from robotd.ipc.ring import Degraded

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1  # the kernel's default is 50 us; of no effect under SCHED_FIFO


_WORDS = {
    Degraded.SCHEDULER: "no SCHED_FIFO (allow it: LimitRTPRIO= in the unit, or `ulimit -r`)",
    Degraded.MEMORY_LOCK: "memory not locked (allow it: LimitMEMLOCK=infinity, or `ulimit -l`)",
    Degraded.AFFINITY: "not pinned to control.cpu (is there such a core?)",
}


def apply(config: ControlConfig) -> int:
    """Take the rights for this process; returns the bits of `Degraded` that are missing.

    Raises ProcessError when the configuration says `require_realtime` and one is missing.
    """
    degraded = 0
    if not _schedule(config.priority):
        degraded |= Degraded.SCHEDULER
    if not _lock_memory():
        degraded |= Degraded.MEMORY_LOCK
    if config.cpu is not None and not _pin(config.cpu):
        degraded |= Degraded.AFFINITY
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)
    gc.collect()
    gc.freeze()
    gc.disable()
    if degraded and config.require_realtime:
        raise ProcessError(f"control.require_realtime is set, but: {explain(degraded)}")
    return degraded


def explain(degraded: int) -> str:
    """The missing rights and what to do, in one line."""
    return ", ".join(_WORDS[bit] for bit in Degraded if degraded & bit)


def _schedule(priority: int) -> bool:
    """SCHED_FIFO; child processes, if there ever are any, do not inherit it."""
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True


def _lock_memory() -> bool:
    """mlockall; the soft limit is raised to the hard one first.

    Pages are locked as they are touched: without that every library's whole mapping would be
    brought in, used or not. What is mapped later is locked too where there is no limit; under one
    a later allocation would fail instead.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    flags = _MCL_CURRENT | _MCL_ONFAULT
    if hard == resource.RLIM_INFINITY:
        flags |= _MCL_FUTURE
    done: int = ctypes.CDLL(None).mlockall(flags)
    return done == 0


def _pin(cpu: int) -> bool:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return False
    return True
