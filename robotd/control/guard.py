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


Past = deque[tuple[int, float]]  # (time, goal), oldest first


class Guard:
    """Checks the goals of all joints of one arm before they are written."""

    def __init__(self, joints: Sequence[HardJoint]) -> None:
        self._joints = tuple(joints)
        # Of the last 250 ms only what can still become the smallest or largest goal of a window.
        self._lows: list[Past] = [deque() for _ in joints]
        self._highs: list[Past] = [deque() for _ in joints]
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
        for past in (*self._lows, *self._highs):
            past.clear()

    def check(self, goals: Sequence[float], now_ns: int) -> Block | None:
        """None when the goals may be written at `now_ns`; otherwise they are not remembered.

        The last goals enter the windows late, with the last time at which they were passed: goals
        that stand still need no work.
        """
        goals = tuple(goals)
        if goals == self.last:
            self._passed_ns = now_ns
            return None
        pairs = zip(self._joints, goals, self.last, strict=True)
        for index, (joint, goal, last) in enumerate(pairs):
            if not joint.lower <= goal <= joint.upper:
                return Block(index, _range_text(joint, goal))
            if not -joint.step <= goal - last <= joint.step:
                return Block(index, _step_text(joint, goal, last))
            spread = self._spread(index, goal, last, now_ns)
            if spread > joint.rate * _WINDOW_S:
                return Block(index, _rate_text(joint, spread))
        self._remember()
        self.last = goals
        self._passed_ns = now_ns
        return None

    def _spread(self, index: int, goal: float, last: float, now_ns: int) -> float:
        """Largest less smallest goal of the window that ends now with this goal."""
        oldest = now_ns - WINDOW_NS
        smallest = largest = goal
        if self._passed_ns >= oldest:
            smallest, largest = (goal, last) if goal < last else (last, goal)
        low, high = self._lows[index], self._highs[index]
        while low and low[0][0] < oldest:
            low.popleft()
        while high and high[0][0] < oldest:
            high.popleft()
        if low and low[0][1] < smallest:
            smallest = low[0][1]
        if high and high[0][1] > largest:
            largest = high[0][1]
        return largest - smallest

    def _remember(self) -> None:
        """Put the last goals into the windows; goals that they make irrelevant are dropped."""
        for low, high, last in zip(self._lows, self._highs, self.last, strict=True):
            entry = (self._passed_ns, last)
            while low and low[-1][1] >= last:
                low.pop()
            low.append(entry)
            while high and high[-1][1] <= last:
                high.pop()
            high.append(entry)


def _range_text(joint: HardJoint, position: float) -> str:
    return (
        f"{joint.name}: {position:.2f} is outside the hard range {joint.lower:g} to {joint.upper:g}"
    )


def _step_text(joint: HardJoint, goal: float, last: float) -> str:
    return (
        f"{joint.name}: goal {goal:.2f} is {abs(goal - last):.2f} units from the one before it; "
        f"the guard allows {joint.step:g}"
    )


def _rate_text(joint: HardJoint, spread: float) -> str:
    return (
        f"{joint.name}: goals spread over {spread:.1f} units within 250 ms; the guard allows "
        f"{joint.rate:g} units/s"
    )
