"""Episodes on a virtual clock, in one process, faster than real time.

The same code as in `robotd run`: ControlLoop, Arm and its packets, the emulated servos, physics,
ObserverCore, both graphs. What is missing is what only real time has: scheduling, sockets to the
worker, and the cameras' own processes. Their delays are modelled: pictures are taken at the
cameras' rate and may be one period old, and a chunk arrives `LATENCY_NS` after its observation.
"""

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from robotd.config import Config
from robotd.control.loop import ControlLoop
from robotd.control.process import build_arm, ring_layout
from robotd.episodes import PATIENCE_S, TIME_LIMIT_S, EpisodeResult, remove_runtime
from robotd.errors import ChunkError, SimError
from robotd.ipc.inbox import Chunk, Command, CommandName
from robotd.ipc.ring import RING_NAME, Fault, Mode, RingWriter
from robotd.observer.core import ObserverCore
from robotd.observer.detokenize import CheckedChunk, Reply
from robotd.observer.observation import Observation, Picture
from robotd.policy.bundle import Bundle
from robotd.policy.session import Detokenizer, PolicySession
from robotd.sim.bus import MemoryPort, SimBus
from robotd.sim.physics import Physics
from robotd.sim.render import Renderer
from robotd.sim.tasks import make_task
from robotd.sources import PERIOD_NS, ChunkSource

LATENCY_NS = 8_000_000  # from an observation to its chunk's arrival
BLANK = 128  # grey of the blank-images baseline
_START_NS = 1_000_000_000


class SteppedClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.time_ns = _START_NS

    def now_ns(self) -> int:
        """The present virtual time."""
        return self.time_ns

    def sleep_until(self, deadline_ns: int) -> None:
        """Let time pass up to a deadline."""
        self.time_ns = max(self.time_ns, deadline_ns)


class Mail:
    """The loop's inbox within one process."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._commands: list[Command] = []
        self._chunk: Chunk | None = None
        self._number = 0

    def command(self, name: CommandName, source: str = "") -> None:
        """Queue a command for the next tick."""
        self._number += 1
        self._commands.append(Command(self._number, name, source))

    def chunk(self, source: str, chunk: CheckedChunk) -> None:
        """Queue a chunk for the next tick; the last one wins."""
        actions = np.asarray(chunk.steps, dtype="<f8")
        self._chunk = Chunk(
            source,
            chunk.sequence,
            chunk.observed_ns,
            chunk.period_ns,
            actions.shape[1],
            actions.tobytes(),
        )

    def drain(self, limit: int = 16) -> tuple[list[Command], Chunk | None]:
        """Everything that has been queued."""
        commands, self._commands = self._commands, []
        chunk, self._chunk = self._chunk, None
        return commands, chunk

    def close(self) -> None:
        """Nothing is held."""


class Eyes:
    """The simulated cameras: snapshots at their rate, rendered only when they are looked at."""

    def __init__(self, config: Config, physics: Physics) -> None:
        assert config.sim is not None
        self._cameras = config.cameras
        self._physics = physics
        self._blank = config.sim.blank_images
        self._renderer = Renderer(physics.arm.model, physics.scene, config.sim.renderer)
        self._period_ns = round(1e9 / min((c.fps for c in config.cameras), default=30.0))
        self._next_ns = 0
        self._taken: tuple[int, bytes] = (0, b"")

    def look(self, now_ns: int) -> None:
        """Take a snapshot when the cameras' period has passed."""
        if now_ns >= self._next_ns:
            self._taken = (now_ns, self._physics.snapshot())
            self._next_ns = now_ns + self._period_ns

    def pictures(self) -> dict[str, Picture]:
        """Every camera's newest picture."""
        captured_ns, snapshot = self._taken
        self._renderer.load(snapshot)
        found = {}
        for camera in self._cameras:
            image = self._renderer.render(camera.name, camera.width, camera.height)
            if self._blank:
                image = np.full_like(image, BLANK)
            found[camera.name] = Picture(captured_ns, image)
        return found

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


class Brain:
    """Observer and policy of the configured bundle, called in the loop's own time."""

    def __init__(self, config: Config) -> None:
        assert config.policy is not None
        bundle = Bundle.load(config.policy.bundle)
        self.digest = bundle.digest
        self._session = PolicySession(bundle)
        self._core = ObserverCore(config.policy, bundle, Detokenizer(bundle))
        self._asked: Observation | None = None
        self._answer: Reply | None = None
        self._due_ns = 0

    def step(self, loop: ControlLoop, eyes: Eyes, mail: Mail, now_ns: int) -> None:
        """Observe and ask when it is time; hand an answer over when its latency has passed."""
        report = loop.report
        if self._core.wants_request(report, now_ns):
            made = self._core.observation(report, eyes.pictures(), now_ns)
            if made is not None:
                tokens = self._session.act(made.images, made.state)
                self._answer = Reply(made.sequence, made.observed_ns, self.digest, tokens)
                self._due_ns = now_ns + LATENCY_NS
        if self._answer is not None and now_ns >= self._due_ns:
            answer, self._answer = self._answer, None
            try:
                mail.chunk(self.digest, self._core.on_reply(answer, report, now_ns))
            except ChunkError:
                return  # counted by the core, which asks again


