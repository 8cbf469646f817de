"""The limiter: shapes one joint's target so that the joint can always be stopped inside its range.

Pure. Lengths are normalised units; velocities and accelerations are counted per nominal period
(units per tick, units per tick squared), so a late tick never allows a larger step. `limit` looks
at the target asked for, the last applied target and its last step, and the measured position:

- a target already inside the envelope is returned unchanged, bit for bit, as long as the ones
  before it were;
- anything else is approached as fast as the limits allow, without overshoot (a trapezoid in
  velocity), also when the target itself moves, until the joint is on the stream again;
- a target that is no finite number makes the joint brake.

Position, velocity and acceleration hold in every tick, in this order of precedence where rounding
makes them disagree. The following bound (distance of target and measured position) gives way to
them: when the measured position jumps, the target returns as fast as it may.

Braking in discrete time: a joint that moves `step` in this tick and `a` less in each following one
travels (n + 1) step - a n (n + 1) / 2 in all, with n = floor(step / a).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from robotd.ipc.ring import Limited

# What the limiter shapes keeps a distance from the limits that is larger than any rounding, so
# that the limits hold exactly when they are recomputed from the applied targets.
_SHAPE = 1 - 1e-6
_BRAKE = 1 - 1e-4  # the braking curve needs less than the shaped acceleration, so it can be held
_SMALLEST_CHANGE = 1e-7  # units per tick^2; below it rounding would eat the distance

_NOT_FINITE = Limited.NOT_FINITE.value
_POSITION = Limited.POSITION.value
_VELOCITY = Limited.VELOCITY.value
_ACCELERATION = Limited.ACCELERATION.value
_FOLLOWING = Limited.FOLLOWING.value


@dataclass(frozen=True, slots=True)
class JointLimits:
    """Limits of one joint, per tick of the nominal period."""

    lower: float  # units
    upper: float
    step: float  # largest change of the target in one tick, units
    change: float  # largest change of that step from tick to tick, units
    following: float  # largest distance of target and measured position, units
    braking: float = field(init=False)  # travel from the largest step to rest, units

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.lower + self.upper)
            and self.lower < self.upper
            and 0.0 < self.step < math.inf
            and self.change >= max(_SMALLEST_CHANGE, 1e-5 * self.step)
            and self.following > 0.0
        ):
            raise ValueError(
                f"limits that cannot be held: {self.lower} to {self.upper}, {self.step} and "
                f"{self.change} per tick, following {self.following}"
            )
        object.__setattr__(self, "braking", braking_travel(self.step, self.change * _BRAKE))

    @classmethod
    def per_second(
        cls,
        position: tuple[float, float],
        velocity: float,
        acceleration: float,
        following: float,
        period_s: float,
    ) -> "JointLimits":
        """From units/s and units/s^2 and the nominal period."""
        change = acceleration * period_s**2
        lower, upper = position
        return cls(float(lower), float(upper), velocity * period_s, change, following)


class JointState(NamedTuple):
    """What the limiter remembers of a joint."""

    applied: float  # last applied target
    step: float  # its last change
    target: float  # last target asked for, inside range and following bound
    drift: float  # that target's last change


def seed(position: float) -> JointState:
    """State of a joint at rest at its measured position, which may lie outside its range."""
    return JointState(position, 0.0, position, 0.0)


def braking_travel(step: float, change: float) -> float:
    """Travel of this and all following ticks when `step` >= 0 shrinks by `change` per tick."""
    n = int(step / change)
    return (n + 1) * step - change * n * (n + 1) / 2


def fastest_step(distance: float, change: float) -> float:
    """Largest step of this tick whose braking travel is within `distance`; 0 for none at all."""
    if distance <= change:
        return distance if distance > 0.0 else 0.0
    n = int((math.sqrt(1.0 + 8.0 * distance / change) - 1.0) / 2.0)
    return (distance + change * n * (n + 1) / 2) / (n + 1)


def stopping_point(state: JointState, limits: JointLimits) -> float:
    """Where the applied target comes to rest when it brakes from now on."""
    change = limits.change * _BRAKE
    if state.step > change:
        return min(state.applied + braking_travel(state.step - change, change), limits.upper)
    if state.step < -change:
        return max(state.applied - braking_travel(-state.step - change, change), limits.lower)
    return state.applied


def limit(
    asked: float, measured: float, state: JointState, limits: JointLimits
) -> tuple[JointState, int]:
    """The next applied target (in the new state) and the bits of `Limited` that shaped it."""
    applied, _, last_target, last_drift = state
    if _inside(asked, measured, state, limits):
        return JointState(asked, asked - applied, asked, asked - last_target), 0
    target, bits = _aim(asked, measured, state, limits)
    # A target that the joint itself drags along, or that stands for none, does not move.
    drift = 0.0 if bits & (_NOT_FINITE | _FOLLOWING) else target - last_target
    step, shaped = _shape(target - applied, _steady(drift, last_drift), state, limits)
    if step == target - applied:
        reached = target
    else:
        # A joint outside its range may stay where it is or come back, never go further out.
        reached = min(max(applied + step, min(limits.lower, applied)), max(limits.upper, applied))
    return JointState(reached, reached - applied, target, drift), bits | shaped


def _inside(asked: float, measured: float, state: JointState, limits: JointLimits) -> bool:
    """Whether the joint is on the stream, and its target breaks no limit and can be braked from."""
    applied, last_step, target, _ = state
    step = asked - applied
    if applied != target or not (
        limits.lower <= asked <= limits.upper
        and -limits.step <= step <= limits.step
        and -limits.change <= step - last_step <= limits.change
        and -limits.following <= asked - measured <= limits.following
    ):
        return False
    room = limits.upper - applied if step > 0.0 else applied - limits.lower
    return room >= limits.braking or abs(step) <= fastest_step(room, limits.change * _BRAKE)


def _aim(
    asked: float, measured: float, state: JointState, limits: JointLimits
) -> tuple[float, int]:
    """The target brought into the range and the following bound, and why it was changed."""
    if not math.isfinite(asked):
        return stopping_point(state, limits), _NOT_FINITE
    target = asked
    if not math.isfinite(measured):
        target = stopping_point(state, limits)  # following cannot be judged: do not go on
    elif abs(asked - measured) > limits.following:
        target = measured + math.copysign(limits.following, asked - measured)
    bits = 0 if target == asked else _FOLLOWING
    lower, upper = min(limits.lower, state.applied), max(limits.upper, state.applied)
    if not lower <= asked <= upper:
        bits |= _POSITION
    return min(max(target, lower), upper), bits


def _steady(drift: float, last_drift: float) -> float:
    """How fast the target itself moves, per tick: the smaller of its last two changes.

    A single jump counts as none, so that the joint does not run past a target that jumped.
    """
    if drift > 0.0 and last_drift > 0.0:
        return min(drift, last_drift)
    if drift < 0.0 and last_drift < 0.0:
        return max(drift, last_drift)
    return 0.0


def _shape(
    distance: float, drift: float, state: JointState, limits: JointLimits
) -> tuple[float, int]:
    """The step towards a target `distance` away that moves `drift` per tick, and what cut it.

    Seen from the moving target the joint brakes to rest on it; the step that would arrive now is
    returned exactly.
    """
    brake = limits.change * _BRAKE
    gap = distance - drift
    closing = fastest_step(abs(gap), brake)
    step = distance if closing == abs(gap) else drift + math.copysign(closing, gap)
    room = limits.upper - state.applied if step > 0.0 else state.applied - limits.lower
    if room < limits.braking:
        most = fastest_step(room, brake)
        step = min(max(step, -most), most)
    most, change = limits.step * _SHAPE, limits.change * _SHAPE
    low = max(state.step - change, min(-most, state.step + change))
    high = min(state.step + change, max(most, state.step - change))
    step = min(max(step, low), high)
    if step == distance:
        return step, 0
    return step, _VELOCITY if abs(step) >= most else _ACCELERATION
