"""The daemon's log: what every process of it says on its standard error, in one form.

    19:33:18.022 control  NO REAL TIME: ...

Under systemd the time is left out, for the journal adds its own. Errors that end a process are
plain lines ("robotd control: ..."), so that they read the same with and without a daemon.
"""

import contextlib
import os
import sys
import time


def journalled() -> bool:
    """Whether standard error goes to systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(there.st_dev), str(there.st_ino))


def say(process: str, text: str) -> None:
    """One line of the log. A log that cannot be written to any more stops nobody."""
    now = time.time()
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    stamp = "" if journalled() else f"{clock}.{int(now * 1000) % 1000:03d} "
    with contextlib.suppress(OSError, ValueError):
        print(f"{stamp}{process:<8} {text}", file=sys.stderr, flush=True)


def log_format(process: str) -> str:
    """The same for `logging.basicConfig(format=..., datefmt=DATE_FORMAT)`."""
    stamp = "" if journalled() else "%(asctime)s.%(msecs)03d "
    return f"{stamp}{process:<8} %(message)s"


DATE_FORMAT = "%H:%M:%S"
