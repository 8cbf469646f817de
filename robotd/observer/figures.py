"""Latencies of the last chunks, as `robotd status` shows them."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robotd.ipc.ring import TickReport
from robotd.observer.detokenize import CheckedChunk

_WINDOW = 1000  # chunks


def _window() -> deque[int]:
    return deque(maxlen=_WINDOW)


def _spread(values_ns: deque[int]) -> dict[str, float]:
    p50, p99 = np.percentile(np.asarray(values_ns, np.float64) / 1e6, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


@dataclass
class Latencies:
    """Times from an observation (its tick's deadline) to what came of it, nanoseconds.

    `sent`: chunk handed to control; `inference`: the worker's own figure; `applied`: the first
    tick that followed the chunk has written its goals; `own`: applied less inference, which is
    what the daemon adds to the model.
    """

    sent: deque[int] = field(default_factory=_window)
    inference: deque[int] = field(default_factory=_window)
    applied: deque[int] = field(default_factory=_window)
    own: deque[int] = field(default_factory=_window)
    _pending: tuple[int, int, int] | None = None  # sequence, observed, inference

    def chunk_sent(self, chunk: CheckedChunk, inference_ns: int, now_ns: int) -> None:
        """A chunk has been handed to control."""
        self.sent.append(now_ns - chunk.observed_ns)
        self.inference.append(inference_ns)
        self._pending = (chunk.sequence, chunk.observed_ns, inference_ns)

    @property
    def awaits_tick(self) -> bool:
        """True while the tick that first follows the last chunk has not been seen."""
        return self._pending is not None

    def tick_seen(self, report: TickReport) -> None:
        """To be called for every tick, in order, while `awaits_tick`."""
        if self._pending is None or report.chunk_sequence != self._pending[0]:
            return
        _, observed_ns, inference_ns = self._pending
        self._pending = None
        applied_ns = report.deadline_ns + report.done_late_ns - observed_ns
        self.applied.append(applied_ns)
        self.own.append(applied_ns - inference_ns)

    def forget(self) -> None:
        """The last chunk will not be applied."""
        self._pending = None

    def to_dict(self) -> dict[str, Any]:
        """Percentiles in milliseconds; empty before the first chunk."""
        if not self.sent:
            return {}
        found: dict[str, Any] = {**_spread(self.sent), "chunks": len(self.sent)}
        for name, values in (
            ("inference", self.inference),
            ("applied", self.applied),
            ("applied_less_inference", self.own),
        ):
            if values:
                found[name] = _spread(values)
        return found
