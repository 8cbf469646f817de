"""What the simulated arm is to do: seeded scenes, and when they count as done.

- `lift`: raise the cube's centre above 6 cm for 0.5 s.
- `reach`: hold the pinch point within 2 cm of the green ball for 0.3 s.

A task watches every physics step; once done it stays done until the next reset.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from robotd.errors import SimError
from robotd.sim.physics import STEP_S, Physics

TIME_LIMIT_S = 12.0
START_NOISE_NORM = 2.0  # half width of the noise on the park pose
CUBE_HALF_M = 0.0125
LIFT_HEIGHT_M = 0.06
LIFT_HOLD_S = 0.5
REACH_DISTANCE_M = 0.02
REACH_HOLD_S = 0.3
# Where things are put, from the pan axis: what each arm reaches.
CUBE_RADIUS_M = {"so101": (0.160, 0.245), "koch": (0.130, 0.205)}
BALL_RADIUS_M = {"so101": (0.18, 0.28), "koch": (0.13, 0.20)}
BALL_HEIGHT_M = (0.05, 0.16)
BEARING_RAD = 0.55
YAW_RAD = math.pi / 4


class Task(Protocol):
    """One task on one `Physics`."""

    name: str
    physics: Physics

    def reset(self, seed: int) -> None:
        """A new episode: the scene of this seed, the arm near its park pose, drives unchanged."""

    @property
    def success(self) -> bool:
        """Whether it has been done since the reset."""

    @property
    def success_s(self) -> float:
        """Simulated time from the reset to success; NaN before."""

    def info(self) -> dict[str, float]:
        """Numbers that describe how far it has come."""


class _Watched:
    """A task that is done once a condition has held for some time."""

    name = ""

    def __init__(self, physics: Physics, hold_s: float) -> None:
        self.physics = physics
        self._hold_steps = round(hold_s / STEP_S)
        self._held = 0
        self._success_s = math.nan
        pan = physics.model.joint(physics.arm.mounts[0].mujoco_joint).id
        self._axis = (float(physics.data.xanchor[pan][0]), float(physics.data.xanchor[pan][1]))
        physics.after_step = self._after_step

    @property
    def success(self) -> bool:
        return not math.isnan(self._success_s)

    @property
    def success_s(self) -> float:
        return self._success_s

    def reset(self, seed: int) -> None:
        self._held = 0
        self._success_s = math.nan
        rng = np.random.default_rng(seed)
        noise = rng.uniform(-START_NOISE_NORM, START_NOISE_NORM, 6)
        pose = [
            value + float(off) for value, off in zip(self.physics.arm.park_norm, noise, strict=True)
        ]
        self.physics.place(self.physics.units.all_rad(pose))
        self._arrange(rng)

    def _at(self, radius_m: float, bearing_rad: float) -> tuple[float, float]:
        x, y = self._axis
        return x + radius_m * math.cos(bearing_rad), y + radius_m * math.sin(bearing_rad)

    def _after_step(self) -> None:
        if not math.isnan(self._success_s):
            return
        self._held = self._held + 1 if self._holds() else 0
        if self._held >= self._hold_steps:
            self._success_s = self.physics.time_s

    def _arrange(self, rng: np.random.Generator) -> None:
        raise NotImplementedError

    def _holds(self) -> bool:
        raise NotImplementedError


class Lift(_Watched):
    """Lift the cube off the table."""

    name = "lift"

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics, LIFT_HOLD_S)
        self._height = int(physics.model.joint("cube").qposadr[0]) + 2

    def _arrange(self, rng: np.random.Generator) -> None:
        radius = rng.uniform(*CUBE_RADIUS_M[self.physics.arm.model])
        x, y = self._at(radius, rng.uniform(-BEARING_RAD, BEARING_RAD))
        self.physics.set_cube(x, y, rng.uniform(-YAW_RAD, YAW_RAD), CUBE_HALF_M)

    def _holds(self) -> bool:
        return bool(self.physics.data.qpos[self._height] > LIFT_HEIGHT_M)

    def info(self) -> dict[str, float]:
        x, y, z = (float(v) for v in self.physics.data.joint("cube").qpos[:3])
        return {"cube_x_m": x, "cube_y_m": y, "cube_z_m": z, "held_s": self._held * STEP_S}


class Reach(_Watched):
    """Bring the pinch point to the ball."""

    name = "reach"

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics, REACH_HOLD_S)
        self._site = int(physics.model.site("pinch").id)

    def _arrange(self, rng: np.random.Generator) -> None:
        radius = rng.uniform(*BALL_RADIUS_M[self.physics.arm.model])
        x, y = self._at(radius, rng.uniform(-BEARING_RAD, BEARING_RAD))
        self.physics.data.mocap_pos[0] = (x, y, rng.uniform(*BALL_HEIGHT_M))

    def distance_m(self) -> float:
        """From the pinch point to the ball's centre."""
        away = self.physics.data.site_xpos[self._site] - self.physics.data.mocap_pos[0]
        return math.sqrt(float(away @ away))

    def _holds(self) -> bool:
        return self.distance_m() < REACH_DISTANCE_M

    def info(self) -> dict[str, float]:
        return {"distance_m": self.distance_m(), "held_s": self._held * STEP_S}


def make_task(physics: Physics) -> Lift | Reach:
    """The task of a physics' scene. Raises SimError if the scene has none."""
    if physics.scene == "lift":
        return Lift(physics)
    if physics.scene == "reach":
        return Reach(physics)
    raise SimError(f"no task for the scene {physics.scene!r}; there are: lift, reach")
