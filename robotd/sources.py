"""Baselines that move the arm in a policy's place: they send chunks through the same inbox."""

from typing import Protocol

import numpy as np

from robotd.sim.expert import Expert
from robotd.sim.physics import Physics, State
from robotd.sim.tasks import make_task

PERIOD_S = 1 / 30
HORIZON = 16  # steps in a chunk
EXECUTED = 12  # steps run before the next one
_MEAN_CUBE = {"so101": (0.2025, 0.0), "koch": (0.1675, 0.0)}  # radius from the pan axis, bearing


class ChunkSource(Protocol):
    """Who moves the arm in mode POLICY when it is not the configured policy."""

    name: str

    def begin(self, seed: int) -> None:
        """A new episode starts."""
        ...

    def chunk(self, elapsed_s: float, state: State) -> list[tuple[float, ...]] | None:
        """Targets from now on (steps x joints, normalised); None: nothing new to send."""
        ...


class _EveryFewSteps:
    """Asks for a new chunk each time the last one's share has been executed."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def begin(self, seed: int) -> None:
        self._next_s = 0.0

    def due(self, elapsed_s: float) -> bool:
        """True once every EXECUTED steps."""
        if elapsed_s < self._next_s:
            return False
        self._next_s = elapsed_s + EXECUTED * PERIOD_S
        return True


class ExpertSource(_EveryFewSteps):
    """The scripted expert, who sees the true state of the scene: what the task allows at best."""

    name = "expert"

    def __init__(self, model: str, scene: str = "lift") -> None:
        super().__init__()
        self._physics = Physics(model, scene)
        self._expert = Expert(self._physics)
        self._plan: list[tuple[float, ...]] = []

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._plan = []

    def chunk(self, elapsed_s: float, state: State) -> list[tuple[float, ...]] | None:
        if not self.due(elapsed_s):
            return None
        self._physics.restore(state)
        if self._plan:
            now, last = (np.array(self._plan[i]) for i in (EXECUTED - 1, EXECUTED - 2))
            self._expert.start(tuple(now), tuple((now - last) / PERIOD_S))
        else:
            self._expert.start()
        self._plan = self._expert.plan(HORIZON, PERIOD_S)
        return self._plan


class BlindSource(_EveryFewSteps):
    """One fixed motion, planned for a cube in the middle of where cubes lie: no eyes at all."""

    name = "blind"

    def __init__(self, model: str, seconds: float = 8.0) -> None:
        super().__init__()
        physics = Physics(model, "lift")
        task = make_task(physics)
        task.reset(0)
        radius, bearing = _MEAN_CUBE[model]
        x, y = task.at(radius, bearing)
        physics.set_cube(x, y, 0.0)
        physics.command(physics.measured_norm())
        expert = Expert(physics)
        self._script: list[tuple[float, ...]] = []
        for _ in range(round(seconds / PERIOD_S)):
            self._script.append(expert.act(PERIOD_S))
            physics.command(self._script[-1])
            physics.advance_by(PERIOD_S)

    def chunk(self, elapsed_s: float, state: State) -> list[tuple[float, ...]] | None:
        if not self.due(elapsed_s):
            return None
        start = min(round(elapsed_s / PERIOD_S), len(self._script) - 1)
        steps = self._script[start : start + HORIZON]
        return steps + [self._script[-1]] * (HORIZON - len(steps))
