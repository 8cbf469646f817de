"""Baselines that move the arm in a policy's place: they send chunks through the same inbox."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from robotd.errors import SimError
from robotd.sim.expert import Expert
from robotd.sim.physics import STEP_S, Physics
from robotd.sim.tasks import CUBE_RADIUS_M, make_task

PERIOD_NS = round(1e9 / 30)  # between two steps of a chunk
PERIOD_S = PERIOD_NS / 1e9
HORIZON = 16  # steps in a chunk
EXECUTED = 12  # steps run before the next one


TrueState = Callable[[], Sequence[float]]  # the integration vector of `Physics.state`


class ChunkSource(Protocol):
    """Who moves the arm in mode POLICY when it is not the configured policy."""

    name: str

    def begin(self, seed: int) -> None:
        """A new episode starts."""
        ...

    def chunk(self, elapsed_s: float, state: TrueState) -> list[tuple[float, ...]] | None:
        """Targets from now on (steps x joints, normalised); None: nothing new to send.

        `state` gives the physics' true state when it is called: only the expert looks at it.
        """
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

    def chunk(self, elapsed_s: float, state: TrueState) -> list[tuple[float, ...]] | None:
        if not self.due(elapsed_s):
            return None
        here = self._physics.state()
        vector = np.asarray(state(), np.float64)
        if vector.shape != here.integration.shape:
            raise SimError(f"the simulator's state has {vector.size} numbers, not this scene's")
        self._physics.restore(replace(here, integration=vector))
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
        pan = physics.model.joint(physics.arm.mounts[0].mujoco_joint).id
        axis = physics.data.xanchor[pan]
        physics.set_cube(float(axis[0]) + sum(CUBE_RADIUS_M[model]) / 2, float(axis[1]), 0.0)
        physics.command(physics.measured_norm())
        expert = Expert(physics)
        self._script: list[tuple[float, ...]] = []
        for number in range(round(seconds / PERIOD_S)):
            self._script.append(expert.act(PERIOD_S))
            physics.command(self._script[-1])
            while physics.time_s < (number + 1) * PERIOD_S - STEP_S / 2:
                physics.step()

    def chunk(self, elapsed_s: float, state: TrueState) -> list[tuple[float, ...]] | None:
        if not self.due(elapsed_s):
            return None
        start = min(round(elapsed_s / PERIOD_S), len(self._script) - 1)
        steps = self._script[start : start + HORIZON]
        return steps + [self._script[-1]] * (HORIZON - len(steps))
