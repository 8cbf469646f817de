"""When to ask the policy, with what, and whether to believe the answer.

No clock, no socket, no thread: every time is an argument, so the same code serves the observer
process and the stepped evaluation. One request is open at a time; the sequence is

    if core.wants_request(report, now): observation = core.observation(report, pictures, now)
    ... the policy answers ...
    chunk = core.on_reply(reply, report, now)      # ChunkError: counted, asked again a little later

In mode POLICY only. "horizon" asks so early that the answer arrives when the execution horizon of
the chunk in use ends; "continuous" asks once per step.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from robotd.config import PolicyConfig
from robotd.errors import ChunkError
from robotd.ipc.ring import Mode, TickReport
from robotd.observer.detokenize import CheckedChunk, ChunkDecoder, Reply
from robotd.observer.observation import Missing, Observation, Picture, assemble
from robotd.policy.bundle import Bundle
from robotd.policy.session import Detokenizer

_MARGIN_NS = 5_000_000  # arrive this much before the horizon ends: about one control period
_UNUSED_NS = 200_000_000  # a chunk that control does not take up within this was not wanted
_OLD_TICK_NS = 100_000_000  # a tick older than this says nothing about the present
_WINDOW = 20  # latencies remembered for the estimate
_MOST_DOUBLINGS = 4


@dataclass
class Counts:
    """What happened so far; `rejected` by reason of robotd.observer.detokenize, `failed` others."""

    requests: int = 0
    chunks: int = 0
    late: int = 0  # answers to requests that were no longer open
    unused: int = 0  # chunks that control did not take up
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # timeout, worker's error, not sent
    skipped: Counter[str] = field(default_factory=Counter)  # no observation possible


class ObserverCore:
    """The decisions of the observer for one bundle."""

    def __init__(
        self,
        config: PolicyConfig,
        bundle: Bundle,
        detokenizer: Detokenizer,
        first_sequence: int = 1,
    ) -> None:
        """`first_sequence` must be larger than any that control has seen from this bundle."""
        self._config = config
        self._manifest = bundle.manifest
        self._decoder = ChunkDecoder(bundle, detokenizer, config.max_first_step)
        self._steps = config.execution_horizon or bundle.manifest.execution_horizon
        self._steps = min(self._steps, bundle.manifest.action_horizon)
        self._max_age_ns = round(config.max_frame_age_s * 1e9)
        self._timeout_ns = round(config.request_timeout_s * 1e9)
        self._next_sequence = first_sequence
        self._latencies: deque[int] = deque(maxlen=_WINDOW)
        self._latest: CheckedChunk | None = None
        self._accepted_ns = 0
        self._in_use = False
        self._failures = 0
        self._opened_ns = 0
        self.open: Observation | None = None  # the request that awaits its answer
        self.next_request_ns = 0  # not before this time
        self.counts = Counts()
        self.trouble = ""  # why the last attempt failed, in words; empty after a good chunk

    @property
    def latency_ns(self) -> int:
        """Expected time from an observation to its checked chunk: the slow end of the last ones.

        0 until one has been measured.
        """
        ordered = sorted(self._latencies)
        return ordered[(len(ordered) * 9) // 10] if ordered else 0

    def wants_request(self, report: TickReport, now_ns: int) -> bool:
        """True when this tick should be observed and sent to the policy now."""
        if report.mode is not Mode.POLICY:
            self._stand_by()
            return False
        self._follow(report, now_ns)
        fresh = now_ns - report.deadline_ns < _OLD_TICK_NS
        return self.open is None and fresh and now_ns >= self.next_request_ns

    def observation(
        self, report: TickReport, pictures: Mapping[str, Picture], now_ns: int
    ) -> Observation | None:
        """Open a request for this tick; None, counted in `skipped`, when something is missing."""
        made = assemble(self._manifest, self._next_sequence, report, pictures, self._max_age_ns)
        if isinstance(made, Missing):
            self.counts.skipped[made.reason] += 1
            self.trouble = made.text
            return None
        self._next_sequence += 1
        self._opened_ns = now_ns
        self.open = made
        self.counts.requests += 1
        return made

    def on_reply(self, reply: Reply, report: TickReport, now_ns: int) -> CheckedChunk:
        """The chunk to hand to control. ChunkError when the answer must not be used.

        `report` is the newest tick: the chunk is compared with where the arm is now. An answer to
        no open request changes nothing; any other bad one closes the request.
        """
        asked = self.open
        if asked is None or reply.sequence != asked.sequence:
            self.counts.late += 1
            raise ChunkError("wrong_sequence", f"answer {reply.sequence} came too late")
        try:
            chunk = self._decoder.decode(asked, reply, report, now_ns)
        except ChunkError as error:
            self.counts.rejected[error.reason] += 1
            self._retry_later(f"chunk rejected: {error}", now_ns)
            raise
        self.open = None
        self.counts.unused += self._latest is not None and not self._in_use
        self._latencies.append(max(0, now_ns - asked.observed_ns))
        self._latest, self._accepted_ns, self._in_use = chunk, now_ns, False
        self.counts.chunks += 1
        self.trouble = ""
        self._plan(chunk)
        return chunk

    def expired(self, now_ns: int) -> bool:
        """True when the open request has waited longer than `request_timeout_s`."""
        return self.open is not None and now_ns - self._opened_ns >= self._timeout_ns

    def fail(self, reason: str, text: str, now_ns: int) -> None:
        """The open request will not be answered, or its chunk could not be delivered."""
        self.counts.failed[reason] += 1
        self._latest = None
        self._retry_later(text, now_ns)

    def _plan(self, chunk: CheckedChunk) -> None:
        """Time of the next request after a good chunk."""
        if self._config.replan == "continuous":
            self.next_request_ns = chunk.observed_ns + chunk.period_ns
            return
        ends_ns = chunk.observed_ns + self._steps * chunk.period_ns
        self.next_request_ns = ends_ns - self.latency_ns - _MARGIN_NS

    def _follow(self, report: TickReport, now_ns: int) -> None:
        """See in the ring whether control uses the chunk that it was sent."""
        if self._latest is None:
            return
        if report.chunk_sequence == self._latest.sequence:
            if not self._in_use:
                self._in_use = True
                self._failures = 0
        elif self._in_use:  # dropped since: control restarted, or left POLICY and came back
            self._latest = None
            self.next_request_ns = now_ns
        elif now_ns - self._accepted_ns > _UNUSED_NS:
            self.counts.unused += 1
            self._latest = None
            self._retry_later("control did not take the chunk", now_ns)

    def _retry_later(self, text: str, now_ns: int) -> None:
        """Close the open request and wait: one step, doubled with every failure in a row."""
        self.open = None
        self.trouble = text
        doublings = min(self._failures, _MOST_DOUBLINGS)
        self._failures += 1
        self.next_request_ns = now_ns + (self._manifest.step_period_ns << doublings)

    def _stand_by(self) -> None:
        """Not in POLICY: forget the open request and the chunk; begin afresh next time."""
        self.open = None
        self._latest = None
        self._failures = 0
        self.next_request_ns = 0
        self.trouble = ""