class SteppedStage:
    """Episodes of one simulated arm on the virtual clock; the counterpart of LiveStage."""

    def __init__(self, config: Config, source: ChunkSource | None = None) -> None:
        """Raises SimError unless there is exactly one simulated arm."""
        if config.sim is None or [arm.port for arm in config.arms] != ["sim"]:
            raise SimError('stepped episodes need exactly one arm with port "sim"')
        self.config = config
        self._source = source
        self._sequence = 0
        self.clock = SteppedClock()
        self.physics = Physics(config.arms[0].model, config.sim.task)
        self.task = make_task(self.physics)
        self.bus = SimBus(config.arms[0].model, "follower", self.physics)
        if config.sim.faults:
            self.bus.inject(config.sim.faults, self.clock.now_ns())
        self.mail = Mail()
        self.eyes = Eyes(config, self.physics)
        self.brain = Brain(config) if source is None else None
        self.loop = self._control()

    def _control(self) -> ControlLoop:
        settings = self.config.arms[0]
        port = MemoryPort(self.bus, self.clock.now_ns)
        arm = build_arm(settings, port, self.config.control.period_ns, self.clock.now_ns)
        layout = ring_layout(self.config, [arm])
        ring = RingWriter(self.config.runtime_dir / RING_NAME, layout)
        return ControlLoop(self.config, [arm], ring, self.mail, self.clock)

    def __enter__(self) -> Self:
        """Connect and configure the arm."""
        self.loop.start()
        self._deadline_ns = self.clock.now_ns()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the loop."""
        self.loop.close()
        self.eyes.close()

    def tick(self) -> None:
        """One control period: time passes, the loop ticks, observer and policy do their part."""
        self._deadline_ns += self.config.control.period_ns
        self.clock.sleep_until(self._deadline_ns)
        self.bus.advance(self.clock.now_ns())
        self.eyes.look(self.clock.now_ns())
        self.loop.tick(self._deadline_ns)
        if self.brain is not None:
            self.brain.step(self.loop, self.eyes, self.mail, self.clock.now_ns())

    def bring(self, name: CommandName, mode: Mode, source: str = "") -> None:
        """Give a command, again and again where it is refused, until the loop is in that mode.

        SimError when that takes longer than `PATIENCE_S`.
        """
        rate_hz = self.config.control.rate_hz
        for tick in range(PATIENCE_S * rate_hz):
            if tick % rate_hz == 0:
                self.mail.command(name, source)
            self.tick()
            if self.loop.report.mode is mode:
                return
        report = self.loop.report
        raise SimError(f"{name}: control stays in {report.mode.name}: {report.command_text}")

    def reset(self, seed: int) -> None:
        """Disarm, set the scene and the arm's start pose for this seed, arm again."""
        self._recover()
        self.task.reset(seed)
        self.bus.rest()
        self.tick()
        self.bring("arm", Mode.HOLD)

    def _recover(self) -> None:
        """To IDLE from wherever the last episode left the loop, a fault included."""
        rate_hz = self.config.control.rate_hz
        for tick in range(PATIENCE_S * rate_hz):
            report = self.loop.report
            if report.mode is Mode.IDLE:
                return
            if tick % rate_hz == 0:
                self.mail.command("clear" if report.mode is Mode.FAULT else "disarm")
            self.tick()
        raise SimError(f"control stays in {report.mode.name}: {report.message}")

    def episode(
        self,
        seed: int,
        time_limit_s: float = TIME_LIMIT_S,
        watch: Callable[[], None] | None = None,
    ) -> EpisodeResult:
        """Reset, run the policy (or the given source) until success, time-out or fault.

        `watch` is called after every tick.
        """
        self.reset(seed)
        if self._source is not None:
            self._source.begin(seed)
        owner = self.brain.digest if self.brain is not None else self._name
        self.bring("policy", Mode.POLICY, owner)
        begun_s = self.physics.time_s
        while (elapsed_s := self.physics.time_s - begun_s) <= time_limit_s:
            self._feed(elapsed_s)
            self.tick()
            if watch is not None:
                watch()
            if self.task.success:
                return EpisodeResult(seed, True, round(self.task.success_s - begun_s, 3))
            report = self.loop.report
            if report.mode is not Mode.POLICY:
                fault = "stopped" if report.fault is Fault.NONE else f"fault {report.fault.name}"
                note = f"{fault}: {report.message}"
                return EpisodeResult(seed, False, round(elapsed_s, 3), note)
        return EpisodeResult(seed, False, round(elapsed_s, 3), "time limit")

    @property
    def _name(self) -> str:
        return self._source.name if self._source is not None else ""

    def _feed(self, elapsed_s: float) -> None:
        """Let a baseline's source send its next chunk."""
        if self._source is None:
            return
        steps = self._source.chunk(elapsed_s, lambda: list(self.physics.state().integration))
        if steps is not None:
            self._sequence += 1
            chunk = [list(step) for step in steps]
            checked = CheckedChunk(self._sequence, self.clock.now_ns(), PERIOD_NS, chunk)
            self.mail.chunk(self._source.name, checked)

    def discard(self) -> None:
        """Remove the temporary runtime directory."""
        remove_runtime(self.config.runtime_dir)
