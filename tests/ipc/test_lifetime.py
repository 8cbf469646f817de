"""Ending: by signal, and with the parent."""

import os
import select
import signal
import subprocess
import sys
import threading

from robotd.ipc.lifetime import StopSignal, prefer
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


def test_a_preference_is_for_this_thread_and_refusal_is_no_error() -> None:
    seen: list[int] = []

    def lowered() -> None:
        prefer(7)
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        prefer(-20)  # not permitted to everybody

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=lowered)
    thread.start()
    thread.join()
    assert seen == [7]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
