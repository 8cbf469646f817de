"""Episodes in one process with the timing of the whole stack, and far faster than real time.

Ticks of 5 ms in which chunks are executed (`robotd.control.chunks`, cross-fade) and targets limited
(`robotd.control.limits`) by the control process' own code with its default limits; goals rounded to
encoder counts by the `World`; pictures up to 40 ms old when the joint state is read, as a 30 Hz
camera's are; a chunk that arrives 10-20 ms after its observation. Chunks are aligned in time:
`actions[i]` is the target at `t_observation + i * period`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robotd.config import ArmConfig
from robotd.control import chunks, limits
from robotd.sim.arms import JOINTS
from robotd_policies.samples import Sample
from robotd_policies.world import World

Floats = npt.NDArray[np.float32]

HORIZON = 16  # steps in a chunk
EXECUTION_HORIZON = 12  # steps run before the next chunk is asked for
PERIOD_TICKS = 20 / 3  # 30 Hz in ticks of 5 ms
TICK_NS = 5_000_000
TICK_S = TICK_NS * 1e-9
PERIOD_S = PERIOD_TICKS * TICK_S
PERIOD_NS = round(PERIOD_S * 1e9)
IMAGE_AGE_TICKS = (1, 8)  # a picture's age when it is used: 5..40 ms (30 Hz camera, rendering)
LATENCY_TICKS = (2, 4)  # observation to chunk: 10..20 ms


@dataclass(frozen=True)
class Observation:
    """What a policy sees: pictures by camera, and `[12]` measured positions + applied targets."""

    images: dict[str, npt.NDArray[np.uint8]]
    state: Floats


# The chunk [HORIZON, 6] to run; None: the expert's.
Behaviour = Callable[[Observation], Floats | None]


@dataclass
class Plan:
    """How one episode is run and what is kept of it."""

    seconds: float = 12.0
    execution_horizon: tuple[int, int] = (EXECUTION_HORIZON, EXECUTION_HORIZON)
    label_every: int | None = None  # steps between labelled samples; None: no labels
    noise: "Noise | None" = None
    settle_s: float = 0.4  # go on after success for so long


@dataclass
class Noise:
    """Bursts of constant velocity added to the targets, so that recoveries are seen.

    In continuous noise the expert's phases would never switch; between bursts it can act.
    """

    per_second: float = 0.35
    seconds: tuple[float, float] = (0.15, 0.5)
    speed: float = 45.0  # units/s, standard deviation per joint
    joints: tuple[float, ...] = (0.7, 1.0, 1.0, 0.8, 0.7, 0.5)


@dataclass
class Outcome:
    """One episode's result."""

    seed: int
    success: bool
    seconds: float
    samples: list[Sample] = field(default_factory=list)


def default_limits(arm: str) -> list[limits.JointLimits]:
    """The limiter's settings of a simulated arm whose configuration changes none."""
    config = ArmConfig(id=arm, model=arm, port="sim", calibration=Path("unused"))
    soft = [config.soft_limits(joint) for joint in JOINTS]
    return [limits.JointLimits.per_second(**dict(each), period_s=TICK_S) for each in soft]


