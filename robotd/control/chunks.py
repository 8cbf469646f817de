"""Execution of action chunks: which target belongs to this moment.

Pure. Step i of a chunk is the target for `observed_ns + i * period_ns`; between steps targets are
interpolated linearly, and steps already past when the chunk arrives are skipped. A chunk is taken
whole or not at all. How a newer chunk takes over from the one before it:

- replace: at once;
- cross_fade: linearly within the fade time, starting at what was asked for until then;
- ensemble: every chunk that covers the moment takes part, with the weights exp(-0.01 i), i = 0 for
  the oldest: temporal ensembling as in ACT (Zhao et al. 2023, arXiv:2304.13705, section IV.B).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Takeover = Literal["replace", "cross_fade", "ensemble"]

ENSEMBLE_WEIGHT = 0.01  # ACT's m
_MOST_LAYERS = 32  # chunks that take part at once
_GRACE_NS = 250_000_000  # the first chunk may answer an observation from just before `begin`


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Targets in normalised units; `steps[i]` belongs to `observed_ns + i * period_ns`."""

    sequence: int
    observed_ns: int
    period_ns: int
    steps: tuple[tuple[float, ...], ...]

    @property
    def end_ns(self) -> int:
        """Time of the last step."""
        return self.observed_ns + (len(self.steps) - 1) * self.period_ns

    def place(self, now_ns: int) -> float:
        """Position inside the chunk in steps, from 0 to the last one."""
        place = (now_ns - self.observed_ns) / self.period_ns
        return min(max(place, 0.0), float(len(self.steps) - 1))

    def at(self, now_ns: int) -> Sequence[float]:
        """Targets of a moment; before the first and after the last step those of that step."""
        place = self.place(now_ns)
        index = int(place)
        part = place - index
        here = self.steps[index]
        if part == 0.0:
            return here
        rest = 1.0 - part
        return [a * rest + b * part for a, b in zip(here, self.steps[index + 1], strict=True)]


def unflatten(values: Sequence[float], joints: int) -> tuple[tuple[float, ...], ...]:
    """Whole steps of `joints` targets each from a flat sequence, steps outermost."""
    return tuple(tuple(values[i : i + joints]) for i in range(0, len(values), joints))


def unusable(chunk: ActionChunk, ranges: Sequence[tuple[float, float]], now_ns: int) -> str | None:
    """Why a chunk must not be used, in one word; None when it may. `ranges`: of each joint."""
    if not chunk.steps or any(len(step) != len(ranges) for step in chunk.steps):
        return "joints"
    if chunk.observed_ns > now_ns:
        return "future"
    if chunk.end_ns < now_ns:
        return "stale"
    for step in chunk.steps:
        for value, (lower, upper) in zip(step, ranges, strict=True):
            if not lower <= value <= upper:
                return "range" if math.isfinite(value) else "not_finite"
    return None


@dataclass(frozen=True, slots=True)
class Sample:
    """What the chunks ask for at one moment."""

    targets: Sequence[float]
    sequence: int  # newest chunk in use
    age_ns: int  # since the observation that it answers
    step: float  # position inside it


class Plan:
    """The chunks in use, of one source at a time."""

    def __init__(
        self,
        ranges: Sequence[tuple[float, float]],
        takeover: Takeover = "cross_fade",
        fade_ns: int = 100_000_000,
    ) -> None:
        """`ranges`: lowest and highest target of each joint that a chunk may hold."""
        self._ranges = tuple(ranges)
        self._takeover = takeover
        self._fade_ns = fade_ns if takeover == "cross_fade" else 0
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.begin("", (), 0)

    def begin(self, source: str, present: Sequence[float], now_ns: int) -> None:
        """Follow this source's chunks from now on, starting at the present targets."""
        self._source = source
        self._after_ns = now_ns - _GRACE_NS  # observations before that are of another time
        self.rest(present)

    def rest(self, present: Sequence[float]) -> None:
        """Nothing is left to follow: stand at these targets until the next chunk arrives.

        Its sequence may then start anew (the sender may have been restarted), its observation
        must be later than those before.
        """
        self._base = tuple(present)
        self._layers: list[tuple[int, ActionChunk]] = []  # (arrival, chunk), oldest first
        self._newest = 0

    def offer(self, source: str, chunk: ActionChunk, now_ns: int) -> str | None:
        """Take a chunk, or say in one word why not (which is counted)."""
        reason = self._objection(source, chunk, now_ns)
        if reason is not None:
            self.rejected[reason] += 1
            return reason
        if self._takeover == "replace":
            self._layers.clear()
        elif len(self._layers) == _MOST_LAYERS:
            self._drop_oldest(now_ns)
        self._layers.append((now_ns, chunk))
        self._newest = chunk.sequence
        self._after_ns = chunk.observed_ns
        self.accepted += 1
        return None

    def _objection(self, source: str, chunk: ActionChunk, now_ns: int) -> str | None:
        if source != self._source:
            return "source"
        if chunk.sequence <= self._newest or chunk.observed_ns < self._after_ns:
            return "old"
        return unusable(chunk, self._ranges, now_ns)

    def _drop_oldest(self, now_ns: int) -> None:
        if self._takeover == "cross_fade":
            self._base = tuple(self._faded(now_ns))  # what is asked for now stands for them
            self._layers.clear()
        else:
            del self._layers[0]

    def sample(self, now_ns: int) -> Sample | None:
        """What to ask for now; None when no chunk covers this moment (see `rest`)."""
        layers = self._layers
        if self._takeover == "ensemble":
            while layers and layers[0][1].end_ns < now_ns:
                del layers[0]
        if not layers or layers[-1][1].end_ns < now_ns:
            return None
        newest = layers[-1][1]
        targets = self._ensembled(now_ns) if self._takeover == "ensemble" else self._faded(now_ns)
        age = max(0, now_ns - newest.observed_ns)
        return Sample(targets, newest.sequence, age, newest.place(now_ns))

    def _faded(self, now_ns: int) -> Sequence[float]:
        """Each layer faded in over those before it; layers that are covered fully are dropped."""
        layers = self._layers
        first = len(layers) - 1
        while first > 0 and now_ns - layers[first][0] < self._fade_ns:
            first -= 1
        del layers[:first]
        value: Sequence[float] = self._base
        for arrival, chunk in layers:
            share = (now_ns - arrival) / self._fade_ns if self._fade_ns else 1.0
            upper = chunk.at(now_ns)
            if share >= 1.0:
                value = upper
            else:
                share = max(share, 0.0)
                value = [a + (b - a) * share for a, b in zip(value, upper, strict=True)]
        return value

    def _ensembled(self, now_ns: int) -> Sequence[float]:
        """Weighted mean of the chunks that cover this moment, the oldest first."""
        covering = [chunk for _, chunk in self._layers if chunk.end_ns >= now_ns]
        if len(covering) == 1:
            return covering[0].at(now_ns)
        total = 0.0
        sums = [0.0] * len(self._ranges)
        for index, chunk in enumerate(covering):
            weight = math.exp(-ENSEMBLE_WEIGHT * index)
            total += weight
            sums = [a + weight * b for a, b in zip(sums, chunk.at(now_ns), strict=True)]
        return [value / total for value in sums]
