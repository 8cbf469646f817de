"""`robotd sim film`: one stepped episode as a picture of six moments, large enough to look at."""

from pathlib import Path

import numpy as np

from robotd.episodes import EpisodeResult, temporary_runtime
from robotd.evaluate import stage_config
from robotd.observer.picture import save
from robotd.sim.render import Renderer
from robotd.stepped import SteppedStage

MOMENTS = 6
WIDTH, HEIGHT = 320, 240  # of the view from the front
_WRIST = 80  # of the wrist camera's picture, in the corner
_EVERY_TICKS = 10


def film(model: str, bundle: Path, seed: int, out: Path) -> EpisodeResult:
    """Run the episode and write the picture; what the policy's wrist camera sees is inset."""
    stage = SteppedStage(stage_config(model, bundle, temporary_runtime()))
    snapshots: list[bytes] = []
    ticks = 0

    def watch() -> None:
        nonlocal ticks
        if ticks % _EVERY_TICKS == 0:
            snapshots.append(stage.physics.snapshot())
        ticks += 1

    try:
        with stage:
            result = stage.episode(seed, watch=watch)
    finally:
        stage.discard()
    renderer = Renderer(model, stage.physics.scene)
    pictures = []
    for index in np.linspace(0, len(snapshots) - 1, MOMENTS):
        renderer.load(snapshots[int(index)])
        picture = renderer.render("front", WIDTH, HEIGHT).copy()
        picture[-_WRIST:, -_WRIST:] = renderer.render("wrist", _WRIST, _WRIST)
        pictures.append(picture)
    renderer.close()
    half = MOMENTS // 2
    save(out, np.vstack([np.hstack(pictures[:half]), np.hstack(pictures[half:])]))
    return result
