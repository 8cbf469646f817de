"""Ending: by signal, and with the parent."""

import os
import select
import signal
import subprocess
import sys

from robotd.ipc.lifetime import StopSignal
from tests.workers import alive, wait_until


def test_a_signal_sets_the_flag_and_wakes_a_poll() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([stop], [], [], 10)[0] == [stop]
        assert stop.requested
        stop.clear()
        stop.clear()
        assert select.select([stop], [], [], 0)[0] == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_child_ends_when_its_parent_is_killed() -> None:
    script = (
        "import subprocess, sys, time\n"
        "inner = 'import time; from robotd.ipc.lifetime import end_with_parent;"
        " end_with_parent(); print(1, flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not alive(pid), "the child ends")
