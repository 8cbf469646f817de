"""Velocities where the tick's block does not hold them: the slope of the positions."""

import math
from collections import deque
from collections.abc import Sequence

_SPAN_NS = 20_000_000  # one count in this time is 2 or 3 units/s
_MOST_READS = 64

type _Read = tuple[int, Sequence[int | None], Sequence[int]]  # when, errors, positions


class Slope:
    """Positions of one chain's last reads, those of the last 20 ms."""

    def __init__(self, steps: Sequence[float]) -> None:
        """`steps`: counts/s of one step of each servo's velocity register."""
        self._steps = tuple(steps)
        self._seen: deque[_Read] = deque(maxlen=_MOST_READS)

    def reset(self) -> None:
        """Forget what was seen, for it may be of another time."""
        self._seen.clear()

    def velocities(
        self, now_ns: int, errors: Sequence[int | None], positions: Sequence[int]
    ) -> list[float]:
        """Mean velocity since the oldest of these reads, in register steps.

        NaN where there is no earlier position. `errors`: None for a servo that did not answer.
        """
        seen = self._seen
        seen.append((now_ns, errors, positions))
        while len(seen) > 2 and now_ns - seen[1][0] >= _SPAN_NS:
            seen.popleft()
        then_ns, errors_then, then = seen[0]
        span_s = (now_ns - then_ns) * 1e-9
        if span_s <= 0:
            return [math.nan] * len(self._steps)
        return [
            math.nan if error is None else (position - before) / span_s / step
            for error, position, before, step in zip(
                errors_then, positions, then, self._steps, strict=True
            )
        ]
