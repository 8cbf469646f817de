"""How a process of the daemon lives: its priority, and its end by signal or with its parent."""

import contextlib
import ctypes
import os
import signal
import socket
from types import FrameType, TracebackType
from typing import Self

PROMPT = -10  # niceness of what stands between an observation and its chunk
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel for this signal when the parent ends, however it ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it ended between the two calls
        os.kill(os.getpid(), signal_number)


def prefer(nice: int) -> None:
    """Set the niceness of this thread and those that it starts, as far as that is permitted.

    Below 0 it is woken before ordinary processes; `control`, in the real-time class, before both.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class StopSignal:
    """SIGTERM and SIGINT as a flag, and as a descriptor that wakes a poll. Main thread only."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        for end in (self._read, self._write):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def fileno(self) -> int:
        """Becomes readable when a signal arrives."""
        return self._read.fileno()

    def clear(self) -> None:
        """Take the wake-up bytes, so that the next poll waits again."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(64)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._read.close()
        self._write.close()
