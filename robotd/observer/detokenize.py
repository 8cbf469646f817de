"""From action tokens to a chunk that may move the arm, or a ChunkError that says why not.

Never zeros, never part of a chunk: an answer is used whole or not at all. A rejected answer leaves
the arm on the chunk it has. Reasons, as they stand in counters:

    wrong_sequence   answers no open request (late, repeated, made up)
    foreign_bundle   made with another bundle than the one loaded here
    wrong_count      not the manifest's number of tokens
    id_out_of_range  a token outside the vocabulary
    undecodable      the detokenizer says not valid, or fails
    not_finite       a target is no number
    out_of_range     a target outside its joint's range
    stale            all of it is already past
    first_step       the first target still ahead is too far from where the arm is
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robotd.errors import BundleError, ChunkError
from robotd.ipc.ring import TickReport
from robotd.observer.observation import Observation
from robotd.policy.bundle import Bundle
from robotd.policy.session import Detokenizer, Ids

Doubles = npt.NDArray[np.float64]

_RANGE_SLACK = 1e-3  # units; float32 rounding at the ends of a range


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for an observation, not yet believed."""

    sequence: int
    observed_ns: int
    digest: str
    tokens: Ids
    inference_ns: int = 0  # as told by the worker


@dataclass(frozen=True, slots=True)
class CheckedChunk:
    """A chunk that passed. Step i, float64 `[joints]`, is for `observed_ns + i * period_ns`."""

    sequence: int
    observed_ns: int
    period_ns: int
    steps: list[list[float]]


class ChunkDecoder:
    """Decodes and checks the answers of one bundle. Pure: the present comes as an argument."""

    def __init__(self, bundle: Bundle, detokenizer: Detokenizer, max_first_step: float) -> None:
        self._manifest = bundle.manifest
        self._digest = bundle.digest
        self._detokenizer = detokenizer
        self._max_first_step = max_first_step
        ranges = np.asarray(bundle.manifest.joint_ranges, np.float64)
        self._low, self._high = ranges[:, 0] - _RANGE_SLACK, ranges[:, 1] + _RANGE_SLACK

    def decode(
        self, asked: Observation, reply: Reply, present: TickReport, now_ns: int
    ) -> CheckedChunk:
        """The whole chunk that answers `asked`; ChunkError when it must not reach the arm."""
        if (reply.sequence, reply.observed_ns) != (asked.sequence, asked.observed_ns):
            raise ChunkError(
                "wrong_sequence", f"answer {reply.sequence} to request {asked.sequence}"
            )
        self._check_tokens(reply)
        try:
            actions, valid = self._detokenizer.decode(reply.tokens, asked.state)
        except BundleError as error:
            raise ChunkError("undecodable", str(error)) from error
        if not valid:
            raise ChunkError("undecodable", "the tokens decode to no valid chunk")
        steps = actions.astype(np.float64)
        self._check_range(steps)
        first = self._first_usable(asked.observed_ns, now_ns)
        self._check_first_step(steps[first], first, present)
        period_ns = self._manifest.step_period_ns
        return CheckedChunk(asked.sequence, asked.observed_ns, period_ns, steps.tolist())

    def _check_tokens(self, reply: Reply) -> None:
        tokens = self._manifest.tokens
        if reply.digest != self._digest:
            raise ChunkError(
                "foreign_bundle", f"answer of bundle {reply.digest[:12]}, not {self._digest[:12]}"
            )
        if reply.tokens.shape != (tokens.count,) or reply.tokens.dtype != np.int64:
            raise ChunkError(
                "wrong_count", f"{reply.tokens.size} tokens, the bundle's are {tokens.count}"
            )
        last = tokens.first_id + tokens.vocabulary - 1
        outside = (reply.tokens < tokens.first_id) | (reply.tokens > last)
        if outside.any():
            at = int(np.argmax(outside))
            raise ChunkError(
                "id_out_of_range",
                f"token {at} is {reply.tokens[at]}, allowed are {tokens.first_id}..{last}",
            )

    def _check_range(self, steps: Doubles) -> None:
        joints = self._manifest.joints
        if not np.isfinite(steps).all():
            step, joint = np.argwhere(~np.isfinite(steps))[0]
            raise ChunkError("not_finite", f"step {step}: {joints[joint]} is {steps[step, joint]}")
        outside = (steps < self._low) | (steps > self._high)
        if outside.any():
            step, joint = np.argwhere(outside)[0]
            raise ChunkError(
                "out_of_range",
                f"step {step}: {joints[joint]} {steps[step, joint]:.1f} is outside its range",
            )

    def _first_usable(self, observed_ns: int, now_ns: int) -> int:
        """Index of the first step that is not past; between two steps, the later one."""
        period_ns = self._manifest.step_period_ns
        first = max(0, -(-(now_ns - observed_ns) // period_ns))
        if first >= max(2, self._manifest.action_horizon):
            raise ChunkError(
                "stale", f"came {(now_ns - observed_ns) / 1e6:.0f} ms after its observation"
            )
        return min(first, self._manifest.action_horizon - 1)

    def _check_first_step(
        self,
        target: Doubles,
        step: int,
        present: TickReport,
    ) -> None:
        """Distance to the span between measured position and applied target, per joint.

        The two differ lawfully (a gripper closed on an object, gravity); a target between them or
        near either one is no jump.
        """
        if len(present.joints) != len(self._manifest.joints):
            raise ChunkError("first_step", "control reports other joints than the policy's")
        for name, wanted, joint in zip(self._manifest.joints, target, present.joints, strict=True):
            known = [joint.position] if joint.valid else []
            ends = [value for value in (*known, joint.applied) if np.isfinite(value)]
            if not ends:
                raise ChunkError("first_step", f"{name}: the present position is not known")
            distance = max(min(ends) - wanted, wanted - max(ends), 0.0)
            if distance > self._max_first_step:
                raise ChunkError(
                    "first_step",
                    f"step {step}: {name} {wanted:.1f} is {distance:.1f} units away from "
                    f"the present {ends[0]:.1f}; allowed are {self._max_first_step:g}",
                )
