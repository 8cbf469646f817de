"""The way to the park pose: all joints set out and arrive together, gently. Pure."""

import math
from collections.abc import Sequence

from robotd.control.limits import JointLimits


class Ramp:
    """Targets from `start` to `goal`, tick by tick of the nominal period.

    The share of the way is 3 u^2 - 2 u^3 of the time share u: at rest at both ends, with a peak
    velocity of 1.5 and a peak acceleration of 6 times the mean.
    """

    def __init__(
        self,
        start: Sequence[float],
        goal: Sequence[float],
        steps: Sequence[float],
        limits: Sequence[JointLimits],
    ) -> None:
        """`steps`: each joint's largest change in one tick, units; `limits` hold as well."""
        self._start = tuple(start)
        self._way = tuple(b - a for a, b in zip(start, goal, strict=True))
        self.goal = tuple(goal)
        ticks = 1.0
        for way, step, joint in zip(self._way, steps, limits, strict=True):
            slowest = 1.5 * abs(way) / min(step, joint.step)
            ticks = max(ticks, slowest, math.sqrt(6.0 * abs(way) / joint.change))
        self.ticks = math.ceil(1.01 * ticks)  # inside the limits, not on them

    def at(self, tick: int) -> tuple[float, ...]:
        """Targets of a tick, 0 at the start; the goal itself from the last one on."""
        if tick >= self.ticks:
            return self.goal
        u = tick / self.ticks
        share = u * u * (3.0 - 2.0 * u)
        return tuple(a + share * way for a, way in zip(self._start, self._way, strict=True))
