"""The runtime directory: where a daemon's processes meet. One daemon at a time.

Its lock is inherited by every process of the daemon, so the directory stays taken until the last
of them has ended, also when the daemon itself was killed: a second control process must not come
near the bus while the first still parks the arm.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from robotd.config import Config
from robotd.errors import RobotdError
from robotd.ipc.frames import FRAMES_DIR

LOCK_NAME = "daemon.lock"
STATUS_NAME = "daemon.json"
_LONGEST = 107 - len("/control.sock")  # bytes; sun_path of a Unix socket address
# What only living processes need. The state ring and the resolved configuration stay: they are the
# record of the last run.
_OF_THE_LIVING = (
    STATUS_NAME, "observer.json", "control.sock", "sim.sock", "policy.sock", "policy.sock.lock",
    "scene",
)  # fmt: skip
_LINGER_S = 15.0  # the time that processes of a killed daemon may take to end, beyond parking


@contextlib.contextmanager
def runtime_directory(config: Config, pause: Callable[[str], None]) -> Iterator[int]:
    """Create the directory, hold its lock, and remove what is not of use any more afterwards.

    Yields the lock's descriptor, to be inherited. `pause` is called with the reason while the
    processes of a killed daemon still end; it may raise. RobotdError when it cannot be had.
    """
    path = config.runtime_dir
    if len(os.fsencode(path)) > _LONGEST:
        raise RobotdError(
            f"{path}: too long for a runtime directory, which holds sockets "
            f"({_LONGEST} bytes at most); set runtime_dir"
        )
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock = open(path / LOCK_NAME, "a+")  # noqa: SIM115 - held until the daemon ends
    except OSError as error:
        raise RobotdError(
            f"{path}: cannot use this runtime directory: {error.strerror}; set runtime_dir"
        ) from error
    with lock:
        _take(lock, path, config.stop.park_timeout_s + _LINGER_S, pause)
        _clean(config)
        try:
            yield lock.fileno()
        finally:
            _clean(config)


def _take(lock: TextIO, path: Path, patience_s: float, pause: Callable[[str], None]) -> None:
    """Lock, and leave this process's id in the file."""
    end = time.monotonic() + patience_s
    while not _locked(lock):
        lock.seek(0)
        owner = lock.read().strip()
        if owner.isdecimal() and _alive(int(owner)):
            raise RobotdError(
                f"{path}: another robotd (process {owner}) is running here; "
                "stop it, or set runtime_dir"
            )
        if time.monotonic() > end:
            raise RobotdError(
                f"{path}: processes of a killed robotd still run here; end them, or set runtime_dir"
            )
        pause(f"waiting for the processes of a killed robotd in {path} to stop the arm and end")
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _clean(config: Config) -> None:
    """Remove sockets, statuses and shared memory that nobody writes any more."""
    remove_links(config)
    frames = [f"{FRAMES_DIR}/{camera.name}" for camera in config.cameras]
    for name in (*_OF_THE_LIVING, *frames):
        with contextlib.suppress(OSError):
            (config.runtime_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (config.runtime_dir / FRAMES_DIR).rmdir()


def port_link(config: Config, arm: str) -> Path:
    """Where a simulated arm's pseudo-terminal is found."""
    return config.runtime_dir / f"{arm}.tty"


def remove_links(config: Config) -> None:
    """Remove the links to simulated arms' terminals."""
    for arm in config.arms:
        with contextlib.suppress(OSError):
            port_link(config, arm.id).unlink(missing_ok=True)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration for the processes. RobotdError when it cannot be."""
    try:
        config.save(path)
    except OSError as error:
        raise RobotdError(
            f"{path}: cannot be written: {error.strerror}; set runtime_dir"
        ) from error
