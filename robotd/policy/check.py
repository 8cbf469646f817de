"""Everything about a bundle that can be verified before an arm follows it.

The worker runs this at start, the observer the detokenizer's part, `robotd policy check` all of it.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robotd.errors import BundleError
from robotd.policy.bundle import Bundle, Manifest
from robotd.policy.session import Detokenizer, Floats, Ids, Image, PolicySession

_TIMED_RUNS = 20
_RANGE_SLACK = 1e-3  # units; float32 rounding at the ends of a joint's range
_SEED = 20240817


@dataclass
class Report:
    """What was verified, in words, and how long the graphs take on this machine."""

    folder: str
    name: str
    arm: str
    digest: str
    checks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    load_ms: float = 0.0
    first_ms: float = 0.0  # the first inference, which allocates buffers
    act_ms_p50: float = 0.0
    act_ms_p99: float = 0.0
    decode_us_p50: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class CheckedBundle:
    """A bundle that passed, with its sessions warm."""

    bundle: Bundle
    policy: PolicySession
    detokenizer: Detokenizer
    report: Report
    warmup_ms: list[float]


def check_bundle(
    folder: Path,
    arm: str | None = None,
    joints: Sequence[str] | None = None,
    gripper_range: tuple[float, float] | None = None,
) -> Report:
    """Verify a bundle, for the given arm where one is named; BundleError with the first problem."""
    return open_checked(folder, arm, joints, gripper_range).report


def open_checked(
    folder: Path,
    arm: str | None = None,
    joints: Sequence[str] | None = None,
    gripper_range: tuple[float, float] | None = None,
) -> CheckedBundle:
    """Verify a bundle and keep it loaded; BundleError with the first problem found."""
    bundle = Bundle.load(folder)
    manifest = bundle.manifest
    bundle.require_fit(arm, joints, gripper_range)
    report = Report(str(folder), manifest.name, manifest.arm, bundle.digest)
    report.checks.append(f"manifest and {len(manifest.files)} file hashes")
    begun = time.perf_counter_ns()
    policy, detokenizer = PolicySession(bundle), Detokenizer(bundle)
    report.load_ms = (time.perf_counter_ns() - begun) / 1e6
    report.checks.append("graphs load; inputs and outputs agree with the manifest")
    warmup_ms = policy.warm_up()
    report.first_ms = warmup_ms[0]
    _dry_run(bundle, policy, detokenizer, report)
    check_detokenizer(bundle, detokenizer)
    report.checks.append("corrupted tokens are answered with not valid")
    _measure(manifest, policy, detokenizer, report)
    return CheckedBundle(bundle, policy, detokenizer, report, warmup_ms)


def check_detokenizer(bundle: Bundle, detokenizer: Detokenizer) -> None:
    """Ids outside the vocabulary, anywhere in the list, must come back as not valid."""
    tokens = bundle.manifest.tokens
    state = np.zeros(bundle.manifest.state_size, np.float32)
    last = tokens.first_id + tokens.vocabulary - 1
    limits = np.iinfo(np.int64)
    for bad in (tokens.first_id - 1, last + 1, 1 << 40, int(limits.min), int(limits.max)):
        for place in sorted({0, tokens.count // 2, tokens.count - 1}):
            ids = np.full(tokens.count, tokens.first_id, np.int64)
            ids[place] = bad
            _, valid = detokenizer.decode(ids, state)
            if valid:
                raise BundleError(
                    f"{bundle.folder}: detokenizer calls id {bad} at position {place} valid; "
                    f"the ids are {tokens.first_id}..{last}"
                )


def _dry_run(
    bundle: Bundle, policy: PolicySession, detokenizer: Detokenizer, report: Report
) -> None:
    """Policy and detokenizer on random and extreme inputs; what they answer must be usable."""
    manifest = bundle.manifest
    runs = decoded = 0
    for label, images, state in _inputs(manifest):
        tokens = policy.act(images, state)
        _require_ids(bundle, label, tokens)
        if not np.array_equal(tokens, policy.act(images, state)):
            report.warnings.append(f"{label}: the same input gave different tokens twice")
        actions, valid = detokenizer.decode(tokens, state)
        runs += 1
        decoded += valid
        if valid:
            _require_targets(bundle, label, actions)
    if decoded == 0:
        raise BundleError(
            f"{bundle.folder}: detokenizer refuses the policy's own tokens on all {runs} inputs; "
            "the two files do not belong together"
        )
    report.checks.append(f"{runs} dry runs: ids inside the vocabulary, {decoded} chunks valid")


def _inputs(manifest: Manifest) -> Iterator[tuple[str, dict[str, Image], Floats]]:
    """Labelled inputs: every pairing of plain and noise pictures with usual and extreme states."""
    random = np.random.default_rng(_SEED)
    low, high = np.asarray(manifest.joint_ranges, np.float32).T
    parts = len(manifest.state.parts)
    middle = (low + high) / 2
    poses = {
        "mid range": middle,
        "random pose": middle + (high - low) * random.uniform(-0.3, 0.3, len(low)),
        "lower ends": low,
        "upper ends": high,
        "far outside": middle + 10 * (high - middle),
    }
    for pose, values in poses.items():
        state = np.tile(values, parts).astype(np.float32)
        for shade, level in (("black", 0), ("white", 255), ("noise", None)):
            images = {}
            for image in manifest.images:
                shape = (image.height, image.width, 3)
                plain = random.integers(0, 256, shape) if level is None else np.full(shape, level)
                images[image.camera] = plain.astype(np.uint8)
            yield f"{pose}, {shade} pictures", images, state


def _require_ids(bundle: Bundle, label: str, ids: Ids) -> None:
    tokens = bundle.manifest.tokens
    last = tokens.first_id + tokens.vocabulary - 1
    if ids.min() < tokens.first_id or ids.max() > last:
        raise BundleError(
            f"{bundle.folder}: policy answered ids {ids.min()}..{ids.max()} ({label}); "
            f"allowed are {tokens.first_id}..{last}"
        )


def _require_targets(bundle: Bundle, label: str, actions: Floats) -> None:
    low, high = np.asarray(bundle.manifest.joint_ranges, np.float32).T
    inside = (actions >= low - _RANGE_SLACK) & (actions <= high + _RANGE_SLACK)
    if not inside.all():  # a NaN is not inside either
        joint = bundle.manifest.joints[int(np.argwhere(~inside)[0][1])]
        raise BundleError(
            f"{bundle.folder}: detokenizer calls a chunk valid whose {joint} leaves its range "
            f"({label})"
        )


def _measure(
    manifest: Manifest, policy: PolicySession, detokenizer: Detokenizer, report: Report
) -> None:
    """Time both graphs; warn when the policy cannot keep up with its own chunks."""
    _, images, state = next(_inputs(manifest))
    tokens = policy.act(images, state)
    act, decode = [], []
    for _ in range(_TIMED_RUNS):
        begun = time.perf_counter_ns()
        policy.act(images, state)
        between = time.perf_counter_ns()
        detokenizer.decode(tokens, state)
        act.append(between - begun)
        decode.append(time.perf_counter_ns() - between)
    report.act_ms_p50 = float(np.percentile(act, 50)) / 1e6
    report.act_ms_p99 = float(np.percentile(act, 99)) / 1e6
    report.decode_us_p50 = float(np.percentile(decode, 50)) / 1e3
    budget_ms = manifest.execution_horizon * manifest.step_period_s * 1e3
    if report.act_ms_p99 > budget_ms:
        report.warnings.append(
            f"one inference takes {report.act_ms_p99:.0f} ms here and a chunk is executed for "
            f"{budget_ms:.0f} ms: the arm will pause between chunks"
        )