class Episode:
    """One episode of a world under a behaviour."""

    def __init__(
        self,
        world: World,
        behaviour: Behaviour,
        seed: int,
        plan: Plan,
        rng: np.random.Generator,
    ) -> None:
        self._world = world
        self._behaviour = behaviour
        self._plan = plan
        self._rng = rng
        world.reset(seed)
        self._limits = default_limits(world.arm)
        self._states = [limits.seed(float(value)) for value in world.position()]
        self._applied = world.position()
        ranges = list(zip(world.low.tolist(), world.high.tolist(), strict=True))
        self._chunks = chunks.Plan(ranges)
        self._chunks.begin("policy", self._applied.tolist(), 0)
        self._trail = [self._applied] * (round(PERIOD_TICKS) + 1)  # the last period's targets
        self._offset = np.zeros(6)
        self._burst = (0, np.zeros(6))  # ticks left, units per tick
        self._incoming: tuple[int, chunks.ActionChunk] | None = None
        self._images: dict[str, npt.NDArray[np.uint8]] = {}
        self._next_plan = 0.0  # tick from which the next observation asks for a chunk
        self.outcome = Outcome(seed, False, 0.0)

    def run(self) -> Outcome:
        """Run to success (and a little on) or to the time limit."""
        last = round(self._plan.seconds / TICK_S)
        observe, capture = self._schedule(10.0)
        tick = 0
        while tick < last:
            for camera, when in capture.items():
                if tick == when:
                    self._images[camera] = self._world.image(camera)
            if tick == observe:
                observe, capture = self._observe(tick)
            self._tick(tick)
            tick += 1
            if tick % 10 == 0 and not self.outcome.success and self._world.success():
                self.outcome.success = True
                self.outcome.seconds = tick * TICK_S
                last = min(last, tick + round(self._plan.settle_s / TICK_S))
        return self.outcome

    def _schedule(self, tick: float) -> tuple[int, dict[str, int]]:
        """The next observation's tick and those of its pictures."""
        observe = round(tick) + int(self._rng.integers(0, 3))
        ages = self._rng.integers(*IMAGE_AGE_TICKS, size=8, endpoint=True)
        cameras = self._world.cameras
        return observe, {c: observe - int(a) for c, a in zip(cameras, ages, strict=False)}

    def _observe(self, tick: int) -> tuple[int, dict[str, int]]:
        state = np.concatenate((self._world.position(), self._applied)).astype(np.float32)
        observation = Observation(dict(self._images), state)
        label = None
        if self._plan.label_every is not None:
            label = self._expert()
            self.outcome.samples.append(
                Sample(observation.images, state, label, self._world.pose(), self.outcome.seed)
            )
        if tick >= self._next_plan:
            actions = self._behaviour(observation)
            if actions is None:
                actions = label if label is not None else self._expert()
            latency = int(self._rng.integers(*LATENCY_TICKS, endpoint=True))
            steps = tuple(map(tuple, actions.astype(float).tolist()))
            chunk = chunks.ActionChunk(tick + 1, tick * TICK_NS, PERIOD_NS, steps)
            self._incoming = (tick + latency, chunk)
            run = int(self._rng.integers(*self._plan.execution_horizon, endpoint=True))
            self._next_plan = tick + run * PERIOD_TICKS - 3
        every = self._plan.label_every
        due = tick + every * PERIOD_TICKS if every is not None else self._next_plan + 3
        return self._schedule(due)

    def _expert(self) -> Floats:
        speed = (self._trail[-1] - self._trail[0]) / ((len(self._trail) - 1) * TICK_S)
        return self._world.expert_chunk(self._applied, speed, HORIZON, PERIOD_S)

    def _tick(self, tick: int) -> None:
        now_ns = tick * TICK_NS
        if self._incoming is not None and tick >= self._incoming[0]:
            self._chunks.offer("policy", self._incoming[1], now_ns)
            self._incoming = None
            self._offset[:] = 0.0
        sample = self._chunks.sample(now_ns)
        wanted = self._applied if sample is None else np.asarray(sample.targets)
        wanted = wanted + self._disturbance()
        measured = self._world.position()
        for joint in range(6):
            self._states[joint], _ = limits.limit(
                float(wanted[joint]),
                float(measured[joint]),
                self._states[joint],
                self._limits[joint],
            )
        self._applied = np.array([state.applied for state in self._states])
        self._trail = [*self._trail[1:], self._applied]
        self._world.drive(self._applied)
        self._world.advance(TICK_S)

    def _disturbance(self) -> npt.NDArray[np.float64]:
        noise = self._plan.noise
        if noise is None:
            return self._offset
        left, velocity = self._burst
        if left == 0 and self._rng.random() < noise.per_second * TICK_S:
            left = round(self._rng.uniform(*noise.seconds) / TICK_S)
            velocity = self._rng.normal(size=6) * noise.speed * np.asarray(noise.joints) * TICK_S
        if left > 0:
            left -= 1
            self._offset = self._offset + velocity
        self._burst = (left, velocity)
        return self._offset
