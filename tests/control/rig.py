"""The whole control loop in one process: real arms and packets, simulated servos, stepped time."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robotd.bus.arm import Arm
from robotd.bus.port import Port
from robotd.config import Config, parse
from robotd.control.loop import ControlLoop
from robotd.control.process import ring_layout
from robotd.ipc.inbox import Chunk, Command, CommandName
from robotd.ipc.ring import RING_NAME, Result, RingReader, RingWriter, TickReport
from robotd.sim.arms import sim_calibration
from robotd.sim.bus import MemoryPort, SimBus

START_NS = 1_000_000_000
FORGET_NS = 10_000_000_000


class SteppedClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.time_ns = START_NS

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until(self, deadline_ns: int) -> None:
        self.time_ns = max(self.time_ns, deadline_ns)


class Mail:
    """An inbox without a socket."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.commands: list[Command] = []
        self.chunks: list[Chunk] = []

    def drain(self, limit: int = 16) -> tuple[list[Command], Chunk | None]:
        commands, self.commands = self.commands[:limit], self.commands[limit:]
        chunk = self.chunks[-1] if self.chunks else None
        self.chunks.clear()
        return commands, chunk

    def close(self) -> None:
        pass


def make_config(folder: Path, models: Sequence[str] = ("so101",), **sections: Any) -> Config:
    """Simulated arms "a", "b", ...; `arm` changes all of them, or is a list of changes."""
    changes = sections.pop("arm", {})
    each = changes if isinstance(changes, list) else [changes] * len(models)
    arms = []
    for name, model, arm in zip("abcd", models, each, strict=False):
        path = folder / f"{model}.json"
        sim_calibration(model).save(path)
        arms.append({"id": name, "model": model, "port": "sim", "calibration": str(path), **arm})
    raw = {"arms": arms, "sim": {}, "runtime_dir": str(folder), **sections}
    return parse(raw, folder / "test.toml")


class Rig:
    """A loop with its buses, time, inbox and ring."""

    def __init__(
        self,
        folder: Path,
        models: Sequence[str] = ("so101",),
        wrap: Callable[[Port], Port] = lambda port: port,
        **sections: Any,
    ) -> None:
        self.config = make_config(folder, models, **sections)
        self.period_ns = self.config.control.period_ns
        self.clock = SteppedClock()
        self.mail = Mail()
        self.buses = [SimBus(arm.model) for arm in self.config.arms]
        self.bus = self.buses[0]
        self.arms = [
            Arm(
                arm.id, arm.model, "follower", wrap(MemoryPort(bus, self.clock.now_ns)),
                sim_calibration(arm.model), self.clock.now_ns,
            )
            for arm, bus in zip(self.config.arms, self.buses, strict=True)
        ]  # fmt: skip
        path = folder / RING_NAME
        self.ring = RingWriter(path, ring_layout(self.config, self.arms))
        self.reader = RingReader(path)
        self.loop = ControlLoop(self.config, self.arms, self.ring, self.mail, self.clock)
        self.loop.start()
        self.deadline_ns = self.clock.now_ns()
        self._number = 0

    def tick(self, count: int = 1, skip: int = 0) -> TickReport:
        """Tick on the grid of deadlines, `skip` of them missed before each."""
        for _ in range(count):
            self.deadline_ns += self.period_ns * (1 + skip)
            self.clock.sleep_until(self.deadline_ns)
            self.loop.tick(self.deadline_ns)
        report = self.reader.latest()
        assert report is not None
        return report

    def run_s(self, seconds: float) -> TickReport:
        return self.tick(round(seconds * 1e9 / self.period_ns))

    def send(self, name: CommandName, source: str = "") -> int:
        self._number += 1
        self.mail.commands.append(Command(self._number, name, source))
        return self._number

    def call(self, name: CommandName, source: str = "", ticks: int = 400) -> TickReport:
        """Send a command and tick until its result is there."""
        number = self.send(name, source)
        for _ in range(ticks):
            report = self.tick()
            if report.command_id == number:
                return report
        raise AssertionError(f"{name}: no result")

    def done(self, name: CommandName, source: str = "") -> TickReport:
        """A command that must not be refused."""
        report = self.call(name, source)
        assert report.command_result is Result.DONE, report.command_text
        return report

    def refused(self, name: CommandName, source: str = "") -> str:
        """A command that must be refused; why it was."""
        report = self.call(name, source)
        assert report.command_result is Result.REFUSED
        return report.command_text

    def chunk(
        self,
        steps: Sequence[Sequence[float]],
        sequence: int,
        source: str = "policy",
        period_ns: int = 33_333_333,
        observed_ns: int | None = None,
    ) -> None:
        """Send a chunk that answers an observation of now, or of the time given."""
        from array import array

        flat = array("d", [value for step in steps for value in step])
        observed = self.deadline_ns if observed_ns is None else observed_ns
        self.mail.chunks.append(
            Chunk(source, sequence, observed, period_ns, len(steps[0]), flat.tobytes())
        )

    def positions(self) -> list[float]:
        report = self.reader.latest()
        assert report is not None
        return [joint.position for joint in report.joints]

    def close(self) -> None:
        self.loop.close()
        self.reader.close()
