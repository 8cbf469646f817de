"""What the simulated servos turn: joints that are driven, sensed and stepped in time.

A `Mechanism` is the mechanical world behind a chain of emulated servos. The emulator tells it every
joint's drive, asks it for the joint's state, and advances it; joints are numbered 0..5 in robotd's
order and measured in radians of the mechanism (a servo's mounting, `robotd.sim.arms`, turns these
into encoder counts).
`IdealMechanism` needs no MuJoCo; `robotd.sim.physics.Physics` is the real thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

STEP_NS = 2_000_000  # one step of the ideal joints; the same as the physics' step


@dataclass(slots=True)
class Drive:
    """What a servo's controller asks of its motor."""

    torque_on: bool = False
    goal_rad: float = 0.0
    stiffness: float = 1.0  # position gain register / the gain as delivered
    torque_limit: float = 1.0  # fraction of the maximum torque, 0..1
    velocity_limit_rad_s: float = math.inf


@dataclass(slots=True)
class Sensed:
    """A joint's true state. `torque` is the motor's, as a signed fraction of its stall torque."""

    position_rad: float
    velocity_rad_s: float
    torque: float


class Mechanism(Protocol):
    """The joints of one arm, in robotd's order."""

    def drive(self, joint: int, drive: Drive) -> None:
        """Set the drive of a joint from now on (the values are copied)."""

    def sense(self, joint: int) -> Sensed:
        """The joint's state at the time reached."""

    def advance(self, to_ns: int) -> None:
        """Step up to a time. The first call sets the origin; an earlier time changes nothing."""


class IdealMechanism:
    """Joints without weight that follow their goal with a first-order lag, between hard stops."""

    def __init__(
        self,
        lower_rad: Sequence[float],
        upper_rad: Sequence[float],
        max_speed_rad_s: float = 6.0,
        lag_s: float = 0.03,
        start_rad: Sequence[float] | None = None,
    ) -> None:
        """`start_rad` is where the joints stand at first: the middle of the range unless given."""
        count = len(lower_rad)
        self.lower = tuple(lower_rad)
        self.upper = tuple(upper_rad)
        self.max_speed = max_speed_rad_s
        self.lag_s = lag_s
        middle = [(low + high) / 2 for low, high in zip(lower_rad, upper_rad, strict=True)]
        self.position = list(start_rad) if start_rad is not None else middle
        self._velocity = [0.0] * count
        self._torque = [0.0] * count
        self._drives = [Drive() for _ in range(count)]
        self._hand: dict[int, float] = {}
        self._now_ns: int | None = None

    def drive(self, joint: int, drive: Drive) -> None:
        mine = self._drives[joint]
        mine.torque_on = drive.torque_on
        mine.goal_rad = drive.goal_rad
        mine.stiffness = drive.stiffness
        mine.torque_limit = drive.torque_limit
        mine.velocity_limit_rad_s = drive.velocity_limit_rad_s

    def sense(self, joint: int) -> Sensed:
        return Sensed(self.position[joint], self._velocity[joint], self._torque[joint])

    def hand(self, joint_targets: Mapping[int, float] | None) -> None:
        """Pull unpowered joints towards positions in rad, as a hand would; None lets go of all."""
        self._hand = dict(joint_targets or {})

    def advance(self, to_ns: int) -> None:
        if self._now_ns is None:
            self._now_ns = to_ns
            return
        while to_ns - self._now_ns >= STEP_NS:
            self._now_ns += STEP_NS
            for joint in range(len(self.position)):
                self._step(joint, STEP_NS * 1e-9)

    def _step(self, joint: int, dt_s: float) -> None:
        drive = self._drives[joint]
        at = self.position[joint]
        speed = self.max_speed
        if drive.torque_on:
            goal = drive.goal_rad
            speed = min(speed, drive.velocity_limit_rad_s) * (drive.torque_limit > 0.0)
            limit = drive.torque_limit
            self._torque[joint] = max(-limit, min(limit, 5.0 * drive.stiffness * (goal - at)))
        else:
            goal = self._hand.get(joint, at)
            self._torque[joint] = 0.0
        step = (goal - at) * (1.0 - math.exp(-dt_s / self.lag_s))
        step = max(-speed * dt_s, min(speed * dt_s, step))
        moved = max(self.lower[joint], min(self.upper[joint], at + step))
        self._velocity[joint] = (moved - at) / dt_s
        self.position[joint] = moved
