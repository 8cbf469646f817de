"""Real worker processes for tests, and short folders for their sockets."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE_S = 60.0  # for anything that must happen; the machine may be busy


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="robotd-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(
    happened: Callable[[], bool], what: str | Callable[[], str], patience_s: float = PATIENCE_S
) -> None:
    """Poll until true; fails the test, saying what did not happen."""
    end = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > end:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {patience_s:.0f} s: {said}")
        time.sleep(0.005)


class Child:
    """A child process and the lines that it has said on stderr."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, words: str) -> None:
        """Wait for a line that holds these words."""
        wait_until(
            lambda: any(words in line for line in self.lines) or self.process.poll() is not None,
            lambda: f"{words!r} in {self.lines}",
        )
        assert any(words in line for line in self.lines), self.lines

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        """SIGKILL, also when stopped."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextlib.contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """A child process that does not outlive the test."""
    started = Child(module, *arguments)
    try:
        yield started
    finally:
        started.kill()


@contextlib.contextmanager
def worker(bundle: Path, endpoint: str, keys: Path | None = None) -> Iterator[Child]:
    """A worker process that is ready."""
    arguments = ["--bundle", str(bundle), "--endpoint", endpoint]
    if keys is not None:
        arguments += ["--keys", str(keys)]
    with child("robotd.policy", *arguments) as started:
        started.wait_for("ready: ")
        yield started


def alive(pid: int) -> bool:
    """True while a process with this id exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def free_tcp_port() -> int:
    """A port that was free a moment ago, on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
