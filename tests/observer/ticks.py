"""Tick reports and pictures for tests of the observer's pure parts."""

import numpy as np

from robotd.ipc.ring import JointReport, Mode, TickReport
from robotd.observer.observation import Picture
from robotd.policy.bundle import Manifest

MS = 1_000_000
NOW = 5_000_000_000
MIDDLE = (0.0, 0.0, 0.0, 0.0, 0.0, 50.0)


def tick(
    deadline_ns: int = NOW,
    positions: tuple[float, ...] = MIDDLE,
    applied: tuple[float, ...] | None = None,
    mode: Mode = Mode.POLICY,
    chunk_sequence: int = 0,
) -> TickReport:
    """A report of six joints, all read."""
    targets = positions if applied is None else applied
    joints = [
        JointReport(position=position, applied=target, valid=True)
        for position, target in zip(positions, targets, strict=True)
    ]
    return TickReport(
        sequence=deadline_ns // (5 * MS),
        deadline_ns=deadline_ns,
        mode=mode,
        chunk_sequence=chunk_sequence,
        joints=joints,
    )


def pictures(manifest: Manifest, captured_ns: int = NOW, level: int = 127) -> dict[str, Picture]:
    """Plain grey pictures of the right size for every camera of the bundle."""
    return {
        image.camera: Picture(captured_ns, np.full((image.height, image.width, 3), level, np.uint8))
        for image in manifest.images
    }
