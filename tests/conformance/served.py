"""A simulated bus in its own process, as `robotd sim bus` serves it."""

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PATIENCE_S = 60.0
_START = """
import sys
from robotd.sim.bus_command import serve_bus_command
model, role, physics, factory, faults = sys.argv[1:]
serve_bus_command(model, role, physics=physics, factory=factory == "1", faults=faults)
"""


class ServedBus:
    """One arm on a pseudo-terminal. `command` talks to its console."""

    def __init__(
        self,
        model: str,
        role: str = "follower",
        *,
        physics: str = "ideal",
        factory: bool = False,
        faults: str = "",
    ) -> None:
        arguments = [model, role, physics, "1" if factory else "0", faults]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._heard = b""
        self.path = Path(self._line())
        while not self._line().startswith("# quit"):
            pass

    def _line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            if not select.select([self._process.stdout], (), (), _PATIENCE_S)[0]:
                raise TimeoutError("the simulated bus does not answer")
            data = self._process.stdout.read(4096)
            if not data:
                raise RuntimeError(f"the simulated bus has ended: {self._process.wait()}")
            self._heard += data
        line, self._heard = self._heard.split(b"\n", 1)
        return line.decode()

    def command(self, line: str) -> str:
        """Give a command; what comes after "ok"."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        answer = self._line()
        assert answer.startswith("ok"), answer
        return answer[3:]

    def state(self) -> dict[str, Any]:
        """Joints in normalised units, ids, rates, torque and so on."""
        return dict(json.loads(self.command("state")))

    def hand(self, targets: dict[str, float], within: float = 1.0) -> None:
        """Pull joints to normalised positions and wait until they are there; then let go."""
        from robotd.sim.arms import JOINTS

        self.command("hand " + " ".join(f"{joint}={x}" for joint, x in targets.items()))
        end = time.monotonic() + _PATIENCE_S
        while True:
            joints = self.state()["joints"]
            if all(abs(joints[JOINTS.index(j)] - x) < within for j, x in targets.items()):
                break
            if time.monotonic() > end:
                raise TimeoutError(f"the hand cannot bring {joints} to {targets}")
            time.sleep(0.02)
        self.command("hand")

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(_PATIENCE_S)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
