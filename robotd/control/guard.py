"""The guard: blocks goals that the limiter should never have let through.

Separate from the limiter on purpose: other code, other configuration (hard limits), and real time
where the limiter counts nominal ticks. It never shapes a goal; a goal is passed or blocked, and a
block is a fault. It knows hard positions, a hard step between two goals, and the distance that a
goal may travel within any 250 ms (as in opendbc's rate checks: the spread between the smallest and
the largest goal of the window).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_NS = 250_000_000
_WINDOW_S = WINDOW_NS * 1e-9


@dataclass(frozen=True, slots=True)
class HardJoint:
    """Hard limits of one joint in normalised units."""

    name: str
    lower: float
    upper: float
    step: float  # between two goals
    rate: float  # units/s over any 250 ms


@dataclass(frozen=True, slots=True)
class Block:
    """Why a goal was blocked."""

    joint: int
    reason: str


class Guard:
    """Checks the goals of all joints of one arm before they are written."""

    def __init__(self, joints: Sequence[HardJoint]) -> None:
        self._joints = tuple(joints)
        self._spreads = [_Spread() for _ in joints]
        self._passed_ns = 0
        self.last: tuple[float, ...] = ()  # the last goals that passed

    def outside(self, positions: Sequence[float]) -> Block | None:
        """The first position that is not inside its hard range (or is no number)."""
        for index, (joint, position) in enumerate(zip(self._joints, positions, strict=True)):
            if not joint.lower <= position <= joint.upper:
                return Block(index, _range_text(joint, position))
        return None

    def start(self, positions: Sequence[float], now_ns: int) -> None:
        """Begin with the goals that the arm was engaged at."""
        self.last = tuple(positions)
        self._passed_ns = now_ns
        for spread in self._spreads:
            spread.clear()

    def check(self, goals: Sequence[float], now_ns: int) -> Block | None:
        """None when the goals may be written at `now_ns`; otherwise nothing is remembered.

        The last goals enter the windows late, with the last time at which they were passed: goals
        that stand still need no work.
        """
        goals = tuple(goals)
        if goals == self.last:
            self._passed_ns = now_ns
            return None
        for index, (joint, goal, last) in enumerate(
            zip(self._joints, goals, self.last, strict=True)
        ):
            if not joint.lower <= goal <= joint.upper:
                return Block(index, _range_text(joint, goal))
            if not -joint.step <= goal - last <= joint.step:
                return Block(
                    index,
                    f"{joint.name}: goal {goal:.2f} is {abs(goal - last):.2f} units from the one "
                    f"before it; the guard allows {joint.step:g}",
                )
            low, high = self._spreads[index].including(now_ns, self._passed_ns, last, goal)
            if high - low > joint.rate * _WINDOW_S:
                return Block(
                    index,
                    f"{joint.name}: goals spread over {high - low:.1f} units within 250 ms; the "
                    f"guard allows {joint.rate:g} units/s",
                )
        for spread, last in zip(self._spreads, self.last, strict=True):
            spread.add(self._passed_ns, last)
        self.last = goals
        self._passed_ns = now_ns
        return None


def _range_text(joint: HardJoint, position: float) -> str:
    return (
        f"{joint.name}: {position:.2f} is outside the hard range {joint.lower:g} to {joint.upper:g}"
    )


class _Spread:
    """Smallest and largest goal of the last 250 ms: two queues of candidates, oldest first."""

    __slots__ = ("_high", "_low")

    def __init__(self) -> None:
        self._low: deque[tuple[int, float]] = deque()
        self._high: deque[tuple[int, float]] = deque()

    def clear(self) -> None:
        """Forget all goals."""
        self._low.clear()
        self._high.clear()

    def including(self, now_ns: int, last_ns: int, last: float, goal: float) -> tuple[float, float]:
        """Smallest and largest of the window ending now, with the last goal (if in it) and a new.

        Neither of these is added.
        """
        oldest = now_ns - WINDOW_NS
        low, high = self._low, self._high
        while low and low[0][0] < oldest:
            low.popleft()
        while high and high[0][0] < oldest:
            high.popleft()
        smallest = largest = goal
        if last_ns >= oldest:
            smallest, largest = (goal, last) if goal < last else (last, goal)
        if low and low[0][1] < smallest:
            smallest = low[0][1]
        if high and high[0][1] > largest:
            largest = high[0][1]
        return smallest, largest

    def add(self, now_ns: int, value: float) -> None:
        """Remember a goal; candidates that it makes irrelevant are dropped."""
        low, high = self._low, self._high
        while low and low[-1][1] >= value:
            low.pop()
        low.append((now_ns, value))
        while high and high[-1][1] <= value:
            high.pop()
        high.append((now_ns, value))
