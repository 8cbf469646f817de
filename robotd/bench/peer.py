"""The bench's end of a client process (the other end is robotd.bench.contest)."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from robotd.bench.clients import ClientSpec, Setup
from robotd.bench.contest import Block
from robotd.children import prepare_child
from robotd.errors import ProcessError

_LOAD_S = 180.0  # LeRobot's imports on a busy machine
_BLOCK_S = 300.0
_END_S = 5.0


class Peer:
    """A running client process. `missing` says why it cannot take part, if it cannot."""

    def __init__(self, spec: ClientSpec) -> None:
        self.spec = spec
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "robotd.bench.contest", spec.name, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: prepare_child(True),
            start_new_session=True,
        )
        theirs.close()
        self._file = self._socket.makefile("rwb")
        self.missing = ""

    def await_loaded(self) -> None:
        """Wait for its imports; sets `missing` when they fail."""
        self._socket.settimeout(_LOAD_S)
        self.missing = self._answer().get("error", "")
        self._socket.settimeout(_BLOCK_S)

    def run(self, setup: Setup, ticks: int, warm_up: int) -> Block:
        """Open, tick, close. ProcessError when the client fails, with its own words."""
        wanted = {**asdict(setup), "calibration": str(setup.calibration)}
        request = {"setup": wanted, "ticks": ticks, "warm_up": warm_up}
        self._file.write(json.dumps(request).encode() + b"\n")
        self._file.flush()
        answer = self._answer()
        if "error" in answer:
            raise ProcessError(f"{self.spec.name}: {answer['error']}")
        return Block(answer["wall_ns"], answer["cpu_ns"])

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except OSError:
            raise ProcessError(f"{self.spec.name}: no answer in time") from None
        if not line:
            raise ProcessError(f"{self.spec.name}: its process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        stream = self._process.stderr
        if stream is None or not select.select((stream,), (), (), 1.0)[0]:
            return "no message"
        lines = os.read(stream.fileno(), 65536).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
